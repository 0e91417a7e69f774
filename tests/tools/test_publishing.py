"""The badges, the report of bands and the table of newest releases."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_badges_are_written_once_and_replaced():
    badges = tool("badges")
    once = badges.with_badges("# Title\n\nText.\n", "someone/labs")
    assert once.startswith("# Title\n\n<!-- badges -->\n[![Open lab 00 in Colab]") and once.endswith("\n\nText.\n")
    assert "github/someone/labs/blob/main/binder/colab.ipynb" in once
    assert "mybinder.org/v2/gh/someone/labs/main?labpath=notebooks/00_start_here.ipynb" in once
    twice = badges.with_badges(once, "other/labs", "v1")
    assert "someone" not in twice and twice.count("<!-- badges -->") == 1 and "other/labs/blob/v1/" in twice


def test_lab_00_for_colab_installs_first(tmp_path):
    badges = tool("badges")
    for name in ("README.md", "pyproject.toml", "notebooks/00_start_here.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    badges.main(["someone/labs", "--branch", "v1"], tmp_path)
    made = json.loads((tmp_path / "binder" / "colab.ipynb").read_text(encoding="utf-8"))
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(made))
    source = "".join(made["cells"][1]["source"])
    assert "git clone --quiet --depth 1 --branch v1 https://github.com/someone/labs labs" in source
    assert "tensorrt-rtx==" in source and "None" not in source
    assert not any(cell.get("outputs") for cell in made["cells"])
    rest = [cell["source"] for cell in made["cells"][2:]]
    shipped = json.loads((REPOSITORY / "notebooks/00_start_here.ipynb").read_text(encoding="utf-8"))["cells"][1:]
    assert ["".join(text) for text in rest] == ["".join(cell["source"]) for cell in shipped]


@pytest.mark.parametrize("given", ["labs", "a/b/c", "https://x.y/a/b", "a b/c"])
def test_a_place_that_is_none(given):
    with pytest.raises(argparse.ArgumentTypeError, match="give OWNER/NAME"):
        tool("badges").place(given)


def recordings(tmp_path: Path) -> Path:
    (tmp_path / "bands.json").write_text(json.dumps({"h?00-trt8.6": {"a": [1, 2], "b": [1, 2]}}))
    (tmp_path / "h100-trt8.6").mkdir()
    metrics = {name: {"value": value, "unit": "ms"} for name, value in {"a": 1.5, "b": 3.0, "c": 1.0}.items()}
    (tmp_path / "h100-trt8.6" / "05_precision.json").write_text(json.dumps({"metrics": metrics}))
    return tmp_path


def test_the_report_of_bands_opens_with_what_is_outside(tmp_path, capsys):
    report = tool("bands_report")
    assert report.main(["h100-trt8.6"], recordings(tmp_path)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## 3 metrics of h100-trt8.6, 1 outside their bands"
    assert lines[4:] == [
        "| 05_precision | b | 3 ms | 1 to 2 | OUTSIDE |",
        "| 05_precision | c | 1 ms |  | no band |",
        "| 05_precision | a | 1.5 ms | 1 to 2 | inside |",
    ]
    assert report.main(["nothing"], tmp_path) == 2
    assert "choose one of h100-trt8.6" in capsys.readouterr().out


def test_what_is_recorded_here_is_within_its_bands(capsys):
    for folder in ("cpu-ort1.31", "h100-trt8.6", "h200-trt8.6"):
        assert tool("bands_report").main([folder]) == 0, folder


def test_newest_releases_open_with_what_changed(monkeypatch, capsys):
    newest = tool("newest")
    pinned = dict.fromkeys(newest.NAMES, "1.0")
    monkeypatch.setattr(newest, "versions", lambda: dict(pinned))
    asked = []

    def run(command, **options):
        asked.append(command)
        version = "2.0" if "onnx" in command and "index" in command else "1.0"
        return SimpleNamespace(stdout=f"x ({version})\nAvailable versions: {version}, 0.9\n", returncode=0)

    assert newest.main(["--install"], run) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "## 1 of 6 packages are newer than the labs' pins" and out[4] == "| onnx | 1.0 | 2.0 |"
    installed = [command[-1] for command in asked if "install" in command]
    assert installed == ["onnx==2.0"]


def test_an_index_that_does_not_answer_changes_nothing():
    newest = tool("newest")
    assert newest.newest("onnx", lambda *args, **options: SimpleNamespace(stdout="", returncode=1)) == ""
    assert "As pinned: onnx 1.0" in newest.table({"onnx": "1.0"}, {"onnx": ""})


def checkout(tmp_path: Path) -> Path:
    for name in ("labsupport/__init__.py", "CITATION.cff", "CHANGELOG.md", "notebooks/00_start_here.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    return tmp_path


def test_a_release_carries_its_version_everywhere(tmp_path):
    release, root = tool("release"), checkout(tmp_path)
    release.release("9.1.0", root, "2026-12-24")
    assert '__version__ = "9.1.0"' in (root / "labsupport/__init__.py").read_text("utf-8")
    assert "version: 9.1.0\n" in (root / "CITATION.cff").read_text("utf-8")
    assert "## [Unreleased]\n\n## [9.1.0] - 2026-12-24\n" in (root / "CHANGELOG.md").read_text("utf-8")
    notebook = json.loads((root / "notebooks/00_start_here.ipynb").read_text("utf-8"))
    shipped = json.loads((REPOSITORY / "notebooks/00_start_here.ipynb").read_text("utf-8"))
    assert notebook["metadata"]["labsupport"]["version"] == "9.1.0" and notebook["cells"] == shipped["cells"]
    with pytest.raises(LookupError, match="nothing under"):
        release.release("9.2.0", root)


@pytest.mark.parametrize(
    ("version", "said"), [("0.0.1", "not newer"), ("1.0", "three numbers"), ("v9.0.0", "no version")]
)
def test_a_version_that_cannot_be_released_changes_nothing(version, said, tmp_path):
    release, root = tool("release"), checkout(tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=said):
        release.release(version, root)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_lister_writes_the_stored_listing_of_the_release_that_is_here(tmp_path, capsys):
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    lister = tool("list_trt_api")
    stored = REPOSITORY / "data" / "trt_api" / "rtx-1.7.1.json"
    if json.loads(stored.read_text("utf-8"))["version"] != rtx.__version__:
        pytest.skip(f"TensorRT-RTX {rtx.__version__} is here, and the listing is of another release")
    assert lister.main(["--rtx", str(tmp_path / "new.json")]) == 0
    assert json.loads((tmp_path / "new.json").read_text("utf-8")) == json.loads(stored.read_text("utf-8"))
    assert "+ nothing\n- nothing" in capsys.readouterr().out


def test_the_lister_says_which_product_is_missing(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert tool("list_trt_api").main([]) == 1
    assert "install the release that you want to list" in capsys.readouterr().out
