"""The networks have the published shapes and sizes, are reproducible, export at opset 17 and settle."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

from labsupport import models
from labsupport.errors import BadInput


def weights(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


SMALL = {
    "article_cnn": lambda seed=0: models.article_cnn(seed=seed),
    "resnet18": lambda seed=0: models.resnet18(10, width=8, size=32, seed=seed),
    "resnet50": lambda seed=0: models.resnet50(10, width=8, size=32, seed=seed),
    "mobilenet_v2": lambda seed=0: models.mobilenet_v2(10, width=0.25, size=32, seed=seed),
    "encoder": lambda seed=0: models.encoder(2, 32, 4, 100, positions=64, seed=seed),
    "decoder": lambda seed=0: models.decoder(2, 32, 4, 100, positions=64, seed=seed),
}


@pytest.mark.parametrize(
    "make, published",
    [
        (lambda: models.article_cnn(), 693_962),
        (lambda: models.resnet18(), 11_689_512),  # torchvision's counts
        (lambda: models.resnet50(), 25_557_032),
        (lambda: models.mobilenet_v2(), 3_504_872),
        (lambda: models.decoder(12, 768, 12, 50257, positions=1024), 124_439_808),  # GPT-2 small
        # BERT-base has 109,482,240, of which 590,592 are its pooler and 1,536 its segment table.
        (lambda: models.encoder(12, 768, 12, 30522), 109_482_240 - 590_592 - 1_536),
    ],
)
def test_weight_counts_are_the_published_ones(make, published):
    with torch.device("meta"):  # shapes without memory
        assert weights(make()) == published


def test_layer_names_are_torchvisions():
    names = set(models.resnet50(10, width=8).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.weight", "layer4.2.bn3.bias", "fc.bias"} <= names
    names = set(models.mobilenet_v2(10).state_dict())
    assert {"features.0.0.weight", "features.1.conv.1.weight", "features.18.1.bias", "classifier.1.weight"} <= names


@pytest.mark.parametrize("name", SMALL)
def test_the_example_fits_and_is_named(name):
    model = SMALL[name]()
    example = model.example_input(batch=3, seed=5)
    tokens = example.dtype == torch.int64
    assert model.input_name == ("token_ids" if tokens else "images")
    assert model.output_name == ("hidden_states" if name == "encoder" else "logits")
    assert torch.equal(example, model.example_input(3, 5)) and not torch.equal(example, model.example_input(3, 6))
    assert not model.training
    expected = {"encoder": (3, 32, 32), "decoder": (3, 32, 100)}.get(name, (3, 10))
    with torch.no_grad():
        answer = model(example)
    assert answer.shape == expected and answer.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_seeds_reproduce_weights_and_leave_the_global_state_alone(name):
    before = torch.random.get_rng_state()
    first, again, other = SMALL[name](1), SMALL[name](1), SMALL[name](2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))


def test_another_image_size_and_length_can_be_asked_for():
    assert SMALL["resnet18"]().example_input(2, size=48).shape == (2, 3, 48, 48)
    assert SMALL["encoder"]().example_input(2, length=7).shape == (2, 7)
    assert models.article_cnn(15, channels=3, size=32)(torch.zeros(1, 3, 32, 32)).shape == (1, 15)


def test_the_decoder_never_looks_ahead_and_the_encoder_does():
    for name, sees_later in (("decoder", False), ("encoder", True)):
        model = SMALL[name]()
        ids = model.example_input(1, length=8)
        changed = ids.clone()
        changed[0, 5] = (changed[0, 5] + 1) % model.vocabulary
        with torch.no_grad():
            moved = (model(ids) - model(changed)).abs().amax(dim=(0, 2))
        assert bool((moved[:5] > 0).any()) is sees_later
        assert (moved[5:] > 0).all()


def test_attention_is_pytorchs_attention():
    layer = models.decoder(1, 32, 4, 100).layers[0].attention
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    query, key, value = (layer.split(project(x)) for project in (layer.query, layer.key, layer.value))
    reference = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(layer(x), layer.out(reference.transpose(1, 2).reshape(x.shape)))


def export(model, path, dynamo):
    tokens = model.input_name == "token_ids"
    names = {"input_names": [model.input_name], "output_names": [model.output_name]}
    if dynamo:
        axes = {0: torch.export.Dim("batch"), **({1: torch.export.Dim("sequence")} if tokens else {})}
        torch.onnx.export(
            model,
            (model.example_input(2),),
            path,
            dynamo=True,
            opset_version=17 if tokens else 18,
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
            **names,
        )
    else:
        axes = {0: "batch", **({1: "sequence"} if tokens else {})}
        torch.onnx.export(
            model,
            (model.example_input(2),),
            path,
            dynamo=False,
            opset_version=17,
            dynamic_axes={model.input_name: axes, model.output_name: axes},
            **names,
        )


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ["article_cnn", "resnet18", "mobilenet_v2", "encoder", "decoder"])
def test_both_exporters_keep_batch_and_sequence_free(name, dynamo, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    import onnx

    model, path = SMALL[name](), str(tmp_path / "model.onnx")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(model, path, dynamo)
    assert not [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]  # nothing was baked in
    feed = model.example_input(5, 1, **({"length": 17} if model.input_name == "token_ids" else {}))
    (answer,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {model.input_name: feed.numpy()}
    )
    with torch.no_grad():
        np.testing.assert_allclose(answer, model(feed).numpy(), atol=1e-4)
    if name in ("encoder", "decoder"):
        graph = onnx.load(path)
        operators = [node.op_type for node in graph.graph.node]
        assert graph.opset_import[0].version == 17
        assert operators.count("Softmax") == 2 and operators.count("MatMul") >= 2 * 8


def test_settle_gives_batch_norms_the_statistics_of_the_images():
    model = SMALL["resnet50"]()
    images = 3 + 2 * model.example_input(16)
    before = copy.deepcopy(model.state_dict())
    settled = models.settle(model, images)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not settled.training and not model.training
    first = torch.nn.functional.conv2d(images, model.conv1.weight, stride=2, padding=3)
    torch.testing.assert_close(settled.bn1.running_mean, first.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(settled.bn1.running_var, first.var(dim=(0, 2, 3)))
    with torch.no_grad():
        assert settled.bn1(first).std() == pytest.approx(1, abs=0.05)
        assert settled(images).abs().max() < model(images).abs().max() / 5  # unsettled ones grow layer by layer
    assert settled.bn1.momentum == model.bn1.momentum


def test_settle_keeps_a_network_without_batch_norm_as_it_is():
    model = models.article_cnn()
    images = model.example_input(2)
    assert torch.equal(models.settle(model, images)(images), model(images))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: models.resnet18(0), "classes=0; wanted a whole number of at least 1"),
        (lambda: models.resnet18(width=8.5), "width=8.5; wanted a whole number"),
        (lambda: models.resnet50(seed="a"), "seed='a'; wanted a whole number"),
        (lambda: models.article_cnn(size=3), "size=3; wanted a whole number of at least 4"),
        (lambda: models.mobilenet_v2(width=0), "width=0; for MobileNetV2 it is a factor"),
        (lambda: models.encoder(2, 32, 5), "hidden=32 cannot be shared evenly by heads=5"),
        (lambda: models.decoder(True), "layers=True; wanted a whole number"),
        (lambda: models.article_cnn().example_input(size=32), "size=32, but the dense layer .* made for 28×28"),
        (lambda: models.resnet18(width=8).example_input(0), "batch=0; wanted a whole number of at least 1"),
        (lambda: SMALL["encoder"]().example_input(length=65), "65 tokens came; this network has 64 positions"),
        (lambda: SMALL["decoder"]()(torch.zeros(1, 65, dtype=torch.int64)), "make the network with positions=65"),
        (
            lambda: models.settle(SMALL["resnet18"](), torch.zeros(4, 1, 32, 32)),
            "images of 1 channels came, .* takes 3",
        ),
        (lambda: models.settle(SMALL["resnet18"](), torch.zeros(1, 3, 32, 32)), "at least 2 float images"),
        (
            lambda: models.settle(SMALL["resnet18"](), np.zeros((4, 32, 32, 3), np.uint8)),
            "torch.uint8 of shape .* came",
        ),
        (lambda: models.settle(SMALL["resnet18"](), torch.full((2, 3, 64, 64), torch.nan)), "non-finite activations"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(BadInput, match=message):
        call()
