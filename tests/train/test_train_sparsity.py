"""Which weights go, that they stay away, and that the rest learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cactus_edge.train.folded import fold, fold_batch, forward
from cactus_edge.train.models import Layer, Network
from cactus_edge.train.sparsity import Masks, Sparsity, apply, fits, held, masks, present, sparse, sparsified, still

Make = Callable[..., Network]

ROWS = [Sparsity((2, 4)), Sparsity((1, 4)), Sparsity((1, 2))]
SHARES = [Sparsity(None, share, by_layer) for share in (0.3, 0.9) for by_layer in (False, True)]


def label(sparsity: Sparsity) -> str:
    if sparsity.n_of_m:
        return "{}-of-{}".format(*sparsity.n_of_m)
    return f"{sparsity.share:g}-{'layer' if sparsity.by_layer else 'global'}"


@pytest.fixture
def network(make_network: Make) -> Network:
    """Input channels 2, 8, 4; the dense layers read 4 x 3 x 2 = 24 and 8 numbers."""
    return make_network(3, widths=(8, 4, 8))


def rows(layer: Layer, values: Tensor, m: int) -> Tensor:
    """[groups, m], written out: TensorRT's loop over output channels, taps and packed input channels."""
    found = []
    for k in range(values.shape[0]):
        if layer.dense:
            flat = values[k].reshape(-1)
            found += [flat[i : i + m] for i in range(0, len(flat), m)]
            continue
        for r in range(values.shape[2]):
            for s in range(values.shape[3]):
                found += [values[k, c : c + m, r, s] for c in range(0, values.shape[1], m)]
    return torch.stack(found)


def holds(network: Network, kept: Masks, sparsity: Sparsity) -> bool:
    """Whether at most n of each m weights stay, and these are the largest, in every layer that fits."""
    assert sparsity.n_of_m is not None
    n, m = sparsity.n_of_m
    for layer, mask in zip(network.layers(), kept, strict=True):
        if not fits(layer, m):
            if not bool(mask.all()):
                return False
            continue
        weight, stays = rows(layer, layer.weight.detach().abs(), m), rows(layer, mask, m)
        least = weight.masked_fill(~stays, torch.inf).amin(1)
        most = weight.masked_fill(stays, -1).amax(1)
        if not (bool((stays.sum(1) == n).all()) and bool((least >= most).all())):
            return False
    return True


@pytest.mark.parametrize("sparsity", ROWS, ids=label)
def test_each_row_keeps_its_largest(network: Network, sparsity: Sparsity) -> None:
    assert holds(network, masks(network.layers(), sparsity), sparsity)


def test_a_row_along_another_axis_is_caught(network: Network) -> None:
    """The planted fault: groups of four along the output channels."""
    layers = network.layers()
    turned = tuple(replace(layer, weight=layer.weight.transpose(0, 1)) for layer in layers)
    wrong = tuple(mask.transpose(0, 1) for mask in masks(turned, Sparsity((2, 4))))
    assert not holds(network, wrong, Sparsity((2, 4)))


def test_a_layer_that_does_not_fit_stays_whole(network: Network) -> None:
    kept = masks(network.layers(), Sparsity((2, 4)))
    assert [fits(layer, 4) for layer in network.layers()] == [False, True, True, True]
    assert bool(kept[0].all()) and not bool(kept[1].all())


@pytest.mark.parametrize("sparsity", SHARES, ids=label)
def test_the_smallest_go(network: Network, sparsity: Sparsity) -> None:
    weights = [layer.weight.detach().abs().flatten() for layer in network.layers()]
    kept = [mask.flatten() for mask in masks(network.layers(), sparsity)]
    groups = list(zip(weights, kept, strict=True)) if sparsity.by_layer else [(torch.cat(weights), torch.cat(kept))]
    for weight, mask in groups:
        assert int((~mask).sum()) == round(sparsity.share * len(mask))
        assert float(weight[mask].min()) > float(weight[~mask].max())


@pytest.mark.parametrize("sparsity", [ROWS[0], SHARES[0], SHARES[1]], ids=label)
def test_of_equal_weights_the_first_stay(network: Network, sparsity: Sparsity) -> None:
    with torch.no_grad():
        for layer in network.layers():
            layer.weight.copy_(layer.weight.sign())
    kept = masks(network.layers(), sparsity)
    again = masks(network.layers(), sparsity)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    if sparsity.n_of_m:
        stays = rows(network.layers()[1], kept[1], 4)
        assert bool((stays == torch.tensor([True, True, False, False])).all())
    elif sparsity.by_layer:
        flat = kept[2].flatten().tolist()
        assert flat == sorted(flat, reverse=True)


def test_everything_may_go(network: Network) -> None:
    kept = masks(network.layers(), Sparsity(None, 1 - 1e-9))
    assert not any(bool(mask.any()) for mask in kept)


@pytest.mark.parametrize("through", [False, True], ids=["kept", "straight-through"])
def test_gradients_reach_what_they_should(network: Network, through: bool) -> None:
    sparsity = Sparsity((2, 4), straight_through=through)
    kept = masks(network.layers(), sparsity)
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    made = sparse(network.layers(), sparsity)
    assert all(torch.equal(a.weight != 0, mask) for a, mask in zip(made, kept, strict=True))
    fold_batch(made, x).logits.square().sum().backward()  # type: ignore[no-untyped-call]
    outside = [layer.weight.grad[~mask].abs().sum() for layer, mask in zip(network.layers(), kept, strict=True)]  # type: ignore[index]
    assert bool(torch.stack(outside).sum() > 0) == through


@pytest.mark.parametrize("sparsity", [*ROWS[:1], *SHARES[:2]], ids=label)
def test_zeros_survive_an_optimiser_that_moves_them(network: Network, sparsity: Sparsity) -> None:
    network = sparsified(network, sparsity)
    kept, before = present(network.layers()), network.layers()[2].weight.detach().clone()
    project, optimizer = held(network), torch.optim.Adam(network.parameters(), 0.01)
    x = torch.rand((16, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    moved = False
    for _ in range(5):
        optimizer.zero_grad()
        fold_batch(network.layers(), x).logits.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        moved |= not all(
            bool((layer.weight[~mask] == 0).all()) for layer, mask in zip(network.layers(), kept, strict=True)
        )
        project(network)
        for layer, mask in zip(network.layers(), kept, strict=True):
            assert bool((layer.weight[~mask] == 0).all())
    assert moved, "the optimiser left the zeros alone: the projection was not tested"
    assert not torch.equal(before, network.layers()[2].weight)


def test_fine_tuning_has_no_gradient_at_zeros(network: Network) -> None:
    network = sparsified(network, Sparsity((2, 4)))
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    kept = present(network.layers())
    fold_batch(still(network.layers()), x).logits.square().sum().backward()  # type: ignore[no-untyped-call]
    for layer, mask in zip(network.layers(), kept, strict=True):
        assert layer.weight.grad is not None
        assert not bool(layer.weight.grad[~mask].any()) and bool(layer.weight.grad[mask].any())


def test_the_sparse_network_is_the_masked_one(network: Network) -> None:
    kept = masks(network.layers(), Sparsity((2, 4)))
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    made = sparsified(network, Sparsity((2, 4)))
    assert torch.equal(forward(fold(made.layers()), x), forward(fold(apply(network.layers(), kept)), x))
    again = masks(made.layers(), Sparsity((2, 4)))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
