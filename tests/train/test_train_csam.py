"""C-SAM-style masks: the mask, its perturbation and what is left; whole runs of these and of their rivals, and that they resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from train_kit import MUTATIONS, same_after_ctrl_c, sample

from cactus_edge.errors import InputError, InternalError
from cactus_edge.recipe import Recipe
from cactus_edge.semantics import transforms
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import fold_batch
from cactus_edge.train.loop import train
from cactus_edge.train.methods import csam
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.loss import Member, Step
from cactus_edge.train.objectives.semantic import semantic
from cactus_edge.train.sparsity import Sparsity
from cactus_edge.train.updates import optimiser

Make = Callable[..., Network]
HALF = Sparsity(None, 0.5)


def test_the_soft_mask_begins_at_the_formula() -> None:
    weight = torch.randn((6, 5, 3, 3), generator=torch.Generator().manual_seed(0))
    found = csam.initial(weight)
    size = np.abs(weight.numpy())
    level = np.percentile(size, 90)
    assert np.allclose(found.numpy(), np.clip(size / level, 0, 1), atol=1e-6)
    assert float((found == 1).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert not np.allclose(found.numpy(), np.clip(size / size.max(), 0, 1), atol=1e-2), "another percentile is seen"
    assert torch.equal(csam.initial(torch.zeros(4)), torch.zeros(4))


@pytest.mark.parametrize("count", [1, 2, 10, 1001])
def test_a_percentile_is_torchs_where_torch_has_one(count: int) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    assert torch.allclose(csam.percentile(values, 0.9), torch.quantile(values, 0.9), rtol=1e-6)


def test_a_percentile_of_more_values_than_torch_takes() -> None:
    values = torch.zeros(2**24 + 1)
    values[0] = 1
    assert csam.percentile(values, 0.9) == 0 and csam.percentile(values, 1.0) == 1


def check_radius(perturb: Callable[..., tuple[Tensor, ...]], rho: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = [torch.full(shape, 0.5, requires_grad=True) for shape in ((4, 3), (7,))]
    gradients = [torch.randn(m.shape, generator=generator) for m in mask]
    found = perturb(mask, gradients, rho)
    apart = torch.cat([(a - b).detach().flatten() for a, b in zip(found, mask, strict=True)])
    slope = torch.cat([g.flatten() for g in gradients])
    assert float(apart.norm()) == pytest.approx(rho, rel=1e-4)
    assert torch.allclose(apart / apart.norm(), slope / slope.norm(), atol=1e-5)


def test_the_masks_perturbation_has_length_rho() -> None:
    check_radius(csam.perturbed, 0.3)
    (clipped_,) = csam.perturbed([torch.tensor([0.9, 0.1])], [torch.tensor([1.0, -1.0])], 2.0)
    assert clipped_.tolist() == [1.0, 0.0]


def test_a_perturbation_of_each_layer_by_itself_is_seen() -> None:
    def apart(mask: list[Tensor], gradients: list[Tensor], rho: float) -> tuple[Tensor, ...]:
        return tuple(csam.perturbed([m], [g], rho)[0] for m, g in zip(mask, gradients, strict=True))

    with pytest.raises(AssertionError):
        check_radius(apart, 0.3)


def test_the_perturbation_hands_gradients_on_where_nothing_is_clipped() -> None:
    mask = torch.tensor([0.9, 0.5, 0.1], requires_grad=True)
    (found,) = csam.perturbed([mask], [torch.tensor([1.0, 0.1, -1.0])], 1.0)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert mask.grad is not None and mask.grad.tolist() == [0, 1, 0]


def masked(network: Network) -> csam.MaskedWeights:
    return csam.MaskedWeights(network.layers(), HALF)


def test_a_network_begins_with_the_soft_mask_and_keeps_it_in_range(make_network: Make) -> None:
    network = make_network(3)
    made = masked(network)
    for layer, mask in zip(network.layers(), made.mask(), strict=True):
        assert torch.allclose(mask, csam.initial(layer.weight), atol=1e-6)
    with torch.no_grad():
        made.parts()[0].add_(1.0)
        made.parts()[1].sub_(1.0)
    csam.CSAM[1].projection(made)
    one, two, *_ = (mask.detach() for mask in made.mask())
    assert float(one.min()) == 1 and float(two.max()) == 0


def test_a_step_trains_the_mask_and_leaves_it_unperturbed(make_network: Make, half: Recipe) -> None:
    network = masked(make_network(3))
    before = {name: t.clone() for name, t in network.state_dict().items()}
    terms = csam.sharp_mask(half)(network, sample(), Step(1.0, 0.0, 0.5))
    terms.loss.backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    learned = [*network.parts(), *(layer.weight for layer in Network.layers(network))]
    assert len(learned) == 8 and all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in learned)


def test_a_mask_moves_in_steps_of_its_own_beside_the_weights(make_network: Make, half: Recipe) -> None:
    network = masked(make_network(3))
    before = [t.detach().clone() for t in (*network.mask(), *(layer.weight for layer in Network.layers(network)))]
    adam = optimiser(network, half.train)
    csam.sharp_mask(half)(network, sample(), Step(1.0, 0.0, 0.5)).loss.backward()  # type: ignore[no-untyped-call]
    rate = csam.CSAM[1].schedule(half).learning_rate
    assert rate == half.compress.learning_rate
    for group in adam.param_groups:
        group["lr"] = rate
    adam.step()
    after = (*network.mask(), *(layer.weight for layer in Network.layers(network)))
    far = [float((a - b).abs().max().detach()) for a, b in zip(after, before, strict=True)]
    assert far[:4] == pytest.approx([csam.FAST * rate] * 4, rel=1e-3) and far[4:] == pytest.approx([rate] * 4, rel=1e-3)


def test_the_objective_is_that_of_the_perturbed_mask(
    make_network: Make, half: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch, step = masked(make_network(3)), sample(), Step(1.0, 0.0, 0.5)
    values = []
    for rho in (0.0, 0.1):
        monkeypatch.setattr(csam, "RHO", rho)
        values.append(float(csam.sharp_mask(half)(network, batch, step).loss.detach()))
    loss = csam.with_margin(semantic(transforms(MUTATIONS)))
    clean = fold_batch(network.layers(), batch.x)
    here = loss.of(Member(clean.net, clean.logits), loss.aim(clean.net, batch, step), step).loss
    rest = csam.CONSISTENCY * csam.consistency(clean.logits.softmax(1), network, batch.x)
    rest = rest + csam.PENALTY * torch.cat([m.flatten() for m in network.mask()]).mean()
    assert values[0] == pytest.approx(float((here + rest).detach()), rel=1e-5) and values[1] > values[0]


def test_a_hard_mask_is_consistent(make_network: Make) -> None:
    network, x = masked(make_network(4)), sample().x

    def found() -> float:
        p = fold_batch(network.layers(), x).logits.softmax(1)
        return float(csam.consistency(p, network, x).detach())

    assert found() > 1e-3
    with torch.no_grad():
        for part, hard in zip(network.parts(), network.hard(network.mask()), strict=True):
            part.copy_(hard / csam.FAST)
    assert found() == 0
    assert sum(int(m.sum()) for m in network.mask()) == sum(m.numel() for m in network.mask()) // 2


@pytest.mark.parametrize("network_seed", range(2))
def test_what_is_left_is_what_the_hard_mask_says(make_network: Make, network_seed: int) -> None:
    network, x = make_network(network_seed), sample().x
    for made in (masked(network), csam.MaskedChannels(network.layers(), (3, 2, 5))):
        kept = tuple(m * h for m, h in zip(made.mask(), made.hard(made.mask()), strict=True))
        left = fold_batch(made.under(kept), x).logits
        assert torch.allclose(left, fold_batch(made.chosen().layers(), x).logits, atol=1e-4)
        assert not torch.allclose(left, fold_batch(made.under(made.hard(made.mask())), x).logits, atol=1e-4)
    assert csam.MaskedChannels(network.layers(), (3, 2, 5)).chosen().widths() == (3, 2, 5)


def test_the_margin_term() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    assert float(csam.margin_term(p, p)) == 0
    moved = torch.tensor([[0.3, 0.6, 0.1], [0.4, 0.35, 0.25]])
    expected = (0.4 / (0.25 + csam.FLOOR) - csam.KAPPA) / 2
    assert float(csam.margin_term(p, moved)) == pytest.approx(expected, rel=1e-5)


def test_a_network_without_a_mask_is_refused(make_network: Make, half: Recipe) -> None:
    with pytest.raises(InternalError, match="has none"):
        csam.sharp_mask(half)(make_network(0), sample(), Step(1.0, 0.0, 0.5))


# Whole runs.


@pytest.mark.parametrize("method", ["sam", "cram", "flying-bird", "csam", "hydra-weights"])
def test_half_of_the_weights_are_left(half: Recipe, few_digits: Dataset, tmp_path: Path, method: str) -> None:
    made = train(half, few_digits, tmp_path, method=method)
    weights = torch.cat([layer.weight.flatten() for layer in made.network.layers()])
    assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert len(made.history) == half.train.epochs + half.compress.finetune_epochs


def test_channels_are_left_as_the_recipe_keeps_them(half: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    recipe = replace(half, compress=replace(half.compress, sparsity="none", keep=0.5))
    made = train(recipe, few_digits, tmp_path, method="csam-channels")
    assert made.widths_after == (3, 5)


@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize("method", ["sam", "cram", "flying-bird", "csam"])
def test_an_interrupted_run_goes_on_with_the_same_bits(
    half: Recipe, few_digits: Dataset, tmp_path: Path, method: str, after: int
) -> None:
    same_after_ctrl_c(half, few_digits, tmp_path, method, after)


def test_masks_that_cannot_be_are_refused(half: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    none = replace(half, compress=replace(half.compress, sparsity="none"))
    with pytest.raises(InputError, match=r"\[compress\] has no sparsity"):
        train(none, few_digits, tmp_path, method="csam")
    with pytest.raises(InputError, match="flying-bird lets a share of the weights go"):
        train(none, few_digits, tmp_path, method="flying-bird")


def test_csam_takes_a_pattern_too(half: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    made = train(replace(half, compress=replace(half.compress, sparsity="2:4")), few_digits, tmp_path, method="csam")
    rows = made.network.layers()[-1].weight.flatten(1)
    assert rows.shape[1] % 4 or int((rows.view(-1, 4) != 0).sum(1).max()) <= 2
