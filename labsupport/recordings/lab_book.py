"""Results with provenance: recorded where there is a GPU, replayed with their label where there is none."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from labsupport import files
from labsupport.errors import RecordingError
from labsupport.recordings import names, provenance
from labsupport.recordings.metrics import Measured, Recorded, Replay, as_text
from labsupport.recordings.plans import store_plans


@dataclass(frozen=True)
class LabBook:
    """One lab's results: `record` what was measured here, `replay` what was recorded elsewhere."""

    name: str
    root: Path

    def record(self, metric, value, unit=None, samples=None, spread=None) -> Measured:
        """Name a result, such as `book.record("resnet18_b32.top1_agreement", 0.99, "fraction")`.

        A measurement (anything with `as_metric()`) brings its unit, samples and spread. With LABSUPPORT_METRICS set to
        a folder, the metric is also written there; `run`, `record` and `test` collect it from it.
        """
        entry = provenance.check_metric(metric, _entry(metric, value, unit, samples, spread))
        origin = provenance.here("")
        folder = os.environ.get("LABSUPPORT_METRICS")
        if folder:
            self._append(Path(folder) / f"{self.name}.json", metric, entry, origin)
        machine, runtime = provenance.where(origin, origin["machine_class"])
        return Measured(self.name, metric, **entry, machine=machine, runtime=runtime)

    def replay(self, metric=None, machine_class=None):
        """The recorded `metric`, or all of the lab's; from the newest GPU recording unless `machine_class` says which.

        A metric that the newest lacks comes from the next newest that has it, and its label names that machine.
        """
        if machine_class is None:
            if metric is not None:
                return self.recorded(metric) or self._lacks(metric)
            machine_class, recording = next(iter(self._on_gpu().items()), None) or self._lacks()
        else:
            recording = provenance.read(self.root, machine_class, self.name)
        metrics = tuple(
            _recorded(self.name, machine_class, name, entry, recording) for name, entry in recording["metrics"].items()
        )
        machine, runtime = provenance.where(recording, machine_class)
        label = f"recorded on {machine}, {runtime}, {recording['date']}"
        whole = Replay(self.name, machine_class, label, recording["command"], metrics)
        return whole if metric is None else whole[metric]

    def recorded(self, metric: str) -> Recorded | None:
        """The metric as :meth:`replay` finds it, or None where nobody has recorded it on a GPU; a broken recording
        raises.
        """
        for machine_class, recording in self._on_gpu().items():
            if metric in recording["metrics"]:
                return _recorded(self.name, machine_class, metric, recording["metrics"][metric], recording)
        return None

    def told(self, *metrics, command: str | None = None) -> str:
        """Recorded metrics in words, one a line under their machine; a last line names those that lack, and the
        `command` that records them.
        """
        values = {metric: self.recorded(metric) for metric in metrics}
        present = [value for value in values.values() if value]
        labels = dict.fromkeys(value.label for value in present)
        parts = [(label, [value for value in present if value.label == label]) for label in labels]
        lines = [as_text(parts)] if parts else []
        if lacking := [metric for metric, value in values.items() if not value]:
            command = command or f"python3 -m labsupport record {self.name.partition('_')[0]}"
            titles = "; ".join(names.readable(metric) for metric in lacking)
            lines.append(f"not recorded yet: {titles}; `{command}` does that on a GPU machine")
        return "\n".join(lines)

    def _append(self, path, metric, entry, origin) -> None:
        with provenance.locked(path):  # two kernels of one lab, or the processes of a script
            live = _live(path, origin["machine_class"])
            provenance.write_json(path, {**live, "metrics": {**live["metrics"], metric: entry}})

    def _on_gpu(self) -> dict[str, dict]:
        """GPU machine class → recording, newest first; of one day h100 first, then by name."""
        books = {
            name: provenance.read(self.root, name, self.name) for name in self._classes() if not name.startswith("cpu")
        }
        return dict(sorted(books.items(), key=lambda item: (item[1]["date"], item[0].startswith("h100")), reverse=True))

    def _classes(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob(f"*/{self.name}.json"))

    def _lacks(self, metric: str | None = None) -> NoReturn:
        """Raise RecordingError: what there is in place of a GPU's recording, or of this metric in it."""
        books = self._on_gpu()
        if books:
            raise RecordingError(
                f"{self.name} has no recorded {metric!r} on {' or '.join(books)}; "
                f"recorded are {sorted(set().union(*(recording['metrics'] for recording in books.values())))}"
            )
        classes = self._classes()
        others = f"; recorded are {classes}, pass one as machine_class" if classes else ""
        raise RecordingError(
            f"{self.name} has no recording from a GPU{others}; "
            f"`python3 -m labsupport record {self.name}` makes one on a GPU machine"
        )


