"""What a served network holds on host and GPU, stage by stage, measured in a process of its own.

A process that has run before keeps freed pages, and the next allocation in it would seem to cost nothing.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labsupport import environment, export, files
from labsupport.build import engines
from labsupport.errors import BadInput, LabError

MIB = 2**20
SESSION_OPTIONS = ("enable_cpu_mem_arena", "enable_mem_pattern", "enable_mem_reuse")


@dataclass(frozen=True)
class Ledger:
    """What a fresh process held more after each stage of serving one network: (stage, host MiB, GPU MiB or None)."""

    name: str
    lines: tuple[tuple[str, float, float | None], ...]
    gpu_scope: str = ""  # whose GPU memory it is: memory.OWN or memory.WHOLE

    def __getitem__(self, stage: str) -> float:
        """MiB of one stage, on the GPU where there is a figure for it, else on the host."""
        for what, host_mib, gpu_mib in self.lines:
            if what == stage:
                return host_mib if gpu_mib is None else gpu_mib
        raise BadInput(f"{self.name} has no stage {stage!r}; its stages are {[what for what, _, _ in self.lines]}")

    @property
    def host_mib(self) -> float:
        """All stages together, host memory."""
        return sum(host for _, host, _ in self.lines)

    @property
    def gpu_mib(self) -> float | None:
        """All stages together, GPU memory; None where no GPU took part."""
        values = [gpu for _, _, gpu in self.lines if gpu is not None]
        return sum(values) if values else None

    def rows(self) -> list[dict]:
        """For `comparing.table`: one row per stage, and the sum."""
        lines = [*self.lines, ("together", self.host_mib, self.gpu_mib)]
        on_gpu = self.gpu_mib is not None
        return [
            {
                "stage": what,
                "host MiB": round(host),
                **({"GPU MiB": None if gpu is None else round(gpu)} if on_gpu else {}),
            }
            for what, host, gpu in lines
        ]

    def __repr__(self) -> str:
        gpu = (
            "" if self.gpu_mib is None else f", GPU {self.gpu_mib:.0f} MiB ({self.gpu_scope or 'whose, is not known'})"
        )
        return f"Ledger({self.name}: host {self.host_mib:.0f} MiB{gpu} after {len(self.lines)} stages)"


def serve_session(
    graph,
    batches: Sequence[int] = (1,),
    *,
    sessions: int = 1,
    shared_arena: bool = False,
    shrink: bool = False,
    keep_outputs: bool = False,
    optimization: str = "extended",
    feed: Mapping | None = None,
    **options: bool,
) -> Ledger:
    """What ONNX Runtime holds in a process of its own after loading a graph and after each of the ``batches``.

    Zeros go in, of each batch in turn; with a ``feed``, {input: array}, that one goes in each time.
    ``options`` are ONNX Runtime's own: enable_cpu_mem_arena, enable_mem_pattern, enable_mem_reuse. ``shrink`` lets
    the arena give back what is free after each run; ``shared_arena`` makes all ``sessions`` use one arena.
    Source: https://onnxruntime.ai/docs/get-started/with-c.html#features (arena, shrinkage, shared allocators)
    """
    from labsupport.runtimes.onnx_runtime import LEVELS

    unknown = sorted(set(options) - set(SESSION_OPTIONS))
    if unknown or optimization not in LEVELS:
        raise BadInput(
            f"{unknown or optimization!r} is not an option; choose from {list(SESSION_OPTIONS)} and "
            f"optimization from {list(LEVELS)}"
        )
    if shrink and options.get("enable_cpu_mem_arena") is False:
        raise BadInput(
            "shrink=True and enable_cpu_mem_arena=False exclude each other: without an arena there is nothing to shrink"
        )
    path = graph.path if isinstance(graph, export.OnnxGraph) else Path(graph)
    job = {
        "serve": "session",
        "path": str(path),
        "batches": list(batches),
        "sessions": sessions,
        "shared_arena": shared_arena,
        "shrink": shrink,
        "keep_outputs": keep_outputs,
        "level": LEVELS[optimization],
        "options": options,
    }
    return Ledger(f"{path.name} in ONNX Runtime", *_apart(job, feed))


def serve_engine(engine, *, batch: int = 1) -> Ledger:
    """What TensorRT holds, on host and GPU, in a process of its own, stage by stage from import to first inference.

    The GPU's figure is that process's own where NVML tells it. Elsewhere it is the whole device's, so nothing else
    should start or stop there meanwhile; ``gpu_scope`` says which.
    """
    from labsupport.benchmarking.memory_meter import whole_gpu_mib

    environment.require("engine execution")
    before, _ = whole_gpu_mib()  # with this process's own CUDA context, which stays the same from here on
    return Ledger(
        f"{engine.name} in TensorRT",
        *_apart({"serve": "engine", "path": str(engine.path), "batch": batch, "gpu_before": before}),
    )


def held_mib(device: str = "cpu") -> float:
    """MiB in use now: on the GPU for "cuda", by this process where NVML tells it, else by all; on the host, by this
    process.

    On the host the heap gives its free pages back first.
    """
    from labsupport.benchmarking.memory_meter import memory_now

    if device == "cuda":
        return memory_now().gpu_mib
    _trim_heap()
    return memory_now().host_mib


# --- the process of its own -------------------------------------------------------------------------------------


def _apart(job: dict, feed: Mapping | None = None) -> tuple[tuple, str]:
    """Run a job of `_report` in a fresh Python; its lines, and whose GPU memory they tell."""
    import numpy as np

    with files.scratch() as folder:
        if feed is not None:
            np.savez(folder / "feed.npz", **{f"input {name}": array for name, array in feed.items()})  # it has a `file`
            job = {**job, "feed": str(folder / "feed.npz")}
        asked, told = folder / "job.json", folder / "lines.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        paths = [str(environment.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        code = "import sys; from labsupport.footprint import served; served._report(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(asked), str(told)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        if done.returncode or not told.exists():
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise LabError(
                f"the process that was to serve {Path(job['path']).name} ended with code {done.returncode}: "
                f"{said[-1][:300] if said else 'it said nothing'}; load the file in this notebook to see why"
            )
        report = json.loads(told.read_text(encoding="utf-8"))
        return tuple(tuple(line) for line in report["lines"]), report["gpu_scope"]


def _report(asked: str, told: str) -> None:
    from labsupport.benchmarking.memory_meter import OWN

    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    marks = (_session_marks if job["serve"] == "session" else _engine_marks)(job)
    lines, host, gpu, scope = [], 0.0, None, ""
    for what, now in marks:
        added = None
        if now.gpu_mib is not None:
            if scope not in ("", now.gpu_scope):
                raise LabError(
                    f"the GPU's figure was first that of {scope}, then that of {now.gpu_scope}; serve the engine again"
                )
            scope = now.gpu_scope
            gpu = (0.0 if scope == OWN else job["gpu_before"]) if gpu is None else gpu
            added, gpu = now.gpu_mib - gpu, now.gpu_mib
        lines.append((what, now.host_mib - host, added))
        host = now.host_mib
    Path(told).write_text(json.dumps({"lines": lines, "gpu_scope": scope}), encoding="utf-8")


def _resident():
    """The host memory of this process, without a look at the GPU, which would make a CUDA context."""
    import gc

    import psutil

    from labsupport.benchmarking.memory_meter import MemoryUse

    gc.collect()
    return MemoryUse(psutil.Process().memory_info().rss / MIB, None)


def _session_marks(job: dict):
    """(stage, memory) of a process that serves with ONNX Runtime; a generator, so that nothing is freed early."""
    import numpy as np
    import onnxruntime as ort

    if job["shared_arena"]:
        where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(where, None)
    settings, asked, kept = ort.SessionOptions(), ort.RunOptions(), []
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, job["level"])
    settings.add_session_config_entry("session.use_env_allocators", str(int(job["shared_arena"])))
    for option, value in job["options"].items():
        setattr(settings, option, value)
    if job["shrink"]:
        asked.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    given = {}
    if "feed" in job:
        with np.load(job["feed"], allow_pickle=False) as arrays:
            given = {name.removeprefix("input "): arrays[name] for name in arrays}
    yield "Python and ONNX Runtime", _resident()
    for number in range(1, job["sessions"] + 1):
        session = ort.InferenceSession(job["path"], settings, providers=["CPUExecutionProvider"])
        kept.append(session)
        which = f"session {number}, " if job["sessions"] > 1 else ""
        yield f"{which}weights", _resident()
        for turn, batch in enumerate(job["batches"], 1):
            outputs = session.run(None, given or _zeros(session, batch), asked)
            kept.append(outputs if job["keep_outputs"] else None)
            del outputs
            yield f"{which}run {turn}, batch {batch}", _resident()


def _zeros(session, batch: int) -> dict:
    import numpy as np

    return {
        value.name: np.zeros(
            [axis if isinstance(axis, int) else batch for axis in value.shape], _numpy_type(value.type)
        )
        for value in session.get_inputs()
    }


def _numpy_type(text: str) -> str:
    kind = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(kind, kind)


def _engine_marks(job: dict):
    """(stage, memory) of a process that serves with TensorRT, by its plain API."""
    import torch

    from labsupport import build
    from labsupport.benchmarking import memory_meter as memory

    trt, log = environment.tensorrt(), build.logger("WARNING")
    yield "Python, PyTorch and TensorRT", _resident()
    torch.zeros(1, device="cuda")
    yield "CUDA context", memory.memory_now()
    runtime = trt.Runtime(log)
    yield "TensorRT runtime", memory.memory_now()
    plan = engines.load(job["path"]).plan()
    yield "plan file in memory", memory.memory_now()
    trt_engine = runtime.deserialize_cuda_engine(plan)
    yield "weights: plan deserialized", memory.memory_now()
    del plan
    yield "plan file released", memory.memory_now()
    context = trt_engine.create_execution_context()
    yield "context: activations, scratch", memory.memory_now()
    buffers = _buffers(trt, trt_engine, context, job["batch"])
    yield "inputs and outputs", memory.memory_now()
    stream = torch.cuda.Stream()
    if not context.execute_async_v3(stream.cuda_stream):
        raise LabError(
            f"TensorRT could not run {Path(job['path']).name}: {(log.errors() or ['no reason given'])[-1]}; "
            f"is batch {job['batch']} inside the engine's profile?"
        )
    stream.synchronize()
    yield f"first inference ({len(buffers)} buffers bound)", memory.memory_now()


def _buffers(trt, trt_engine, context, batch: int) -> list:
    """One device buffer per input and output, bound to the context; inputs first, since outputs take their shapes."""
    import torch

    names = [trt_engine.get_tensor_name(i) for i in range(trt_engine.num_io_tensors)]
    inputs = [name for name in names if trt_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    for name in inputs:
        context.set_input_shape(
            name, tuple(batch if axis == -1 else axis for axis in trt_engine.get_tensor_shape(name))
        )
    buffers = []
    for name in names:
        count = math.prod(context.get_tensor_shape(name)) * trt_engine.get_tensor_dtype(name).itemsize
        buffers.append(torch.zeros(count, dtype=torch.uint8, device="cuda"))
        context.set_tensor_address(name, buffers[-1].data_ptr())
    return buffers


def _trim_heap() -> None:
    """Ask glibc to hand free pages back; elsewhere the heap decides for itself."""
    import ctypes
    import gc

    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
