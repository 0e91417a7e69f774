"""What a class of machines has recorded, beside its bands, as Markdown: the summary of the GPU runner's job.

python3 tools/bands_report.py [CLASS]        # h100-trt8.6; this machine's own when left out
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from labsupport.recordings import bands


def rows(machine_class: str, root: Path) -> list[tuple[str, str, str, str, str]]:
    """(lab, metric, value, band, verdict) of every metric that this class recorded, those outside their bands first."""
    known, found = bands.of_class(bands.load(root), machine_class), []
    for path in sorted((root / machine_class).glob("*.json")):
        for name, entry in json.loads(path.read_text(encoding="utf-8"))["metrics"].items():
            band, _ = bands.find(known, path.stem, name)
            verdict = "no band" if band is None else "inside" if band[0] <= entry["value"] <= band[1] else "OUTSIDE"
            limits = f"{band[0]:g} to {band[1]:g}" if band else ""
            found.append((path.stem, name, f"{entry['value']:.4g} {entry['unit']}", limits, verdict))
    return sorted(found, key=lambda row: ("OUTSIDE", "no band", "inside").index(row[-1]))


def table(found: list[tuple[str, str, str, str, str]], machine_class: str) -> str:
    """The rows in Markdown, below a line that counts them."""
    outside = sum(row[-1] == "OUTSIDE" for row in found)
    head = [("lab", "metric", "value", "band", "verdict"), ("---",) * 5]
    lines = [f"| {' | '.join(row)} |" for row in [*head, *found]]
    return "\n".join([f"## {len(found)} metrics of {machine_class}, {outside} outside their bands", "", *lines])


def main(arguments: list[str], root: Path = ROOT / "data" / "recordings") -> int:
    """Print the table; 1 where a metric is outside its band, 2 where this class has recorded nothing."""
    from labsupport import environment

    machine_class = arguments[0] if arguments else environment.machine_class()
    found = rows(machine_class, root)
    if not found:
        known = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "plans"))
        print(f"{machine_class} has recorded nothing; choose one of {known}, or type `python3 -m labsupport record`")
        return 2
    print(table(found, machine_class))
    return int(any(row[-1] == "OUTSIDE" for row in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
