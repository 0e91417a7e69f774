"""The one table of versions: complete, dated, with sources; and what it says of installed packages."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from labsupport.errors import BadInput, NotAvailable
from labsupport.roads import versions

TABLE, STACK = versions.table(), versions.stack()
REPOSITORY = Path(__file__).resolve().parents[2]
RESOLUTION = json.loads((REPOSITORY / "tests" / "fixtures" / "gpu_resolution.json").read_text(encoding="utf-8"))


def pinned(extra: str) -> dict[str, str]:
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = map(Requirement, project["optional-dependencies"][extra])
    return {line.name: str(line.specifier).removeprefix("==") for line in lines}


@pytest.mark.parametrize("extra", ["cpu", "gpu", "rtx"])
def test_the_sets_are_what_the_installer_installs(extra):
    for package, version in pinned(extra).items():
        assert TABLE["sets"][extra][package] == version, f"{extra}: {package}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_gpu_set_was_resolved_for_every_python(python):
    """Resolved once with uv, on the day that the file names; the pins must still be those that came out."""
    resolved = RESOLUTION["resolved"][python]
    for package, version in pinned("gpu").items():
        assert resolved[package] == version, package
    fits = [
        row["with"]
        for row in TABLE["fits"]
        if row["package"] == "torch-tensorrt" and versions.in_series(resolved["torch-tensorrt"], row["series"])
    ]
    assert fits and all(versions.in_series(resolved[other], series) for other, series in fits[0].items())
    assert resolved["onnxruntime"] == ("1.23.2" if python == "3.10" else TABLE["sets"]["gpu"]["onnxruntime"])


@pytest.mark.skipif(
    not os.environ.get("LABSUPPORT_RESOLVE"), reason="set LABSUPPORT_RESOLVE=1 to resolve anew over the network"
)
def test_the_gpu_set_resolves_today(tmp_path):
    stubs = [
        f'[[dependency-metadata]]\nname = "tensorrt-cu13-{part}"\nversion = "{pinned("gpu")["tensorrt"]}"\nrequires-dist = []\n'
        for part in ("libs", "bindings")
    ]
    (tmp_path / "uv.toml").write_text("".join(stubs), encoding="utf-8")
    command = RESOLUTION["command"].replace("VERSION", "3.12").replace("uv.toml", str(tmp_path / "uv.toml"))
    command = command.replace("pyproject.toml", str(REPOSITORY / "pyproject.toml")).split()
    run = subprocess.run(
        [shutil.which("uv") or "uv", *command[1:]], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr[-500:]
    for package, version in pinned("gpu").items():
        assert f"{package}=={version}" in run.stdout


@pytest.mark.parametrize("extra", ["cpu", "gpu", "rtx"])
def test_no_set_is_a_misfit(extra):
    assert versions.misfits(TABLE["sets"][extra].get) == []


def test_every_release_has_a_date_a_maintainer_and_a_source():
    read = datetime.date.fromisoformat(TABLE["read"])
    for package, row in TABLE["releases"].items():
        assert datetime.date(2020, 1, 1) < datetime.date.fromisoformat(row["date"]) <= read, package
        assert Version(row["version"]) and row["maintainer"] and row["source"].startswith("https://"), package


def test_every_layer_and_old_road_has_a_source_and_a_known_package():
    for row in (*STACK["history"], *STACK["layers"]):
        assert row["source"].startswith("https://"), row
    for name, road in STACK["roads"].items():
        assert versions.release(road["package"]) and re.fullmatch(r"[a-z_]+", road["metric"]), name
    for row in STACK["layers"]:
        assert (
            versions.release(row["package"])
            and row["machines"]
            and row["models"]
            and row["because"]
            and row["costs"]
            and row["between"]
        )


def test_every_pair_of_machine_and_model_that_the_table_names_is_served_somewhere():
    served = {(machine, model) for row in STACK["layers"] for machine in row["machines"] for model in row["models"]}
    assert {("data center", "language model"), ("phone", "vision and speech"), ("GeForce RTX PC", "language model"),
            ("Jetson and DRIVE", "language model"), ("CPU", "transformer encoder")} <= served  # fmt: skip


def test_an_unknown_package_is_refused():
    with pytest.raises(BadInput, match="'caffe' is not in the table"):
        versions.release("caffe")


def test_misfits():
    found = versions.misfits({"onnxruntime-gpu": "1.31.1", "tensorrt": "11.1.0.106"}.get)
    assert [str(row) for row in found] == ["onnxruntime-gpu 1.31.1 works with tensorrt 10, and 11.1.0.106 is installed"]
    assert versions.misfits({"onnxruntime-gpu": "1.31.1", "tensorrt": "10.16.1.11"}.get) == []
    assert (
        versions.misfits({"torch-tensorrt": "2.14.0", "torch": "2.15.0+cu130", "tensorrt": "11.1.0.106"}.get)[0].other
        == "torch"
    )
    assert (
        versions.misfits({"torch-tensorrt": "3.1", "torch": "3.0"}.get) == []
    )  # a release that the table does not know


@pytest.mark.parametrize(("version", "series", "belongs"), [("2.14.1+cpu", "2.14", True), ("2.140", "2.14", False), ("2.1", "2.14", False),
                                                             ("11.1.0.106", "11", True), ("10.16", "1", False)])  # fmt: skip
def test_series(version, series, belongs):
    assert versions.in_series(version, series) is belongs


def test_what_is_missing_is_named_with_the_way_to_get_it():
    nothing = {}.get
    assert versions.lacking("tensorflow", version_of={"tensorflow": "2.21.0"}.get) == ""
    text = versions.lacking("tensorflow", "tf2onnx", version_of=nothing)
    assert "tensorflow and tf2onnx are not installed" in text and "tensorflow==2.21.0" in text
    assert "--no-deps basic-pitch" in versions.lacking("basic-pitch", version_of=nothing)
    with pytest.raises(NotAvailable, match="no-such-package-here is not installed"):
        versions.require("no-such-package-here")


def test_the_table_needs_the_standard_library_only():
    source = Path(versions.__file__).read_text(encoding="utf-8")
    outside = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)) - {
        "__future__",
        "functools",
        "json",
        "collections",
        "dataclasses",
        "pathlib",
    }
    assert outside == {"labsupport"}
