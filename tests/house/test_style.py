"""ruff finds nothing to format and nothing to mend; and what a commit is checked with is the same ruff."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labsupport.exercises import shipped

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["labsupport", "tests", "tools", "examples", "notebooks"]
CHECKS = {"ruff format --check": ["format", "--check"], "ruff check": ["check"]}


def ruff(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed; it comes with the packages of `python3 -m labsupport test`")
    command = [sys.executable, "-m", "ruff", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("check", CHECKS)
def test_there_is_nothing_to_do(check):
    own = [f"--exclude=notebooks/{name}" for name in sorted(shipped.worked_in())]  # a learner's work keeps no rules
    outcome = ruff(*CHECKS[check], *own, *FOLDERS)
    assert outcome.returncode == 0, f"type: {check.removesuffix(' --check')} {' '.join(FOLDERS)}\n{outcome.stdout}"


@pytest.mark.parametrize(
    "check, source, sentence",
    [
        ("ruff format --check", "x = {'a':1}\n", "would be reformatted"),
        ("ruff check", "import os\n", "imported but unused"),
    ],
)
def test_each_check_fires(check, source, sentence, tmp_path):
    (tmp_path / "one.py").write_text(source, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    outcome = ruff(*CHECKS[check], "one.py", folder=tmp_path)
    assert outcome.returncode == 1 and sentence in outcome.stdout, outcome.stdout + outcome.stderr


def test_a_commit_is_checked_by_the_same_commands_with_the_same_ruff():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (.*)", hooks) == [f"{check} {' '.join(FOLDERS)}" for check in CHECKS]
    pins = set(re.findall(r"ruff==[\d.]+", hooks))
    assert pins == set(re.findall(r"ruff==[\d.]+", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert len(pins) == 1
