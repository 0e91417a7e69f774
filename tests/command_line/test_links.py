"""The link checker: it finds every address, judges answers of a real server, and says when there is no network."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labsupport.command_line import cli, links

ROOT = Path(__file__).resolve().parents[2]


class Site(BaseHTTPRequestHandler):
    """A small web: pages that are there, moved, gone, shy of HEAD, and closed."""

    def answer(self):
        code = {"/there": 200, "/moved": 301, "/slash": 301, "/gone": 404, "/closed": 403, "/busy": 429}.get(
            self.path, 200
        )
        if self.path == "/no-head":
            code = 405 if self.command == "HEAD" else 200
        if self.path == "/no-http":
            self.close_connection = True
            return self.wfile.write(b"no status line\r\n\r\n")
        self.send_response(code)
        if code == 301:
            self.send_header("Location", "/elsewhere" if self.path == "/moved" else "/slash/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = answer

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("page, state", [
    ("/there", "there"), ("/there#part", "there"), ("/no-head", "there"), ("/slash", "there"), ("/moved", "moved"),
    ("/gone", "gone"), ("/closed", "not judged"), ("/busy", "not judged"), ("/no-http", "not reached"),
])  # fmt: skip
def test_answers_are_judged(site, page, state):
    assert links.asked(site + page)[0] == state


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/",
        "http://no-host-of-this-name.invalid/",
        "http://[broken",
        "http://a b/",
        "http://127.0.0.1:port/",
    ],
)
def test_what_cannot_be_reached_is_not_called_gone(address):
    state, said = links.asked(address, seconds=2)
    assert state == "not reached" and said


@pytest.fixture
def workbook(tmp_path):
    cells = [{"cell_type": "markdown", "source": ["See [this](https://a.org/x) and [that](../docs/page.md)."]},
             {"cell_type": "code", "source": "# https://a.org/code\nopen('http://localhost:8888')"}]  # fmt: skip
    for name, text in {
        "README.md": "[a](https://a.org/x). Then <https://b.org/>, and `https://c.org/y`; [gone](docs/lost.md#part) [here](docs/page.md)",
        "docs/page.md": "(https://a.org/x) [up](../README.md) [place](#below) http://example.org/z",
        "notebooks/01_x.ipynb": json.dumps({"cells": cells}),
        "data/article/links.json": json.dumps([{"article": "https://old.org/", "today": "https://new.org/page"}]),
        "data/hardware/accelerators.json": json.dumps({"rows": [{"source": "https://parts.org/a.pdf"}]}),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_every_address_is_collected_once_with_its_places(workbook):
    found = links.collect(workbook)
    assert list(found) == sorted([
        "https://a.org/x", "https://b.org/", "https://c.org/y", "docs/lost.md#part", "docs/page.md", "../README.md", "../docs/page.md",
        "https://a.org/code", "https://new.org/page", "https://parts.org/a.pdf",
    ])  # fmt: skip
    assert found["https://a.org/x"] == ["README.md", "docs/page.md", "notebooks/01_x.ipynb"]


def judged(workbook, **answers):
    def ask(address):
        return answers.get(address.partition("//")[2][:1], "there"), ""

    return links.check(links.collect(workbook), workbook, ask=ask)


def test_the_worst_come_first_and_relative_links_need_no_network(workbook):
    found = judged(workbook, b="gone", c="moved")
    assert [link.state for link in found[:3]] == ["no such file", "gone", "moved"]
    assert repr(found[0]) == "no such file docs/lost.md#part (asked from README.md)  in README.md"
    assert links.failed(found)
    assert links.report(found).splitlines()[-1] == "10 links: 7 there, 1 moved, 1 gone, 1 no such file"


def test_what_is_only_moved_or_closed_does_not_fail(workbook):
    (workbook / "docs" / "lost.md").write_text("here")
    assert not links.failed(judged(workbook, a="moved", b="not judged", c="not reached"))


def test_without_a_network_it_says_so_and_fails(workbook):
    (workbook / "docs" / "lost.md").write_text("here")
    found = links.check(links.collect(workbook), workbook, ask=lambda address: ("not reached", "no route"))
    assert links.report(found).endswith("no address was reached; is there a network?") and links.failed(found)


def test_the_command_asks_and_reports(monkeypatch, capsys):
    monkeypatch.setattr(links, "asked", lambda address: ("there", ""))
    assert cli.links(None, []) == 0
    assert " there" in capsys.readouterr().out


def test_the_workbooks_own_relative_links_lead_somewhere():
    found = links.check(links.collect(ROOT), ROOT, ask=lambda address: ("there", ""))
    assert [link for link in found if link.state == "no such file"] == []


def test_the_docs_page_of_resources_holds_the_articles_addresses():
    text = (ROOT / "docs" / "resources.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "data" / "article" / "links.json").read_text(encoding="utf-8"))
    assert len(rows) == 11
    for row in rows:
        assert row["today"] in text and row["license"] in text, row["name"]
