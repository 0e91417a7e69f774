"""Every address that notebooks, docs and README name: is it still there? Needs a network; nothing else here does."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ADDRESS = re.compile(r"https?://[^\s<>\"'`)\]},|\\]+")
RELATIVE = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)")
# addresses that are examples, or this machine's own server
NO_LINKS = ("http://example.", "https://example.", "http://localhost", "http://127.0.0.1")
STATES = ("there", "moved", "not judged", "gone", "not reached", "no such file")
BAD = ("gone", "no such file")
AGENT = {"User-Agent": "Mozilla/5.0 (link checker of a course)"}


@dataclass(frozen=True)
class Link:
    """One address or relative path: its state, one of STATES, a word on it, and the files that name it."""

    target: str
    state: str
    said: str
    places: tuple[str, ...]

    def __repr__(self) -> str:
        said = f" ({self.said})" if self.said else ""
        return f"{self.state:12} {self.target}{said}  in {', '.join(self.places)}"


def collect(root: Path) -> dict[str, list[str]]:
    """Target → files that name it: addresses in notebooks, Markdown and data files, and relative links in Markdown."""
    found: dict[str, list[str]] = {}
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        for target in _targets(path):
            places = found.setdefault(target, [])
            if name not in places:
                places.append(name)
    return dict(sorted(found.items()))


def check(
    targets: Mapping[str, Iterable[str]], root: Path, *, ask: Callable[[str], tuple[str, str]] | None = None
) -> list[Link]:
    """Judge each target, the worst first; ``ask(address)`` gives (state, a word on it). Eight are asked at a time."""
    ask = ask or asked
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda target: _state(target, targets[target], root, ask), targets))
    links = [Link(target, *answer, tuple(targets[target])) for target, answer in zip(targets, answers)]
    return sorted(links, key=lambda link: (-STATES.index(link.state), link.target))


def report(links: list[Link]) -> str:
    """What is not plainly there, one a line, and a line of counts."""
    counts = {state: sum(link.state == state for link in links) for state in STATES}
    lines = [repr(link) for link in links if link.state != "there"]
    lines.append(f"{len(links)} links: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count))
    addresses = [link for link in links if link.target.startswith("http")]
    if addresses and all(link.state == "not reached" for link in addresses):
        lines.append("no address was reached; is there a network?")
    return "\n".join(lines)


def failed(links: list[Link]) -> bool:
    """Whether something is gone, or no address at all was reached."""
    addresses = [link.state for link in links if link.target.startswith("http")]
    return any(link.state in BAD for link in links) or bool(addresses) and set(addresses) == {"not reached"}


def asked(address: str, *, seconds: float = 15) -> tuple[str, str]:
    """(state, a word on it) of one address: a HEAD request, and a GET where the server wants none."""
    state, said = "not reached", ""
    for method in ("HEAD", "GET"):
        try:
            request = urllib.request.Request(address.partition("#")[0], method=method, headers=AGENT)
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return _arrived(address, answer.geturl())
        except urllib.error.HTTPError as error:
            state, said = (
                ("gone", str(error.code)) if error.code in (404, 410) else ("not judged", f"HTTP {error.code}")
            )
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
            return "not reached", " ".join(str(getattr(error, "reason", error)).split())[:80]
    return state, said


def _arrived(asked_for: str, came: str) -> tuple[str, str]:
    """A redirect within a page's own address (a slash, a language, http to https) is no move."""

    def plain(address: str) -> str:
        return (
            re.sub(r"^https?://(www\.)?|[#?].*$|/index\.html$|/$", "", address)
            .replace("/en-us", "")
            .lower()
            .rstrip("/")
        )

    return ("there", "") if plain(asked_for) == plain(came) else ("moved", f"to {came}")


def _state(target: str, places: Iterable[str], root: Path, ask: Callable[[str], tuple[str, str]]) -> tuple[str, str]:
    if target.startswith("http"):
        return ask(target)
    path = target.partition("#")[0]
    lacking = [place for place in places if not ((root / place).parent / path).exists()]
    return ("no such file", f"asked from {lacking[0]}") if lacking else ("there", "")


def _files(root: Path) -> list[Path]:
    patterns = (
        "README.md",
        "docs/*.md",
        "data/**/*.md",
        "notebooks/*.ipynb",
        "data/article/*.json",
        "data/hardware/*.json",
    )
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def _targets(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        relative = RELATIVE.findall(
            "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        )
    else:
        relative = RELATIVE.findall(text) if path.suffix == ".md" else []
    if path.name == "links.json":  # the article's own addresses are history
        text = "\n".join(row["today"] for row in json.loads(text))
    addresses = [match.rstrip(".;:") for match in ADDRESS.findall(text)]
    return [target for target in (*addresses, *relative) if not target.startswith(NO_LINKS)]
