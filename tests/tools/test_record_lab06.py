"""The tool that records lab 06's long measurements: equal conditions, and no time of a wrong answer."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faces import stand_in
from tool_scripts import tool_script

from labsupport import benchmarking, environment, quantization, recordings
from labsupport.benchmarking.measurements import Latency, Ratio

SLOW, FAST = Latency("a", "device", (1.2, 1.3), 32, "a GPU"), Latency("b", "device", (1.0, 1.0), 32, "a GPU")
RATIO = Ratio((1.2, 1.3), SLOW, FAST)
CACHE = "TRT-8600-EntropyCalibration2\nimages: 3c010a14\n/conv1/Conv_output_0: 3d5362b0\n"
ANSWER = {"logits": np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)}
FEED = np.zeros((8, 3, 2, 2), np.float32)


class Fake:
    """A runtime that answers with a relative error of ``error``, and says what it was fed and whether it was closed."""

    def __init__(self, name, error=0.0, dtype="float32"):
        self.name, self.error, self.closed = name, error, False
        self.inputs = {"images": SimpleNamespace(dtype=np.dtype(dtype))}

    def __call__(self, feed):
        self.fed = feed
        whole = np.concatenate([ANSWER["logits"]] * 2)
        return {"logits": whole * (1 + self.error)}

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def tool(monkeypatch, tmp_path):
    module = tool_script("record_lab06")
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    monkeypatch.setattr(benchmarking, "paired", lambda *runs, clock: RATIO)
    return module


def recorded(folder):
    file = folder / "06_quantization.json"
    return json.loads(file.read_text())["metrics"] if file.exists() else {}


def test_a_ratio_is_recorded_with_the_error_of_both_int8_engines(tool, tmp_path):
    runs, name = (Fake("old", 0.1), Fake("new", 0.05)), "resnet18_b32.explicit_over_implicit_int8"
    assert tool.record_ratio(recordings.lab(tool.LAB), name, *runs, FEED, ANSWER)[0] is RATIO
    found = recorded(tmp_path)
    assert found.keys() == {name, "resnet18_b32.implicit_relative_error", "resnet18_b32.explicit_relative_error"}
    assert found["resnet18_b32.implicit_relative_error"]["value"] == pytest.approx(0.1, rel=1e-3)
    assert found["resnet18_b32.explicit_relative_error"]["value"] == pytest.approx(0.05, rel=1e-3)
    assert found["resnet18_b32.explicit_relative_error"]["samples"] == 4, "the error is that of the answers compared"
    assert not any(run.closed for run in runs), "whoever made them may go on with them"


def test_against_fp16_the_error_of_int8_is_recorded_and_the_feed_has_the_input_s_type(tool, tmp_path):
    half = Fake("half", 0.001, dtype="float16")
    assert tool.record_ratio(recordings.lab(tool.LAB), "net_b8.int8_over_fp16", half, Fake("int8", 0.2), FEED, ANSWER)
    assert recorded(tmp_path).keys() == {"net_b8.int8_over_fp16", "net_b8.int8_relative_error"}
    assert half.fed.dtype == np.float16


@pytest.mark.parametrize(
    "errors, who",
    [
        ((0.9996, 0.06), "implicit"),
        ((0.1, 0.31), "explicit"),
        ((float("nan"), 0.0), "implicit"),
        ((1.0, 1.0), "implicit and explicit"),
    ],
)
def test_the_time_of_a_wrong_answer_is_not_recorded(tool, tmp_path, capsys, monkeypatch, errors, who):
    monkeypatch.setattr(benchmarking, "paired", lambda *runs, clock: pytest.fail("was timed"))
    runs, name = (Fake("old", errors[0]), Fake("new", errors[1])), "resnet18_b32.explicit_over_implicit_int8"
    assert tool.record_ratio(recordings.lab(tool.LAB), name, *runs, FEED, ANSWER) is None
    assert f"{name}: not recorded, the relative error of {who} is above 0.3" in capsys.readouterr().out
    assert recorded(tmp_path) == {}


def test_both_roads_to_int8_keep_the_fp32_input_and_the_calibrator_gets_whole_batches(tool, tmp_path, monkeypatch):
    built, batches = {}, []

    def calibrator(trt, seen, cache, *, graph):
        batches.extend(seen)
        cache.write_text(CACHE)
        return SimpleNamespace(batches_given=1)

    def runtime(graph, precision, batch, name, **options):
        built[name] = (graph, precision, batch, options)
        return Fake(name)

    monkeypatch.setattr(tool, "pictures", lambda count: torch.full((count, 3, 2, 2), 0.5))
    monkeypatch.setattr(tool, "runtime", runtime)
    monkeypatch.setattr(quantization, "at_batch", lambda graph, batch: graph)
    monkeypatch.setattr(quantization, "entropy_calibrator", calibrator)
    stand_in(monkeypatch, environment, "tensorrt", lambda: None)
    assert tool.against_calibrator(recordings.lab(tool.LAB), "plain", "with Q/DQ", FEED, ANSWER, tmp_path)
    assert built["implicit"][:3] == ("plain", "int8", 32) and built["explicit"] == ("with Q/DQ", "int8", 32, {})
    assert "io_formats" not in built["implicit"][3]
    assert [batch.shape for batch in batches] == [(32, 3, 2, 2)] and batches[0].dtype == np.float32


@pytest.mark.parametrize("refused", [None, "int8_residual"])
def test_the_encoder_is_recorded_place_by_place_and_its_fastest_under_the_name_of_all(
    tool, tmp_path, monkeypatch, refused
):
    from labsupport import errors, runtimes

    built, gains = [], iter((0.75, 1.1, 1.5, 1.3))

    def runtime(graph, precision, batch, name, **options):
        if name.split()[-1] == refused:
            raise errors.BuildError("no kernel for this")
        built.append((name, precision, quantization.placement(graph)))
        return runtimes.OnnxRuntime(graph, name=name)

    def paired(before, after, feed, *, clock):
        gain = next(gains)
        return Ratio((gain, gain), SLOW, FAST)

    monkeypatch.setattr(tool, "runtime", runtime)
    monkeypatch.setattr(
        tool,
        "product_us",
        lambda run, feed: {"int8": 30.0, "fp16": 5.0, "fp32": 100.0 if "weights" in run.name else 0.0},
    )
    monkeypatch.setattr(benchmarking, "paired", paired)
    assert tool.encoder(recordings.lab(tool.LAB), tmp_path, layers=1, hidden=32, heads=4, length=8) is not bool(refused)
    steps = [
        ("fp16", 0, 0),
        ("int8_weights", 6, 0),
        ("int8_attention", 8, 0),
        ("int8_shortcut", 8, 2),
        ("int8_residual", 8, 2),
    ]
    wanted = [step for step in steps if step[0] != refused]
    assert [(name.split()[-1], len(where.quantized), where.residual_adds) for name, _, where in built] == wanted
    assert [precision for _, precision, _ in built] == ["fp16", *["as-is"] * (len(wanted) - 1)]
    found = recorded(tmp_path)
    subject = "encoder_s128_b64."
    assert found[f"{subject}int8_over_fp16"]["value"] == found[f"{subject}int8_shortcut_over_fp16"]["value"] == 1.5
    assert (
        found[f"{subject}int8_relative_error"]["value"] == found[f"{subject}int8_shortcut_relative_error"]["value"] > 0
    )
    assert (
        found[f"{subject}int8_weights_fp32_products_us"]["value"] == 100
        and found[f"{subject}fp16_fp32_products_us"]["value"] == 0
    )
    assert (
        found[f"{subject}int8_weights_products_us"]["value"] == 135
        and found[f"{subject}fp16_products_us"]["value"] == 35
    )
    assert found[f"{subject}fp16_ms"]["value"] == SLOW.median_ms


def test_the_scale_of_the_input_is_read_from_the_cache(tool, tmp_path):
    cache = tmp_path / "a.cache"
    assert np.isnan(tool.input_scale(cache))
    cache.write_text(CACHE)
    assert tool.input_scale(cache) == pytest.approx(1 / 127, rel=1e-3)


def test_a_refused_ratio_makes_the_exit_status_1(tool, monkeypatch):
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    monkeypatch.setattr(tool.sys, "argv", ["record_lab06.py", "resnet18", "encoder", "--here"])
    asked = []
    for done, status in ((True, 0), (False, 1)):
        monkeypatch.setattr(
            tool,
            "WORK",
            {
                "resnet18": lambda book, folder, done=done: asked.append("resnet18") or done,
                "encoder": lambda book, folder: asked.append("encoder") or True,
            },
        )
        with pytest.raises(SystemExit) as stopped:
            tool.main()
        assert stopped.value.code == status
    assert asked == ["resnet18", "encoder"] * 2, "the other parts go on"
