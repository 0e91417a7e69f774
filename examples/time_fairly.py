"""Time two runtimes fairly: one batch, one thread each, in turn, with their error.

Run it from the folder of the repository: `python3 -m examples.time_fairly`.
"""

import torch

from labsupport import benchmarking, comparing, export, models, runtimes

torch.set_num_threads(1)  # ONNX Runtime gets one, too
model = models.resnet18(width=16, size=64)
images = model.example_input(4)  # (4, 3, 64, 64)
feed = images.numpy()  # both start from memory of the host and end there

eager = runtimes.Torch(model, device="cpu", name="PyTorch")
onnx = runtimes.OnnxRuntime(export.to_onnx(model, images), name="ONNX Runtime")
error = comparing.relative_error(eager(feed)["logits"], onnx(feed)["logits"])

noise = benchmarking.paired(eager, eager, feed, rounds=10, runs_per_round=2, warmup=3)  # A against A: what is no gain
ratio = benchmarking.paired(eager, onnx, feed, rounds=10, runs_per_round=2, warmup=3)
print(f"against itself: {noise}")
print(f"{ratio}; relative error {error:.0e}")
rows = [{"latency": ratio.before, "relative error": 0.0}, {"latency": ratio.after, "relative error": error}]
print(comparing.table(rows).to_string())
beyond = abs(ratio.median - 1) > abs(noise.median - 1) + noise.iqr
print("the difference is larger than the noise" if beyond else "the difference may be noise")
assert error < 1e-4, f"two runtimes of one network differ by {error:.0e}: compare no speeds before this is mended"
