"""Record what lab 07 replays, on a GPU: python3 tools/record_lab07.py (up to 260 s, most of it building engines).

2:4 against dense kernels, same weights, in this order: ResNet-50 at batch 64 in TensorRT; one product in PyTorch over
its width and number of rows; the same product in TensorRT in three forms, and over as much of the sweep as there is
time for in a form that got a sparse kernel. Beside each ratio stand the time of the dense side and the error between
the two. Each figure is written to data/recordings as soon as it is measured, as `python3 -m labsupport record` does at
its end, beside what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labsupport import (
    benchmarking,
    build,
    comparing,
    environment,
    export,
    fusion,
    models,
    pruning,
    recordings,
    runtimes,
)
from tools import elapsed

LAB, COMMAND = "07_pruning", "python3 tools/record_lab07.py"
BUDGET_S = 260  # no step is begun that would pass it
# width (inputs and outputs) and rows, the most telling first
PRODUCTS = ((4096, 4096), (8192, 4096), (1024, 4096), (4096, 128), (2048, 4096), (4096, 1024))
FORMS = (
    "image",
    "pixels",
    "matmul",
)  # of pruning.gemm; the likeliest first: TensorRT's sparse kernels are mostly convolutions
NEEDS_S = {
    "ResNet-50": 85,
    "PyTorch": 6,
    "TensorRT": 35,
}  # two builds take most of it; a product without a sparse kernel needs one
MOST_ERROR = 0.05  # the time of a wrong answer says nothing


def thin_weight(width):
    """A 2:4 matrix in FP16."""
    import torch

    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    return (matrix * pruning.mask24(matrix)).half().numpy()


def rows_of(rows, width, form):
    """Inputs of a product in the shape that `pruning.gemm` gives a network of this form; PyTorch's is "matmul"."""
    import torch

    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).half()
    shaped = {
        "pixels": lambda: x[:, :, None, None],
        "image": lambda: x.T.reshape(1, width, -1, 64),
        "matmul": lambda: x,
    }[form]()
    return shaped.contiguous().numpy()


def with_sparse(network, name, **options):
    """An engine for which the builder may take sparse kernels."""
    return build.engine(
        network, name=f"{name}_sparse", progress=False, configure=pruning.with_sparse_kernels, **options
    )


def against_dense(allowed, network, name, feed, **options):
    """Device time with dense kernels over that with sparse ones allowed, the error between them, and the engine."""
    plain = build.engine(network, name=f"{name}_dense", progress=False, **options)
    with runtimes.TensorRt(plain, cuda_graph=True) as dense, runtimes.TensorRt(allowed, cuda_graph=True) as thin:
        gain = benchmarking.paired(dense, thin, feed, clock="device")
        return gain, comparing.relative_error(dense(feed), thin(feed)), allowed


def resnet50():
    """ResNet-50, every layer that can be 2:4 pruned to it, batch 64, FP16."""
    import torch

    pictures = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = pruning.magnitude24(models.settle(models.resnet50(), pictures[:4])).model
    graph = export.to_onnx(model, pictures[:1])
    # strict: FP32 kernels are not even tried, which saves build time
    options = {"precision": "fp16", "strict": True, "batch": 64, "optimization_level": 1}
    allowed = with_sparse(graph, "resnet50_b64_24", **options)
    return against_dense(allowed, graph, "resnet50_b64_24", pictures.numpy(), **options)


def name_of(width, rows, form) -> str:
    """The subject of a product's metrics."""
    return f"gemm_{'' if form == 'pixels' else form + '_'}n{width}_m{rows}"


def in_tensorrt(width, rows, form):
    """One product in TensorRT, in one of the forms of `pruning.gemm`: gain, error, engine.

    Without a sparse kernel its time alone, None and the engine: a second build would time the same dense kernel again.
    """
    network, feed = pruning.gemm(thin_weight(width), rows, form=form), rows_of(rows, width, form)
    name, options = name_of(width, rows, form), {"precision": "fp16", "strict": True}
    allowed = with_sparse(network, name, **options)
    if pruning.chosen(allowed).count:
        return against_dense(allowed, network, name, feed, **options)
    with runtimes.TensorRt(allowed, cuda_graph=True) as run:
        return benchmarking.device_latency(run, feed), None, allowed


def in_torch(width, rows):
    """The same product in PyTorch: gain and error."""
    thin, feed = thin_weight(width), rows_of(rows, width, "matmul")
    modules = [pruning.product(thin, rows, sparse=sparse) for sparse in (False, True)]
    with (
        runtimes.Torch(modules[0], dtype="float16", cuda_graph=True) as dense,
        runtimes.Torch(modules[1], dtype="float16", cuda_graph=True) as sparse,
    ):
        gain = benchmarking.paired(dense, sparse, feed, rounds=10, runs_per_round=3, warmup=3, clock="device")
        return gain, comparing.relative_error(dense(feed), sparse(feed))


