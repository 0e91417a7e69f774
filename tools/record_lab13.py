"""Record lab 13's larger networks on a GPU: `python3 tools/record_lab13.py [encoder] [mobilenet] [resnet50]`.

Without a name all three: ResNet-50 and MobileNetV2 at batch 32 and 224x224, and a BERT-base-shaped encoder with 8 times
128 tokens. In FP16: TensorRT's engine at the default optimization level under a CUDA graph against PyTorch's FP16 under
a CUDA graph and against torch.compile(mode="max-autotune") with frozen weights, in turn on the device clock. Inputs are
FP16 tensors on the device in PyTorch's own layout; what TensorRT reorders is inside its time. Each row has its error
against PyTorch's FP32 without TF32. With LABSUPPORT_METRICS set to a folder the metrics are left there; without, they
go into data/recordings/ one by one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LAB = "13_frameworks"
STARTED = time.perf_counter()
NETWORKS = {"encoder": "encoder_s128_b8", "mobilenet": "mobilenet_v2_b32", "resnet50": "resnet50_b32"}
RIVALS = {
    "torch_fp16_graph": "trt_fp16_graph_over_torch_fp16_graph",
    "torch_compile": "trt_fp16_graph_over_torch_compile",
}


def say(*what) -> None:
    """One line with the seconds since the start, out at once."""
    sys.stdout.write(" ".join(map(str, (f"[{time.perf_counter() - STARTED:5.1f} s]", *what))) + "\n")
    sys.stdout.flush()


def workpiece(which: str):
    """(network in eval mode, FP32 input or token ids on the host) of one name in `NETWORKS`."""
    import torch

    from labsupport import models

    if which == "encoder":
        network = models.encoder(12, 768, 12, 30522)
        return network, network.example_input(8, length=128)
    network = models.mobilenet_v2() if which == "mobilenet" else models.resnet50()
    pictures = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return models.settle(network, pictures), pictures


def torch_rivals(network, example, report=say) -> dict:
    """PyTorch's FP16 runtimes by metric name; the compiled one only where Triton can make its kernels."""
    import torch

    from labsupport import environment, runtimes
    from labsupport.quiet import quietly

    half = {"dtype": "float16", "channels_last": example.is_floating_point()}
    runs = {"torch_fp16_graph": runtimes.Torch(network, **half, cuda_graph=True, name="torch_fp16_graph")}
    if not environment.has("triton"):
        report(f"torch.compile is left out: {environment.why_not('triton')}")
        return runs
    with torch._inductor.config.patch(freezing=True), quietly():  # constants folded, as TensorRT does
        compiled = runtimes.Torch(network, **half, compiled="max-autotune", name="torch_compile")
        compiled(on_device(example))
    return {**runs, "torch_compile": compiled}


def on_device(example):
    """The FP16 feed on the GPU; token ids stay whole numbers."""
    return example.cuda().half() if example.is_floating_point() else example.cuda()


def engine_of(network, example):
    """TensorRT's FP16 engine under a CUDA graph, with FP16 inputs in the plain layout."""
    from labsupport import build, environment, export, runtimes

    graph = export.to_onnx(network, example, dynamic=False, target=environment.generation())
    io_formats = {network.input_name: ("HALF", "LINEAR")} if example.is_floating_point() else None
    engine = build.engine(
        graph, precision="fp16", io_formats=io_formats, progress=False, name=f"{type(network).__name__.lower()}_lab13"
    )
    say(engine)
    return runtimes.TensorRt(engine, cuda_graph=True, name="trt_fp16")


def measure(book, which: str) -> None:
    """One network: a row of time and error a runtime, then the ratios in turn."""
    from labsupport import benchmarking, comparing, runtimes

    name = NETWORKS[which]
    network, example = workpiece(which)
    feed, engine = on_device(example), engine_of(network, example)
    with runtimes.Torch(network, name="reference") as exact:
        (expected,) = exact(example.cuda()).values()
    runs = {**torch_rivals(network, example), "trt_fp16": engine}
    for metric, run in runs.items():
        (answer,) = run(feed).values()
        error = comparing.relative_error(expected, answer)
        latency = benchmarking.device_latency(run, feed, runs=50)
        say(name, latency, f"error {error:.1e}")
        book.record(f"{name}.{metric}_ms", latency)
        book.record(f"{name}.{metric}_error", error, "fraction")
    for rival, metric in RIVALS.items():
        if rival in runs:
            ratio = benchmarking.paired(runs[rival], engine, feed, clock="device", rounds=20)
            say(book.record(f"{name}.{metric}", ratio))
    for run in runs.values():
        run.close()


def chosen(names: list[str]) -> list[str]:
    """The networks to measure; all of them where none is named. Raises BadInput for an unknown one."""
    from labsupport.errors import BadInput

    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise BadInput(f"{unknown[0]!r} is none of the networks; choose from {list(NETWORKS)}")
    return names or list(NETWORKS)


def main() -> None:
    """Measure what is named, and keep what there is even if the end is not reached."""
    from labsupport import environment, recordings

    names = chosen(sys.argv[1:])
    environment.require("engine execution")
    with recordings.session(LAB, command="python3 tools/record_lab13.py") as book:
        for name in names:
            measure(book, name)


if __name__ == "__main__":
    main()
