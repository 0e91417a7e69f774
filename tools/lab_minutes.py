"""How long each lab takes: minutes to read, from its words and lines; minutes to run, as recorded. Prints a table.

    python3 tools/lab_minutes.py

A lab's opening states both; `tests/house/test_openings.py` holds what it states against these.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS_A_MINUTE = 110  # of a second language, with a new idea in each paragraph
LINES_A_MINUTE = 12  # of code
OPTIONAL = "for the curious"
NUMBERS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
    )
} | {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "an": 1, "a": 1, "some": 2}
AMOUNT = re.compile(
    r"\b(?P<number>\d+|[a-z]+)(?P<half> and a half)?(?: (?P<unit>hours?|minutes?)| (?=to (?:read|run)))"
)


KINDS = {"gpu": r"\bwith a gpu\b", "run": r"\brun(?:s|ning)?\b", "read": r"\bread(?:ing)?\b"}
EXERCISE_MINUTES = 4


def counted(notebook: dict) -> tuple[int, int]:
    """(words of Markdown, lines of code) of a lab's core; what stands under "For the curious" is left out."""
    words = lines = 0
    depth = 0  # of the heading that opened the optional part
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            lines += 0 if depth else sum(bool(line.strip()) for line in source.splitlines())
            continue
        prose = re.sub(r"(?ms)^(```|~~~).*?^\1|\$\$.*?\$\$", " ", source)
        for marks, title in re.findall(r"(?m)^(#{1,6})\s+(.+)$", prose):
            if OPTIONAL in title.lower():
                depth = len(marks)
            elif depth and len(marks) <= depth:
                depth = 0
        words += 0 if depth else len(re.findall(r"\w[\w'’.,/×-]*", prose))
    return words, lines


def to_read(notebook: dict) -> float:
    """Minutes to read the core of a lab, without its exercises."""
    words, lines = counted(notebook)
    return words / WORDS_A_MINUTE + lines / LINES_A_MINUTE


def to_run(lab: str, root: Path = ROOT / "data" / "recordings") -> dict[str, float]:
    """Class of machines → minutes that the whole lab took there, as recorded."""
    took = {}
    for path in sorted(root.glob(f"*/{lab}.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        if "lab.seconds" in metrics:
            took[path.parent.name] = metrics["lab.seconds"]["value"] / 60
    return took


def stated(notebook: dict) -> dict[str, float]:
    """What a lab's opening says: {"read": minutes, "run": minutes}, with "gpu" where it names them, and
    "try" is 1 where reading counts the exercises in.
    """
    cells = [cell for cell in notebook["cells"][:4] if cell["cell_type"] == "markdown"]
    said: dict[str, float] = {}
    text = re.sub(r"\n(?!\||\n)", " ", "\n\n".join("".join(cell["source"]) for cell in cells).replace("*", "").lower())
    for clause in re.split(r"[;,.|\n]", text):
        for kind, pattern in KINDS.items():
            if re.search(pattern, clause) and kind not in said and (minutes := _minutes(clause)) is not None:
                said[kind] = minutes
                said["try"] = max(said.get("try", 0), kind == "read" and bool(re.search(r"\b(?:try|solve)\b", clause)))
                break
    return said


def _minutes(clause: str) -> float | None:
    for found in AMOUNT.finditer(clause) or ():
        number = int(found["number"]) if found["number"].isdigit() else NUMBERS.get(found["number"])
        if number is not None:
            number += 0.5 * bool(found["half"])
            return number * 60 if (found["unit"] or "").startswith("hour") else float(number)
    bare = re.search(r"\bgpu (\d+)\b", clause)
    return float(bare[1]) if bare else None


def faults(lab: str, notebook: dict) -> list[str]:
    """What is wrong with the minutes that an opening states; each with what to write."""
    said, reading, took = stated(notebook), to_read(notebook), to_run(lab)
    if said.get("try"):
        reading += EXERCISE_MINUTES * sum(".check(" in "".join(cell["source"]) for cell in notebook["cells"])
    found = []
    advice = f'write "| minutes | {5 * math.ceil(reading / 5)} to read, {_whole(took, "cpu")} to run |"'
    for kind in ("read", "run"):
        if kind not in said:
            found.append(f"the opening names no minutes to {kind}; {advice}")
    if "read" in said and not reading / 1.8 <= said["read"] <= reading * 1.8 + 5:
        found.append(f"the opening says {said['read']:g} minutes to read, its words and lines take {reading:.0f}")
    for machine, minutes in took.items():
        kind = "run" if machine.startswith("cpu") or "gpu" not in said else "gpu"
        if kind in said and not minutes - 0.5 <= said[kind]:
            found.append(f"the opening says {said[kind]:g} minutes to run, and {machine} took {minutes:.1f}")
    return found


def _whole(took: dict[str, float], start: str) -> str:
    minutes = [value for machine, value in took.items() if machine.startswith(start)]
    return str(max(1, round(max(minutes)))) if minutes else "N"


def main() -> None:
    """Print words, lines and minutes of every lab."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        words, lines = counted(notebook)
        took = ", ".join(f"{machine} {minutes:.1f}" for machine, minutes in to_run(path.stem).items()) or "not recorded"
        said = ", ".join(f"{kind} {minutes:g}" for kind, minutes in stated(notebook).items()) or "nothing"
        sys.stdout.write(
            f"{path.stem:26} {words:5} words, {lines:4} lines: {to_read(notebook):3.0f} min to read; "
            f"run: {took}; the opening says: {said}\n"
        )


if __name__ == "__main__":
    main()
