"""One result, measured here or recorded elsewhere, and all results of a lab on one machine as a table in words."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from labsupport.errors import RecordingError
from labsupport.recordings import names


@dataclass(frozen=True, repr=False)
class _Metric:
    """What a metric is, whenever it was measured. `spread` is IQR over median."""

    lab: str
    metric: str
    value: float
    unit: str
    samples: int | None
    spread: float | None
    machine: str
    runtime: str

    def __float__(self) -> float:
        return float(self.value)

    @property
    def title(self) -> str:
        """What was measured, in words."""
        return names.readable(self.metric)


@dataclass(frozen=True, repr=False)
class Measured(_Metric):
    """A metric measured in this run, on this machine."""

    def __repr__(self) -> str:
        return f"{self.title}, {self}"

    def __str__(self) -> str:
        return f"measured here on {self.machine}, {self.runtime}: {_bare(self)}"


@dataclass(frozen=True, repr=False)
class Recorded(_Metric):
    """A metric from the recordings: some other day, mostly another machine."""

    date: str
    command: str

    @property
    def label(self) -> str:
        return f"recorded on {self.machine}, {self.runtime}, {self.date}"

    def __repr__(self) -> str:
        return f"{self.title}, {self.label}: {_bare(self)}"


@dataclass(frozen=True, repr=False)
class Replay:
    """All recorded metrics of one lab on one machine; shows itself as a table under its label, in words."""

    lab: str
    machine_class: str
    label: str
    command: str
    metrics: tuple[Recorded, ...]

    @property
    def caption(self) -> str:
        return f"{self.lab}, {self.label}\n  by {self.command}"

    def frame(self):
        """A pandas DataFrame: metric → value, unit, samples, spread, date."""
        import pandas

        columns = ("value", "unit", "samples", "spread", "date")
        return pandas.DataFrame(
            [[getattr(metric, column) for column in columns] for metric in self.metrics],
            index=[metric.metric for metric in self.metrics],
            columns=list(columns),
        )

    def __getitem__(self, name: str) -> Recorded:
        for metric in self.metrics:
            if metric.metric == name:
                return metric
        raise RecordingError(
            f"{self.lab} has no recorded {name!r} on {self.machine_class}; "
            f"recorded are {[metric.metric for metric in self.metrics]}"
        )

    def __iter__(self):
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def _parts(self) -> list[tuple[str, list[Recorded]]]:
        # the newest recording goes first; metrics kept from an earlier one stand under their own machine and day
        shown = [metric for metric in self.metrics if metric.metric not in names.HIDDEN]
        labels = dict.fromkeys([self.label, *(metric.label for metric in shown)])
        parts = [(label, [metric for metric in shown if metric.label == label]) for label in labels]
        return [(label, metrics) for label, metrics in parts if metrics or label == self.label]

    def __repr__(self) -> str:
        return as_text([(_headed(label, self.caption, self.label), metrics) for label, metrics in self._parts()])

    def _repr_html_(self) -> str:
        left, whole = 'style="text-align: left"', 'style="text-align: left; white-space: nowrap"'
        rows = ""
        for label, metrics in self._parts():
            if label != self.label:
                rows += f'<tr><th colspan="2" {left}>{escape(label)}</th></tr>'
            for metric in metrics:
                rows += f"<tr><td {left}>{escape(metric.title)}</td><td {whole}>{escape(_bare(metric))}</td></tr>"
        caption = f'<caption style="text-align: left">{escape(self.caption)}</caption>'
        return f"<table>{caption}{rows}</table>"


def _headed(label: str, caption: str, own: str) -> str:
    return caption if label == own else label


def as_text(parts: list[tuple[str, list[Recorded]]]) -> str:
    """Tables under one heading each, the values in one column."""
    width = max((len(metric.title) for _, metrics in parts for metric in metrics), default=0)
    lines = []
    for heading, metrics in parts:
        lines += [heading, *(f"  {metric.title:<{width}}  {_bare(metric)}" for metric in metrics)]
    return "\n".join(lines)


def _bare(metric: _Metric) -> str:
    """The value as a table shows it: a fraction needs no unit."""
    return _quantity(metric).replace(" fraction", "", 1)


def _quantity(metric) -> str:
    from labsupport.benchmarking.measurements import earned

    # one value without a spread has earned no trailing zeros
    value = f"{metric.value:.4g}" if metric.spread is None else earned(metric.value, abs(metric.value) * metric.spread)
    text = f"{value} {metric.unit}"
    count = f"n={metric.samples}" if metric.samples else ""
    spread = f"spread {metric.spread:.2g}" if metric.spread is not None else ""
    facts = ", ".join(filter(None, (count, spread)))
    return f"{text} ({facts})" if facts else text
