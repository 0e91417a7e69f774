"""What an X-ray can be taken of, and errors that say what came."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from plan_samples import onnx_file, synthetic

from labsupport import fusion, recordings, runtimes
from labsupport.errors import BadInput, LabError, NotAvailable, RecordingError
from labsupport.fusion import onnx_nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: the inspector gave no text, or the copy was cut off"),
        ('{"Layers": [{"Name": "a', r"cut off or damaged JSON \(23 characters; "),
        ('{"a": 1}', r"no \"Layers\": its keys are \['a'\]; expected engine inspector JSON of TensorRT 8.6, 10 or 11"),
        ('{"Layers": []}', "lists no layers: the engine was built with ProfilingVerbosity.NONE"),
        ('[{"count": 2}]', "lists no layers: the engine was built with ProfilingVerbosity.NONE"),
        ('{"Layers": {"a": 1}}', r"\"Layers\" is a dict; expected a list of layers"),
        ('{"Layers": [7]}', "layer 0 is 7; expected a layer's name, or its record"),
        (
            '{"Layers": [{"name": "a", "op": "Conv"}]}',
            r"layer 0 is \['name', 'op'\]; expected a layer's name, or its record with \"Name\"",
        ),
        (
            '[{"count": 2}, {"name": "a", "timeMs": 3.0}]',
            "is a profile .names and times., not a plan; pass it as profile=",
        ),
        (
            '{"Layers": [{"Name": "a", "Inputs": "x"}]}',
            r"\"Inputs\" of layer 0 \('a'\) is a str; expected a list of tensors",
        ),
        ('{"Layers": [{"Name": "a", "Outputs": [3]}]}', "a tensor of layer 0 is 3; expected a record with"),
        (
            "Layer: conv1\nLayer: conv2",
            "is not JSON: it begins 'Layer: conv1.*ask the inspector for LayerInformationFormat.JSON",
        ),
    ],
)
def test_foreign_and_damaged_plans_are_named(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(LabError, match=message):
        fusion.xray(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ftrt\x00\x01", "it is a serialized engine: open it with build.load"),
        (b"\x08\x08\x12pytorch", "it is an ONNX file: pass it as graph="),
        (b"<!DOCTYPE html>", "it is an HTML or XML page"),
        (b"\xff\xfe\x00", "is not text; expected the inspector's JSON"),
    ],
)
def test_other_files_are_named(tmp_path, data, message):
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        fusion.xray(path)


def test_a_missing_file_and_an_odd_object_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere.json: no such file \(looked in "):
        fusion.xray(tmp_path / "nowhere.json")
    with pytest.raises(BadInput, match="source is a int; expected an Engine, a recorded plan, the inspector's JSON"):
        fusion.xray(3)
    with pytest.raises(BadInput, match="graph is a float; pass an export.OnnxGraph"):
        fusion.xray(["a"], graph=1.5)
    with pytest.raises(BadInput, match=r"not one that NodeGraph.as_dict\(\) wrote: it has"):
        fusion.xray({"Layers": ["a"], "Graph": {"nodes": [1]}})


def test_a_plan_of_another_network_is_refused(block, workpieces):
    with pytest.raises(
        BadInput,
        match=r"was not built from this graph: it names '/conv1/Conv', and the graph has nodes such as .*"
        r"\(0 of 11 names match\)",
    ):
        fusion.xray(synthetic("trt10"), graph=workpieces["mobilenet"])
    executed = runtimes.OnnxRuntime(workpieces["article"]).executed
    stranger = r"was not made from this graph: no tensor name .* \(the graph begins with '/const/Constant'\)"
    with pytest.raises(BadInput, match=stranger):
        fusion.xray(executed, graph=block)
    with pytest.raises(BadInput, match="to see what ONNX Runtime made of which nodes, pass the original too: graph="):
        fusion.xray(executed)


def test_an_engine_that_nobody_could_open_says_so():
    engine = SimpleNamespace(sidecar={}, layers=[], name="tiny")
    with pytest.raises(NotAvailable, match="tiny has no layer records: it was built where no GPU could open it"):
        fusion.xray(engine)


def test_engines_lists_texts_and_recordings_read_alike(block, tmp_path):
    plan = synthetic("trt10")
    sources = [plan, plan["Layers"], json.dumps(plan), SimpleNamespace(sidecar={}, layers=plan["Layers"], name="e")]
    (tmp_path / "p.json").write_text(json.dumps(plan))
    (tmp_path / "r.json").write_text(json.dumps({"machine": {"gpu": "x"}, "plan": plan}))
    nodes = {
        tuple(k.nodes for k in fusion.xray(source, graph=block).kernels)
        for source in [*sources, tmp_path / "p.json", tmp_path / "r.json"]
    }
    assert len(nodes) == 1


def test_control_characters_of_8_6_are_read():
    assert fusion.xray('{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}]}').kernels[
        0
    ].nodes == ("a", "b")


def test_a_dump_holds_all_that_the_xray_needs(block, tmp_path):
    text = fusion.dump(synthetic("trt11"), graph=block, profile={"/conv1/Conv + /relu1/Relu": 2.0})
    plan = fusion.xray(text)
    assert plan.accounts().balanced and plan.kernel_of("/conv1/Conv").time_ms == 2.0 and plan.schema == "11"
    with pytest.raises(RecordingError):
        recordings.save_plan("bad name", text, tmp_path)
    assert recordings.save_plan("block", text).plan["Graph"]["nodes"]


def test_an_unknown_node_is_answered_with_near_ones(real):
    with pytest.raises(
        BadInput, match=r"the graph has no node 'layer4.1/conv2'; close are \['/layer4/layer4.1/conv2/Conv'\]"
    ):
        real.kernel_of("layer4.1/conv2")


def test_nodes_without_names_are_called_as_tensorrt_calls_them(tmp_path):
    import onnx

    graph = onnx_file(
        tmp_path / "g.onnx", [("", "Exp", ["x"], ["y"], {}), ("", "Sin", ["y"], ["z"], {})], [("x", [4])], [("z", [4])]
    )
    assert [n.name for n in onnx_nodes.nodes_of(graph).nodes] == ["node_of_y", "node_of_z"]
    assert onnx_nodes.nodes_of(onnx.load(str(graph.path))).as_dict()["outputs"] == ["z"]
    assert fusion.xray(runtimes.OnnxRuntime(graph, optimization="off")).accounts().complete
