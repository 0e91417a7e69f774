"""Every listing of the article has a row, every row is shown in lab B, and every equivalent is short and really there."""

from __future__ import annotations

import ast
import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from labsupport import listings
from labsupport.errors import BadInput

ROOT = next(parent for parent in Path(__file__).resolve().parents if (parent / "notebooks").is_dir())
ARTICLE = Path(os.environ.get("LABSUPPORT_ARTICLE", ROOT.parent / "shared" / "article.md"))
ROWS = listings.every()


def tagged() -> dict[str, list[str]]:
    """tag → sources of lab B's code cells that carry it."""
    cells = json.loads((ROOT / "notebooks" / "B_article_map.ipynb").read_text(encoding="utf-8"))["cells"]
    found = defaultdict(list)
    for cell in cells:
        for tag in cell["metadata"].get("tags", []) if cell["cell_type"] == "code" else []:
            found[tag].append("".join(cell["source"]))
    return found


TAGS = tagged()


@pytest.mark.skipif(not ARTICLE.is_file(), reason="the article's text is not beside this checkout")
def test_every_listing_of_the_article_has_a_row():
    assert listings.unlisted(ARTICLE.read_text(encoding="utf-8")) == []


def test_a_listing_without_a_row_is_seen():
    text = "some words\n\n   ```python\n   import brand_new\n   ```\n\n$$\nE = mc^2\n$$\n```bash\nls\n```\n"
    assert listings.unlisted(text) == ["import brand_new", "ls", "E = mc^2"]


def test_the_rows_are_those_of_chapters_4_and_5_and_appendices_b_to_f_in_order():
    order = [name.partition("-")[0] for name in ROWS]
    assert order == sorted(order) and {name[0] for name in order} == set("45BCDEF")
    assert len(ROWS) == 35


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_complete_and_shown_with_a_working_equivalent(name):
    row = ROWS[name]
    assert row.claim and row.verdict and len(row.sha256) == 64
    assert any(f'"{name}"' in source for source in TAGS[f"listing:{name}"]), "lab B does not show it"
    equivalents = TAGS[f"equivalent:{row.equivalent}"]
    assert equivalents, f"no cell of lab B is tagged equivalent:{row.equivalent}"
    assert all(sum(bool(line.strip()) for line in source.splitlines()) <= 15 for source in equivalents)
    assert not row.lab[:1].isdigit() or 0 <= int(row.lab[:2]) <= 15


def test_every_equivalent_belongs_to_a_row():
    assert {tag.partition(":")[2] for tag in TAGS if tag.startswith("equivalent:")} == {
        row.equivalent for row in ROWS.values()
    }


def test_the_workbook_keeps_no_comment_of_the_article():
    for row in ROWS.values():
        assert "#" not in row.code
        if row.id != "5.2.2-quantize":  # one invented name is not written in Latin letters
            assert row.code.isascii()


AS_PRINTED = {"4.3.1-compile": "NameError", "4.3.2-convert": "SyntaxError", "5.2.2-quantize": "AttributeError", "C-pipeline": "NameError",
              "D.2-backprop": "SyntaxError", "E.1-project": "AttributeError", "5.3.2-balance": "TypeError"}  # fmt: skip


@pytest.mark.parametrize("name, error", AS_PRINTED.items())
def test_some_listings_really_fail_as_the_map_says(name, error):
    pytest.importorskip("tensorrt_rtx")
    assert ROWS[name].run().error == error


def test_help_gets_a_listing_further():
    pytest.importorskip("tensorrt_rtx")
    assert "TrtGraphConverter" in ROWS["4.3.2-convert"].run(helped=True).message
    assert "optimizer_simple" in ROWS["5.2.2-distill"].run(helped=True).message
    assert ROWS["4.3.1-compile"].run(helped=True).ok


def test_with_its_help_every_listing_is_a_program():
    helped = [row for row in ROWS.values() if row.help]
    assert len(helped) > 15
    for row in helped:
        compile(row.helped, row.id, "exec")


def test_the_listing_that_hangs_is_stopped_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.chdir(tmp_path)
    outcome = ROWS["5.3.2-balance"].run(helped=True, seconds=1)
    assert outcome.kind == "hung" and list(tmp_path.iterdir()) == []


def test_only_the_one_that_never_ends_is_given_two_seconds(monkeypatch):
    heard = []
    monkeypatch.setattr(listings.sandbox, "python", lambda code, *, seconds, **_: heard.append(seconds))
    for name, helped in (("4.3.1-compile", True), ("5.3.2-balance", True), ("5.3.2-balance", False)):
        ROWS[name].run(helped=helped)
    assert heard == [20, 2, 20]


def test_what_is_no_program_is_refused():
    for name in ("B.1-flow", "D.1-mse"):
        with pytest.raises(BadInput, match="which nothing runs; read its verdict"):
            ROWS[name].run()


def test_an_unknown_name_is_refused_with_the_names():
    with pytest.raises(BadInput, match="'4.3.9' is no listing of the article; choose one of"):
        listings.named("4.3.9")


def test_the_recording_with_tensorflow_is_whole():
    recorded = listings.recorded()
    assert recorded["tensorflow"] and recorded["date"] and recorded["lacks"] == ["tensorflow.DeviceMemory"]
    wanted = {name for name, row in ROWS.items() if row.kind == "python" and "tensorflow" in row.code + row.helped}
    assert set(recorded["outcomes"]) == wanted
    assert all(outcome[0] != "refused" for ways in recorded["outcomes"].values() for outcome in ways.values())


def test_claims_have_a_verdict_and_evidence():
    claims = json.loads((listings.FOLDER / "claims.json").read_text(encoding="utf-8"))
    assert len({claim["id"] for claim in claims}) == len(claims) >= 20
    for claim in claims:
        assert claim["verdict"] and claim["because"] and claim["claim"].endswith(".")
        assert ("metrics" in claim) != ("source" in claim), claim["id"]
        if "source" in claim:
            assert claim["source"].startswith("https://") and claim["seen"] and claim["says"]


def test_recorded_evidence_exists():
    from labsupport import recordings

    for claim in json.loads((listings.FOLDER / "claims.json").read_text(encoding="utf-8")):
        for metric in claim.get("metrics", []):
            assert recordings.lab(claim["lab"]).recorded(metric) is not None, (claim["id"], metric)


def test_code_of_the_rows_compiles_where_the_map_says_so():
    broken = {name for name, row in ROWS.items() if row.kind == "python" and not _compiles(row.code)}
    assert broken == {"4.3.2-convert", "D.2-backprop"}


def _compiles(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True
