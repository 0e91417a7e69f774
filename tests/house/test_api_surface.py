"""Every TensorRT name used exists in each supported release, or stands behind a generation check."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import api_surface
import pytest
from api_surface import scan_notebook, scan_source

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "labsupport").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_package_uses_what_every_release_has(path):
    faults = scan_source(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()).faults
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_uses_what_every_release_has(path):
    faults = scan_notebook(path).faults
    assert not faults, "\n".join(faults)


def test_the_scanner_sees_what_the_package_uses():
    assert sum(scan_source(path.read_text(encoding="utf-8"), path.name).names for path in SOURCES) >= 50


PASSES = {
    "in every release": "trt.BuilderFlag.TF32; trt.Logger.WARNING; trt.Logger.Severity.WARNING; trt.float16; trt.__version__",
    "generation ==": "if generation == '8.6':\n    trt.BuilderFlag.FP16",
    "generation in": "if environment.generation() in ('8.6', '10'):\n    trt.BuilderFlag.FP16",
    "constant tuple": "WEAK = ('8.6', '10')\nif generation in WEAK:\n    trt.BuilderFlag.FP16",
    "else gets the complement": "if generation == '8.6':\n    pass\nelse:\n    trt.IProgressMonitor",
    "elif": "if generation == '8.6':\n    pass\nelif generation == '10':\n    trt.BuilderFlag.FP16",
    "has": "if environment.has('8.6'):\n    trt.BuilderFlag.FP16",
    "has with a GPU": "if environment.has('gpu', '>=10'):\n    trt.IProgressMonitor",
    "why_not": "if not environment.why_not('8.6'):\n    trt.BuilderFlag.FP16",
    "require": "environment.require('8.6')\ntrt.BuilderFlag.FP16",
    "assert": "assert generation != '8.6'\ntrt.IProgressMonitor",
    "not has": "if not environment.has('8.6'):\n    trt.IProgressMonitor",
    "and": "if generation == '8.6' and trt.BuilderFlag.FP16:\n    pass",
    "or": "if generation == '8.6' or trt.IProgressMonitor:\n    pass",
    "conditional expression": "base = trt.IProgressMonitor if generation != '8.6' else object",
    "early return": "def f():\n    if generation == '8.6':\n        return 1\n    return trt.IProgressMonitor",
    "early continue": "for x in y:\n    if generation == '8.6':\n        continue\n    trt.IProgressMonitor",
    "early raise": "if environment.has('8.6'):\n    raise ValueError\ntrt.IProgressMonitor",
    "hasattr": "if hasattr(trt.BuilderFlag, 'FP16'):\n    trt.BuilderFlag.FP16",
    "hasattr of the module": "if hasattr(trt, 'IProgressMonitor'):\n    trt.IProgressMonitor",
    "hasattr of an object": "if hasattr(config, 'progress_monitor'):\n    config.progress_monitor = trt.Logger",
    "getattr with default": "getattr(trt.BuilderFlag, 'FP16', None)",
    "except AttributeError": "try:\n    trt.BuilderFlag.FP16\nexcept AttributeError:\n    pass",
    "remembered answer": "weak = environment.generation() == '8.6'\nif weak:\n    trt.BuilderFlag.FP16",
    "match": "match generation:\n    case '8.6' | '10':\n        trt.BuilderFlag.FP16\n    case _:\n"
    "        trt.IProgressMonitor",
    "private function called under a check": "def _f(trt):\n    return trt.BuilderFlag.FP16\nif generation == '8.6':\n    _f(trt)",
    "private method called under a check": "class A:\n    def _f(self):\n        return self.trt.BuilderFlag.FP16\n"
    "    def g(self):\n        if generation == '8.6':\n            self._f()",
    "a config of someone else": "trt.Logger\nconfig = dict()\nconfig.update(a=1)",
    "a module called network": "from labsupport import network\ntrt.Logger\nnetwork.colour",
    "an annotated parameter of someone else": "trt.Logger\ndef f(config: Config):\n    config.colour",
    "no TensorRT in the file": "def f(config):\n    config.colour",
    "annotations": "def f(x: trt.Nonsense) -> trt.Nonsense: ...",
    "comprehension": "[trt.BuilderFlag.FP16 for _ in x if generation == '8.6']",
}
FAILS = {
    "unguarded": ("trt.BuilderFlag.FP16", "BuilderFlag.FP16 does not exist in 11.0.0.114, 11.4.0.106, rtx-1.7.1"),
    "never there": ("trt.TrtGraphConverter", "trt.TrtGraphConverter does not exist in 8.6.0, 10.16"),
    "wrong guard": (
        "if generation == '11':\n    trt.BuilderFlag.FP16",
        "FP16 does not exist in 11.0.0.114, 11.4.0.106;",
    ),
    "guard the wrong way": ("if generation != '8.6':\n    trt.BuilderFlag.FP16", "FP16 does not exist in 11.0"),
    "else of a guard": (
        "if generation == '8.6':\n    pass\nelse:\n    trt.BuilderFlag.FP16",
        "FP16 does not exist in 11",
    ),
    "after the guard": ("if generation == '8.6':\n    pass\ntrt.BuilderFlag.FP16", "FP16 does not exist in 11.0"),
    "a GPU is no generation": (
        "if environment.has('gpu'):\n    trt.IProgressMonitor",
        "IProgressMonitor does not exist in 8.6.0;",
    ),
    "no GPU says nothing": ("if not environment.has('gpu', '8.6'):\n    trt.IProgressMonitor", "not exist in 8.6.0;"),
    "hasattr of another": ("if hasattr(trt, 'Logger'):\n    trt.IProgressMonitor", "does not exist in 8.6.0;"),
    "getattr without default": ("getattr(trt.BuilderFlag, 'FP16')", "FP16 does not exist in 11"),
    "except something else": ("try:\n    trt.BuilderFlag.FP16\nexcept ValueError:\n    pass", "FP16"),
    "one minor only": (
        "config.build_route; trt.Logger",
        "IBuilderConfig.build_route does not exist in 8.6.0, 10.16.1.11, 11.0.0.114;",
    ),
    "module by another name": ("t = environment.tensorrt()\nt.BuilderFlag.FP16", "trt.BuilderFlag.FP16"),
    "module called directly": ("environment.tensorrt().BuilderFlag.FP16", "trt.BuilderFlag.FP16"),
    "imported": ("import tensorrt_rtx as rt\nrt.BuilderFlag.FP16", "trt.BuilderFlag.FP16"),
    "class by another name": ("flags = trt.BuilderFlag\nflags.FP16", "trt.BuilderFlag.FP16"),
    "dtype": ("trt.bfloat16", "trt.bfloat16 does not exist in 8.6.0;"),
    "severity": ("trt.Logger.Severity.DEBUG", "trt.Logger.Severity.DEBUG does not exist in 8.6.0, 10"),
    "builder": ("b = trt.Builder(trt.Logger())\nb.max_batch_size", "trt.Builder.max_batch_size does not exist in 10"),
    "engine": ("engine = trt.Runtime(log).deserialize_cuda_engine(x)\nengine.device_memory_size", "not exist in 11.0"),
    "context": (
        "trt.Logger\ncontext.execute_async_v2(1)",
        "trt.IExecutionContext.execute_async_v2 does not exist in 10",
    ),
    "stored attribute": (
        "trt.Logger\nconfig.max_workspace_size = 1",
        "IBuilderConfig.max_workspace_size does not exist in 10",
    ),
    "attribute of self": (
        "class A:\n    def f(self):\n        self.trt_engine.num_bindings\n        self.trt.Logger",
        "num_bindings",
    ),
    "in a class body's base": ("class M(trt.IProgressMonitor): ...", "IProgressMonitor does not exist in 8.6.0;"),
    "private function called without": ("def _f(trt):\n    return trt.BuilderFlag.FP16\n_f(trt)", "FP16"),
    "private function never called": ("def _f(trt):\n    return trt.BuilderFlag.FP16", "FP16"),
    "nested function": ("def f():\n    def g():\n        return trt.BuilderFlag.FP16\n    return g", "FP16"),
    "comprehension": ("[trt.BuilderFlag.FP16 for _ in x]", "FP16"),
    "keyword": ("f(flag=trt.BuilderFlag.FP16)", "FP16"),
    "in the test": ("if trt.BuilderFlag.FP16:\n    pass", "FP16"),
}


@pytest.mark.parametrize("snippet", PASSES.values(), ids=PASSES)
def test_guarded_uses_pass(snippet):
    assert list(scan_source(snippet, "x.py").faults) == []


@pytest.mark.parametrize("snippet, sentence", FAILS.values(), ids=FAILS)
def test_unguarded_uses_fail(snippet, sentence):
    faults = list(scan_source(snippet, "x.py").faults)
    assert len(faults) == 1 and sentence in faults[0] and faults[0].startswith("x.py:"), faults


def test_a_notebook_is_one_module(tmp_path):
    import json

    cells = [
        {"cell_type": "code", "source": text}
        for text in ["%matplotlib inline\nlog = environment.tensorrt()", "log.BuilderFlag.FP16", "broken ("]
    ]
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "hi"}, *cells]}))
    assert [fault[:28] for fault in scan_notebook(tmp_path / "x.ipynb").faults] == ["x.ipynb, cell 3, line 1: trt"]


def test_every_listing_is_read():
    listed = {path.stem for path in api_surface.LISTINGS.glob("*.json")}
    assert listed == set(api_surface.GENERATION)
    assert all(len(api) > 100 for api in api_surface.releases().values())


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_dtype_names_are_what_the_bindings_set():
    import tensorrt_rtx

    for name, member in api_surface.DTYPES.items():
        assert getattr(tensorrt_rtx, name) == getattr(tensorrt_rtx.DataType, member)
