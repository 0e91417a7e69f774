"""Exercises of lab 03: a count of kernels, what fusion can gain, a swallowed node, what forbids fusion, and two
rewrites.
"""

from __future__ import annotations

from typing import Any

from labsupport.exercises.base import Exercise, Prediction, Wrong
from labsupport.exercises.lab03_networks import (
    CHANGES,
    behind_convolution,
    check_same_answer,
    executed_kernels,
    network_of,
    recorded_plan,
    runs_as_one,
    sibling_slips,
)

LAB, CHECK_S = "03_fusion", 120.0
GPU_GAIN = 9.5  # PointwiseChain: tensors moved apart over tensors moved together; the tests count them in the graph


class Kernels(Prediction):
    question = (
        "How many kernels will TensorRT run for the 69 operations of ResNet-18? Copies between layouts, which it puts "
        "in itself, count too."
    )
    quantity = "kernels of ResNet-18 in FP16"
    within = 1.25


class Gain(Exercise):
    question = (
        "By its bytes alone, how many times faster can `blocks.PointwiseChain` become if one kernel runs it? All of "
        "its tensors are equally large."
    )
    hints = (
        "Count tensors that cross the memory bus, not nodes: each node reads its inputs and writes one output.",
        (
            "Eight of the nine nodes read one tensor, and `sigmoid(y - 0.5) * y` reads two. One kernel reads one and "
            "writes one."
        ),
    )
    solution_source = "lab03.gain.check((8 * 2 + 3) / 2)"
    answer = "Eight nodes move two tensors each and the product of two moves three, 19 in all; one kernel moves 2."

    def judge(self, times: float) -> str:
        if times == 9:
            raise Wrong("nine nodes become one kernel, but count bytes: one of the nine reads two tensors.")
        if times in (8.5, 10, 4.5, 4.75):
            raise Wrong(
                f"{times:g} is close. Write down for each node how many tensors it reads and writes, and what one "
                "kernel for all reads and writes."
            )
        if times in (18, 19):
            raise Wrong(
                f"{times:g} tensors cross the bus when each node runs alone; how many still do when one kernel runs?"
            )
        if abs(times - GPU_GAIN) > 0.01:
            raise Wrong(
                f"not {times:g} times. Add up the tensors that nine nodes read and write, and divide by those that one "
                "kernel reads and writes."
            )
        return (
            "19 tensors cross the bus apart and 2 together: at most 9.5 times. The arithmetic is the same on both "
            "sides, so where it takes longer than the bytes, less is left of this."
        )


class Swallowed(Exercise):
    question = (
        "In the recorded FP16 plan of ResNet-18 one node is a kernel of its own and in the INT8 plan a kernel "
        "swallowed it, together with others. Which node?"
    )
    hints = (
        "`fusion.diff(fp16, int8).regrouped` holds the groups of kernels that were divided otherwise.",
        "Look at the first kernels of `fusion.table(int8)`: what does the first convolution hold that FP16 runs apart?",
    )
    solution_source = """
        from labsupport import fusion, recordings

        fp16, int8 = (fusion.xray(recordings.load_plan(f"resnet18_b32.{name}")) for name in ("fp16", "int8"))
        lone = [kernel.nodes[0] for kernel in fp16.kernels if len(kernel.nodes) == 1]
        lab03.swallowed.check(*[node for node in lone if len(int8.kernel_of(node).nodes) > 1])
    """
    answer = "/MaxPool: in INT8 one kernel does the first convolution, its ReLU and the pooling."

    def judge(self, node: str) -> str:
        fp16, int8 = recorded_plan("resnet18_b32.fp16"), recorded_plan("resnet18_b32.int8")
        node = node if node in fp16.graph.by_name else f"/{node.strip('/')}"
        before, after = fp16.kernel_of(node), int8.kernel_of(node)
        if before is None or after is None:
            raise Wrong(f"no kernel computes {node}: it was {fp16.accounts().where(node)[0]}. Look for one that runs.")
        if len(before.nodes) > 1:
            raise Wrong(f"{node} is not alone in FP16: one kernel computes {' + '.join(before.nodes)}.")
        if len(after.nodes) == 1:
            raise Wrong(f"{node} is a kernel of its own in both plans.")
        return (
            f"In INT8 one kernel computes {' + '.join(after.nodes)}: the picture is pooled before it is written, and "
            "a quarter of the bytes leave the kernel."
        )


class Forbids(Exercise):
    question = (
        "Which of the changes in `lab03.CHANGES` forbid ONNX Runtime (level extended) to run the convolution and what "
        "follows it as one kernel? Hand in a list of names."
    )
    hints = (
        (
            "A fused kernel writes only its last result, and is one of those that the runtime's authors wrote. What "
            "needs more?"
        ),
        (
            "Five of the seven forbid it. A stride changes the convolution alone, and a sigmoid is an activation as "
            "good as a ReLU."
        ),
    )
    solution_source = """lab03.forbids.check(["softsign", "custom", "second reader", "precision", "reshape"])"""
    answer = (
        "A second reader needs the tensor that fusion would not write; a cast or a reshape stands between the two; "
        "and for an operator that nobody foresaw beside a convolution, standard or custom, a runtime has no fused "
        "kernel (lab 10)."
    )

    def judge(self, names: list) -> str:
        unknown = [name for name in names if not isinstance(name, str) or name not in CHANGES]
        if unknown:
            raise Wrong(f"{unknown[0]!r} is no change; the names are {list(CHANGES)}.")
        forbidden = {name for name in CHANGES if not runs_as_one(name)}
        for name in names:
            if name not in forbidden:
                raise Wrong(f"{name!r} does not forbid it: {CHANGES[name]}, and both run as one kernel all the same.")
        lacking = forbidden - set(names)
        if lacking:
            count = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}[len(lacking)]
            raise Wrong(
                f"those forbid it, and {count} more {'does' if len(lacking) == 1 else 'do'}. Who needs the tensor "
                "between the two operations, or stands between them?"
            )
        return (
            "The X-ray of all seven networks agrees. TensorRT writes many of its pointwise kernels while building, "
            "so its list is shorter; a second reader it has to respect as well."
        )


