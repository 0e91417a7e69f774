"""Triton: the repository that it reads, the environment that it needs, and a server that is always stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from labsupport import environment, export
from labsupport.errors import BadInput, LabError, NotAvailable
from labsupport.serving import TritonServer, triton_repository, triton_server

RUNS = environment.has("triton server")
CACHE = os.environ.get("LABSUPPORT_CACHE")  # where Triton's environment lies; each test gets a cache of its own


@pytest.fixture
def made(monkeypatch):
    """The cache that holds Triton's environment."""
    if not RUNS:
        pytest.skip("Triton's environment was not made: python3 -m labsupport serve triton")
    monkeypatch.setenv("LABSUPPORT_CACHE", CACHE) if CACHE else monkeypatch.delenv("LABSUPPORT_CACHE", raising=False)


class Small(nn.Module):
    input_name, output_name = "images", "logits"

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(12, 5)

    def forward(self, x):
        return self.dense(x.flatten(1))


@pytest.fixture(scope="module")
def graph():
    return export.to_onnx(Small(), torch.zeros(1, 3, 2, 2))


@pytest.fixture
def repository(graph, tmp_path):
    return triton_repository.write(tmp_path / "models", graph, name="small", max_batch=8, delay_us=500)


def test_a_repository_holds_what_triton_reads(repository):
    config = triton_repository.parsed((repository / "small" / "config.pbtxt").read_text())
    assert config["backend"] == ["python"] and config["max_batch_size"] == ["8"]
    assert config["input"] == [{"name": ["images"], "data_type": ["TYPE_FP32"], "dims": ["3", "2", "2"]}]
    assert config["dynamic_batching"][0]["max_queue_delay_microseconds"] == ["500"]
    assert {path.name for path in (repository / "small" / "1").iterdir()} == {"model.py", "model.onnx"}
    compile((repository / "small" / "1" / "model.py").read_text(), "model.py", "exec")
    assert triton_repository.validate(repository) == ["small"]


def test_a_second_version_stands_beside_the_first(repository, graph):
    triton_repository.write(repository, graph, name="small", version=2, max_batch=8)
    assert {path.name for path in (repository / "small").iterdir()} == {"config.pbtxt", "1", "2"}
    assert triton_repository.validate(repository) == ["small"]


@pytest.mark.parametrize(
    "before, after, said",
    [
        (
            "[ 3, 2, 2 ]",
            "[ 2, 2, 3 ]",
            r"input 'images' has dims \[2, 2, 3\] in config.pbtxt, and \[3, 2, 2\] in the ONNX",
        ),
        ("[ 5 ]", "[ 6 ]", r"output 'logits' has dims \[6\]"),
        ("[ 3, 2, 2 ]", "[ 3, 2 ]", r"has dims \[3, 2\]"),
        ("TYPE_FP32", "TYPE_FP16", "TYPE_FP16"),
        ('"images"', '"pictures"', r"has the input 'images', config.pbtxt has \['pictures'\]"),
        ('"small"', '"large"', "calls the model 'large'; the folder's name must be the same"),
        ("dynamic_batching {", "dynamic_batching", "cannot be read at"),
        ("[ 5 ] } ]", "[ 5 ] }", "ends within a list|name without a value|cannot be read"),
        ("max_batch_size: 8", "max_batch_size:", "has the input|name without a value|cannot be read|dims"),
        ("max_batch_size: 8", "max_batch_size: 0", "has dims"),
    ],
)
def test_a_repository_with_a_fault_is_refused_before_the_server_starts(repository, before, after, said):
    path = repository / "small" / "config.pbtxt"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(BadInput, match=said):
        triton_repository.validate(repository)


def test_a_free_axis_in_the_configuration_fits_any_size(repository):
    path = repository / "small" / "config.pbtxt"
    path.write_text(path.read_text().replace("[ 3, 2, 2 ]", "[ 3, -1, -1 ]"))
    assert triton_repository.validate(repository) == ["small"]


def test_folders_with_nothing_in_them(tmp_path, repository):
    with pytest.raises(BadInput, match="has no MODEL/config.pbtxt"):
        triton_repository.validate(tmp_path / "nowhere")
    (repository / "small" / "1" / "model.py").unlink()
    with pytest.raises(BadInput, match="small/1/model.py is missing"):
        triton_repository.validate(repository)
    (repository / "small" / "1").rename(repository / "small" / "first")
    with pytest.raises(BadInput, match="small has no version"):
        triton_repository.validate(repository)


def test_free_dimensions_comments_and_lists_are_read():
    fields = triton_repository.parsed(
        '# a comment\nname: "x" # more\ndims: [ -1, 4 ]\na { b: 1 c { d: 2 } }\na { b: 3 }'
    )
    assert fields == {"name": ["x"], "dims": ["-1", "4"], "a": [{"b": ["1"], "c": [{"d": ["2"]}]}, {"b": ["3"]}]}


@pytest.mark.parametrize(
    "options, said",
    [({"name": "a b"}, "a model's name is a folder's name"), ({"version": 0}, "version=0"), ({"max_batch": 2.0}, "max_batch=2.0"), ({"instances": True}, "instances=True")],
)  # fmt: skip
def test_options_that_make_no_sense(graph, tmp_path, options, said):
    with pytest.raises(BadInput, match=said):
        triton_repository.write(tmp_path, graph, **options)


