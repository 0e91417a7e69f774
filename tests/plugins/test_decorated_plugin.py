"""The plugin by decorators, and its kernel compiled ahead of time."""

from __future__ import annotations

import ast
import sys
import types

import pytest
from faces import stand_in
from kernels_stand_ins import FOLDER
from plugin_forms_stand_ins import needs_rtx

from labsupport import environment, plugins
from labsupport.errors import BadInput, BuildError, NotAvailable
from labsupport.plugins import ahead_of_time, decorated_plugin

# --- the plugin by decorators ---------------------------------------------------------------------------------------


class Expression:
    """A dimension: a number that is known, or one that is free."""

    def __init__(self, value=None):
        self.value = value

    is_constant = property(lambda self: self.value is not None)

    def constant_value(self):
        return self.value

    def __floordiv__(self, other):
        return ("//", self.value, other.value)


@pytest.fixture
def trtp(monkeypatch):
    """A stand-in for the module tensorrt.plugin that keeps what it is given."""
    module = types.ModuleType("tensorrt.plugin")
    module.given = {}
    for name in ("TensorDesc", "AutoTuneCombination", "KernelLaunchParams", "SymExprs"):
        setattr(
            module, name, type(name, (), {"__init__": lambda self, *arguments: setattr(self, "arguments", arguments)})
        )
    module.SymIntExprs = types.SimpleNamespace(from_tuple=lambda values: list(values))
    module.SymInt32 = lambda value: value
    for name in ("register", "autotune", "aot_impl"):
        setattr(
            module,
            name,
            lambda plugin_id, name=name: lambda function: module.given.setdefault((name, plugin_id), function),
        )
    module.op = types.SimpleNamespace(workbook=types.SimpleNamespace(GatedRmsNorm="the definition"))
    return module


def test_the_declarations_are_what_tensorrt_plugin_reads(trtp, tensorrt_11):
    import inspect

    assert plugins.decorated(trtp, tensorrt_11) == "the definition"
    describe, tune, ahead = (
        trtp.given[name, "workbook::GatedRmsNorm"] for name in ("register", "autotune", "aot_impl")
    )
    parameters = inspect.signature(describe).parameters
    assert (
        list(parameters) == ["x", "gate", "weight", "epsilon"] and parameters["x"].annotation is trtp.TensorDesc
    )  # not its name
    assert (
        parameters["epsilon"].annotation is float and inspect.signature(describe).return_annotation is trtp.TensorDesc
    )
    assert list(inspect.signature(tune).parameters) == ["x", "gate", "weight", "outputs"]
    assert list(inspect.signature(ahead).parameters) == ["x", "gate", "weight", "epsilon", "outputs", "tactic"]
    assert describe(types.SimpleNamespace(like=lambda: "as x"), None, None, 1e-5) == "as x"
    (combination,) = tune(None, None, None, (None,))
    types_, layout, tactics = combination.arguments
    assert types_.count("FP32|FP16") == 4 and layout == "LINEAR" and tactics == [1, 2, 3]


def test_the_plugin_is_registered_once_though_the_cell_runs_twice(trtp, tensorrt_11, monkeypatch):
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    stand_in(monkeypatch, environment, "generation", lambda: "11")
    stand_in(
        monkeypatch, environment, "tensorrt", lambda: types.SimpleNamespace(__name__="tensorrt", __version__="11.0")
    )
    monkeypatch.setattr(decorated_plugin.importlib, "import_module", lambda name: trtp)
    monkeypatch.setattr(decorated_plugin, "_decorated", [])
    asked = []
    monkeypatch.setattr(trtp, "register", lambda plugin_id: asked.append(plugin_id) or (lambda function: function))
    assert plugins.decorated() == plugins.decorated() == "the definition" and len(asked) == 1


def test_a_tensorrt_10_before_the_decorators_is_named(monkeypatch, tensorrt_11):
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    stand_in(monkeypatch, environment, "generation", lambda: "10")
    old = types.SimpleNamespace(__name__="no_such_tensorrt", __version__="10.3")
    with pytest.raises(NotAvailable, match="TensorRT 10.3 has no plugins by decorators .*plugins.register"):
        decorated_plugin.decorated(None, old)
    with pytest.raises(NotAvailable, match="cannot compile ahead of time"):
        decorated_plugin.decorated(types.ModuleType("tensorrt.plugin"), old)


def entry(parameters: int, body: str = "ret;") -> str:
    """PTX as Triton 3.6 writes it: seven parameters, and those that it appends."""
    kinds = [".u64 .ptr .global .align 1"] * 3 + [".u32"] * 3 + [".u64 .ptr .global .align 1"] * (parameters - 6)
    declared = ",\n".join(f"\t.param {kind} kernel_param_{at}" for at, kind in enumerate(kinds))
    return f".version 8.7\n.target sm_90a\n.visible .entry kernel(\n{declared}\n)\n.reqntid 256\n{{\n\tld.param.b64 %rd1, [kernel_param_6];\n\t{body}\n}}\n"


