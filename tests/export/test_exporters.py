"""Exporting, reading and refusing ONNX files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from labsupport import build, environment, export, models, runtimes
from labsupport.errors import BadInput, LabError


class Block(nn.Module):
    input_name, output_name = "images", "logits"

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.norm, self.dense = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, images):
        return self.dense(torch.relu(self.norm(self.conv(images))).mean((2, 3)))


@pytest.fixture
def images():
    return torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


@pytest.mark.parametrize("exporter", export.EXPORTERS)
def test_both_exporters_keep_names_axes_and_answer(exporter, images, tmp_path):
    model = Block().eval()
    graph = export.to_onnx(model, images, exporter=exporter, path=tmp_path / "block.onnx")
    assert list(graph.inputs) == ["images"] and list(graph.outputs) == ["logits"]
    assert isinstance(graph.inputs["images"][0][0], str), "the batch axis must stay free"
    assert graph.opset == {"torchscript": 17, "dynamo": 18}[exporter]
    bigger = torch.cat([images, images])  # another batch than the one traced
    with torch.inference_mode():
        expected = model(bigger).numpy()
    np.testing.assert_allclose(runtimes.OnnxRuntime(graph)(bigger.numpy())["logits"], expected, atol=1e-5)


def test_the_exporter_is_credited_with_the_batch_norm_it_folded(images):
    folded, written = export.to_onnx(Block(), images), export.to_onnx(Block(), images, fold_batchnorm=False)
    assert folded.ops["BatchNormalization"] == 0 and folded.folded == {"BatchNorm": 1}
    assert written.ops["BatchNormalization"] == 1 and written.folded == {}
    assert "exporter folded BatchNorm×1" in repr(folded)


def test_equal_weights_leave_no_identity_nodes_behind():
    model = models.resnet18(classes=4, width=8, size=32)  # fresh BatchNorms are all alike
    x = model.example_input(2)
    for fold in (True, False):
        graph = export.to_onnx(model, x, fold_batchnorm=fold)
        assert graph.ops["Identity"] == 0
        with torch.inference_mode():
            np.testing.assert_allclose(runtimes.OnnxRuntime(graph)(x.numpy())["logits"], model(x).numpy(), atol=1e-4)


def test_export_leaves_the_module_as_it_was(images):
    model = Block().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export.to_onnx(model, images)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exporter": "fast"}, "'fast' is not known; choose one of"),
        ({"target": "9"}, "'9' is not known"),
        ({"target": "8.6", "exporter": "dynamo"}, "reads opset 17 and below.*use exporter='torchscript'"),
        ({"target": "8.6", "opset": 18}, "opset 18 was asked for, but 8.6 reads 17"),
        ({"opset": "seventeen"}, "opset='seventeen'; wanted a whole number, or None"),
        ({"opset": 8}, "whole number from 9 to 25"),
        ({"dynamic": {"pictures": {0: "n"}}}, r"dynamic names \['pictures'\], but the network has"),
    ],
)
def test_impossible_requests_name_the_way_out(options, message, images):
    with pytest.raises(BadInput, match=message):
        export.to_onnx(Block(), images, **options)


def test_an_example_that_is_no_tensor_is_refused():
    with pytest.raises(BadInput, match="example is .'list'.; the exporter traces tensors"):
        export.to_onnx(Block(), [[1.0]])


def test_a_failed_export_keeps_the_file_that_was_there(images, tmp_path):
    path = tmp_path / "block.onnx"
    export.to_onnx(Block(), images, path=path)
    before = path.read_bytes()

    class Broken(Block):
        def forward(self, images):
            raise ValueError("no such thing")

    with pytest.raises(LabError, match="could not export Broken at opset 17: no such thing"):
        export.to_onnx(Broken(), images, path=path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["block.onnx"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "it is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "a PNG picture"),
        (b"PK\x03\x04" + b"\0" * 99, "a zip archive or a PyTorch checkpoint"),
        (b"\0" * 500, "not an ONNX|no operator nodes"),
        (b"abcdefghij", "not an ONNX|no operator nodes"),
        (os.urandom(64) + b"\xff" * 200, "not an ONNX|no operator nodes"),
    ],
)
def test_what_is_not_onnx_is_said(content, message, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        export.load(path)


def test_a_missing_file_and_a_truncated_file(images, tmp_path):
    with pytest.raises(BadInput, match="nowhere.onnx: no such file"):
        export.load(tmp_path / "nowhere.onnx")
    graph = export.to_onnx(Block(), images, path=tmp_path / "whole.onnx")
    short = tmp_path / "short.onnx"
    short.write_bytes(graph.path.read_bytes()[:-300])
    with pytest.raises(BadInput, match="short.onnx is not"):
        export.load(short)


def test_an_inconsistent_graph_is_refused(tmp_path):
    node = onnx.helper.make_node("Relu", ["nobody"], ["y"])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    path = tmp_path / "dangling.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="not a valid ONNX network.*nobody|not a valid ONNX network"):
        export.load(path)


def test_half_precision_is_a_new_graph(images, tmp_path):
    graph = export.to_onnx(Block(), images, path=tmp_path / "block.onnx")
    half = export.cast(graph)
    assert export.float_type(graph) == "fp32" and export.float_type(half) == "fp16"
    assert graph.path != half.path and half.inputs["images"][1] == "fp32"
    exact, rounded = (runtimes.OnnxRuntime(g)(images.numpy())["logits"] for g in (graph, half))
    assert 0 < abs(exact - rounded).max() < 0.05


def test_unnamed_exports_go_with_the_process(tmp_path):
    import subprocess
    import sys

    code = (
        "import torch\nfrom labsupport import export, models\nm = models.article_cnn()\n"
        "print(export.to_onnx(m, m.example_input()).path)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert said.stdout.strip().endswith(".onnx") and not os.path.exists(said.stdout.strip())


def test_half_precision_touches_no_file_of_the_learner(images, tmp_path):
    graph = export.to_onnx(Block(), images, path=tmp_path / "block.onnx")
    mine = tmp_path / "block.fp16.onnx"
    mine.write_bytes(b"my own")
    half = export.cast(graph)
    assert mine.read_bytes() == b"my own" and half.path.parent != tmp_path


def test_a_bad_model_does_not_take_a_good_ones_place(images, tmp_path):
    graph = export.to_onnx(Block(), images, path=tmp_path / "good.onnx")
    before = graph.path.read_bytes()
    with pytest.raises(BadInput, match="good.onnx"):
        export.save(onnx.ModelProto(), graph.path)
    assert graph.path.read_bytes() == before and os.listdir(tmp_path) == ["good.onnx"]


def test_a_frozen_batch_norm_stays_frozen(images):
    model = Block().train()
    model.norm.eval()
    export.to_onnx(model, images)
    assert model.training and model.conv.training and not model.norm.training


def test_a_path_that_cannot_be_written_is_named(images, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "x.onnx"):
        with pytest.raises(LabError, match="cannot be written"):
            export.to_onnx(Block(), images, path=path)


def test_weights_in_a_second_file_count_and_build(images, tmp_path):
    graph = export.to_onnx(Block(), images, path=tmp_path / "one.onnx")
    apart = tmp_path / "apart.onnx"
    onnx.save(graph.model(), str(apart), save_as_external_data=True, location="apart.bin", size_threshold=0)
    loaded = export.load(apart)
    before = loaded.sha256
    np.testing.assert_allclose(
        runtimes.OnnxRuntime(loaded)(images.numpy())["logits"],
        runtimes.OnnxRuntime(graph)(images.numpy())["logits"],
        atol=1e-6,
    )
    if environment.has("engine building"):
        assert build.parse(loaded)[1].num_layers > 0
    weights = bytearray((tmp_path / "apart.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "apart.bin").write_bytes(weights)
    assert loaded.sha256 != before, "other weights, other identity"


def test_branches_are_left_alone():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            nn.init.zeros_(self.a.bias), nn.init.zeros_(self.b.bias)

        def forward(self, x):
            if bool(x.sum() > 0):
                x = self.a(x)
            else:
                x = self.b(x)
            return x

    graph = export.to_onnx(torch.jit.script(Branch()), torch.ones(2, 4))
    assert graph.ops["If"] == 1


def test_a_network_of_any_number_of_inputs_is_exported(tmp_path):
    class Sums(nn.Module):
        def forward(self, first, *others):
            return first + 2 * sum(others)

    examples = tuple(torch.randn(2, 3) for _ in range(3))
    for exporter in export.EXPORTERS:
        graph = export.to_onnx(Sums(), examples, exporter=exporter, path=tmp_path / f"{exporter}.onnx")
        feed = {name: np.full((5, 3), place, np.float32) for place, name in enumerate(graph.inputs, 1)}
        with runtimes.OnnxRuntime(graph) as run:
            assert (next(iter(run(feed).values())) == 1 + 2 * (2 + 3)).all()


@pytest.mark.parametrize("exporter", export.EXPORTERS)
def test_attention_is_exported_by_its_formula(exporter, tmp_path):
    """In evaluation mode PyTorch computes these by one operator of its own, which no exporter knows."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    x, fast = torch.randn(2, 5, 16), torch.backends.mha.get_fastpath_enabled()
    graph = export.to_onnx(encoder, x, exporter=exporter, path=tmp_path / "net.onnx")
    assert torch.backends.mha.get_fastpath_enabled() == fast
    with runtimes.OnnxRuntime(graph) as run, torch.no_grad():
        torch.testing.assert_close(run(x)["output"], encoder(x), rtol=1e-4, atol=1e-5)


def test_a_failed_export_prints_nothing(tmp_path, capfd):
    with pytest.raises(LabError, match="aten::bilinear"):
        export.to_onnx(nn.Bilinear(3, 4, 5), (torch.zeros(1, 3), torch.zeros(1, 4)), path=tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("exporter", export.EXPORTERS)
@pytest.mark.parametrize("free", [{"input_0": {0: "n"}}, {"input_1": {0: "m"}}, {}])
def test_only_the_axes_that_were_named_are_free(exporter, free, tmp_path):
    class Product(nn.Module):
        def forward(self, x, w):
            return x @ w.T

    graph = export.to_onnx(
        Product(), (torch.randn(2, 3), torch.randn(4, 3)), exporter=exporter, dynamic=free, path=tmp_path / "net.onnx"
    )
    shapes = {name: shape for name, (shape, _) in graph.inputs.items()}
    assert {name: [isinstance(axis, str) for axis in shape] for name, shape in shapes.items()} == {
        name: [name in free, False] for name in ("input_0", "input_1")
    }
