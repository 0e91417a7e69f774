"""MLPerf's load generator as the referee, and a local Ray: what they refuse, and what they need."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from labsupport import environment
from labsupport.environment import needs
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.serving import Batcher, Verdict, judge, ray_cluster

SUMMARY = """
Scenario : Server
Completed samples per second    : 196.62
Result is : INVALID
  Performance constraints satisfied : NO
99.00 percentile latency (ns)   : 10429562
target_qps : 200
"""


def test_a_verdict_is_shown_as_it_was_printed():
    verdict = Verdict("server", "INVALID", SUMMARY, 0)
    assert not verdict.valid and "Result is : INVALID" in repr(verdict) and "target_qps" not in repr(verdict)
    assert verdict.number("99.00 percentile latency (ns)") == 10429562
    assert not Verdict("server", "VALID", SUMMARY, 1).valid  # answered in time, but with nothing
    with pytest.raises(BadInput, match="the summary has no 'Samples per hour'"):
        verdict.number("Samples per hour")


@pytest.mark.parametrize(
    "need, call", [("loadgen", lambda: judge(print, [1])), ("ray serve", lambda: ray_cluster().__enter__())]
)
def test_what_is_missing_is_named(need, call, monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match=f"{need} lacks .*; get it with: python3 -m pip install"):
        call()


@pytest.mark.skipif(not environment.has("loadgen"), reason="mlcommons-loadgen is not installed")
class TestLoadgen:
    feeds = [np.zeros((1, 2), np.float32)] * 8

    @pytest.mark.parametrize(
        "options",
        [{"scenario": "single"}, {"rate_per_s": 0}, {"rate_per_s": 2**64}, {"p99_limit_ms": -1}, {"seconds": 0}],
    )
    def test_options_that_make_no_sense(self, options):
        with pytest.raises(BadInput):
            judge(lambda feed: None, self.feeds, **options)

    def test_a_quick_server_is_valid_and_a_late_one_is_not(self):
        with Batcher([lambda images: images], shape=(2,), max_waiting=500) as server:
            quick = judge(server.submit, self.feeds, rate_per_s=400, p99_limit_ms=200, seconds=2)
        assert quick.scenario == "server" and quick.faults == 0 and quick.result == "VALID", quick.summary
        with Batcher(
            [lambda images: (time.sleep(0.02), images)[1]], shape=(2,), max_batch=1, max_waiting=500
        ) as server:
            late = judge(server.submit, self.feeds, rate_per_s=100, p99_limit_ms=10, seconds=1)
        assert late.result == "INVALID" and not late.valid

    def test_errors_of_the_server_are_counted(self):
        def submit(feed):
            raise LabError("full")

        for wrong in (submit, lambda feed: feed):  # the second gives no Future
            verdict = judge(wrong, self.feeds, rate_per_s=200, p99_limit_ms=100, seconds=0.5)
            assert verdict.faults >= 100 and not verdict.valid


@pytest.mark.skipif(not shutil.which("false"), reason="no command that always fails")
def test_what_cannot_be_read_beforehand_does_not_stop_the_next_attempt(monkeypatch):
    module = importlib.import_module("labsupport.serving.ray_cluster")
    monkeypatch.setattr(module, "sys", SimpleNamespace(executable=shutil.which("false")))
    module._warm()  # an agent that lacks a package is no reason to give up


@pytest.mark.skipif(not environment.has("ray serve"), reason="Ray Serve is not installed")
def test_ray_listens_on_the_loopback_address_and_is_stopped_also_after_an_interrupt():
    """In a process of its own: Ray reads its settings once."""
    script = (
        "import psutil\nfrom labsupport import serving\nme, foreign = psutil.Process(), set()\ntry:\n    with "
        "serving.ray_cluster() as serve:\n        for process in me.children(recursive=True):\n            ports = "
        "[c.laddr for c in process.net_connections('inet') if c.status == 'LISTEN']\n            foreign |= {port.ip "
        "for port in ports if port.ip not in ('127.0.0.1', '::1', '::ffff:127.0.0.1')}\n        raise "
        "KeyboardInterrupt\nexcept KeyboardInterrupt:\n    pass\nprint('foreign:', sorted(foreign), 'left:', [p.name() "
        "for p in me.children(recursive=True)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert "foreign: [] left: []" in done.stdout, done.stdout + done.stderr[-500:]