@pytest.fixture
def fake_triton(monkeypatch):
    triton, kernels, compiled = types.ModuleType("triton"), types.ModuleType("labsupport.plugins.triton_kernels"), []
    triton.compiler = types.SimpleNamespace(ASTSource=lambda **parts: parts)
    metadata = types.SimpleNamespace(name="kernel", shared=32, global_scratch_size=0)
    result = types.SimpleNamespace(metadata=metadata, asm={"ptx": entry(7)})
    triton.compile = lambda source, target, options: compiled.append((source, options)) or result
    kernels.block_of, kernels.gated_rms_norm_kernel = lambda columns: 1 << (columns - 1).bit_length(), "the function"
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "labsupport.plugins.triton_kernels", kernels)
    monkeypatch.setattr(plugins, "triton_kernels", kernels, raising=False)
    stand_in(monkeypatch, environment, "require", lambda *needs: None)
    return types.SimpleNamespace(compiled=compiled, metadata=metadata, asm=result.asm)


class Shape(list):
    def numel(self):
        return Expression(12)


def test_the_kernel_is_compiled_ahead_with_its_arguments_in_order(trtp, fake_triton):
    x = types.SimpleNamespace(shape_expr=Shape([Expression(), Expression(1000)]))
    name, ptx, launch, whole = decorated_plugin.compiled(trtp, x, 1e-5, 2, half=True)
    ((source, options),) = fake_triton.compiled
    assert (
        (name, ptx, options) == ("kernel", entry(7), {"num_warps": 8})
        and launch.block_x == 256
        and launch.shared_mem == 32
    )
    assert launch.grid_x == ("//", 12, 1000) and [each.value for each in whole] == [1000] * 3
    assert list(source["signature"]) == "x gate weight columns x_stride gate_stride y EPSILON BLOCK".split()
    assert source["constexprs"] == {"EPSILON": 1e-5, "BLOCK": 1024} and source["signature"]["y"] == "*fp16"
    kernel = (FOLDER.parent / "triton_kernels.py").read_text(encoding="utf-8")
    names = [
        argument.arg
        for node in ast.walk(ast.parse(kernel))
        if getattr(node, "name", "") == "gated_rms_norm_kernel"
        for argument in node.args.args
    ]
    assert names[:7] == list(source["signature"])[:7]  # the same order


def test_a_row_of_unknown_length_is_refused_ahead_of_time(trtp, fake_triton):
    free = types.SimpleNamespace(shape_expr=Shape([Expression(8), Expression()]))
    with pytest.raises(NotAvailable, match="the last axis of x is free"):
        decorated_plugin.compiled(trtp, free, 1e-5, 1, half=False)
    fake_triton.metadata.global_scratch_size = 4
    with pytest.raises(BuildError, match="wants scratch memory .*plugins.register"):
        decorated_plugin.compiled(
            trtp, types.SimpleNamespace(shape_expr=Shape([Expression(), Expression(8)])), 1e-5, 1, half=False
        )


@pytest.mark.parametrize("appended", [1, 2])  # Triton 3.3 and 3.4 append one address, 3.5 and newer two
def test_what_triton_appends_and_never_reads_is_left_away(trtp, fake_triton, appended):
    fake_triton.asm["ptx"] = entry(7 + appended)
    x = types.SimpleNamespace(shape_expr=Shape([Expression(), Expression(1000)]))
    _, ptx, _, _ = decorated_plugin.compiled(trtp, x, 1e-5, 2, half=True)
    assert ptx == entry(7)
    made = plugins.ptx(1000)
    assert made.dropped == tuple(
        f"kernel_param_{7 + at}" for at in range(appended)
    ) and f"without {appended} that Triton had appended" in repr(made)


def test_what_triton_appends_and_reads_is_refused(fake_triton):
    fake_triton.asm["ptx"] = entry(9, "ld.param.b64 %rd2, [kernel_param_8];")
    with pytest.raises(
        BuildError,
        match=r"declares 9 parameters and its code reads \['kernel_param_8'\]; .*use Triton 3.2, .* plugins.register",
    ):
        plugins.ptx(64)
    fake_triton.asm["ptx"] = entry(9, "ld.param.b64 %rd2, [kernel_param_81];")  # another name that begins alike
    assert len(plugins.ptx(64).dropped) == 2
    fake_triton.asm["ptx"] = entry(6)
    with pytest.raises(BuildError, match="declares 6 parameters and it should take 7"):
        plugins.ptx(64)
    with pytest.raises(BuildError, match="declares 0 parameters"):
        ahead_of_time.without_scratch("nothing", "kernel")
    for columns, dtype in ((0, "float16"), (64, "int8")):
        with pytest.raises(BadInput, match="columns is a whole number of 1 or more, dtype one of"):
            plugins.ptx(columns, dtype=dtype)


@pytest.mark.skipif(not environment.has("triton"), reason="no Triton")
@pytest.mark.parametrize("columns, dtype", [(1, "float32"), (1000, "float16"), (4096, "float16")])
def test_triton_compiles_it_without_a_gpu(columns, dtype):
    made = plugins.ptx(columns, dtype=dtype, capability=(9, 0))
    assert made.threads == 256 and ".target sm_90" in made.text
    again, dropped = ahead_of_time.without_scratch(made.text, made.name)
    assert again == made.text and dropped == ()


@needs_rtx
def test_rtx_has_no_decorators():
    with pytest.raises(NotAvailable, match="TensorRT-RTX takes no plugins"):
        plugins.decorated()
