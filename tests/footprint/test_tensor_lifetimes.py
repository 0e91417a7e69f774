"""Lifetimes, peaks and plans of addresses against numbers worked out by hand; and what a served network holds."""

from __future__ import annotations

import random
from types import SimpleNamespace

import onnx
import pytest
from footprint_graphs import MIB_FLOATS, graph_of
from onnx import TensorProto, helper
from onnx_files import saved, value

from labsupport import export, footprint
from labsupport.errors import BadInput
from labsupport.footprint import tensor_lifetimes


@pytest.fixture
def diamond(tmp_path):
    """x → a → b → c, and a again beside c: the skip keeps a alive through b and c."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="na"),
        helper.make_node("Neg", ["a"], ["b"], name="nb"),
        helper.make_node("Neg", ["b"], ["c"], name="nc"),
        helper.make_node("Add", ["a", "c"], ["d"], name="nd"),
        helper.make_node("Neg", ["d"], ["y"], name="ny"),
    ]
    return graph_of(tmp_path, nodes, {"y": TensorProto.FLOAT})


def test_lifetimes_of_a_graph_with_a_skip(diamond):
    lives = footprint.lifetimes(diamond)
    assert lives.steps == ("na", "nb", "nc", "nd", "ny")
    assert [(t.name, t.mib, t.born, t.dies, t.op) for t in lives.tensors] == [
        ("a", 1, 0, 3, "Neg"),
        ("b", 1, 1, 2, "Neg"),
        ("c", 1, 2, 3, "Neg"),
        ("d", 1, 3, 4, "Add"),
    ]
    assert lives.live_mib == (1, 2, 3, 3, 1)
    assert (lives.total_mib, lives.peak_mib, lives.peak_step) == (4, 3, 2)
    assert {t.name for t in lives.at(2)} == {"a", "b", "c"}
    assert repr(lives) == "Lifetimes(4 tensors over 5 steps: 4.0 MiB together, at most 3.0 MiB at once, in step 2)"


def test_batch_and_precision_scale_the_bytes(diamond):
    assert footprint.lifetimes(diamond, batch=8).peak_mib == 24
    assert footprint.lifetimes(diamond, batch=8, precision="fp16").total_mib == 16
    assert footprint.lifetimes(diamond.path, precision="int8").total_mib == 1


def test_integers_keep_their_size_and_constants_are_no_activations(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["axis"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])),
        helper.make_node("Mul", ["x", "axis"], ["m"]),
        helper.make_node("ArgMax", ["m"], ["i"], axis=1),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    lives = footprint.lifetimes(graph_of(tmp_path, nodes, {"y": TensorProto.FLOAT}), precision="fp16")
    assert lives.steps == ("Mul", "ArgMax", "Cast")
    assert {t.name: t.mib for t in lives.tensors} == {"m": 0.5, "i": 8 / 2**20}


def test_what_nobody_reads_dies_where_it_was_born(tmp_path):
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["unread"]),
        helper.make_node("Abs", ["a"], ["y"]),
    ]
    lives = footprint.lifetimes(graph_of(tmp_path, nodes, {"y": TensorProto.FLOAT}))
    assert [(t.name, t.born, t.dies) for t in lives.tensors] == [("a", 0, 2), ("unread", 1, 1)]


def test_a_branch_inside_a_node_reads_too(tmp_path):
    def branch(op):
        return helper.make_graph(
            [helper.make_node(op, ["a"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)],
        )

    chosen = helper.make_tensor("chosen", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("If", ["chosen"], ["c"], then_branch=branch("Neg"), else_branch=branch("Abs")),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    graph = graph_of(tmp_path, nodes, {"y": TensorProto.FLOAT}, weights=[chosen])
    assert {t.name: t.dies for t in footprint.lifetimes(graph).tensors}["a"] == 2


def test_a_fused_graph_takes_its_sizes_from_the_graph_before(diamond, tmp_path):
    model = diamond.model()
    fused = helper.make_node("FusedNeg", ["a"], ["c"], name="fused", domain="com.microsoft")
    kept = [node for node in model.graph.node if node.name not in ("nb", "nc")]
    del model.graph.node[:]
    model.graph.node.extend([kept[0], fused, *kept[1:]])
    path = tmp_path / "fused.onnx"
    onnx.save(model, str(path))
    with pytest.raises(
        BadInput, match="fused.onnx is not a valid ONNX network: No opset import for domain 'com.microsoft'"
    ):
        footprint.lifetimes(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(path))
    lives = footprint.lifetimes(path, sizes_of=diamond)
    assert [t.name for t in lives.tensors] == ["a", "c", "d"] and lives.total_mib == 3
    with pytest.raises(BadInput, match=r"size of 'c', written by fused, does not follow.*sizes_of"):
        footprint.lifetimes(path)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"precision": "fp12"},
            r"precision='fp12' is not known; choose one of \['fp32', 'fp16', 'bf16', 'int8'\]",
        ),
        ({"batch": 0}, "batch=0; wanted a whole number of at least 1"),
        ({"batch": True}, "batch=True"),
        ({"batch": 2.0}, "batch=2.0"),
    ],
)
def test_lifetimes_refuse_impossible_requests(diamond, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        footprint.lifetimes(diamond, **options)


def test_a_graph_that_only_the_run_can_size_is_refused(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], ["where"]), helper.make_node("Neg", ["where"], ["y"])]
    graph = saved(tmp_path, nodes, [value("x", ["batch", 4])], [value("y", [None, None], TensorProto.INT64)])
    with pytest.raises(BadInput, match=r"size of 'where', written by NonZero.*dynamic=False"):
        footprint.lifetimes(graph)


def test_a_schedule_by_hand_counts_as_a_graph_does():
    lives = footprint.schedule(
        [("a", 1, ["images"]), ("b", 1, ["a"]), ("c", 1, ["b"]), ("d", 1, ["a", "c"]), ("y", 1, ["d"])]
    )
    assert lives.live_mib == (1, 2, 3, 3, 1) and lives.total_mib == 4
    assert [t.name for t in lives.tensors] == ["a", "b", "c", "d"]  # y is the caller's


@pytest.mark.parametrize(
    "steps, sentence",
    [
        ([("a", 1, ["b"]), ("b", 1, ["images"])], "step 0 computes 'a' from 'b', which is written only later"),
        ([("a", 1, ["pictures"])], "from 'pictures', which is written nowhere"),
        ([("a", 1, "images")], r"'a' reads 'images'; give a list of tensors, such as \['images'\]"),
        ([("a", 1, ["images"]), ("a", 1, ["images"])], "'a' is written twice, in steps 0 and 1"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(steps, sentence):
    with pytest.raises(BadInput, match=sentence):
        footprint.schedule(steps)


def test_an_empty_network_needs_nothing():
    nothing = footprint.schedule([])
    assert (nothing.total_mib, nothing.peak_mib, nothing.peak_step) == (0, 0, 0)
    assert footprint.arena(nothing, {}).size_mib == 0


@pytest.mark.parametrize(
    "one, other, together",
    [
        ((0, 2), (2, 3), True),
        ((0, 1), (2, 3), False),
        ((1, 1), (0, 4), True),
        ((3, 4), (0, 2), False),
    ],
)
def test_overlap_includes_both_ends(one, other, together):
    a, b = footprint.Tensor("a", 1, *one), footprint.Tensor("b", 1, *other)
    assert a.overlaps(b) is together and b.overlaps(a) is together


BLOCK = footprint.schedule([("a", 2, ["images"]), ("b", 3, ["a"]), ("c", 2, ["b"]), ("y", 1, ["c"])])


def test_an_arena_uses_memory_again():
    plan = footprint.arena(BLOCK, {"a": 0, "b": 2, "c": 0})  # c moves in where a has died
    assert plan.size_mib == 5 == BLOCK.peak_mib
    assert repr(plan) == "Arena(5.0 MiB for 3 tensors; all apart 7.0, at least 5.0)"


@pytest.mark.parametrize(
    "offsets, sentence",
    [
        ({"a": 0, "b": 0, "c": 5}, r"'a' and 'b' are both alive in step 1 and share memory: 0 to 2 MiB and 0 to 3 MiB"),
        ({"a": 0, "b": 2, "c": 4.5}, "'b' and 'c' are both alive in step 2"),
        ({"a": 3, "b": 2, "c": 5}, "'a' and 'b' are both alive"),
        ({"a": 0, "b": 2}, r"places no tensor 'c' \(and 0 more\)"),
        ({"a": 0}, r"places no tensor 'b' \(and 1 more\)"),
        ({"a": 0, "b": 2, "c": 0, "z": 1}, "places an unknown tensor 'z'"),
        ({"a": -1, "b": 2, "c": 0}, "'a' is placed at -1; an offset is a number of MiB, 0 or more"),
        ({"a": None, "b": 2, "c": 0}, "'a' is placed at None"),
        ({"a": float("nan"), "b": 2, "c": 0}, "'a' is placed at nan"),
        ([0, 2, 0], r"offsets=\[0, 2, 0\]; wanted a mapping"),
    ],
)
def test_a_plan_in_which_tensors_collide_is_refused(offsets, sentence):
    with pytest.raises(BadInput, match=sentence):
        footprint.arena(BLOCK, offsets)


def test_no_plan_can_undercut_the_peak():
    draw = random.Random(1)
    for _ in range(20):
        steps = [
            (f"t{i}", draw.randint(1, 9), [f"t{draw.randrange(max(0, i - 4), i)}"] if i else ["images"])
            for i in range(12)
        ]
        lives = footprint.schedule(steps)
        top, offsets = 0, {}
        for tensor in lives.tensors:  # all apart: the worst plan that is right
            offsets[tensor.name], top = top, top + tensor.mib
        assert lives.peak_mib <= footprint.arena(lives, offsets).size_mib == lives.total_mib == top


CONV = {
    "Name": "conv + relu",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "copied", "Dimensions": [2, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}],
    "Outputs": [
        {
            "Name": "wide",
            "Dimensions": [2, 12, 8, 8],
            "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
        }
    ],
}
COPY = {
    "Name": "copy",
    "LayerType": "Reformat",
    "Inputs": [{"Name": "images", "Dimensions": [2, 3, 8, 8]}],
    "Outputs": [{"Name": "copied", "Dimensions": [2, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}],
}
POOL = {
    "Name": "pool",
    "LayerType": "CaskPooling",
    "Inputs": [{"Name": "wide"}],
    "Outputs": [{"Name": "scores", "Dimensions": [2, 12], "Format/Datatype": "Row major linear FP32"}],
}


def engine_with(layers):
    return SimpleNamespace(name="net", evidence="typed network", layers=layers)


def test_lifetimes_of_an_engine_count_padding_and_leave_the_callers_tensors_out():
    lives = footprint.of_engine(engine_with([COPY, CONV, POOL]))
    assert [(t.name, t.mib * 2**20, t.born, t.dies, t.op) for t in lives.tensors] == [
        ("copied", 2 * 3 * 8 * 8 * 4, 0, 1, "Reformat"),
        ("wide", 2 * 16 * 8 * 8 * 2, 1, 2, "CaskConvolution"),
    ]
    assert lives.steps == ("copy", "conv + relu", "pool")


def test_kernels_that_write_into_one_tensor_count_it_once():
    halves = [{**CONV, "Name": name} for name in ("left", "right")]
    assert [t.name for t in footprint.of_engine(engine_with([COPY, *halves, POOL])).tensors] == ["copied", "wide"]


def test_an_engine_that_tells_nothing_is_refused():
    with pytest.raises(BadInput, match=r"net carries no layer records \(typed network\)"):
        footprint.of_engine(engine_with(["conv + relu"]))
    free = {
        **COPY,
        "Outputs": [{"Name": "copied", "Dimensions": [-1, 3, 8, 8], "Format/Datatype": "Row major linear FP32"}],
    }
    with pytest.raises(
        BadInput, match=r"'copied' as \[-1, 3, 8, 8\] .* no fixed size; build the engine from footprint.at_batch"
    ):
        footprint.of_engine(engine_with([free, CONV, POOL]))
    odd = {**COPY, "Outputs": [{"Name": "copied", "Dimensions": [2], "Format/Datatype": "N/A due to dynamic shapes"}]}
    with pytest.raises(BadInput, match="N/A due to dynamic shapes"):
        footprint.of_engine(engine_with([odd, CONV, POOL]))


def test_at_batch_fixes_the_first_axis_in_a_new_file(diamond):
    fixed = footprint.at_batch(diamond, 4)
    assert fixed.inputs["x"][0] == (4, MIB_FLOATS) and diamond.inputs["x"][0] == ("batch", MIB_FLOATS)
    assert fixed.path != diamond.path
    assert footprint.lifetimes(fixed).total_mib == footprint.lifetimes(diamond, batch=4).total_mib


def test_pictures_say_in_words_what_they_show():
    from labsupport.exercises import lab04

    large = lab04.resnet_schedule()
    top, offsets = 0, {}
    for tensor in large.tensors:
        offsets[tensor.name], top = top, top + tensor.mib
    pictures = [
        footprint.draw_lifetimes(BLOCK, title="A block"),
        footprint.draw_arena(footprint.arena(BLOCK, {"a": 0, "b": 2, "c": 0})),
        footprint.draw_lifetimes(large),
        footprint.draw_arena(footprint.arena(large, offsets)),
    ]
    bars = pictures[0].figure.axes[0].patches  # a step is as wide as 1, about its number
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
    assert ends == [(tensor.born - 0.5, tensor.dies + 0.5) for tensor in BLOCK.tensors]
    boxes = pictures[1].figure.axes[0].patches  # as wide as the life, as high as the size, where the plan has put it
    assert [(*box.get_xy(), box.get_width(), box.get_height()) for box in boxes] == [
        (tensor.born - 0.5, low, tensor.dies - tensor.born + 1, tensor.mib)
        for tensor, low in zip(BLOCK.tensors, (0, 2, 0), strict=True)
    ]
    places = {text.get_text(): text.get_position() for text in pictures[1].figure.axes[0].texts}
    assert places["b"] == ((BLOCK.tensors[1].born + BLOCK.tensors[1].dies) / 2, 3.5)
    assert repr(pictures[0]) == (
        "A block: 3 tensors over 4 steps; together 7.0 MiB, alive at once at most 5.0 MiB, in step 1."
    )
    assert (
        repr(pictures[1])
        == "3 tensors share 5.0 MiB; apart they would take 7.0 MiB, and less than 5.0 MiB is impossible."
    )
    for picture in pictures:
        png = picture._repr_png_()
        assert png.startswith(b"\x89PNG") and len(png) < 60_000


def test_every_type_counts_its_own_bytes(tmp_path):
    graph = graph_of(tmp_path, [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])], {"y": 1})
    peaks = {
        kind: footprint.lifetimes(graph, batch=3, precision=kind).peak_mib for kind in ("fp32", "fp16", "bf16", "int8")
    }
    assert peaks == {"fp32": 3.0, "fp16": 1.5, "bf16": 1.5, "int8": 0.75}


@pytest.mark.parametrize(
    "kind, mib", [(TensorProto.INT64, 8), (TensorProto.BOOL, 1), (TensorProto.INT4, 0.5), (TensorProto.DOUBLE, 4)]
)
def test_what_is_cast_has_the_size_of_its_type(tmp_path, kind, mib):
    """1 Mi values; floating-point ones count as the precision asked for, FP64 too."""
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=kind), helper.make_node("Cast", ["a"], ["y"], to=1)]
    ends = [[value(name, [1, 2**20])] for name in "xy"]
    graph = saved(tmp_path, nodes, *ends, opset=21, ir=10)
    assert footprint.lifetimes(graph).tensors[0].mib == mib


def test_sequences_and_text_have_no_size(tmp_path):
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], "parts"),
        helper.make_node("SequenceLength", ["s"], ["y"]),
    ]
    graph = saved(tmp_path, nodes, [value("x", [4, 2])], [value("y", [], TensorProto.INT64)])
    with pytest.raises(BadInput, match="size of 's', written by parts, does not follow .*text, a sequence or a map"):
        footprint.lifetimes(graph)


@pytest.mark.parametrize("values, size", [(4, 2), (5, 3), (1, 1)])
def test_half_a_byte_takes_a_whole_one(tmp_path, values, size):
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=TensorProto.INT4), helper.make_node("Cast", ["a"], ["y"], to=1)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, values]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    assert footprint.lifetimes(export.save(model, tmp_path / "odd.onnx")).total_mib * 2**20 == size


@pytest.mark.parametrize(
    ("record", "mib"),
    [
        ({"Dimensions": [0, 4], "Format/Datatype": "Row major linear FP32"}, 0),
        ({"Dimensions": [2**18], "Datatype": "Half"}, 0.5),
        ({"Dimensions": [1, 3, 2**15], "Format": "channel % 8 == 0 FP32"}, 1),  # three channels are padded to eight
        ({"Dimensions": [1, 16, 2**14], "Format": "channel % 16 == 0 FP32"}, 1),
        ({"Dimensions": [3], "Format": "channel % 8 == 0 INT8"}, 3 / 2**20),  # without channels nothing is padded
        ({"Dimensions": [], "Datatype": "Int64"}, 8 / 2**20),
    ],
)
def test_the_size_of_an_inspectors_tensor(record, mib):
    assert tensor_lifetimes._record_mib({"Name": "t", **record}) == mib
    for odd in ({"Dimensions": [-1, 4], "Datatype": "Half"}, {"Dimensions": [4], "Datatype": "Odd"}):
        with pytest.raises(BadInput, match=r"the inspector gives 't' as \[.*which has no fixed size"):
            tensor_lifetimes._record_mib({"Name": "t", **odd})
