"""Training on disk: written whole or not at all, read back only into the model and options it belongs to."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labsupport import files
from labsupport.errors import BadInput, LabError, at_least, first_line

if TYPE_CHECKING:
    import torch

FORMAT = 1
KEYS = {"epoch", "facts", "model_type", "model", "optimizer", "optimizer_type", "state"}
REMEDY = "delete it to start from the beginning, or give another path"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where training stood: `epoch` epochs were complete; `facts` say of what, `state` holds what else was saved."""

    path: Path
    epoch: int
    facts: Mapping[str, Any]
    state: Mapping[str, Any] = field(repr=False, default_factory=dict)

    def __repr__(self) -> str:
        return f"Checkpoint({self.path.name}: {self.epoch} epoch{'s' * (self.epoch != 1)} done)"


@dataclass(frozen=True)
class Place:
    """Where the checkpoint of one training lies, and those beside it of trainings that began from other weights."""

    path: Path
    others: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        if self.path.is_file():
            return f"goes on from {self.path.name}"
        names = ", ".join(other.name for other in self.others)
        return "starts from the beginning" + (f"; {names} began from other weights and can be deleted" if names else "")


def place(folder: str | os.PathLike, stem: str, model: torch.nn.Module) -> Place:
    """A path for the checkpoint of a training that begins from exactly these weights: folder/stem-<fingerprint>.pt.

    For a model that is itself trained anew in every kernel, and on a GPU never comes out the same to the last bit: what
    began from other weights is left alone, and the training starts over. Raises BadInput for a stem that is no name.
    """
    if not isinstance(stem, str) or not re.fullmatch(r"\w[\w.-]{0,99}", stem):
        raise BadInput(f"stem={stem!r:.60}; it begins a file's name: letters, digits, '.', '_' and '-'")
    path = Path(folder) / f"{stem}-{fingerprint(model)}.pt"
    beside = sorted(Path(folder).glob(f"{stem}-*.pt"))
    return Place(path, tuple(p for p in beside if p != path and re.fullmatch(r"[0-9a-f]{12}", p.stem[len(stem) + 1 :])))


def save(
    path: str | os.PathLike,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    epoch: int,
    facts: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write a checkpoint atomically; one that is there already stays until the new one is whole on the disk.

    `epoch`: how many are complete. `facts` are what makes this training this one (options, data, the `fingerprint` of
    a teacher); `load` compares them. `state` is what else is needed to go on: losses so far, generator states, the
    schedule's state dict. Raises BadInput for facts that are not plain values, LabError when the disk refuses.
    """
    import torch

    path = Path(path)
    at_least(0, epoch=epoch)
    content = {
        "format": FORMAT,
        "epoch": epoch,
        "facts": _as_text(facts),
        "model_type": type(model).__name__,
        "model": model.state_dict(),
        "optimizer": optimizer and optimizer.state_dict(),
        "optimizer_type": optimizer and type(optimizer).__name__,
        "state": dict(state or {}),
    }
    held = io.BytesIO()
    torch.save(content, held)
    _write(path, held.getvalue())
    return Checkpoint(path, epoch, json.loads(content["facts"]), content["state"])


def load(
    path: str | os.PathLike,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Fill `model` (and `optimizer`) in place from a checkpoint, after everything about it has been checked.

    Raises LabError, and changes nothing, for a file that is missing, cut off or no checkpoint, for one of another
    model or optimizer, and for one whose facts are not the `facts` wanted. Tensors only are read, never code:
    https://docs.pytorch.org/docs/stable/generated/torch.load.html (weights_only).
    """
    path = Path(path)
    content = _read(path)
    saved = json.loads(content["facts"])
    _check_model(path, content, model)
    if facts is not None:
        _check_facts(path, saved, json.loads(_as_text(facts)))
    if optimizer is not None:
        _load_optimizer(path, content, optimizer)
    model.load_state_dict(content["model"])
    return Checkpoint(path, content["epoch"], saved, content["state"])


def fingerprint(model: torch.nn.Module) -> str:
    """Twelve hexadecimal digits that change with any bit of a module's parameters and buffers (SHA-256)."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        flat = value.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        # through bytes: NumPy has no bfloat16
        digest.update(flat.reshape(-1).view(dtype=_byte()).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()[:12]


def _byte():
    import torch

    return torch.uint8


def _as_text(facts: Mapping[str, Any]) -> str:
    if not isinstance(facts, Mapping):
        raise BadInput(f"facts is a {type(facts).__name__}; wanted a dict such as {{'epochs': 8, 'seed': 0}}")
    try:
        return json.dumps(dict(facts), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"facts hold something that is no plain value ({error}); "
            "use text, numbers, lists, and fingerprint(model) in place of a model"
        ) from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, data)
    except OSError as error:
        kept = "the one before it is still there" if path.is_file() else "nothing was written"
        raise LabError(
            f"the checkpoint {path} could not be written ({error.strerror or error}); {kept}. "
            "Make room, or give a path in a folder that can be written"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    import torch

    if path.is_dir():
        raise LabError(f"{path} is a folder; give the path of a file in it, such as {path.name}/training.pt")
    if not path.is_file():
        raise LabError(f"{path}: there is no such checkpoint; train with checkpoint={path.name!r} to make one")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load takes a flipped bit for a weight; the archive's checksums do not
            if (damaged := archive.testzip()) is not None:
                raise LabError(f"{path} is damaged: the checksum of its part {damaged} is wrong; {REMEDY}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except LabError:
        raise
    except Exception as error:  # zip, pickle and tensor readers each have their own errors for a damaged file
        why = first_line(error)[:80]
        raise LabError(
            f"{path} cannot be read as a checkpoint: {path.stat().st_size} bytes, cut off, damaged or no "
            f"checkpoint at all ({why}); {REMEDY}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not KEYS <= content.keys():
        raise LabError(f"{path} holds a {type(content).__name__} that checkpoints.save did not write; {REMEDY}")
    return content


def _check_model(path: Path, content: dict[str, Any], model: torch.nn.Module) -> None:
    came = {name: tuple(value.shape) for name, value in content["model"].items()}
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in (*wanted, *came):
        if came.get(name) != wanted.get(name):
            raise LabError(
                f"{path} is a checkpoint of another model, {content['model_type']}: its {name} is "
                f"{came.get(name, 'not there')}, in the {type(model).__name__} to fill it is "
                f"{wanted.get(name, 'not there')}; make the model as it was when saved, or {REMEDY}"
            )


def _check_facts(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in (*wanted, *saved):
        came, want = saved.get(name, "not there"), wanted.get(name, "not there")
        if came != want:
            raise LabError(
                f"{path} belongs to another training: its {name} is {came!r}, wanted is {want!r}; "
                f"train with the same {name} to go on with it, or {REMEDY}"
            )


def _load_optimizer(path: Path, content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    came, wanted = content["optimizer_type"] or "no optimizer", type(optimizer).__name__
    try:
        if came != wanted:
            raise ValueError(f"it has {came}")
        optimizer.load_state_dict(content["optimizer"])
    except (ValueError, KeyError) as error:
        raise LabError(f"{path} has no state for this {wanted} over these weights ({error}); {REMEDY}") from error
