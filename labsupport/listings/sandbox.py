"""Code of somebody else, run in a child process with a time limit and a scratch folder; nothing stays behind.

A guard against accidents, not against malice: it stops what a listing does by mistake. It hears what Python opens; a
library that opens a file in C++, as torch.save does with a path, is not heard.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, NotAvailable

MOST_TEXT = 20_000  # characters kept of what a program prints
MOST_FILE_BYTES = 64 * 2**20
BUILDER_ERROR = re.compile(r"\[TRT\] \[[EF]\] *(.*\S)")  # as TensorRT's own logger writes to stderr, behind the time


@dataclass(frozen=True)
class Outcome:
    """How a program ended: "ok", "raised", "refused" (the guard stopped it), "hung" (the limit did) or "died".

    ``error`` and ``message`` say what it raised, ``line`` (from 1) where; ``files`` are those it wrote, removed since.
    What was raised without a text, such as a bare assert, has the last error of TensorRT's logger as its message.
    """

    kind: str
    error: str = ""
    message: str = ""
    line: int | None = None
    printed: str = ""
    files: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.kind == "ok"

    def __repr__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        said = {"ok": "runs", "hung": f"hung: {self.message}", "died": f"died: {self.message}"}
        return said.get(self.kind, f"{where}{self.error}: {self.message}")


def python(
    code: str,
    *,
    seconds: float = 20,
    modules: Mapping[str, str] | None = None,
    given: Mapping[str, object] | None = None,
    stand_ins: Mapping[str, Iterable[str]] | None = None,
) -> Outcome:
    """Run Python code in a child of this very Python; the child sees no stdin, and its folder is removed.

    modules: name in the code → module to import for it, such as {"tensorrt": "tensorrt_rtx"}.
    given: names that the code finds defined, of values that JSON can hold.
    stand_ins: name of a module → dotted names that it lacks; everything else of it is there and does nothing.
    Writing outside the folder, starting a process and reaching the network are refused and end as "refused".
    """  # fmt: skip
    job = {"code": code, "modules": dict(modules or {}), "given": dict(given or {}),
           "stand_ins": {name: list(lacks) for name, lacks in (stand_ins or {}).items()},
           "seconds": seconds, "most_bytes": MOST_FILE_BYTES, "folders": _package_folders()}  # fmt: skip
    return _run([sys.executable, "-I", "-B", "-u", "-X", "utf8", "-c", CHILD], job, seconds)


def shell(code: str, *, seconds: float = 20) -> Outcome:
    """Run Bash lines, `python` and `pip` being those of this environment, without network and without installing."""
    import shutil

    bash = shutil.which("bash")
    if bash is None:
        raise NotAvailable("there is no bash on this machine; read the lines instead, or run this on Linux or macOS")
    words = f'python() {{ "{sys.executable}" "$@"; }}\npip() {{ "{sys.executable}" -m pip "$@"; }}\nset -e\n'
    return _run([bash, "--noprofile", "--norc", "-c", words + code], None, seconds)


def _run(command: list[str], job: dict | None, seconds: float) -> Outcome:
    if not 0 < seconds <= 600:
        raise BadInput(f"seconds={seconds!r}; wanted is a limit above 0 and at most 600")
    with files.scratch() as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        report = folder / "report.json"
        if job is not None:
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            command = [*command, str(folder / "job.json"), str(report)]
        with tempfile.TemporaryFile() as output:  # a pipe would be kept open by what the child leaves running
            child = subprocess.Popen(
                command,
                cwd=scratch,
                env=_variables(scratch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=os.name == "posix",
            )
            hung = False
            try:
                child.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                hung = True
            finally:  # also when the learner interrupts
                _end(child)
            output.seek(0)
            printed = output.read(4 * MOST_TEXT).decode(errors="replace")[:MOST_TEXT]
            printed = printed.replace(str(folder), "…").replace(sys.executable, "python")
        paths = tuple(sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if not path.is_dir()))
        if hung:
            return Outcome(
                "hung", message="it did not end within its limit, so it was stopped", printed=printed, files=paths
            )
        return _read(report, child.returncode, printed, paths, job is not None)


def _read(report: Path, code: int, printed: str, files: tuple[str, ...], from_python: bool) -> Outcome:
    try:
        said = json.loads(report.read_text(encoding="utf-8"))
        if said["kind"] == "raised" and not said["message"]:
            said["message"] = "".join(BUILDER_ERROR.findall(printed)[-1:])[:400]
        return Outcome(said["kind"], said["error"], said["message"], said["line"], printed, files)
    except (OSError, ValueError, KeyError):
        pass
    if code == 0 and not from_python:
        return Outcome("ok", printed=printed, files=files)
    last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
    if from_python:
        return Outcome(
            "died", message=f"exit code {code}; its last words: {last[:200] or 'none'}", printed=printed, files=files
        )
    return Outcome("raised", f"exit code {code}", last[:200], None, printed, files)


def _package_folders() -> list[str]:
    """Folders beside site-packages that this process imports from, which an isolated child does not look into."""
    here = Path(__file__).resolve().parents[2]  # a listing knows nothing of this workbook
    named = (Path(name) for name in os.environ.get("PYTHONPATH", "").split(os.pathsep) if name)
    return [str(folder) for folder in named if folder.is_dir() and folder.resolve() != here]


def _variables(scratch: Path) -> dict[str, str]:
    """What a child needs of this environment, its home and temporary files in the scratch folder."""
    kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV")
    own = dict.fromkeys(
        ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "MPLCONFIGDIR"), str(scratch)
    )
    # pip in a listing resolves, and neither reaches out nor installs
    pip = {
        "PIP_NO_INDEX": "1",
        "PIP_DRY_RUN": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    passed = {name: os.environ[name] for name in kept if name in os.environ}
    return {**passed, **own, **pip, "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "CUDA_CACHE_DISABLE": "1"}  # fmt: skip


def _end(child: subprocess.Popen) -> None:
    """End the child and, on POSIX, all that it started in its session."""
    if os.name == "posix":
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:  # macOS: only zombies are left
            pass
    elif child.poll() is None:
        child.kill()
    child.wait()


CHILD = r'''
import json, os, sys, types

with open(sys.argv[1], encoding="utf-8") as file:
    job = json.load(file)
sys.path += [folder for folder in job["folders"] if folder not in sys.path]
report = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
scratch = os.path.realpath(os.getcwd())
refusals = []

try:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["most_bytes"], job["most_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass

class StandIn(types.ModuleType):
    """Has every name but those that the real module is known to lack; what is done with it does nothing."""

    def __init__(self, name, lacks):
        super().__init__(name)
        self.__dict__["_lacks"], self.__dict__["__path__"] = lacks, []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{self.__name__}.{name}"
        if path in self._lacks:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__dict__[name] = StandIn(path, self._lacks)
        return self.__dict__[name]

    def __call__(self, *args, **named): return StandIn(self.__name__ + "()", self._lacks)
    def __enter__(self): return self
    def __exit__(self, *error): return False
    def __iter__(self): return iter(())
    def __getitem__(self, key): return StandIn(self.__name__ + "[]", self._lacks)
    def __mul__(self, other): return self

class Finder:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in job["stand_ins"]:
            import importlib.machinery
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return StandIn(spec.name, set(job["stand_ins"][spec.name.partition(".")[0]]))
    def exec_module(self, module): pass

sys.meta_path.insert(0, Finder())
for name, real in job["modules"].items():
    import importlib
    sys.modules[name] = importlib.import_module(real)

class Refused(PermissionError):
    pass

def refuse(what):
    refusals.append(what)
    raise Refused(f"the sandbox refuses to {what}")

def inside(path):
    if isinstance(path, int):
        return True
    path = os.path.realpath(os.fsdecode(path))
    return path == os.devnull or path == scratch or path.startswith(scratch + os.sep)

CHANGES = {"os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
           "os.truncate": 1,
           "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1, "sqlite3.connect": 1}
STARTS = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
          "subprocess.Popen", "pty.spawn")
REACHES = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")

def guard(event, args):
    if event == "open":
        path, mode, flags = args[0], args[1], args[2]
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if (writes or isinstance(mode, str) and set(mode) & set("wax+")) and not inside(path):
            refuse("write outside its folder")
    elif event in CHANGES:
        if not all(inside(path) for path in args[:CHANGES[event]]):
            refuse("change files outside its folder")
    elif event in STARTS:
        refuse("start another process")
    elif event in REACHES:
        refuse("reach the network")
    elif event in ("os.kill", "os.killpg"):
        refuse("signal another process")

def line_of(error):
    if isinstance(error, SyntaxError) and error.filename == "<listing>":
        return error.lineno
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<listing>":
            line = step.tb_lineno
        step = step.tb_next
    return line

def told(kind, error=None):
    # a listing may have raised anything, also what has no text
    name = type(error).__name__ if error is not None else ""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error) if error is not None else ""
    except Exception:
        text = "(its text cannot be had)"
    for name_here, real in job["modules"].items():
        text = str(text).replace(f"'{real}'", f"'{name_here}'")
    first = next((line.strip() for line in str(text).splitlines() if line.strip()), "")
    os.write(report, json.dumps({"kind": kind, "error": name, "message": first.replace(scratch, "…")[:400],
                                 "line": line_of(error) if error is not None else None}).encode())

names = {"__name__": "__main__", **job["given"]}
sys.argv = ["listing"]
sys.addaudithook(guard)
try:
    exec(compile(job["code"], "<listing>", "exec"), names)
    told("refused", Refused(f"the sandbox refuses to {refusals[0]}")) if refusals else told("ok")
except SystemExit as error:
    told("raised" if error.code else "ok", error if error.code else None)
except BaseException as error:
    if refusals and not isinstance(error, Refused):
        error = Refused(f"the sandbox refuses to {refusals[0]}")
    told("refused" if refusals else "raised", error)
sys.stdout.flush()
os._exit(0)
'''
