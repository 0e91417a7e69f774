"""Record lab 06's long measurements on a GPU with TensorRT 8.6: `python3 tools/record_lab06.py [PART …] [--seconds
360]`.

The parts, in this order: resnet18 (INT8 against FP16 at batch 256, explicit Q/DQ against the calibrator at 32),
resnet50, encoder. A part that would not fit into the seconds left is skipped and said so; what was measured before is
kept. With LABSUPPORT_METRICS set to a folder the metrics are left there; without, they go into data/recordings/. Every
ratio is of two engines under CUDA graphs in one process, A/B/B/A, on the device clock, and the error of each against
FP32 is printed; those of INT8 are recorded beside it. Where one of the two errs too much, nothing is recorded: the time
of a wrong answer says nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import elapsed
from tools.elapsed import say

LAB = "06_quantization"
PARTS = {"resnet18": 110, "resnet50": 95, "encoder": 150}  # seconds each is expected to take
CHW4 = {"images": ("HALF", "CHW4")}
MOST_ERROR = 0.3  # relative, against FP32; an engine that computes nonsense has about 1


def pictures(count: int):
    """Drawn road signs at 224×224, float32 (count, 3, 224, 224)."""
    import torch

    from labsupport import data

    images = torch.as_tensor(data.preprocess(data.road_signs(32, per_class=20).train.images[:count]))
    return torch.nn.functional.interpolate(images, size=(224, 224), mode="bilinear")


def workpiece(network: str, folder: Path):
    """(FP32 graph, explicit Q/DQ graph, 32 fresh pictures) of a ResNet with a free batch."""
    from labsupport import export, models, quantization

    images = pictures(48)
    model = models.settle(getattr(models, network)(), images[:16])
    graph = export.to_onnx(model, images[:2], path=folder / f"{network}.onnx")
    seen = [images[:8].numpy(), images[8:16].numpy()]
    explicit = quantization.to_qdq(graph, seen, method="entropy", path=folder / f"{network}.qdq.onnx")
    say(network, quantization.placement(explicit))
    return graph, explicit, images[16:].numpy()


def runtime(graph, precision: str, batch: int, name: str, **options):
    """An engine for one batch size under a CUDA graph, with what it weighs."""
    from labsupport import build, quantization, runtimes

    fixed = quantization.at_batch(graph, batch)
    engine = build.engine(fixed, precision=precision, name=name, progress=False, **{"optimization_level": 2, **options})
    run = runtimes.TensorRt(engine, cuda_graph=True, name=name)
    say(engine, f"activations {run.activation_mib:.1f} MiB")
    return run


def record_ratio(book, metric: str, before, after, feed, answer):
    """Time two runtimes in turn and record the ratio and the errors in INT8.

    Returns (Ratio, error by side), or None, and records nothing, where one of the two is wrong.
    """
    from labsupport import benchmarking, comparing

    subject, _, what = metric.partition(".")
    sides = [side.removesuffix("_int8") for side in reversed(what.split("_over_"))]  # before, after
    feed = feed.astype(before.inputs[next(iter(before.inputs))].dtype) if feed.dtype.kind == "f" else feed
    found = {}
    for side, run in zip(sides, (before, after), strict=True):
        outputs = {k: v[: len(next(iter(answer.values())))].astype("float32") for k, v in run(feed).items()}
        found[side] = comparing.relative_error(answer, outputs)
        say(f"{run.name}: relative error {found[side]:.4f}")
    wrong = [side for side, error in found.items() if not error <= MOST_ERROR]
    if wrong:
        say(f"{metric}: not recorded, the relative error of {' and '.join(wrong)} is above {MOST_ERROR}")
        return None
    ratio = benchmarking.paired(before, after, feed, clock="device")
    say(metric, ratio, ratio.before, ratio.after)
    book.record(metric, ratio)
    compared = len(next(iter(answer.values())))
    for side in found.keys() - {"fp16"}:
        book.record(f"{subject}.{side}_relative_error", found[side], "fraction", samples=compared)
    return ratio, found


def resnet18(book, folder: Path) -> bool:
    """INT8 against FP16 at batch 256; then explicit Q/DQ against the calibrator at batch 32."""
    from labsupport import runtimes

    graph, explicit, fresh = workpiece("resnet18", folder)
    answer = runtimes.OnnxRuntime(graph, threads=8)(fresh)
    done = against_fp16(book, "resnet18", graph, explicit, fresh, answer, batch=256, level=2)
    return against_calibrator(book, graph, explicit, fresh, answer, folder) and done


def against_calibrator(book, graph, explicit, fresh, answer, folder: Path) -> bool:
    """Explicit Q/DQ against the calibrator at batch 32, both with the FP32 input that the graph has.

    The calibrator's batches are FP32, and it hands over addresses only. With the input declared HALF the engine
    answered nonsense, as it would if the builder took the bytes for FP16 numbers; so no io_formats on either side. The
    scale that the calibrator found for the input is printed beside the one that its largest value asks for.
    """
    import numpy as np

    from labsupport import environment, quantization

    fixed, cache = quantization.at_batch(graph, 32), folder / "resnet18.cache"
    seen = np.concatenate([pictures(16).numpy()] * 2)  # the pictures behind the explicit scales, as one batch of 32
    calibrator = quantization.entropy_calibrator(environment.tensorrt(), [seen], cache, graph=fixed)

    def configure(trt, builder, network, config):
        if environment.generation() == "8.6":
            config.int8_calibrator = calibrator

    with (
        runtime(graph, "int8", 32, "implicit", configure=configure, rebuild=True) as old,
        runtime(explicit, "int8", 32, "explicit") as new,
    ):
        say(
            f"batches given: {calibrator.batches_given}, scale of the input {input_scale(cache):.5f},",
            f"by its largest value {np.abs(seen).max() / 127:.5f}",
        )
        return record_ratio(book, "resnet18_b32.explicit_over_implicit_int8", old, new, fresh, answer) is not None


def input_scale(cache: Path) -> float:
    """The scale of ``images`` in a calibration cache, which holds FP32 numbers as big-endian hex."""
    import struct

    lines = cache.read_text(encoding="utf-8").splitlines() if cache.exists() else []
    codes = [line.partition(": ")[2] for line in lines if line.startswith("images: ")]
    return struct.unpack(">f", bytes.fromhex(codes[0]))[0] if codes else float("nan")


def resnet50(book, folder: Path) -> bool:
    """INT8 against FP16 at batch 32; level 1, because 53 convolutions take long to tune."""
    from labsupport import runtimes

    graph, explicit, fresh = workpiece("resnet50", folder)
    answer = runtimes.OnnxRuntime(graph, threads=8)(fresh)
    return against_fp16(book, "resnet50", graph, explicit, fresh, answer, batch=32, level=1)


def against_fp16(book, network: str, graph, explicit, fresh, answer, *, batch: int, level: int) -> bool:
    """Explicit Q/DQ against FP16, both with an FP16 input in the layout that the first convolution reads."""
    import numpy as np

    options = {"io_formats": CHW4, "optimization_level": level}
    feed = np.concatenate([fresh] * (batch // len(fresh)))
    with (
        runtime(graph, "fp16", batch, f"{network} fp16 b{batch}", **options) as half,
        runtime(explicit, "int8", batch, f"{network} int8 b{batch}", **options) as int8,
    ):
        return record_ratio(book, f"{network}_b{batch}.int8_over_fp16", half, int8, feed, answer) is not None


def encoder(book, folder: Path, layers: int = 2, hidden: int = 768, heads: int = 12, length: int = 128) -> bool:
    """BERT-base's layers (hidden 768, 12 heads), 128 tokens, batch 64, in INT8 against FP16: more and more behind Q/DQ.

    Each step is recorded under its name with its error; ``int8_over_fp16`` is the fastest of them. Beside each stands
    the time inside the region that goes into products of INT8, FP16 and FP32 numbers, by the names of the kernels. What
    the FP16 side's products take of its time bounds the gain: the rest is the same work on both sides.
    """
    import torch

    from labsupport import data, errors, export, models, quantization, runtimes

    model, tokens = models.encoder(layers, hidden, heads, 4096), data.token_ids(64, length, 4096, seed=0)
    graph = export.to_onnx(model, torch.as_tensor(tokens), path=folder / "encoder.onnx", dynamic=False)
    answer = runtimes.OnnxRuntime(graph, threads=8)(tokens)
    known = quantization.calibrate(graph, [tokens])
    say("calibrated")
    half = runtime(graph, "fp16", 64, "encoder fp16", optimization_level=1)
    record_products(book, "encoder_s128_b64.fp16", half, tokens)
    done = []
    for step, options in steps(graph).items():
        explicit = quantization.to_qdq(graph, known, method="max", path=folder / f"encoder.{step}.onnx", **options)
        say(step, quantization.placement(explicit))
        try:
            int8 = runtime(explicit, "as-is", 64, f"encoder {step}", optimization_level=1)
        except errors.LabError as reason:  # a network that the builder cannot build ends its step, not the others
            say(step, reason)
            continue
        with int8:
            measured = record_ratio(book, f"encoder_s128_b64.{step}_over_fp16", half, int8, tokens, answer)
            record_products(book, f"encoder_s128_b64.{step}", int8, tokens)
        if measured is not None:
            done.append((*measured, step))
            ratio, off, fastest = max(done, key=lambda entry: entry[0].median)
            book.record("encoder_s128_b64.int8_over_fp16", ratio)
            book.record("encoder_s128_b64.fp16_ms", ratio.before)
            book.record("encoder_s128_b64.int8_relative_error", off[fastest], "fraction", samples=len(tokens))
    half.close()
    return len(done) == len(steps(graph))


def steps(graph) -> dict[str, dict]:
    """Options of ``to_qdq`` by name, each going one step further than the one before it.

    The products with weights alone; the two products inside attention as well; the shortcut of the residual adds as
    well; both sides of them. Wishes for FP16 between the products are no step: 8.6 finds no implementation for the
    region then, and FP16 written into the graph, with casts around each pair, breaks its fused attention and is slower.
    """
    weights = {w.name for w in graph.model().graph.initializer}
    scores = [
        node.name for node in graph.model().graph.node if node.op_type == "MatMul" and node.input[1] not in weights
    ]
    return {
        "int8_weights": {"exclude": scores},
        "int8_attention": {},
        "int8_shortcut": {"residual": "shortcut"},
        "int8_residual": {"residual": "both"},
    }


def record_products(book, name: str, run, feed) -> None:
    """Record the microseconds in products of weights and activations, and what of it goes into FP32 numbers; fused
    attention is not in it.
    """
    spent = product_us(run, feed)
    book.record(f"{name}_products_us", spent["int8"] + spent["fp16"] + spent["fp32"], "µs")
    book.record(f"{name}_fp32_products_us", spent["fp32"], "µs")


def product_us(run, feed, rounds: int = 5) -> dict[str, float]:
    """Microseconds that one inference spends in matrix products, by the type of the numbers that go in."""
    import torch

    run.bind(feed)
    run.enqueue()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as seen:
        for _ in range(rounds):
            run.enqueue()
        torch.cuda.synchronize()
    marks = {"int8": "gemm_i8", "fp16": "gemm_f16", "fp32": "gemm_f32", "attention": "mha"}
    found = {
        kind: sum(e.self_device_time_total for e in seen.key_averages() if mark in e.key) / rounds
        for kind, mark in marks.items()
    }
    say(f"{run.name}: " + ", ".join(f"{kind} {us:.0f} µs" for kind, us in found.items()))
    return found


WORK = {"resnet18": resnet18, "resnet50": resnet50, "encoder": encoder}


def in_children(parts: list[str], seconds: float) -> int:
    """Each part in a process of its own, so that one that fails or takes too long does not cost the others."""
    failed = 0
    for part in parts:
        left = seconds - (elapsed.seconds())
        if left < PARTS[part] / 2:
            say(f"{part}: skipped, {left:.0f} s are left and it takes about {PARTS[part]}")
            failed += 1
            continue
        say(f"{part}:")
        try:
            failed += bool(
                subprocess.run([sys.executable, __file__, part, "--here"], timeout=left, check=False).returncode
            )
        except subprocess.TimeoutExpired:
            say(f"{part}: stopped, its time was up")
            failed += 1
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {list(PARTS)}; all without")
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--here", action="store_true", help="in this process, without a limit")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {unknown}; choose from {list(PARTS)}")
    from labsupport import environment, recordings

    environment.require("engine execution", "8.6")
    parts = options.parts or list(PARTS)
    if options.here:
        with tempfile.TemporaryDirectory(prefix="labsupport-") as folder:
            done = [WORK[part](recordings.lab(LAB), Path(folder)) for part in parts]
        sys.exit(0 if all(done) else 1)
    with recordings.session(LAB, command=" ".join(["python3 tools/record_lab06.py", *options.parts])):
        failed = in_children(parts, options.seconds)
    sys.exit(failed)


if __name__ == "__main__":
    main()