class BreakIt(Exercise):
    question = (
        "Change `blocks.ConvBlock` so that its ReLU must run alone, and its first output stays the same. Hand in the "
        "class."
    )
    hints = (
        "Fusion may skip writing the convolution's result only if nobody but the ReLU reads it.",
        "Return a second output: what the ReLU reads. That is what a debugging hook or an auxiliary head does.",
    )
    solution_source = """
        class Yours(blocks.ConvBlock):
            def forward(self, x):
                before = self.bn(self.conv(x))
                return torch.relu(before), before

        lab03.break_it.check(Yours)
    """
    answer = "The second output has to be in memory, so the convolution writes it and the ReLU reads it again."

    def judge(self, network: Any) -> str:
        from labsupport.fusion import blocks

        network = network_of(network)
        check_same_answer(blocks.ConvBlock(), network)
        plan = executed_kernels(network)
        ops = {node.name: node.op for node in plan.graph.nodes}
        relus = [name for name, op in ops.items() if op == "Relu"]
        if not relus:
            raise Wrong(
                f"there is no Relu left in the graph ({', '.join(ops.values())}); keep it, and make it run alone."
            )
        for kernel in plan.kernels:
            if len(kernel.nodes) > 1 and any(ops[name] == "Relu" for name in kernel.nodes):
                raise Wrong(
                    f"{' and '.join(ops[name] for name in kernel.nodes)} still run as one {kernel.layer_type}. Who "
                    "else could read the convolution's result?"
                )
        if not behind_convolution(plan.graph, "Relu"):
            raise Wrong(
                "a ReLU runs alone, and the first output does not come from it: keep the block's own ReLU, behind the "
                "convolution, and make that one run alone."
            )
        ran = ", ".join(kernel.layer_type for kernel in plan.kernels)
        why = (
            "Debug outputs cost more than the copy."
            if len(plan.graph.outputs) > 1
            else "Whatever stands between the two, or reads the first one's result, costs a trip through memory."
        )
        return f"{ran}: the ReLU had to run on its own. {why}"


class MergeIt(Exercise):
    question = (
        "Rewrite `forward` of `blocks.Siblings` with one convolution of 192 channels in place of three of 64, and "
        "the same output. Hand in the class."
    )
    hints = (
        "A convolution computes each output channel by itself, so three layers that read the same tensor are one "
        "with three times the channels: `torch.cat` of their weights, and of their biases.",
        "`y = F.conv2d(x, weight, bias)`, then `torch.relu(y)`, then `.chunk(3, 1)` gives the three parts to add.",
    )
    solution_source = """
        class Yours(blocks.Siblings):
            def forward(self, x):
                layers = self.left, self.middle, self.right
                weight = torch.cat([layer.weight for layer in layers])
                bias = torch.cat([layer.bias for layer in layers])
                parts = torch.relu(torch.nn.functional.conv2d(x, weight, bias)).chunk(3, 1)
                return parts[0] + parts[1] + parts[2]

        lab03.merge_it.check(Yours)
    """
    answer = (
        "TensorRT does this by itself, as the recorded plan shows; ONNX Runtime does not, so there it is yours to do."
    )

    def judge(self, network: Any) -> str:
        from labsupport.fusion import blocks

        network = network_of(network)
        check_same_answer(blocks.Siblings(), network, sibling_slips())
        graph = executed_kernels(network).graph
        convolutions = [node for node in graph.nodes if node.op in ("Conv", "FusedConv")]
        if len(convolutions) != 1:
            raise Wrong(f"the answer is right, and the graph has {len(convolutions)} convolutions; wanted is one.")
        if others := [node.op for node in graph.nodes if node.op in ("MatMul", "Gemm", "Einsum", "FusedMatMul")]:
            raise Wrong(
                f"one convolution, and {others[0]} does the rest of its work; all 192 channels fit into one layer."
            )
        wide = graph.types.get(convolutions[0].outputs[0], ("", ()))[1]
        if len(wide) == 4 and isinstance(wide[1], int) and wide[1] != 192:
            raise Wrong(f"the convolution has {wide[1]} channels; wanted are 192, three times 64.")
        shape = graph.types.get(convolutions[0].inputs[0], ("", ()))[1]
        if len(shape) == 4 and isinstance(shape[1], int) and shape[1] != 64:
            raise Wrong(
                f"one convolution, but it reads {shape[1]} channels: the input was copied to feed it, which costs the "
                "bytes that merging should save. All three read the same 64 channels."
            )
        return "One convolution reads the input once, where three read it three times. The weights stayed the same."


kernels = Kernels()
gain = Gain()
swallowed = Swallowed()
forbids = Forbids()
break_it = BreakIt()
merge_it = MergeIt()
