"""Networks of other people: their outputs keep their width, and what a view, groups or a shuffle fix is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch_networks import Net, conv

from labsupport import pruning
from labsupport.errors import BadInput
from labsupport.pruning import dependencies, masks


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def pooled(x):
    return x.mean((2, 3))


def head_first():
    return Net(
        lambda s, x: s.fc(pooled(F.relu(s.b(F.relu(s.a(x)))))), fc=nn.Linear(16, 10), a=conv(3, 16), b=conv(16, 16)
    )


def two_heads():
    def run(s, x):
        x = F.relu(s.a(x))
        return s.one(x), s.two(x)

    return Net(run, a=conv(3, 16), one=conv(16, 5, 1), two=conv(16, 7, 1))


def dictionary():
    def run(s, x):
        x = pooled(F.relu(s.b(F.relu(s.a(x)))))
        return {"cls": s.cls(x), "box": s.box(x)}

    return Net(run, cls=nn.Linear(16, 10), box=nn.Linear(16, 4), a=conv(3, 16), b=conv(16, 16))


def autoencoder():
    return Net(
        lambda s, x: s.up(F.relu(s.b(F.relu(s.a(x))))),
        a=conv(3, 16),
        b=conv(16, 16),
        up=nn.ConvTranspose2d(16, 3, 2, stride=2),
    )


def features_too():
    """Its second stage is an output and read by the head."""

    def run(s, x):
        deep = F.relu(s.b(F.relu(s.a(x))))
        return deep, s.fc(pooled(deep))

    return Net(run, a=conv(3, 32), b=conv(32, 12), fc=nn.Linear(12, 4))


@pytest.mark.parametrize("make", [head_first, two_heads, dictionary, autoencoder, features_too])
def test_outputs_are_never_pruned(make):
    x, network = torch.randn(2, 3, 8, 8), seeded(make)
    shapes = [tuple(y.shape) for y in dependencies.outputs_of(network, x)]
    slim = pruning.shrink(network, example=x, macs=0.5, round_to=1)
    assert [tuple(y.shape) for y in dependencies.outputs_of(slim.model, x)] == shapes
    assert slim.after.macs <= 0.5 * slim.before.macs and slim.mac_reduction >= 2


@pytest.mark.parametrize(
    "make, name", [(head_first, "fc"), (two_heads, "one"), (autoencoder, "up"), (features_too, "b")]
)
def test_a_layer_that_feeds_an_output_drops_no_channel(make, name):
    network, x = seeded(make), torch.randn(2, 3, 8, 8)
    if name == "up":
        assert "up" in dependencies.fixed_layers(network, x, 1)
        return
    with pytest.raises(
        BadInput, match=rf"channels \[1\] of {name} cannot go: .*outputs would change.* they feed an output"
    ):
        pruning.drop_channels(network, name, [1], x)


def grouped():
    return Net(lambda s, x: s.fc(pooled(s.g(s.a(x)))), a=conv(3, 16), g=conv(16, 32, groups=4), fc=nn.Linear(32, 10))


def group_norm():
    return Net(lambda s, x: s.fc(pooled(s.n(s.a(x)))), a=conv(3, 16), n=nn.GroupNorm(4, 16), fc=nn.Linear(16, 10))


def shuffled():
    return Net(
        lambda s, x: s.fc(pooled(s.p(s.c(s.a(x))))),
        a=conv(3, 16),
        c=conv(16, 12),
        p=nn.PixelShuffle(2),
        fc=nn.Linear(3, 10),
    )


def heads():
    def run(s, x):
        return s.o(s.q(x).view(2, 6, 4, 8).transpose(1, 2).softmax(-1).transpose(1, 2).reshape(2, 6, 32))

    return Net(run, q=nn.Linear(32, 32), o=nn.Linear(32, 10))


def chunked():
    def run(s, x):
        one, other = s.a(x).chunk(2, 1)
        return s.fc(pooled(torch.cat([s.c(one), other], 1)))

    return Net(run, a=conv(3, 32), c=conv(16, 16), fc=nn.Linear(32, 10))


def whole_norm():
    return Net(lambda s, x: s.fc(pooled(s.n(s.a(x)))), a=conv(3, 16), n=nn.LayerNorm([16, 8, 8]), fc=nn.Linear(16, 10))


def by_number():
    """It reads the first eight channels by their number: without channel 1 they would be others, and it would run."""
    return Net(lambda s, x: s.fc(pooled(s.a(x)[:, :8])), a=conv(3, 16), fc=nn.Linear(8, 10))


IMAGE = (2, 3, 8, 8)


@pytest.mark.parametrize(
    "make, name, shape",
    [
        (grouped, "g", IMAGE),
        (grouped, "a", IMAGE),
        (group_norm, "a", IMAGE),
        (shuffled, "c", IMAGE),
        (heads, "q", (2, 6, 32)),
        (chunked, "a", IMAGE),
        (whole_norm, "a", IMAGE),
        (by_number, "a", IMAGE),
    ],
)
def test_what_counts_on_the_number_of_channels_is_refused_and_named(make, name, shape):
    network, x = seeded(make), torch.randn(shape)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(BadInput, match=rf"channels \[1\] of {name} cannot go: "):
        pruning.drop_channels(network, name, [1], x)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    try:
        slim = pruning.shrink(network, macs=0.7, round_to=4, example=x)
    except BadInput as error:
        assert "70% of the MACs cannot be reached" in str(error)
    else:
        assert [y.shape for y in dependencies.outputs_of(slim.model, x)] == [
            y.shape for y in dependencies.outputs_of(network, x)
        ]


def test_a_pruned_network_is_the_old_one_without_what_reads_the_channels():
    """Through a residual sum and a concatenation, in values."""

    def run(s, x):
        x = F.relu(s.n(s.a(x)))
        x = F.relu(s.b(x) + x)
        return s.fc(pooled(torch.cat([s.c(x), x], 1)))

    network = seeded(
        lambda: Net(run, a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 8), c=conv(8, 4), fc=nn.Linear(12, 5))
    )
    x = torch.randn(3, 3, 4, 4)
    nn.init.uniform_(network.n.bias, 0.5, 1)
    thin = pruning.drop_channels(network, "a", [2, 5], x)
    masked = dependencies.traceable(network)
    with torch.no_grad():
        masked.b.weight[:, [2, 5]] = 0
        masked.c.weight[:, [2, 5]] = 0
        masked.fc.weight[:, [6, 9]] = 0
        torch.testing.assert_close(thin(x), masked(x), rtol=1e-4, atol=1e-4)
    assert (thin.a.out_channels, thin.b.in_channels, thin.b.out_channels, thin.fc.in_features) == (6, 6, 6, 10)


def test_the_twin_notices_other_channels():
    network, x = seeded(head_first), torch.randn(2, 3, 8, 8)
    thin = dependencies.traceable(network)
    twin = dependencies.Twin(network)
    twin.follow(thin, dependencies.group_of(thin, "a", [3], x))
    dependencies.group_of(thin, "a", [4], x).prune()
    assert "would read other channels" in twin.complaint(thin, x)


# --- MACs -------------------------------------------------------------------------------------------------------


def attention(q):
    return F.scaled_dot_product_attention(q, q, q)


SMALL = torch.randn(3, 4, 5, 5)


@pytest.mark.parametrize(
    "network, example, macs",
    [
        (conv(4, 8, groups=4), SMALL, 25 * 8 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), SMALL, 25 * 4 * 6 * 9),
        (nn.Conv1d(4, 8, 3), SMALL[..., 0], 3 * 8 * 12),
        (nn.Conv3d(2, 3, 2), torch.randn(2, 2, 3, 3, 3), 8 * 3 * 2 * 8),
        (nn.Linear(5, 7), SMALL, 4 * 5 * 5 * 7),
        (Net(lambda s, x: x @ x.transpose(-1, -2)), SMALL, 4 * 5 * 5 * 5),
        (Net(lambda s, x: torch.einsum("bik,bjk->bij", x, x)), SMALL[..., 0], 4 * 4 * 5),
        (Net(lambda s, x: x @ torch.ones(5)), SMALL[:, 0], 5 * 5),
        (Net(lambda s, x: attention(x)), torch.randn(2, 4, 10, 8), 2 * 4 * 10 * 10 * 8),
        (Net(lambda s, x: s.a(s.a(x)), a=nn.Linear(5, 5)), SMALL, 2 * 20 * 25),
        (nn.GRUCell(4, 5), torch.randn(2, 4), 3 * 5 * 9),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            torch.randn(3, 6, 8),
            6 * 8 * 32 + 2 * 6 * 6 * 8 + 2 * 6 * 8 * 16,
        ),
    ],
)
def test_macs_of_every_kind_of_product(network, example, macs):
    network = network.train()
    for context in (torch.enable_grad(), torch.inference_mode()):
        with context:
            cost = pruning.cost(network, example)
        assert cost.macs == macs and network.training
        assert sum(cost.layers.values()) in (macs, 0), "products of the network itself belong to no layer"
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_hand_count_of_one_layer_is_pytorchs():
    layer = conv(4, 8, 3, stride=2)
    out = layer(SMALL)
    assert pruning.cost(Net(lambda s, x: s.a(x), a=layer), SMALL).layers == {
        "a": out[0].numel() * layer.weight[0].numel()
    }


def test_what_nobody_can_count_is_refused():
    for layer, example in ((nn.LSTM(4, 5), torch.randn(2, 3, 4)), (nn.GRU(4, 5), torch.randn(2, 3, 4))):
        with pytest.raises(BadInput, match=r"the products of r .* run inside one kernel"):
            pruning.cost(Net(lambda s, x: s.r(x)[0], r=layer), example)
    with pytest.raises(BadInput, match="the products of the network .Bilinear."):
        pruning.cost(nn.Bilinear(3, 4, 5), (torch.randn(2, 3), torch.randn(2, 4)))
    for example in (torch.randn(()), torch.randn(0, 4), 3):
        with pytest.raises(BadInput, match=r"wanted is a tensor \(N, …\) of one item or more"):
            pruning.cost(nn.Linear(4, 4), example)


COMPUTED = {  # what computes a weight at each call → (that, what takes it off)
    "parametrized": (parametrizations.weight_norm, "torch.nn.utils.parametrize.remove_parametrizations(a, 'weight')"),
    "spectral": (parametrizations.spectral_norm, "torch.nn.utils.parametrize.remove_parametrizations(a, 'weight')"),
    "by a hook": (lambda layer: nn.utils.weight_norm(layer), "torch.nn.utils.remove_weight_norm(a)"),
    "by power iteration": (lambda layer: nn.utils.spectral_norm(layer), "torch.nn.utils.remove_spectral_norm(a)"),
    "a mask": (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), "torch.nn.utils.prune.remove(a, 'weight')"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_is_computed_anew_is_named_with_what_takes_it_off(kind):
    wrap, remover = COMPUTED[kind]

    def network(*wrapped):
        layers = {"a": conv(3, 16), "b": nn.BatchNorm2d(16), "c": conv(16, 16), "d": nn.Linear(16, 4)}
        layers |= {name: wrap(layers[name]) for name in wrapped}
        return Net(lambda s, x: s.d(torch.relu(s.c(torch.relu(s.b(s.a(x))))).mean((2, 3))), **layers)

    said = "the weight of a is computed anew at each call"
    fresh = network("a")
    with pytest.raises(BadInput, match=re.escape(said) + ".*" + re.escape(remover)):
        pruning.magnitude(fresh, 0.5, layers=["a", "c"])  # its zeros would be gone at the next call
    assert pruning.magnitude(network("a"), 0.5, layers=["c"]).sparsity == 0.5
    with pytest.raises(BadInput, match="cannot go: " + re.escape(said) + ".*" + re.escape(remover)):
        pruning.drop_channels(network("a"), "a", [0, 1], SMALL[:, :3])
    with pytest.raises(BadInput, match=r"50% of the MACs.*of a \(and 1 more\) is computed anew.*" + re.escape(remover)):
        pruning.shrink(network("a", "c"), example=SMALL[:, :3])
    used = network("a").eval()
    answer, weight = used(SMALL[:, :3]), used.a.weight  # the old kinds now hold a weight with a graph of gradients
    assert pruning.magnitude(used, 0.5, layers=["c"]).sparsity == 0.5
    assert torch.equal(used(SMALL[:, :3]), answer) and (kind in ("parametrized", "spectral") or weight.grad_fn)
    for slim in (pruning.drop_channels(network(), "c", [0, 1], SMALL[:, :3]), network()):
        assert slim(SMALL[:, :3]).shape == (len(SMALL), 4)
    assert not masks.recomputed(network())


def test_layers_of_other_kinds_are_named_as_what_they_are():
    lines = Net(lambda s, x: s.f(s.a(x).mean(2)), a=nn.Conv1d(3, 8, 3), f=nn.Linear(8, 4))
    with pytest.raises(
        BadInput, match="Net has 'a' as a Conv1d, and a Conv2d or Linear is wanted; it has f and 0 more"
    ):
        pruning.drop_channels(lines, "a", [0], torch.randn(2, 3, 9))
    heads = Net(lambda s, x: s.m(x, x, x)[0], m=nn.MultiheadAttention(8, 2, batch_first=True))
    with pytest.raises(
        BadInput, match="torch-pruning cannot follow the channels of m.out_proj .*not in the dependency"
    ):
        pruning.coupled(heads, "m.out_proj", torch.randn(2, 5, 8))
    broken = Net(lambda s, x: s.f(torch.relu(s.a(x)).mean((2, 3))), a=conv(4, 16), f=nn.Linear(16, 4))
    with torch.no_grad():
        broken.a.weight[3, 0, 0, 0] = float("nan")
    for call in (lambda: pruning.drop_channels(broken, "a", [0], SMALL), lambda: pruning.shrink(broken, example=SMALL)):
        with pytest.raises(BadInput, match="the network answers NaN or infinity"):
            call()


def test_what_loses_inputs_twice_is_followed_by_the_numbers_of_now():
    joined = Net(
        lambda s, x: s.f(torch.relu(s.c(torch.cat([s.a(x), s.b(x)], 1))).mean((2, 3))),
        a=conv(4, 16),
        b=conv(4, 16),
        c=conv(32, 8),
        f=nn.Linear(8, 4),
    )
    thin = dependencies.traceable(joined)
    twin = dependencies.Twin(thin)
    for name in ("a", "b"):
        group = dependencies.group_of(thin, name, [0, 1], SMALL)
        twin.follow(thin, group)
        group.prune()
    assert thin.c.in_channels == 28 and twin.kept["c"] == [*range(2, 16), *range(18, 32)]
    assert twin.complaint(thin, SMALL) == ""
