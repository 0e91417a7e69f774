"""Plans that engines really had: every ONNX node accounted for, in kernels whose own parameters agree."""

from __future__ import annotations

import copy

import pytest
from plan_samples import BARE, EVERY, REAL, recorded, records_of

from labsupport import fusion, recordings
from labsupport.errors import BadInput


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
