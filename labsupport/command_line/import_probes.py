"""Import each heavy package in a child process, so that one that crashes takes nothing down with it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time

from labsupport.command_line.findings import Finding
from labsupport.environment.machines import PRODUCTS
from labsupport.environment.packages import package_version

DEADLINE_S = 4.0
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "pandas", "matplotlib", "pycuda.driver", *PRODUCTS)


def start_imports(modules: tuple[str, ...] = HEAVY, *, installed=importlib.util.find_spec) -> dict:
    """Import each installed module in a child process of its own, all at once: {module: Popen}."""
    children = {}
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    for module in modules:
        try:
            if not installed(module.split(".")[0]):
                continue
        except Exception:
            pass  # a package that cannot even be looked up fails to import too, and the child says how
        children[module] = subprocess.Popen(
            [sys.executable, "-c", f"import {module}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environ,
        )
    return children


def finish_imports(children: dict, *, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """Collect the children: a crash or an exception is a problem, one still importing at the deadline a note."""
    findings, end = [], time.monotonic() + deadline_s
    for module, child in children.items():
        try:
            error = child.communicate(timeout=max(0.05, end - time.monotonic()))[1]
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            findings.append(Finding("Imports", f"{module} was still importing after {deadline_s:.0f} s", "note"))
            continue
        if child.returncode:
            findings.append(_broken(module, child.returncode, error))
    if children and not findings:
        findings.append(Finding("Imports", f"{len(children)} packages import"))
    return findings


def _broken(module: str, code: int, error: str) -> Finding:
    lines = [line for line in error.strip().splitlines() if line.strip()]
    why = lines[-1].strip() if lines else "no message"
    if code < 0:
        import signal

        names = {int(number): number.name for number in signal.Signals}
        why = f"it crashed with {names.get(-code, f'signal {-code}')}"
    package = module.split(".")[0]
    if package == "pycuda":
        # PyCUDA links the driver itself, so on a machine without one it cannot import.
        return Finding("Imports", f"{module} does not import: {why}", "note")
    version = package_version(package)
    wanted = f"{package.replace('_', '-')}=={version.split('+')[0]}" if version else package
    return Finding(
        "Imports",
        f"{module} does not import: {why}",
        "problem",
        f'python -m pip install --force-reinstall --no-deps "{wanted}"',
    )
