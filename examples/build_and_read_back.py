"""Build an FP16 engine with TensorRT's own API and read its precision back.

Run it from the folder of the repository: `python3 -m examples.build_and_read_back`.
"""

from labsupport import environment, export, precision
from labsupport.fusion import blocks

environment.require("engine building")
block = blocks.ConvBlock()  # convolution, batch norm, ReLU
graph = export.to_onnx(block, block.example_input(8), dynamic=False, target=environment.generation())
half = precision.cast(graph)  # FP16 inside, FP32 at both ends

trt, generation = environment.tensorrt(), environment.generation()
builder = trt.Builder(log := trt.Logger(trt.Logger.ERROR))
config, flags = builder.create_builder_config(), 0
if generation == "8.6":  # weakly typed: the first flag allows FP16, the second makes the builder obey the layers below
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
elif generation == "10":
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
elif generation == "rtx" and not environment.has("engine execution"):  # without a GPU, say for which one
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the engine tells no types

network = builder.create_network(flags)
parser = trt.OnnxParser(network, log)
assert parser.parse(half.path.read_bytes()), parser.get_error(0).desc()
for layer in (network.get_layer(i) for i in range(network.num_layers)):
    if generation == "8.6" and layer.type == trt.LayerType.CONVOLUTION:
        layer.precision = trt.float16
plan = builder.build_serialized_network(network, config)
types, evidence = precision.read_back(plan, network)
print(f"{len(bytes(plan)) / 1024:.0f} KiB; layers by type, from the {evidence}: {dict(types)}")
assert types["fp16"] > 0, f"asked for FP16 and got {dict(types)}"
