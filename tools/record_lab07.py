"""Record what lab 07 replays, on a GPU: python tools/record_lab07.py (up to 150 s, most of it building engines).

2:4 against dense kernels, same weights: one product in TensorRT and in PyTorch; ResNet-50 at batch 64; the product over
its width and number of rows, in TensorRT if that has a sparse kernel for it, else in PyTorch. Writes to data/recordings
as `python3 -m labsupport record` does, beside what is there.
"""

from __future__ import annotations

import sys
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
BUDGET_S = 150  # no step is begun that would pass it
# width (inputs and outputs) and rows, the most telling first
PRODUCTS = ((1024, 4096), (4096, 128), (2048, 4096), (4096, 1024), (8192, 4096))
IN_TORCH = ((4096, 4096), (8192, 4096))  # what PyTorch computes in any case
NEEDS_S = {"TensorRT": 25, "PyTorch": 5}  # one product: building twice takes most of it


def thin_weight(width):
    """A 2:4 matrix in FP16."""
    import torch

    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    return (matrix * pruning.mask24(matrix)).half().numpy()


def rows_of(rows, width, form):
    """Inputs of a product in the shape that TensorRT ("pixels") or PyTorch ("matmul") wants."""
    import torch

    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).half()
    return (x[:, :, None, None] if form == "pixels" else x).contiguous().numpy()


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


def in_tensorrt(width, rows):
    """One product in TensorRT, as a 1×1 convolution: gain, error, engine."""
    network = pruning.gemm(thin_weight(width), rows, form="pixels")
    return both_engines(network, f"gemm_n{width}_m{rows}", rows_of(rows, width, "pixels"), precision="fp16", strict=True)


def in_torch(width, rows):
    """The same product in PyTorch: gain and error."""
    thin, feed = thin_weight(width), rows_of(rows, width, "matmul")
    modules = [pruning.product(thin, rows, sparse=sparse) for sparse in (False, True)]
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

    def offer(self, library, width, rows, gain) -> None:
        """A gain of 2:4; the best of each library on a product of at least 4096×4096 by 2048 rows is kept."""
        if width < 4096 or rows < 2048:
            return
        if library not in self.best or gain.median > self.best[library].median:
            self.best[library] = gain


def tensorrt_product(session, width, rows) -> None:
    """One product in TensorRT, and whether it has a sparse kernel for it."""
    gain, error, allowed = in_tensorrt(width, rows)
    choice = pruning.chosen(allowed)
    said = [text for _, text in allowed.log if "parsity" in text]
    session.tell(f"TensorRT n{width} m{rows}: {gain!r}, relative error {error:.1e}; {choice!r}", choice.tactics, *said)
    kernels = [layer.get("TacticName") for layer in allowed.layers if isinstance(layer, dict)]
    session.tell(f"kernels: {list(filter(None, kernels))}")
    session.book.record(f"gemm_n{width}_m{rows}.sparse24_over_dense", gain)
    if choice.chosen or choice.tactics:
        session.offer("TensorRT", width, rows, gain)


def torch_product(session, width, rows) -> None:
    """The same in PyTorch, as F.linear does it."""
    gain, error = in_torch(width, rows)
    session.tell(f"PyTorch n{width} m{rows}: {gain!r}, relative error {error:.1e}")
    session.book.record(f"gemm_torch_n{width}_m{rows}.sparse24_over_dense", gain)
    session.offer("PyTorch", width, rows, gain)


def resnet50_b64(session) -> None:
    """Gain, count of sparse kernels, and the plan in which they are named."""
    gain, error, allowed = resnet50()
    choice = pruning.chosen(allowed)
    session.tell(session.book.record("resnet50_b64.sparse24_over_dense", gain), f"error {error:.1e}", repr(choice),
                 dict(list(choice.tactics.items())[:3]))
    session.book.record("resnet50_b64.sparse_kernels", max(len(choice.tactics), len(choice.chosen)), "layers")
    session.book.record("resnet50_b64.sparse_candidates", len(choice.eligible), "layers")
    recordings.save_plan("resnet50_b64.sparse24", fusion.dump(allowed), command=COMMAND)


def sweep(session) -> None:
    """The break-even over width and rows, where there is a sparse kernel."""
    library = "TensorRT" if "TensorRT" in session.best else "PyTorch"
    step = tensorrt_product if library == "TensorRT" else torch_product
    for width, rows in PRODUCTS:
        if not (library == "PyTorch" and (width, rows) in IN_TORCH):
            session.attempt(step, width, rows, needs=NEEDS_S[library])


def main() -> None:
    """Measure one thing after the other, and store what there is; what failed makes the exit status 1."""
    environment.require("engine execution")
    with recordings.session("07_pruning", command=COMMAND) as book:
        session = Session(book)
        session.attempt(tensorrt_product, 4096, 4096, needs=NEEDS_S["TensorRT"])
        for width, rows in IN_TORCH:
            session.attempt(torch_product, width, rows, needs=NEEDS_S["PyTorch"])
        session.attempt(resnet50_b64, needs=75)
        sweep(session)
        best = session.best.get("TensorRT") or session.best.get("PyTorch")
        if best:
            session.tell(session.book.record("gemm.sparse24_over_dense", best), f"best of each: {session.best}")
    if session.failed:
        raise SystemExit(f"failed: {', '.join(session.failed)}")


if __name__ == "__main__":
    main()
