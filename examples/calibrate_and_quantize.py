"""Calibrate a trained network and run it in INT8, weights and activations.

Run it from the folder of the repository: `python3 -m examples.calibrate_and_quantize`.
"""

import numpy as np

from labsupport import data, export, models, quantization, runtimes, training

digits = data.mnist()
network = training.fit(models.article_cnn(), digits.train, epochs=1, progress=False).model
graph = export.to_onnx(network, network.example_input(2))

batches = [data.preprocess(images) for images, _ in digits.train.take(256).batches(64)]  # (64, 1, 28, 28) each
seen = quantization.calibrate(graph, batches)
largest = max(np.abs(batch).max() for batch in batches)  # without calibration it would become the code 127
scale = quantization.scale_of(np.concatenate(batches)).scale
assert np.isclose(scale, largest / 127), f"scale {scale} by the library, {largest / 127} by hand"

int8 = quantization.to_qdq(graph, seen, method="entropy", target="onnxruntime")
placed = quantization.placement(int8)
print(placed)
print(f"{graph.size_mib:.2f} MiB in FP32, {int8.size_mib:.2f} MiB with INT8 weights")

accuracies = [training.accuracy(runtimes.OnnxRuntime(each), digits.test) for each in (graph, int8)]
print(f"accuracy on {len(digits.test)} test digits: FP32 {accuracies[0]:.3f}, INT8 {accuracies[1]:.3f}")
assert len(placed.quantized) == 3, f"three layers have weights, and {placed.quantized} were quantized"
assert accuracies[0] - accuracies[1] < 0.02, f"INT8 lost {accuracies[0] - accuracies[1]:.1%}; more than 2 points"
