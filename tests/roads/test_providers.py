"""Execution providers: a name misspelled, one that is not built in, one that does not load, one that computes nothing."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from labsupport import roads
from labsupport.errors import BadInput, NotAvailable
from labsupport.roads import providers

CPU, AZURE = "CPUExecutionProvider", "AzureExecutionProvider"


@pytest.fixture(scope="module")
def graph():
    return roads.mxnet_graph()


@pytest.fixture
def feed():
    return {"data": roads.mxnet_reference()[0]}


def test_the_cpu_provider_computes(graph, feed):
    session = providers.session(graph, CPU)
    assert session.get_providers() == [CPU] and session.run(None, feed)[0].shape == (32, 10)


@pytest.mark.parametrize(("name", "near"), [("TensorRTExecutionProvider", "TensorrtExecutionProvider"), ("CudaExecutionProvider", "CUDAExecutionProvider"),
                                            ("cpu", "CPUExecutionProvider")])  # fmt: skip
def test_a_misspelled_name_is_refused_with_the_nearest(graph, name, near):
    with pytest.raises(BadInput, match="is no execution provider") as refused:
        providers.session(graph, name)
    assert near in str(refused.value)


@pytest.mark.parametrize("name", [None, 3, ["CPUExecutionProvider"], ""])
def test_what_is_no_name_is_refused(graph, name):
    with pytest.raises(BadInput, match="is no execution provider|provider=.*; wanted text"):
        providers.session(graph, name)


def test_one_that_is_not_built_in_is_refused(graph):
    absent = next(name for name in ort.get_all_providers() if name not in ort.get_available_providers())
    with pytest.raises(NotAvailable, match=f"{absent} is not in this build of ONNX Runtime .* doctor"):
        providers.session(graph, absent)


@pytest.mark.skipif(AZURE not in ort.get_available_providers(), reason="this build has no Azure provider")
def test_one_that_leaves_every_node_to_the_cpu_is_refused(graph, feed):
    with pytest.raises(NotAvailable, match="would run on the CPU instead"):
        providers.session(graph, AZURE)
    assert AZURE in providers.session(graph, AZURE, every_node=False).get_providers()
    assert set(providers.nodes_by_provider(graph, [AZURE], feed)) == {CPU}  # it is in the session, and ran nothing


def test_one_that_is_built_in_and_does_not_load_is_refused(graph, monkeypatch):
    """As with onnxruntime-gpu beside a TensorRT that its provider cannot load: listed, no exception, and gone."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", CPU])

    class Fallen:
        def __init__(self, path, settings, providers):
            self.asked = providers

        def get_providers(self):
            return [CPU]

    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with pytest.raises(
        NotAvailable, match=r"built in and could not be loaded; ONNX Runtime went on with \['CPUExecutionProvider'\]"
    ):
        providers.session(graph, "TensorrtExecutionProvider")


def test_another_error_of_the_runtime_comes_through(tmp_path):
    file = tmp_path / "net.onnx"
    file.write_bytes(b"no network")
    with pytest.raises(Exception, match="(?i)protobuf|invalid") as refused:
        providers.session(file, CPU)
    assert not isinstance(refused.value, NotAvailable)


def test_the_profile_counts_the_nodes_that_ran(graph, feed):
    ran = providers.nodes_by_provider(graph, [CPU], feed)
    assert set(ran) == {CPU} and sum(ran.values()) >= 7
    assert isinstance(feed["data"], np.ndarray)
