"""The three forms of a plugin, as far as they can be judged without a GPU that takes them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from faces import stand_in
from kernels_stand_ins import FOLDER
from plugin_forms_stand_ins import needs_rtx

from labsupport import environment, plugins
from labsupport.errors import BadInput, BuildError, LabError, NotAvailable
from labsupport.plugins import plugin_library, python_plugin

needs_compiler = pytest.mark.skipif(not shutil.which("g++") or sys.platform == "win32", reason="no C++ compiler")


# --- the C++ project ------------------------------------------------------------------------------------------------


def test_the_project_names_its_files_and_the_operator():
    cmake, readme = ((FOLDER / name).read_text(encoding="utf-8") for name in ("CMakeLists.txt", "README.md"))
    for path in (*FOLDER.glob("*.cu"), *FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")):
        assert f"`{path.name}`" in readme
        assert path.name in cmake or path.name in ("gated_rms_norm.cu", "launch.h")  # included by launch.cu
    for source in ("plugin_v2.cpp", "plugin_v3.cpp"):
        text = (FOLDER / source).read_text(encoding="utf-8")
        assert f'kNAME{{"{plugins.OP_TYPE}"}}' in text and 'kVERSION{"1"}' in text and "setLoggerFinder" in text
    assert (
        "getPluginCreators" in (FOLDER / "plugin_v2.cpp").read_text()
        and "getCreators" in (FOLDER / "plugin_v3.cpp").read_text()
    )


def header_folder(tmp_path, major):
    folder = tmp_path / f"include{major}"
    folder.mkdir(exist_ok=True)
    name = "NV_TENSORRT_MAJOR" if major < 10 else "TRT_MAJOR_ENTERPRISE"
    (folder / "NvInferVersion.h").write_text(
        f"#define {name} {major} //!< major\n#ifndef NV_TENSORRT_MAJOR\n#define NV_TENSORRT_MAJOR {name}\n"
        "#endif\n#define NV_TENSORRT_MINOR 6\n"
    )
    (folder / "NvInfer.h").write_text("")
    (folder / "cuda_runtime_api.h").write_text("typedef int cudaError_t; typedef void* cudaStream_t;\n")
    return folder


def test_headers_are_found_and_their_version_is_read(tmp_path, monkeypatch):
    for name in ("TENSORRT_ROOT", "TENSORRT_INCLUDE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert plugins.headers(header_folder(tmp_path, 8)) == (tmp_path / "include8", 8)
    assert plugins.headers(header_folder(tmp_path, 11))[1] == 11
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path / "include11"))
    assert plugins.headers()[1] == 11
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(BadInput, match=r"has no NvInfer.h and NvInferVersion.h"):
        plugins.headers()
    (tmp_path / "include8" / "NvInferVersion.h").write_text("nothing")
    with pytest.raises(BadInput, match="names no major version"):
        plugins.headers(tmp_path / "include8")
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR")
    monkeypatch.setattr(plugin_library, "SYSTEM_HEADERS", ())
    with pytest.raises(NotAvailable, match="C\\+\\+ headers were not found .* set TENSORRT_INCLUDE_DIR"):
        plugins.headers()


@needs_rtx
def test_headers_of_another_tensorrt_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin_library, "nvcc", lambda: "nvcc")
    with pytest.raises(BadInput, match="made for TensorRT 8, and this machine has 1.7.1.* headers of 11"):
        plugins.build_library(header_folder(tmp_path, 8), architecture="sm_90")


@needs_rtx
@pytest.mark.skipif(sys.platform == "win32", reason="needs an executable file")
def test_a_compiler_that_fails_leaves_no_library(tmp_path, monkeypatch):
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\necho 'plugin.cpp(7): error: no such type' >&2; exit 2\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(plugin_library, "nvcc", lambda: str(compiler))
    with pytest.raises(BuildError, match=r"could not compile the plugin: plugin.cpp\(7\): error: no such type"):
        plugins.build_library(header_folder(tmp_path, 11), architecture="sm_90")
    assert not list(environment.cache_dir().glob("gated_rms_norm_plugin*"))


@needs_rtx
@pytest.mark.skipif(sys.platform == "win32", reason="needs an executable file")
def test_a_library_is_compiled_once(tmp_path, monkeypatch):
    compiler, log = tmp_path / "nvcc", tmp_path / "log"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> \'{log}\'\nwhile [ "$1" != -o ]; do shift; done\necho library > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(plugin_library, "nvcc", lambda: str(compiler))
    include = header_folder(tmp_path, 11)
    path = plugins.build_library(include, architecture="sm_90")
    assert path == plugins.build_library(include, architecture="sm_90") and path.read_text() == "library\n"
    (line,) = log.read_text().splitlines()
    assert "plugin_v3.cpp" in line and "plugin_v2.cpp" not in line and "-arch=sm_90" in line


def shared_library(tmp_path, source, name):
    path = tmp_path / name
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-I", str(header_folder(tmp_path, 8)), "-o", str(path), str(source)],
        check=True,
        timeout=60,
    )
    return path


@needs_compiler
def test_a_library_says_which_tensorrt_it_was_built_for(tmp_path):
    library = shared_library(tmp_path, FOLDER / "version.cpp", "version8.so")
    assert plugins.built_for(library) == 8
    if environment.generation() == "rtx":
        with pytest.raises(
            BadInput,
            match=r"version8.so: made for TensorRT 8, and this machine has 1.7.1.*; a plugin of one does not fit the other",
        ):
            plugins.load_library(library)


@needs_compiler
def test_a_library_of_somebody_else_is_refused(tmp_path):
    source = tmp_path / "other.cpp"
    source.write_text("int nothing() { return 0; }\n")
    with pytest.raises(BadInput, match="does not say which TensorRT it was built for"):
        plugins.built_for(shared_library(tmp_path, source, "other.so"))


def test_a_missing_or_damaged_library_is_refused(tmp_path):
    with pytest.raises(BadInput, match="nothing.so: no such plugin library .* build it with"):
        plugins.load_library(tmp_path / "nothing.so")
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(BadInput, match="text.so cannot be loaded"):
        plugins.built_for(tmp_path / "text.so")


@needs_rtx
def test_rtx_takes_no_library(tmp_path, monkeypatch):
    (tmp_path / "p.so").write_text("library")
    monkeypatch.setattr(plugin_library, "built_for", lambda path: 11)
    with pytest.raises(NotAvailable, match="TensorRT-RTX takes no plugins"):
        plugins.load_library(tmp_path / "p.so")


def test_a_library_is_loaded_once_and_a_refusal_is_told(tensorrt_11, tmp_path, monkeypatch):
    monkeypatch.setattr(plugin_library, "built_for", lambda path: 11)
    path = tmp_path / "p.so"
    path.write_text("library")
    assert plugins.load_library(path) is plugins.load_library(path) and tensorrt_11.registry.loaded == [
        str(path.resolve())
    ]
    tensorrt_11.registry.takes = False
    (tmp_path / "q.so").write_text("library")
    with pytest.raises(LabError, match="did not take q.so; are its operators registered already"):
        plugins.load_library(tmp_path / "q.so")


def plugin_can_be_run() -> bool:
    """Whether this machine can compile the library for its TensorRT and run an engine with it."""
    try:
        plugins.nvcc()
        return (
            environment.has("engine execution")
            and environment.generation() != "rtx"
            and plugins.headers()[1] == int(environment.machine().tensorrt.split(".")[0])
        )
    except LabError:
        return False


needs_plugin = pytest.mark.skipif(
    not plugin_can_be_run(), reason="needs a TensorRT that takes plugins, its headers, nvcc and a GPU"
)


@needs_plugin
def test_an_engine_with_the_plugin_is_right_at_odd_sizes_keeps_its_attribute_and_needs_the_library():
    from labsupport import build, runtimes

    plugins.load_library(plugins.build_library())
    sides, sources = build.Profile((1, 1), (8, 256), (64, 4104)), ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    engine = build.engine(
        plugins.operator_graph("columns", epsilon=0.5),
        profiles={"x": sides, "gate": sides, "weight": build.Profile((1,), (256,), (4104,))},
        tactic_sources=sources if environment.generation() == "8.6" else None,
        progress=False,
    )
    for rows, columns in ((1, 1), (3, 7), (2, 33), (64, 1000), (5, 4099)):
        x, gate, weight = plugins.example(rows, columns, device="cuda")
        with runtimes.TensorRt(build.load(engine.path)) as run:
            y = run({"x": x, "gate": gate, "weight": weight})["y"].cpu().numpy()
        assert np.abs(y - plugins.reference(x, gate, weight, 0.5)).max() < 1e-4
        assert np.abs(y - plugins.reference(x, gate, weight)).max() > 1e-2  # with the usual epsilon
    code = f"from labsupport import build, runtimes; runtimes.TensorRt(build.load({str(engine.path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=FOLDER.parents[1]
    )
    assert done.returncode and "EngineError" in done.stderr


@needs_plugin
def test_layers_and_rewrite_are_right_at_an_odd_width():
    from test_plugins import decomposed  # the two files stand side by side

    from labsupport import build, export, runtimes

    block = plugins.GatedBlock(hidden=8, inner=33)
    graph, tokens = export.to_onnx(block, block.example_input()), block.example_input(5)

    def norm(trt, network, inputs, attributes):
        x, gate, weight = inputs
        kept.append(np.full((1, 1), attributes["epsilon"], np.float32))

        def joined(a, kind, b):
            return network.add_elementwise(a, b, getattr(trt.ElementWiseOperation, kind)).get_output(0)

        v = joined(
            x, "PROD", joined(gate, "PROD", network.add_activation(gate, trt.ActivationType.SIGMOID).get_output(0))
        )
        mean = network.add_reduce(joined(v, "PROD", v), trt.ReduceOperation.AVG, 2, True).get_output(0)
        epsilon = network.add_constant((1, 1), trt.Weights(kept[-1])).get_output(0)
        return joined(
            weight,
            "PROD",
            joined(v, "DIV", network.add_unary(joined(mean, "SUM", epsilon), trt.UnaryOperation.SQRT).get_output(0)),
        )

    kept = []
    for way in (plugins.with_layers(graph, "GatedRmsNorm", norm), plugins.rewritten(graph, "GatedRmsNorm", decomposed)):
        engine = build.engine(
            way, name="odd_width", batch=(1, 4, 8), optimization_level=0, progress=False, rebuild=True
        )
        with runtimes.TensorRt(engine) as run:
            assert np.abs(run(tokens.numpy())["mixed"] - block(tokens).detach().numpy()).max() < 1e-4


# --- the plugin in Python -------------------------------------------------------------------------------------------


def described(types_, formats):
    return [types.SimpleNamespace(desc=types.SimpleNamespace(type=t, format=f)) for t, f in zip(types_, formats)]


def test_the_class_answers_as_the_kernel_can(tensorrt_11):
    plugin = plugins.plugin_class(tensorrt_11)(1e-6)
    assert (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace, plugin.num_outputs) == (
        "GatedRmsNorm",
        "1",
        "",
        1,
    )
    assert plugin.get_capability_interface("any") is plugin
    assert plugin.get_output_data_types(["HALF", "HALF", "HALF"]) == ["HALF"]
    assert plugin.get_output_shapes([["n", 64], ["n", 64], [64]], [], None) == [["n", 64]]
    for kind in ("FLOAT", "HALF"):
        assert all(plugin.supports_format_combination(at, described([kind] * 4, ["LINEAR"] * 4), 3) for at in range(4))
    assert not plugin.supports_format_combination(0, described(["INT8"] * 4, ["LINEAR"] * 4), 3)
    assert not plugin.supports_format_combination(2, described(["HALF", "HALF", "FLOAT", "HALF"], ["LINEAR"] * 4), 3)
    assert not plugin.supports_format_combination(1, described(["HALF"] * 4, ["LINEAR", "CHW4", "LINEAR", "LINEAR"]), 3)
    assert plugin.supports_format_combination(
        0, described(["HALF", "INT8", "INT8", "INT8"], ["LINEAR", "CHW4", "CHW4", "CHW4"]), 3
    )


def test_what_the_engine_keeps_comes_back(tensorrt_11):
    plugin = plugins.plugin_class(tensorrt_11)(0.25, "BUILD")
    plugin.set_tactic(2)
    fields = plugin.get_fields_to_serialize()
    back = plugins.creator_class(tensorrt_11)().create_plugin("norm", fields, "RUNTIME")
    assert back.epsilon == 0.25 and back.phase == "RUNTIME" and back.tactic is None
    copy = plugin.attach_to_context(None)
    assert copy is not plugin and (copy.epsilon, copy.tactic, copy.phase) == (0.25, python_plugin.Tactic.TORCH, "BUILD")
    assert set(plugin.get_valid_tactics()) <= {1, 2} and min(python_plugin.Tactic) == 1  # 0 is TensorRT's own


def test_the_creator_reads_epsilon_and_refuses_what_it_does_not_know(tensorrt_11):
    def field(name, value):
        return types.SimpleNamespace(name=name, data=np.array([value], np.float32))

    assert python_plugin.epsilon_of([]) == plugins.EPSILON and python_plugin.epsilon_of([field("epsilon", 2.0)]) == 2.0
    with pytest.raises(BadInput, match=r"takes the attribute 'epsilon' and got \['eps'\]"):
        python_plugin.epsilon_of([field("eps", 1.0)])
    with pytest.raises(BadInput, match="epsilon=0.0; .* must be above 0"):
        python_plugin.epsilon_of([field("epsilon", 0.0)])
    assert [each.name for each in plugins.creator_class(tensorrt_11)().field_names] == ["epsilon"]


def test_the_plugin_computes_by_either_tactic(monkeypatch):
    x, gate, weight = plugins.example(2, 8)
    y = torch.empty(2, 8)
    python_plugin.compute(x, gate, weight, y, plugins.EPSILON, python_plugin.Tactic.TORCH)
    assert np.abs(y.numpy() - plugins.reference(x, gate, weight)).max() < 1e-5
    kernels, seen = types.ModuleType("labsupport.plugins.triton_kernels"), []
    kernels.gated_rms_norm = lambda *tensors, out: seen.append((len(tensors), out))
    monkeypatch.setitem(sys.modules, "labsupport.plugins.triton_kernels", kernels)
    monkeypatch.setattr(plugins, "triton_kernels", kernels, raising=False)
    python_plugin.compute(x, gate, weight, y, plugins.EPSILON, python_plugin.Tactic.TRITON)
    assert len(seen) == 1 and seen[0][0] == 4 and seen[0][1] is y


def test_registering_twice_is_once_and_a_name_that_is_taken_is_told(tensorrt_11):
    assert plugins.register() is plugins.register() and len(tensorrt_11.registry.creators) == 1
    python_plugin._registered.clear()
    tensorrt_11.registry.takes = False
    with pytest.raises(LabError, match="is registered already, perhaps by the C\\+\\+ library"):
        plugins.register()


def test_a_creator_that_was_taken_out_makes_room_for_another(tensorrt_11):
    assert plugins.unregister() is False
    creator = plugins.register()
    assert plugins.unregister() is True and tensorrt_11.registry.removed == [creator]
    assert plugins.register() is not creator
    tensorrt_11.registry.takes = False
    with pytest.raises(LabError, match="did not let go of the plugin GatedRmsNorm; restart"):
        plugins.unregister()


@needs_rtx
def test_rtx_takes_no_python_plugin_and_its_classes_fit_ours():
    with pytest.raises(NotAvailable, match="TensorRT-RTX takes no plugins"):
        plugins.register()
    trt = environment.tensorrt()
    plugin = plugins.plugin_class(trt)(1e-6)
    tensors = [trt.DynamicPluginTensorDesc() for _ in range(4)]
    for tensor in tensors:
        tensor.desc.type, tensor.desc.format = trt.float16, trt.TensorFormat.LINEAR
    assert all(plugin.supports_format_combination(at, tensors, 3) for at in range(4))
    tensors[0].desc.type = trt.int8
    assert not plugin.supports_format_combination(0, tensors, 3)
    made = plugins.creator_class(trt)().create_plugin(
        "norm", plugin.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME
    )
    assert made.epsilon == pytest.approx(1e-6) and isinstance(made, trt.IPluginV3)


def test_before_tensorrt_10_there_are_no_plugins_in_python(monkeypatch):
    def require(*needs):
        raise NotAvailable(f"this needs {needs}")

    stand_in(monkeypatch, environment, "require", require)
    for make in (plugins.plugin_class, plugins.creator_class):
        with pytest.raises(NotAvailable, match=">=10"):
            make(types.SimpleNamespace())
