"""X-ray of an optimized network: which ONNX nodes each kernel swallowed, and what became of the others.

Reads the engine inspector's JSON (TensorRT 8.6, 10, 11; live, from a file or recorded) and ONNX Runtime's optimized
graph. Needs no GPU and no TensorRT. What it cannot place it says; a Myelin region is reported as a region.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from labsupport.errors import BadInput, at_least
from labsupport.fusion import plan_schema
from labsupport.fusion.executed_plan import kind_of_ops, plan_of_onnx_runtime
from labsupport.fusion.kernels import NO_WORK, Kernel, Plan, with_times
from labsupport.fusion.layer_names import name_parts, region_ends
from labsupport.fusion.layer_times import times_of
from labsupport.fusion.onnx_nodes import NodeGraph, nodes_of
from labsupport.fusion.plan_sources import content_of, is_onnx_runtime
from labsupport.fusion.region_nodes import inside
from labsupport.fusion.unnamed_nodes import with_unnamed


def xray(source, *, graph=None, profile=None, name: str | None = None, optimization_profile: int = 0) -> Plan:
    """Read what an optimizer made of a network, kernel by kernel.

    ``source`` is an Engine, a recorded plan (recordings.load_plan), the inspector's JSON (a path, text, or parsed), a
    runtimes.OnnxRuntime or the graph it executed. ``graph`` is the ONNX it was made from (export.OnnxGraph or a path):
    with it regions are resolved and every node is accounted for. ``profile`` maps layer to ms, see ``profile``; an
    engine of several optimization profiles has kernels for each, and ``optimization_profile`` says whose to read.
    Raises BadInput saying what was expected and what was found.
    """
    if is_onnx_runtime(source):
        return plan_of_onnx_runtime(source, graph, profile, name)
    content, label = content_of(source)
    name = name or label
    if isinstance(content, Mapping):
        graph = graph if graph is not None else content.get("Graph")
        profile = profile if profile is not None else content.get("Profile", content.get("profile"))
    read = plan_schema.inspected(content, name, optimization_profile)
    nodes = nodes_of(graph) if graph is not None else None
    kernels = _claimed([_kernel(layer, nodes) for layer in read.layers])
    if nodes:
        _check_fits(name, read.layers, kernels, nodes)
        kernels = with_unnamed(inside(kernels, nodes), nodes)
    named = {node for layer in read.layers for node in layer.metadata}
    unknown = tuple(sorted(named - set(nodes.by_name))) if nodes else ()
    plan = Plan(name, tuple(kernels), read.schema, "TensorRT", nodes, unknown)
    return with_times(plan, times_of(profile, f"the profile of {name}")) if profile else plan


def dump(source, *, graph=None, profile=None) -> str:
    """The inspector's records of an engine, with its profile and its ONNX nodes, as JSON for recordings.save_plan."""
    import json

    content, label = content_of(source)
    plan_schema.inspected(content, label)
    whole = dict(content) if isinstance(content, Mapping) else {"Layers": list(content)}  # type: ignore[call-overload]
    if profile is not None:
        whole["Profile"] = times_of(profile)
    if graph is not None:
        whole["Graph"] = nodes_of(graph).as_dict()
    return json.dumps(whole)


def table(plan: Plan):
    """One row per kernel: kind, ONNX nodes swallowed, types in and out, tactic, bytes moved, time share (DataFrame).

    Nodes in [brackets] are inferred: no layer names them, see ``Accounts.table`` for the evidence.
    """
    from labsupport.comparing.tables import frame_class

    rows = []
    for kernel in _plan(plan).kernels:
        shown = [f"[{short(n)}]" if n in kernel.inferred else short(n) for n in kernel.nodes]
        row = {
            "kernel": short(kernel.name),
            "kind": f"{kernel.kind} ({kernel.note})" if kernel.note else kernel.kind,
            "ONNX nodes": len(kernel.nodes),
            "swallowed": " + ".join(shown) or "–",
            "in": kernel.precision_in or "–",
            "out": kernel.precision_out or "–",
            "tactic": kernel.tactic or "–",
            "MiB moved": None if kernel.bytes is None else round(kernel.bytes / 2**20, 3),
        }
        if plan.total_ms is not None:
            row |= {"ms": kernel.time_ms, "time share": "–" if kernel.share is None else f"{kernel.share:.1%}"}
        rows.append(row)
    return frame_class()(rows)


def _plan(plan) -> Plan:
    if not isinstance(plan, Plan):
        raise BadInput(f"a {type(plan).__name__} came; wanted is a plan: fusion.xray(engine, graph=graph)")
    return plan


def draw(plan: Plan):
    """Before and after side by side: every ONNX node and the kernel it went into (a Drawing; .svg(), .save(path))."""
    from labsupport.fusion.pictures.before_after import draw_plan

    graph = _plan(plan).graph
    if graph is None:
        raise BadInput(
            f"{plan.name} was read without its ONNX graph, so there is no 'before' to draw; pass graph= to fusion.xray"
        )
    return draw_plan(plan, graph)


