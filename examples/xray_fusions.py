"""See what ONNX Runtime fused, in its own optimized graph and by an X-ray.

Run it from the folder of the repository: `python3 -m examples.xray_fusions`.
"""

from collections import Counter

import onnx
import onnxruntime

from labsupport import export, fusion, runtimes
from labsupport.fusion import blocks

block = blocks.ConvBlock()
graph = export.to_onnx(block, block.example_input(4), dynamic=False)
print("written: ", dict(graph.ops))

options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
options.optimized_model_filepath = str(graph.path.with_name("optimized.onnx"))
onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
executed = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
print("executed:", dict(executed))

plan = fusion.xray(runtimes.OnnxRuntime(graph, optimization="extended"))
names = [node.name for node in plan.graph.nodes if node.op in ("Conv", "Relu")]
print(plan.accounts())
assert plan.accounts().complete and plan.together(*names), "the ReLU was expected inside the convolution's kernel"
assert len(plan.launched) == sum(executed.values()), f"{len(plan.launched)} kernels, but the graph has {executed}"
