"""Exercises of lab 02: a usable file, a network that ends in probabilities, a fitting profile, a silent engine."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labsupport.exercises.answers import described
from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.calling import yes_or_no
from labsupport.files import scratch_folder

LAB, CHECK_S = "02_build_and_run", 120.0
TRAFFIC = {2: 40, 8: 5200, 12: 300, 20: 15}  # images in a request → requests an hour
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>No such model.</body></html>\n"

WEAK, STRONG, EVERY = ("8.6", "10"), ("10", "11", "rtx"), ("8.6", "10", "11", "rtx")
NAMES = {  # name in the module tensorrt or tensorrt_rtx → the releases that have it; held against the API listings
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": WEAK,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": STRONG,
    "BuilderFlag.FP16": WEAK,
    "ILayer.precision": WEAK,
    "IInt8EntropyCalibrator2": WEAK,
    "DataType.BF16": STRONG,
    "ICudaEngine.device_memory_size": WEAK,
    "ICudaEngine.device_memory_size_v2": STRONG,
    "IProgressMonitor": STRONG,
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": STRONG,
    "IExecutionContext.execute_async_v2": ("8.6",),
    "IExecutionContext.execute_async_v3": EVERY,
    "INetworkDefinition.add_fully_connected": ("8.6",),
    "INetworkDefinition.add_plugin_v3": ("10", "11"),
    "IBuilderConfig.set_compute_capability": ("rtx",),
}
DAMAGES = ("nothing", "cut off", "overwritten", "no sidecar", "sidecar edited", "from version 7.2")


class ParsedLayers(Prediction):
    question = "Into how many TensorRT layers will the parser turn the seven ONNX nodes?"
    quantity = "the layers the parser makes of seven nodes"
    unit = "layers"
    within = 1.25


def downloads() -> Path:
    """A new folder with five files named a.onnx to e.onnx; one of them is a network that TensorRT can build."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    def model(nodes, *imports):
        shape = ["batch", 3, 8, 8]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "features")]
        kernel = numpy_helper.from_array(np.full((3, 3, 3, 3), 0.1, np.float32), "kernel")
        graph = helper.make_graph(nodes, "download", ends[:1], ends[1:], [kernel])
        opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), *imports)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()

    conv = helper.make_node("Conv", ["images", "kernel"], ["sums"], pads=[1, 1, 1, 1])
    relu = helper.make_node("Relu", ["sums"], ["features"])
    strange = helper.make_node("SpectralPool", ["sums"], ["features"], domain="example.research")
    network = model([conv, relu])
    files = {
        "a": PAGE,
        "b": model([]),
        "c": model([conv, strange], ("example.research", 1)),
        "d": network,
        "e": network[: len(network) // 2],
    }
    folder = scratch_folder()
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
    return folder


def load_damaged(engine, damage: str) -> str:
    """What loading says, in short, of a copy of an engine and its sidecar that one of DAMAGES has befallen."""
    from labsupport.build import engines
    from labsupport.errors import EngineError, one_of

    one_of(DAMAGES, damage=damage)
    copy = scratch_folder() / "copy.plan"
    beside, facts = engines.sidecar_path(copy), dict(engine.sidecar)
    if damage == "from version 7.2":  # signed by this user, so only the version is wrong
        facts["built_for"] = {**facts["built_for"], "product": "tensorrt", "version": "7.2"}
    engines.save(engine.plan(), copy, facts)
    if damage == "cut off":
        copy.write_bytes(engine.plan()[:10_000])
    elif damage == "overwritten":
        copy.write_bytes(b"\0" * 10_000)
    elif damage == "no sidecar":
        beside.unlink()
    elif damage == "sidecar edited":
        beside.write_text(beside.read_text(encoding="utf-8").replace("fp32", "fp16"), encoding="utf-8")
    try:
        return f"loaded as {engines.load(copy).name!r}"
    except EngineError as refused:
        return f"{type(refused).__name__}: " + re.split(r"[:,.] | \(", str(refused))[0]


class UsableFile(Exercise):
    question = "Which one of the five files in `folder` is a network that TensorRT can build?"
    hints = (
        "A parser that returns True has not read a network yet: count its layers. export.load knows more traps.",
        "No single test finds all four bad files. Hand each path to export.load, and what it returns to build.parse; "
        "both raise an error that says what is wrong.",
    )
    solution_source = """
        def builds(path):
            try:
                build.parse(export.load(path))
            except errors.LabError as reason:
                return print(path.name, "-", reason)
            return True

        usable = [path.name for path in sorted(folder.iterdir()) if builds(path)]
        lab02.usable_file.check(usable[0])
    """
    answer = (
        "a is a web page, b holds weights and no node, c wants an operator that nobody has, e is cut off. The "
        "parser says True to a and b, and the ONNX checker says yes to c."
    )
    traps = {
        "a": "a.onnx is a web page. A parser may still answer True to it, with a network of 0 layers: look at "
        "network.num_layers before you believe it.",
        "b": "b.onnx is well-formed ONNX with weights in it, and without a single node: there is nothing to compute. "
        "What does export.load say about it?",
        "c": "c.onnx passes the ONNX checker, which knows the operators of its own domain only. TensorRT has no "
        "SpectralPool: hand the loaded graph to build.parse.",
        "e": "e.onnx is cut off in the middle of its weights; export.load names it.",
    }

    def judge(self, name: Any) -> str:
        if isinstance(name, (list, tuple)) and len(name) == 1:
            name = name[0]
        if not isinstance(name, (str, Path)):
            raise Wrong(f'the answer is a {type(name).__name__}; wanted is the name of one file, such as "a.onnx".')
        stem = Path(name).name.lower().removesuffix(".onnx").strip()
        if stem in self.traps:
            raise Wrong(self.traps[stem])
        if stem != "d":
            raise Wrong(f"there is no {stem!r} among the five; they are called a.onnx to e.onnx.")
        return "d.onnx loads, parses without an error and has layers: three different questions, all answered yes."


class Probabilities(Exercise):
    question = (
        "Write `add_probabilities(trt, network)`: it adds what turns the logits (N, 10) into probabilities and "
        "leaves these as the network's only output."
    )
    hints = (
        "network.add_softmax(tensor) adds the layer. network.unmark_output and network.mark_output choose the outputs.",
        "The axes of a softmax are a bit mask, not an index, and the default is not the class axis here: "
        "softmax.axes = 1 << 1 is axis 1.",
    )
    solution_source = """
        def add_probabilities(trt, network):
            logits = network.get_output(0)
            softmax = network.add_softmax(logits)
            softmax.axes = 1 << 1
            softmax.get_output(0).name = "probabilities"
            network.unmark_output(logits)
            network.mark_output(softmax.get_output(0))

        lab02.probabilities.check(add_probabilities)
    """
    answer = (
        "A softmax over axis 1. Left alone, TensorRT's softmax of a two-dimensional tensor runs over axis 0, the "
        "batch: each image's answer would then depend on its neighbors."
    )

    def judge(self, add: Any) -> str:
        import numpy as np

        from labsupport import build, environment
        from labsupport.build import network as network_of
        from labsupport.exercises import lab02_network

        if not callable(add):
            raise Wrong(f"the answer is a {type(add).__name__}; wanted is the function itself, without parentheses.")
        trt = environment.tensorrt()
        builder = trt.Builder(build.logger("WARNING"))
        network = builder.create_network(network_of.flags(trt))
        weights = lab02_network.small_network(trt, network)  # kept: TensorRT reads the arrays where they lie
        before = network.num_layers
        add(trt, network)
        layers = lab02_network.layers_by_output(network)
        output = lab02_network.only_new_output(network, layers, before)
        logits = np.random.default_rng().normal(0, 2, (4, lab02_network.CLASSES))
        values = {network.get_layer(before - 1).get_output(0).name: logits}  # whatever it is called by now
        lab02_network.compare_with_softmax(logits, lab02_network.evaluate(trt, layers, output, values))
        return (
            f"{network.num_layers - before} added to the {before} layers, {len(weights)} weights as they were; "
            "one output is left, and each of its rows sums to 1."
        )


class TrafficProfile(Exercise):
    question = (
        "Build an engine of `graph` whose profile takes every batch size in lab02.TRAFFIC, is tuned for the "
        "most frequent one, and allows nothing larger than the largest."
    )
    hints = (
        "A profile has three shapes for each input: the smallest, the one kernels are tuned for, the largest.",
        'profiles={"images": build.Profile((2, 1, 28, 28), (…), (…))}: put the batch that comes 5200 times an hour in '
        "the middle.",
    )
    solution_source = """
        fitting = build.engine(graph, name="traffic", profiles={
            "images": build.Profile((2, 1, 28, 28), (8, 1, 28, 28), (20, 1, 28, 28))})
        lab02.traffic_profile.check(fitting)
    """
    answer = (
        "Smallest 2 (or 1), tuned for 8, largest 20. The range decides what is accepted and how much activation "
        "memory is set aside; the middle shape decides which kernels win."
    )

    def judge(self, engine: Any) -> str:
        from labsupport.build.engines import Engine
        from labsupport.build.network import Profile

        if isinstance(engine, (Profile, dict)):
            raise Wrong("that is a profile, not yet an engine: give it to build.engine(graph, profiles=...).")
        if not isinstance(engine, Engine):
            raise Wrong(f"the answer is a {type(engine).__name__}; wanted is what build.engine returns.")
        ranges = _batch_ranges(engine.sidecar["options"])
        refused = [batch for batch in TRAFFIC if not any(low <= batch <= high for low, _, high in ranges)]
        if refused:
            raise Wrong(
                f"requests of {', '.join(map(str, refused))} images would be refused: the engine takes "
                f"{' and '.join(f'{low} to {high}' for low, _, high in ranges)}."
            )
        widest, largest = max(high for _, _, high in ranges), max(TRAFFIC)
        if widest > largest:
            raise Wrong(f"the engine sets memory aside for {widest} images and nobody sends more than {largest}.")
        usual = max(TRAFFIC, key=TRAFFIC.get)
        tuned = [best for low, best, high in ranges if low <= usual <= high]
        if usual not in tuned:
            raise Wrong(
                f"the kernels are tuned for {tuned[0]} images a request, and {TRAFFIC[usual]} of "
                f"{sum(TRAFFIC.values())} requests bring {usual}: make that the middle shape."
            )
        return f"every request fits, kernels are tuned for batch {usual}, and no memory waits for more than {largest}."


def _batch_ranges(options: dict) -> list[tuple[int, int, int]]:
    """(smallest, tuned for, largest) batch of each profile an engine was built with."""
    groups = [tuple(shape[0] for shape in group["images"]) for group in options["profiles"] if "images" in group]
    if groups:
        return groups
    batch = options["batch"] or 1
    return [(batch,) * 3 if isinstance(batch, int) else tuple(batch)]


class SilentEngine(Exercise):
    question = (
        "Write `silent(engine)`: True when not one layer of the engine computes in the precision that was "
        "asked for, else False."
    )
    hints = (
        "engine.precision is the wish, engine.precisions counts what was built: Counter({'fp32': 5}).",
        "A Counter answers 0 for what it does not hold, so engine.precisions[...] never fails.",
    )
    solution_source = """
        def silent(engine):
            return engine.precisions[engine.precision] == 0

        lab02.silent_engine.check(silent)
    """
    answer = "An engine is silent when its counter has nothing under the precision it was asked for."

    def judge(self, silent: Callable) -> str:
        from labsupport.build.engines import Engine

        if isinstance(silent, Engine):
            raise Wrong(f"that is {described(silent)}; hand in the function itself, `silent`, without calling it.")
        cases = _drawn_engines()
        for asked, built, meaning in cases:
            sidecar = {
                "name": f"asked_{asked}",
                "precision": asked,
                "precisions": built,
                "build_s": 1.0,
                "evidence": "engine inspector",
                "layers": [],
                "bytes": 0,
                "sha256": "",
            }
            said = yes_or_no(silent(Engine(path=Path("exercise.plan"), sidecar=sidecar)), "silent")
            if said != (not built.get(asked)):
                raise Wrong(f"it says {said} of an engine asked for {asked} with the layers {built}: {meaning}.")
        return f"told apart {len(cases)} engines by what was built, not by what was wished."


def _drawn_engines() -> list[tuple[str, dict[str, int], str]]:
    """(asked for, layers read back, what an error here means), counts, order and precisions drawn anew."""
    draw, kinds = random.Random(), ("fp32", "fp16", "bf16", "int8", "fp8")
    cases = []
    for asked in kinds:
        one, two, three = draw.sample([kind for kind in kinds if kind != asked], 3)
        layers = [draw.randint(2, 40) for _ in range(4)]
        silence = "not one of these layers computes as it was asked for, which is silent"
        cases += [
            (asked, {asked: layers[0]}, "asked for and built: nothing is hidden"),
            (asked, {one: layers[1]}, silence),
            (asked, {one: layers[1], two: layers[2]}, silence),
            (asked, {one: layers[1], two: 1, three: layers[3]}, silence),
            (asked, {one: layers[1], asked: 1}, "one layer does compute as asked: a mixture is the builder's choice"),
            (asked, {asked: 1, one: layers[1], two: layers[2]}, "one layer does compute as asked, among others"),
        ]
    draw.shuffle(cases)
    return cases


parsed_layers = ParsedLayers()
usable_file = UsableFile()
probabilities = Probabilities()
traffic_profile = TrafficProfile()
silent_engine = SilentEngine()
