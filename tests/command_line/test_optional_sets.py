"""Optional frameworks: added one by one to a finished `.venv`, each without the others, and never asked for twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from labsupport.command_line import installation, package_sets
from labsupport.command_line.installation import Installation


@pytest.fixture
def place(tmp_path, monkeypatch):
    text = (Path(installation.REPOSITORY) / "pyproject.toml").read_text(encoding="utf-8")
    head = text.partition("[project.optional-dependencies]")[0]
    extras = 'serving = [\n    "ray[serve]>=2.49",  # a list in a list\n    "tritonclient>=2.60",\n]\nphone = ["executorch==1.5.1"]\n'
    (tmp_path / "pyproject.toml").write_text(f"{head}[project.optional-dependencies]\n{extras}\n[tool.x]\n")
    monkeypatch.setattr(installation, "OPTIONAL", {"phone": "phone runtimes", "serving": "servers"})
    commands, said, failing = [], [], {}

    def run(command):
        commands.append(" ".join(command))
        return next(((1, output) for part, output in failing.items() if part in commands[-1]), (0, ""))

    made = Installation(tmp_path, run=run, say=said.append, platform="linux")
    made.python.parent.mkdir(parents=True)
    made.python.touch()
    made.write_stamp("cpu")
    made.commands, made.said, made.failing = commands, said, failing
    return made


def test_extras_are_added_to_a_finished_environment_and_torch_is_named_with_them(place):
    assert not place.ready(None, ["phone", "serving"])
    assert place.ensure(optional=["phone", "serving"]) == place.python
    assert [line.partition(" install ")[2] for line in place.commands] == [
        f"--disable-pip-version-check executorch==1.5.1 {package_sets.TORCH['cpu']}",
        f"--disable-pip-version-check ray[serve]>=2.49 tritonclient>=2.60 {package_sets.TORCH['cpu']}",
    ]
    assert place.ready(None, ["serving"]) and place.read_stamp()["set"] == "cpu"
    place.commands.clear()
    place.ensure(optional=["phone", "serving"])
    assert place.commands == []


def test_one_that_cannot_be_had_is_said_and_the_next_goes_on(place):
    place.failing["executorch"] = "ERROR: No matching distribution found for executorch==1.5.1"
    place.ensure(optional=["phone", "serving"])
    assert len(place.commands) == 2 and "ray[serve]" in place.commands[1]
    assert [line for line in place.said if "phone runtimes could not be installed; the labs go on without" in line]
    assert place.ready(None, ["phone", "serving"])  # asked once; the tests skip what is missing, with its reason


def test_changed_dependencies_ask_for_the_extras_again(place):
    place.ensure(optional=["phone", "serving"])
    text = (place.repository / "pyproject.toml").read_text()
    (place.repository / "pyproject.toml").write_text(text.replace("executorch==1.5.1", "executorch==1.5.2"))
    assert not place.ready(None, ["phone"])


def test_the_extras_of_the_project_are_the_ones_that_are_offered():
    listed = Installation().extras()
    assert set(package_sets.OPTIONAL) <= set(listed)
    assert all(listed[name] for name in package_sets.OPTIONAL)
