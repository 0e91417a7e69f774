"""The X-ray: every schema, every ONNX node accounted for, nothing guessed silently, and errors that say what came."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from labsupport import export, fusion, models, recordings, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable, RecordingError
from labsupport.fusion import layer_names, layer_times, onnx_nodes, plan_schema

PLANS = Path(__file__).parents[1] / "fixtures" / "plans"
REAL = "resnet18_b32.fp16"
LEVELS = ("off", "basic", "extended", "all")


def onnx_file(path, nodes, inputs, outputs, weights=(), types=()):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    value = lambda name, shape, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, shape)  # noqa: E731
    graph = helper.make_graph(
        [helper.make_node(op, reads, writes, name=name, **attributes) for name, op, reads, writes, attributes in nodes],
        "block",
        [value(*i) for i in inputs],
        [value(*o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return export.load(path)


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """The network that the synthetic plans are of: siblings, a concat, a residual add, SiLU, a head, shapes."""
    w = lambda *shape: np.full(shape, 0.1, np.float32)  # noqa: E731
    out = lambda name: f"{name}_output_0"  # noqa: E731
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        ("/const/Constant", "Constant", [], ["width"], {"value_ints": [8]}),
        ("/conv1/Conv", "Conv", ["x", "w1", "b1"], [out("/conv1/Conv")], pads),
        ("/relu1/Relu", "Relu", [out("/conv1/Conv")], [out("/relu1/Relu")], {}),
        ("/left/Conv", "Conv", [out("/relu1/Relu"), "w2"], [out("/left/Conv")], pads),
        ("/right/Conv", "Conv", [out("/relu1/Relu"), "w3"], [out("/right/Conv")], pads),
        ("/cat/Concat", "Concat", [out("/left/Conv"), out("/right/Conv")], [out("/cat/Concat")], {"axis": 1}),
        ("/tail/Conv", "Conv", [out("/cat/Concat"), "w4"], [out("/tail/Conv")], pads),
        ("/add/Add", "Add", [out("/tail/Conv"), out("/relu1/Relu")], [out("/add/Add")], {}),
        ("/act/Sigmoid", "Sigmoid", [out("/add/Add")], [out("/act/Sigmoid")], {}),
        ("/act/Mul", "Mul", [out("/act/Sigmoid"), out("/add/Add")], [out("/act/Mul")], {}),
        ("/pool/GlobalAveragePool", "GlobalAveragePool", [out("/act/Mul")], [out("/pool/GlobalAveragePool")], {}),
        ("/shape/Shape", "Shape", [out("/pool/GlobalAveragePool")], ["dims"], {}),
        ("/shape/Gather", "Gather", ["dims", "zeroth"], ["batch"], {}),
        ("/shape/Concat", "Concat", ["batch", "width"], ["flat"], {"axis": 0}),
        ("/pass/Identity", "Identity", [out("/pool/GlobalAveragePool")], ["same"], {}),
        ("/flat/Reshape", "Reshape", ["same", "flat"], [out("/flat/Reshape")], {}),
        ("/fc/MatMul", "MatMul", [out("/flat/Reshape"), "w5"], [out("/fc/MatMul")], {}),
        ("/fc/Add", "Add", [out("/fc/MatMul"), "b5"], [out("/fc/Add")], {}),
        ("/soft/Softmax", "Softmax", [out("/fc/Add")], ["probabilities"], {}),
    ]
    weights = {
        "w1": w(8, 3, 3, 3),
        "b1": w(8),
        "w2": w(8, 8, 3, 3),
        "w3": w(8, 8, 3, 3),
        "w4": w(8, 16, 3, 3),
        "w5": w(8, 10),
        "b5": w(10),
        "zeroth": np.array([0]),
    }
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    return onnx_file(path, nodes, [("x", [2, 3, 16, 16])], [("probabilities", [2, 10])], weights)


@pytest.fixture(scope="module")
def real():
    return fusion.xray(recordings.load_plan(REAL))


@pytest.fixture(scope="module")
def workpieces(tmp_path_factory):
    """The workbook's networks, small, exported for 8.6."""
    folder = tmp_path_factory.mktemp("workpieces")
    made = {
        "resnet18": models.resnet18(width=16, size=32),
        "article": models.article_cnn(),
        "mobilenet": models.mobilenet_v2(width=0.25, size=32),
        "encoder": models.encoder(layers=2, hidden=32, heads=4, vocabulary=64),
    }
    return {
        name: export.to_onnx(m, m.example_input(), target="8.6", path=folder / f"{name}.onnx")
        for name, m in made.items()
    }


def synthetic(name):
    return json.loads((PLANS / f"synthetic_block_{name}.json").read_text(encoding="utf-8"))


# --- a real plan -------------------------------------------------------------------------------------------------


def test_real_plan_accounts_for_every_node(real):
    books = real.accounts()
    assert books.balanced and books.complete
    assert len(books.placed) == 48 and not books.inferred and not books.split
    assert dict(books.removed) == {"/Flatten": "the same bytes in another shape"}
    assert repr(books) == "49 ONNX nodes = 48 in 23 kernels + 1 removed; nothing unplaced"


def test_real_plan_says_who_swallowed_whom(real):
    kernel = real.kernel_of("/layer2/layer2.0/Add")
    assert kernel.nodes == (
        "/layer2/layer2.0/downsample/downsample.0/Conv",
        "/layer2/layer2.0/Add",
        "/layer2/layer2.0/Relu_1",
    )
    assert (kernel.kind, kernel.precision_in, kernel.precision_out) == ("convolution", "fp16", "fp16")
    assert "xmma_fprop_implicit_gemm" in kernel.tactic
    assert real.together("/conv1/Conv", "/Relu") and not real.together("/Relu", "/MaxPool")
    assert real.kernel_of("/Flatten") is None
    assert real.kinds["convolution"] == 20 and len(real.launched) == 25 and len(real.inserted) == 2


