"""ONNX's own backend tests as a corpus for the X-ray: at every level, what a kernel is said to hold is what it wrote.

Every fourth case is tried; with LABSUPPORT_CORPUS_EVERY=1 in the environment all are, which takes a minute or two.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from by_value import faults
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from plan_samples import LEVELS

from labsupport import export, fusion, runtimes
from labsupport.errors import BadInput

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
EVERY = int(os.environ.get("LABSUPPORT_CORPUS_EVERY", 4))
LOOSE = 0.1  # quantized numbers may differ by a step


def cases():
    """(name, model, its inputs as arrays or None) of every case, in one order on every machine."""
    found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    for case in sorted(found, key=lambda case: case.name)[::EVERY]:
        model = case.model or onnx.load(str(Path(case.model_dir) / "model.onnx"))
        yield case.name, model, inputs_of(case, model)


def inputs_of(case, model):
    if case.data_sets:
        values = case.data_sets[0][0]
    else:
        files = sorted(
            Path(case.model_dir).glob("test_data_set_0/input_*.pb"), key=lambda f: int(f.stem.split("_")[-1])
        )
        if not all(value.type.HasField("tensor_type") for value in model.graph.input):
            return None
        values = [onnx.TensorProto.FromString(file.read_bytes()) for file in files]
    arrays = [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]
    if any(not isinstance(array, (np.ndarray, np.generic)) for array in arrays):
        return None
    return {value.name: np.asarray(array) for value, array in zip(model.graph.input, arrays, strict=False)}


@pytest.mark.timeout(900)
def test_every_level_of_every_case(tmp_path):
    seen, wrong = Counter(), []
    for name, model, feed in cases():
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, str(path))
        try:
            graph = export.load(path)
            ladder = {level: runtimes.OnnxRuntime(graph, optimization=level) for level in LEVELS}
        except BadInput:  # this release of ONNX Runtime has no kernel for it, or the case is wrong on purpose
            seen["not for this runtime"] += 1
            continue
        for level, run in ladder.items():
            executed = run.executed
            seen["optimized"] += executed.ops != graph.ops
            plan = fusion.xray(run)
            books = plan.accounts()
            assert books.balanced, name
            seen["X-rays"] += 1
            seen["complete"] += books.complete
            try:
                found = faults(plan, path, executed.path, feed, LOOSE) if feed is not None else []
                seen["checked by value"] += feed is not None
            except Exception as error:  # BF16 and below are unknown to NumPy; some cases are there to fail as they run
                if not (isinstance(error, (RuntimeError, TypeError)) or "onnxruntime" in type(error).__module__):
                    raise
                seen["not comparable"] += 1
            else:
                wrong += [(name, level, *found)] if found else []
    assert not wrong, wrong[:5]
    assert seen["X-rays"] > 4 * 1200 // EVERY and seen["checked by value"] > 0.8 * seen["X-rays"], seen
    assert seen["complete"] >= 0.99 * seen["X-rays"] and seen["optimized"] > 400 // EVERY, seen


def test_the_oracle_itself_sees_a_wrong_answer(tmp_path):
    """A kernel that is said to hold its neighbor's node is found out."""
    from dataclasses import replace

    from plan_samples import onnx_file

    nodes = [("a", "Exp", ["x"], ["p"], {}), ("b", "Sin", ["p"], ["q"], {}), ("c", "Neg", ["q"], ["y"], {})]
    graph = onnx_file(tmp_path / "g.onnx", nodes, [("x", [5])], [("y", [5])])
    run = runtimes.OnnxRuntime(graph, optimization="off")
    plan, feed = fusion.xray(run), {"x": np.linspace(0, 1, 5, dtype=np.float32)}
    assert not faults(plan, graph.path, run.executed.path, feed)
    first, second, third = plan.kernels
    swapped = replace(plan, kernels=(replace(first, nodes=("b",)), replace(second, nodes=("a",)), third))
    assert len(faults(swapped, graph.path, run.executed.path, feed)) == 2
    emptied = replace(plan, kernels=(first, replace(second, nodes=("b", "c")), replace(third, nodes=())))
    assert faults(emptied, graph.path, run.executed.path, feed) and emptied.accounts().complete
    renamed = replace(plan, kernels=(replace(first, ends={"p": "q"}), second, third))
    assert faults(renamed, graph.path, run.executed.path, feed) == ["Exp a: p is not q"]


@pytest.mark.skipif(EVERY == 1, reason="all of them run above")
def test_the_sample_has_what_the_runtime_rewrites():
    names = [name for name, *_ in cases()]
    assert (
        len(names) > 1400 // EVERY
        and any("expanded" in name for name in names)
        and any("quant" in name for name in names)
    )
