"""Make `.venv` and install what the labs need: the GPU set, the CPU set, or TensorRT-RTX; standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from labsupport import files
from labsupport.command_line.doctor import SUPPORTED_PYTHON
from labsupport.command_line.package_sets import NEEDED_GIB, OPTIONAL, SETS, TORCH, Choice, choose
from labsupport.command_line.pip_messages import explain, missing_distribution, shorter
from labsupport.environment import packages
from labsupport.errors import LabError

REPOSITORY = Path(__file__).resolve().parents[2]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
# Modules that a command cannot do without; an environment that has them all is used as it is.
COMMON = ("numpy", "torch", "onnx", "onnxruntime", "pandas", "matplotlib", "tqdm", "ipykernel", "nbclient", "filelock")
NEEDS = {"lab": (*COMMON, "jupyterlab"), "test": (*COMMON, "pytest", "nbval"), "run": COMMON}


class InstallationError(LabError):
    """The environment could not be made; the message says what to do."""


def interpreter(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def lacking(command: str, *, installed=packages.package_folder) -> list[str]:
    """Modules that `command` needs and this interpreter lacks."""
    return [module for module in NEEDS[command] if installed(module) is None]


def fits(asked: str | None, torch_build=packages.torch_build) -> bool:
    """Whether the PyTorch that is here belongs to the set asked for."""
    return asked is None or (torch_build()[1] is None) == (asked == "cpu")


class Installation:
    """The environment in `<repository>/.venv`; each step is a method, so that a test can watch it.

    run: replaces the subprocess that runs pip and venv; takes a command, returns (exit code, output).
    say: where progress lines go. wheelhouse: a folder to install from instead of any package index.
    """

    def __init__(
        self, repository: Path = REPOSITORY, *, run=None, say=None, platform: str = sys.platform, wheelhouse=None
    ):
        self.repository = repository
        self.wheelhouse = wheelhouse and Path(wheelhouse).resolve()
        self.folder = repository / ".venv"
        self.stamp = self.folder / "labsupport.json"
        self.python = interpreter(self.folder)
        self.run = run or self._subprocess
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.platform = platform

    def ready(self, asked: str | None = None, optional: Iterable[str] = ()) -> bool:
        """Whether the last installation finished, for this pyproject.toml, the set and the extras asked for."""
        stamp = self.read_stamp()
        return (
            self.python.exists()
            and stamp.get("hash") == self.wanted_hash()
            and (asked is None or stamp.get("set") == asked)
            and set(optional) <= set(stamp.get("optional", ()))
        )

    def read_stamp(self) -> dict:
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def wanted_hash(self) -> str:
        """Hash of the part of pyproject.toml that says what to install."""
        text = (self.repository / "pyproject.toml").read_text(encoding="utf-8")
        return hashlib.sha256(text.partition("\n[tool.")[0].encode()).hexdigest()

    def extras(self) -> dict[str, list[str]]:
        """Names in each extra of pyproject.toml (Python 3.10 has no TOML reader, and this file is ours)."""
        text = (self.repository / "pyproject.toml").read_text(encoding="utf-8")
        section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
        lists = re.findall(r"^(\w+) = \[(.*?)\](?:\s*#.*?)?$", section, re.MULTILINE | re.DOTALL)
        return {name: re.findall(r'"([A-Za-z0-9_.-]+)', body) for name, body in lists}

    def ensure(self, asked: str | None = None, *, torch_index: str | None = None, optional: Iterable[str] = ()) -> Path:
        """Python of a finished `.venv`; instant when nothing changed, resumed when it was interrupted.

        `optional` are names of OPTIONAL to add; one that cannot be had is said and left out.
        """
        if self.ready(asked, optional):
            return self.python
        check_python()
        with self.locked():
            if self.ready(asked, optional):  # another process finished it while this one waited
                return self.python
            if self.ready(asked):
                self.install_optional(optional)
                return self.python
            before = self.read_stamp().get("set")
            choice = Choice(before, "Dependencies changed") if before in SETS and not asked else choose(asked)
            self.say(repr(choice))
            try:
                self.install(choice.name, before, torch_index)
                self.install_optional(optional)
            except OSError as error:  # a full disk after pip's last file, a folder that belongs to someone else
                reason = error.strerror or str(error)
                raise InstallationError(
                    f"the installation could not be finished ({reason}: {error.filename or self.folder}); free some "
                    f"space, see that {self.folder} is yours, then run the same command again: it goes on"
                ) from error
        return self.python

    def install(self, name: str, before: str | None, torch_index: str | None) -> None:
        """All steps for the set `name`; `before`: the set that `.venv` holds already."""
        self.check_disk(name)
        started = time.monotonic()
        self.make_folder()
        if before and before != name:
            self.remove_other_set(before, name)
        self.install_torch(name, torch_index)
        self.install_rest(name)
        self.quiet_jupyterlab()
        self.write_stamp(name)
        self.say(f"Environment ready in {time.monotonic() - started:.0f} s: {self.folder}")

    def check_disk(self, name: str, free_gib: float | None = None) -> None:
        if free_gib is None:
            free_gib = shutil.disk_usage(self.repository).free / 2**30
        # A resumed or changed installation has most of its bytes in place already.
        needed = NEEDED_GIB[name] if not self.python.exists() else 1
        if free_gib < needed:
            raise InstallationError(
                f"{self.repository} has {free_gib:.1f} GiB free, and {SETS[name]} takes "
                f"{needed} GiB; free some space, or clone the repository on another disk"
            )

    def make_folder(self) -> None:
        """Create `.venv` with uv where there is one, else with venv; keep one whose Python works."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise InstallationError(
                f"{self.folder} is no folder, and the environment belongs there; move it away, "
                "then run the same command again"
            )
        if self.python.exists() and self.run([str(self.python), "-m", "pip", "--version"])[0] == 0:
            return
        self.say(f"Creating {self.folder}")
        uv = shutil.which("uv")
        options = ["--seed", "--allow-existing", "--python", sys.executable]
        if uv and self.run([uv, "venv", *options, str(self.folder)])[0] == 0:
            return
        code, output = self.run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        if code:
            raise InstallationError(explain(output, "the virtual environment could not be created"))

    def pip(self, *arguments: str) -> tuple[int, str]:
        """Install with uv where there is one, and with pip where uv failed: it reads none of pip's settings."""
        if self.wheelhouse:
            arguments = (arguments[0], "--no-index", "--find-links", str(self.wheelhouse), *arguments[1:])
        uv = shutil.which("uv")
        if uv:
            code, output = self.run([uv, "pip", arguments[0], "--python", str(self.python), *arguments[1:]])
            if code == 0:
                return code, output
            self.say("uv could not do it, trying pip")
        return self.run([str(self.python), "-m", "pip", arguments[0], "--disable-pip-version-check", *arguments[1:]])

    def remove_other_set(self, before: str, now: str) -> None:
        """Uninstall what only the former set has, and torch: a CPU build would satisfy the GPU set's pin."""
        extras = self.extras()
        alone = sorted(set(extras.get(before, ())) - set(extras.get(now, ())))
        self.say(f"Removing {', '.join(['torch', *alone])}")
        self.run([str(self.python), "-m", "pip", "uninstall", "-y", "torch", *alone])

    def install_torch(self, name: str, index: str | None) -> None:
        """PyTorch before the rest, so that no dependency draws in the CUDA build of several gigabytes."""
        self.say("Installing PyTorch")
        for arguments in self.torch_attempts(name, index):
            code, output = self.pip("install", *arguments)
            if code == 0:
                return
            if not missing_distribution(output):
                break
        raise InstallationError(
            explain(output, "PyTorch could not be installed") + "; another package index for "
            "PyTorch can be named with --torch-index URL"
        )

    def torch_attempts(self, name: str, index: str | None) -> list[list[str]]:
        """pip arguments to try in turn."""
        torch = TORCH[name]
        if self.wheelhouse:
            return [[torch]]
        if index:
            return [[torch, "--index-url", index]]
        if name == "cpu" and self.platform.startswith("linux"):
            # PyPI's Linux build is the CUDA one; a configured index may carry the CPU one by its local version.
            return [[f"{torch}+cpu"], [torch, "--index-url", TORCH_CPU_INDEX]]
        if name != "cpu" and self.platform == "win32":
            return [[torch, "--index-url", TORCH_CUDA_INDEX]]  # PyPI's Windows build is the CPU one
        return [[torch]]

    def install_rest(self, name: str) -> None:
        self.say("Installing everything else")
        code, output = self.pip("install", "--editable", f"{self.repository}[{name},test]")
        if code:
            raise InstallationError(explain(output, "the packages could not be installed"))
        if name == "gpu" and not self.wheelhouse and self.pip("install", *self.requirements("pycuda"))[0]:
            self.say("PyCUDA could not be compiled (it needs the CUDA toolkit's headers); the labs run without it")

    def install_optional(self, names: Iterable[str]) -> None:
        """The extras one by one: each goes on without the others, and the labs without all of them."""
        names = [name for name in OPTIONAL if name in set(names)]
        for name in names:
            self.say(f"Installing {OPTIONAL[name]}")
            # The torch that is there is named again, or an extra's own wish would draw in another build.
            code, output = self.pip("install", *self.requirements(name), TORCH[self.read_stamp()["set"]])
            if code:
                self.say(explain(output, f"{OPTIONAL[name]} could not be installed; the labs go on without"))
        if names:
            self.write_stamp(self.read_stamp()["set"], names)

    def requirements(self, extra: str) -> list[str]:
        text = (self.repository / "pyproject.toml").read_text(encoding="utf-8")
        found = re.search(rf"^{extra} = \[(.*?)\](?:\s*#.*)?$", text, re.MULTILINE | re.DOTALL)
        return re.findall(r'"([^"]+)"', found.group(1)) if found else []

    def quiet_jupyterlab(self) -> None:
        """Switch off the question about Jupyter news, which covers the first notebook; in this environment only."""
        file = self.folder / "etc" / "jupyter" / "labconfig" / "page_config.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))

    def write_stamp(self, name: str, optional: Iterable[str] = ()) -> None:
        stamp = {"hash": self.wanted_hash(), "set": name, **({"optional": list(optional)} if optional else {})}
        files.replace(self.stamp, json.dumps(stamp).encode("utf-8"))

    @contextlib.contextmanager
    def locked(self):
        """One installer at a time; the system drops the lock of a process that dies."""
        try:
            file = open(self.repository / ".venv.lock", "a+b")
        except OSError as error:
            raise InstallationError(
                f"{self.repository} cannot be written ({error.strerror}); clone the repository "
                "into a folder of your own"
            ) from error
        with file:
            if not try_lock(file):
                self.say("Another labsupport is installing; waiting for it")
                while not try_lock(file):
                    time.sleep(0.3)
            yield

    def _subprocess(self, command: list[str]) -> tuple[int, str]:
        """Run a command; tell the learner which packages it is at, keep all of its output for `explain`."""
        environ = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_NO_INPUT": "1"}
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environ,
            cwd=self.repository,
        )
        lines = []
        try:
            for line in child.stdout:
                lines.append(line)
                if line.lstrip().startswith(("Downloading", "Installing collected")):
                    self.say("  " + shorter(line.strip()))
        except BaseException:  # Ctrl-C: no pip goes on behind the learner's back
            child.kill()
            raise
        finally:
            child.stdout.close()
            child.wait()
        return child.returncode, "".join(lines)


def try_lock(file) -> bool:
    """Take the lock of an open file; True also on file systems without locks."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # some network file systems know no locks; better unlocked than not at all
        return True
    return True


def check_python(version: tuple[int, int] | None = None) -> None:
    """Refuse a Python for which the dependencies have no builds, before pip fails in the middle."""
    version = version or (sys.version_info[0], sys.version_info[1])
    oldest, newest = SUPPORTED_PYTHON
    if oldest <= version <= newest:
        return
    have, low, high = (".".join(map(str, bound)) for bound in (version, oldest, newest))
    word = "old" if version < oldest else "new"
    raise InstallationError(
        f"Python {have} is too {word}: the labs need {low} to {high}; install Python 3.12 from "
        "https://www.python.org/downloads and run: python3.12 -m labsupport lab"
    )
