"""Which layers got a sparse kernel, read from logs and plans; the networks of the sweeps; the picture of the staircase."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faces import stand_in

from labsupport import environment, errors, pruning

SAID = [
    ("INFO", "(Sparsity) Found 3 layer(s) eligible to use sparse tactics: conv1, conv2 + relu, gemm"),
    ("INFO", "(Sparsity) Chose 1 layer(s) using sparse tactics: gemm"),
    ("INFO", "Detected 1 inputs and 1 output network tensors."),
]
OLDER = [
    ("INFO", "(Sparsity) Layers eligible for sparse math: Conv_1, Conv_4"),
    ("INFO", "(Sparsity) TRT inference plan picked sparse implementation for layers: Conv_4"),
]
LAYERS = [
    {"Name": "conv1", "TacticName": "sm90_xmma_fprop_implicit_gemm_f16f16_f16f16"},
    {"Name": "gemm", "TacticName": "sm80_xmma_gemm_sparse_f16f16_f16f32"},
    {"Name": "copy"},
    "a name only",
]


@dataclass
class Built:
    log: tuple
    layers: list
    path: Path


@pytest.mark.parametrize(
    "log, eligible, chosen",
    [
        (SAID, ("conv1", "conv2 + relu", "gemm"), ("gemm",)),
        (OLDER, ("Conv_1", "Conv_4"), ("Conv_4",)),
        ([], (), ()),
        ([("INFO", "(Sparsity) Found 0 layer(s) eligible to use sparse tactics:")], (), ()),
    ],
)
def test_the_builders_log_is_read(log, eligible, chosen, tmp_path):
    found = pruning.chosen(Built(tuple(log), LAYERS, tmp_path / "x.plan"))
    assert (found.eligible, found.chosen) == (eligible, chosen)
    assert found.tactics == {"gemm": "sm80_xmma_gemm_sparse_f16f16_f16f32"}
    assert repr(found) == f"sparse kernels: 1; layers that the builder calls eligible: {len(eligible)}"


def test_the_log_of_an_engine_found_again_is_read_from_its_file(tmp_path):
    (tmp_path / "x.log").write_text("\n".join(f"{level:8} {text}" for level, text in SAID), encoding="utf-8")
    assert pruning.chosen(Built((), [], tmp_path / "x.plan")).chosen == ("gemm",)


def test_kernels_are_counted_by_the_gpus_they_were_written_for():
    more = [
        {"TacticName": "sm80_xmma_fprop_sparse_conv_f16f16"},
        {"TacticName": "sm90_xmma_gemm_f16f16_f16f16_f16_tn_n"},
        {"TacticName": None},
        {"TacticName": "sm50_xmma_pooling_coalescedC_NHWC_kMAX_3_False"},
        {"TacticName": "ampere_h16816gemm_64x64_tn"},
        {"TacticName": "matmul_7"},
    ]
    found = pruning.kernel_families([*LAYERS, *more])
    assert list(found.items()) == [("sm80 sparse", 2), ("sm90 dense", 2), ("ampere dense", 1), ("unnamed dense", 1)]
    assert pruning.kernel_families([]) == {}


def test_the_flag_is_set():
    flags = []
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(SPARSE_WEIGHTS="sparse"))
    pruning.with_sparse_kernels(trt, None, None, SimpleNamespace(set_flag=flags.append))
    assert flags == ["sparse"]


@pytest.mark.skipif(not environment.has("engine building"), reason="no TensorRT builds engines here")
def test_the_product_builds(tmp_path, monkeypatch):
    from labsupport import build

    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path))
    weight = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    for form in ("pixels", "image", "matmul"):
        engine = build.engine(
            pruning.gemm(weight, 128, form=form),
            precision="fp16",
            strict=True,
            name=f"product_{form}",
            progress=False,
            configure=pruning.with_sparse_kernels,
        )
        assert engine.precisions["fp16"] and pruning.chosen(engine).tactics == {}


@pytest.mark.parametrize(
    "generation, form, wanted",
    [
        ("8.6", "pixels", np.float32),
        ("8.6", "image", np.float32),
        ("8.6", "matmul", np.float16),
        ("10", "pixels", np.float16),
        ("11", "matmul", np.float16),
    ],
)
def test_the_weights_are_given_as_the_builder_likes_them(monkeypatch, generation, form, wanted):
    given = []
    tensor = SimpleNamespace(name="", dtype=None)
    layer = SimpleNamespace(name="", get_output=lambda place: tensor)
    trt = SimpleNamespace(
        Weights=lambda array=None: given.append(array),
        float16="half",
        MatrixOperation=SimpleNamespace(NONE=0, TRANSPOSE=1),
    )
    network = SimpleNamespace(
        add_input=lambda *a: tensor,
        add_constant=lambda *a: layer,
        add_matrix_multiply=lambda *a: layer,
        add_convolution_nd=lambda *a: layer,
        mark_output=lambda y: None,
    )
    stand_in(monkeypatch, environment, "generation", lambda: generation)
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)
    pruning.gemm(weight, 64, form=form)(trt, network)
    assert given[0].dtype == wanted and (given[0].reshape(8, 4) == weight).all()


def test_a_product_that_is_none_is_refused():
    with pytest.raises(errors.BadInput, match=r"a weight of shape \(3,\) and rows=64 came; wanted are a matrix"):
        pruning.gemm(np.ones(3), 64)
    with pytest.raises(errors.BadInput, match="rows=0 came"):
        pruning.gemm(np.ones((4, 4)), 0)
    with pytest.raises(
        errors.BadInput, match=r"form='conv' is not known; choose one of \['pixels', 'image', 'matmul'\]"
    ):
        pruning.gemm(np.ones((4, 4)), 64, form="conv")
    with pytest.raises(errors.BadInput, match="rows=65; as an image they are 64 to a line"):
        pruning.gemm(np.ones((4, 4)), 65, form="image")


def test_the_dense_product_of_the_torch_module_is_a_linear_layer():
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)
    module = pruning.product(weight, 3, sparse=False).float()
    x = module.example_input()
    assert x.shape == (3, 4) and torch.allclose(module(x), x @ torch.from_numpy(weight).float().T, atol=1e-5)
