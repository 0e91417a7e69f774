"""The type checker finds nothing in labsupport; its settings stand in pyproject.toml."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed (extra: test)")


def checked(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'pyproject.toml'}", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@needs_mypy
def test_labsupport_has_no_type_error(tmp_path):
    said = checked(f"--cache-dir={tmp_path / 'cache'}", cwd=ROOT)
    assert said.returncode == 0 and said.stdout.splitlines()[-1].startswith("Success: no issues found"), said.stdout


@needs_mypy
def test_a_type_error_is_seen(tmp_path):
    (tmp_path / "wrong.py").write_text("def count(name: str) -> int:\n    return name.upper()\n")
    said = checked("--cache-dir=/dev/null", "wrong.py", cwd=tmp_path)
    assert said.returncode == 1 and "wrong.py:2: error: Incompatible return value type" in said.stdout
