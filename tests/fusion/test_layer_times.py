"""Time per kernel."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from plan_samples import REAL, synthetic

from labsupport import fusion, recordings, runtimes
from labsupport.errors import BadInput
from labsupport.fusion import layer_times


def test_onnx_runtime_profile_gives_shares(workpieces):
    run = runtimes.OnnxRuntime(workpieces["article"])
    times = fusion.profile(run, np.zeros((4, 1, 28, 28), np.float32), runs=2, warmup=1)
    plan = fusion.xray(run, profile=times)
    assert all(kernel.time_ms is not None for kernel in plan.kernels) and sum(
        k.share for k in plan.kernels
    ) == pytest.approx(1)


def test_tensorrt_profile_takes_the_median_of_summed_reports(monkeypatch):
    from labsupport import environment

    class Context:
        profiler = None

    calls = iter(range(100))

    class Run:
        name, profile, _graphs, _shapes, _addresses, context, trt_engine = (
            "trt fp16",
            0,
            None,
            {1: 2},
            {},
            Context(),
            object(),
        )
        stream = SimpleNamespace(synchronize=lambda: None)

        def _new_context(self, profile):
            return Context()

        def __call__(self, feed):
            slow = 100.0 if next(calls) in (0, 2) else 1.0  # a warm-up round and an outlier
            for ms in (slow, slow):
                self.context.profiler.report_layer_time("loop body", ms)

    monkeypatch.setattr(
        environment,
        "tensorrt",
        lambda: SimpleNamespace(IProfiler=type("IProfiler", (), {"__init__": lambda self: None})),
    )
    run = Run()
    before = run.context
    assert fusion.profile(run, None, runs=3, warmup=1) == {"loop body": 2.0}
    assert run.context is not before and run._shapes == {}  # a fresh context, without the profiler
    run._graphs = object()
    with pytest.raises(
        BadInput, match="replays a CUDA graph, in which layers cannot be told apart; make a runtime without cuda_graph"
    ):
        fusion.profile(run, None)


def test_trtexec_profiles_are_read(real):
    rows = [{"count": 100}] + [
        {"name": k.name, "timeMs": 100.0, "averageMs": 1.0, "medianMs": 1.0, "percentage": 4} for k in real.kernels
    ]
    plan = fusion.xray(recordings.load_plan(REAL), profile=rows)
    assert plan.kernels[0].share == pytest.approx(1 / 27) and plan.total_ms == 27


def test_time_that_no_kernel_owns_still_counts(block):
    plan = fusion.xray(synthetic("trt10"), graph=block, profile={"/tail/Conv + /add/Add": 1.0, "something else": 3.0})
    assert plan.kernel_of("/add/Add").share == 0.25 and plan.kernel_of("/conv1/Conv").share is None


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            {"another layer": 1.0},
            r"does not belong to the plan: it times 'another layer', and the plan has kernels such as",
        ),
        (
            {"/conv1/Conv + /relu1/Relu": -1.0},
            r"gives '/conv1/Conv \+ /relu1/Relu' the time -1.0; expected milliseconds",
        ),
        ([{"count": 3}], r"without layers; expected \{layer name: ms\} or trtexec's --exportProfile list"),
        ("[{", r"the profile is cut off or damaged JSON"),
    ],
)
def test_wrong_profiles_are_refused(block, profile, message):
    name = "the profile" if isinstance(profile, str) else None
    with pytest.raises(BadInput, match=message):
        if name:
            layer_times.times_of(profile)
        fusion.xray(synthetic("trt10"), graph=block, profile=profile)


def test_profile_refuses_what_it_cannot_time():
    with pytest.raises(
        BadInput, match="object does not time its layers; profile a runtimes.TensorRt or a runtimes.OnnxRuntime"
    ):
        fusion.profile(object(), None)
    with pytest.raises(BadInput, match="runs=0; wanted a whole number of at least 1"):
        fusion.profile(object(), None, runs=0)
