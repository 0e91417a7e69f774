"""Record of lab 14 what takes too long for a notebook: an encoder of BERT-base's shape against PyTorch, and the engine.

`python3 tools/record_lab14.py [encoder] [decoder]` on a GPU machine, some minutes; both parts where none is named. Both
networks run in FP16 and in a CUDA graph on 128 tokens, batch 8, by the device's clock. PyTorch's rival is the faster of
two: attention written out, and PyTorch's fused operator. No time is recorded beside an answer that is off. Then the
decoder's engine is built and kept in the cache, where the notebook finds it, on TensorRT 8.6 if `patient` is True
there. With LABSUPPORT_METRICS set to a folder the metrics are left there.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.elapsed import say

LAB = "14_large_models"
COMMAND = "python3 tools/record_lab14.py"
PARTS = ("encoder", "decoder")
RIGHT = 0.02  # relative error allowed against FP32
QUESTION = "What is the capital of France?"


def with_fused_attention(model):
    """A copy of a `models.encoder` whose attention is PyTorch's own operator; the same weights."""
    from torch.nn import functional as F

    from labsupport.models import networks

    class Fused(networks.Attention):
        def forward(self, x):
            query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
            return self.out(mixed.reshape(x.shape))

    twin = copy.deepcopy(model)
    for layer in twin.layers:
        layer.attention.__class__ = Fused
    return twin


def floor_ms(model, tokens: int, ceiling) -> float:
    """Time of the products alone: two operations for each weight of a layer and token, at the rate of ``ceiling``."""
    weights = sum(weight.numel() for weight in model.layers.parameters() if weight.dim() == 2)
    return 1e3 * 2 * weights * tokens / (1e9 * ceiling)


def half_gflop_per_s(side: int = 8192, runs: int = 20) -> float:
    """FP16 products as this GPU does them at its best, in GFLOP/s."""
    import torch

    a = torch.randn(side, side, device="cuda", dtype=torch.float16)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(runs + 3):
        if number == 3:
            begin.record()
        a @ a
    end.record()
    torch.cuda.synchronize()
    return 2e-9 * side**3 * runs / (begin.elapsed_time(end) / 1e3)


def encoder(
    book, folder: Path, *, layers: int = 12, hidden: int = 768, heads: int = 12, vocabulary: int = 30522
) -> bool:
    """TensorRT's FP16 engine against the faster PyTorch; False where an answer was off and nothing was recorded."""
    from labsupport import benchmarking, build, comparing, export, models, runtimes

    model = models.encoder(layers, hidden, heads, vocabulary)
    tokens = model.example_input(8, length=128)  # (8, 128) int64
    graph = export.to_onnx(model, tokens, path=folder / "encoder.onnx", dynamic=False)
    answer = runtimes.OnnxRuntime(graph, threads=8)(tokens.numpy())
    engine = build.engine(graph, precision="fp16", name="encoder_s128_b8")
    rivals = {"written out": model, "fused": with_fused_attention(model)}
    best, right = None, True
    with runtimes.TensorRt(engine, cuda_graph=True) as fast:
        feed_trt = tokens.numpy().astype(fast.inputs["token_ids"].dtype)
        off = comparing.relative_error(answer, fast(feed_trt))
        for name, network in rivals.items():
            with runtimes.Torch(network, dtype="float16", cuda_graph=True, name=f"torch, attention {name}") as slow:
                error = comparing.relative_error(
                    answer, {"hidden_states": slow(tokens.numpy())["hidden_states"].astype("float32")}
                )
                right = right and max(error, off) < RIGHT
                ratio = benchmarking.paired(slow, fast, tokens.numpy(), feed_after=feed_trt, clock="device", rounds=20)
                say(name, ratio, f"errors {error:.1e} and {off:.1e}")
                best = ratio if best is None or ratio.median < best.median else best
    if not right:
        say("an answer was off; nothing is recorded")
        return False
    book.record("encoder.trt_fp16_over_torch_graph", best)
    book.record("encoder.trt_fp16_ms", best.after)
    book.record("encoder.trt_relative_error", off, "fraction", samples=tokens.shape[0])
    book.record("encoder.floor_ms", floor_ms(model, tokens.numel(), half_gflop_per_s()), "ms")
    return True


def mended(network, prompt) -> None:
    """Scale the norms before their squares, as the notebook does: powers of two from the largest values of a prompt."""
    from labsupport.language import cached, networks

    seen, hooks = {}, []
    for name, module in network.named_modules():
        if isinstance(module, networks.RmsNorm):

            def note(module, inputs, output, name=name):
                seen[name] = float(inputs[0].abs().max())

            hooks.append(module.register_forward_hook(note))
    cached.TorchCached(network, capacity=len(prompt)).step([prompt])
    for hook in hooks:
        hook.remove()
    for name, module in network.named_modules():
        if seen.get(name, 0) > 100:
            module.scale = 2.0 ** -math.ceil(math.log2(seen[name] / 100))


def decoder(folder: Path) -> str:
    """Build the engine that the notebook asks for, and try it; what it answered."""
    from labsupport import build, environment
    from labsupport.language import cached, engine_cached, generation, weights

    found = weights.decoder()
    say(found)
    prompt = found.tokenizer.chat(QUESTION)
    mended(found.network, prompt)
    exact = generation.generate(cached.TorchCached(found.network, capacity=128), prompt, 32).tokens
    graph = cached.to_onnx(found.network, folder / "decoder.onnx")
    old = environment.generation() == "8.6"  # with both profiles it had not built after 390 s
    both = engine_cached.profiles(found.network.shape, prompt=256, capacity=256, few=1 if old else engine_cached.FEW)
    # Level 1: at the default one TensorRT 8.6 needs more than five minutes.
    of_type = {"precision": "fp16", "strict": True, "optimization_level": 1}
    engine = build.engine(graph, profiles=both[:1] if old else both, name="smollm2", **of_type)
    session = engine_cached.TrtCached(engine, found.network.shape, capacity=256)
    tokens, per_token_ms = engine_cached.GreedyLoop(session, graph=True).run(prompt, 32)
    session.close()
    same = next((i for i, (a, b) in enumerate(zip(tokens, exact)) if a != b), len(exact))
    cost = f"{per_token_ms:.2f} ms a token; built in {engine.sidecar['build_s']:.0f} s"
    return f"{found.tokenizer.decode(tokens)!r}: {same} of 32 tokens as in FP32, {cost}"


def main(names) -> int:
    from labsupport import environment, recordings
    from labsupport.errors import BadInput

    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise BadInput(f"{unknown[0]!r} is no part; choose from {PARTS}, or name none for all")
    environment.require("engine execution")
    done = True
    with tempfile.TemporaryDirectory(prefix="labsupport-") as folder, recordings.session(LAB, command=COMMAND) as book:
        if not names or "encoder" in names:
            done = encoder(book, Path(folder))
        if not names or "decoder" in names:
            say(decoder(Path(folder)))
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
