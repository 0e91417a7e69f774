"""Bands that a metric must not leave, per class of machine: `data/recordings/bands.json`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from labsupport.errors import RecordingError
from labsupport.recordings import plans, provenance

SPEEDS = frozenset(
    {"×", "ms", "µs", "us", "s", "items/s", "GB/s", "TFLOP/s", "runs"}
)  # units that a busy machine moves
WHY = "why"  # beside the bands of a class: {metric: reason}


def check_recorded(root: Path | None = None) -> list[str]:
    """One line per recorded metric that has no band or lies outside it, and per recording or plan that is broken."""
    root = Path(root or provenance.ROOT)
    bands, complaints = load(root), []
    for path in sorted(root.glob("*/*.json")):
        try:
            if path.parent.name == plans.FOLDER:
                plans.load_plan(path.stem, path.parent)
            else:
                recording = provenance.read(root, path.parent.name, path.stem)
                complaints += _check(path.parent.name, path.stem, recording["metrics"], bands, need_band=True)
        except RecordingError as error:
            complaints.append(str(error))
    return complaints


def check_live(folder: Path, root: Path | None = None, *, speeds: bool = True) -> list[str]:
    """One line per metric just measured into `folder` that lies outside its band for this class of machine.

    `speeds=False` leaves out what other work on the machine moves: times, rates and their ratios.
    """
    from labsupport import environment

    bands, complaints = load(Path(root or provenance.ROOT)), []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            live = provenance.read_json(path)
            metrics = {name: provenance.check_metric(name, entry) for name, entry in live["metrics"].items()}
            if not speeds:
                metrics = {name: entry for name, entry in metrics.items() if entry["unit"] not in SPEEDS}
            complaints += _check(environment.machine_class(), path.stem, metrics, bands, need_band=False)
        except RecordingError as error:
            complaints.append(str(error))
        except (KeyError, TypeError, AttributeError):
            complaints.append(f"{path.name} is not a file of live metrics; give LABSUPPORT_METRICS a folder of its own")
    return complaints


def load(root: Path) -> dict:
    """{class or pattern: {metric or lab/metric: [low, high]}}; RecordingError where a band is not two numbers."""
    bands = provenance.read_json(root / "bands.json")
    for machine_class, entries in bands.items() if isinstance(bands, dict) else [("bands.json", None)]:
        if not isinstance(entries, dict):
            raise RecordingError(f"bands.json: {machine_class!r} holds no mapping; expected {{metric: [low, high]}}")
        for metric, band in entries.items():
            if metric != WHY and not _is_band(band):
                raise RecordingError(
                    f"bands.json: {metric!r} of {machine_class!r} is {band!r}; a band is [low, high] with low <= high"
                )
    return bands


def _check(machine_class, lab, metrics, bands, need_band) -> list[str]:
    limits, complaints = of_class(bands, machine_class), []
    for name, entry in metrics.items():
        band, why = find(limits, lab, name)
        if band is None:
            if need_band:
                complaints.append(
                    f"{lab} on {machine_class}: {name} = {entry['value']:g} {entry['unit']} has no band; "
                    f'add "{name}": [low, high] under "{machine_class}" in data/recordings/bands.json'
                )
        elif not band[0] <= entry["value"] <= band[1]:
            complaints.append(
                f"{lab} on {machine_class}: {name} is {entry['value']:g} {entry['unit']}, outside its band "
                f"{band[0]:g} to {band[1]:g}" + (f" ({why})" if why else "")
            )
    return complaints


def of_class(bands, machine_class) -> dict:
    """All entries whose pattern fits, the longest and so most particular pattern winning."""
    merged = {WHY: {}}
    for pattern in sorted((name for name in bands if fnmatchcase(machine_class, name)), key=len):
        entries = dict(bands[pattern])
        merged[WHY] = {**merged[WHY], **entries.pop(WHY, {})}
        merged.update(entries)
    return merged


def find(bands, lab, name):
    """(band or None, its reason) of one metric of a lab, among the entries of `of_class`."""
    for key in (f"{lab}/{name}", name):  # lab.seconds exists in every lab, and may differ
        if key in bands:
            return bands[key], bands[WHY].get(key, "")
    return None, ""


def _is_band(band) -> bool:
    numbers = (
        isinstance(band, list)
        and len(band) == 2
        and all(isinstance(edge, (int, float)) and not isinstance(edge, bool) for edge in band)
    )
    return numbers and band[0] <= band[1]
