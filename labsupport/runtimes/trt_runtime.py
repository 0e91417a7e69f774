"""A TensorRT engine behind the runtime protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from labsupport import build, environment
from labsupport.build import engines
from labsupport.errors import BadInput, EngineError
from labsupport.runtimes.protocol import Base, Replay, TensorSpec, release_gpu_memory
from labsupport.runtimes.trt_tensors import RepeatedCall, narrowed, torch_dtype


class TensorRt(Base):
    """A TensorRT engine as a runtime: context, buffers and stream owned here, a CUDA graph if wanted.

    ``profile`` chooses the optimization profile. CUDA tensors are read where they lie; NumPy goes through pinned
    buffers. With ``cuda_graph`` the first call of a shape captures, later ones replay. Raises EngineError,
    NotAvailable. Source:
    https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/ExecutionContext.html
    """

    device = "cuda"

    def __init__(self, engine, *, cuda_graph: bool = False, profile: int = 0, name: str | None = None):
        import torch

        environment.require("engine execution")
        trt = environment.tensorrt()
        self.source = engine if isinstance(engine, engines.Engine) else engines.load(engine)
        self.log = build.logger("WARNING")
        start = time.perf_counter()
        data = self.source.plan()
        fit = engines.why_not_here(self.source.sidecar)
        if fit:
            raise EngineError(f"{self.source.path.name} {fit}; build it again on this machine")
        self._runtime = trt.Runtime(self.log)
        if self.source.sidecar.get("built_for", {}).get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such an engine carries its own runtime, signed for above
        self.trt_engine = self._runtime.deserialize_cuda_engine(data)
        if self.trt_engine is None:
            reason = (self.log.errors() or ["no reason given"])[0]  # the first is the cause
            way = (
                "load the library of its plugin first, plugins.load_library (lab 10)"
                if "plugin" in reason.lower()
                else "build it again here"
            )
            raise EngineError(
                f"{self.source.path.name}: TensorRT {environment.machine().tensorrt} refused it: {reason}; {way}"
            )
        self.stream = torch.cuda.Stream()
        self.context = self._new_context(profile)
        self.load_ms = (time.perf_counter() - start) * 1e3
        self._read_specs(trt)
        self.name = name or f"trt {self.source.precision}" + (" graph" if cuda_graph else "")
        self._graphs = Replay(self) if cuda_graph else None
        self._bound: tuple[dict, dict] | None = None
        self._shapes, self._addresses, self._staging = {}, {}, {}
        self._ready, self._done = torch.cuda.Event(), torch.cuda.Event()
        self._output_shapes: dict[str, tuple] | None = None
        self._fast: RepeatedCall | None = None

    def _new_context(self, profile: int):
        context = self.trt_engine.create_execution_context()
        if context is None:
            reason = self.log.last_error()
            raise EngineError(
                f"{self.source.path.name}: no execution context: {reason}; free GPU memory or build with a smaller "
                "batch"
            )
        count = self.trt_engine.num_optimization_profiles
        if not 0 <= profile < max(count, 1):
            raise BadInput(
                f"profile={profile}, but {self.source.path.name} has {count} optimization profile(s), numbered from 0"
            )
        if profile and not context.set_optimization_profile_async(profile, self.stream.cuda_stream):
            raise EngineError(
                f"{self.source.path.name}: profile {profile} could not be set; is another context using it?"
            )
        self.stream.synchronize()
        self.profile = profile
        return context

    def _read_specs(self, trt) -> None:
        self.inputs, self.outputs, self._torch_types, self._lanes = {}, {}, {}, {}
        for i in range(self.trt_engine.num_io_tensors):
            name = self.trt_engine.get_tensor_name(i)
            dtype = torch_dtype(trt, self.trt_engine.get_tensor_dtype(name))
            shape = tuple(None if d == -1 else d for d in self.trt_engine.get_tensor_shape(name))
            side = self.inputs if self.trt_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else self.outputs
            side[name] = TensorSpec(shape, str(dtype).removeprefix("torch."))
            self._torch_types[name] = dtype
            if self.trt_engine.get_tensor_format(name) != trt.TensorFormat.LINEAR and side is self.inputs:
                self._lanes[name] = self.trt_engine.get_tensor_components_per_element(name)
                if len(shape) != 4 or shape[1] is None or shape[1] > self._lanes[name]:
                    raise EngineError(
                        f"input {name!r} of {self.source.path.name} is laid out as "
                        f"{self.trt_engine.get_tensor_format_desc(name)}; only images of at most that many channels "
                        "can be fed so"
                    )

    def __call__(self, feed, *, out=None) -> dict:
        """Run the engine; ``out``, the mapping that a former call returned, is written again instead of a new one.

        Called again with one CUDA tensor like the last and the same ``out``, on a stream of the caller's own, it does
        little more than ``execute_async_v3``.
        """
        fast = self._fast
        if (
            fast is not None
            and out is fast.out
            and feed.__class__ is fast.kind
            and feed.shape == fast.shape
            and feed.dtype is fast.dtype
            and feed.is_cuda
            and feed.is_contiguous()
        ):
            stream = fast.current_stream(fast.index)
            if stream:
                pointer = feed.data_ptr()
                if pointer != fast.pointer:
                    fast.set_address(fast.name, pointer)
                    fast.pointer = self._addresses[fast.name] = pointer
                if fast.execute(stream):
                    return out
                self._complain()
        return self._called(self.checked(feed), out)

    def _called(self, feed: dict, out) -> dict:
        import torch

        if out is not None and (self._graphs or isinstance(next(iter(feed.values())), np.ndarray)):
            raise BadInput(
                f"{self.name}: out= takes the CUDA tensors of a former call, for CUDA tensors in and without "
                "cuda_graph; leave it out"
            )
        if isinstance(next(iter(feed.values())), np.ndarray):
            return self._from_host(feed)
        if self._graphs:
            return {n: t.clone() for n, t in self._graphs(feed).items()}
        current = torch.cuda.current_stream()
        if current.cuda_stream:  # a stream of the caller's own: enqueue right there
            outputs = self._enqueue_on(current.cuda_stream, feed, out=out)
            if out is not None and len(feed) == 1 and not self._lanes:
                self._fast = RepeatedCall(self, *next(iter(feed.items())), out)
            return outputs
        # The default stream synchronizes everything; run on our own and order the two with events.
        # What moves or packs a tensor goes to the current stream, so before the event.
        feed = {name: self._settled(name, x) for name, x in feed.items()}
        self._ready.record(current)
        self.stream.wait_event(self._ready)
        outputs = self._enqueue_on(self.stream.cuda_stream, feed, packed=True, out=out)
        self._done.record(self.stream)
        current.wait_event(self._done)
        return outputs

    def checked(self, feed) -> dict:
        """The feed as a mapping, checked; token ids in INT64 become INT32 where TensorRT 8.6, which has no INT64,
        wants that.
        """
        if environment.generation() == "8.6":
            named = (
                feed if isinstance(feed, Mapping) else {next(iter(self.inputs)): feed} if len(self.inputs) == 1 else {}
            )
            if any(str(getattr(x, "dtype", "")).endswith("int64") for x in named.values()):
                feed = {name: narrowed(x, self.inputs[name]) if name in self.inputs else x for name, x in named.items()}
        return super().checked(feed)

    def _enqueue_on(self, stream: int, feed: dict, *, packed: bool = False, out=None) -> dict:
        self._fast = None  # addresses are about to change
        for name, x in feed.items():
            if not packed:
                x = feed[name] = self._settled(name, x)
            shape = (x.shape[0], self.inputs[name].shape[1], x.shape[1], x.shape[2]) if name in self._lanes else x.shape
            if self._shapes.get(name) != shape:
                self._set_shape(name, shape)
            self._set_address(name, x)
        if self._output_shapes is None:  # asked once all inputs are set: until then they may contradict each other
            self._output_shapes = {n: tuple(self.context.get_tensor_shape(n)) for n in self.outputs}
        outputs = self._new_outputs() if out is None else self._checked_outputs(out)
        for name, y in outputs.items():
            self._set_address(name, y)
        if not self.context.execute_async_v3(stream):
            self._complain()
        return outputs

    def _settled(self, name: str, x):
        """A tensor as the engine reads it: on the GPU, contiguous or packed."""
        if name in self._lanes:
            return self.packed(name, x.cuda())
        return x if x.is_cuda and x.is_contiguous() else x.cuda().contiguous()

    def _set_address(self, name: str, tensor) -> None:
        pointer = tensor.data_ptr()
        if self._addresses.get(name) != pointer:
            self.context.set_tensor_address(name, pointer)
            self._addresses[name] = pointer

    def _new_outputs(self) -> dict:
        import torch

        return {
            name: torch.empty(shape, dtype=self._torch_types[name], device="cuda")
            for name, shape in self._output_shapes.items()
        }

    def _checked_outputs(self, out) -> dict:
        for name, shape in self._output_shapes.items():
            y = out.get(name) if isinstance(out, dict) else None
            if (
                y is None
                or tuple(y.shape) != shape
                or y.dtype != self._torch_types[name]
                or not (y.is_cuda and y.is_contiguous())
            ):
                got = "nothing" if y is None else f"{y.dtype} {tuple(y.shape)} on {y.device}"
                raise BadInput(
                    f"{self.name}: out[{name!r}] is {got}; this call writes {self._torch_types[name]} {shape} on the "
                    "GPU: hand in what a former call of this batch returned"
                )
        return out

    def _set_shape(self, name: str, shape) -> None:
        if not self.context.set_input_shape(name, tuple(shape)):
            low, _, high = self.trt_engine.get_tensor_profile_shape(name, self.profile)
            raise BadInput(
                f"{self.name}: input {name!r} has shape {tuple(shape)}, outside profile {self.profile}: "
                f"{tuple(low)} to {tuple(high)}; build with a wider Profile"
            )
        self._shapes[name], self._output_shapes = shape, None

    def _complain(self):
        reason = self.log.last_error()
        raise EngineError(f"{self.name}: TensorRT could not run the engine: {reason}")

    def _from_host(self, feed: dict) -> dict:
        """NumPy in and out: copied through pinned buffers, which the driver can reach without a second copy.

        All on the runtime's own stream, so that one wait at the end is enough; a CUDA graph reads its static buffers.
        """
        import torch

        with torch.inference_mode(), torch.cuda.stream(self.stream):
            staged = {name: self._pinned(name, array.shape) for name, array in feed.items()}
            for name, array in feed.items():
                staged[name].numpy()[...] = array
            if self._graphs:
                captured = self._graphs.load(staged)
                captured["replay"]()
                outputs = self._graphs.outputs
            else:
                on_device = {name: pinned.to("cuda", non_blocking=True) for name, pinned in staged.items()}
                outputs = self._enqueue_on(self.stream.cuda_stream, on_device)
            landed = {name: self._pinned(name, y.shape).copy_(y, non_blocking=True) for name, y in outputs.items()}
        self.stream.synchronize()
        return {name: np.array(t.numpy()) for name, t in landed.items()}

    def _pinned(self, name: str, shape):
        import torch

        buffer = self._staging.get(name)
        if buffer is None or buffer.shape != tuple(shape):
            buffer = self._staging[name] = torch.empty(tuple(shape), dtype=self._torch_types[name], pin_memory=True)
        return buffer

    def packed(self, name: str, images):
        """Images (N, C, H, W) in the layout the engine was built to read: (N, H, W, lanes), channels padded with
        zeros.
        """
        import torch

        n, c, h, w = images.shape
        out = torch.zeros((n, h, w, self._lanes[name]), dtype=self._torch_types[name], device="cuda")
        out[..., :c] = images.permute(0, 2, 3, 1)
        return out

    def static(self, feed: dict) -> dict:
        """Device buffers for a feed of these shapes, in the engine's layout."""
        import torch

        return {
            n: self.packed(n, x)
            if n in self._lanes
            else torch.empty(tuple(x.shape), dtype=self._torch_types[n], device="cuda")
            for n, x in feed.items()
        }

    def fill(self, buffers: dict, feed: dict) -> None:
        """Copy a feed into the buffers of :meth:`static`."""
        for name, x in feed.items():
            buffers[name].copy_(self.packed(name, x.cuda()) if name in self._lanes else x, non_blocking=True)

    def launch(self, buffers: dict) -> dict:
        """One enqueue on static buffers, on ``stream``; what a CUDA graph captures."""
        return self._enqueue_on(self.stream.cuda_stream, buffers, packed=True)

    def bind(self, feed) -> None:
        """Put a feed into static device buffers, for :meth:`enqueue`."""
        import torch

        feed = {n: torch.as_tensor(x) for n, x in self.checked(feed).items()}
        if self._graphs:
            self._bound = None
            self._graphs.bind(feed)
            return
        with torch.cuda.stream(self.stream):
            inputs = self.static(feed)
            self.fill(inputs, feed)
            self._bound = (inputs, self.launch(inputs))
        self.stream.synchronize()

    def enqueue(self) -> None:
        """One asynchronous inference of the bound feed on ``stream``: a bare enqueue, or a graph replay."""
        if self._bound is None:
            self._graphs.enqueue()
        elif not self.context.execute_async_v3(self.stream.cuda_stream):
            self._complain()

    def fetch(self) -> dict:
        """The bound outputs, as new CUDA tensors, after the stream is done."""
        self.stream.synchronize()
        outputs = self._graphs.outputs if self._bound is None else self._bound[1]
        return {n: t.clone() for n, t in outputs.items()}

    def synchronize(self) -> None:
        """Wait until this runtime's stream has finished."""
        import torch

        torch.cuda.synchronize()

    @property
    def activation_mib(self) -> float:
        """Device memory one context needs for activations and scratch, in MiB."""
        generation = environment.generation()
        size = self.trt_engine.device_memory_size if generation == "8.6" else self.trt_engine.device_memory_size_v2
        return size / 2**20

    def close(self) -> None:
        """Free context, engine and buffers, in the order TensorRT wants."""
        if self.closed:
            return
        self.stream.synchronize()
        self.closed, self._graphs, self._bound, self._staging, self._fast = True, None, None, {}, None
        self.context = None
        self.trt_engine = None
        self._runtime = None
        release_gpu_memory()