def test_a_graph_with_a_fixed_batch_is_refused(tmp_path):
    fixed = export.to_onnx(Small(), torch.zeros(1, 3, 2, 2), dynamic=False)
    with pytest.raises(BadInput, match="with a free first axis"):
        triton_repository.write(tmp_path, fixed)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def installer(cache, *, fails=""):
    """Stands in for subprocess.run: makes the folders that venv and pip would make."""
    calls = []

    def run(command, **_):
        calls.append(command)
        if fails and fails in " ".join(command):
            return SimpleNamespace(
                returncode=1, stderr="ERROR: No matching distribution found for nvidia-pytriton", stdout=""
            )
        server = cache / "triton" / "lib" / "python3" / "site-packages" / "pytriton" / "tritonserver"
        stubs = server / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
        for folder in (server / "backends" / "python", stubs):
            folder.mkdir(parents=True, exist_ok=True)
        (stubs / "triton_python_backend_stub").write_text("stub")
        return SimpleNamespace(returncode=0, stderr="", stdout="")

    return run, calls


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's package runs on Linux only")
def test_the_environment_is_made_once(cache):
    run, calls = installer(cache)
    said = []
    place = triton_server.make_environment(say=said.append, run=run)
    assert (place / "ready.json").is_file() and len(calls) == 2 and "numpy<2" in calls[1] and said
    stub = next(place.rglob("backends/python/triton_python_backend_stub"))
    assert stub.read_text() == "stub" and environment.has("triton server")
    triton_server.make_environment(say=said.append, run=run)
    assert len(calls) == 2
    (place / "ready.json").write_text(json.dumps({"requirements": ["older"]}))
    triton_server.make_environment(say=said.append, run=run)
    assert len(calls) == 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's package runs on Linux only")
def test_pips_reason_reaches_the_learner_and_nothing_counts_as_made(cache):
    run, _ = installer(cache, fails="install")
    with pytest.raises(LabError, match="Triton could not be installed: ERROR: No matching distribution"):
        triton_server.make_environment(say=lambda line: None, run=run)
    assert not environment.has("triton server")


def test_without_the_environment_the_command_is_named(cache, repository):
    with pytest.raises(NotAvailable, match="python3 -m labsupport serve triton"):
        TritonServer(repository)


@pytest.mark.parametrize("port", [-1, 70_000, "8000", True, 80.5])
def test_a_port_that_is_none(port):
    with pytest.raises(BadInput, match="port="):
        triton_server.free_port(port)


def test_a_port_in_use_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BadInput, match=f"port {other.getsockname()[1]} is in use .*; give another one, or 0"):
            triton_server.free_port(other.getsockname()[1])
    assert triton_server.free_port(0) > 0


def test_a_server_answers_counts_and_stops(made, repository):
    with TritonServer(repository) as server:
        assert server.models == ["small"] and server.start_s < 60
        process = server._process
        with pytest.raises(BadInput, match=f"port {server.port} is in use"):
            TritonServer(repository, port=server.port)
        assert "nv_inference_request_success" in server.metrics()
    assert process.poll() is not None
    server.close()


def test_a_server_that_does_not_come_up_shows_its_log(made, repository):
    (repository / "small" / "1" / "model.py").write_text("raise RuntimeError('no such weights')")
    with pytest.raises(LabError, match="(?s)its log ends.*no such weights"):
        TritonServer(repository, patience_s=20)


def test_an_interrupt_stops_the_server(made, repository):
    with pytest.raises(KeyboardInterrupt), TritonServer(repository) as server:
        raise KeyboardInterrupt
    assert server._process.poll() is not None


def test_the_server_does_not_outlive_its_parent(made, repository):
    script = (
        "import os, signal, sys; from labsupport.serving import TritonServer\n"
        "server = TritonServer(sys.argv[1]); print(server._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(repository)], capture_output=True, text=True, timeout=120)
    import psutil

    number = int(done.stdout.split()[-1])
    if psutil.pid_exists(number):
        psutil.Process(number).wait(15)
    assert not psutil.pid_exists(number)


@pytest.mark.skipif(not environment.has("tritonclient"), reason="tritonclient is not installed")
def test_a_client_gets_what_onnx_runtime_answers(made, repository, graph):
    import tritonclient.http as triton

    from labsupport import runtimes

    images = np.random.default_rng(0).random((3, 3, 2, 2)).astype(np.float32)
    with TritonServer(repository) as server, runtimes.OnnxRuntime(graph) as run:
        client, request = (
            triton.InferenceServerClient(server.address),
            triton.InferInput("images", [3, 3, 2, 2], "FP32"),
        )
        request.set_data_from_numpy(images)
        answers = client.infer("small", [request]).as_numpy("logits")
        assert np.abs(answers - run(images)["logits"]).max() < 1e-5
        large = triton.InferInput("images", [9, 3, 2, 2], "FP32")
        large.set_data_from_numpy(np.zeros((9, 3, 2, 2), np.float32))
        with pytest.raises(triton.InferenceServerException, match="batch-size must be <= 8"):
            client.infer("small", [large])
        client.close()
