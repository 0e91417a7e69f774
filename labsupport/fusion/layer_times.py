"""Time per kernel, asked of the runtime itself: TensorRT's layer profiler, ONNX Runtime's trace."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path

from labsupport import files
from labsupport.errors import BadInput, LabError, at_least, first_line
from labsupport.fusion.onnx_nodes import nodes_of
from labsupport.fusion.plan_text import parse, read_text

INSIDE = "inside a body: "  # put before the names of nodes in branches and loops
MOST_MS = 1e9  # eleven days


def profile(run, feed, *, runs: int = 20, warmup: int = 5) -> dict[str, float]:
    """Median ms of every layer of a runtimes.TensorRt or runtimes.OnnxRuntime, by the layer's name, for fusion.xray.

    Profiling times each layer apart and so slows the whole: the sum is not the latency, and only shares compare.
    Raises BadInput. Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/Profiler.html
    """
    at_least(runs=runs)
    if hasattr(run, "trt_engine"):
        rounds = _tensorrt_rounds(run, feed, runs, warmup)
    elif hasattr(run, "session"):
        rounds = _onnxruntime_rounds(run, feed, runs, warmup)
    else:
        raise BadInput(
            f"{type(run).__name__} does not time its layers; profile a runtimes.TensorRt or a runtimes.OnnxRuntime"
        )
    names = dict.fromkeys(name for times in rounds for name in times)
    return {name: statistics.median(times.get(name, 0.0) for times in rounds) for name in names}


def times_of(profile, what: str = "the profile") -> dict[str, float]:
    """{layer name: ms} of a mapping, of trtexec's --exportProfile list, or of a path or JSON text of either."""
    if isinstance(profile, os.PathLike) or isinstance(profile, str) and profile.strip()[:1] not in ("{", "["):
        profile = read_text(profile)
    if isinstance(profile, str):
        profile = parse(profile, what)
    if isinstance(profile, (list, tuple)):
        rows = [row for row in profile if isinstance(row, Mapping) and "name" in row]
        profile = {row["name"]: row.get("medianMs", row.get("averageMs", row.get("timeMs"))) for row in rows}
    if not isinstance(profile, Mapping) or not profile:
        raise BadInput(
            f"{what} is {type(profile).__name__} without layers; "
            f"expected {{layer name: ms}} or trtexec's --exportProfile list"
        )
    bad = {
        name: ms
        for name, ms in profile.items()
        if not isinstance(ms, (int, float)) or isinstance(ms, bool) or not 0 <= ms < MOST_MS
    }
    if bad:
        name, ms = next(iter(bad.items()))
        raise BadInput(
            f"{what} gives {name!r} the time {str(ms)[:40]}; expected milliseconds, 0 or more and below {MOST_MS:.0e}"
        )
    return {str(name): float(ms) for name, ms in profile.items()}


def _tensorrt_rounds(run, feed, runs, warmup) -> list[dict[str, float]]:
    from labsupport import environment

    trt = environment.tensorrt()
    seen: dict[str, float] = {}

    class Reporter(trt.IProfiler):  # type: ignore[name-defined]
        def __init__(self):
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name, ms):
            # a layer in a loop reports several times
            seen[layer_name] = seen.get(layer_name, 0.0) + ms

    if getattr(run, "_graphs", None):
        raise BadInput(
            f"{run.name} replays a CUDA graph, in which layers cannot be told apart; make a runtime without cuda_graph"
        )
    reporter, rounds = Reporter(), []
    run.context.profiler = reporter
    try:
        for place in range(warmup + runs):
            seen.clear()
            run(feed)
            run.stream.synchronize()
            if place >= warmup:
                rounds.append(dict(seen))
    finally:
        # a context cannot be without a profiler again: a fresh one runs at full speed
        run.context = run._new_context(run.profile)
        run._shapes, run._addresses = {}, {}
    return rounds


def _onnxruntime_rounds(run, feed, runs, warmup) -> list[dict[str, float]]:
    """Times of the graph as it is executed, its nodes named as the X-ray names them: in the trace names are all."""
    import numpy as np

    run(feed)  # data that the network does not take are told in the runtime's own words
    model, folder = _named(run.executed.path), Path(run.graph.path).parent
    arrays = {
        name: x if isinstance(x, np.ndarray) else x.detach().cpu().numpy() for name, x in run.checked(feed).items()
    }
    with files.scratch() as scratch:
        session = _traced(run, model, folder, str(scratch / "trace"))
        for _ in range(warmup + runs):
            session.run(None, arrays)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    known = {node.name for node in model.graph.node}
    rounds: list[dict[str, float]] = []
    current: dict[str, float] = {}
    for event in sorted(events, key=lambda e: e.get("ts", 0) + e.get("dur", 0)):
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            if node not in known:  # a DequantizeLinear of several readers is run once for each
                node = node.partition("/duplicated")[0]
            if not node.startswith(INSIDE):  # the If or the Loop around it has counted it
                current[node] = current.get(node, 0.0) + event["dur"] / 1e3
        elif name == "model_run":  # closes a run
            rounds.append(current)
            current = {}
    return rounds[warmup:]


def _named(path: Path):
    """A graph with a name for every node, and names for the nodes of branches and bodies that tell them apart."""
    import onnx

    model, number = onnx.load(str(path), load_external_data=False), 0
    for node, named in zip(model.graph.node, nodes_of(model).nodes, strict=True):
        node.name = named.name
        bodies = [body for a in node.attribute for body in ([a.g] if a.HasField("g") else a.graphs)]
        while bodies:
            for inner in bodies.pop().node:  # ONNX Runtime asks for unique names everywhere, and "" is one
                number += 1
                inner.name = f"{INSIDE}{number} {inner.name}"
                bodies += [body for a in inner.attribute for body in ([a.g] if a.HasField("g") else a.graphs)]
    return model


def _traced(run, model, folder: Path, prefix: str):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = run._options.intra_op_num_threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized already
    options.log_severity_level = 3
    options.enable_profiling, options.profile_file_prefix = True, prefix
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = first_line(error)
        raise LabError(
            f"{run.name}: the optimized graph cannot be loaded again to time its nodes: {reason}; profile it at "
            'optimization="basic"'
        ) from error
