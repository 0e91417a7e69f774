"""The tool that records lab 07: metric names that the lab reads, nothing lost when something fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from labsupport import environment, fusion, provenance, recordings
from labsupport.errors import BuildError, NotAvailable
from labsupport.measurements import Latency, Ratio
from labsupport.sparse_kernels import SparseChoice

GAIN = Ratio((1.2, 1.3, 1.25), Latency("dense", "device", (1.2, 1.3), 1, "a GPU"), Latency("sparse", "device", (1.0, 1.0), 1, "a GPU"))
BETTER = Ratio((1.5, 1.5), Latency("dense", "device", (1.5,), 1, "a GPU"), Latency("sparse", "device", (1.0,), 1, "a GPU"))
CHOICE = SparseChoice(("gemm",), ("gemm",), {"gemm": "a_sparse_kernel"})


@pytest.fixture
def tool(monkeypatch):
    path = Path(__file__).resolve().parents[1] / "tools" / "record_lab07.py"
    spec = importlib.util.spec_from_file_location("record_lab07", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("LABSUPPORT_METRICS", "")  # so that it is put back after the tool has set it
    monkeypatch.setattr(module.pruning, "chosen", lambda engine: CHOICE)
    monkeypatch.setattr(fusion, "dump", lambda engine: '{"Layers": [{"Name": "gemm"}]}')
    return module


@pytest.fixture
def stored(monkeypatch):
    kept = {}

    def store(lab, folder, **facts):
        kept.update(provenance.read_json(Path(folder) / f"{lab}.json")["metrics"])
        return Path(f"{lab}.json")

    monkeypatch.setattr(recordings, "store", store)
    return kept


def test_without_a_gpu_it_says_so(tool):
    if environment.has("engine execution"):
        pytest.skip("there is a GPU here")
    with pytest.raises(NotAvailable):
        tool.main()


@pytest.fixture
def measured(tool, monkeypatch):
    engine = SimpleNamespace(log=(("INFO", "(Sparsity) Chose 1 layer(s) using sparse tactics: gemm"),), layers=[])
    monkeypatch.setattr(environment, "require", lambda *needs: None)
    monkeypatch.setattr(tool, "resnet50", lambda: (GAIN, 0.0, engine))
    monkeypatch.setattr(tool, "in_tensorrt", lambda width, rows, form: (GAIN, 0.0, engine))
    monkeypatch.setattr(tool, "in_torch", lambda width, rows, algorithm=None: (BETTER if algorithm == 4 else GAIN, 0.0))
    return tool


def test_everything_is_recorded_under_the_names_that_the_lab_reads(measured, stored):
    measured.main()
    assert {"gemm.sparse24_over_dense", "resnet50_b64.sparse24_over_dense", "resnet50_b64.sparse_kernels",
            "resnet50_b64.sparse_candidates", "gemm_n4096_m4096.sparse24_over_dense",
            "gemm_torch_n8192_m4096.sparse24_over_dense"} < stored.keys()
    assert {f"gemm_n{width}_m{rows}.sparse24_over_dense" for width, rows in measured.PRODUCTS} < stored.keys()
    assert stored["gemm.sparse24_over_dense"]["value"] == pytest.approx(1.25)


def test_where_tensorrt_has_no_sparse_kernel_the_best_of_pytorch_counts(measured, stored, monkeypatch):
    monkeypatch.setattr(measured.pruning, "chosen", lambda engine: SparseChoice(("gemm",), (), {}))
    measured.main()
    assert stored["gemm.sparse24_over_dense"]["value"] == pytest.approx(1.5)
    assert {f"gemm_{form}.sparse24_over_dense" for form in ("pixels", "matmul", "image")} < stored.keys()


def test_what_was_measured_beside_a_failure_is_kept_and_the_failure_is_told(measured, stored, monkeypatch, capsys):
    def fails(*arguments):
        raise BuildError("the builder stopped")

    monkeypatch.setattr(measured, "resnet50", fails)
    with pytest.raises(SystemExit, match="failed: resnet50_b64"):
        measured.main()
    assert "resnet50_b64() failed: BuildError: the builder stopped" in capsys.readouterr().out
    assert "gemm.sparse24_over_dense" in stored and "resnet50_b64.sparse24_over_dense" not in stored


def test_no_step_is_begun_that_would_pass_the_budget(measured, stored, monkeypatch, capsys):
    monkeypatch.setattr(measured, "BUDGET_S", 20)
    measured.main()
    assert "no time for resnet50_b64()" in capsys.readouterr().out
    assert "gemm.sparse24_over_dense" in stored


def test_the_inputs_of_every_form_hold_the_same_rows(tool):
    plain = tool.rows_of(128, 8, "matmul")
    assert plain.shape == (128, 8) and tool.rows_of(128, 8, "pixels").shape == (128, 8, 1, 1)
    image = tool.rows_of(128, 8, "image")
    assert image.shape == (1, 8, 2, 64) and (image[0, :, 1, 3] == plain[67]).all()