class Session:
    """What one recording found so far, and how long it has taken."""

    def __init__(self, book):
        self.book, self.failed, self.best = book, [], {}
        self.sparse_form = None  # the first form of a product for which TensorRT took a sparse kernel

    @property
    def seconds(self) -> float:
        return elapsed.seconds()

    def tell(self, *what) -> None:
        elapsed.say("; ".join(map(str, what)))

    def attempt(self, step, *arguments, needs) -> None:
        """A step of the recording; one that fails is told, and the others go on."""
        if self.seconds + needs > BUDGET_S:
            return self.tell(f"no time for {step.__name__}{arguments}")
        try:
            step(self, *arguments)
        except Exception as reason:  # whatever stops one step, the others are still worth measuring
            self.failed.append(step.__name__)
            self.tell(f"{step.__name__}{arguments} failed: {type(reason).__name__}: {str(reason)[:300]}")

    def ratio(self, name, gain, error) -> None:
        """Record a gain with the time of its dense side and the error between the two sides; refuse a wrong answer."""
        if not error <= MOST_ERROR:
            raise ValueError(f"{name}: the two sides differ by {error:.2g}, more than {MOST_ERROR}; not recorded")
        self.book.record(f"{name}.sparse24_over_dense", gain)
        self.book.record(f"{name}.dense_ms", gain.before)
        self.book.record(f"{name}.relative_error", error, "fraction")

    def sparsity(self, name, choice, engine) -> None:
        """Record how many layers could have got a sparse kernel and how many did, and the plan that names them."""
        self.book.record(f"{name}.sparse_kernels", choice.count, "layers")
        self.book.record(f"{name}.sparse_candidates", len(choice.eligible), "layers")
        recordings.save_plan(f"{name}.sparse24", fusion.dump(engine), command=COMMAND)

    def offer(self, library, width, rows, gain) -> None:
        """A gain on a product of at least 4096×4096 by 2048 rows: the best of each library is recorded."""
        if width < 4096 or rows < 2048:
            return
        if library not in self.best or gain.median > self.best[library].median:
            self.best[library] = gain
        self.book.record(f"gemm_{library}.sparse24_over_dense", self.best[library])


def resnet50_b64(session) -> None:
    """Gain, count of sparse kernels, and the plan in which they are named."""
    gain, error, allowed = resnet50()
    choice = pruning.chosen(allowed)
    session.tell(
        f"ResNet-50: {gain!r}, relative error {error:.1e}; {choice!r}",
        dict(list(choice.tactics.items())[:3]),
        *_said(allowed),
    )
    session.ratio("resnet50_b64", gain, error)
    session.sparsity("resnet50_b64", choice, allowed)


def torch_product(session, width, rows) -> None:
    """One product in PyTorch, as F.linear does it."""
    gain, error = in_torch(width, rows)
    session.tell(f"PyTorch n{width} m{rows}: {gain!r}, relative error {error:.1e}, dense {gain.before!r}")
    session.ratio(f"gemm_torch_n{width}_m{rows}", gain, error)
    session.offer("torch", width, rows, gain)


def tensorrt_product(session, width, rows, form) -> None:
    """One product in TensorRT, and whether it has a sparse kernel for it."""
    gain, error, allowed = in_tensorrt(width, rows, form)
    choice, name = pruning.chosen(allowed), name_of(width, rows, form)
    session.tell(f"TensorRT {name}: {gain!r}, relative error {error}; {choice!r}", choice.tactics, *_said(allowed))
    session.tell(f"kernels: {[layer.get('TacticName') for layer in allowed.layers if isinstance(layer, dict)]}")
    session.sparsity(name, choice, allowed)
    if error is None:
        session.book.record(f"{name}.dense_ms", gain)
    else:
        session.ratio(name, gain, error)
        session.offer("tensorrt", width, rows, gain)
        session.sparse_form = session.sparse_form or form


def main() -> None:
    """Measure one thing after the other, and store what there is; what failed makes the exit status 1."""
    environment.require("engine execution")
    with recordings.session(LAB, command=COMMAND) as book:
        session = Session(book)
        session.attempt(resnet50_b64, needs=NEEDS_S["ResNet-50"])
        for width, rows in PRODUCTS:
            session.attempt(torch_product, width, rows, needs=NEEDS_S["PyTorch"])
        for form in FORMS:
            session.attempt(tensorrt_product, *PRODUCTS[0], form, needs=NEEDS_S["TensorRT"])
        for width, rows in PRODUCTS[1:] if session.sparse_form else ():
            session.attempt(tensorrt_product, width, rows, session.sparse_form, needs=NEEDS_S["TensorRT"])
        session.tell(f"best of each: {session.best}")
    if session.failed:
        raise SystemExit(f"failed: {', '.join(session.failed)}")


def _said(engine) -> list[str]:
    """What the builder wrote about sparsity, line by line."""
    return [text[:200] for _, text in engine.log if "parsity" in text]


if __name__ == "__main__":
    main()
