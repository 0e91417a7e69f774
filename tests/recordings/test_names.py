"""Every recorded metric has a name that a person reads."""

from __future__ import annotations

import json
import re

import pytest

from labsupport.recordings import names, provenance

RECORDED = {
    path: sorted(set(json.loads(path.read_text(encoding="utf-8"))["metrics"]) - set(names.HIDDEN))
    for path in sorted(provenance.ROOT.glob("*-*/*.json"))
}
ABBREVIATIONS = re.compile(r"(?<![\w.])(?:trt|ort|fp16|fp32|tf32|bf16|int8|torch|b\d+|ms|us|cpu|resnet\d*)(?![\w.])|_")


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_name_needs_the_code_to_be_understood(path):
    titles = [names.readable(metric) for metric in RECORDED[path]]
    assert not [title for title in titles if ABBREVIATIONS.search(title)]
    assert len(set(titles)) == len(titles), "two metrics of one lab have the same name"


@pytest.mark.parametrize(
    "metric, title",
    [
        (
            "resnet18_b32.trt_fp16_graph_over_torch_fp16_graph",
            "TensorRT FP16 over PyTorch FP16, both as CUDA graphs (ResNet-18, batch 32)",
        ),
        ("resnet18_b32.torch_compile_ms", "torch.compile (ResNet-18, batch 32)"),
        ("resnet50_b64.int8_relative_error", "Relative error of INT8 (ResNet-50, batch 64)"),
        ("encoder_s128_b8.fp16_ms", "FP16 (encoder, 128 tokens, batch 8)"),
        ("labels240.gain_points", "Accuracy gained by the teacher (240 labels)"),
        ("roads.eager_ms", "PyTorch in eager mode"),
        ("something_new.first_over_second", "First over second (something new)"),
    ],
)
def test_names(metric, title):
    assert names.readable(metric) == title