def test_a_reshape_beside_a_matmul_holds_a_part_only(real):
    reshape = next(k for k in real.kernels if k.name == "reshape_after_/fc/Gemm")
    assert reshape.kind == "no-op" and reshape.parts == ("/fc/Gemm",) and not reshape.nodes
    assert real.kernel_of("/fc/Gemm").kind == "matmul"


def test_bytes_and_shares(real):
    first = real.kernel_of("/conv1/Conv")
    # in 32×3×224×224 and out 32×64×112×112 in fp16, 9408 weights and 64 biases in fp16
    assert first.bytes == 2 * (32 * 3 * 224 * 224 + 32 * 64 * 112 * 112 + 9408 + 64)
    assert sum(k.share for k in real.kernels) == pytest.approx(1)
    assert real.total_ms == pytest.approx(0.56, abs=5e-3)


def test_a_fresh_export_fits_the_recorded_plan(workpieces):
    plan = fusion.xray(recordings.load_plan(REAL), graph=workpieces["resnet18"])
    assert plan.accounts().complete and len(plan.accounts().placed) == 48


def test_table_has_a_row_per_kernel(real):
    frame = fusion.table(real)
    assert len(frame) == len(real.kernels) == 27
    row = frame.iloc[1]
    assert row["swallowed"] == "conv1/Conv + Relu" and row["in"] == "fp16" and row["time share"] == "11.5%"
    assert frame["ONNX nodes"].sum() == 48


def test_reprs_can_be_read_aloud(real):
    assert (
        repr(real) == "Plan(resnet18_b32.fp16: 25 kernels run from 49 ONNX nodes: "
        "convolution×20, layout×2, pooling×2, no-op×2, matmul; 0.56 ms)"
    )
    assert repr(real.kernels[1]) == "convolution fp16 → fp16: /conv1/Conv + /Relu (11.5% of the time)"


# --- every recorded plan -----------------------------------------------------------------------------------------

# plan → kernels launched, kernels that hold nodes, kinds of those, inserted copies
RECORDED = {
    "resnet18_b32.fp32": (28, 23, {"convolution": 20, "pooling": 2, "matmul": 1}, 5),
    "resnet18_b32.fp16": (25, 23, {"convolution": 20, "pooling": 2, "matmul": 1}, 2),
    "resnet18_b32.int8": (23, 22, {"convolution": 21, "pooling": 1}, 1),
    "conv_block.fp16": (3, 1, {"convolution": 1}, 2),
    "pointwise_chain.fp16": (3, 1, {"pointwise": 1}, 2),
    "residual.fp16": (4, 2, {"convolution": 2}, 2),
    "siblings.fp16": (4, 2, {"matmul": 1, "pointwise": 1}, 2),
    "sibling_matmuls.fp16": (7, 2, {"matmul": 1, "pointwise": 1}, 5),
    "concat.fp16": (5, 3, {"matmul": 2, "convolution": 1}, 2),
    "mlp.fp16": (3, 1, {"region": 1}, 2),
}
COMMITTED = sorted(
    path.stem for path in (Path(recordings.__file__).parents[1] / "data/recordings/plans").glob("*.json")
)
# Of these the kernels' names alone are recorded, at least as many: their graphs are made by a tool.
BARE = {"gemm_n4096_m4096.sparse24": 1, "resnet50_b64.sparse24": 41}
EVERY = [name for name in COMMITTED if name not in BARE]


def recorded(name, **options):
    return fusion.xray(recordings.load_plan(name), **options)


def records_of(name):
    return {record["Name"]: record for record in recordings.load_plan(name).plan["Layers"]}


@pytest.mark.parametrize("name", BARE)
def test_plans_recorded_without_a_graph_tell_their_kernels_and_say_what_they_lack(name):
    plan = recorded(name)
    assert len(plan.launched) >= BARE[name] and all(kernel.tactic or kernel.layer_type for kernel in plan.launched)
    with pytest.raises(BadInput, match="read without its ONNX graph.*pass graph="):
        plan.accounts()


@pytest.mark.parametrize("name", EVERY)
def test_recorded_plans_account_for_every_node(name):
    plan = recorded(name)
    books = plan.accounts()
    assert books.balanced and books.complete and not books.split, books
    assert plan.schema == "8.6 to 10" and plan.detailed and plan.total_ms > 0
    assert sum(kernel.share for kernel in plan.kernels) == pytest.approx(1)
    assert all(kernel.time_ms == 0 and kernel.bytes == 0 for kernel in plan.kernels if not kernel.launches)
    assert all(kernel.time_ms > 0 and kernel.precision_in and kernel.precision_out for kernel in plan.launched)
    # what is inserted is a copy, and nothing but copies is
    assert {kernel.layer_type for kernel in plan.inserted} <= {"Reformat"}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_plans_have_the_kernels_that_the_records_tell(name):
    plan = recorded(name)
    launched, holding, kinds, inserted = RECORDED[name]
    assert (len(plan.launched), len(plan.inserted)) == (launched, inserted)
    holders = [kernel for kernel in plan.kernels if kernel.nodes]
    assert len(holders) == holding and {k: [h.kind for h in holders].count(k) for k in kinds} == kinds


@pytest.mark.parametrize("name", EVERY)
def test_nodes_of_a_kernel_agree_with_its_parameters(name):
    """The metadata says what a kernel swallowed; its parameters say what it does. Neither is derived from the other."""
    plan, records, checked = recorded(name), records_of(name), 0
    for kernel in plan.kernels:
        record = records[kernel.name]
        ops = [plan.graph.by_name[node].op for node in kernel.nodes]
        heavy = [op for op in ops if op in ("Conv", "Gemm", "MatMul")]
        if record["LayerType"].startswith("Cask") and heavy:
            prefix = "Conv" if record["LayerType"] == "CaskConvActPool" else ""
            assert (record[prefix + "Activation"] == "RELU") == ("Relu" in ops), kernel
            residual = "Add" in ops and not kernel.inferred
            assert bool(record[prefix + "HasResidual"]) == residual == (len(kernel.inputs) == 2), kernel
            channels = [plan.graph.types[plan.graph.by_name[n].outputs[0]][1] for n in kernel.nodes]
            channels = [s[1] if op == "Conv" else s[-1] for s, op in zip(channels, ops, strict=True) if op in heavy]
            assert record[prefix + "OutMaps"] == sum(channels), kernel
            checked += 1
        elif record["LayerType"] == "PointWiseV2":
            assert record["NbInputArgs"] == len(kernel.inputs) and len(ops) <= record["NbOperations"], kernel
            checked += 1
    assert checked or name in ("mlp.fp16", "attention.fp16", "encoder_s128_b8.fp16")


