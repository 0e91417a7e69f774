"""Lab 00's exercises: each foreseen mistake gets its own message, and differently written right answers pass."""

from __future__ import annotations

import numpy as np
import pytest

from labsupport import benchmarking, environment
from labsupport.benchmarking.measurements import Latency
from labsupport.exercises import base, lab00

pytestmark = pytest.mark.filterwarnings("ignore")


def latency(*, name="ort/all", batch=500, runs=30) -> Latency:
    return Latency(name, "host", tuple(8000.0 + 0.01 * (i % 3) for i in range(runs)), batch, "this CPU")


def test_the_lab_has_its_exercises():
    assert list(base.of(lab00)) == ["faster_than_pytorch", "pixels", "once", "half_precision", "full_batch"]
    assert lab00.pixels.lab == "00_start_here"


def test_pixels():
    base.assert_checker(
        lab00.pixels,
        wrong=[
            (28, "along the edges"),
            (28 + 28, "along the edges"),
            (28 * 28 * 3, "three colors"),
            (255, "how bright"),
            (256, "how bright"),
            (10, "what comes out"),
            (7840, "what comes out"),
            (1000, "three sizes"),
            ("784", "a number is wanted"),
            (784.5, "whole number"),
        ],
        right=[784, 28 * 28 * 1, 784.0],
        namespace={},
    )


def test_pixels_takes_a_numpy_number():
    numpy = pytest.importorskip("numpy")
    assert lab00.pixels.check(numpy.zeros((28, 28, 1)).size).right
    assert lab00.pixels.check(numpy.int64(784)).right


def test_once():
    base.assert_checker(
        lab00.once,
        wrong=[
            (["export", "build", "load", "preprocess"], "every picture has to be scaled"),
            (["export", "build", "load", "run"], "the inference itself"),
            (["export", "build"], "before its first use"),
            (["build", "load"], "'export' need a picture"),
            (["load"], "'export' or 'build' need a picture"),
            (["export", "compile", "load"], "compile is none of the five"),
            (["export", ["build"], "load"], "none of the five"),
            ([], "before its first use"),
            ("export", "a list"),
        ],
        right=[["export", "build", "load"], ("Load", "build ", "export"), ["load", "load", "build", "export"]],
        namespace={},
    )


def test_once_with_a_gap_is_not_attempted():
    assert lab00.once.check(["export", ..., "load"]).outcome == "not attempted"


class Small:
    """A runtime of any batch that answers at once."""

    name, device = "ort/all", "cpu"

    def __call__(self, feed):
        return {"logits": np.asarray(feed).reshape(len(feed), -1)[:, :10]}


IMAGES = np.random.default_rng(0).normal(size=(500, 1, 28, 28)).astype(np.float32)


def timed(feed=IMAGES, runs=30, **options):
    return lambda run: benchmarking.latency(run, feed, runs=runs, **options)


def by_keyword(run, digits=IMAGES):
    whole = benchmarking.latency(run=run, feed=digits, runs=50)
    return whole


def test_full_batch():
    run = Small()
    base.assert_checker(
        lab00.full_batch,
        (..., run),
        wrong=[
            ((8.0, run), "the function itself, `latency_of`"),
            ((timed(), 500), "the network to be measured"),
            ((timed(), runtimes_torch()), "the network to be measured"),
            ((lambda run: benchmarking.latency(run, IMAGES).median_ms, run), "whole Latency"),
            ((lambda run: benchmarking.latency(Small(), IMAGES), run), "never called"),
            ((lambda _: benchmarking.latency(run, IMAGES), run), "never called"),
            ((timed(IMAGES[:1]), run), "a call had 1 item in it"),
            ((timed(IMAGES[:1], batch=500), run), "a call had 1 item in it"),
            ((timed(IMAGES[:256]), run), "256 items in it"),
            ((timed(np.repeat(IMAGES[:1], 500, axis=0)), run), "the same few"),
            ((timed(runs=29), run), "29 calls are few"),
            ((lambda run: run(IMAGES) and latency(), run), "was it measured"),
            ((lambda run: (benchmarking.latency(run, IMAGES), latency(runs=100))[1], run), "not the time"),
            ((lambda run: None, run), "`return`"),
        ],
        right=[(timed(), run), (by_keyword, run), (timed({"images": IMAGES}), Mapped())],
        namespace={"benchmarking": benchmarking, "images": IMAGES, "optimized": run},
    )
    assert "digits per second" in lab00.full_batch.check(timed(), run).message


class Mapped(Small):
    def __call__(self, feed):
        return super().__call__(feed["images"])


def runtimes_torch():
    eager = Small()
    eager.name = "torch"
    return eager


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the cells above the exercises define: the graph, its FP32 engine, a runtime, the 500 digits."""
    if not (environment.has("engine execution") or environment.has("rtx")):
        pytest.skip(environment.why_not("engine execution"))
    import torch

    from labsupport import benchmarking, build, data, export, models, runtimes

    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("LABSUPPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
    model = models.article_cnn()
    graph = export.to_onnx(model, model.example_input())
    other = export.to_onnx(models.article_cnn(seed=1), model.example_input())
    yield {
        "benchmarking": benchmarking,
        "build": build,
        "graph": graph,
        "other": other,
        "engine": build.engine(graph, batch=(1, 1, 512)),
        "optimized": runtimes.best(model, graph),
        "images": data.preprocess(data.mnist().test.images),
    }
    patch.undo()


def test_half_precision(made):
    build, graph, engine = made["build"], made["graph"], made["engine"]
    half = build.engine(graph, precision="fp16", strict=True, batch=(1, 1, 512))
    twin = build.engine(graph.path, precision="fp16", strict=True, batch=(1, 8, 64), name="twin")
    stranger = build.engine(made["other"], precision="fp16", strict=True, batch=(1, 1, 512))
    base.assert_checker(
        lab00.half_precision,
        (..., engine),
        wrong=[
            ((engine, engine), "asked for fp32 and computes in fp32"),
            ((engine, half), "comes first"),
            ((half, half), "both engines compute in FP16"),
            ((stranger, engine), "different graphs"),
            ((graph, engine), "first answer is of type OnnxGraph"),
            ((half, graph), "second answer is of type OnnxGraph"),
            ((half.path, engine), "wanted is what build.engine returns"),
            ((half, None), "engine is None"),
        ],
        right=[(half, engine), (twin, engine)],
        namespace=made,
    )
    assert "two bytes" in lab00.half_precision.check(half, engine).message


def test_the_other_solutions_run(made):
    assert base.run_solution(lab00.full_batch, made).right


@pytest.mark.parametrize("exercise", base.of(lab00).values(), ids=lambda exercise: exercise.name)
def test_hints_grow_and_solutions_show(exercise):
    if exercise.hints:
        assert exercise.hint(1).startswith("Hint 1 of") and "There is no hint 3" in exercise.hint(3)
        assert f"lab00.{exercise.name}.check(" in exercise.solution()
