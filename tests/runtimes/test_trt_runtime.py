"""The TensorRT runtime, on stand-ins where there is no GPU."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from protocol_stand_ins import on_gpu

from labsupport import build, environment, export, models, runtimes
from labsupport.build import engines
from labsupport.errors import BadInput, EngineError

# --- NumPy in and out, on pretended device memory -----------------------------------------------------------------


class FakeStream:
    cuda_stream = 1

    def __init__(self):
        self.waits = 0

    def synchronize(self):
        self.waits += 1


@pytest.fixture
def hosted(monkeypatch):
    """A TensorRT runtime without TensorRT: ``hosted(cuda_graph)`` doubles its input, and counts copies and waits."""
    from labsupport.runtimes import protocol

    empty = torch.empty
    # where there is a GPU, PyTorch would take the fake stream for one of its own
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(stream))
    monkeypatch.setattr(
        torch, "empty", lambda *shape, pin_memory=False, device=None, **options: empty(*shape, **options)
    )
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **how: self.clone())

    class Doubling(runtimes.TensorRt):
        def __init__(self, cuda_graph):
            self.name, self.stream, self.copies, self.made = "doubling", FakeStream(), [], []
            self.inputs, self.outputs = (
                {"x": protocol.TensorSpec((None, 2), "float32")},
                {"y": protocol.TensorSpec((None, 2), "float32")},
            )
            self._torch_types, self._lanes, self._staging, self._fast = (
                {"x": torch.float32, "y": torch.float32},
                {},
                {},
                None,
            )
            self._graphs = protocol.Replay(self) if cuda_graph else None
            if cuda_graph:
                monkeypatch.setattr(self._graphs, "_make", self.captured)

        def captured(self, feed):
            self.made.append(tuple(feed["x"].shape))
            static, answer = empty(feed["x"].shape), empty(feed["x"].shape)
            return {
                "inputs": {"x": static},
                "outputs": {"y": answer},
                "replay": lambda: torch.mul(static, 2, out=answer),
            }

        def fill(self, buffers, feed):
            self.copies.append(feed["x"].data_ptr() == self._staging["x"].data_ptr())
            super().fill(buffers, feed)

        def _enqueue_on(self, stream, feed, **_):
            return {"y": feed["x"] * 2}

    return Doubling


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_numpy_goes_through_buffers_that_are_used_again(hosted, cuda_graph):
    run = hosted(cuda_graph)
    one, other = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6]], np.float32)
    answers = [run(feed)["y"] for feed in (one, one + 1, other, one[::-1])]
    for answer, feed in zip(answers, (one, one + 1, other, one[::-1])):  # checked at the end: none was written again
        np.testing.assert_array_equal(answer, feed * 2)
    assert run.stream.waits == 4, "one wait a call is enough"


def test_under_a_cuda_graph_the_staging_buffer_is_copied_straight_to_the_static_one(hosted):
    run = hosted(True)
    for rows in (2, 2, 1, 2):
        run(np.ones((rows, 2), np.float32))
    assert run.copies == [True] * 4, "one copy a call, from the pinned buffer itself"
    assert run.made == [(2, 2), (1, 2)], "captured once a shape"
    assert run._graphs.current["inputs"]["x"].shape == (2, 2)


def test_a_wrong_feed_leaves_the_buffers_alone(hosted):
    run = hosted(True)
    run(np.ones((2, 2), np.float32))
    with pytest.raises(BadInput, match="the network wants float32"):
        run(np.ones((2, 2)))
    with pytest.raises(BadInput, match=r"the network wants \(any, 2\)"):
        run(np.ones((2, 3), np.float32))
    assert run.stream.waits == 1 and run.made == [(2, 2)]


# --- real TensorRT, on a GPU ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not on_gpu, reason="needs a GPU that TensorRT runs on")
class TestTensorRt:
    def test_bind_enqueue_fetch(self, engine, expected):
        x, y = expected
        for graph in (False, True):
            with runtimes.TensorRt(engine, cuda_graph=graph) as run:
                run.bind(x)
                run.enqueue()
                np.testing.assert_allclose(run.fetch()["logits"].cpu().numpy(), y.numpy(), atol=2e-4)

    def test_outside_the_profile(self, engine, workpiece):
        with (
            runtimes.TensorRt(engine) as run,
            pytest.raises(BadInput, match=r"outside profile 0: \(1, 1, 28, 28\) to \(8, 1, 28, 28\)"),
        ):
            run(workpiece[0].example_input(9).numpy())

    def test_a_profile_that_is_not_there(self, engine):
        with pytest.raises(BadInput, match="profile=3, but .* has 1 optimization profile"):
            runtimes.TensorRt(engine, profile=3)

    def test_device_tensors_are_read_where_they_lie(self, engine, expected):
        x, y = expected
        stream = torch.cuda.Stream()
        with runtimes.TensorRt(engine) as run:
            on_device = x.cuda()
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                out = run(on_device)["logits"]
            stream.synchronize()
            assert run.context.get_tensor_address("images") == on_device.data_ptr()
            assert run.context.get_tensor_address("logits") == out.data_ptr()
            np.testing.assert_allclose(out.cpu().numpy(), y.numpy(), atol=2e-4)

    def test_outputs_are_written_again_where_that_is_asked_for(self, engine, expected):
        x, y = expected
        stream = torch.cuda.Stream()
        with runtimes.TensorRt(engine) as run, torch.cuda.stream(stream):
            one, other = x.cuda(), x.flip(0).contiguous().cuda()
            out = run(one)
            for feed, wanted in ((one, y), (other, y.flip(0)), (one, y), (one, y)):
                assert run(feed, out=out) is out
                stream.synchronize()
                np.testing.assert_allclose(out["logits"].cpu().numpy(), wanted.numpy(), atol=2e-4)
            assert run._fast is not None, "the short way was never taken"
            np.testing.assert_allclose(run(other[:2])["logits"].cpu().numpy(), y.flip(0)[:2].numpy(), atol=2e-4)
            np.testing.assert_allclose(run(one, out=out)["logits"].cpu().numpy(), y.numpy(), atol=2e-4)
            with pytest.raises(
                BadInput, match=r"out\['logits'\] is .*hand in what a former call of this batch returned"
            ):
                run(one[:2], out=out)
            with pytest.raises(BadInput, match="out= takes the CUDA tensors"):
                run(x.numpy(), out=out)

    def test_numpy_under_a_cuda_graph_answers_as_without_one(self, engine, expected):
        x = expected[0].numpy()
        feeds = [x, x[::-1], x[:1], x, x[:3] * 2, np.asfortranarray(x), x]
        with runtimes.TensorRt(engine) as plain, runtimes.TensorRt(engine, cuda_graph=True) as graph:
            answers = [[run(feed)["logits"] for feed in feeds] for run in (plain, graph)]
            for feed, one, other in zip(feeds, *answers):
                assert one.shape == (len(feed), 10) and isinstance(other, np.ndarray)
                np.testing.assert_allclose(other, one, atol=1e-5)

    def test_numpy_and_tensors_may_take_turns_under_a_cuda_graph(self, engine, expected):
        x, y = expected
        with runtimes.TensorRt(engine, cuda_graph=True) as run:
            for _ in range(2):
                np.testing.assert_allclose(run(x.numpy())["logits"], y.numpy(), atol=2e-4)
                np.testing.assert_allclose(run(x.flip(0).cuda())["logits"].cpu().numpy(), y.flip(0).numpy(), atol=2e-4)
                run.bind(x[:2])
                run.enqueue()
                np.testing.assert_allclose(run.fetch()["logits"].cpu().numpy(), y[:2].numpy(), atol=2e-4)
            with pytest.raises(BadInput, match="outside profile 0"):
                run(np.concatenate([x.numpy()] * 3))
            np.testing.assert_allclose(run(x.numpy())["logits"], y.numpy(), atol=2e-4)

    def test_token_ids_may_be_64_bit(self, tmp_path):
        model = models.encoder(layers=1, hidden=64, heads=2, vocabulary=100)
        ids = model.example_input(2)
        graph = export.to_onnx(
            model, ids, target=environment.generation(), dynamic=False, path=tmp_path / "encoder.onnx"
        )
        with torch.inference_mode():
            wanted = model(ids).numpy()
        for cuda_graph in (False, True):
            with runtimes.TensorRt(build.engine(graph, optimization_level=0), cuda_graph=cuda_graph) as run:
                np.testing.assert_allclose(next(iter(run(ids.numpy()).values())), wanted, atol=1e-3)
                np.testing.assert_allclose(next(iter(run(ids.cuda()).values())).cpu().numpy(), wanted, atol=1e-3)

    def test_garbage_with_a_valid_signature_is_refused_by_tensorrt_with_a_word(self, engine, tmp_path):
        bad = engines.save(
            b"garbage" * 1000,
            tmp_path / "bad.plan",
            {k: v for k, v in engine.sidecar.items() if k not in ("sha256", "bytes", "signature")},
        )
        with pytest.raises(EngineError, match="bad.plan: TensorRT .* refused it"):
            runtimes.TensorRt(bad)

    def test_memory_comes_back(self, engine):
        free = []
        for _ in range(4):
            with runtimes.TensorRt(engine, cuda_graph=True) as run:
                run(torch.zeros(8, 1, 28, 28).cuda())
            free.append(torch.cuda.mem_get_info()[0])
        assert free[-1] >= free[0] - 2 * 2**20, f"free GPU memory shrank over four contexts: {free}"

    def test_images_in_the_engines_own_layout(self, workpiece, expected):
        x, y = expected
        if environment.generation() != "8.6":
            pytest.skip("8.6 takes the input type from the builder")
        packed = build.engine(
            workpiece[1], precision="fp16", strict=True, batch=4, io_formats={"images": ("HALF", "CHW4")}
        )
        with runtimes.TensorRt(packed, cuda_graph=True) as run:
            assert run.inputs["images"].dtype == "float16"
            np.testing.assert_allclose(run(x.half().numpy())["logits"].astype("float32"), y.numpy(), atol=0.05)
            run.bind(x.half())
            run.enqueue()
            np.testing.assert_allclose(run.fetch()["logits"].float().cpu().numpy(), y.numpy(), atol=0.05)


def test_output_shapes_are_asked_again_after_an_input_that_was_refused(monkeypatch):
    """One input was set before the other was refused: a later call that changes neither must not write into old sizes."""
    from labsupport.runtimes import protocol

    class Context:
        shapes = {"a": None, "b": None}

        def set_input_shape(self, name, shape):
            if shape[0] > 8:
                return False
            self.shapes[name] = shape
            return True

        def get_tensor_shape(self, name):
            return (self.shapes["a"][0] + self.shapes["b"][0],)

        def set_tensor_address(self, name, pointer):
            pass

        def execute_async_v3(self, stream):
            return True

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, device=None, **options: empty(shape, **options))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    run = runtimes.TensorRt.__new__(runtimes.TensorRt)
    run.name, run.profile, run.context, run.outputs = (
        "two inputs",
        0,
        Context(),
        {"y": protocol.TensorSpec((None,), "float32")},
    )
    run.trt_engine = type("Engine", (), {"get_tensor_profile_shape": lambda self, name, profile: ((1,), (4,), (8,))})()
    run._shapes, run._addresses, run._lanes, run._torch_types, run._output_shapes = (
        {},
        {},
        {},
        {"y": torch.float32},
        None,
    )

    def y_of(a, b):
        return run._enqueue_on(0, {"a": torch.zeros(a), "b": torch.zeros(b)})["y"]

    assert y_of(4, 4).shape == (8,)
    with pytest.raises(BadInput, match="input 'b' has shape \\(9,\\), outside profile 0: \\(1,\\) to \\(8,\\)"):
        y_of(8, 9)
    assert y_of(8, 4).shape == (12,)
    assert y_of(8, 8).shape == (16,)


@pytest.mark.parametrize("lanes", [{}, {"x": 4}])
def test_inputs_are_moved_and_packed_before_the_event_that_the_engine_waits_for(monkeypatch, lanes):
    """On the default stream, with a plain input that is not contiguous and with one that is laid out as CHW4."""
    happened = []

    class Noted(runtimes.TensorRt):
        def checked(self, feed):
            return {"x": feed}

        def packed(self, name, images):
            happened.append("packed")
            return images

        def _enqueue_on(self, stream, feed, *, packed=False, out=None):
            happened.append("enqueued" if packed and feed["x"].is_contiguous() else "enqueued as it came")
            return {}

    class Marked:
        cuda_stream = 0

        def __init__(self, what):
            self.what = what

        def record(self, stream):
            happened.append(self.what)

        def wait_event(self, event):
            happened.append(f"waits for {event.what}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Marked("current"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(
        torch.Tensor,
        "contiguous",
        lambda self: happened.append("moved") or self.clone(memory_format=torch.contiguous_format),
    )
    run = Noted.__new__(Noted)
    run.name, run._fast, run._graphs, run._lanes = "noted", None, None, lanes
    run.stream, run._ready, run._done = Marked("own"), Marked("ready"), Marked("done")
    images = torch.zeros(1, 3, 2, 2) if lanes else torch.zeros(1, 3, 2, 2).permute(0, 1, 3, 2)[..., ::2]
    run(images)
    assert happened == [
        "packed" if lanes else "moved",
        "ready",
        "waits for ready",
        "enqueued",
        "done",
        "waits for done",
    ]


def test_small_outputs_of_onnx_runtime_do_not_hold_its_memory(monkeypatch):
    """An answer that a caller keeps is an array of its own; a large one is handed over without a copy."""
    from labsupport.runtimes import onnx_runtime

    model = models.resnet18(3, width=8, size=32)
    x = model.example_input(1).numpy()
    with runtimes.OnnxRuntime(export.to_onnx(model, model.example_input(1))) as run:
        assert all(y.flags.owndata for y in run(x).values())
        monkeypatch.setattr(onnx_runtime, "SMALL_BYTES", 8)
        assert not any(y.flags.owndata for y in run(x).values())