def test_precisions_of_the_recorded_resnets():
    for name, inside in (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8")):
        plan = recorded(f"resnet18_b32.{name}")
        convolutions = [k for k in plan.kernels if any(plan.graph.by_name[n].op == "Conv" for n in k.nodes)]
        assert len(convolutions) == 20
        assert {(k.precision_in, k.precision_out, k.weight_dtype) for k in convolutions} == {(inside, inside, inside)}
    last = plan.kernel_of("/fc/Gemm")
    assert (last.precision_in, last.precision_out, last.weight_bytes) == ("int8", "fp32", 512_000 + 4 * 1000)
    assert plan.kernels[0].kind == "layout" and (plan.kernels[0].precision_in, plan.kernels[0].precision_out) == (
        "fp32",
        "int8",
    )


def test_int8_takes_the_first_pooling_into_its_convolution():
    plan = recorded("resnet18_b32.int8")
    first = plan.kernel_of("/conv1/Conv")
    assert first.nodes == ("/conv1/Conv", "/Relu", "/MaxPool") and first.kind == "convolution"
    assert first.weight_bytes == 9408 + 4 * 64  # "ConvWeights" and "ConvBias" of CaskConvActPool
    found = fusion.diff(recorded("resnet18_b32.fp16"), plan)
    ((before, after),) = found.regrouped
    assert [k.nodes for k in before] == [("/conv1/Conv", "/Relu"), ("/MaxPool",)] and after == (first,)
    assert len(found.retyped) == len(found.same) == 21 and not found.only_before and not found.only_after


def test_a_kernel_of_another_kind_than_its_operator_says_so():
    note = "the convolution runs as a matmul"
    assert recorded("concat.fp16").kernel_of("/a/Conv").note == note
    assert recorded("concat.fp16").kernel_of("/b/Conv").note == ""
    assert note in repr(recorded("siblings.fp16").kernel_of("/left/Conv"))
    assert fusion.table(recorded("siblings.fp16"))["kind"].iloc[1] == f"matmul ({note})"
    assert recorded("resnet18_b32.int8").kernel_of("/fc/Gemm").note == "the matmul runs as a convolution"
    assert not recorded("resnet18_b32.fp16").kernel_of("/fc/Gemm").note


def test_blocks_fuse_as_the_lab_says():
    assert recorded("conv_block.fp16").together("/conv/Conv", "/Relu")
    chain = recorded("pointwise_chain.fp16")
    assert chain.together(*(n.name for n in chain.graph.nodes if n.op != "Constant")) and len(chain.launched) == 3
    assert recorded("residual.fp16").together("/two/Conv", "/Add", "/Relu")
    siblings = recorded("siblings.fp16")
    assert siblings.together("/left/Conv", "/middle/Conv", "/right/Conv", "/Relu", "/Relu_1", "/Relu_2")
    assert siblings.together("/Add", "/Add_1") and not siblings.together("/Add", "/Relu")
    concat = recorded("concat.fp16")
    assert concat.accounts().moved == {"/Concat": "written in place by /a/Conv + /Relu and /b/Conv + /Relu_1"}


def test_biases_that_nobody_names_are_placed_by_the_tensors():
    plan, books = recorded("sibling_matmuls.fp16"), recorded("sibling_matmuls.fp16").accounts()
    adds = ["/q/Add", "/k/Add", "/v/Add"]
    merged = plan.kernel_of("/q/MatMul")
    assert merged.kind == "matmul" and plan.together("/q/MatMul", "/k/MatMul", "/v/MatMul", *adds)
    assert list(books.inferred) == adds and list(merged.inferred) == adds
    assert books.inferred["/k/Add"] == "its result /k/Add_output_0 is made of what this kernel writes"
    assert not any(plan.kernel_of("/Add").inferred)
    # the record bears it out: one bias value for each of the 3 × 256 columns
    assert records_of("sibling_matmuls.fp16")[merged.name]["Bias"]["Count"] == 768
    assert "[q/Add]" in fusion.table(plan)["swallowed"].iloc[2] and fusion.draw(plan).svg().count("  ?<") == 3


def test_no_node_is_placed_where_the_tensors_leave_it_open():
    plan = copy.deepcopy(recordings.load_plan("sibling_matmuls.fp16").plan)
    layers = {layer["Name"]: layer for layer in plan["Layers"]}
    # without the copies that lead from the merged kernel to them, nothing ties the sums to it
    layers["reshape_after_/q/MatMul"]["Inputs"][0]["Name"] = "from somewhere else"
    books = fusion.xray(plan).accounts()
    assert books.unplaced == ("/q/Add",) and list(books.inferred) == ["/k/Add", "/v/Add"] and not books.complete
    assert books.where("/q/Add") == ("unplaced", "no kernel names it and no rule covers it")
    assert "1 UNPLACED: /q/Add" in repr(books) and books.balanced


def test_a_myelin_region_claims_no_bytes_that_the_plan_does_not_list():
    region = recorded("mlp.fp16").kernel_of("/norm/LayerNormalization")
    assert region.kind == "region" and len(region.inferred) == len(region.nodes) == 11 and region.bytes is None
    assert recorded("siblings.fp16").kernel_of("/Add").bytes == 4 * 2 * 16 * 64 * 56 * 56  # three read, one written


def test_each_recorded_plan_can_be_drawn():
    for name in EVERY:
        picture = fusion.draw(recorded(name))
        assert len(picture._repr_png_()) < 60_000 and picture.text.startswith(f"{name}, before and after")


# --- schemas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schema"),
    [("trt10", "8.6 to 10"), ("trt11", "11"), ("trt8.6_region", "8.6 to 10"), ("layer_names", "layer names")],
)
def test_schemas_give_one_answer(name, schema, block):
    plan = fusion.xray(synthetic(name), graph=block)
    assert plan.schema == schema and plan.detailed == (name != "layer_names")
    assert plan.together("/conv1/Conv", "/relu1/Relu") and plan.together("/left/Conv", "/right/Conv")
    assert plan.together("/tail/Conv", "/add/Add") and plan.together("/act/Sigmoid", "/act/Mul")
    assert plan.kernel_of("/act/Mul").kind == "pointwise"
    books = plan.accounts()
    assert books.balanced and not books.unknown
    assert set(books.folded) == {"/const/Constant", "/shape/Shape", "/shape/Gather", "/shape/Concat"}
    assert books.removed["/pass/Identity"] == "hands its input on unchanged"


