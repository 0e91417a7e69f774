"""Serialized engines on disk: saved whole or not at all, with a sidecar that says what they are and proves it.

An engine is native code. Before its bytes reach TensorRT they are compared with the checksum in the sidecar, and
the sidecar with a key that only this user has: a damaged engine and a stranger's engine are both refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labsupport import environment, errors, files
from labsupport.errors import EngineError, LabError, UntrustedEngine

SIDECAR_FORMAT = 1


@dataclass(frozen=True)
class Engine:
    """A serialized engine and its sidecar: what it was built from and for, in which precision, how long it took."""

    path: Path
    sidecar: Mapping
    log: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    from_cache: bool = False

    @property
    def name(self) -> str:
        """Name it was built under."""
        return self.sidecar["name"]

    @property
    def precision(self) -> str:
        """The precision that was asked for; ``precisions`` says what was built."""
        return self.sidecar["precision"]

    @property
    def precisions(self) -> Counter:
        """How many layers run in which type, read back from the engine (or its typed network, see ``evidence``)."""
        return Counter(self.sidecar["precisions"])

    @property
    def evidence(self) -> str:
        """Where ``precisions`` was read: "engine inspector" or "typed network" (no GPU to open the engine on)."""
        return self.sidecar["evidence"]

    @property
    def build_s(self) -> float:
        """Seconds the builder took when this engine was made (not the time to find it in the cache)."""
        return self.sidecar["build_s"]

    @property
    def size_mib(self) -> float:
        """Size of the serialized engine in MiB."""
        return self.path.stat().st_size / 2**20

    @property
    def runnable_here(self) -> bool:
        """Whether this machine can execute it: a GPU, and a TensorRT that it was built for."""
        return environment.has("engine execution") and not why_not_here(self.sidecar)

    @property
    def layers(self) -> list:
        """The engine inspector's layer records; empty where the engine could not be opened."""
        return self.sidecar.get("layers", [])

    def plan(self) -> bytes:
        """The engine's bytes, checked against the sidecar before anybody executes them. Raises EngineError."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise EngineError(f"{self.path.name} cannot be read ({error.strerror}); build it again") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.sidecar["sha256"]:
            if digest == _checksum_now(self.path):
                raise EngineError(
                    f"{self.path.name} was built again since; use the engine that the later build.engine returned"
                )
            wanted = self.sidecar["bytes"]
            raise EngineError(
                f"{self.path.name} is damaged: it has {len(data)} bytes and another checksum than the {wanted} bytes "
                f"that were built; delete it and build it again"
            )
        return data

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind}×{n}" for kind, n in self.precisions.most_common())
        origin = (
            f"found in the cache, built in {self.build_s:.1f} s"
            if self.from_cache
            else f"built in {self.build_s:.1f} s"
        )
        return f"Engine({self.name}: asked {self.precision}, got {kinds}; {self.size_mib:.1f} MiB; {origin})"


def save(data: bytes, path: Path, facts: Mapping) -> Engine:
    """Write an engine and its signed sidecar atomically; an older engine under the name stays until both are whole."""
    sidecar = dict(facts, format=SIDECAR_FORMAT, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    sidecar["signature"] = _sign(sidecar)
    with _writing(path):
        beside = json.dumps(sidecar, indent=1, sort_keys=True).encode()
        with files.locked(path):
            files.replace_all({path: data, sidecar_path(path): beside})  # a full disk leaves the former pair
    return Engine(path=path, sidecar=sidecar)


def _checksum_now(path: Path) -> str:
    try:
        return json.loads(sidecar_path(path).read_text(encoding="utf-8")).get("sha256", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def load(path: str | os.PathLike, *, allow_foreign: bool = False) -> Engine:
    """Find an engine on disk and check sidecar, signature, checksum and machine, before TensorRT sees a byte.

    ``allow_foreign=True`` accepts an engine without a sidecar of ours: do that only for a file you built yourself
    elsewhere, since loading an engine runs its code. Raises EngineError, UntrustedEngine.
    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/security.html
    """
    path = Path(path)
    try:
        return _load(path, allow_foreign)
    except EngineError:
        if Path(f"{path}.lock").exists():  # it may be replaced at this moment: look again when that is done
            with contextlib.suppress(OSError), files.locked(path, patience_s=10):
                return _load(path, allow_foreign)
        raise


def _load(path: Path, allow_foreign: bool) -> Engine:
    if not path.is_file():
        raise EngineError(f"{path.name}: no such engine (looked in {path.parent}); build one with build.engine(graph)")
    size = path.stat().st_size
    if size == 0:
        raise EngineError(f"{path.name} is empty (0 bytes): the copy was cut off; build it again")
    sidecar = _read_sidecar(path, allow_foreign)
    engine = Engine(path=path, sidecar=sidecar, from_cache=True)
    engine.plan()
    fit = why_not_here(sidecar)
    if fit:
        raise EngineError(f"{path.name} {fit}; build it again on this machine")
    return engine


def why_not_here(sidecar: Mapping) -> str:
    """Why an engine cannot run here, as far as its sidecar tells; "" when it can (or when nothing can run here)."""
    built, here = sidecar.get("built_for") or {}, built_for()
    if not built:
        return ""
    built = {key: built.get(key) for key in here} | {
        key: built.get(key) for key in ("version_compatible", "hardware_compatible")
    }
    theirs, ours = f"{built['product']} {built['version']}", f"{here['product']} {here['version']}"
    if here["version"] and theirs != ours and not built.get("version_compatible"):
        return f"was built by {theirs}, and this is {ours} (engines do not move between versions)"
    if built["os"] != here["os"]:
        return f"was built on {built['os']}, and this is {here['os']}"
    mine, its = here["compute_capability"], built["compute_capability"]
    if mine and its and list(mine) != list(its) and not built.get("hardware_compatible"):
        return f"was built for compute capability {its[0]}.{its[1]}, and this GPU has {mine[0]}.{mine[1]}"
    return ""


def built_for(compute_capability=None) -> dict:
    """What an engine built now would be tied to: product, version, operating system, GPU."""
    machine = environment.machine()
    return {
        "product": machine.tensorrt_product,
        "version": machine.tensorrt,
        "os": sys.platform,
        "gpu": machine.gpu,
        "compute_capability": list(compute_capability or machine.compute_capability or []) or None,
    }


def sidecar_path(path: Path) -> Path:
    """Where an engine's sidecar lies: beside it, with ``.json`` appended."""
    return path.with_name(path.name + ".json")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    with _writing(path):
        files.replace(path, data)


