"""A decoder's TensorRT engine with its cache, and greedy decoding that never leaves the GPU.

One engine, two profiles: 0 takes a few tokens on the whole cache (decode), 1 a whole prompt on an empty one (prefill).
An engine of the first alone takes a prompt in pieces.
"""

from __future__ import annotations

import time

import numpy as np

from labsupport.errors import BadInput, EngineError, LabError
from labsupport.language.cached import Cached

FEW = 8  # tokens that one decode step takes: one, or one and its drafts


def profiles(shape, *, prompt: int = 256, capacity: int = 256, slots: int = 1, few: int = FEW) -> list[dict]:
    """The decode profile and the prefill profile of a decoder's graph, for `build.engine(profiles=...)`.

    ``few`` tokens fit into a decode step. The first profile with ``few=1, slots=1`` leaves no size free, which an old
    builder wants for a large decoder.
    """
    from labsupport import build

    def cache(rows: int) -> dict:
        tail = (rows, shape.kv_heads, shape.head_width)
        one, all_slots = (1, *tail), (slots, *tail)
        return {
            f"past_{kind}.{i}": build.Profile(one, one, all_slots)
            for i in range(shape.layers)
            for kind in ("key", "value")
        }

    lengths = {"past_length": build.Profile((1,), (1,), (slots,))}
    decode = {"tokens": build.Profile((1, 1), (1, 1), (slots, few)), **lengths, **cache(capacity)}
    prefill = {"tokens": build.Profile((1, 1), (1, max(1, prompt // 2)), (slots, prompt)), **lengths, **cache(1)}
    return [decode, prefill]


class TrtCached(Cached):
    """An engine built with `profiles`; the cache stays on the GPU. ``capacity`` must be the decode profile's."""

    name = "tensorrt"

    def __init__(self, engine, shape, *, slots: int = 1, capacity: int = 256):
        import torch

        from labsupport import runtimes

        self.runtime = runtimes.TensorRt(engine)
        self.dtype = getattr(torch, self.runtime.inputs["past_key.0"].dtype)
        self.value_bytes = torch.empty((), dtype=self.dtype).element_size()
        super().__init__(shape, slots=slots, capacity=capacity)
        of = self.runtime.trt_engine
        built = tuple(of.get_tensor_profile_shape("past_key.0", 0)[2])[1]
        if built != capacity:
            raise BadInput(
                f"capacity={capacity}, and the engine's decode profile was built for {built} rows; the two must agree"
            )
        self.few, *prefill = (
            tuple(of.get_tensor_profile_shape("tokens", place)[2])[1] for place in range(of.num_optimization_profiles)
        )
        self.longest, self.contexts = prefill[0] if prefill else 0, [self.runtime.context]
        if prefill:
            self.contexts.append(of.create_execution_context())
            if not self.contexts[1].set_optimization_profile_async(1, self.runtime.stream.cuda_stream):
                raise EngineError(
                    "the prefill profile could not be set; build the engine with engine_cached.profiles(shape)"
                )
        self.stream, self.device = self.runtime.stream, torch.device("cuda")
        self.stream.synchronize()
        rows = (2 * shape.layers, slots, capacity, shape.kv_heads, shape.head_width)
        self.cache = torch.zeros(rows, dtype=self.dtype, device="cuda")
        self.past_names = [f"past_{kind}.{i}" for i in range(shape.layers) for kind in ("key", "value")]
        self.new_names = [name.replace("past_", "new_") for name in self.past_names]
        self._static = {}

    def free_bytes(self) -> int:
        import torch

        return torch.cuda.mem_get_info()[0]

    def _run(self, tokens, first):
        if self.longest or tokens.shape[1] <= self.few:
            return self._whole(tokens, first)
        before, pieces = self.lengths.copy(), []
        try:
            for start in range(0, tokens.shape[1], self.few):
                pieces.append(self._whole(tokens[:, start : start + self.few], first))
                self.lengths[first : first + len(tokens)] += pieces[-1].shape[1]
        finally:
            self.lengths[:] = before  # `step` counts, once it has the whole
        return np.concatenate(pieces, axis=1)

    def _whole(self, tokens, first):
        import torch

        empty = self.longest and not self.lengths[first : first + len(tokens)].any()
        profile = int(empty and tokens.shape[1] > self.few)
        most = self.longest if empty else self.few
        if tokens.shape[1] > most:
            hint = f"a prompt of {tokens.shape[1]} tokens" if empty else f"{tokens.shape[1]} tokens behind a prompt"
            raise BadInput(
                f"{hint} came, and the engine's profile takes {most}; shorten it, or build with a larger profile"
            )
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            ids = torch.from_numpy(tokens).cuda()
            lengths = torch.from_numpy(self.lengths[first : first + len(tokens)].copy()).cuda()
            logits, new = self._outputs(*tokens.shape)
            self._bind(profile, ids, lengths, logits, new, first)
            self._enqueue(profile)
            slots, places = (torch.from_numpy(index).cuda() for index in self._places(tokens, first))
            self.cache[:, slots, places] = new
            answer = logits.float().cpu().numpy()  # waits for the stream
        return answer

    def _outputs(self, batch: int, new: int):
        """Logits (B, T, vocabulary) and new rows (2 × layers, B, T, kv_heads, width), kept for the next such step."""
        import torch

        if (batch, new) not in self._static:
            kind = getattr(torch, self.runtime.outputs["logits"].dtype)
            logits = torch.empty((batch, new, self.shape.vocabulary), dtype=kind, device="cuda")
            rows = (2 * self.shape.layers, batch, new, self.shape.kv_heads, self.shape.head_width)
            self._static[batch, new] = logits, torch.empty(rows, dtype=self.dtype, device="cuda")
        return self._static[batch, new]

    def _bind(self, profile: int, ids, lengths, logits, new, first: int) -> None:
        """Shapes and addresses of one step; the engine reads the cache where it lies."""
        context, batch = self.contexts[profile], len(ids)
        rows = 1 if profile else self.capacity  # an empty cache is one row that does not count
        past = (batch, rows, self.shape.kv_heads, self.shape.head_width)
        shapes = {"tokens": tuple(ids.shape), "past_length": (batch,), **{name: past for name in self.past_names}}
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise BadInput(
                    f"the engine does not take {name} of shape {shape}; build it with engine_cached.profiles(shape)"
                )
        tensors = {"tokens": ids, "past_length": lengths, "logits": logits}
        tensors.update({name: self.cache[i, first] for i, name in enumerate(self.past_names)})
        tensors.update({name: new[i] for i, name in enumerate(self.new_names)})
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        self._kept = tensors  # what the GPU still reads must not be freed

    def _enqueue(self, profile: int) -> None:
        if not self.contexts[profile].execute_async_v3(self.stream.cuda_stream):
            raise EngineError(f"TensorRT could not run the decoder: {self.runtime.log.last_error()}")

    def on_device(self, token, length, index):
        """What one greedy step does on the GPU, for `GreedyLoop`: a function without arguments, and its logits."""
        logits, new = self._outputs(1, 1)
        self._bind(0, token, length, logits, new, 0)

        def step():
            self._enqueue(0)
            self.cache.index_copy_(2, index, new)

        return step, logits

    def close(self) -> None:
        """Free contexts, cache and engine."""
        self.stream.synchronize()
        self.contexts, self.cache, self._static, self._kept = [], None, {}, None
        self.runtime.close()


def _torch_on_device(session, token, length, index):
    """The same for a `cached.TorchCached`, its whole cache in view as the engine sees it."""
    logits = token.new_empty((1, 1, session.shape.vocabulary), dtype=session.dtype)

    def step():
        found, *new = session.network(token, length, *session.cache)
        logits.copy_(found)
        for kept, row in zip(session.cache, new):
            kept.index_copy_(1, index, row)

    return step, logits


class GreedyLoop:
    """Greedy decoding of slot 0 without a word from the host: token, length and place are tensors on the device.

    With ``graph`` one step is captured in a CUDA graph and replayed. Works on the processor too, without a graph.
    """

    def __init__(self, session, *, graph: bool = False):
        import torch

        self.session, self.graph, device = session, None, session.device
        self.on_gpu = device.type == "cuda"
        if graph and not self.on_gpu:
            raise LabError("a CUDA graph records launches, and this session runs on the processor; leave graph out")
        self.stream = getattr(session, "stream", None) or (torch.cuda.Stream() if self.on_gpu else None)
        self.token, self.length = (torch.zeros(shape, dtype=torch.int32, device=device) for shape in ((1, 1), (1,)))
        self.index, self.count = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.history = torch.zeros(session.capacity, dtype=torch.int32, device=device)
        self._prepare()
        if graph:
            self._capture()

    def _prepare(self) -> None:
        """Bind the static tensors; anew before every run, because a prompt's step binds its own."""
        static = self.token, self.length, self.index
        own = getattr(self.session, "on_device", None)
        self.step, self.logits = own(*static) if own else _torch_on_device(self.session, *static)

    def _one(self) -> None:
        self.step()
        self.token.copy_(self.logits[:, -1].argmax(-1, keepdim=True))
        self.history.index_copy_(0, self.count, self.token[0])
        for number in (self.length, self.index, self.count):
            number.add_(1)

    def _capture(self) -> None:
        import torch

        with torch.inference_mode():
            with torch.cuda.stream(self.stream):
                for _ in range(3):  # a capture must not be the first call
                    self._one()
            self.stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._one()

    def run(self, prompt, most: int) -> tuple[list[int], float]:
        """``most`` greedy tokens behind a prompt, no end mark; and ms a token after the first, by its clock."""
        import torch

        session = self.session
        if len(prompt) + most > session.capacity:
            raise BadInput(f"{len(prompt)} + {most} positions are needed, and the cache has {session.capacity}")
        session.cut(0)
        first = int(np.argmax(session.step([list(prompt)])[0, -1]))
        if self.graph is None:
            self._prepare()
        with torch.inference_mode():
            self.token.fill_(first)
            self.length.fill_(len(prompt))
            self.index.fill_(len(prompt))
            self.count.zero_()
            spent_ms = self._timed(most - 1)
        session.lengths[0] = len(prompt) + most - 1
        return [first, *self.history[: most - 1].tolist()], spent_ms / max(1, most - 1)

    def _timed(self, steps: int) -> float:
        import torch

        once = self.graph.replay if self.graph else self._one
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(steps):
                once()
            return 1e3 * (time.perf_counter() - start)
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(steps):
                once()
            end.record()
        self.stream.synchronize()
        return begin.elapsed_time(end)