@pytest.mark.parametrize("name", ["trt10", "trt11"])
def test_detailed_later_schemas(name, block):
    plan = fusion.xray(synthetic(name), graph=block)
    first = plan.kernels[0]
    assert (first.kind, first.precision_in, first.precision_out) == ("layout", "fp32", "fp16")
    assert plan.kernel_of("/fc/MatMul").kind == "generated" and plan.kernel_of("/conv1/Conv").weight_bytes == 2 * (
        216 + 8
    )
    books = plan.accounts()
    assert books.moved["/cat/Concat"] == "written in place by /left/Conv || /right/Conv"
    # the plan names MatMul and Softmax, not what lies between
    assert books.complete and list(books.inferred) == ["/fc/Add"]
    assert books.where("/fc/Add") == ("inferred", "__myl_FcSoft_myl0_1")
    evidence = books.table().set_index("node")["evidence"]
    assert evidence["/fc/Add"].startswith("its input comes from nodes of this kernel") and not evidence["/fc/MatMul"]


def test_a_region_is_a_region_and_its_inside_is_marked_inferred(block):
    plan = fusion.xray(synthetic("trt8.6_region"), graph=block)
    region = plan.kernel_of("/fc/Add")
    assert region.kind == "region" and set(region.inferred) == {
        "/flat/Reshape",
        "/fc/MatMul",
        "/fc/Add",
        "/soft/Softmax",
    }
    books = plan.accounts()
    assert books.complete and books.where("/fc/Add") == ("inferred", "{ForeignNode[/fc/MatMul.../soft/Softmax]}")
    assert "4 of them inferred" in repr(books)
    assert "[fc/Add]" in fusion.table(plan)["swallowed"].iloc[-1]


def test_a_region_of_names_only_is_bounded_by_its_ends(block):
    region = fusion.xray(synthetic("layer_names"), graph=block).kernel_of("/fc/Add")
    assert set(region.inferred) == {
        "/fc/MatMul",
        "/fc/Add",
        "/soft/Softmax",
    }  # the reshape before it is not between the ends


def test_a_region_takes_nothing_that_another_kernel_names(block):
    plan = synthetic("trt8.6_region")
    plan["Layers"].append(
        {
            "Name": "PWN(/fc/Add)",
            "LayerType": "PointWiseV2",
            "Inputs": [],
            "Outputs": [],
            "Metadata": "[ONNX Layer: /fc/Add]",
        }
    )
    plan = fusion.xray(plan, graph=block)
    assert plan.kernel_of("/fc/Add").kind == "pointwise"
    assert plan.accounts().balanced and "/fc/Add" not in plan.accounts().split


def test_a_region_whose_ends_are_unknown_leaves_its_nodes_unplaced(block):
    plan = synthetic("trt8.6_region")
    plan["Layers"][-1] = "{ForeignNode[(Unnamed Layer* 3) [Shuffle]...(Unnamed Layer* 9) [ElementWise]]}"
    books = fusion.xray(plan, graph=block).accounts()
    assert set(books.unplaced) == {"/fc/MatMul", "/fc/Add", "/soft/Softmax"} and books.balanced


def test_without_the_graph_names_are_read_and_accounts_refused(block):
    plan = fusion.xray(synthetic("layer_names"))
    assert (
        plan.kernels[4].nodes == ("/act/Sigmoid", "/act/Mul")
        and plan.kernels[-1].kind == "region"
        and not plan.kernels[-1].nodes
    )
    with pytest.raises(BadInput, match="read without its ONNX graph, so nobody can say what is missing; pass graph="):
        plan.accounts()
    assert plan.accounts(block).balanced


def test_free_shapes_leave_types_and_bytes_open(block):
    plan = synthetic("trt10")
    for layer in plan["Layers"]:
        for tensor in layer["Inputs"] + layer["Outputs"]:
            tensor |= {"Dimensions": [-1, *tensor["Dimensions"][1:]], "Format/Datatype": "N/A due to dynamic shapes"}
    kernel = fusion.xray(plan, graph=block).kernel_of("/conv1/Conv")
    assert kernel.bytes is None and kernel.precision_in == "" and "? → ?" in repr(kernel)
    assert fusion.table(fusion.xray(plan, graph=block))["in"].iloc[1] == "–"


def test_an_unnamed_node_between_two_of_one_kernel_is_inferred_and_no_other(block):
    pairs = ["/conv1/Conv", "/left/Conv || /right/Conv", "/tail/Conv + /act/Sigmoid + /act/Mul"]
    books = fusion.xray([*pairs, "/fc/MatMul + /soft/Softmax"], graph=block).accounts()
    # /add/Add also reads what no named kernel writes (/relu1/Relu), and without tensors nobody knows who adds
    assert list(books.inferred) == ["/fc/Add"] and books.balanced
    assert set(books.unplaced) == {"/relu1/Relu", "/cat/Concat", "/add/Add", "/pool/GlobalAveragePool"}


