"""Cuts: where a network can be cut, that two parts give the whole's answer, and a cost model worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labsupport import export, models, runtimes
from labsupport.errors import BadInput
from labsupport.placement import cut_costs, cuts, pipeline
from labsupport.placement.cuts import CostModel, Cut


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    model = models.resnet18(width=8, size=32, classes=10)
    return export.to_onnx(
        model, model.example_input(1), dynamic=False, path=tmp_path_factory.mktemp("graph") / "net.onnx"
    )


@pytest.fixture(scope="module")
def image():
    return models.resnet18(width=8, size=32, classes=10).example_input(1).numpy()


def test_resnet_has_its_ten_inner_cuts_and_a_few_at_the_ends(graph):
    places = cuts.natural(graph)
    assert places[0].name == "images" and places[0].after == 0 and places[-1].name == "logits"
    blocks = [place for place in places if place.name.endswith("Relu_1_output_0")]
    assert len(blocks) == 8 and len(places) == 13  # input, stem, pool, eight blocks, features, output
    assert [place.after for place in places] == sorted(place.after for place in places)
    assert places[0].mib == pytest.approx(3 * 32 * 32 * 4 / 2**20) and "images 1×3×32×32" in repr(places[0])


def test_every_cut_gives_the_answer_of_the_whole(graph, image):
    whole = runtimes.OnnxRuntime(graph)(image)["logits"]
    for place in cuts.natural(graph):
        head, tail = cuts.split(graph, place)
        assert (head is None) == (place.name == "images") and (tail is None) == (place.name == "logits")
        placed = cuts.Placed(head and runtimes.OnnxRuntime(head), tail and runtimes.OnnxRuntime(tail), cross=np.copy)
        np.testing.assert_allclose(placed(image)["logits"], whole, rtol=1e-4, atol=1e-5)
        placed.close()


def test_nodes_of_the_parts_add_up(graph):
    place = cuts.natural(graph)[5]
    head, tail = cuts.split(graph, place.name)
    assert head.ops["Conv"] + tail.ops["Conv"] == graph.ops["Conv"] and list(tail.inputs) == list(head.outputs) == [
        place.name
    ]


def test_a_cut_that_is_not_there_or_not_clean_is_refused(graph):
    with pytest.raises(BadInput, match=r"there is no tensor 'middle' to cut at in net.onnx; choose one of \['images'"):
        cuts.split(graph, "middle")
    inner = next(n.output[0] for n in graph.model().graph.node if n.name.endswith("layer1.0/conv1/Conv"))
    with pytest.raises(BadInput, match="is no clean cut: .* is needed behind it as well"):
        cuts.split(graph, inner)
    weight = graph.model().graph.initializer[0].name
    with pytest.raises(BadInput, match="there is no tensor"):
        cuts.split(graph, weight)


def test_free_shapes_and_several_inputs_are_refused(tmp_path):
    model = models.resnet18(width=8, size=32, classes=10)
    with pytest.raises(BadInput, match="not fixed.*dynamic=False"):
        cuts.natural(export.to_onnx(model, model.example_input(1)))
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "abc"]
    two = helper.make_model(
        helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "two", infos[:2], infos[2:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(two, str(tmp_path / "two.onnx"))
    with pytest.raises(BadInput, match="2 inputs and 1 outputs"):
        cuts.natural(export.load(tmp_path / "two.onnx"))


def places(*mib: float) -> tuple[Cut, ...]:
    return tuple(Cut(f"c{n}", (1,), size, n) for n, size in enumerate(mib))


def test_the_cost_of_a_cut_by_hand():
    model = CostModel(places(4, 1, 2, 0.1), (10.0, 5.0, 5.0), (2.0, 1.0, 1.0), (8.0, 2.0, 4.0, 9.0), fixed_ms=0.5)
    assert (
        model.parts_ms("c0") == (0, 8.0, 4.5)
        and model.parts_ms("c1") == (10.0, 2.0, 2.5)
        and model.parts_ms("c3") == (20.0, 0.0, 0.0)
    )
    assert [model.latency_ms(f"c{n}") for n in range(4)] == [12.5, 14.5, 20.5, 20.0]
    assert [model.interval_ms(f"c{n}") for n in range(4)] == [12.5, 10.0, 15.0, 20.0]
    assert model.choose().name == "c0" and model.choose("interval").name == "c1"
    assert "least latency 12.5 ms at c0" in repr(model) and list(model.frame().index) == ["c0", "c1", "c2", "c3"]


@pytest.mark.parametrize(
    "work, message",
    [
        (lambda: CostModel(places(1, 1), (1.0, 2.0), (1.0,), (1.0, 1.0)), "2 cuts make 1 segments; got 2 and 1"),
        (lambda: CostModel(places(1), (), (), (1.0,)), "1 cuts make 0"),
        (lambda: CostModel(places(1, 1), (1.0,), (1.0,), (1.0, 1.0)).latency_ms("c9"), "'c9' is not one of the cuts"),
        (lambda: CostModel(places(1, 1), (1.0,), (1.0,), (1.0, 1.0)).choose("energy"), "objective='energy'"),
        (lambda: cuts.Placed(None, None), "both parts are None"),
    ],
)
def test_bad_cost_models(work, message):
    with pytest.raises(BadInput, match=message):
        work()


def test_a_cost_model_of_real_runs_keeps_the_whole_time(graph, image):
    first, second = runtimes.OnnxRuntime(graph, optimization="off"), runtimes.OnnxRuntime(graph)
    model = cuts.cost_model(graph, first, second, image, lambda mib: 10 * mib, runs=4)
    ends = model.parts_ms("images"), model.parts_ms("logits")
    assert ends[0][0] == 0 and ends[0][1] == pytest.approx(10 * model.cuts[0].mib) and ends[1][1:] == (0, 0)
    assert all(ms >= 0 for ms in (*model.first_ms, *model.second_ms)) and sum(ms > 0 for ms in model.second_ms) >= 10
    assert ends[1][0] == pytest.approx(sum(model.first_ms))


def known_costs(monkeypatch, graph, *, call_ms, device_ms=None):
    """Latencies by the input's size in place of measured ones, and equal segments."""
    asked = []

    def latency(run, feed, *, runs, warmup=10):
        asked.append((feed.size, runs, warmup))
        return SimpleNamespace(median_ms=call_ms[feed.size])

    monkeypatch.setattr(cut_costs.benchmarking, "latency", latency)
    monkeypatch.setattr(
        cut_costs.benchmarking, "device_latency", lambda run, feed, *, runs: SimpleNamespace(median_ms=device_ms)
    )
    monkeypatch.setattr(
        cut_costs, "_segments", lambda run, graph, places, feed, total: (total / (len(places) - 1),) * (len(places) - 1)
    )
    return asked