def lab(name: str, root: Path | None = None) -> LabBook:
    """The lab book of the notebook `name`, such as "01_measuring"."""
    return LabBook(provenance.check_lab(name), Path(root or provenance.ROOT))


@dataclass(frozen=True)
class _KeptBook(LabBook):
    """A lab's book that puts each result into the recordings at once: a script that is ended loses none of them."""

    folder: str
    command: str

    def record(self, metric, value, unit=None, samples=None, spread=None) -> Measured:
        entry = super().record(metric, value, unit, samples, spread)
        self.store()
        return entry

    def store(self) -> None:
        if (Path(self.folder) / f"{self.name}.json").exists():
            store(self.name, self.folder, command=self.command, root=self.root)


@contextlib.contextmanager
def session(name: str, *, command: str, root: Path | None = None):
    """For scripts that measure what takes too long for a lab: yields the lab's book, which stores each result at once.

    With LABSUPPORT_METRICS set to a folder, the metrics are left there for whoever set it. `command` is what a reader
    types to measure the same again.
    """
    plain = lab(name, root)
    if os.environ.get("LABSUPPORT_METRICS"):
        yield plain
        return
    with files.scratch() as folder:
        os.environ["LABSUPPORT_METRICS"] = str(folder)
        book = _KeptBook(plain.name, plain.root, str(folder), command)
        try:
            yield book
        finally:
            del os.environ["LABSUPPORT_METRICS"]
            book.store()  # what processes of the script's own have measured, and the plans


def store(
    lab, metrics_folder: str | Path, *, command: str, seconds: float | None = None, root: Path | None = None
) -> Path:
    """Merge what a run measured into `data/recordings/<machine class>/<lab>.json`, and its plans.

    `seconds` is what the whole lab took, recorded as `lab.seconds`; a script that measures a part of it gives none.

    A metric of the old file that this run did not measure stays and carries its own date, command and machine. Where
    anything is wrong, nothing is replaced.
    """
    provenance.check_lab(lab)
    if seconds is not None and seconds < 0:
        raise RecordingError(f"seconds={seconds!r}; expected what the lab took, 0 or more, or None")
    root, folder = Path(root or provenance.ROOT), Path(metrics_folder)
    new = provenance.here(command)
    machine_class = new.pop("machine_class")
    measured = _live(folder / f"{lab}.json", machine_class)
    took = {} if seconds is None else {"lab.seconds": {"value": seconds, "unit": "s", "samples": 1, "spread": None}}
    metrics = {**measured["metrics"], **took}
    metrics = {name: provenance.check_metric(name, entry) for name, entry in metrics.items()}
    lacking = provenance.missing(new, machine_class)
    if lacking:
        raise RecordingError(
            f"the results of {lab} lack {', '.join(lacking)} and were not stored; "
            "`python3 -m labsupport doctor` says what this machine has"
        )
    target = root / machine_class / f"{lab}.json"
    with provenance.locked(target):
        if target.exists():
            old = provenance.read(root, machine_class, lab)
            origin = {key: old[key] for key in new if old[key] != new[key]}
            kept = {name: {**origin, **entry} for name, entry in old["metrics"].items() if name not in metrics}
            metrics.update(kept)
        store_plans(folder, root)
        return provenance.write_json(target, {**new, "metrics": dict(sorted(metrics.items()))})


def _live(path, machine_class) -> dict:
    """What a run has measured so far; a folder that other machines or programs wrote to is refused."""
    if not path.exists():
        return {"machine_class": machine_class, "metrics": {}}
    live = provenance.read_json(path)
    if not isinstance(live, dict) or not isinstance(live.get("metrics"), dict):
        raise RecordingError(f"{path.name} is not a file of live metrics; give LABSUPPORT_METRICS an empty folder")
    if live.get("machine_class") != machine_class:
        raise RecordingError(
            f"{path.name} holds results of {live.get('machine_class')} and this machine is "
            f"{machine_class}; give LABSUPPORT_METRICS an empty folder"
        )
    return live


def _entry(metric, value, unit, samples, spread) -> dict:
    if hasattr(value, "as_metric"):
        entry = value.as_metric()
        if unit is not None and unit != entry["unit"]:
            raise RecordingError(
                f"{metric} was measured in {entry['unit']}, not {unit}; leave unit out or convert the value"
            )
        return {key: entry.get(key) for key in ("value", "unit", "samples", "spread")}
    value = value.item() if hasattr(value, "item") else value
    return {"value": value, "unit": unit, "samples": samples, "spread": spread}


def _recorded(lab, machine_class, name, entry, recording) -> Recorded:
    origin = {**recording, **{key: entry[key] for key in ("machine", "date", "command") if key in entry}}
    machine, runtime = provenance.where(origin, machine_class)
    return Recorded(
        lab,
        name,
        entry["value"],
        entry["unit"],
        entry["samples"],
        entry["spread"],
        machine,
        runtime,
        origin["date"],
        origin["command"],
    )
