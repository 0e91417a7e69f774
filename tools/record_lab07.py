"""Record what lab 07 replays, on a GPU: python tools/record_lab07.py (about 90 s, most of it building engines).

2:4 against dense kernels, same weights: one product in the forms that TensorRT may have sparse kernels for, and in
PyTorch; ResNet-50 at batch 64; the product over its width and number of rows. Writes to data/recordings as
`python3 -m labsupport record` does, beside what is there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labsupport import (  # noqa: E402
    benchmarking,
    build,
    comparing,
    environment,
    errors,
    export,
    fusion,
    models,
    pruning,
    recordings,
    runtimes,
)

COMMAND = "python tools/record_lab07.py"
BUDGET_S = 92  # no step is begun that would pass it
# width (inputs and outputs) and rows, the most telling first
PRODUCTS = ((8192, 4096), (1024, 4096), (4096, 128), (2048, 4096), (4096, 1024))
ALGORITHMS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28)


def thin_weight(width):
    """A 2:4 matrix in FP16."""
    import torch

    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    return (matrix * pruning.mask24(matrix)).half().numpy()


def rows_of(rows, width, form):
    """Inputs of a product in the shape that the form wants."""
    import torch

    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).half()
    shaped = {"matmul": x, "pixels": x[:, :, None, None], "image": x.T.reshape(1, width, rows // 64, 64)}[form]
    return shaped.contiguous().numpy()


def both_engines(network, name, feed, **options):
    """Device time with dense kernels over that with sparse ones allowed, the error between them, and the engine."""
    plain = build.engine(network, name=f"{name}_dense", progress=False, **options)
    sparse = {**options, "name": f"{name}_sparse", "configure": pruning.with_sparse_kernels, "progress": False}
    allowed = build.engine(network, **sparse)
    with runtimes.TensorRt(plain, cuda_graph=True) as dense, runtimes.TensorRt(allowed, cuda_graph=True) as thin:
        gain = benchmarking.paired(dense, thin, feed, clock="device")
        return gain, comparing.relative_error(dense(feed), thin(feed)), allowed


def resnet50():
    """ResNet-50, every layer that can be 2:4 pruned to it, batch 64, FP16."""
    import torch

    pictures = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = pruning.magnitude24(models.settle(models.resnet50(), pictures[:4])).model
    graph = export.to_onnx(model, pictures[:1])
    return both_engines(graph, "resnet50_b64_24", pictures.numpy(), precision="fp16", batch=64, optimization_level=1)


def in_tensorrt(width, rows, form):
    """One product in TensorRT: gain, error, engine."""
    network = pruning.gemm(thin_weight(width), rows, form=form)
    feed = rows_of(rows, width, form)
    return both_engines(network, f"gemm_{form}_n{width}_m{rows}", feed, precision="fp16", strict=True)


def in_torch(width, rows, algorithm=None):
    """The same product in PyTorch: gain and error."""
    thin, feed = thin_weight(width), rows_of(rows, width, "matmul")
    modules = [pruning.product(thin, rows, sparse=False), pruning.product(thin, rows, sparse=True, algorithm=algorithm)]
    with runtimes.Torch(modules[0], dtype="float16", cuda_graph=True) as dense, \
            runtimes.Torch(modules[1], dtype="float16", cuda_graph=True) as sparse:
        gain = benchmarking.paired(dense, sparse, feed, rounds=10, runs_per_round=3, warmup=3, clock="device")
        return gain, comparing.relative_error(dense(feed), sparse(feed))


class Session:
    """What one recording found so far, and how long it has taken."""

    def __init__(self, book):
        self.book, self.started, self.failed, self.best = book, time.monotonic(), [], {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def tell(self, *what) -> None:
        """One line, with the seconds since the start."""
        sys.stdout.write(f"{self.seconds:5.1f} s  {'; '.join(map(str, what))}\n")
        sys.stdout.flush()

    def attempt(self, step, *arguments, needs=5.0) -> None:
        """A step of the recording; one that fails is told, and the others go on."""
        if self.seconds + needs > BUDGET_S:
            return self.tell(f"no time for {step.__name__}{arguments}")
        try:
            step(self, *arguments)
        except (errors.LabError, RuntimeError) as reason:
            self.failed.append(step.__name__)
            self.tell(f"{step.__name__}{arguments} failed: {type(reason).__name__}: {str(reason)[:300]}")

    def offer(self, library, gain) -> None:
        """A gain of 2:4 on a product of at least 4096×4096 by 2048 rows; the best of each library is kept."""
        if library not in self.best or gain.median > self.best[library].median:
            self.best[library] = gain


def form_of_product(session, form) -> None:
    """The product of 4096×4096 by 4096 rows in one form: does TensorRT have a sparse kernel for it?"""
    if "TensorRT" in session.best:
        return  # a form with sparse kernels is known
    gain, error, allowed = in_tensorrt(4096, 4096, form)
    choice = pruning.chosen(allowed)
    said = [text for _, text in allowed.log if "parsity" in text]
    session.tell(f"TensorRT {form}: {gain!r}, relative error {error:.1e}; {choice!r}", dict(choice.tactics), *said)
    kernels = [layer.get("TacticName") for layer in allowed.layers if isinstance(layer, dict) and layer.get("TacticName")]
    session.tell(f"kernels: {kernels}")
    session.book.record(f"gemm_{form}.sparse24_over_dense", gain)
    if form == "pixels":
        session.book.record("gemm_n4096_m4096.sparse24_over_dense", gain)
    if choice.chosen or choice.tactics:
        session.offer("TensorRT", gain)


def torch_product(session, width, rows) -> None:
    """The same in PyTorch as F.linear does it, then with other kernels of cuSPARSELt."""
    gain, error = in_torch(width, rows)
    session.tell(f"PyTorch n{width} m{rows}: {gain!r}, relative error {error:.1e}")
    session.book.record(f"gemm_torch_n{width}_m{rows}.sparse24_over_dense", gain)
    session.offer("PyTorch", gain)


def torch_algorithm(session, width, rows, algorithm) -> None:
    """One kernel of cuSPARSELt by its number."""
    gain, error = in_torch(width, rows, algorithm)
    session.tell(f"PyTorch n{width} m{rows}, algorithm {algorithm}: {gain!r}, relative error {error:.1e}")
    session.offer("PyTorch", gain)


def resnet50_b64(session) -> None:
    """Gain, count of sparse kernels, and the plan in which they are named."""
    gain, error, allowed = resnet50()
    choice = pruning.chosen(allowed)
    session.tell(session.book.record("resnet50_b64.sparse24_over_dense", gain), f"error {error:.1e}", repr(choice),
                 dict(list(choice.tactics.items())[:3]))
    session.book.record("resnet50_b64.sparse_kernels", max(len(choice.tactics), len(choice.chosen)), "layers")
    session.book.record("resnet50_b64.sparse_candidates", len(choice.eligible), "layers")
    recordings.save_plan("resnet50_b64.sparse24", fusion.dump(allowed), command=COMMAND)


def product_of_sweep(session, width, rows) -> None:
    """One point of the break-even over width and rows, in TensorRT."""
    gain, error, allowed = in_tensorrt(width, rows, "pixels")
    session.tell(f"TensorRT n{width} m{rows}: {gain!r}, relative error {error:.1e}; {pruning.chosen(allowed)!r}")
    session.book.record(f"gemm_n{width}_m{rows}.sparse24_over_dense", gain)


def main() -> None:
    """Measure one thing after the other, and store what there is; what failed makes the exit status 1."""
    environment.require("engine execution")
    session = Session(recordings.lab("07_pruning"))
    with tempfile.TemporaryDirectory(prefix="labsupport-record-") as folder:
        os.environ["LABSUPPORT_METRICS"] = folder
        for form in ("pixels", "matmul", "image"):
            session.attempt(form_of_product, form)
        for width in (4096, 8192):
            session.attempt(torch_product, width, 4096)
        session.attempt(resnet50_b64, needs=25)
        for algorithm in ALGORITHMS:
            session.attempt(torch_algorithm, 4096, 4096, algorithm, needs=3)
        for width, rows in PRODUCTS:
            session.attempt(product_of_sweep, width, rows, needs=8)
        best = session.best.get("TensorRT") or session.best.get("PyTorch")
        if best:
            session.tell(session.book.record("gemm.sparse24_over_dense", best), f"best of each: {session.best}")
        recordings.store("07_pruning", folder, command=COMMAND, seconds=round(session.seconds, 1))
    if session.failed:
        raise SystemExit(f"failed: {', '.join(session.failed)}")


if __name__ == "__main__":
    main()
