"""Texts that look like a plan and are none: deep, with numbers that are no numbers, lists of something else."""

from __future__ import annotations

import json

import pytest

from labsupport import fusion
from labsupport.errors import BadInput

TENSOR = {"Name": "t", "Dimensions": [2, 3], "Format/Datatype": "Row major linear FP32"}
LAYER = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [TENSOR], "Outputs": [TENSOR]}
DEVICE = {"Name": "NVIDIA TITAN RTX", "ComputeCapability": [7, 5], "TotalMemory": 25393561600, "WARP_SIZE": 32}


def layer(**changes):
    return {"Layers": [LAYER | changes]}


def test_a_sound_plan_is_read():
    weights = {"Type": "Float", "Count": 7}
    kernel = fusion.xray(layer(Weights=weights)).kernels[0]
    assert kernel.bytes == 2 * 24 + 28 and fusion.xray(LAYER).kernels[0].name == "conv"
    assert fusion.xray(layer(Inputs=[TENSOR | {"Dimensions": [-1, 3]}])).kernels[0].bytes is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"Layers": ' * 50_000 + "1", '{"a":' * 3_000 + "1" + "}" * 3_000])
def test_deep_texts_are_refused(text):
    with pytest.raises(BadInput, match='nested too deeply|cut off or damaged JSON|has no "Layers"'):
        fusion.xray(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("where", ["Weights", "Inputs", "Other"])
def test_numbers_that_are_none_are_refused(number, where):
    text = {
        "Weights": '{"Layers": [{"Name": "c", "LayerType": "x", "Weights": {"Type": "Half", "Count": %s}}]}',
        "Inputs": '{"Layers": [{"Name": "c", "Inputs": [{"Name": "t", "Dimensions": [%s]}]}]}',
        "Other": '{"Layers": [{"Name": "c", "LayerType": "x", "Groups": %s}]}',
    }[where]
    with pytest.raises(BadInput, match=f"holds the number {number}, and an inspector writes finite numbers only"):
        fusion.xray(text % number)


@pytest.mark.parametrize(
    "dimensions", [[float("nan")], [2.5], ["a"], [True], [-2], [10**400], [2**30, 2**30], [None], [[2]]]
)
def test_absurd_dimensions_are_refused(dimensions):
    with pytest.raises(BadInput, match="tensor 't' of layer 0 has the dimensions .* expected whole numbers, -1 for"):
        fusion.xray(layer(Inputs=[TENSOR | {"Dimensions": dimensions}]))


@pytest.mark.parametrize("count", [float("nan"), -1, 10**400, "7", 2.0, True, None])
def test_absurd_weights_are_refused(count):
    with pytest.raises(BadInput, match="layer 'conv' has .* weights; expected a whole number, 0 or more"):
        fusion.xray(layer(Weights={"Type": "Float", "Count": count}))


def test_a_list_of_something_else_is_no_plan(tmp_path):
    (tmp_path / "device.json").write_text(json.dumps([DEVICE]))
    with pytest.raises(
        BadInput, match="record 0, 'NVIDIA TITAN RTX', has .*'ComputeCapability'.* and nothing of a layer"
    ):
        fusion.xray(tmp_path / "device.json")
    with pytest.raises(BadInput, match='has no "Layers"'):
        fusion.xray(DEVICE)
    with pytest.raises(BadInput, match="record 1, 't', has"):
        fusion.xray({"Layers": [LAYER, TENSOR]})


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": [[1, "Conv", [], [], ""]]},
        {"nodes": [["n", "Conv", "x", [], ""]]},
        {"nodes": [["n", "Conv", [], [3], ""]]},
        {"nodes": 7},
        {"inputs": "x"},
        {"constants": [None]},
        {"types": {"t": ["fp32", [2.5]]}},
        {"types": {"t": 3}},
        {"types": []},
    ],
)
def test_node_lists_of_another_make_are_refused(changes):
    sound = {"nodes": [["conv", "Conv", ["x"], ["y"], ""]], "inputs": ["x"], "outputs": ["y"], "constants": []}
    assert fusion.xray(layer() | {"Graph": sound}).accounts().complete
    with pytest.raises(BadInput, match=r"not one that NodeGraph.as_dict\(\) wrote"):
        fusion.xray(layer() | {"Graph": sound | changes})