def test_the_fixed_cost_is_that_of_the_least_network(graph, image, monkeypatch):
    run = runtimes.OnnxRuntime(graph)
    asked = known_costs(monkeypatch, graph, call_ms={image.size: 6.0, 512: 0.5})
    model = cuts.cost_model(
        graph, run, run, image, lambda mib: 9.0, runs=4
    )  # no crossing lies inside a call on the processor
    assert (
        model.fixed_ms == 0.5
        and sum(model.second_ms) == pytest.approx(5.5)
        and sum(model.first_ms) == pytest.approx(6.0)
    )
    assert sum(model.parts_ms("images")[1:]) == pytest.approx(9.0 + 6.0)
    assert asked == [(image.size, 4, 10), (512, 100, 20), (image.size, 4, 10)]


def test_on_a_gpu_the_fixed_cost_is_without_the_crossing(graph, image, monkeypatch):
    made = []

    class Gpu(runtimes.OnnxRuntime):
        device, _graphs = "cuda", object()

        def __init__(self, graph, cuda_graph=True):
            runtimes.OnnxRuntime.__init__(self, graph)
            made.append((self, cuda_graph))

    def engine(graph, **options):
        assert dict(graph.ops) == {"Relu": 1} and options == {
            "precision": "as-is",
            "optimization_level": 1,
            "name": "least",
            "progress": False,
        }
        return graph

    monkeypatch.setattr(cut_costs.build, "engine", engine)
    known_costs(monkeypatch, graph, call_ms={image.size: 20.0, 512: 0.35}, device_ms=0.4)
    model = cuts.cost_model(graph, runtimes.OnnxRuntime(graph), Gpu(graph), image, lambda mib: 0.05 + mib, runs=4)
    assert model.fixed_ms == pytest.approx(0.35 - 0.05 - 2048 / 2**20) and sum(model.second_ms) == pytest.approx(0.4)
    assert len(made) == 2 and made[1][1] is True and made[1][0].closed and not made[0][0].closed
    known_costs(monkeypatch, graph, call_ms={image.size: 20.0, 512: 0.01}, device_ms=0.4)
    assert (
        cuts.cost_model(graph, runtimes.OnnxRuntime(graph), Gpu(graph), image, lambda mib: 0.05, runs=4).fixed_ms == 0
    )


