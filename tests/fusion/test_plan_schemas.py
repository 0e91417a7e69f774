"""Every schema of the inspector read into one form, and nothing guessed silently."""

from __future__ import annotations

import copy

import pytest
from plan_samples import synthetic

from labsupport import fusion
from labsupport.errors import BadInput
from labsupport.fusion import layer_names, plan_schema


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
