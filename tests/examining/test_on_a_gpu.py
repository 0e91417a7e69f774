"""What an examination asks of TensorRT where engines run: which engines, of which graph, and no engine twice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from labsupport import build, environment, examining
from labsupport.errors import NotAvailable
from labsupport.examining import identity
from labsupport.examining.rows import Row


@pytest.fixture
def asked(monkeypatch):
    """A machine with TensorRT 8.6 that builds nothing and notes what it was asked for."""
    calls = []

    def engine(graph, **options):
        calls.append((graph.path.name, options))
        return SimpleNamespace(build_s=3.0, size_mib=2.0, runnable_here=True)

    monkeypatch.setattr(build, "engine", engine)
    monkeypatch.setattr(build, "parse", lambda graph: (None, SimpleNamespace(num_layers=6), None))
    monkeypatch.setattr(environment, "has", lambda what: what == "engine execution")
    monkeypatch.setattr(environment, "why_not", lambda what: "")
    monkeypatch.setattr(environment, "generation", lambda: "8.6")
    return calls


def test_the_engine_of_the_baseline_is_the_one_that_identity_built(asked, network):
    with examining.case_of(network) as case:
        row = Row("identity")
        identity._parser(case, row)
        case.engine(case.working, "fp32")
    first, second = asked
    assert first == second, "the same question, so the second comes from the cache"
    assert first[1] == {"precision": "fp32", "name": "net-fp32", "progress": False}
    assert "builds in 3.0 s at the default level, 2.00 MiB" in row.findings[-1].text


def test_half_precision_is_a_flag_on_the_wide_graph_in_release_8(asked, network):
    with examining.case_of(network) as case:
        case.engine(case.graph, "fp16")
        name, options = asked[-1]
        assert name == case.working.path.name
        assert (options["precision"], options["strict"]) == ("fp16", True)
        with pytest.raises(NotAvailable, match="keeps no node wide"):
            case.engine(case.graph, "fp16", ("dense",))


def test_later_releases_take_the_types_of_the_graph(asked, network, monkeypatch):
    monkeypatch.setattr(environment, "generation", lambda: "11")
    with examining.case_of(network) as case:
        case.engine(case.graph, "fp16", ("dense",))
    assert asked[-1] == (network.name, {"precision": "as-is", "name": "net-fp16", "progress": False})
