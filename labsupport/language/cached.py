"""A decoder with its cache: one step takes new tokens and gives logits, in PyTorch, ONNX Runtime or TensorRT.

A slot holds one sequence; ``lengths`` says how many rows of a slot are in use. The network reads the rows that count
and hands back the new ones alone, which are written behind them: nothing that was computed before is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labsupport.errors import BadInput, LabError, at_least


class Cached:
    """What the three kinds share: slots, lengths, the checks on tokens, room and logits.

    ``shape`` is the network's `networks.Shape`, ``capacity`` the rows of each slot. Raises BadInput, and LabError where
    memory would not do, before any of it is taken.
    """

    name, value_bytes = "cached", 4

    def __init__(self, shape, *, slots: int = 1, capacity: int = 512):
        for option, value in (("slots", slots), ("capacity", capacity)):
            at_least(**{option: value})
        if capacity > shape.positions:
            raise BadInput(
                f"capacity={capacity}, and this network knows {shape.positions} positions; take at most that many"
            )
        self.shape, self.slots, self.capacity = shape, slots, capacity
        self.cache_bytes = shape.cache_bytes(slots, capacity, self.value_bytes)
        if self.cache_bytes > self.free_bytes():
            raise LabError(
                f"a cache of {slots} × {capacity} positions takes {self.cache_bytes >> 20} MiB, and "
                f"{self.free_bytes() >> 20} MiB are free; take fewer slots or a smaller capacity"
            )
        self.lengths = np.zeros(slots, np.int32)

    def free_bytes(self) -> int:
        """Memory that the cache may take."""
        import psutil

        return psutil.virtual_memory().available

    def step(self, tokens, *, first: int = 0, counts: Sequence[int] | None = None) -> np.ndarray:
        """Feed ``tokens`` (B, T) to the slots from ``first`` on; logits (B, T, vocabulary), float32.

        ``counts`` (B,) says how many tokens of each row are real; the rest is padding on the right and leaves no trace.
        Raises BadInput for tokens that do not fit, LabError for logits that are no numbers.
        """
        tokens, counts = self._checked(tokens, first, counts)
        logits = self._run(tokens, first)
        self.lengths[first : first + len(tokens)] += counts
        if not np.isfinite(logits).all():
            raise LabError(
                f"{self.name}: the logits hold NaN or infinity; did a number outgrow FP16? "
                "layerwise.scan(graph, feed) finds the node"
            )
        return logits

    def cut(self, length: int, slot: int = 0) -> None:
        """Forget what stands in a slot behind the first ``length`` rows. Raises BadInput."""
        if not 0 <= length <= self.lengths[slot]:
            raise BadInput(f"slot {slot} holds {self.lengths[slot]} rows; it cannot be cut to {length}")
        self.lengths[slot] = length

    def _checked(self, tokens, first, counts):
        try:
            tokens = np.asarray(tokens)
        except ValueError as error:
            raise BadInput(f"the rows of tokens have different lengths ({error}); pad them and say counts=") from error
        if tokens.ndim != 2 or not tokens.size:
            raise BadInput(
                f"tokens have shape {tokens.shape}; wanted is (slots, new tokens) with one token at least: is the "
                "prompt empty?"
            )
        if tokens.dtype.kind not in "iu":
            raise BadInput(f"tokens are {tokens.dtype}; wanted are whole numbers, as tokenizer.encode gives them")
        if not 0 <= first <= self.slots - len(tokens):
            raise BadInput(f"{len(tokens)} rows from slot {first} on came, and there are {self.slots} slots")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.shape.vocabulary:
            wrong = low if low < 0 else high
            raise BadInput(
                f"token {wrong} is not in the vocabulary, 0 to {self.shape.vocabulary - 1}; is the tokenizer this "
                "network's?"
            )
        counts = np.full(len(tokens), tokens.shape[1], np.int32) if counts is None else np.asarray(counts, np.int32)
        if counts.shape != (len(tokens),) or counts.min() < 0 or counts.max() > tokens.shape[1]:
            raise BadInput(f"counts={counts.tolist()}; give one number a row, from 0 to {tokens.shape[1]}")
        longest = int(self.lengths[first : first + len(tokens)].max()) + tokens.shape[1]
        if longest > self.capacity:
            raise BadInput(
                f"{longest} positions are needed, and the cache has {self.capacity}: shorten the prompt or the answer, "
                "or make the cache larger"
            )
        return tokens.astype(np.int32), counts

    def _run(self, tokens: np.ndarray, first: int) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} does not say how a step runs")

    def _places(self, tokens, first):
        """Index arrays (B, 1) and (B, T) of the rows that new keys and values go to."""
        slots = np.arange(first, first + len(tokens))[:, None]
        return slots, self.lengths[slots] + np.arange(tokens.shape[1])


class TorchCached(Cached):
    """The PyTorch network itself, on the device that its weights are on."""

    name = "torch"

    def __init__(self, network, *, slots: int = 1, capacity: int = 512):
        import torch

        weight = next(network.parameters())
        self.network, self.device, self.dtype, self.value_bytes = (
            network,
            weight.device,
            weight.dtype,
            weight.element_size(),
        )
        super().__init__(network.shape, slots=slots, capacity=capacity)
        rows = (slots, capacity, self.shape.kv_heads, self.shape.head_width)
        self.cache = [torch.zeros(rows, device=self.device, dtype=self.dtype) for _ in range(2 * self.shape.layers)]

    def free_bytes(self) -> int:
        import torch

        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else super().free_bytes()

    def _run(self, tokens, first):
        import torch

        rows, used = slice(first, first + len(tokens)), max(1, int(self.lengths[first : first + len(tokens)].max()))
        with torch.inference_mode():
            past = [x[rows, :used] for x in self.cache]  # views: nothing is copied
            lengths = torch.from_numpy(self.lengths[rows].copy()).to(self.device)
            logits, *new = self.network(torch.from_numpy(tokens).to(self.device), lengths, *past)
            slots, places = (torch.from_numpy(index).to(self.device) for index in self._places(tokens, first))
            for kept, rows_new in zip(self.cache, new):
                kept[slots, places] = rows_new
        return logits.float().cpu().numpy()


class OrtCached(Cached):
    """The ONNX graph in ONNX Runtime on the processor; it reads the cache where it lies."""

    name = "onnxruntime"

    def __init__(self, graph, shape, *, slots: int = 1, capacity: int = 512, threads: int = 1):
        from labsupport import runtimes

        super().__init__(shape, slots=slots, capacity=capacity)
        self.runtime = (
            graph if isinstance(graph, runtimes.OnnxRuntime) else runtimes.OnnxRuntime(graph, threads=threads)
        )
        rows = (slots, capacity, shape.kv_heads, shape.head_width)
        names = [name for name in self.runtime.inputs if name.startswith("past_") and name != "past_length"]
        if len(names) != 2 * shape.layers:
            raise BadInput(
                f"the graph has {len(names)} past_… inputs, and the shape says {shape.layers} layers with two each"
            )
        self.cache = {name: np.zeros(rows, np.float32) for name in names}

    def _run(self, tokens, first):
        rows = slice(first, first + len(tokens))
        # One slot's rows lie behind each other, so the used ones can be handed over as they are; several slots' do not.
        used = max(1, int(self.lengths[first])) if len(tokens) == 1 else self.capacity
        feed = {
            "tokens": tokens,
            "past_length": self.lengths[rows],
            **{name: x[rows, :used] for name, x in self.cache.items()},
        }
        logits, *new = self.runtime(feed).values()
        slots, places = self._places(tokens, first)
        for kept, rows_new in zip(self.cache.values(), new):
            kept[slots, places] = rows_new
        return logits


def to_onnx(network, path):
    """A decoder as an `export.OnnxGraph`, opset 17: free are the batch, the new tokens and the rows of the past."""
    import warnings

    import torch

    from labsupport import export

    free = {
        name: {0: "batch", 1: "rows" if name.startswith("past_") else "new"}
        for name in (*network.input_name, *network.output_name)
    }
    free["past_length"] = {0: "batch"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter on its own future
        torch.onnx.export(
            network,
            network.example_input(),
            str(path),
            dynamo=False,
            opset_version=17,
            dynamic_axes=free,
            input_names=list(network.input_name),
            output_names=list(network.output_name),
        )
    return export.load(path, exporter="torchscript")