@contextlib.contextmanager
def turn(path: Path):
    """One builder at a time for one engine, in whichever process or thread; the others wait, and find what it made."""
    with contextlib.ExitStack() as stack:
        with _writing(path):
            key = path.with_suffix(".build")
            try:
                stack.enter_context(files.locked(key, patience_s=2))
            except TimeoutError:
                errors.warn(f"{path.name} is being built by another process; waiting for it")
                stack.enter_context(files.locked(key, patience_s=-1))
        yield


@contextlib.contextmanager
def _writing(path: Path):
    """Turn an error of the disk into one that names the way out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise LabError(
            f"{path.name} could not be written to {path.parent} ({error.strerror or error}); free some space or point "
            "LABSUPPORT_CACHE at another folder. What was saved there before is unchanged"
        ) from error


def _read_sidecar(path: Path, allow_foreign: bool) -> dict:
    way = f"If you built it yourself, build.load({path.name!r}, allow_foreign=True) runs it; otherwise build it again"
    beside = sidecar_path(path)
    if not beside.is_file():
        if not allow_foreign:
            raise UntrustedEngine(
                f"{path.name} has no sidecar ({beside.name}), so nobody can say what code it holds. {way}"
            )
        data = path.read_bytes()
        return {
            "name": path.stem,
            "precision": "unknown",
            "precisions": {"unknown": 1},
            "evidence": "none: no sidecar",
            "build_s": 0.0,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "layers": [],
        }
    try:
        sidecar = json.loads(beside.read_text(encoding="utf-8"))
        signature, claimed = str(sidecar.get("signature", "")).encode(), _sign(sidecar).encode()
        kinds: dict = {
            "name": str,
            "precision": str,
            "precisions": dict,
            "sha256": str,
            "bytes": int,
            "build_s": (int, float),
        }
        wrong = [key for key, kind in kinds.items() if not isinstance(sidecar[key], kind)]
        if wrong or not isinstance(sidecar.get("built_for") or {}, dict):
            raise ValueError(f"wrong type of {', '.join(wrong) or 'built_for'}")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise EngineError(
            f"{beside.name} is damaged or not a sidecar ({error}); delete it and its engine and build again"
        ) from error
    if not hmac.compare_digest(signature, claimed) and not allow_foreign:
        raise UntrustedEngine(
            f"{path.name} was not built by this user on this machine (its sidecar carries another signature). {way}"
        )
    return sidecar


def _sign(sidecar: Mapping) -> str:
    body = {k: v for k, v in sidecar.items() if k != "signature"}
    return hmac.new(_key(), json.dumps(body, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    """This user's secret, made on first use; it stays out of the cache so that copying a cache does not copy trust."""
    folder = Path(os.environ.get("LABSUPPORT_KEYS") or Path.home() / ".config" / "labsupport")
    path = folder / "engine.key"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may both find no key: the lock lets one of them make it.
        with files.locked(path):
            key = path.read_bytes() if path.is_file() else b""
            if len(key) != 32:
                key = secrets.token_bytes(32)
                files.replace(path, key, mode=0o600)
        return key
    except OSError as error:
        raise LabError(
            f"the key that signs engines cannot be kept in {folder} ({error.strerror or error}); set LABSUPPORT_KEYS "
            "to a folder you can write to"
        ) from error
