"""Who computes 2:4: layers that TensorRT may and does give a sparse kernel, and a plain product to try it on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from labsupport import environment
from labsupport.errors import BadInput, one_of

# What the builder says at level INFO, in the words of 8.6 and later and in those of earlier releases.
ELIGIBLE = re.compile(
    r"\(Sparsity\) (?:Found \d+ layer\(s\) eligible to use sparse tactics"
    r"|Layers eligible for sparse math):?[ \t]*(.*)"
)
CHOSEN = re.compile(
    r"\(Sparsity\) (?:Chose \d+ layer\(s\) using sparse tactics"
    r"|TRT inference plan picked sparse implementation for layers):?[ \t]*(.*)"
)
FORMS = ("pixels", "image", "matmul")
SPARSE_TACTIC = re.compile(r"spars|spgemm|spmma", re.IGNORECASE)
MULTIPLIES = re.compile(r"conv|fprop|gemm|matmul", re.IGNORECASE)
WRITTEN_FOR = re.compile(r"sm_?(\d{2,3})(?!\d)|(volta|turing|ampere|hopper|blackwell)", re.IGNORECASE)


@dataclass(frozen=True)
class SparseChoice:
    """Layers that the builder calls eligible, layers that got a sparse kernel, and the kernel's name for each of these.

    Eligible takes more than weights that are 2:4, which `report24` sees: a sparse kernel for the layer on this GPU.
    """

    eligible: tuple[str, ...]
    chosen: tuple[str, ...]
    tactics: Mapping[str, str]

    @property
    def count(self) -> int:
        """Layers with a sparse kernel, by the builder's log or by the kernels' names: either may be silent."""
        return max(len(self.chosen), len(self.tactics))

    def __repr__(self) -> str:
        return f"sparse kernels: {self.count}; layers that the builder calls eligible: {len(self.eligible)}"


def with_sparse_kernels(trt, builder, network, config) -> None:
    """``configure=`` for build.engine: let the builder try sparse kernels where the weights are 2:4.

    It times them against the dense ones and takes the faster; weights that are not 2:4 stay as they are.
    """
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)


def chosen(engine) -> SparseChoice:
    """Which layers of an Engine got a sparse kernel: by the builder's own log, and by the inspector's tactic names."""
    said = "\n".join(text for _, text in engine.log)
    if not said and engine.path.with_suffix(".log").is_file():  # found in the cache: its log lies beside it
        said = engine.path.with_suffix(".log").read_text(encoding="utf-8")
    return SparseChoice(_names(ELIGIBLE, said), _names(CHOSEN, said), sparse_tactics(engine.layers))


def sparse_tactics(layers: list) -> dict[str, str]:
    """Layer → kernel, of the inspector's records whose kernel is a sparse one by its name."""
    names = {str(layer.get("Name")): str(layer.get("TacticName", "")) for layer in layers if isinstance(layer, Mapping)}
    return {name: tactic for name, tactic in names.items() if SPARSE_TACTIC.search(tactic)}


def kernel_families(layers: list) -> dict[str, int]:
    """Count the convolutions and products among the inspector's records by their kernels' names: {"sm90 dense": 32, …}.

    The number is the compute capability that a kernel was written for, 80 for Ampere and 90 for Hopper; "unnamed" where
    the name does not say. The most frequent come first.
    """
    counts: dict[str, int] = {}
    for tactic in (str(layer.get("TacticName") or "") for layer in layers if isinstance(layer, Mapping)):
        if MULTIPLIES.search(tactic):
            match = WRITTEN_FOR.search(tactic)
            target = (f"sm{match[1]}" if match[1] else match[2].lower()) if match else "unnamed"
            family = f"{target} {'sparse' if SPARSE_TACTIC.search(tactic) else 'dense'}"
            counts[family] = counts.get(family, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def gemm(weight: np.ndarray, rows: int, *, form: str = "pixels"):
    """A network for build.engine that multiplies ``rows`` rows of K by a constant weight (N, K) in FP16.

    ``form``: "pixels", a 1×1 convolution over images of one pixel, x (rows, K, 1, 1); "image", over one image, x
    (1, K, rows / 64, 64); "matmul", a matrix product, x (rows, K). A builder has different kernels for the three.
    """
    one_of(FORMS, form=form)
    weight = np.ascontiguousarray(weight, np.float16)
    if weight.ndim != 2 or isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise BadInput(
            f"a weight of shape {weight.shape} and rows={rows!r} came; "
            "wanted are a matrix (N, K) and a whole number of rows"
        )
    outputs, inputs = weight.shape
    # 8.6 gets a convolution's weights in FP32, as from an ONNX file, and rounds them itself; TensorRT reads the array
    # when it builds, so the network's function holds it
    given = weight.astype(np.float32) if environment.generation() == "8.6" and form != "matmul" else weight
    shape = {"pixels": (rows, inputs, 1, 1), "image": (1, inputs, rows // 64, 64), "matmul": (rows, inputs)}[form]
    if form == "image" and rows % 64:
        raise BadInput(f"rows={rows}; as an image they are 64 to a line, so give a multiple of 64")

    def define(trt, network):
        x = network.add_input("x", trt.float16, shape)
        if form == "matmul":
            constant = network.add_constant((outputs, inputs), trt.Weights(weight)).get_output(0)
            layer = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, constant, trt.MatrixOperation.TRANSPOSE)
        else:
            kernel = given.reshape(outputs, inputs, 1, 1)
            layer = network.add_convolution_nd(x, outputs, (1, 1), trt.Weights(kernel), trt.Weights())
        layer.name = "gemm"
        y = layer.get_output(0)
        y.name = "y"
        network.mark_output(y)
        if environment.generation() == "8.6":  # elsewhere types follow from the input's
            y.dtype = trt.float16

    return define


def product(weight: np.ndarray, rows: int, *, sparse: bool):
    """The same product as a torch module for runtimes.Torch(…, dtype="float16"): (rows, K) → (rows, N) on a GPU.

    With ``sparse`` the weight is kept in PyTorch's semi-structured format, computed by cuSPARSELt.
    Source: https://docs.pytorch.org/docs/stable/sparse.html#sparse-semi-structured-tensors (a prototype)
    """
    import torch
    from torch import nn

    class Product(nn.Module):
        input_name, output_name = "x", "y"

        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.from_numpy(np.ascontiguousarray(weight, np.float16)))
            self.packed = None

        def example_input(self):
            return torch.randn(rows, self.weight.shape[1], generator=torch.Generator().manual_seed(0))

        def forward(self, x):
            if sparse and self.packed is None:  # here, because only a GPU can pack it
                self.packed = _packed(self.weight)
            return nn.functional.linear(x, self.packed if sparse else self.weight)

    return Product().eval()


def _packed(weight):
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype, and says so every time
        return torch.sparse.to_sparse_semi_structured(weight)


def _names(pattern: re.Pattern, said: str) -> tuple[str, ...]:
    listed = [match.group(1) for match in pattern.finditer(said)]
    return tuple(name.strip() for line in listed for name in line.split(",") if name.strip())