def test_the_least_network_answers(image):
    with cut_costs._least_like(runtimes.OnnxRuntime(cut_costs._least_network())) as least:
        assert (
            least(np.full(cut_costs.LEAST, -1, np.float32))["y"].tolist() == [[0.0] * 512]
            and type(least) is runtimes.OnnxRuntime
        )


def test_a_cost_model_wants_both_ends(graph, image):
    run = runtimes.OnnxRuntime(graph)
    with pytest.raises(BadInput, match="begin with 'images' and end with 'logits'"):
        cuts.cost_model(graph, run, run, image, lambda mib: mib, cuts=cuts.natural(graph)[:3], runs=2)


def test_cuts_are_measured_with_their_error(graph, image):
    chosen = [cuts.natural(graph)[place] for place in (0, 4, -1)]
    rows = list(cuts.measure(graph, chosen, runtimes.OnnxRuntime, runtimes.OnnxRuntime, image, runs=2))
    assert [row["cut"] for row in rows] == chosen and all(
        row["relative error"] < 1e-4 and row["latency"].median_ms > 0 for row in rows
    )


def test_no_cut_is_begun_after_the_time(graph, image):
    rows = list(
        cuts.measure(
            graph, cuts.natural(graph)[:3], runtimes.OnnxRuntime, runtimes.OnnxRuntime, image, runs=1, seconds=0
        )
    )
    assert len(rows) == 1


def test_the_first_device_is_timed_beside_each_cut(graph, image):
    whole = runtimes.OnnxRuntime(graph, name="whole")
    rows = list(
        cuts.measure(
            graph, [cuts.natural(graph)[4]], runtimes.OnnxRuntime, runtimes.OnnxRuntime, image, beside=whole, runs=6
        )
    )
    assert rows[0]["beside"].name == "whole" and rows[0]["latency"].name == "layer1.1/Relu_1"
    assert len(rows[0]["beside"].samples_ms) == len(rows[0]["latency"].samples_ms) == 8  # whole rounds of A/B/B/A
    assert not whole.closed
    with pytest.raises(BadInput, match="runs=0"):
        list(cuts.measure(graph, cuts.natural(graph)[:1], runtimes.OnnxRuntime, runtimes.OnnxRuntime, image, runs=0))


def test_a_row_comes_as_soon_as_it_is_measured(graph, image):
    made = []

    def make(part):
        made.append(runtimes.OnnxRuntime(part))
        return made[-1]

    rows = cuts.measure(graph, cuts.natural(graph)[:3], make, make, image, runs=1)
    first = next(rows)
    assert first["cut"].name == "images" and len(made) == 1
    rows.close()  # whoever stops here leaves nothing open
    assert made[0].closed


def test_a_slower_device_takes_longer_by_the_model():
    model = CostModel(places(4, 1, 2), (10.0, 5.0), (2.0, 1.0), (8.0, 2.0, 4.0), fixed_ms=0.5)
    assert model.slowed(2).parts_ms("c1") == (20.0, 2.0, 1.5) and model.slowed(2, 3).parts_ms("c1") == (20.0, 6.0, 4.5)
    assert model.slowed(1) == model and model.parts_ms("c1") == (10.0, 2.0, 1.5)
    for bad in ((0, 1), (1, -1), (1, float("inf"))):
        with pytest.raises(BadInput, match="give factors above 0"):
            model.slowed(*bad)


def test_a_cut_becomes_two_stages(graph, image):
    with cuts.stages(graph, cuts.natural(graph)[6], runtimes.OnnxRuntime, runtimes.OnnxRuntime) as stages:
        answer = pipeline.run([image] * 3, stages, bound=1).outputs[-1]["logits"]
    assert list(stages) == ["first", "second"] and stages["first"].head.closed and stages["second"].tail.closed
    stages.close()  # a second time does nothing
    np.testing.assert_allclose(answer, runtimes.OnnxRuntime(graph)(image)["logits"], rtol=1e-4, atol=1e-5)
    assert list(cuts.stages(graph, "images", runtimes.OnnxRuntime, runtimes.OnnxRuntime)) == ["second"]


def test_a_second_part_that_cannot_be_made_leaves_no_first_one(graph):
    made = []

    def first(part):
        made.append(runtimes.OnnxRuntime(part))
        return made[-1]

    def second(part):
        raise BadInput("no room")

    for work in (
        lambda: cuts.stages(graph, cuts.natural(graph)[6], first, second),
        lambda: list(cuts.measure(graph, cuts.natural(graph)[6:7], first, second, None)),
    ):
        with pytest.raises(BadInput, match="no room"):
            work()
    assert len(made) == 2 and all(run.closed for run in made)


