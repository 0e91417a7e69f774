"""Lab 02's exercises: the untouched notebook, each foreseen mistake, the solution and a differently written twin."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from api_surface import GENERATION, exists
from faces import stand_in

from labsupport import build, environment, errors, export, models
from labsupport.build import engines
from labsupport.errors import BadInput, BuildError, LabError
from labsupport.exercises import lab02
from labsupport.exercises.base import Verdict, assert_checker, run_solution

needs_builder = pytest.mark.skipif(
    not (environment.generation() == "rtx" or environment.has("engine execution")),
    reason="needs a TensorRT that can build here: pip install tensorrt-rtx",
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    model = models.article_cnn()
    path = tmp_path_factory.mktemp("onnx") / "cnn.onnx"
    return export.to_onnx(model, model.example_input(), target=environment.generation(), path=path)


# The five downloads


def test_usable_file():
    wrong = [
        ("a", "web page.*num_layers"),
        ("b.onnx", "without a single node"),
        ("C.onnx", "SpectralPool"),
        (Path("somewhere/e.onnx"), "cut off"),
        ("f", "no 'f' among the five"),
        (["a", "d"], "is a list"),
        (4, "int"),
        (True, "bool"),
        (["a"], "web page"),
    ]
    assert_checker(lab02.usable_file, wrong=wrong, right=["d.onnx", "d", Path("d.onnx"), ["d.onnx"], "D.onnx"])


def test_the_downloads_are_what_the_messages_say():
    folder = lab02.downloads()
    assert sorted(path.name for path in folder.iterdir()) == [f"{letter}.onnx" for letter in "abcde"]
    for name, said in (("a", "HTML page"), ("b", "no operator nodes"), ("e", "cut off")):
        with pytest.raises(BadInput, match=said):
            export.load(folder / f"{name}.onnx")
    assert export.load(folder / "c.onnx").ops["SpectralPool"] == 1, "ONNX's checker must accept the unknown operator"
    assert export.load(folder / "d.onnx").nodes == 2


@needs_builder
def test_only_one_download_parses():
    folder = lab02.downloads()
    with pytest.raises(BuildError, match="SpectralPool"):
        build.parse(export.load(folder / "c.onnx"))
    _, network, _ = build.parse(export.load(folder / "d.onnx"))
    assert network.num_layers >= 2


@needs_builder
def test_the_solution_finds_the_usable_file(capsys):
    names = {"folder": lab02.downloads(), "build": build, "export": export, "errors": errors}
    assert run_solution(lab02.usable_file, names).right
    assert capsys.readouterr().out.count(".onnx - ") == 4


# Probabilities by the layer API


def finished(network, tensor, *, unmark=True, mark=True):
    if unmark:
        network.unmark_output(network.get_output(0))
    if mark:
        network.mark_output(tensor)


def with_axes(axes, **marks):
    def add(trt, network):
        softmax = network.add_softmax(network.get_output(0))
        if axes is not None:
            softmax.axes = axes
        finished(network, softmax.get_output(0), **marks)

    return add


def right_softmax(trt, network):
    logits = network.get_output(0)
    softmax = network.add_softmax(logits)
    softmax.axes = 1 << 1
    network.mark_output(softmax.get_output(0))
    network.unmark_output(logits)


def right_by_exponentials(trt, network):
    logits = network.get_output(0)
    powers = network.add_unary(logits, trt.UnaryOperation.EXP).get_output(0)
    sums = network.add_reduce(powers, trt.ReduceOperation.SUM, 1 << 1, True).get_output(0)
    shares = network.add_elementwise(powers, sums, trt.ElementWiseOperation.DIV).get_output(0)
    shares.name = "probabilities"
    finished(network, shares)


def right_after_subtracting_the_largest(trt, network):
    logits = network.get_output(0)
    largest = network.add_reduce(logits, trt.ReduceOperation.MAX, 2, True).get_output(0)
    softmax = network.add_softmax(network.add_elementwise(logits, largest, trt.ElementWiseOperation.SUB).get_output(0))
    softmax.axes = 2
    finished(network, softmax.get_output(0))


def sigmoid(trt, network):
    finished(network, network.add_activation(network.get_output(0), trt.ActivationType.SIGMOID).get_output(0))


def hot_softmax(trt, network):
    two = network.add_constant((1, 1), np.full((1, 1), 2, np.float32)).get_output(0)
    scaled = network.add_elementwise(network.get_output(0), two, trt.ElementWiseOperation.PROD).get_output(0)
    softmax = network.add_softmax(scaled)
    softmax.axes = 2
    finished(network, softmax.get_output(0))


def summed(trt, network):
    finished(network, network.add_reduce(network.get_output(0), trt.ReduceOperation.SUM, 2, False).get_output(0))


def of_the_images(trt, network):
    flat = network.add_shuffle(network.get_input(0))
    flat.reshape_dims = (0, -1)
    softmax = network.add_softmax(flat.get_output(0))
    softmax.axes = 2
    finished(network, softmax.get_output(0))


def best_class(trt, network):
    finished(network, network.add_topk(network.get_output(0), trt.TopKOperation.MAX, 1, 2).get_output(0))


def sine(trt, network):
    finished(network, network.add_unary(network.get_output(0), trt.UnaryOperation.SIN).get_output(0))


def added_and_kept_the_logits(trt, network):
    network.add_softmax(network.get_output(0)).axes = 2


def renamed(trt, network):
    network.get_output(0).name = "probabilities"


def of_renamed_logits(trt, network):
    network.get_output(0).name = "scores"
    right_softmax(trt, network)


def with_an_identity_behind(trt, network):
    right_softmax(trt, network)
    last = network.get_output(0)
    network.unmark_output(last)
    network.mark_output(network.add_identity(last).get_output(0))


def misspelled(trt, network):
    network.add_soft_max(network.get_output(0))


def untouched(trt, network):
    logits = network.get_output(0)  # noqa: F841
    ...


@needs_builder
def test_probabilities():
    wrong = [
        (with_axes(None), "over axis 0, the batch.*bit mask"),
        (with_axes(1), "bit mask"),
        (with_axes(3), "over axis 0|sum to"),  # a release may refuse two bits and keep its default
        (with_axes(2, unmark=False), "2 outputs, logits.*unmark_output"),
        (with_axes(2, mark=False), "no output now"),
        (added_and_kept_the_logits, "still 'logits'"),
        (renamed, "nothing was added"),
        (sigmoid, "sum to [0-9.]+; probabilities"),
        (hot_softmax, "not the softmax of the logits"),
        (summed, r"makes \(4,\)"),
        (of_the_images, "not of the logits"),
        (best_class, "cannot follow a layer TOPK"),
        (sine, "cannot follow a layer UNARY SIN"),
        (misspelled, "misspelled.*add_soft_max"),
        ("softmax", "a str"),
    ]
    twins = [right_softmax, right_by_exponentials, right_after_subtracting_the_largest, of_renamed_logits]
    twins.append(with_an_identity_behind)
    assert_checker(lab02.probabilities, untouched, wrong=wrong, right=twins, namespace={})


def test_probabilities_without_a_tensorrt(monkeypatch):
    stand_in(monkeypatch, environment, "machine", lambda: environment.Machine())
    verdict = lab02.probabilities.check(right_softmax)
    assert verdict.outcome == "wrong" and "no TensorRT is installed" in verdict.message


# A profile for the traffic


def built(**options):
    sidecar = {"options": {"profiles": [], "batch": None, **options}}
    return engines.Engine(path=Path("exercise.plan"), sidecar=sidecar)


def shapes(*batches):
    return [{"images": [[batch, 1, 28, 28] for batch in profile]} for profile in batches]


def test_traffic_profile():
    profile = build.Profile((2, 1, 28, 28), (8, 1, 28, 28), (20, 1, 28, 28))
    wrong = [
        (profile, "not yet an engine"),
        ({"images": profile}, "not yet an engine"),
        ("engine.plan", "a str"),
        (built(), "2, 8, 12, 20 images would be refused: the engine takes 1 to 1"),
        (built(batch=(8, 8, 20)), "requests of 2 images would be refused"),
        (built(batch=(1, 8, 12)), "requests of 20 images"),
        (built(batch=8), "2, 12, 20"),
        (built(profiles=shapes((1, 8, 64))), "64 images and nobody sends more than 20"),
        (built(profiles=shapes((2, 20, 20))), "tuned for 20 images.*5200 of 5555 requests bring 8"),
        (built(batch=(2, 2, 20)), "tuned for 2"),
        (built(profiles=shapes((2, 8, 8), (12, 12, 12))), "requests of 20"),
    ]
    right = [
        built(profiles=shapes((2, 8, 20))),
        built(batch=(2, 8, 20)),
        built(batch=(1, 8, 20)),
        built(profiles=shapes((2, 8, 8), (9, 12, 20))),
    ]
    assert_checker(lab02.traffic_profile, wrong=wrong, right=right)


@needs_builder
def test_traffic_profile_of_built_engines(graph):
    assert run_solution(lab02.traffic_profile, {"graph": graph, "build": build}).right
    assert lab02.traffic_profile.check(build.engine(graph, batch=(2, 8, 20))).right
    verdict = lab02.traffic_profile.check(build.engine(graph, batch=(1, 8, 32)))
    assert verdict.outcome == "wrong" and "32 images" in verdict.message


# The silent engine


def silent_by_membership(engine):
    return engine.precision not in engine.precisions


def silent_by_loop(engine):
    return not any(kind == engine.precision and count > 0 for kind, count in engine.precisions.items())


def asked_for_less(engine):
    return engine.precision != "fp32"


def forgot_return(engine):
    engine.precisions[engine.precision] == 0  # noqa: B015


def starter(engine): ...


def test_silent_engine():
    wrong = [
        (asked_for_less, "says (True|False) of an engine"),
        (lambda engine: "fp32" in engine.precisions, "says (True|False)"),
        (lambda engine: engine.precisions.most_common(1)[0][0] != engine.precision, "says True"),
        (lambda engine: engine.precision != "fp32" and set(engine.precisions) == {"fp32"}, "says False"),
        (lambda e: len(e.precisions) == 1 and e.precision not in e.precisions, "says False"),
        (lambda engine: list(engine.precisions)[-1] != engine.precision, "says True"),
        (lambda engine: False, "which is silent"),
        (lambda engine: "no" if engine.precisions[engine.precision] else "yes", "wanted is True or False"),
        (lambda engine: "False", "wanted is True or False"),
        (forgot_return, "forget its `return`"),
        (lambda engine: engine.precision_built, "precision_built"),
        (True, "function itself"),
        ("fp16", "function itself"),
        (engines.Engine(path=Path("x"), sidecar={"name": "x"}), "function itself"),
    ]
    right = [silent_by_membership, silent_by_loop, lambda engine: engine.precisions[engine.precision] == 0]
    assert_checker(lab02.silent_engine, starter, wrong=wrong, right=right, namespace={})


# What the lab takes from the module


@pytest.mark.parametrize("name", lab02.NAMES)
def test_the_table_of_names_is_what_the_listings_say(name):
    there = {GENERATION[release] for release in GENERATION if exists(release, tuple(name.split(".")))}
    assert there == set(lab02.NAMES[name])


@needs_builder
def test_damaged_copies_are_refused_and_the_engine_stays(graph):
    engine = build.engine(graph, batch=2, name="kept")
    before = engine.path.read_bytes()
    said = {damage: lab02.load_damaged(engine, damage) for damage in lab02.DAMAGES}
    assert said == {
        "nothing": "loaded as 'kept'",
        "cut off": "EngineError: copy.plan is damaged",
        "overwritten": "EngineError: copy.plan is damaged",
        "no sidecar": "UntrustedEngine: copy.plan has no sidecar",
        "sidecar edited": "UntrustedEngine: copy.plan was not built by this user on this machine",
        "from version 7.2": "EngineError: copy.plan was built by tensorrt 7.2",
    }
    assert engine.path.read_bytes() == before and engines.load(engine.path).name == "kept"


def test_an_unknown_damage_is_refused():
    with pytest.raises(BadInput, match="damage='melted' is not known; choose one of"):
        lab02.load_damaged(SimpleNamespace(), "melted")


# The notebook as it is handed out


def notebook_cells() -> list[str]:
    path = environment.REPOSITORY / "notebooks" / "02_build_and_run.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_each_exercise_is_asked_in_the_notebook():
    code = "\n".join(notebook_cells())
    for name in ("usable_file", "probabilities", "traffic_profile", "silent_engine"):
        assert f"lab02.{name}.check(" in code, f"{name} is not asked"


@pytest.mark.parametrize("name, starter_name", [("probabilities", "add_probabilities"), ("silent_engine", "silent")])
def test_the_starters_count_as_untouched(tmp_path, name, starter_name):
    [cell] = [cell for cell in notebook_cells() if f"lab02.{name}.check(" in cell]
    scope: dict = {"lab02": SimpleNamespace(**{name: SimpleNamespace(check=lambda answer: None)})}
    file = tmp_path / "cell.py"  # as in Jupyter, the source can be looked up
    file.write_text(cell, encoding="utf-8")
    exec(compile(cell, str(file), "exec"), scope)
    verdict = getattr(lab02, name).check(scope[starter_name])
    assert isinstance(verdict, Verdict) and verdict.outcome == "not attempted"


def test_hints_and_solutions_are_there():
    for exercise in (lab02.usable_file, lab02.probabilities, lab02.traffic_profile, lab02.silent_engine):
        assert exercise.hint(1).startswith("Hint 1 of 2") and exercise.hint(2).startswith("Hint 2 of 2")
        assert "check(" in exercise.solution() and exercise.lab == "02_build_and_run"
        assert inspect.signature(exercise.judge).parameters
    assert issubclass(BuildError, LabError)
