"""Four trained networks of different kinds, which the tests of this room share."""

from __future__ import annotations

import pytest
import torch

from labsupport import data, export, models, training


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """name → (graph, calibration batches, test feed); a few epochs, because an untrained net amplifies any noise."""
    torch.set_num_threads(1)
    folder, found = tmp_path_factory.mktemp("onnx"), {}
    signs, digits = data.road_signs(64, per_class=20), data.mnist()
    encoder = models.encoder(2, 64, 2, 128)
    tokens = encoder.example_input(24).numpy()
    found["encoder"] = (encoder, tokens[:16], tokens[16:])
    for name, model, split in [
        ("article CNN", models.article_cnn(), digits.train.take(512)),
        ("MobileNetV2", models.mobilenet_v2(15, width=0.25, size=64), signs.train),
        ("ResNet-18", models.resnet18(15, width=16, size=64), signs.train),
    ]:
        test = digits.test.take(64) if name == "article CNN" else signs.test
        trained = training.fit(model, split, epochs=3, batch_size=32, progress=False).model
        found[name] = (trained, data.preprocess(split.images[:64]), data.preprocess(test.images))
    graphs = {}
    for name, (model, calibration, test) in found.items():
        graph = export.to_onnx(model, model.example_input(2), opset=17, path=folder / f"{name.replace(' ', '-')}.onnx")
        graphs[name] = (graph, [calibration[:8], calibration[8:]], test)
    return graphs


@pytest.fixture(scope="session")
def cnn(bench):
    return bench["article CNN"]
