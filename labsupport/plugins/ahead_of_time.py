"""The Triton kernel as PTX, compiled before there is a tensor: what an engine keeps of a plugin by decorators.

Triton appends parameters of its own to every kernel: the address of scratch memory from 3.3 on, one more for its
profiler from 3.5 on. Its own launcher fills them in. TensorRT's manual has no place for them: it passes the inputs, the
whole numbers of ``aot_impl``, which stand between inputs and outputs and cannot be addresses, and the outputs.
(Torch-TensorRT reports of TensorRT 11 that it fills what is missing with zeros; a kernel without the surplus does not
depend on that.) Source:
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/tensorrt.plugin/trt_plugin_aot_impl/index.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labsupport import environment
from labsupport.errors import BadInput, BuildError
from labsupport.plugins.gated_norm import DTYPES, EPSILON, OP_TYPE

# what the kernel is called with, in this order
PARAMETERS = ("x", "gate", "weight", "columns", "x_stride", "gate_stride", "y")


@dataclass(frozen=True)
class Ptx:
    """A compiled kernel: its entry's name, PTX, threads a block, bytes of shared memory, and what was left out."""

    name: str
    text: str
    threads: int
    shared_bytes: int
    dropped: tuple[str, ...]  # parameters that Triton had appended and that the code never reads

    def __repr__(self) -> str:
        without = f", without {len(self.dropped)} that Triton had appended and never reads" if self.dropped else ""
        return (
            f"Ptx({self.name}: {len(PARAMETERS)} parameters{without}; {self.threads} threads, {self.shared_bytes} "
            "bytes of shared memory)"
        )


def ptx(
    columns: int,
    *,
    dtype: str = "float16",
    epsilon: float = EPSILON,
    warps: int = 8,
    capability: tuple[int, int] | None = None,
) -> Ptx:
    """Compile the Triton kernel for rows of ``columns`` values; ``capability`` such as (9, 0), None asks the GPU.

    Only whole numbers can be passed at run time, so epsilon is compiled in. Nothing says how TensorRT aligns the
    tensors between two layers, so nothing is promised to the compiler either. Raises BadInput, NotAvailable without
    Triton, BuildError where the kernel would need more than its seven parameters.
    """
    if type(columns) is not int or columns < 1 or dtype not in DTYPES:
        raise BadInput(
            f"columns={columns!r}, dtype={dtype!r}; columns is a whole number of 1 or more, dtype one of {list(DTYPES)}"
        )
    environment.require("triton", *(() if capability else ("gpu",)))
    import triton

    from labsupport.plugins import triton_kernels

    pointer, block = "*fp16" if dtype == "float16" else "*fp32", triton_kernels.block_of(columns)
    kinds = {name: "i32" if name in ("columns", "x_stride", "gate_stride") else pointer for name in PARAMETERS}
    source = triton.compiler.ASTSource(
        fn=triton_kernels.gated_rms_norm_kernel,
        signature={**kinds, "EPSILON": "constexpr", "BLOCK": "constexpr"},
        constexprs={"EPSILON": epsilon, "BLOCK": block},
    )
    kernel = triton.compile(source, target=_target(capability), options={"num_warps": warps})
    facts = kernel.metadata
    scratch = {
        name: size for name in ("global_scratch_size", "profile_scratch_size") if (size := getattr(facts, name, 0))
    }
    if scratch:
        raise BuildError(
            f"{OP_TYPE} ahead of time: Triton wants scratch memory for a row of {columns} values ({scratch}), and "
            "TensorRT passes none; use fewer columns, or the class: plugins.register"
        )
    text, dropped = without_scratch(kernel.asm["ptx"], facts.name)
    return Ptx(facts.name, text, warps * 32, facts.shared, dropped)


def _target(capability):
    if capability is None:
        return None
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", 10 * capability[0] + capability[1], 32)


def without_scratch(text: str, name: str) -> tuple[str, tuple[str, ...]]:
    """(PTX whose entry takes our seven parameters and no more, the names of those taken out).

    Called with fewer arguments than it declares, a kernel would be launched with whatever lies behind them in memory. A
    parameter at the end that the code never mentions can be left away; one that it reads cannot: then BuildError.
    """
    match = re.search(rf"\.entry\s+{re.escape(name)}\s*\(([^)]*)\)", text)
    declared = [part.strip() for part in match[1].split(",")] if match else []
    extra = [part.split()[-1] for part in declared[len(PARAMETERS) :]]
    rest = text[: match.start()] + text[match.end() :] if match else text
    read = [each for each in extra if re.search(rf"(?<![\w$]){re.escape(each)}(?![\w$])", rest)]
    if len(declared) < len(PARAMETERS) or read:
        why = f"its code reads {read}" if read else f"it should take {len(PARAMETERS)}"
        raise BuildError(
            f"{OP_TYPE} ahead of time: the PTX of {name} declares {len(declared)} parameters and {why}; TensorRT "
            f"passes {', '.join(PARAMETERS)}, and no scratch memory: use Triton 3.2, which appends none, or the "
            "class: plugins.register"
        )
    if not extra:
        return text, ()
    kept = ",\n".join(f"\t{part}" for part in declared[: len(PARAMETERS)])
    return f"{text[: match.start(1)]}\n{kept}\n{text[match.end(1) :]}", tuple(extra)
