"""Fixtures that more than one file of these tests uses."""

from __future__ import annotations

import pytest
from protocol_stand_ins import KINDS, on_gpu

from labsupport import build, environment, export, models, runtimes


@pytest.fixture(scope="module")
def workpiece(tmp_path_factory):
    model = models.article_cnn()
    folder = tmp_path_factory.mktemp("runtimes")
    graph = export.to_onnx(model, model.example_input(2), target=environment.generation(), path=folder / "cnn.onnx")
    return model, graph


@pytest.fixture(scope="module")
def engine(workpiece, tmp_path_factory):
    if not on_gpu:
        pytest.skip("needs a GPU that TensorRT runs on")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABSUPPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield build.engine(workpiece[1], precision="fp32", batch=(1, 4, 8))


@pytest.fixture(params=KINDS)
def run(request, workpiece):
    model, graph = workpiece
    make = {
        "torch": lambda: runtimes.Torch(model),
        "torch graph": lambda: runtimes.Torch(model, cuda_graph=True),
        "onnxruntime": lambda: runtimes.OnnxRuntime(graph),
        "tensorrt": lambda: runtimes.TensorRt(request.getfixturevalue("engine")),
        "tensorrt graph": lambda: runtimes.TensorRt(request.getfixturevalue("engine"), cuda_graph=True),
    }
    with make[request.param]() as made:
        yield made
