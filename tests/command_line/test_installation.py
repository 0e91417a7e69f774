"""The installer, with a fake pip that records what it was asked and may fail; nothing is downloaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from labsupport.command_line import installation, pip_messages
from labsupport.command_line.installation import Installation, InstallationError
from labsupport.command_line.package_sets import choose
from labsupport.command_line.pip_messages import explain
from labsupport.environment import hardware
from labsupport.environment.hardware import Gpu, GpuProbe

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559)
NOT_FOUND = "ERROR: No matching distribution found for torch==2.13.0+cpu"
CONFLICT = "The user requested (constraint) torch<=2.14.1\nERROR: ResolutionImpossible: for help visit"


class FakePip:
    """Stands for every command; `fail` maps a part of a command to its output."""

    def __init__(self, place: Path, fail: dict | None = None):
        self.place, self.fail, self.commands = place, fail or {}, []

    def __call__(self, command: list[str]) -> tuple[int, str]:
        line = " ".join(command)
        self.commands.append(line)
        for part, output in self.fail.items():
            if part in line:
                return 1, output
        if " venv " in line:
            python = installation.interpreter(self.place / ".venv")
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        return 0, ""

    def installs(self) -> list[str]:
        lines = [line for line in self.commands if " install " in line]
        return [line.partition(" install --disable-pip-version-check ")[2] for line in lines]


@pytest.fixture
def make(tmp_path, monkeypatch):
    shutil.copy(Path(installation.REPOSITORY) / "pyproject.toml", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(hardware, "gpus", lambda: GpuProbe(problem=hardware.NO_DRIVER))

    def build(fail=None, platform="linux") -> Installation:
        said = []
        place = Installation(tmp_path, run=FakePip(tmp_path, fail), say=said.append, platform=platform)
        place.said = said
        return place

    return build


# --- which set ---


def test_a_gpu_gets_the_gpu_set_and_is_told_how_to_choose_otherwise():
    choice = choose(probe=GpuProbe((H100,), "580.1", "13.0"))
    assert choice.name == "gpu"
    assert repr(choice).startswith("NVIDIA H100 80GB HBM3 found: installing the GPU set")
    assert repr(choice).endswith("To choose otherwise: --cpu or --rtx")


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (GpuProbe(problem=hardware.NO_DRIVER), "No NVIDIA GPU was found"),
        (GpuProbe(problem=hardware.MISMATCH), "No GPU can be used .*reboot"),
        (GpuProbe((H100,), "550.5", "12.4"), "driver 550.5 .CUDA 12.4., and TensorRT 11 needs driver 580"),
    ],
)
def test_without_a_usable_gpu_the_cpu_set(probe, reason):
    choice = choose(probe=probe)
    assert choice.name == "cpu"
    assert re.search(reason, choice.reason)


def test_what_was_asked_for_wins():
    assert choose("cpu", GpuProbe((H100,), "580.1", "13.0")).name == "cpu"


@pytest.mark.parametrize(
    ("asked", "cuda", "fits"),
    [
        (None, None, True),
        (None, "13.0", True),
        ("cpu", None, True),
        ("cpu", "13.0", False),
        ("gpu", None, False),
        ("rtx", "13.0", True),
    ],
)
def test_an_environment_must_hold_the_torch_asked_for(asked, cuda, fits):
    assert installation.fits(asked, lambda: ("2.13.0", cuda)) is fits


def test_lacking_lists_what_a_command_needs():
    assert installation.lacking("test", installed=lambda name: None if name == "nbval" else Path()) == ["nbval"]
    assert "jupyterlab" in installation.lacking("lab", installed=lambda name: None)


# --- installing ---


def test_torch_comes_first_then_the_rest(make):
    place = make()
    place.ensure()
    assert place.run.installs() == ["torch==2.13.0+cpu", f"--editable {place.repository}[cpu,test]"]
    assert "installing the CPU set" in place.said[0]


@pytest.mark.parametrize("said", [NOT_FOUND, CONFLICT], ids=["not found", "beside a constraints file"])
def test_the_cpu_build_falls_back_to_pytorchs_index(make, said):
    place = make({"torch==2.13.0+cpu": said})
    place.ensure("cpu")
    assert place.run.installs()[:2] == [
        "torch==2.13.0+cpu",
        "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu",
    ]


def test_the_torch_index_can_be_named(make):
    place = make()
    place.ensure("cpu", torch_index="https://example.org/whl")
    assert place.run.installs()[0] == "torch==2.13.0 --index-url https://example.org/whl"


@pytest.mark.parametrize(
    ("platform", "chosen", "torch"),
    [
        ("win32", "cpu", "torch==2.13.0"),
        ("darwin", "cpu", "torch==2.13.0"),
        ("linux", "gpu", "torch==2.14.1"),
        ("win32", "gpu", "torch==2.14.1 --index-url https://download.pytorch.org/whl/cu130"),
    ],
)
def test_torch_by_platform(make, monkeypatch, platform, chosen, torch):
    monkeypatch.setattr(Installation, "check_disk", lambda self, name: None)
    place = make(platform=platform)
    place.ensure(chosen)
    assert place.run.installs()[0] == torch


def test_the_gpu_set_goes_on_without_pycuda(make, monkeypatch):
    monkeypatch.setattr(Installation, "check_disk", lambda self, name: None)
    place = make({"pycuda": "error: cuda.h: No such file"})
    place.ensure("gpu")
    assert place.ready("gpu")
    assert any("PyCUDA could not be compiled" in line for line in place.said)


def test_a_second_start_runs_nothing(make):
    make().ensure()
    again = make()
    again.ensure()
    assert again.run.commands == []


def test_changed_dependencies_are_installed_into_the_same_set(make):
    make().ensure("cpu")
    place = make()
    pyproject = place.repository / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("tqdm>=4.66", "tqdm>=4.67"))
    place.ensure()
    assert place.said[0].startswith("Dependencies changed: installing the CPU set")
    assert len(place.run.installs()) == 2


def test_settings_of_other_tools_are_no_change(make):
    place = make()
    place.ensure()
    pyproject = place.repository / "pyproject.toml"
    pyproject.write_text(pyproject.read_text() + "\n[tool.other]\nx = 1\n")
    assert place.ready()


def test_an_interrupted_installation_is_resumed(make):
    place = make({"--editable": "ERROR: interrupted"})
    with pytest.raises(InstallationError, match="the packages could not be installed: ERROR: interrupted"):
        place.ensure()
    assert not place.ready()
    again = make()
    again.ensure()
    assert again.ready()
    assert not any("-m venv" in command for command in again.run.commands)  # the folder was kept


def test_a_broken_environment_is_made_anew(make):
    make().ensure()
    place = make({"pip --version": "No module named pip"})
    place.stamp.unlink()
    place.ensure()
    assert any("-m venv --clear" in command for command in place.run.commands)


def test_a_damaged_stamp_means_not_ready(make):
    place = make()
    place.ensure()
    for text in ("", "[]", "{", "{}"):
        place.stamp.write_text(text)
        assert not place.ready()


def test_another_set_removes_what_only_the_first_had(make, monkeypatch):
    monkeypatch.setattr(Installation, "check_disk", lambda self, name: None)
    make().ensure("cpu")
    place = make()
    place.ensure("gpu")
    assert any(command.endswith("pip uninstall -y torch tensorrt-rtx") for command in place.run.commands)
    assert json.loads(place.stamp.read_text())["set"] == "gpu"


def test_uv_is_used_where_it_is_and_pip_where_uv_fails(make, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/uv")
    place = make({"uv pip install": "error: dns error"})
    place.ensure()
    assert place.run.commands[0].startswith("/usr/bin/uv venv --seed")
    assert place.run.commands[1].startswith("/usr/bin/uv pip install --python")
    assert place.run.installs()[1] == "torch==2.13.0+cpu"


def test_jupyterlab_does_not_ask_about_news(make):
    place = make()
    place.ensure()
    config = json.loads((place.folder / "etc/jupyter/labconfig/page_config.json").read_text())
    assert config == {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}


def test_extras_are_read_as_a_toml_reader_reads_them(make):
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    place = make()
    with open(place.repository / "pyproject.toml", "rb") as file:
        wanted = toml.load(file)["project"]["optional-dependencies"]
    assert place.extras() == {
        name: [re.match(r"[\w.-]+", line).group() for line in lines] for name, lines in wanted.items()
    }
    assert place.requirements("pycuda") == wanted["pycuda"]


# --- errors ---


@pytest.mark.parametrize(
    ("version", "words"),
    [((3, 9), "3.9 is too old: the labs need 3.10 to 3.13"), ((3, 14), "3.14 is too new: the labs need 3.10 to 3.13")],
)
def test_a_python_that_does_not_fit(version, words):
    with pytest.raises(InstallationError, match=f"{words}.*python3.12 -m labsupport lab"):
        installation.check_python(version)
    installation.check_python((3, 12))


def test_too_little_disk_is_said_before_anything_is_downloaded(make):
    place = make()
    with pytest.raises(InstallationError, match=r"has 1.5 GiB free, and the CPU set .* takes 3 GiB; free some space"):
        place.check_disk("cpu", free_gib=1.5)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("The virtual environment was not created successfully because ensurepip is not available.", "python3.*-venv"),
        (
            "WARNING: Retrying: NewConnectionError: Temporary failure in name resolution\n" + NOT_FOUND,
            "cannot be reached",
        ),
        ("Collecting x\nERROR: ResolutionImpossible: a and b\nhint: try", "it failed: ERROR: ResolutionImpossible: a"),
        ("", "it failed: no message"),
    ],
)
def test_a_failure_is_one_sentence(output, words):
    assert re.search(words, explain(output, "it failed"))


def test_no_torch_names_the_option(make):
    place = make({"torch==2.13.0": NOT_FOUND})
    with pytest.raises(InstallationError, match="PyTorch could not be installed.*--torch-index URL"):
        place.ensure()
    assert len(place.run.installs()) == 2


def test_no_venv_module_names_the_package(make):
    place = make({"-m venv": "Error: ensurepip is not available"})
    with pytest.raises(InstallationError, match="sudo apt install python3.*-venv"):
        place.ensure()


def test_a_repository_that_cannot_be_written(make, monkeypatch):
    place = make()
    place.repository = place.repository / "pyproject.toml"
    with pytest.raises(InstallationError, match="cannot be written .*; clone the repository into a folder of your own"):
        with place.locked():
            pass


@pytest.mark.parametrize("step", ["quiet_jupyterlab", "write_stamp"])
def test_a_disk_that_fills_up_at_the_end_is_one_sentence(make, monkeypatch, step):
    place = make()

    def full(*arguments):
        raise OSError(28, "No space left on device", "labsupport.json")

    monkeypatch.setattr(place, step, full)
    with pytest.raises(
        InstallationError,
        match="could not be finished .No space left on device: labsupport.json.; "
        "free some space, .* run the same command again",
    ):
        place.ensure()
    assert not place.ready()
    make().ensure()
    assert place.ready()


def test_a_file_in_the_place_of_the_environment_is_kept(make):
    place = make()
    place.folder.write_text("mine")
    with pytest.raises(InstallationError, match=".venv is no folder, .*; move it away, then run the same command"):
        place.ensure()
    assert place.folder.read_text() == "mine" and place.run.commands == []


# --- two at once ---


def test_the_second_waits_and_then_installs_nothing(make):
    first, second = make(), make()
    entered, done = threading.Event(), []

    def install_second():
        entered.wait(10)
        second.ensure()
        done.append(True)

    thread = threading.Thread(target=install_second)
    thread.start()
    real = first.install_rest

    def slow(name):
        entered.set()
        while not any("waiting for it" in line for line in second.said):
            assert thread.is_alive()
        real(name)

    first.install_rest = slow
    first.ensure()
    thread.join(10)
    assert done == [True]
    assert second.run.commands == []


def test_a_dead_holder_leaves_no_lock(make, tmp_path):
    place = make()
    code = (
        "import os, sys; from pathlib import Path; from labsupport.installation import Installation\n"
        "with Installation(Path(sys.argv[1])).locked(): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=installation.REPOSITORY, timeout=60)
    with place.locked():
        assert place.said == []


def test_the_real_subprocess_keeps_output_and_code(tmp_path):
    said = []
    place = Installation(tmp_path, say=said.append)
    code, output = place.run([sys.executable, "-c", "print('Downloading torch-2.13.0-cp311-any.whl (1 MB)'); exit(3)"])
    assert (code, said) == (3, ["  Downloading torch 2.13.0 (1 MB)"])
    assert "cp311" in output


def test_pip_lines_are_shortened():
    assert pip_messages.shorter("Installing collected packages: a, b, c") == "Installing collected packages"


def test_venv_is_really_made(tmp_path):
    place = Installation(tmp_path, say=lambda line: None)
    assert place.run([sys.executable, "-m", "venv", "--without-pip", str(place.folder)])[0] == 0
    assert subprocess.run([str(place.python), "-c", ""]).returncode == 0
