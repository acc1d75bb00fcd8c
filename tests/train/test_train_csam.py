"""C-SAM-style masks, SAM, CrAM and Flying Bird: what each promises of one step, what is left, and that runs resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from train_kit import same_after_ctrl_c

from cactus_edge.errors import DataError, InputError, InternalError
from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.semantics import Semantic, transforms
from cactus_edge.train.bounds import ball
from cactus_edge.train.data import Dataset, load_dataset
from cactus_edge.train.folded import fold_batch, forward
from cactus_edge.train.loop import train
from cactus_edge.train.methods import cram, csam, flying_bird
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.loss import Batch, Member, Step
from cactus_edge.train.objectives.semantic import mutated, semantic
from cactus_edge.train.sparsity import Sparsity, masks
from cactus_edge.train.stages import full_layers
from cactus_edge.train.updates import Update, clipped, optimiser, sharp

Make = Callable[..., Network]
ALL = "brightness=0.2,contrast=0.2,rotation=10,translation=2,blur=1"
HALF = Sparsity(None, 0.5)
UNIT = (0.0, 1.0)


def sample(count: int = 12) -> Batch:
    x = torch.rand((count, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.arange(count) % 4, ball(x, 0.0, None), seed=5)


@pytest.fixture(scope="module")
def half(tiny: Recipe) -> Recipe:
    """Half of the weights go; the samples are mutated."""
    train_ = replace(tiny.train, epochs=2, ramp_epochs=0, warmup_epochs=0, members=("full",))
    train_ = replace(train_, objective="semantic", mutations=ALL, robust_weight=0.5)
    compress = replace(tiny.compress, finetune_epochs=3, sparsity=0.5, learning_rate=0.01)
    layers = tuple(replace(layer, kept=0) for layer in tiny.model.layer)
    return replace(tiny, model=replace(tiny.model, layer=layers), train=train_, compress=compress)


# Mutations.


@pytest.mark.parametrize("name", ["brightness=0.3", "rotation=20", "translation=2", "blur=1.5", "contrast+blur"])
def test_training_mutates_by_the_judges_definition(name: str) -> None:
    (transform,) = transforms(name)
    x = sample().x
    rng = np.random.default_rng(3)
    rng.integers(1, size=len(x))
    expected = transform.changed(x.permute(0, 2, 3, 1).double().numpy(), UNIT, rng)
    found = mutated(x, (transform,), UNIT, 3)
    assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2).float())
    one = transform.draw(x[0].permute(1, 2, 0).double().numpy(), 4, UNIT, np.random.default_rng(1))
    rows = np.repeat(x[:1].permute(0, 2, 3, 1).double().numpy(), 4, 0)
    assert np.array_equal(one, transform.changed(rows, UNIT, np.random.default_rng(1)))


def test_every_sample_gets_one_of_the_transforms() -> None:
    x = torch.full((400, 1, 3, 3), 0.5)
    dark, bright = Semantic((("brightness", 0.1),)), Semantic((("brightness", 0.5),))
    found = (mutated(x, (dark, bright), (0.0, 1.0), 0) - 0.5).abs().amax((1, 2, 3))
    assert 0.2 < float((found > 0.1).float().mean()) < 0.6 and float(found.max()) <= 0.5
    assert not torch.equal(mutated(x, (bright,), UNIT, 0), mutated(x, (bright,), UNIT, 1))
    assert float(mutated(x, (bright,), (0.4, 0.6), 0).max()) <= 0.6 + 1e-6


def test_the_objective_weighs_samples_and_mutations(make_network: Make) -> None:
    net, batch = fold_batch(make_network(0).layers(), sample().x).net, sample()
    loss, member, step = semantic(transforms(ALL)), Member(net), Step(1.0, 0.0, 0.25)
    aimed = loss.aim(net, batch, step)
    assert aimed.points is not None and torch.equal(aimed.points, mutated(batch.x, transforms(ALL), UNIT, 5))
    clean, moved = (F.cross_entropy(forward(net, x), batch.y) for x in (batch.x, aimed.points))
    assert torch.allclose(loss.of(member, aimed, step).loss, 0.75 * clean + 0.25 * moved)
    assert torch.equal(loss.of(member, batch, Step(1.0, 0.0, 0.0)).loss, clean)


def test_the_points_of_a_batch_are_drawn_once(make_network: Make) -> None:
    net, one, step = fold_batch(make_network(0).layers(), sample().x).net, sample(), Step(1.0, 0.0, 0.5)
    loss = semantic(transforms(ALL))
    points = [loss.aim(net, batch, step).points for batch in (one, replace(one, points=one.x))]
    assert points[0] is points[1] is not None
    for other in (replace(one, seed=6), replace(one, x=1 - one.x)):
        found = loss.aim(net, other, step).points
        assert found is not None and torch.equal(found, mutated(other.x, transforms(ALL), UNIT, other.seed))


# SAM.


def quadratic(update: Update, scale: Tensor, start: Tensor) -> Tensor:
    """Where one step of gradient descent with rate 1 on sum a w^2 / 2 ends."""
    p = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([p], 1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (scale * p * p).sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    assert float(update(closure, optimizer)) == pytest.approx(float((scale * start * start).sum() / 2))
    return p.detach()


def check_sharp(update: Update) -> None:
    scale, start, rho = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([3.0, 1.0, 2.0]), 0.1
    slope = scale * start
    worst = start + rho * slope / slope.norm()
    assert torch.allclose(quadratic(update, scale, start), start - scale * worst)


def test_sams_step_is_along_the_gradient_at_the_worst_point() -> None:
    check_sharp(sharp(0.0, 0.1))


@pytest.mark.parametrize("update", [clipped(0.0), sharp(0.0, 0.2)], ids=["plain", "another radius"])
def test_another_step_is_seen(update: Update) -> None:
    with pytest.raises(AssertionError):
        check_sharp(update)


def test_sam_limits_its_gradient_and_stands_where_there_is_none() -> None:
    scale, start = torch.ones(2), torch.tensor([3.0, 4.0])
    assert torch.allclose(quadratic(sharp(1.0, 0.05), scale, start), start - start / 5)
    assert torch.equal(quadratic(sharp(0.0, 0.1), scale, torch.zeros(2)), torch.zeros(2))


# CrAM.


def test_crams_mask_is_global_by_the_weights_after_the_step_up(make_network: Make) -> None:
    layers = make_network(1).layers()
    gradients = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in cram.learned(layers)]
    found = cram.compressed(layers, gradients, 0.1, 0.7)
    given = iter(gradients)
    moved = []
    for layer in layers:
        moved.append(replace(layer, weight=layer.weight.detach() + 0.1 * next(given)))
        if layer.norm is None:
            next(given)
        else:
            next(given), next(given)
    kept = masks(tuple(moved), Sparsity(None, 0.7))
    size = sum(m.numel() for m in kept)
    assert sum(int(m.sum()) for m in kept) == size - round(0.7 * size)
    shares = {float(m.float().mean()) for m in kept}
    assert len(shares) == len(kept), "global: layers keep different shares"
    for a, b, m in zip(found, moved, kept, strict=True):
        assert torch.equal(a.weight.detach(), b.weight * m)
    sum((a.weight.sum() for a in found), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    for layer, m in zip(layers, kept, strict=True):
        assert torch.equal(layer.weight.grad, m.float()), "the gradient counts for what stays"


def test_crams_share_is_drawn_by_the_batch() -> None:
    counts = [sum(cram.drawn(seed) == share for seed in range(600)) for share in cram.SHARES]
    assert sum(counts) == 600 and min(counts) > 150 and cram.drawn(7) == cram.drawn(7)


def test_cram_adds_the_pruned_networks_gradient(make_network: Make, half: Recipe) -> None:
    network, batch, step = make_network(2), sample(), Step(1.0, 0.0, 0.5)
    objective = cram.plus(half)
    total = objective(network, batch, step)
    alone = full_layers(half)(network.layers(), network.kept_widths(), batch, step)
    assert total.correct == alone.correct and float(total.loss.detach()) > float(alone.loss.detach())


# Flying Bird.


def test_what_dies_is_small_and_what_grows_is_steep() -> None:
    mask = torch.tensor([True, True, True, True, False, False, False])
    weight = torch.tensor([4.0, -1.0, 3.0, 2.0, 0.0, 0.0, 0.0])
    gradient = torch.tensor([9.0, 0.1, 9.0, 5.0, 1.0, -7.0, 2.0])
    found = flying_bird.exchanged(mask, weight, gradient, 0.5)
    assert found.tolist() == [True, False, True, True, False, True, False], "weight 3 died and grew again"


def check_density(exchange: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, generator=generator) < 0.3
    count = int(mask.sum())
    for _ in range(30):
        mask = exchange(mask, torch.randn(40, generator=generator), torch.randn(40, generator=generator), 0.5)
        assert int(mask.sum()) == count


def test_the_density_never_changes() -> None:
    check_density(flying_bird.exchanged)


def test_a_mask_that_loses_weights_is_seen() -> None:
    with pytest.raises(AssertionError):
        check_density(lambda mask, weight, slope, share: mask & (weight.abs() > 0.1))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.95, 1.0])
def test_erdos_renyi_kernels_fill_the_density(density: float) -> None:
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (10, 32, 1, 1)]
    sizes = [math.prod(s) for s in shapes]
    found = flying_bird.erdos_renyi(shapes, density)
    assert sum(found) == round(density * sum(sizes))
    shares = [n / size for n, size in zip(found, sizes, strict=True)]
    assert all(0 <= share <= 1 for share in shares) and shares[1] == min(shares)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_flying_bird_is_sparse_at_every_step(
    half: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    seen: list[list[int]] = []
    patterns: set[bytes] = set()
    honest = flying_bird.Dynamic.hold

    def watching(network: flying_bird.Dynamic) -> None:
        honest(network)
        seen.append([int((layer.weight != 0).sum()) for layer in network.layers()])
        patterns.add(torch.cat([m.flatten() for m in network.masks()]).numpy().tobytes())

    monkeypatch.setattr(flying_bird.Dynamic, "hold", watching)
    recipe = replace(half, compress=replace(half.compress, sparsity_scope=scope))
    made = train(recipe, few_digits, tmp_path, method="flying-bird")
    total = sum(layer.weight.numel() for layer in made.network.layers())
    kept = [int((layer.weight != 0).sum()) for layer in made.network.layers()]
    assert sum(kept) == pytest.approx(total / 2, abs=2)
    assert all(a <= b for row in seen for a, b in zip(row, seen[0], strict=True)) and seen[0] == pytest.approx(
        kept, abs=2
    )
    assert len(patterns) > 5, "the mask moves"


# C-SAM-style.


def test_the_soft_mask_begins_at_the_formula() -> None:
    weight = torch.randn((6, 5, 3, 3), generator=torch.Generator().manual_seed(0))
    found = csam.initial(weight)
    size = np.abs(weight.numpy())
    level = np.percentile(size, 90)
    assert np.allclose(found.numpy(), np.clip(size / level, 0, 1), atol=1e-6)
    assert float((found == 1).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert not np.allclose(found.numpy(), np.clip(size / size.max(), 0, 1), atol=1e-2), "another percentile is seen"
    assert torch.equal(csam.initial(torch.zeros(4)), torch.zeros(4))


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
    loss = csam.with_margin(semantic(transforms(ALL)))
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


# Keys.


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('objective = "semantic"', "mutations = '' with objective = 'semantic'"),
        ('mutations = "blur"', "mutations = 'blur' with objective = 'ibp'"),
        ('objective = "semantic"\nmutations = "swirl"', "'swirl' is no transform"),
        ('objective = "semantic"\nmutations = "blur=0"', "expected more than 0 and at most 64"),
        ('objective = "semantic"\nmutations = 3', "expected a non-empty string"),
    ],
    ids=["none", "unused", "unknown", "nothing", "number"],
)
def test_mutations_that_mean_nothing_are_refused(tiny_text: str, keys: str, told: str) -> None:
    with pytest.raises(InputError, match=r"mine.toml:\d+: .*") as refused:
        parse_recipe(tiny_text.replace("[train]\n", f"[train]\n{keys}\n"), "mine.toml")
    assert told in refused.value.message


def test_a_part_of_the_training_samples(tiny: Recipe) -> None:
    whole, part = (load_dataset(replace(tiny.data, train_samples=n)) for n in (0, 100))
    assert np.array_equal(part.train.x, whole.train.x[:100]) and len(part.train.y) == 100
    assert part.validation.digest() == whole.validation.digest() and part.test.digest() == whole.test.digest()
    with pytest.raises(DataError, match="leaves 1677 to train on"):
        load_dataset(replace(tiny.data, train_samples=1678))
