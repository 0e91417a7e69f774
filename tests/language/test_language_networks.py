"""The encoder and the decoder: what padding, a past and positions may and may not change."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from labsupport.errors import BadInput
from labsupport.language import networks

SHAPE = networks.Shape(2, 64, 4, 2, 128, 300, 64)


@pytest.fixture(scope="module")
def decoder():
    return networks.seeded(networks.Decoder(SHAPE))


@pytest.fixture(scope="module")
def encoder():
    return networks.seeded(networks.Encoder(networks.Shape(2, 64, 4, 4, 128, 300, 64, 1e-12)))


def empty(shape, rows=0):
    return [torch.zeros(1, rows, shape.kv_heads, shape.head_width)] * (2 * shape.layers)


def test_padding_leaves_no_trace(encoder):
    tokens, _ = encoder.example_input(1, 7)
    padded = F.pad(tokens, (0, 9), value=5)
    seven = torch.tensor([7], dtype=torch.int32)
    assert torch.allclose(encoder(tokens, seven), encoder(padded, seven), atol=1e-6)
    assert not torch.allclose(encoder(tokens, seven), encoder(padded, seven + 2), atol=1e-3), "the lengths are read"


def test_an_encoder_gives_unit_vectors(encoder):
    vectors = encoder(*encoder.example_input(3, 9))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_past_gives_what_the_whole_text_gives(decoder):
    tokens = torch.randint(300, (1, 9), dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    whole, *rows = decoder(tokens, zero, *empty(SHAPE))
    first, *past = decoder(tokens[:, :6], zero, *empty(SHAPE))
    rest, *new = decoder(tokens[:, 6:], zero + 6, *past)
    assert torch.allclose(torch.cat([first, rest], 1), whole, atol=1e-4)
    assert torch.allclose(torch.cat([past[3], new[3]], 1), rows[3], atol=1e-5)


def test_rows_behind_the_past_length_do_not_count(decoder):
    tokens = torch.tensor([[4, 5]], dtype=torch.int32)
    noise = [torch.randn(1, 5, SHAPE.kv_heads, SHAPE.head_width) for _ in range(2 * SHAPE.layers)]
    alone, *_ = decoder(tokens, torch.zeros(1, dtype=torch.int32), *empty(SHAPE))
    masked, *_ = decoder(tokens, torch.zeros(1, dtype=torch.int32), *noise)
    assert torch.allclose(alone, masked, atol=1e-4)


def test_no_token_sees_a_later_one(decoder):
    tokens = torch.randint(300, (1, 6), dtype=torch.int32)
    changed = tokens.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 300
    zero = torch.zeros(1, dtype=torch.int32)
    before, after = (decoder(x, zero, *empty(SHAPE))[0] for x in (tokens, changed))
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.allclose(before[:, 4:], after[:, 4:])


def test_turning_keeps_products_of_equal_distance(decoder):
    query, key = torch.randn(2, 1, 1, 1, SHAPE.head_width)

    def product(at, back):
        turn = [(decoder.cos[None, [place], None], decoder.sin[None, [place], None]) for place in (at, at - back)]
        return (networks.rotated(query, *turn[0]) * networks.rotated(key, *turn[1])).sum()

    assert torch.allclose(product(9, 4), product(60, 4), atol=1e-3)
    assert not torch.allclose(product(9, 4), product(9, 8), atol=1e-3)


def test_a_scaled_norm_gives_the_same_bits_in_fp32():
    plain, scaled = networks.RmsNorm(64, 1e-5), networks.RmsNorm(64, 1e-5)
    scaled.scale = 2.0**-8
    x = torch.randn(5, 64) * torch.tensor([0.5, 1.0, 30.0, 900.0, 20000.0])[:, None]
    assert torch.equal(plain(x), scaled(x))
    assert not torch.isfinite((x.half() * x.half()).float()).all() and torch.isfinite(scaled.half()(x.half())).all()
    error = (scaled(x.half()).float() - plain(x)).abs().max()
    assert error < 0.05, "and FP16 is near"


def test_sizes_of_a_cache():
    assert SHAPE.cache_bytes(3, 10) == 2 * 2 * 3 * 10 * 2 * 16 * 4
    assert networks.Shape(30, 576, 9, 3, 1536, 49152, 2048).cache_bytes(1, 1) == 46080


def test_seeds_are_reproducible():
    one, two = (networks.seeded(networks.Decoder(SHAPE), seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    with pytest.raises(BadInput, match="network=Shape.* is of the kind Shape; wanted a torch.nn.Module"):
        networks.seeded(SHAPE)
