"""Whether an exported graph still follows its input: tracing turns what Python read from a tensor into a constant."""

from __future__ import annotations

import linecache
import warnings
from pathlib import Path

from labsupport.errors import BadInput, first_line
from labsupport.export import surgery


def demand_live(model, examples, graph, axes, heard) -> None:
    """Run network and graph on another batch and other values; raise BadInput where the graph still answers the old.

    It runs where there is a doubt: where the tracer warned (``heard``), or an output has a first axis that is declared
    free and follows from the graph as a number. ``axes`` are the free axes by name.
    """
    import torch

    tracer = [w for w in heard if issubclass(w.category, torch.jit.TracerWarning)]
    numbers = _numbers(graph, axes)
    if not tracer and not numbers:
        return
    others = tuple(_other(x, 0 in axes.get(name, {})) for name, x in zip(graph.inputs, examples))
    answers = _answers(graph, others)
    if answers is None:  # custom operators: nobody here can run the graph, so what the tracer said is passed on
        for warning in tracer:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return
    expected, again = (_flat(model, others) for _ in range(2))
    settled = all(torch.equal(a, b) for a, b in zip(expected, again))  # one that draws numbers cannot be compared
    same = [a.shape == b.shape and (not settled or _near(a, b)) for a, b in zip(expected, answers)]
    if len(expected) != len(answers) or not all(same):
        raise BadInput(
            f"{type(model).__name__}: the graph answers as the example, not as its input: {_why(tracer, numbers)} "
            "became a constant. Let tensors do it (x.shape[0] as it is, x.flatten(1), torch.where, a mean over an axis)"
            + ("; for one batch size, export with dynamic=False" if any(axes.values()) else "")
        )


def declare(graph, axes):
    """The graph with the true number where a first axis was declared free and is a number in every run."""
    numbers = _numbers(graph, axes)
    if not numbers:
        return None
    model = graph.model()
    for value in model.graph.output:
        if value.name in numbers:
            value.type.tensor_type.shape.dim[0].dim_value = numbers[value.name]
    return model


def _numbers(graph, axes) -> dict[str, int]:
    """Outputs whose first axis is declared free and follows from the graph as a number."""
    if not any(0 in axes.get(name, {}) for name in graph.inputs):
        return {}
    model = graph.model()
    free = [value for value in model.graph.output if 0 in axes.get(value.name, {})]
    for value in free:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    shapes = {v.name: v.type.tensor_type.shape.dim for v in surgery.inferred(model).graph.output}
    first = {value.name: shapes[value.name][0] for value in free if len(shapes[value.name])}
    return {name: axis.dim_value for name, axis in first.items() if axis.HasField("dim_value")}


def _other(x, larger: bool):
    """Another input of the same kind: one item more where the batch is free, in another order and of other size."""
    import torch

    if x.ndim and larger:
        x = torch.cat([x, x[:1]])
    x = x.flip(0) if x.ndim else x
    return x * 0.75 if x.is_floating_point() else x


def _answers(graph, inputs):
    """What the graph answers, without any optimization; None where this runtime has no such operators."""
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    try:
        session = ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if any(name in type(error).__name__ for name in ("Fail", "NotImplemented", "InvalidGraph")):
            return None
        raise
    feed = {value.name: x.detach().cpu().numpy() for value, x in zip(session.get_inputs(), inputs)}
    try:
        return [torch.as_tensor(y) for y in session.run(None, feed)]
    except Exception:  # the runtime's own types: a reshape to the example's size, for one
        return []


def _flat(model, inputs) -> list:
    import torch
    from torch.utils import _pytree

    try:
        with torch.no_grad():
            answer = model(*inputs)
    except Exception as error:
        raise BadInput(
            f"{type(model).__name__} takes no other batch than the example's ({first_line(error)}), so its "
            "batch cannot be free; export it with dynamic=False"
        ) from error
    return [y.detach().cpu() for y in _pytree.tree_leaves(answer) if isinstance(y, torch.Tensor)]


def _near(a, b) -> bool:
    import torch

    largest = float(a.double().abs().max()) if a.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-3 * largest)


def _why(tracer, numbers) -> str:
    """The line of the network that the tracer warned of, else the output."""
    for warning in tracer:
        line = linecache.getline(warning.filename, warning.lineno).strip()[:80]
        said = line or str(warning.message).split(".")[0]
        return f"{said!r} (line {warning.lineno} of {Path(warning.filename).name})"
    return f"the first axis of {', '.join(map(repr, numbers))}"
