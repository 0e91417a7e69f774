"""An ONNX graph executed by ONNX Runtime behind the runtime protocol."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np

from labsupport import export
from labsupport.errors import BadInput, LabError, at_least, first_line, one_of
from labsupport.export import onnx_graph, surgery
from labsupport.runtimes.protocol import Base, TensorSpec

SMALL_BYTES = 2**20  # an output of at most this is copied: kept by a caller, it would keep all of the session's memory
LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class OnnxRuntime(Base):
    """An ONNX graph executed by ONNX Runtime on the CPU; ``optimization`` is its fusion dial, ``threads`` its width.

    One thread by default: on a small or busy machine a second one spins and widens the spread. Raises BadInput for a
    graph that it cannot load, or that quantizes FP16 where this release does not round (microsoft/onnxruntime#32452).
    Source: https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
    """

    def __init__(self, graph, *, threads: int = 1, optimization: str = "all", name: str | None = None):
        import onnxruntime as ort

        one_of(LEVELS, optimization=optimization)
        at_least(threads=threads)
        self.graph = export.load(graph)
        if (
            self.graph.opset >= 19
            and self.graph.ops["QuantizeLinear"]
            and _quantizes_half(self.graph.model())
            and _cuts_off_half()
        ):
            raise BadInput(
                f"{self.graph.path.name} quantizes FP16 values, and ONNX Runtime {ort.__version__} cuts off there "
                "instead of rounding (microsoft/onnxruntime#32452): its answers would be wrong. Run the graph as it "
                "was before precision.cast, or install Python 3.11 or newer, whose ONNX Runtime rounds"
            )
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[optimization])
        self._options.log_severity_level = 3
        self._file = self.graph.path
        start = time.perf_counter()
        self.session = self._session()
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.inputs = {v.name: _ort_spec(v) for v in self.session.get_inputs()}
        self.outputs = {v.name: _ort_spec(v) for v in self.session.get_outputs()}
        self.name = name or f"ort/{optimization}"

    def _session(self):
        import onnxruntime as ort

        try:
            return ort.InferenceSession(str(self._file), self._options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if "external tensor" in str(error) and self._file == self.graph.path:  # it reads shapes in the file alone
                self._file = export.fresh_folder() / self.graph.path.name
                onnx_graph.write(self.graph.model(), self._file)
                return self._session()
            text = str(error).split("Error in Node:")[-1].strip().splitlines()[0][:300]
            fix = "Give each node a name of its own" if "same node name" in text else "Rewrite the operator it names"
            raise BadInput(
                f"ONNX Runtime cannot load {self.graph.path.name}: {text}. {fix}, or lower the opset"
            ) from error

    def __call__(self, feed) -> dict:
        feed = self.checked(feed)
        torch_in = any(not isinstance(x, np.ndarray) for x in feed.values())
        arrays = {n: x if isinstance(x, np.ndarray) else x.detach().cpu().numpy() for n, x in feed.items()}
        try:
            outputs = self.session.run(None, arrays)
        except Exception as error:
            text = first_line(error)
            fix = "lower the batch" if "alloc" in text.lower() else "compare the feed with run.inputs"
            raise LabError(f"{self.name}: ONNX Runtime could not run {self.graph.path.name}: {text}; {fix}") from error
        outputs = [np.array(y) if isinstance(y, np.ndarray) and y.nbytes <= SMALL_BYTES else y for y in outputs]
        if torch_in:
            import torch

            # text, and the list that a sequence is, stay what they are
            tensors = [isinstance(y, np.ndarray) and y.dtype.kind in "biufc" for y in outputs]
            kept = [torch.from_numpy(y) if tensor else y for y, tensor in zip(outputs, tensors)]
            return dict(zip(self.outputs, kept))
        return dict(zip(self.outputs, outputs))

    @property
    def executed(self) -> export.OnnxGraph:
        """The graph after ONNX Runtime's own fusions: the nodes that really run."""
        import onnxruntime as ort

        folder = export.fresh_folder()
        options, path = self._options, folder / f"{self.graph.path.stem}.executed.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])
        finally:
            options.optimized_model_filepath = ""
        return _executed(path)

    def close(self) -> None:
        """Free the session."""
        self.closed, self.session = True, None


def _quantizes_half(model) -> bool:
    from onnx import TensorProto

    half = {w.name for w in model.graph.initializer if w.data_type == TensorProto.FLOAT16}
    return any(node.op_type == "QuantizeLinear" and node.input[1] in half for node in model.graph.node)


@functools.cache
def _cuts_off_half() -> bool:
    """Whether ONNX Runtime quantizes 0.9 steps of FP16 to 0: releases up to 1.29 do on the CPU."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    border = [
        helper.make_tensor_value_info(name, kind, [1])
        for name, kind in (("x", TensorProto.FLOAT16), ("y", TensorProto.INT8))
    ]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT16, [], [1.0]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])], "rounds", border[:1], border[1:], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return int(session.run(None, {"x": np.array([0.9], np.float16)})[0][0]) == 0


def _executed(path: Path) -> export.OnnxGraph:
    """Read an optimized graph without onnx.checker, which does not know ONNX Runtime's own operators."""
    from collections import Counter

    import onnx

    model = onnx.load(str(path), load_external_data=False)  # weights kept apart stay beside the original
    if any(map(onnx_graph.bodies, model.graph.node)):
        onnx.save(surgery.apart(model), str(path))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    return export.OnnxGraph(
        path=path,
        ops=Counter(n.op_type for n in model.graph.node),
        inputs={},
        outputs={},
        opset=opset,
        exporter="onnxruntime",
    )


def _ort_spec(value) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return TensorSpec(tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape), dtype)
