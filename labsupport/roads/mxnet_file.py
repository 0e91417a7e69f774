"""The network that MXNet trained and exported, and what MXNet itself answered; both with their checksums."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from labsupport import environment, export
from labsupport.errors import BadInput, NotAvailable

MXNET = environment.REPOSITORY / "data" / "mxnet"
SHA256 = {
    "digits.onnx": "cb0b9eba2d143c8b3578231cadbfc65bceaf46cd636c3f00a07fbbf583243b62",
    "reference.npz": "72b8c564a6efd6bb8ea50a51668edbb56f51b4c8dc16723a9a40bf5712e0982b",
}


def mxnet_graph():
    """The digit network that MXNet 1.9.1 trained and exported. Raises BadInput where the file was changed."""
    return export.load(_whole(MXNET / "digits.onnx"), exporter="mxnet")


def mxnet_reference() -> tuple[np.ndarray, np.ndarray]:
    """(images float32 (32, 1, 28, 28) from -1 to 1, logits float32 (32, 10)): digits, and MXNet's own answers."""
    with np.load(io.BytesIO(_whole(MXNET / "reference.npz").read_bytes()), allow_pickle=False) as stored:
        pixels, logits = stored["images"], stored["logits"]
    return ((pixels[:, None].astype(np.float32) / 255 - 0.5) / 0.5), logits


def _whole(path: Path) -> Path:
    """The file, after its checksum was compared."""
    restore = f"restore it with: git checkout -- data/mxnet/{path.name}"
    try:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise NotAvailable(f"{path.name} cannot be read ({error.strerror}); {restore}") from None
    if checksum != SHA256[path.name]:
        raise BadInput(
            f"{path.name} is not the file it should be: SHA-256 {checksum[:12]}…, wanted {SHA256[path.name][:12]}…;"
            f" {restore}"
        )
    return path
