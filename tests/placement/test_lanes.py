"""Placement: lanes, pipelines, load, DLA and several GPUs, as far as they can be judged without a GPU."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from labsupport.comparing import timeline
from labsupport.comparing.timeline import Span
from labsupport.errors import BadInput, EngineError, LabError, NotAvailable
from labsupport.placement import pipeline, streams


def slow(ms: float):
    def work(item):
        threading.Event().wait(ms / 1e3)
        return item + 1

    return work


# --- timeline ---------------------------------------------------------------------------------------------------


def test_busy_time_counts_overlapping_spans_once():
    spans = [Span("a", 0, 0, 2), Span("a", 1, 1, 3), Span("b", 0, 2, 4), Span("a", 2, 10, 11)]
    assert timeline.busy_ms(spans, "a") == 4 and timeline.busy_ms(spans, "b") == 2 and timeline.busy_ms(spans) == 5
    inside = [Span("a", 0, 0, 10), Span("a", 1, 2, 5), Span("a", 2, 4, 7), Span("b", 0, 8, 12)]
    assert timeline.busy_ms(inside) == 12 and timeline.busy_ms(inside, "a") == 10
    assert timeline.rows_of(spans) == ["a", "b"]
    assert timeline.overlapped(spans) == pytest.approx(1 / 6)
    assert timeline.overlapped([Span("a", 0, 0, 1), Span("b", 0, 1, 2)]) == 0


def test_the_slowest_stage_is_so_by_the_median():
    ends = {"often": (3, 3, 4), "once": (1, 2, 90)}
    spans = tuple(Span(row, item, 0, end) for row, each in ends.items() for item, end in enumerate(each))
    run = pipeline.PipelineRun("two", (1, 2, 3), spans, 0.5, 1)
    assert run.stage_ms == {"often": 3, "once": 2} and run.bottleneck == "often" and run.items_per_s == 6


def test_a_drawing_says_what_it_shows():
    drawing = timeline.draw([Span("copy in", 0, 5, 7), Span("compute", 0, 6, 8)], title="Two rows")
    assert "Two rows: 2 spans over 3 ms; copy in busy 67%, compute busy 67%; 25% of the work" in drawing.text
    assert len(drawing._repr_png_()) > 1000


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda: Span("a", 0, 2, 1), "must end after it starts"),
        (lambda: Span("a", 0, 0, float("nan")), "stop_ms=nan; wanted a number"),
        (lambda: timeline.draw([]), "no spans"),
        (lambda: timeline.overlapped([]), "no spans"),
    ],
)
def test_bad_spans(work, message):
    with pytest.raises(BadInput, match=message):
        work()


# --- pipelines --------------------------------------------------------------------------------------------------


def test_a_pipeline_gives_what_one_by_one_gives_in_order():
    stages = {"add": lambda item: item + 1, "square": lambda item: item * item}
    assert (
        pipeline.run(range(9), stages).outputs
        == pipeline.one_by_one(range(9), stages).outputs
        == tuple((n + 1) ** 2 for n in range(9))
    )


def test_stages_run_at_once():
    met = threading.Barrier(2, timeout=5)  # passed only if both stages are inside at the same moment
    waits = {
        "first": lambda item: item if item == 0 else (met.wait(), item)[1],
        "second": lambda item: item if item == 3 else (met.wait(), item)[1],
    }
    run = pipeline.run(range(4), waits, bound=1)
    assert run.outputs == (0, 1, 2, 3) and timeline.overlapped(run.spans) > 0


@pytest.mark.parametrize("bound, most", [(1, 4), (2, 6)])
def test_a_bound_limits_what_is_inside(bound, most):
    released = threading.Event()
    seen = []

    def last(item):
        seen.append(item)
        if len(seen) == 1:
            released.wait(0.2)
        return item

    assert pipeline.run(range(30), {"quick": lambda item: item, "last": last}, bound=bound).most_inside <= most


def test_no_bound_piles_up():
    opened = threading.Event()
    items = list(range(20))

    def source():
        yield from items
        opened.set()  # everything has gone in before anything comes out

    run = pipeline.run(source(), {"only": lambda item: opened.wait(5) and item}, bound=None)
    assert run.most_inside == 20 and "endless queues" in repr(run)


def test_the_slowest_stage_is_named():
    run = pipeline.run(range(3), {"quick": lambda item: item, "slow": slow(5)})
    assert run.bottleneck == "slow" and run.as_metric()["unit"] == "items/s" and "slowest stage: slow" in repr(run)


def test_a_stage_that_fails_ends_the_run_and_is_named():
    def fails(item):
        if item == 3:
            raise ValueError("no such file")
        return item

    before = threading.active_count()
    for bound in (1, None):
        with pytest.raises(LabError, match=r"stage 'read' failed on item 3: ValueError: no such file"):
            pipeline.run(range(50), {"read": fails, "infer": lambda item: item}, bound=bound)
        with pytest.raises(LabError, match="stage 'infer' failed on item 3"):
            pipeline.run(range(50), {"read": lambda item: item, "infer": fails}, bound=bound)
    assert threading.active_count() == before


@pytest.mark.parametrize("bound", [1, None])
def test_a_stage_that_exits_does_not_hang_the_run(bound):
    def leaves(item):
        raise SystemExit(3)

    with pytest.raises(LabError, match="stage 'b' failed on item 0: SystemExit: 3"):
        pipeline.run(range(20), {"a": lambda item: item, "b": leaves}, bound=bound)


def test_an_interrupt_does_not_compute_what_waits_in_the_queues():
    done = []

    def items():
        yield from range(50)
        raise KeyboardInterrupt

    def slow(item):
        threading.Event().wait(0.02)
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(items(), {"slow": slow}, bound=None)
    assert len(done) < 10


def test_a_source_that_fails_leaves_no_thread():
    def source():
        yield 1
        raise OSError("camera gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="camera gone"):
        pipeline.run(source(), {"only": lambda item: item})
    assert threading.active_count() == before


@pytest.mark.parametrize("bound", [0, -1, 1.5, True, "2"])
def test_a_bound_below_one_is_refused(bound):
    with pytest.raises(
        BadInput, match=r"bound=.*(1 or more places.*0 or less for endless|; wanted a whole number such as 2)"
    ):
        pipeline.run([1], {"only": lambda item: item}, bound=bound)


@pytest.mark.parametrize("stages", [{}, [], {"a": 3}, None])
def test_stages_are_functions_by_name(stages):
    for make in (pipeline.run, pipeline.one_by_one):
        with pytest.raises(BadInput, match="mapping from name to function|stages=.*; wanted a mapping"):
            make([1], stages)


def test_no_items():
    for make in (pipeline.run, pipeline.one_by_one):
        with pytest.raises(BadInput, match="no items"):
            make([], {"only": lambda item: item})


# --- lanes ------------------------------------------------------------------------------------------------------


class Counting:
    name, device = "counting", "cpu"

    def __init__(self):
        self.calls = 0

    def __call__(self, feed):
        self.calls += 1
        threading.Event().wait(0.001)
        return {"y": feed}


def test_runtimes_together_are_counted():
    runs = [Counting(), Counting()]
    rate = streams.together(runs, np.zeros((4, 2)), seconds=0.05)
    assert rate.lanes == 2 and rate.batch == 4 and all(run.calls > 1 for run in runs)
    assert 0 < rate.items_per_s <= 4 * sum(run.calls for run in runs) / 0.05
    assert rate.as_metric()["unit"] == "items/s" and "2 lanes, batch 4" in repr(rate)


def test_a_runtime_that_fails_beside_others_is_heard_and_nobody_waits_for_ever():
    class Fails(Counting):
        def __call__(self, feed):
            raise BadInput("no such input")

    with pytest.raises(BadInput, match="no such input"):
        streams.together([Counting(), Fails()], np.zeros((3, 2)), seconds=0.05)


def test_lanes_refuse_what_is_no_engine_and_free_shapes():
    with pytest.raises(BadInput, match="a lane needs a runtimes.TensorRt"):
        streams.Lane(Counting(), np.zeros(1))
    pytest.importorskip("torch")
    free = SimpleNamespace(name="trt", trt_engine=object(), inputs={"x": SimpleNamespace(shape=(None, 3))})
    with pytest.raises(BadInput, match=r"shape of \['x'\] is free.*dynamic=False"):
        streams.Lane(free, np.zeros((1, 3)))


def test_an_engine_that_gives_no_context_or_does_not_run_is_said():
    pytest.importorskip("torch")
    log = SimpleNamespace(last_error=lambda: "out of memory")
    full = SimpleNamespace(
        name="trt",
        log=log,
        trt_engine=SimpleNamespace(create_execution_context=lambda: None),
        inputs={"x": SimpleNamespace(shape=(1, 3))},
    )
    with pytest.raises(EngineError, match="no further execution context: out of memory; free GPU memory"):
        streams.Lane(full, np.zeros((1, 3)), stream=object())
    lane = object.__new__(streams.Lane)
    lane.run, lane.stream = full, SimpleNamespace(cuda_stream=0)
    lane.context = SimpleNamespace(execute_async_v3=lambda stream: False)
    with pytest.raises(EngineError, match="could not run the engine: out of memory"):
        lane._launch()


def test_a_lane_hands_out_its_bare_call():
    lane = object.__new__(streams.Lane)
    lane._graph = None
    assert lane.launcher == lane._launch
    lane._graph = SimpleNamespace(replay="replay")
    assert lane.launcher == "replay"


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda: streams.rate([]), "no lanes"),
        (lambda: streams.rate([object()], depth=0), "depth=0; wanted a whole number"),
        (lambda: streams.together([], np.zeros(1)), "0 runtimes"),
        (lambda: streams.together([Counting()], np.zeros(1), seconds=0), "for 0 s"),
    ],
)
def test_bad_lanes(work, message):
    pytest.importorskip("torch")
    with pytest.raises(BadInput, match=message):
        work()


def kernel(start, length, stream, blocks):
    return {"cat": "kernel", "ts": start, "dur": length, "args": {"stream": stream, "blocks per SM": blocks}}


def test_kernel_use_is_read_from_a_trace():
    events = [kernel(0, 10, 7, 0.25), kernel(5, 10, 8, 0.5), kernel(20, 10, 7, 3.0), {"cat": "cpu_op"}]
    use = streams._use_of("two lanes", events)
    assert (use.kernels, use.blocks_per_multiprocessor) == (3, 0.5)
    assert use.smaller_than_gpu == pytest.approx(2 / 3) and use.overlapped == pytest.approx(5 / 30)
    assert "67% leave multiprocessors without a block" in repr(use)
    with pytest.raises(NotAvailable, match="saw no kernels"):
        streams._use_of("none", [{"cat": "cpu_op"}])


def test_kernels_before_the_gate_opened_do_not_count():
    gate = {**kernel(10, 50, 9, 0.01), "name": "at::cuda::(anonymous namespace)::spin_kernel(long)"}
    events = [kernel(0, 10, 7, 0.25), kernel(60, 10, 7, 2.0), gate, kernel(60, 10, 8, 0.5), kernel(40, 5, 8, 0.25)]
    use = streams._use_of("two lanes", events)
    assert use.kernels == 2 and use.overlapped == pytest.approx(0.5) and use.smaller_than_gpu == 0.5
    with pytest.raises(NotAvailable, match="saw no kernels"):
        streams._use_of("only the gate", [gate])


def test_lanes_are_traced_with_full_queues(monkeypatch):
    import contextlib
    import json
    from pathlib import Path

    torch, notes = pytest.importorskip("torch"), []

    class Tracer:
        def __init__(self, activities, acc_events):
            pass

        def __enter__(self):
            notes.append("trace")
            return self

        def __exit__(self, *_):
            notes.append("end")

        def export_chrome_trace(self, path):
            Path(path).write_text(
                json.dumps({"traceEvents": [kernel(0, 10, 7, 0.25), kernel(5, 10, 8, 0.5)]}), encoding="utf-8"
            )

    class Lane:
        def __init__(self, name):
            self.name, self.stream, self.run, self.batch = name, self, SimpleNamespace(name="trt"), 1

        def compute(self):
            notes.append(self.name)

        def wait_event(self, event):
            notes.append(f"{self.name} waits")

    monkeypatch.setattr(torch.profiler, "profile", Tracer)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "gate")
    monkeypatch.setattr(
        torch.cuda, "Event", lambda: SimpleNamespace(record=lambda stream: notes.append(f"{stream} opens"))
    )
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: notes.append("wait"))
    monkeypatch.setattr(
        torch.cuda, "_sleep", lambda cycles: notes.append(cycles)
    )  # the name exists in this PyTorch, or this raises
    use = streams.kernel_use((Lane(name) for name in "ab"), rounds=3)
    assert notes == [
        *"ababab",
        "wait",
        "trace",
        *"ab",
        "wait",
        6_000_000,
        "gate opens",
        "a waits",
        "b waits",
        *"ababab",
        "wait",
        "end",
    ]
    assert use.name == "trt, 2 lanes, batch 1" and use.overlapped == pytest.approx(0.25)


@pytest.mark.parametrize("lanes, options, message", [([], {}, "no lanes"), ([object()], {"rounds": 0}, "rounds=0")])
def test_bad_kernel_use(lanes, options, message):
    pytest.importorskip("torch")
    with pytest.raises(BadInput, match=message):
        streams.kernel_use(lanes, **options)
