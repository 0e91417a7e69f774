"""Record lab 05's speed table on a GPU with TensorRT 8.6: `python3 tools/record_lab05.py`, some minutes on an H100.

ResNet-18 at batch 32 and 224×224, trained for some epochs on the workbook's road signs, in TensorRT (FP32 with TF32
off, TF32, FP16) and PyTorch (the same and BF16), built at the default level, all under CUDA graphs with the pictures in
place; each with its error against TensorRT's FP32 and its accuracy on held-out signs. With LABSUPPORT_METRICS set to a
folder the metrics are left there; without, they go into data/recordings/, also those of a run that failed half way.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.elapsed import say

LAB = "05_precision"
PAIRS = {
    "tf32_over_fp32": ("trt_fp32", "trt_tf32"),
    "fp16_over_tf32": ("trt_tf32", "trt_fp16"),
    "fp16_over_fp32": ("trt_fp32", "trt_fp16"),
}


def enlarged(pixels):
    """Each pixel of a 32×32 picture as 7×7, then as the network wants it."""
    from labsupport import data

    return data.preprocess(pixels.repeat(7, axis=1).repeat(7, axis=2))


def runtimes_of(net, batch) -> dict:
    """Seven runtimes of one network, by name."""
    from labsupport import build, export, runtimes

    graph, runs = export.to_onnx(net, batch.cpu(), dynamic=False, target="8.6"), {}
    for name in ("fp32", "tf32", "fp16"):
        border = {"io_formats": {"images": ("HALF", "LINEAR")}} if name == "fp16" else {}  # as PyTorch's FP16 reads it
        engine = build.engine(graph, precision=name, name=f"signs_{name}", progress=False, **border)
        runs[f"trt_{name}"] = runtimes.TensorRt(engine, cuda_graph=True, name=f"trt_{name}")
        say(engine)
    kinds = {"fp32": {}, "tf32": {"tf32": True}, "fp16": {"dtype": "float16"}, "bf16": {"dtype": "bfloat16"}}
    for name, kind in kinds.items():
        runs[f"torch_{name}"] = runtimes.Torch(net, channels_last=True, cuda_graph=True, name=f"torch_{name}", **kind)
    return runs


def measure(book) -> None:
    """Train, build, and record one row a runtime, then the ratios."""
    import torch

    from labsupport import benchmarking, comparing, data, models, precision, training

    signs = data.road_signs(32, per_class=300)
    net = training.fit(
        models.resnet18(classes=15),
        signs.train,
        epochs=4,
        batch_size=32,
        learning_rate=1e-3,
        device="cuda",
        preprocess=enlarged,
        progress=False,
    )
    say(net)
    batch = torch.from_numpy(enlarged(signs.test.images[:32])).cuda()
    runs, feeds, expected = runtimes_of(net.model, batch), {}, None
    for name, run in runs.items():
        feeds[name] = feed = batch.to(getattr(torch, run.inputs["images"].dtype))
        answer = run(feed)["logits"]
        expected = answer if expected is None else expected
        latency = benchmarking.device_latency(run, feed, runs=50)
        score = precision.accuracy(run, signs.test, preprocess=enlarged, batch_size=32)
        error = comparing.relative_error(expected, answer)
        say(latency, f"error {error:.1e}", score)
        book.record(f"resnet18_b32.{name}_ms", latency)
        book.record(f"resnet18_b32.{name}_error", error, "fraction")
        book.record(f"resnet18_b32.{name}_accuracy", score.accuracy, "fraction", samples=score.images)
    for metric, sides in PAIRS.items():
        one, two = (feeds[side] for side in sides)
        pair = [runs[side] for side in sides]
        ratio = benchmarking.paired(*pair, one, feed_after=two, clock="device", rounds=20)
        say(metric, book.record(f"resnet18_b32.{metric}", ratio))
    for run in runs.values():
        run.close()


def main() -> None:
    """Measure, and store what there is even if the end was not reached."""
    from labsupport import environment, recordings

    environment.require("engine execution", "8.6")
    with recordings.session(LAB, command="python3 tools/record_lab05.py") as book:
        measure(book)


if __name__ == "__main__":
    main()