def two_profiles(plan):
    """The plan as an engine of two optimization profiles lists it: its layers again, their names and tensors marked."""
    again = copy.deepcopy(plan["Layers"])
    for layer in again:
        mark = layer["LayerType"] != "kgen"  # Myelin's kernels are marked in the names of tensors only
        layer["Name"] = f"{layer['Name']} [profile 1]" if mark else layer["Name"].replace("_myl0_", "_myl1_")
        layer["TacticName"] = "of the second profile"
        for tensor in layer["Inputs"] + layer["Outputs"]:
            tensor["Name"] += " [profile 1]"
    lonely = {"Name": "__mye260_0_myl1_0", "LayerType": "shape_call", "Inputs": [], "Outputs": [], "Metadata": ""}
    return {**plan, "Layers": [*plan["Layers"], lonely, *again]}


def test_an_engine_of_two_profiles_is_read_by_profile(block):
    plan = two_profiles(synthetic("trt10"))
    first, second = (fusion.xray(plan, graph=block, optimization_profile=place) for place in (0, 1))
    assert [k.name for k in first.kernels] == [k["Name"] for k in synthetic("trt10")["Layers"]]
    assert second.kernels[0].kind == "host" and len(second.kernels) == len(first.kernels) + 1
    for read in (first, second):
        books = read.accounts()
        assert books.complete and not books.split and set(books.placed) == set(first.accounts().placed)
    assert second.kernel_of("/conv1/Conv").tactic == "of the second profile" != first.kernel_of("/conv1/Conv").tactic
    assert second.accounts().moved == {"/cat/Concat": "written in place by /left/Conv || /right/Conv [profile 1]"}
    with pytest.raises(BadInput, match="has 2 optimization profiles; optimization_profile=2 is none of 0 to 1"):
        fusion.xray(plan, graph=block, optimization_profile=2)


