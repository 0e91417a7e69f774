"""The programs that the checkers of lab B hand to a learner's function: names to find, and loops to stop."""

from __future__ import annotations

# source → what it takes from tensorrt; of these the ones not in KNOWN are missing
KNOWN = frozenset(
    {
        "Builder",
        "Logger",
        "Runtime",
        "OnnxParser",
        "BuilderFlag",
        "DataType",
        "float32",
        "ElementWiseOperation",
        "init_libnvinfer_plugins",
    }
)
SOURCES = (
    ("an import under another name", "import tensorrt as {a}\nb = {a}.Builder({a}.Logger())\nc = {a}.{x}(b)", ("x",)),
    ("the plain import", "import tensorrt\nlog = tensorrt.Logger()\ntensorrt.{x}\ntensorrt.{y}()", ("x", "y")),
    ("names imported one by one", "from tensorrt import Builder, {x}, Runtime as R\nR(None)", ("x",)),
    ("a name imported under another name", "from tensorrt import {x} as Fine\nFine()", ("x",)),
    ("a base class", "import tensorrt as trt\nclass Mine(trt.{x}):\n    def f(self): return trt.DataType", ("x",)),
    ("nothing missing", "import tensorrt as trt\nbuilder = trt.Builder(trt.Logger())\ntrt.float32", ()),
    ("names of other modules", "import numpy as np\nimport tensorrt as trt\nnp.{x}\ntrt.Builder\nother.{y}", ()),
    ("an attribute of an attribute", "import tensorrt as trt\nflag = trt.BuilderFlag.{x}\ntrt.{y}.{x}", ("y",)),
    ("names in text and comments", 'import tensorrt as trt\nprint("trt.{x}")  # trt.{y}\ntrt.Runtime', ()),
    ("an import inside a function", "def f():\n    import tensorrt as {a}\n    {a}.{x}({a}.{y})", ("x", "y")),
    (
        "modules with a similar name",
        "import tensorrt_llm as llm, tensorrt as {a}\nfrom tensorrt_rtx import {x}\nllm.{x}\n{a}.{y}",
        ("y",),
    ),
    ("an import inside a line", "import os, tensorrt as {a}, sys\n{a}.{x}", ("x",)),
)  # fmt: skip

# a sandbox may refuse the mark; the loop goes on
LOOP = """import time
while True:
    try:
        with open({mark!r}, 'a') as file:
            file.write('x')
    except OSError:
        pass
    time.sleep(0.05)
"""
# an interrupt does not end it; left alone, it ends itself after a minute
STUBBORN = """import time
begun = time.monotonic()
while time.monotonic() < begun + 60:
    try:
        with open({mark!r}, 'a') as file:
            file.write('x')
        time.sleep(0.05)
    except BaseException:
        pass
"""