def test_names_are_shortened():
    assert (
        cuts.short("/network/layer1/layer1.0/Relu_1_output_0") == "layer1.0/Relu_1" and cuts.short("images") == "images"
    )


@pytest.fixture(scope="module")
def linears(tmp_path_factory):
    """A small Linear, one sixty times as large and a small one, on three axes: the runtime puts Reshapes round each."""
    path = tmp_path_factory.mktemp("linears") / "linears.onnx"
    widths = {"small": (24, 24), "big": (24, 1440), "out": (1440, 4)}
    return export.to_onnx(
        torch.nn.Sequential(
            *(step for a, b in widths.values() for step in (torch.nn.Linear(a, b), torch.nn.Tanh()))
        ).eval(),
        torch.zeros(1, 300, 24),
        dynamic=False,
        path=path,
    )


@pytest.mark.parametrize("level", ["off", "basic", "all"])
def test_the_parts_of_a_cut_add_up_and_a_kernel_lies_where_it_computes(linears, level):
    x = np.random.default_rng(0).standard_normal((1, 300, 24)).astype(np.float32)
    run = runtimes.OnnxRuntime(linears, optimization=level)
    model = cuts.cost_model(linears, run, run, x, lambda mib: 0.0, runs=5)
    first = [model.parts_ms(cut)[0] for cut in model.cuts]
    assert first == sorted(first) and first[0] == 0 and first[-1] == pytest.approx(sum(model.first_ms))
    for before, after in zip(model.first_ms, model.second_ms, strict=True):
        assert (before > 0) == (after > 0)
    shares = [ms / sum(model.first_ms) for ms in model.first_ms]
    tanh = [cut.name for cut in model.cuts if "Tanh" in cut.name or "tanh" in cut.name][0]
    behind_small = [cut.name for cut in model.cuts].index(tanh)
    assert sum(shares[:behind_small]) < 0.25 < sum(shares[behind_small:])


def test_a_kernel_without_nodes_lies_between_its_neighbors(monkeypatch):
    """Its time belongs to the part that both sides agree on; a copy to what it is made for; else nobody can say."""
    from labsupport.fusion.kernels import Kernel
    from labsupport.fusion.plan_schema import Tensor

    graph = SimpleNamespace(producer={"a": 1, "b": 1}, inputs=("x",))
    order = SimpleNamespace(nodes=tuple(SimpleNamespace(name=name) for name in ("first", "second")))
    monkeypatch.setattr(cut_costs, "steps", lambda graph: (order, set()))

    def kernel(name, reads, writes, nodes=(), doubtful=False):
        tensors = [tuple(Tensor(one) for one in side) for side in (reads, writes)]
        return Kernel(name, "pointwise", nodes, inputs=tensors[0], outputs=tensors[1], doubtful=doubtful, time_ms=1.0)

    def places(middle):
        kernels = (kernel("k1", ["x"], ["a"], ("first",)), middle, kernel("k3", ["t"], ["b"], ("second",)))
        return cut_costs._places(SimpleNamespace(kernels=kernels, graph=graph), None, where)

    where = tuple(Cut(name, (1,), 1.0, after) for name, after in (("x", 0), ("a", 1), ("b", 2)))
    assert places(kernel("copy of a", ["a"], ["t"])) == [0, 1, 1]
    assert places(kernel("copy to t", ["other"], ["t"])) == [0, 1, 1]
    assert places(kernel("alone", [], [])) == [0, 0, 1]
    with pytest.raises(BadInput, match="on which side of 'a' the kernel 'riddle' lies, so its 1 ms belong to no part"):
        places(kernel("riddle", ["a"], ["t"], doubtful=True))
    where = tuple(Cut(name, (1,), 1.0, after) for name, after in (("x", 0), ("b", 2)))
    assert places(kernel("riddle", ["a"], ["t"], doubtful=True)) == [0, 0, 0]


@pytest.mark.parametrize("ms", [-1.0, float("nan"), float("inf")])
def test_times_that_are_none_make_no_model(ms):
    for times in (((ms,), (1.0,), (1.0, 1.0)), ((1.0,), (ms,), (1.0, 1.0)), ((1.0,), (1.0,), (1.0, ms))):
        with pytest.raises(BadInput, match="is no time of a segment or a crossing"):
            CostModel(places(1, 1), *times)
    with pytest.raises(BadInput, match="is no time of a segment|fixed_ms=nan; wanted a number"):
        CostModel(places(1, 1), (1.0,), (1.0,), (1.0, 1.0), fixed_ms=ms)
