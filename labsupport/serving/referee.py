"""MLPerf's load generator as the referee: it sends the requests, takes the time, and says VALID or INVALID itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labsupport import environment, files
from labsupport.errors import BadInput, LabError, one_of

MOST = 10**6  # requests of one verdict
SCENARIOS = ("server", "offline")


@dataclass(frozen=True, repr=False)
class Verdict:
    """What the load generator wrote: ``result`` is its own word, ``summary`` its own text, ``faults`` are ours."""

    scenario: str
    result: str
    summary: str
    faults: int

    @property
    def valid(self) -> bool:
        return self.result == "VALID" and not self.faults

    def number(self, label: str) -> float:
        """A number of the summary by its label, such as "99.00 percentile latency (ns)". Raises BadInput."""
        line = re.search(rf"^\s*{re.escape(label)}\s*:\s*([\d.eE+]+)", self.summary, re.MULTILINE)
        if not line:
            raise BadInput(f"the summary has no {label!r}; it says:\n{self.summary}")
        return float(line.group(1))

    def __repr__(self) -> str:
        lines = r"Scenario|Result is|(?:Scheduled |Completed )?[Ss]amples per second|99.00 percentile|.*satisfied"
        wanted = rf"^(?:{lines}).*"
        return "\n".join(re.findall(wanted, self.summary, re.MULTILINE))


def judge(
    submit: Callable,
    feeds: Sequence[np.ndarray],
    *,
    scenario: str = "server",
    rate_per_s: float = 100.0,
    p99_limit_ms: float = 50.0,
    seconds: float = 5.0,
) -> Verdict:
    """Let MLPerf's load generator send requests to ``submit(feed) -> Future`` and judge them.

    "server": Poisson arrivals at ``rate_per_s``, and 99 of 100 answers within ``p99_limit_ms``. "offline": all at
    once, as fast as it goes, about ``rate_per_s`` expected. Each feed is one sample of its library. An error of the
    server is counted in ``faults``, and answered with nothing. Raises NotAvailable, BadInput.
    Source: https://github.com/mlcommons/inference/tree/master/loadgen
    """
    environment.require("loadgen")
    one_of(SCENARIOS, scenario=scenario)
    if not feeds or not rate_per_s > 0 or not p99_limit_ms > 0 or not seconds > 0:
        raise BadInput("give feeds, and a rate, a limit and a time above 0")
    if rate_per_s * seconds > MOST:  # its schedule lies in memory, and LoadGen crashes when that is full
        raise BadInput(f"rate_per_s={rate_per_s!r} for {seconds:g} s: LoadGen takes {MOST:,} requests at most")
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.scenario = lg.TestScenario.Server if scenario == "server" else lg.TestScenario.Offline
    settings.server_target_qps, settings.offline_expected_qps = rate_per_s, rate_per_s
    settings.server_target_latency_ns = int(p99_limit_ms * 1e6)
    settings.server_target_latency_percentile = 0.99
    settings.min_duration_ms, settings.min_query_count = int(seconds * 1e3), 100
    answering = _Answering(lg, submit, feeds)
    library = lg.ConstructQSL(len(feeds), len(feeds), lambda _: None, lambda _: None)
    server = lg.ConstructSUT(answering.issue, lambda: None)
    with files.scratch() as folder:
        logs = lg.LogSettings()
        logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = str(folder), False
        logs.enable_trace = False
        try:
            lg.StartTestWithLogSettings(server, library, settings, logs)
        finally:
            lg.DestroySUT(server)
            lg.DestroyQSL(library)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    result = re.search(r"Result is\s*:\s*(\w+)", summary)
    if not result:
        raise LabError(f"the load generator gave no verdict; it wrote:\n{summary[:500]}")
    return Verdict(scenario, result.group(1), summary, answering.faults)


class _Answering:
    """Hands the generator's queries to the server, and the server's answers to the generator."""

    def __init__(self, lg, submit: Callable, feeds: Sequence[np.ndarray]):
        self.lg, self.submit, self.feeds, self.faults = lg, submit, feeds, 0

    def issue(self, samples) -> None:
        for sample in samples:
            try:
                future = self.submit(self.feeds[sample.index])
                future.add_done_callback(lambda done, number=sample.id: self.finish(number, done))
            except Exception:  # refused, or no Future: the generator waits for every sample, and the fault is counted
                self.finish(sample.id, None)

    def finish(self, number: int, done) -> None:
        if done is None or done.cancelled() or done.exception() is not None:
            self.faults += 1
        self.lg.QuerySamplesComplete([self.lg.QuerySampleResponse(number, 0, 0)])
