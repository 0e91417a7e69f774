"""What a stage hands back: findings with their evidence, pictures, tables, and changes that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from labsupport.benchmarking import Latency
from labsupport.errors import one_of

EVIDENCE = ("read", "measured", "estimate")  # from the file; by running it here; from numbers and a formula


@dataclass(frozen=True)
class Finding:
    """One sentence, the evidence that it stands on (one of ``EVIDENCE``) and the lab that explains it."""

    text: str
    evidence: str
    lab: str

    def __post_init__(self) -> None:
        one_of(EVIDENCE, evidence=self.evidence)

    def __repr__(self) -> str:
        return f"[{self.evidence}] {self.text} (lab {self.lab})"


@dataclass(frozen=True)
class Candidate:
    """A change to the network that was really run: times in ms of it and of the network as given, taken in turn.

    ``ratios`` are before / after of each round; ``error`` is ‖change − original‖ / ‖original‖ of the worst output;
    ``accuracy`` (0 to 1) only where labels were given. ``effort`` orders changes, the cheapest first. ``code`` does it
    again; ``file`` is the changed graph in the folder of the examination, "" where the model's own is used.
    ``unproven`` says why its time is not that of the change, and so no reason to choose it.
    """

    name: str
    effort: int
    samples_ms: tuple[float, ...]
    ratios: tuple[float, ...]
    error: float
    size_mib: float
    code: str
    lab: str
    machine: str
    accuracy: float | None = None
    note: str = ""
    file: str = ""
    unproven: str = ""

    @property
    def latency(self) -> Latency:
        """Its times as a stopwatch gives them."""
        return Latency(self.name, "host", tuple(self.samples_ms), 1, self.machine)

    @property
    def gain(self) -> tuple[float, float, float]:
        """Times faster than the network as given: lower quartile, median, upper quartile of the rounds."""
        import numpy as np

        low, middle, high = np.percentile(self.ratios, (25, 50, 75))
        return float(low), float(middle), float(high)

    def __repr__(self) -> str:
        low, middle, high = self.gain
        return f"{self.name}: {middle:.3g}× ({low:.3g} to {high:.3g}), error {self.error:.1e}"


@dataclass
class Row:
    """All of one stage: what it found, or the one line that says why it was left out."""

    stage: str
    findings: list[Finding] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    pictures: list[dict] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    left_out: str = ""
    retry: bool = False  # left out for want of time, so another run should try it again
    failed: bool = False  # an error that nobody foresaw
    seconds: float = 0.0

    def find(self, text: str, evidence: str, lab: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(text, evidence, lab))

    def show(self, drawing) -> None:
        """Keep a Drawing as a picture with its words."""
        import base64

        self.pictures.append({"data": base64.b64encode(drawing._repr_png_()).decode("ascii"), "words": drawing.text})

    def plain(self) -> dict:
        """The row as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, content: Mapping) -> Row:
        """The row that `plain` wrote. Raises TypeError, KeyError or ValueError for anything else."""
        row = cls(**{key: value for key, value in content.items() if key not in ("findings", "candidates")})
        row.findings = [Finding(**each) for each in content["findings"]]
        for each in content["candidates"]:
            timed = {key: tuple(each[key]) for key in ("samples_ms", "ratios")}
            row.candidates.append(Candidate(**{**each, **timed}))
        return row

    def __repr__(self) -> str:
        lines = [f"{self.stage}:", *(f"  {finding}" for finding in self.findings)]
        lines += [f"  {candidate}" for candidate in self.candidates]
        return "\n".join(lines + ([f"  left out: {self.left_out}"] if self.left_out else []))
