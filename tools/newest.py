"""Which packages the nightly job raises, from what to what, as Markdown; `--install` raises them in this environment.

    python3 tools/newest.py [--install]

Takes pins off, so that a release of yesterday meets the labs before a learner does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

NAMES = ("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt-rtx", "nvidia-modelopt")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def versions(names=NAMES) -> dict[str, str]:
    """Name → installed version, "" where it is not there."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def newest(name: str, run=subprocess.run) -> str:
    """The newest release that pip can see for this Python, "" where it sees none."""
    index = ["--index-url", CPU_INDEX] if name == "torch" else []
    command = [sys.executable, "-m", "pip", "index", "versions", name, *index]
    answer = run(command, capture_output=True, text=True)
    found = re.search(r"Available versions: ([^,\s]+)", answer.stdout or "")
    return found[1] if found else ""


def table(before: dict[str, str], after: dict[str, str]) -> str:
    """What changed first, in a table of Markdown."""
    changed = [name for name in before if before[name] != after.get(name) and after.get(name)]
    rows = [f"| {name} | {before[name] or 'none'} | {after[name]} |" for name in changed]
    same = ", ".join(f"{name} {before[name]}" for name in before if name not in changed)
    head = f"## {len(changed)} of {len(before)} packages are newer than the labs' pins"
    lines = [head, "", *(["| package | pinned | newest |", "| --- | --- | --- |", *rows, ""] if rows else [])]
    return "\n".join([*lines, f"As pinned: {same}" if same else "Every package is newer."])


def main(arguments: list[str], run=subprocess.run) -> int:
    """Print the table; 1 where pip could not install what it saw."""
    before = versions()
    after = {name: newest(name, run) for name in before}
    print(table(before, after), flush=True)
    code = 0
    for name in NAMES if "--install" in arguments else ():
        if after[name] and after[name] != before[name]:
            index = ["--index-url", CPU_INDEX] if name == "torch" else []
            # --no-deps: the pins of the others must not hold it back; what does not fit shows in the tests.
            command = [sys.executable, "-m", "pip", "install", "--no-deps", f"{name}=={after[name]}", *index]
            code |= run(command, stdout=sys.stderr).returncode
    if "--install" in arguments and after["tensorrt-rtx"] != before["tensorrt-rtx"]:  # a shell around its real parts
        code |= run(
            [sys.executable, "-m", "pip", "install", f"tensorrt-rtx=={after['tensorrt-rtx']}"], stdout=sys.stderr
        ).returncode
    return int(bool(code))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