def time_bar(plan: Plan, *, top: int = 12):
    """Bars of time per kernel, the ``top`` longest, the rest added up in one bar (a Drawing)."""
    from labsupport.comparing.drawing import draw_bars

    if _plan(plan).total_ms is None:
        raise BadInput(
            f"{plan.name} has no times; pass profile=fusion.profile(run, feed), or a plan recorded with its profile"
        )
    at_least(top=top)
    timed = sorted((k for k in plan.kernels if k.time_ms), key=lambda k: -k.time_ms)
    labels = [_caption(kernel) for kernel in timed[:top]]
    values, notes = [k.time_ms for k in timed[:top]], [f"{k.kind}, {k.share:.0%}" for k in timed[:top]]
    rest = timed[top:]
    if rest:
        labels.append(f"{len(rest)} others")
        values.append(sum(k.time_ms for k in rest))
        notes.append(f"{values[-1] / plan.total_ms:.0%}")
    values = [float(f"{value:.3g}") for value in values]
    heading = f"{plan.name}: {plan.total_ms:.3g} ms over {len(timed)} kernels"
    return draw_bars(labels, values, [None] * len(labels), notes, unit="ms per inference", title=heading)


def short(name: str, width: int = 60) -> str:
    """A node's or kernel's name, cut in the middle where it is longer than ``width``."""
    name = name.replace("/layers/", "/").removeprefix("/")
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-(width - width // 2) :]}"


def _caption(kernel: Kernel) -> str:
    """A kernel's first node and how many more it took; a copy by the kernel it is made for."""
    copy = r"Reformatting CopyNode for (?:(?:In|Out)put Tensor \d+ to|Network (?:In|Out)put) (.*)"
    made_for = re.match(copy, kernel.name)
    if made_for:
        return f"copy for {short(made_for[1].split(' + ')[0], 28)}"
    more = f" +{len(kernel.nodes) - 1}" if len(kernel.nodes) > 1 else ""
    return short(kernel.nodes[0] if kernel.nodes else kernel.name, 34) + more


def _kernel(layer: plan_schema.Layer, graph: NodeGraph | None) -> Kernel:
    nodes = layer.metadata
    if graph is not None:
        named = [n for n in nodes if n in graph.by_name]
        nodes = tuple(named or (n for n in name_parts(layer.name) if n in graph.by_name))
    elif not nodes:
        nodes = name_parts(layer.name)
    kind = layer.kind
    ops = [graph.by_name[n].op for n in nodes] if graph is not None else []
    if kind == "unknown" and graph is not None:
        kind = kind_of_ops(ops)
    return Kernel(
        name=layer.name,
        kind=kind,
        nodes=nodes,
        layer_type=layer.layer_type,
        tactic=layer.tactic,
        inputs=layer.inputs,
        outputs=layer.outputs,
        weight_bytes=layer.weight_bytes,
        weight_dtype=layer.weight_dtype,
        note=_note(kind, ops),
    )


def _note(kind: str, ops: list[str]) -> str:
    """What to say where TensorRT computes an operator by a kernel of another kind; the results are the same."""
    asked = kind_of_ops(ops)
    if {kind, asked} == {"matmul", "convolution"}:
        return f"the {asked} runs as a {kind}"
    return ""


def _claimed(kernels: list[Kernel]) -> list[Kernel]:
    """Give a node that several layers name to those that compute; a reshape beside a matmul holds only a part of it."""
    workers = Counter(node for kernel in kernels if kernel.kind not in NO_WORK for node in kernel.nodes)
    first = {node: kernel.name for kernel in reversed(kernels) for node in kernel.nodes}
    done = []
    for kernel in kernels:
        if kernel.kind in NO_WORK:
            mine = tuple(n for n in kernel.nodes if not workers[n] and first[n] == kernel.name)
            kernel = replace(kernel, nodes=mine, parts=tuple(n for n in kernel.nodes if n not in mine))
        done.append(kernel)
    return done


def _check_fits(name, layers, kernels, graph: NodeGraph) -> None:
    named = [n for layer in layers for n in layer.metadata]
    matches = [n for n in named if n in graph.by_name]
    placed = [n for kernel in kernels for n in (*kernel.nodes, *kernel.parts)]
    if len(matches) * 2 < len(named) or not placed and not any(region_ends(k.name) for k in kernels):
        theirs = named or [k.name for k in kernels]
        raise BadInput(
            f"{name} was not built from this graph: it names {theirs[0]!r}, "
            f"and the graph has nodes such as {graph.nodes[0].name!r} "
            f"({len(matches)} of {len(named)} names match); pass the ONNX file the engine was built from"
        )