@pytest.mark.parametrize("keys", [("Format", "Datatype"), ("Format", "DataType"), (None, "Datatype")])
def test_types_apart_from_formats_are_read_under_either_name(block, keys):
    plan = synthetic("trt11")
    for layer in plan["Layers"]:
        for tensor in layer["Inputs"] + layer["Outputs"]:
            layout, dtype = tensor.pop("Format"), tensor.pop("DataType")
            tensor.update({key: value for key, value in zip(keys, (layout, dtype), strict=True) if key})
    kernel = fusion.xray(plan, graph=block).kernels[0]
    assert (kernel.precision_in, kernel.precision_out) == ("fp32", "fp16")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("PWN(PWN(/act/Sigmoid), /act/Mul)", ("/act/Sigmoid", "/act/Mul")),
        ("PWN(/a/Add + (Unnamed Layer* 3) [ElementWise], PWN(/b/Mul))", ("/a/Add", "/b/Mul")),
        (
            "conv.weight + QuantizeLinear_138 + Conv_142 + Add_144",
            ("conv.weight", "QuantizeLinear_138", "Conv_142", "Add_144"),
        ),
        ("/left/Conv || /right/Conv", ("/left/Conv", "/right/Conv")),
        ("reshape_after_/fc/Gemm", ("/fc/Gemm",)),
        ("squeeze_after_/fc/MatMul", ("/fc/MatMul",)),
        ("/q/MatMul_myl0_3", ("/q/MatMul",)),
        ("Reformatting CopyNode for Input Tensor 0 to /a/b + /c", ()),
        ("{ForeignNode[/a.../b]}", ()),
        ("Reformatting CopyNode for Network Input images", ()),
        ("reshape_after_/q/MatMul_copy_input", ("/q/MatMul",)),
        ("/a/Conv + /a/Relu [profile 1]", ("/a/Conv", "/a/Relu")),
        ("node_linear [profile 1]_myl11_2", ("node_linear",)),
        ("{ForeignNode[/a.../b]} [profile 1]", ()),
        ("__myl_FcSoft_myl0_1", ()),
    ],
)
def test_layer_names_come_apart(name, parts):
    assert layer_names.name_parts(name) == parts


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half", "fp16"),
        ("BFloat16", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("UInt8", "uint8"),
        ("FP8", "fp8"),
        ("Int64", "int64"),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_types_are_read_from_formats(text, short):
    assert plan_schema.dtype_of(text) == short


def test_metadata_of_both_separators_and_of_functions():
    assert layer_names.metadata_names("[ONNX Layer: /a]\x1e[ONNX Layer: /b]") == ("/a", "/b")
    assert layer_names.metadata_names("[ONNX Layer: a | f1 (fn)]\x1f[ONNX Layer: b]\x1f[ONNX Layer: a]") == ("a", "b")


# --- ONNX Runtime ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["resnet18", "article", "mobilenet", "encoder"])
def test_onnx_runtime_conserves_nodes(workpieces, name, level):
    run = runtimes.OnnxRuntime(workpieces[name], optimization=level)
    plan = fusion.xray(run)
    books = plan.accounts()
    assert books.balanced and books.complete and not books.split, books
    assert len(plan.kernels) == run.executed.nodes
    if level == "off":
        assert all(len(kernel.nodes) == 1 for kernel in plan.kernels)


def test_onnx_runtime_fuses_by_level(workpieces):
    plans = {level: fusion.xray(runtimes.OnnxRuntime(workpieces["resnet18"], optimization=level)) for level in LEVELS}
    assert not plans["basic"].together("/conv1/Conv", "/Relu") and plans["extended"].together("/conv1/Conv", "/Relu")
    block = ("/layer1/layer1.0/conv2/Conv", "/layer1/layer1.0/Add", "/layer1/layer1.0/Relu_1")
    assert not plans["extended"].together(*block)
    if not any("nchwc" in kernel.tactic for kernel in plans["all"].kernels):
        pytest.skip("this processor has no vector layout in ONNX Runtime")
    assert plans["all"].together(*block)
    copies = plans["all"].inserted
    assert [k.layer_type for k in copies] == ["ReorderOutput"] and not plans["extended"].inserted


def test_gelu_and_skip_normalization_are_seen_whole(workpieces):
    plan = fusion.xray(runtimes.OnnxRuntime(workpieces["encoder"], optimization="extended"))
    gelu = plan.kernel_of("/layers/layers.0/Erf")
    assert gelu.layer_type == "BiasGelu" and [n.rsplit("/")[-1] for n in gelu.nodes] == [
        "Add",
        "Div",
        "Erf",
        "Add_1",
        "Mul",
        "Mul_1",
    ]
    norm = plan.kernel_of("/layers/layers.0/norm1/LayerNormalization")
    older = onnxruntime.__version__.startswith("1.23.")  # the last for Python 3.10 leaves the sum before this one alone
    assert norm.layer_type == ("LayerNormalization" if older else "SkipLayerNormalization")
    assert len(norm.nodes) == (1 if older else 3) and norm.precision_in == "fp32"


def test_a_second_reader_is_seen_to_forbid_fusion(tmp_path):
    w = np.full((4, 3, 3, 3), 0.1, np.float32)
    nodes = [("c", "Conv", ["x", "w"], ["y"], {}), ("r", "Relu", ["y"], ["z"], {})]
    alone = onnx_file(tmp_path / "a.onnx", nodes, [("x", [1, 3, 8, 8])], [("z", [1, 4, 6, 6])], {"w": w})
    read = onnx_file(
        tmp_path / "b.onnx", nodes, [("x", [1, 3, 8, 8])], [("z", [1, 4, 6, 6]), ("y", [1, 4, 6, 6])], {"w": w}
    )
    assert fusion.xray(runtimes.OnnxRuntime(alone, optimization="extended")).together("c", "r")
    assert not fusion.xray(runtimes.OnnxRuntime(read, optimization="extended")).together("c", "r")


def test_identities_twins_and_dead_ends_are_named_not_guessed(tmp_path):
    nodes = [
        ("e1", "Exp", ["x"], ["a"], {}),
        ("e2", "Exp", ["x"], ["b"], {}),
        ("s", "Sin", ["b"], ["c"], {}),
        ("i", "Identity", ["a"], ["d"], {}),
        ("m", "Add", ["c", "d"], ["y"], {}),
        ("dead", "Cos", ["x"], ["nobody"], {}),
        ("k", "Constant", [], ["unused"], {"value_float": 1.0}),
    ]
    graph = onnx_file(tmp_path / "g.onnx", nodes, [("x", [4])], [("y", [4])])
    run = fusion.xray(runtimes.OnnxRuntime(graph, optimization="basic")).accounts()
    assert run.balanced and run.complete
    twin = ({"e1", "e2"} & set(run.removed)).pop()
    assert run.removed[twin] == f"computes the same as {'e2' if twin == 'e1' else 'e1'}"
    books = fusion.xray({"Layers": ["e1", "s", "m"]}, graph=graph).accounts()
    assert books.balanced and books.complete and books.removed["e2"] == "computes the same as e1"
    assert books.removed["dead"] == "nobody reads its result" and books.removed["i"] == "hands its input on unchanged"
    assert books.folded["k"].startswith("hangs on constants alone")


def test_accounts_do_not_close_when_a_kernel_is_withheld(workpieces):
    plan = fusion.xray(runtimes.OnnxRuntime(workpieces["article"], optimization="off"))
    broken = copy.copy(plan)
    object.__setattr__(broken, "kernels", plan.kernels[1:])
    books = broken.accounts()
    assert books.unplaced == plan.kernels[0].nodes and not books.complete and books.balanced


def test_quantized_graph_books_scales(tmp_path):
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": np.full((4, 3, 3, 3), 0.1, np.float32)}
    nodes = [
        ("q", "QuantizeLinear", ["x", "s", "z"], ["xq"], {}),
        ("d", "DequantizeLinear", ["xq", "s", "z"], ["xd"], {}),
        ("qw", "QuantizeLinear", ["w", "s", "z"], ["wq"], {}),
        ("dw", "DequantizeLinear", ["wq", "s", "z"], ["wd"], {}),
        ("c", "Conv", ["xd", "wd"], ["y"], {}),
    ]
    graph = onnx_file(tmp_path / "q.onnx", nodes, [("x", [1, 3, 8, 8])], [("y", [1, 4, 6, 6])], weights)
    plan = fusion.xray({"Layers": ["q", "w + qw + c"]}, graph=graph)
    books = plan.accounts()
    assert books.balanced and books.complete
    assert books.moved == {"d": "its scale went into the kernels beside it"} and set(books.folded) == {"dw"}
    assert plan.kernel_of("c").nodes == ("qw", "c")


# --- times -------------------------------------------------------------------------------------------------------


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
    with pytest.raises(BadInput, match="runs=0; give a whole number, 1 or more"):
        fusion.profile(object(), None, runs=0)


# --- what comes in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: the inspector gave no text, or the copy was cut off"),
        ('{"Layers": [{"Name": "a', r"cut off or damaged JSON \(23 characters; "),
        ('{"a": 1}', r"no \"Layers\": its keys are \['a'\]; expected engine inspector JSON of TensorRT 8.6, 10 or 11"),
        ('{"Layers": []}', "lists no layers: the engine was built with ProfilingVerbosity.NONE"),
        ('[{"count": 2}]', "lists no layers: the engine was built with ProfilingVerbosity.NONE"),
        ('{"Layers": {"a": 1}}', r"\"Layers\" is a dict; expected a list of layers"),
        ('{"Layers": [7]}', "layer 0 is 7; expected a layer's name, or its record"),
        (
            '{"Layers": [{"name": "a", "op": "Conv"}]}',
            r"layer 0 is \['name', 'op'\]; expected a layer's name, or its record with \"Name\"",
        ),
        (
            '[{"count": 2}, {"name": "a", "timeMs": 3.0}]',
            "is a profile .names and times., not a plan; pass it as profile=",
        ),
        (
            '{"Layers": [{"Name": "a", "Inputs": "x"}]}',
            r"\"Inputs\" of layer 0 \('a'\) is a str; expected a list of tensors",
        ),
        ('{"Layers": [{"Name": "a", "Outputs": [3]}]}', "a tensor of layer 0 is 3; expected a record with"),
        (
            "Layer: conv1\nLayer: conv2",
            "is not JSON: it begins 'Layer: conv1.*ask the inspector for LayerInformationFormat.JSON",
        ),
    ],
)
def test_foreign_and_damaged_plans_are_named(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(LabError, match=message):
        fusion.xray(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ftrt\x00\x01", "it is a serialized engine: open it with build.load"),
        (b"\x08\x08\x12pytorch", "it is an ONNX file: pass it as graph="),
        (b"<!DOCTYPE html>", "it is an HTML or XML page"),
        (b"\xff\xfe\x00", "is not text; expected the inspector's JSON"),
    ],
)
def test_other_files_are_named(tmp_path, data, message):
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        fusion.xray(path)


