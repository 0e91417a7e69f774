"""One contract for every runtime, and every way to feed it wrongly."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx_files import node, saved, value

from labsupport import environment, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.runtimes import onnx_runtime
from labsupport.runtimes.trt_tensors import narrowed


@pytest.fixture(scope="module")
def expected(workpiece):
    model = workpiece[0]
    x = model.example_input(4)
    with torch.inference_mode():
        return x, model(x)


def test_the_contract(run, expected):
    x, y = expected
    assert isinstance(run, runtimes.Runtime) and run.name
    assert list(run.inputs) == ["images"] and run.inputs["images"].dtype == "float32"
    for feed in (x.numpy(), {"images": x.numpy()}):
        out = run(feed)
        assert list(out) == ["logits"] and isinstance(out["logits"], np.ndarray)
        np.testing.assert_allclose(out["logits"], y.numpy(), atol=2e-4)
    tensors = run({"images": x.to(run.device)})
    assert isinstance(tensors["logits"], torch.Tensor) and tensors["logits"].device.type == run.device


@pytest.mark.parametrize("made", [np.array, torch.tensor])
def test_token_ids_are_narrowed_where_they_fit(made):
    """TensorRT 8.6 has no INT64."""
    spec, least, most = runtimes.TensorSpec((None,), "int32"), -(2**31), 2**31 - 1
    narrow = narrowed(made([least, 7, most]), spec)
    assert str(narrow.dtype).removeprefix("torch.") == "int32" and narrow.tolist() == [least, 7, most]
    assert int(narrowed(made(most), spec)) == most and narrowed(made([], dtype=made([1]).dtype), spec).shape == (0,)
    for number in (most + 1, least - 1, 2**63 - 1, -(2**63)):
        with pytest.raises(BadInput, match="beyond 32 bits"):
            narrowed(made([1, number]), spec)
        assert narrowed(made([number]), runtimes.TensorSpec((None,), "int64"))[0] == number


@pytest.mark.parametrize("code, cuts_off", [(0, True), (1, False)])
def test_a_release_that_makes_0_of_nine_tenths_cuts_off(code, cuts_off, monkeypatch):
    answering = SimpleNamespace(run=lambda names, feed: [np.array([code], np.int8)])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: answering)
    assert onnx_runtime._cuts_off_half.__wrapped__() is cuts_off


def test_outputs_are_new_with_every_call(run, expected):
    x, _ = expected
    first = run(x.numpy())["logits"]
    kept = first.copy()
    run(x.flip(0).contiguous().numpy())
    np.testing.assert_array_equal(first, kept)


def test_the_batch_is_free(run, expected):
    x, y = expected
    for n in (1, 3, 4, 1):
        np.testing.assert_allclose(run(x[:n].contiguous().numpy())["logits"], y[:n].numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: {"pictures": x}, r"was fed \['pictures'\]; it wants exactly \['images'\]"),
        (lambda x: {"images": x, "more": x}, "it wants exactly"),
        (lambda x: {"images": x, 1: x}, r"was fed \[1, 'images'\]; it wants exactly \['images'\]"),
        (lambda x: x[:, :, :20], r"has shape \(4, 1, 20, 28\); the network wants \(any, 1, 28, 28\)"),
        (lambda x: x[0], "has shape"),
        (lambda x: x.astype(np.float64), r"is float64; the network wants float32: convert it with .astype"),
        (lambda x: x.astype(np.uint8), "is uint8; the network wants float32"),
        (lambda x: x[:0], "is empty"),
        (lambda x: np.where(x == x.max(), np.nan, x).astype(np.float32), "holds NaN or infinity"),
        (lambda x: np.full_like(x, np.inf), "holds NaN or infinity"),
        (lambda x: x.tolist(), "is a list; pass a NumPy array or a torch tensor"),
        (lambda x: None, "is a NoneType; pass a NumPy array"),
    ],
)
def test_a_wrong_feed_is_told_what_was_wanted(run, expected, spoil, message):
    with pytest.raises(BadInput, match=message):
        run(spoil(expected[0].numpy()))
    run(expected[0].numpy())  # and the runtime still works


def test_minus_infinity_is_what_a_mask_holds(tmp_path):
    nodes = [node("Add", ["s", "mask"], "m", "add"), node("Softmax", ["m"], "y", "softmax")]
    made = saved(tmp_path, nodes, [value("s", [2, 3]), value("mask", [2, 3])], [value("y", [2, 3])], name="mask")
    mask = np.array([[0, -np.inf, 0], [-np.inf, 0, -np.inf]], np.float32)
    answer = runtimes.OnnxRuntime(made)({"s": np.zeros((2, 3), np.float32), "mask": mask})["y"]
    np.testing.assert_allclose(answer, [[0.5, 0, 0.5], [0, 1, 0]])
    for array in (-mask, torch.from_numpy(-mask)):
        with pytest.raises(BadInput, match="'mask' holds NaN or infinity"):
            runtimes.OnnxRuntime(made)({"s": np.zeros((2, 3), np.float32), "mask": array})


def test_a_closed_runtime_says_so(run, expected):
    run.close()
    run.close()
    with pytest.raises(LabError, match="was closed and its memory freed"):
        run(expected[0].numpy())


def test_onnx_runtime_levels_and_threads(workpiece):
    graph = workpiece[1]
    off, full = (runtimes.OnnxRuntime(graph, optimization=level).executed for level in ("off", "all"))
    assert full.nodes < off.nodes == graph.nodes
    with pytest.raises(BadInput, match="'max' is not known; choose one of"):
        runtimes.OnnxRuntime(graph, optimization="max")
    with pytest.raises(BadInput, match="threads=0"):
        runtimes.OnnxRuntime(graph, threads=0)


def test_onnx_runtime_names_the_operator_it_has_not(tmp_path):
    import onnx

    operator = onnx.helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    ends = [value("x", [1, 4])], [value("y", [1, 4])]
    odd = saved(tmp_path, [operator], *ends, domains=[("com.example", 1)], name="odd")
    with pytest.raises(BadInput, match="ONNX Runtime cannot load odd.onnx.*(Frobnicate|com.example)"):
        runtimes.OnnxRuntime(odd)


def test_torch_leaves_the_module_alone_and_knows_half(workpiece):
    model = workpiece[0]
    run = runtimes.Torch(model, dtype="bfloat16")
    assert next(model.parameters()).dtype == torch.float32 and run.inputs["images"].dtype == "bfloat16"
    assert run(model.example_input(2).bfloat16())["logits"].dtype == torch.bfloat16


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a processor writes C++")
def test_a_compiled_rival_has_its_weights_frozen(monkeypatch):
    from torch import nn
    from torch._inductor import config, freezing

    kept, freeze = [], freezing.freeze

    def spy(traced, graph, inputs):
        frozen, preserved = freeze(traced, graph, inputs)
        kept.append((len(preserved), [str(node.target) for node in frozen.graph.nodes]))
        return frozen, preserved

    monkeypatch.setattr(freezing, "freeze", spy)
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    nn.init.uniform_(block[1].running_var, 0.5, 2)
    block.example_input = lambda: torch.randn(1, 3, 8, 8)  # type: ignore[assignment]
    x = torch.randn(2, 3, 8, 8)
    with config.patch(freezing=config.freezing):  # put back afterward; monkeypatch would delete it
        got = runtimes.Torch(block, device="cpu", compiled="default", channels_last=True)(x)["output"]
    torch.testing.assert_close(got, block(x).detach(), atol=1e-5, rtol=1e-4)
    ((inputs, operations),) = kept
    assert inputs == 1, "weights are still inputs of the compiled graph"
    assert not any("rsqrt" in name or "batch_norm" in name for name in operations)


def test_buffers_are_ordinary_tensors_in_inference_mode_too(workpiece):
    run = runtimes.Torch(workpiece[0], device="cpu")
    with torch.inference_mode():  # torch.compile compiles once for each of the two kinds, which takes minutes
        buffers = run.static({"images": torch.zeros(2, 1, 28, 28, dtype=torch.float16)})
        run.device = "meta"
        moved = run._moved(torch.ones(3))
    assert moved.device.type == "meta" and moved.shape == (3,)
    assert not buffers["images"].is_inference() and not moved.is_inference()
    assert (buffers["images"].shape, buffers["images"].dtype) == ((2, 1, 28, 28), torch.float16)


def test_torch_reads_a_flipped_array(workpiece, expected):
    x, _ = expected
    flipped = x.numpy()[..., ::-1]
    assert flipped.strides[-1] < 0
    with torch.inference_mode():
        wanted = workpiece[0](x.flip(-1)).numpy()
    np.testing.assert_allclose(runtimes.Torch(workpiece[0], device="cpu")(flipped)["logits"], wanted, atol=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "foo"}, r"dtype='foo' is not known; choose one of \['float32', 'float16', 'bfloat16', 'float64'\]"),
        ({"dtype": torch.float16}, "dtype=torch.float16 is of the kind dtype; wanted text such as 'float32'"),
        ({"dtype": None}, "dtype=None; wanted text such as 'float32'"),
        ({"device": "cuda:0"}, r"device='cuda:0' is not known; choose one of \['cpu', 'cuda'\]"),
        ({"device": "tpu"}, "device='tpu'; wanted 'cpu', 'cuda'"),
        ({"compiled": "nope"}, "compiled='nope' is not known; choose one of .*'max-autotune'"),
        ({"compiled": True}, "compiled=True; wanted text, or None"),
    ],
)
def test_torch_names_the_choices(workpiece, options, message):
    with pytest.raises(BadInput, match=message):
        runtimes.Torch(workpiece[0], **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            torch.nn.Linear(3, 2),
            r"Linear has no example_input\(\) that returns a tensor; give it one: module.example_input = lambda",
        ),
        ("network", "Torch got a str; it wants a torch.nn.Module"),
        (None, "Torch got a NoneType; it wants a torch.nn.Module"),
    ],
)
def test_torch_needs_a_module_that_knows_its_input(model, message):
    with pytest.raises(BadInput, match=message):
        runtimes.Torch(model)


def test_the_advice_on_example_input_works():
    module = torch.nn.Linear(3, 2)
    module.example_input = lambda: torch.randn(1, 3)
    assert runtimes.Torch(module, device="cpu")(np.zeros((4, 3), np.float32))["output"].shape == (4, 2)


@pytest.mark.parametrize("call", ["bind", "enqueue", "fetch"])
def test_torch_on_the_cpu_has_no_queue(workpiece, expected, call):
    run = runtimes.Torch(workpiece[0], device="cpu")
    arguments = [expected[0]] if call == "bind" else []
    with pytest.raises(
        NotAvailable, match=rf"{call}\(\) works on a GPU's queue, and torch runs on the CPU; call run\(feed\)"
    ):
        getattr(run, call)(*arguments)


@pytest.mark.parametrize("call", ["enqueue", "fetch"])
def test_torch_says_when_no_feed_is_bound(workpiece, call):
    run = runtimes.Torch(workpiece[0], device="cpu")
    run.device = "cuda"  # the check comes before anything touches the GPU
    with pytest.raises(LabError, match=rf"{call}\(\) found no feed in torch: .* bind\(feed\) was not called before"):
        getattr(run, call)()


@pytest.mark.skipif(environment.has("gpu"), reason="says what is missing where there is no GPU")
def test_without_a_gpu_each_gpu_runtime_says_so(workpiece, tmp_path):
    model, graph = workpiece
    with pytest.raises(NotAvailable, match="no GPU here; leave cuda_graph out"):
        runtimes.Torch(model, cuda_graph=True)
    with pytest.raises(NotAvailable, match="PyTorch cannot use a GPU here"):
        runtimes.Torch(model, device="cuda")
    with pytest.raises(NotAvailable):
        runtimes.TensorRt(tmp_path / "any.plan")
    assert isinstance(runtimes.best(model, graph), runtimes.OnnxRuntime)
