"""Steps of a decoder with its cache, in PyTorch and ONNX Runtime; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labsupport import export
from labsupport.errors import BadInput, LabError
from labsupport.language import cached, engine_cached, four_bits, generation, networks

SHAPE = networks.Shape(2, 64, 4, 2, 128, 300, 64)


@pytest.fixture(scope="module")
def network():
    return networks.seeded(networks.Decoder(SHAPE), seed=1)


@pytest.fixture(scope="module")
def graph(network):
    return cached.to_onnx(network, export.fresh_folder() / "tiny.onnx")


@pytest.fixture(params=["torch", "onnxruntime"])
def session(request, network, graph):
    if request.param == "torch":
        return cached.TorchCached(network, slots=3, capacity=40)
    return cached.OrtCached(graph, SHAPE, slots=3, capacity=40)


def test_slots_do_not_disturb_each_other(session, network):
    alone = cached.TorchCached(network, capacity=40)
    texts, expected = [[5, 6, 7], [9, 10, 11, 12, 13], [8]], []
    for text in texts:
        alone.cut(0)
        alone.step([text])
        expected.append(alone.step([[42]])[0, -1])
    padded = [[*text, *[0] * (5 - len(text))] for text in texts]
    session.step(padded, counts=[3, 5, 1])
    got = session.step([[42]] * 3)[:, -1]
    assert np.allclose(got, expected, atol=1e-3)
    assert session.lengths.tolist() == [4, 6, 2]


def test_one_slot_among_others(session, network):
    session.step([[5, 6]], first=2)
    session.step([[7, 8, 9]], first=1)
    together = session.step([[3], [3]], first=1)
    alone = cached.TorchCached(network, capacity=40)
    alone.step([[7, 8, 9]])
    assert np.allclose(together[0], alone.step([[3]])[0], atol=1e-3) and session.lengths.tolist() == [0, 4, 3]


def test_a_cut_forgets(session):
    first = session.step([[5, 6, 7]])
    session.cut(1)
    assert np.allclose(session.step([[6, 7]])[0], first[0, 1:], atol=1e-3)
    with pytest.raises(BadInput, match="slot 0 holds 3 rows; it cannot be cut to 4"):
        session.cut(4)


@pytest.mark.parametrize(
    ("tokens", "options", "said"),
    [
        ([[]], {}, "is the prompt empty"),
        ([5, 6], {}, "wanted is .slots, new tokens"),
        ([[5, 300]], {}, "token 300 is not in the vocabulary, 0 to 299"),
        ([[-1]], {}, "token -1 is not in the vocabulary"),
        ([[0.5]], {}, "wanted are whole numbers"),
        ([[5], [6, 7]], {}, "different lengths"),
        ([list(range(41))], {}, "41 positions are needed, and the cache has 40"),
        ([[1]] * 4, {}, "4 rows from slot 0 on came, and there are 3 slots"),
        ([[1]], {"first": 3}, "from slot 3 on"),
        ([[1, 2]], {"counts": [3]}, "give one number a row, from 0 to 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(session, tokens, options, said):
    with pytest.raises(BadInput, match=said):
        session.step(tokens, **options)
    assert not session.lengths.any(), "and nothing was written"


def test_a_full_cache_says_so(session):
    session.step([list(range(40))])
    with pytest.raises(BadInput, match="41 positions are needed"):
        session.step([[1]])


def test_logits_that_are_no_numbers_stop_the_answer():
    broken = networks.seeded(networks.Decoder(SHAPE))
    broken.layers[1].down.weight[3] = float("nan")
    with pytest.raises(LabError, match="the logits hold NaN or infinity; did a number outgrow FP16"):
        generation.generate(cached.TorchCached(broken, capacity=40), [5, 6], 4)


def test_a_cache_that_does_not_fit_is_refused_before_it_is_made(network, monkeypatch):
    monkeypatch.setattr(cached.Cached, "free_bytes", lambda self: 10 << 20)
    assert cached.TorchCached(network, slots=2, capacity=64).cache_bytes < 10 << 20
    with pytest.raises(LabError, match="a cache of 900 × 64 positions takes 28 MiB, and 10 MiB are free"):
        cached.TorchCached(network, slots=900, capacity=64)


def test_sizes_that_cannot_be(network):
    with pytest.raises(BadInput, match="capacity=65, and this network knows 64 positions"):
        cached.TorchCached(network, capacity=65)
    with pytest.raises(BadInput, match="slots=0; wanted a whole number"):
        cached.TorchCached(network, slots=0)
    with pytest.raises(BadInput, match="capacity=True"):
        cached.TorchCached(network, capacity=True)


def test_a_graph_of_another_shape_is_refused(graph):
    with pytest.raises(BadInput, match="the graph has 4 past_… inputs, and the shape says 3 layers"):
        cached.OrtCached(graph, networks.Shape(3, 64, 4, 2, 128, 300, 64), capacity=40)


def test_a_prompt_longer_than_the_profile():
    session = object.__new__(engine_cached.TrtCached)
    session.lengths, session.longest, session.few = np.zeros(1, np.int32), 16, 8
    with pytest.raises(BadInput, match="a prompt of 17 tokens came, and the engine's profile takes 16"):
        session._run(np.zeros((1, 17), np.int32), 0)
    session.lengths[0] = 4
    with pytest.raises(BadInput, match="9 tokens behind a prompt came, and the engine's profile takes 8"):
        session._run(np.zeros((1, 9), np.int32), 0)


def test_an_engine_without_a_prefill_profile_takes_a_prompt_in_pieces(monkeypatch):
    session, calls = object.__new__(engine_cached.TrtCached), []
    session.lengths, session.longest, session.few = np.int32([7, 3, 3]), 0, 2

    def whole(self, tokens, first):
        calls.append((tokens.tolist(), self.lengths[first:].tolist()))
        return tokens[..., None].astype(np.float32)

    monkeypatch.setattr(engine_cached.TrtCached, "_whole", whole)
    tokens = np.arange(10).reshape(2, 5)
    assert np.array_equal(session._run(tokens, 1), tokens[..., None])
    pieces = [([[0, 1], [5, 6]], [3, 3]), ([[2, 3], [7, 8]], [5, 5]), ([[4], [9]], [7, 7])]
    assert calls == pieces and session.lengths.tolist() == [7, 3, 3]
    session._run(tokens[:, :2], 1)
    assert calls[3:] == [([[0, 1], [5, 6]], [3, 3])]


def test_profiles_name_every_input(graph):
    decode, prefill = engine_cached.profiles(SHAPE, prompt=32, capacity=48, slots=2)
    assert set(decode) == set(prefill) == set(graph.inputs)
    assert decode["past_value.1"].max == (2, 48, 2, 16) and prefill["past_value.1"].max == (2, 1, 2, 16)
    assert decode["tokens"].opt == (1, 1) and prefill["tokens"].max == (2, 32) and decode["tokens"].max == (2, 8)
    fixed = engine_cached.profiles(SHAPE, capacity=48, few=1)[0]
    assert all(profile.min == profile.max for profile in fixed.values())


def test_the_loop_on_the_device_gives_the_same_tokens(network):
    session = cached.TorchCached(network, capacity=40)
    loop = engine_cached.GreedyLoop(session)
    for prompt in ([5, 6, 7], list(range(20, 32))):
        assert loop.run(prompt, 20)[0] == generation.generate(session, prompt, 20).tokens
    with pytest.raises(BadInput, match="30 \\+ 20 positions are needed"):
        loop.run(list(range(30)), 20)
    with pytest.raises(LabError, match="this session runs on the processor"):
        engine_cached.GreedyLoop(session, graph=True)


def test_four_bits_are_what_they_say(graph, network):
    exact, whole = (
        four_bits.quantized(graph, export.fresh_folder() / "q.onnx", exact=choice) for choice in (True, False)
    )
    assert exact.ops["MatMulNBits"] == whole.ops["MatMulNBits"] == 2 * 7 + 1
    assert exact.size_mib < 0.55 * graph.size_mib, "the embedding stays as it is"
    plain = cached.TorchCached(network, capacity=40).step([[5, 6, 7]])
    got, rounded = (cached.OrtCached(g, SHAPE, capacity=40).step([[5, 6, 7]]) for g in (exact, whole))
    assert np.abs(got - plain).max() < np.abs(rounded - plain).max()
    with pytest.raises(BadInput, match="was it quantized before"):
        four_bits.quantized(exact, export.fresh_folder() / "twice.onnx")


def test_four_bits_return_what_was_in_four_bits():
    dice = np.random.default_rng(0)
    step, least = dice.uniform(0.01, 1, (2, 6, 3)).astype(np.float32)
    levels = dice.integers(16, size=(6, 3, 32))
    levels[..., :2] = 0, 15
    weight = (least[..., None] + step[..., None] * levels).astype(np.float32).reshape(6, 96)
    again, found_step, found_least = four_bits.blocks(weight)
    assert (
        np.array_equal(again, levels) and np.allclose(found_step, step, rtol=1e-3) and np.allclose(found_least, least)
    )
    with pytest.raises(BadInput, match="a multiple of 32 inputs"):
        four_bits.blocks(weight[:, :40])


def test_torch_and_onnxruntime_agree_token_for_token(network, graph):
    prompt = torch.randint(300, (7,)).tolist()
    answers = [
        generation.generate(s, prompt, 20).tokens
        for s in (cached.TorchCached(network, capacity=40), cached.OrtCached(graph, SHAPE, capacity=40))
    ]
    assert answers[0] == answers[1]