def test_a_missing_file_and_an_odd_object_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere.json: no such file \(looked in "):
        fusion.xray(tmp_path / "nowhere.json")
    with pytest.raises(BadInput, match="source is a int; expected an Engine, a recorded plan, the inspector's JSON"):
        fusion.xray(3)
    with pytest.raises(BadInput, match="graph is a float; pass an export.OnnxGraph"):
        fusion.xray(["a"], graph=1.5)
    with pytest.raises(BadInput, match=r"not one that NodeGraph.as_dict\(\) wrote: it has"):
        fusion.xray({"Layers": ["a"], "Graph": {"nodes": [1]}})


def test_a_plan_of_another_network_is_refused(block, workpieces):
    with pytest.raises(
        BadInput,
        match=r"was not built from this graph: it names '/conv1/Conv', and the graph has nodes such as .*"
        r"\(0 of 11 names match\)",
    ):
        fusion.xray(synthetic("trt10"), graph=workpieces["mobilenet"])
    executed = runtimes.OnnxRuntime(workpieces["article"]).executed
    with pytest.raises(BadInput, match="was not made from this graph: no tensor name of the one is in the other"):
        fusion.xray(executed, graph=block)
    with pytest.raises(BadInput, match="to see what ONNX Runtime made of which nodes, pass the original too: graph="):
        fusion.xray(executed)


def test_an_engine_that_nobody_could_open_says_so():
    engine = SimpleNamespace(sidecar={}, layers=[], name="tiny")
    with pytest.raises(NotAvailable, match="tiny has no layer records: it was built where no GPU could open it"):
        fusion.xray(engine)


def test_engines_lists_texts_and_recordings_read_alike(block, tmp_path):
    plan = synthetic("trt10")
    sources = [plan, plan["Layers"], json.dumps(plan), SimpleNamespace(sidecar={}, layers=plan["Layers"], name="e")]
    (tmp_path / "p.json").write_text(json.dumps(plan))
    (tmp_path / "r.json").write_text(json.dumps({"machine": {"gpu": "x"}, "plan": plan}))
    nodes = {
        tuple(k.nodes for k in fusion.xray(source, graph=block).kernels)
        for source in [*sources, tmp_path / "p.json", tmp_path / "r.json"]
    }
    assert len(nodes) == 1


def test_control_characters_of_8_6_are_read():
    assert fusion.xray('{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}]}').kernels[
        0
    ].nodes == ("a", "b")


def test_a_dump_holds_all_that_the_xray_needs(block, tmp_path):
    text = fusion.dump(synthetic("trt11"), graph=block, profile={"/conv1/Conv + /relu1/Relu": 2.0})
    plan = fusion.xray(text)
    assert plan.accounts().balanced and plan.kernel_of("/conv1/Conv").time_ms == 2.0 and plan.schema == "11"
    with pytest.raises(RecordingError):
        recordings.save_plan("bad name", text, tmp_path)
    assert recordings.save_plan("block", text).plan["Graph"]["nodes"]


def test_an_unknown_node_is_answered_with_near_ones(real):
    with pytest.raises(
        BadInput, match=r"the graph has no node 'layer4.1/conv2'; close are \['/layer4/layer4.1/conv2/Conv'\]"
    ):
        real.kernel_of("layer4.1/conv2")


def test_nodes_without_names_are_called_as_tensorrt_calls_them(tmp_path):
    import onnx

    graph = onnx_file(
        tmp_path / "g.onnx", [("", "Exp", ["x"], ["y"], {}), ("", "Sin", ["y"], ["z"], {})], [("x", [4])], [("z", [4])]
    )
    assert [n.name for n in onnx_nodes.nodes_of(graph).nodes] == ["node_of_y", "node_of_z"]
    assert onnx_nodes.nodes_of(onnx.load(str(graph.path))).as_dict()["outputs"] == ["z"]
    assert fusion.xray(runtimes.OnnxRuntime(graph, optimization="off")).accounts().complete


# --- two plans ---------------------------------------------------------------------------------------------------


def test_diff_finds_regrouping_types_and_tactics(real, workpieces):
    graph = workpieces["resnet18"]
    ours, theirs = fusion.xray(runtimes.OnnxRuntime(graph)), fusion.xray(recordings.load_plan(REAL), graph=graph)
    found = fusion.diff(ours, theirs)
    # ONNX Runtime adds the shortcut in the main branch's convolution, TensorRT in the shortcut's
    assert len(found.regrouped) == 3 and len(found.same) == 17 and len(found.retyped) == 17
    before, after = found.regrouped[0]
    assert [k.nodes[-1] for k in before] == ["/layer2/layer2.0/downsample/downsample.0/Conv", "/layer2/layer2.0/Relu_1"]
    assert found.only_before == ("/Flatten",) and found.only_after == ()
    assert "3 groups fused differently" in repr(found) and len(found.table()) == 20


def test_diff_of_a_plan_with_itself_is_empty(real):
    found = fusion.diff(real, real)
    assert (
        not found.regrouped
        and not found.retyped
        and not found.retuned
        and len(found.same) == 23
        and len(found.table()) == 0
    )


def test_diff_refuses_strangers(real, workpieces):
    with pytest.raises(BadInput, match="have no ONNX node in common; compare plans of one graph"):
        fusion.diff(real, fusion.xray(runtimes.OnnxRuntime(workpieces["encoder"])))
    with pytest.raises(BadInput, match=r"after is a dict; diff\(\) takes two results of fusion.xray\(\)"):
        fusion.diff(real, {})


# --- pictures ----------------------------------------------------------------------------------------------------


def test_drawing_shows_every_node_and_kernel(real):
    picture = fusion.draw(real)
    svg = picture.svg()
    assert len(re.findall(r">(?:Conv|Relu|Add|MaxPool|GlobalAveragePool|Flatten|Gemm)\b[^<]*<", svg)) == 49
    assert len(re.findall(r">conv fp16", svg)) == 20 and len(re.findall(r">copy ", svg)) == 2
    assert picture.text.startswith("resnet18_b32.fp16, before and after: 49 ONNX nodes = 48 in 23 kernels + 1 removed")
    assert len(picture._repr_png_()) < 60_000 and picture._repr_png_()[:4] == b"\x89PNG"


def test_drawing_of_two_hundred_nodes_stays_small_and_whole(tmp_path):
    count = 200
    nodes = [
        (f"/n{i}/Relu" if i % 2 else f"/n{i}/Exp", "Relu" if i % 2 else "Exp", [f"t{i}"], [f"t{i + 1}"], {})
        for i in range(count)
    ]
    graph = onnx_file(tmp_path / "long.onnx", nodes, [("t0", [4])], [(f"t{count}", [4])])
    pairs = [" + ".join(name for name, *_ in nodes[i : i + 2]) for i in range(0, count, 2)]
    picture = fusion.draw(fusion.xray({"Layers": pairs}, graph=graph))
    assert len(re.findall(r">(?:Exp|Relu)\b[^<]*<", picture.svg())) == count and len(picture._repr_png_()) < 60_000
    width, height = picture.figure.get_size_inches()
    assert width <= 11 and height <= 16


def test_drawing_of_mobilenet_fits_a_notebook_and_keeps_the_kinds_apart(workpieces):
    from io import BytesIO

    from PIL import Image

    from labsupport.fusion.canvas import STYLES

    run = runtimes.OnnxRuntime(workpieces["mobilenet"])
    times = fusion.profile(run, np.zeros((1, 3, 32, 32), np.float32), runs=1, warmup=0)
    plan = fusion.xray(run, profile=times)
    png = fusion.draw(plan)._repr_png_()
    assert len(png) < 60_000
    colours = {colour for _, colour in Image.open(BytesIO(png)).convert("RGB").getcolors(256)}
    kinds = {kernel.kind for kernel in plan.kernels} & set(STYLES)
    assert {tuple(bytes.fromhex(STYLES[kind][0][1:])) for kind in kinds} <= colours


def test_drawing_joins_kernels_through_what_does_not_run():
    """The merged matmul reaches its three copies through a no-op, and they the pointwise kernel through others."""
    from labsupport.fusion.before_after import _links

    plan = recorded("sibling_matmuls.fp16")
    names = {kernel.name: kernel.kind for kernel in plan.launched}
    links = {(names[a], names[b]): n for n, (a, b) in enumerate(sorted(_links(plan.kernels, names)))}
    assert set(links) == {("layout", "matmul"), ("matmul", "layout"), ("layout", "pointwise"), ("pointwise", "layout")}


def test_drawing_marks_what_is_inferred_moved_or_unplaced(block):
    region = fusion.draw(fusion.xray(synthetic("trt8.6_region"), graph=block)).svg()
    assert (
        region.count("  ?<") == 4
        and "? = inferred" in region
        and "4 nodes folded, not drawn" in region
        and ">moved<" in region
    )
    names = ["/left/Conv || /right/Conv", "/tail/Conv", "/act/Sigmoid + /act/Mul"]
    assert ">unplaced: nobody names it<" in fusion.draw(fusion.xray(names, graph=block)).svg()


def test_drawing_keeps_an_edge_that_runs_up_the_page(block):
    """A region around a kernel in its middle reads what stands below it; the arrow is drawn upwards, not lost."""
    layers = [
        "/conv1/Conv + /relu1/Relu + /act/Mul",
        "/left/Conv || /right/Conv",
        "/tail/Conv + /add/Add + /act/Sigmoid",
    ]
    down = fusion.draw(fusion.xray({"Layers": [layers[0].replace(" + /act/Mul", ""), *layers[1:]]}, graph=block))
    both = fusion.draw(fusion.xray({"Layers": layers}, graph=block))
    heads = [
        sum(bool(text.arrow_patch) for text in d.figure.axes[0].texts if hasattr(text, "arrow_patch"))
        for d in (down, both)
    ]
    assert heads[1] > heads[0]


def test_drawing_is_saved_as_svg_or_png(real, tmp_path):
    picture = fusion.draw(real)
    assert picture.save(tmp_path / "a" / "plan.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert picture.save(tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(
        BadInput, match="plan.gif ends in '.gif'; a drawing is saved as .svg .opens at any size. or .png"
    ):
        picture.save(tmp_path / "plan.gif")


def test_time_bar_adds_up_the_rest(real):
    bar = fusion.time_bar(real, top=3)
    assert (
        "conv1/Conv +1 0.0644 (convolution, 12%)" in bar.text
        and "22 others" in bar.text
        and "copy for conv1/Conv" in fusion.time_bar(real).text
    )


def test_pictures_refuse_what_they_cannot_show(block):
    plan = fusion.xray(synthetic("layer_names"))
    with pytest.raises(BadInput, match="read without its ONNX graph, so there is no 'before' to draw; pass graph="):
        fusion.draw(plan)
    with pytest.raises(BadInput, match="has no times; pass profile=fusion.profile"):
        fusion.time_bar(plan)
    with pytest.raises(BadInput, match="top=0; give a whole number of bars, 1 or more"):
        fusion.time_bar(fusion.xray(synthetic("trt10"), graph=block, profile={"/tail/Conv + /add/Add": 1.0}), top=0)
