"""Two processes give what one gives; one that dies is noticed."""

from __future__ import annotations

import time

import pytest
import torch

from labsupport.errors import BadInput, LabError
from labsupport.language import cached, generation, networks, parallel

ENCODER = networks.Shape(3, 64, 4, 4, 128, 300, 64, 1e-12)
DECODER = networks.Shape(4, 64, 4, 2, 128, 300, 64)


@pytest.fixture(scope="module")
def encoder():
    return networks.seeded(networks.Encoder(ENCODER))


@pytest.fixture(scope="module")
def decoder():
    return networks.seeded(networks.Decoder(DECODER))


@pytest.mark.parametrize("way", ["tensor", "pipeline"])
def test_a_split_encoder_gives_the_whole_one_s_vectors(encoder, way):
    tokens, _ = encoder.example_input(4, 9)
    lengths = torch.tensor([9, 2, 5, 7], dtype=torch.int32)
    part = parallel.run(way, encoder, (tokens, lengths))
    assert (part["output"] - encoder(tokens, lengths)).abs().max() < 1e-6
    whole = sum(weight.numel() for weight in encoder.parameters())
    assert part["weights_held"] < whole and part["bytes_over_link"] > 0


def test_a_decoder_in_stages_gives_the_same_tokens(decoder):
    prompt = [5, 6, 7, 8]
    plain = generation.generate(cached.TorchCached(decoder, capacity=40), prompt, 10).tokens
    part = parallel.run("generate", decoder, (torch.tensor(prompt),), options={"most": 10})
    assert part["output"] == plain
    assert part["bytes_over_link"] == (4 + 9) * 64 * 4, "one row a token, from stage to stage"


def test_a_worker_that_dies_in_the_middle_is_noticed(decoder):
    start = time.monotonic()
    with pytest.raises(LabError, match=r"rank 1 of 2 died \(exit code 9\): it said nothing. The others were ended"):
        parallel.run("generate", decoder, (torch.tensor([5, 6]),), options={"most": 500, "dies": [1, 3]})
    assert time.monotonic() - start < 100


def test_a_fault_in_a_worker_is_told(encoder):
    tokens, lengths = encoder.example_input(4, 9)
    with pytest.raises(LabError, match="died .*a batch of 4 cannot be cut into 3 micro-batches"):
        parallel.run("pipeline", encoder, (tokens, lengths), options={"micro_batches": 3})


def test_processes_that_take_too_long_are_ended(decoder):
    with pytest.raises(LabError, match="were not done after 0.1 s and were ended"):
        parallel.run("generate", decoder, (torch.tensor([5, 6]),), timeout_s=0.1)


def test_splits_that_cannot_be(encoder, decoder):
    with pytest.raises(BadInput, match="4 heads cannot be split over 3 processes"):
        parallel.run("tensor", encoder, (), world=3)
    with pytest.raises(BadInput, match="2 key-value heads cannot be split over 4"):
        parallel.check_split("tensor", DECODER, 4)
    with pytest.raises(BadInput, match="3 layers make at most 3 stages, and 4 processes"):
        parallel.run("pipeline", encoder, (), world=4)
    with pytest.raises(BadInput, match="choose one of"):
        parallel.run("sideways", encoder, ())
    with pytest.raises(BadInput, match="world=0"):
        parallel.check_split("tensor", DECODER, 0)


def test_stages_and_bubbles():
    assert parallel.stages(7, 3) == [range(0, 3), range(3, 5), range(5, 7)]
    assert parallel.bubble(2, 4) == 1 / 5 and parallel.bubble(1, 4) == 0
