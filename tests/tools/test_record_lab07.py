"""The tool that records lab 07: metric names that the lab reads, nothing lost when something fails."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from faces import stand_in
from tool_scripts import tool_script

from labsupport import environment, fusion, recordings
from labsupport.benchmarking.measurements import Latency, Ratio
from labsupport.errors import BuildError, NotAvailable
from labsupport.pruning.sparse_kernels import SparseChoice
from labsupport.recordings import provenance

GAIN = Ratio(
    (1.2, 1.3, 1.25),
    Latency("dense", "device", (1.2, 1.3), 1, "a GPU"),
    Latency("sparse", "device", (1.0, 1.0), 1, "a GPU"),
)
BETTER = Ratio(
    (1.5, 1.5), Latency("dense", "device", (1.5,), 1, "a GPU"), Latency("sparse", "device", (1.0,), 1, "a GPU")
)
CHOICE = SparseChoice(("gemm",), ("gemm",), {"gemm": "a_sparse_kernel"})


class Kept(dict):
    def __init__(self):
        super().__init__()
        self.after = []


@pytest.fixture
def tool(monkeypatch):
    module = tool_script("record_lab07")
    monkeypatch.setattr(module.elapsed, "STARTED", time.monotonic())  # the process of the tests began long ago
    monkeypatch.setenv("LABSUPPORT_METRICS", "")  # so that it is put back after the tool has set it
    monkeypatch.setattr(module.pruning, "chosen", lambda engine: CHOICE)
    monkeypatch.setattr(fusion, "dump", lambda engine: '{"Layers": [{"Name": "gemm"}]}')
    return module


@pytest.fixture
def stored(monkeypatch):
    """What the recordings hold; ``stored.after`` how many metrics it was after each time something was put there."""
    kept = Kept()

    def store(lab, folder, **facts):
        kept.update(provenance.read_json(Path(folder) / f"{lab}.json")["metrics"])
        kept.after.append(len(kept))
        return Path(f"{lab}.json")

    stand_in(monkeypatch, recordings, "store", store)
    return kept


def test_without_a_gpu_it_says_so(tool):
    if environment.has("engine execution"):
        pytest.skip("there is a GPU here")
    with pytest.raises(NotAvailable):
        tool.main()


@pytest.fixture
def measured(tool, monkeypatch):
    """The tool with fake measurements; ``measured.steps`` says in which order they were made."""
    engine = SimpleNamespace(log=(("INFO", "(Sparsity) Chose 1 layer(s) using sparse tactics: gemm"),), layers=[])
    tool.steps = []

    def resnet50():
        tool.steps.append("resnet50")
        return GAIN, 0.0, engine

    def in_tensorrt(width, rows, form):
        tool.steps.append(("TensorRT", width, rows, form))
        return GAIN, 0.0, engine

    def in_torch(width, rows):
        tool.steps.append(("PyTorch", width, rows))
        return BETTER if width == 8192 or rows == 128 else GAIN, 0.0

    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    monkeypatch.setattr(tool, "resnet50", resnet50)
    monkeypatch.setattr(tool, "in_tensorrt", in_tensorrt)
    monkeypatch.setattr(tool, "in_torch", in_torch)
    return tool


@pytest.fixture
def no_sparse_kernel(measured, monkeypatch):
    def in_tensorrt(width, rows, form):
        measured.steps.append(("TensorRT", width, rows, form))
        return GAIN.before, None, SimpleNamespace(log=(), layers=[])

    monkeypatch.setattr(measured, "in_tensorrt", in_tensorrt)
    monkeypatch.setattr(measured.pruning, "chosen", lambda engine: SparseChoice(("gemm",), (), {}))


def test_everything_is_recorded_under_the_names_that_the_lab_reads(measured, stored):
    measured.main()
    assert {
        "gemm_torch.sparse24_over_dense",
        "gemm_tensorrt.sparse24_over_dense",
        "resnet50_b64.sparse24_over_dense",
        "resnet50_b64.sparse_kernels",
        "resnet50_b64.sparse_candidates",
        "gemm_n4096_m4096.sparse24_over_dense",
        "gemm_matmul_n4096_m4096.sparse24_over_dense",
        "gemm_torch_n4096_m4096.sparse24_over_dense",
        "gemm_torch_n8192_m4096.sparse24_over_dense",
    } < stored.keys()
    for library in ("gemm_image", "gemm_torch"):
        assert {f"{library}_n{width}_m{rows}.sparse24_over_dense" for width, rows in measured.PRODUCTS} < stored.keys()
    assert stored["gemm_tensorrt.sparse24_over_dense"]["value"] == pytest.approx(1.25)


def test_beside_each_ratio_stand_the_dense_time_and_the_error(measured, stored):
    measured.main()
    best = {"gemm_torch", "gemm_tensorrt"}
    measured_names = {name.split(".")[0] for name in stored if name.endswith(".sparse24_over_dense")} - best
    assert measured_names == {name.split(".")[0] for name in stored if name.endswith(".dense_ms")}
    assert measured_names == {name.split(".")[0] for name in stored if name.endswith(".relative_error")}
    assert stored["resnet50_b64.dense_ms"]["unit"] == "ms" and stored["resnet50_b64.relative_error"]["value"] == 0


def test_a_wrong_answer_is_not_recorded(measured, stored, monkeypatch):
    monkeypatch.setattr(measured, "in_torch", lambda width, rows: (BETTER, float("nan") if width == 8192 else 0.5))
    with pytest.raises(SystemExit, match="failed: torch_product, torch_product"):
        measured.main()
    assert not [name for name in stored if "torch" in name] and "resnet50_b64.sparse24_over_dense" in stored


def test_resnet_50_comes_first_then_the_sweep_in_pytorch_then_tensorrt(measured, stored):
    measured.main()
    steps = measured.steps
    assert steps[0] == "resnet50" and [step[0] for step in steps[1:]] == ["PyTorch"] * 6 + ["TensorRT"] * 8
    assert [step[1:] for step in steps[1:7]] == list(measured.PRODUCTS)
    assert [step[3] for step in steps[7:10]] == list(measured.FORMS) == ["image", "pixels", "matmul"]
    assert {step[1:3] for step in steps[7:10]} == {measured.PRODUCTS[0]}
    assert [step[1:] for step in steps[10:]] == [(*product, "image") for product in measured.PRODUCTS[1:]], (
        "the first form with a sparse kernel"
    )


def test_each_figure_is_stored_as_soon_as_it_is_measured(measured, stored):
    measured.main()
    assert (
        stored.after[:5] == [1, 2, 3, 4, 5]
        and len(stored.after) >= len(stored)
        and stored.after == sorted(stored.after)
    )


def test_with_a_folder_of_metrics_given_nothing_is_stored(measured, stored, monkeypatch, tmp_path):
    monkeypatch.setenv("LABSUPPORT_METRICS", str(tmp_path))
    measured.main()
    assert (
        not stored and "gemm_torch.sparse24_over_dense" in provenance.read_json(tmp_path / "07_pruning.json")["metrics"]
    )


def test_the_seconds_add_up(tool):
    assert tool.NEEDS_S["ResNet-50"] + len(tool.PRODUCTS) * tool.NEEDS_S["PyTorch"] < tool.BUDGET_S


@pytest.mark.usefixtures("no_sparse_kernel")
def test_without_a_sparse_kernel_only_the_time_and_the_counts_are_recorded(measured, stored):
    measured.main()
    forms = ("gemm_n4096_m4096", "gemm_image_n4096_m4096", "gemm_matmul_n4096_m4096")
    assert {name for name in stored if name.startswith(forms)} == {
        f"{form}.{what}" for form in forms for what in ("dense_ms", "sparse_kernels", "sparse_candidates")
    }
    assert (
        stored["gemm_n4096_m4096.sparse_kernels"]["value"],
        stored["gemm_n4096_m4096.sparse_candidates"]["value"],
    ) == (0, 1)


@pytest.mark.parametrize(
    "choice, builds",
    [(CHOICE, ["gemm_n8_m4_sparse", "gemm_n8_m4_dense"]), (SparseChoice(("gemm",), (), {}), ["gemm_n8_m4_sparse"])],
)
def test_a_product_without_a_sparse_kernel_is_built_once(tool, monkeypatch, choice, builds):
    built = []

    class Run:
        def __init__(self, engine, cuda_graph):
            self.engine = engine

        def __enter__(self):
            return lambda feed: {"y": feed[:, :, 0, 0]}

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(tool.build, "engine", lambda network, name, **options: built.append(name) or name)
    monkeypatch.setattr(tool.runtimes, "TensorRt", Run)
    monkeypatch.setattr(tool.pruning, "chosen", lambda engine: choice)
    monkeypatch.setattr(tool.benchmarking, "paired", lambda *sides, clock: GAIN)
    monkeypatch.setattr(tool.benchmarking, "device_latency", lambda run, feed: GAIN.before)
    gain, error, engine = tool.in_tensorrt(8, 4, "pixels")
    assert built == builds and engine == "gemm_n8_m4_sparse"
    assert (gain, error) == ((GAIN, 0.0) if choice is CHOICE else (GAIN.before, None))


@pytest.mark.usefixtures("no_sparse_kernel")
def test_where_tensorrt_has_no_sparse_kernel_the_best_of_pytorch_counts_and_is_swept(measured, stored):
    measured.main()
    assert stored["gemm_torch.sparse24_over_dense"]["value"] == pytest.approx(1.5)
    assert [step for step in measured.steps if step[0] == "TensorRT"] == [
        ("TensorRT", 4096, 4096, form) for form in measured.FORMS
    ]
    assert {f"gemm_torch_n{width}_m{rows}.sparse24_over_dense" for width, rows in measured.PRODUCTS} < stored.keys()
    assert len(set(measured.steps)) == len(measured.steps), "a product was measured twice"


@pytest.mark.usefixtures("no_sparse_kernel")
def test_the_best_of_a_library_is_that_of_a_large_product(measured, stored, monkeypatch):
    monkeypatch.setattr(measured, "PRODUCTS", ((4096, 4096), (4096, 128)))
    measured.main()
    assert stored["gemm_torch_n4096_m128.sparse24_over_dense"]["value"] == pytest.approx(1.5)
    assert stored["gemm_torch.sparse24_over_dense"]["value"] == pytest.approx(1.25)


def test_what_was_measured_beside_a_failure_is_kept_and_the_failure_is_told(measured, stored, monkeypatch, capsys):
    def fails(*arguments):
        raise BuildError("the builder stopped")

    monkeypatch.setattr(measured, "resnet50", fails)
    with pytest.raises(SystemExit, match="failed: resnet50_b64"):
        measured.main()
    assert "resnet50_b64() failed: BuildError: the builder stopped" in capsys.readouterr().out
    assert "gemm_torch.sparse24_over_dense" in stored and "resnet50_b64.sparse24_over_dense" not in stored


def test_no_step_is_begun_that_would_pass_the_budget(measured, stored, monkeypatch, capsys):
    monkeypatch.setattr(measured.elapsed, "STARTED", measured.elapsed.STARTED - 180)
    measured.main()
    assert "no time for resnet50_b64()" in capsys.readouterr().out
    assert "gemm_torch.sparse24_over_dense" in stored and len(measured.steps) == 14


def test_both_libraries_get_the_same_rows(tool):
    plain, pixels = tool.rows_of(128, 8, "matmul"), tool.rows_of(128, 8, "pixels")
    assert plain.shape == (128, 8) and pixels.shape == (128, 8, 1, 1)
    assert (pixels[:, :, 0, 0] == plain).all()
    image = tool.rows_of(128, 8, "image")
    assert image.shape == (1, 8, 2, 64) and (image[0].reshape(8, 128).T == plain).all()
