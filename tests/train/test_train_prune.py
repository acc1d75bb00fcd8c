"""Removing channels equals zeroing them, in convolutions and dense layers alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cactus_edge.errors import InternalError
from cactus_edge.train.folded import detach, fold, fold_batch, forward
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.prune import Kept, choose, importance, shrink, take

Make = Callable[..., Network]


def _silence(network: Network, kept: Kept) -> None:
    """Zeroes what makes a dropped channel speak: gamma and beta, or weight and bias."""
    with torch.no_grad():
        for layer, rows in zip(network.layers(), kept, strict=False):
            dropped = torch.ones(layer.weight.shape[0], dtype=torch.bool)
            dropped[rows] = False
            for tensor in (layer.norm.gamma, layer.norm.beta) if layer.norm is not None else (layer.weight, layer.bias):
                tensor[dropped] = 0


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_removal_equals_masking(make_network: Make, seed: int, batch_norm: bool) -> None:
    network = make_network(seed, batch_norm=batch_norm)
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(seed))
    small, kept = shrink(network, (3, 2, 5))
    assert small.widths() == (3, 2, 5)
    _silence(network, kept)
    for a, b in (
        (forward(fold(small.layers()), x), forward(fold(network.layers()), x)),
        (fold_batch(small.layers(), x).logits, fold_batch(network.layers(), x).logits),
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_planted_fault_is_caught(make_network: Make) -> None:
    network = make_network(0)
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    kept = choose(network.layers(), (3, 2, 5))
    wrong = (kept[0], kept[1].flip(0), kept[2])
    swapped = take(network.layers(), kept)
    swapped = (swapped[0], take(network.layers(), wrong)[1], *swapped[2:])
    _silence(network, kept)
    assert not torch.allclose(forward(fold(swapped), x), forward(fold(network.layers()), x), atol=1e-3)


def test_tensors_become_smaller_everywhere(make_network: Make) -> None:
    network = make_network(2)
    small, _ = shrink(network, (3, 2, 5))
    shapes = [tuple(layer.weight.shape) for layer in small.layers()]
    assert shapes == [(3, 2, 3, 3), (2, 3, 2, 2), (5, 2, 3, 2), (4, 5, 1, 1)]
    assert small.weights() == (54, 24, 60, 20)
    for before, after in zip(network.state_dict().items(), small.state_dict().items(), strict=True):
        assert before[0] == after[0]


def test_the_most_important_stay_in_order(make_network: Make) -> None:
    layers: Layers = make_network(4).layers()
    for score, rows in zip(importance(layers), choose(layers, (3, 2, 5)), strict=True):
        assert rows.tolist() == sorted(rows.tolist())
        dropped = sorted(set(range(len(score))) - set(rows.tolist()))
        assert float(score[rows].min()) >= float(score[dropped].max())


def test_a_channel_that_nobody_reads_goes_first(make_network: Make) -> None:
    network = make_network(5)
    with torch.no_grad():
        network.layers()[1].weight[:, 2] = 0
    assert 2 not in choose(network.layers(), (4, 6, 8))[0].tolist()


def test_gradients_reach_kept_channels_only(make_network: Make) -> None:
    network = make_network(6)
    kept = choose(network.layers(), (3, 2, 5))
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    fold_batch(take(network.layers(), kept), x).logits.square().sum().backward()  # type: ignore[no-untyped-call]
    gradient = network.layers()[0].weight.grad
    assert gradient is not None
    touched = gradient.abs().sum((1, 2, 3)).nonzero().flatten().tolist()
    assert set(touched) <= set(kept[0].tolist()) and touched


def test_widths_must_cover_the_hidden_layers(make_network: Make) -> None:
    with pytest.raises(InternalError):
        choose(make_network(0).layers(), (3, 2))


@pytest.mark.parametrize("seed", range(3))
def test_folding_changes_nothing(make_network: Make, seed: int) -> None:
    network = make_network(seed)
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(seed))
    z = x
    for layer in network.layers():
        a = torch.nn.functional.conv2d(
            torch.nn.functional.pad(z, (layer.padding.left, layer.padding.right, layer.padding.top, layer.padding.bottom)),
            layer.weight, layer.bias, stride=layer.stride,
        )  # fmt: skip
        if layer.norm is not None:
            n = layer.norm
            a = torch.nn.functional.batch_norm(a, n.mean, n.var, n.gamma, n.beta, eps=1e-5)
        z = torch.relu(a) if layer.relu else a
    assert torch.allclose(forward(detach(fold(network.layers())), x), z.flatten(1), atol=1e-5)


def test_folding_with_batch_statistics_is_training_mode(make_network: Make) -> None:
    network = make_network(1)
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(1))
    clean = fold_batch(network.layers(), x)
    assert torch.allclose(forward(clean.net, x), clean.logits, atol=1e-5)
    z = clean.net[0].pre(x)
    norm = network.layers()[0].norm
    assert norm is not None
    assert torch.allclose(z.mean((0, 2, 3)), norm.beta, atol=1e-5)
