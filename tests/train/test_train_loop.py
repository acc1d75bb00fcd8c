"""Same seed, same bytes; interrupted and resumed equals uninterrupted; schedules and objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from train_kit import CtrlC, untimed

from cactus_edge.errors import InputError, InternalError
from cactus_edge.recipe import Recipe
from cactus_edge.train import loop
from cactus_edge.train.augment import moved
from cactus_edge.train.bounds import ball, propagate
from cactus_edge.train.checkpoints import run_key
from cactus_edge.train.data import Dataset
from cactus_edge.train.evaluate import float_attacked, float_certified, float_predict
from cactus_edge.train.folded import fold_batch
from cactus_edge.train.loop import EpochStats, train
from cactus_edge.train.methods import METHODS, stages
from cactus_edge.train.models import Network
from cactus_edge.train.objectives import cactus
from cactus_edge.train.objectives.ibp import IBP, warmup_regulariser
from cactus_edge.train.objectives.loss import Batch, MemberLoss, Step
from cactus_edge.train.projections import positive_gamma, unconstrained
from cactus_edge.train.stages import Schedule
from cactus_edge.train.updates import clipped

Make = Callable[..., Network]


def test_the_recipe_says_how_many_threads_unless_the_caller_does(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = replace(tiny, train=replace(tiny.train, threads=3))
    assert pinned.digest() == tiny.digest() and run_key(pinned, few_digits) == run_key(tiny, few_digits)
    asked: list[int] = []
    monkeypatch.setattr(loop.torch, "set_num_threads", asked.append)
    for recipe, threads in ((tiny, None), (pinned, None), (pinned, 2)):
        train(recipe, few_digits, tmp_path, threads=threads)
    before = torch.get_num_threads()
    assert asked == [before, 3, before, 2, before]


def test_same_seed_same_bytes_other_seed_other_bytes(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    first = train(tiny, few_digits, tmp_path / "a", threads=1)
    assert first.digest() == train(tiny, few_digits, tmp_path / "b", threads=1).digest()
    assert first.digest() != train(tiny, few_digits, tmp_path / "a", threads=1, seed=1).digest()


def test_the_record_of_a_run(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    seen: list[EpochStats] = []
    trained = train(tiny, few_digits, tmp_path, seen.append, threads=1)
    assert [(s.stage, s.epoch, s.epochs) for s in seen] == [
        ("train", 1, 3), ("train", 2, 3), ("train", 3, 3), ("compress", 1, 2), ("compress", 2, 2),
    ]  # fmt: skip
    assert tuple(seen) == trained.history
    assert (trained.widths_before, trained.widths_after) == ((6, 10), (4, 7))
    assert trained.weights_before == (6 * 9, 10 * 6 * 16, 100)
    assert trained.weights_after == (4 * 9, 7 * 4 * 16, 70)
    assert seen[-1].val_clean >= 0.5 and seen[-1].val_certified <= seen[-1].val_clean


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_resumed_equals_uninterrupted(tiny: Recipe, few_digits: Dataset, tmp_path: Path, after: int) -> None:
    whole = train(tiny, few_digits, tmp_path / "whole", threads=1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, few_digits, tmp_path / "cut", CtrlC(after), threads=1)
    seen: list[EpochStats] = []
    resumed = train(tiny, few_digits, tmp_path / "cut", seen.append, threads=1)
    assert len(seen) == 5 - after
    assert resumed.digest() == whole.digest()
    assert untimed(resumed) == untimed(whole)


def test_interrupted_inside_an_epoch_resumes_at_its_start(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny, few_digits, tmp_path / "whole", threads=1)
    calls = 0
    honest = loop.augmented

    def interrupting(*args: object, **options: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return honest(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "augmented", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, few_digits, tmp_path / "cut", threads=1)
    monkeypatch.undo()
    assert train(tiny, few_digits, tmp_path / "cut", threads=1).digest() == whole.digest()


def test_a_forgotten_optimiser_is_caught(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above: resuming with a fresh optimiser gives other weights."""
    whole = train(tiny, few_digits, tmp_path / "whole", threads=1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, few_digits, tmp_path / "cut", CtrlC(2), threads=1)
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda *_: None)
    assert train(tiny, few_digits, tmp_path / "cut", threads=1).digest() != whole.digest()


def test_a_finished_run_is_read_and_not_repeated(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    first = train(tiny, few_digits, tmp_path, threads=1)
    seen: list[EpochStats] = []
    second = train(tiny, few_digits, tmp_path, seen.append, threads=1)
    assert second.digest() == first.digest() and second.history == first.history and not seen
    assert second.weights_before == first.weights_before


def test_a_damaged_checkpoint_is_refused(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    train(tiny, few_digits, tmp_path, threads=1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a checkpoint"):
        train(tiny, few_digits, tmp_path, threads=1)


def test_the_key_follows_what_decides_the_weights(tiny: Recipe, few_digits: Dataset) -> None:
    key = run_key(tiny, few_digits)
    assert key != run_key(tiny, few_digits, seed=1)
    assert key != run_key(tiny, few_digits, "small")
    assert key != run_key(replace(tiny, train=replace(tiny.train, epochs=4)), few_digits)
    assert key == run_key(replace(tiny, description="other words"), few_digits)


def test_the_key_knows_the_levels_of_members_in_int8(tiny: Recipe, few_digits: Dataset) -> None:
    for member, differ in (("quantised", True), ("full", False)):
        recipe = replace(
            tiny,
            train=replace(tiny.train, members=("full",)),
            compress=replace(tiny.compress, members=(member,)),
        )
        symmetric = replace(recipe, quantise=replace(recipe.quantise, symmetric=True))
        assert (run_key(symmetric, few_digits) != run_key(recipe, few_digits)) == differ, member


def test_the_baseline_is_the_small_network_for_as_many_epochs(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    trained = train(tiny, few_digits, tmp_path, threads=1, method="small")
    assert trained.widths_before == trained.widths_after == (4, 7)
    assert len(trained.history) == 5


def test_an_unknown_method(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training method"):
        train(tiny, few_digits, tmp_path, method="magic")


def test_threads_are_the_callers_and_come_back(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train(tiny, few_digits, tmp_path, threads=1)
    assert torch.get_num_threads() == before


def test_float_figures_are_ordered(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    trained = train(tiny, few_digits, tmp_path, threads=1)
    x, y = few_digits.test.x, few_digits.test.y
    clean = float_predict(trained, x) == y
    attacked = float_attacked(trained, x, y, Fraction(1, 32), steps=5)
    certified = float_certified(trained, x, y, Fraction(1, 32))
    assert np.all(certified <= attacked) and np.all(attacked <= clean)
    assert np.all(float_certified(trained, x, y, Fraction(1, 16)) <= certified)


def test_the_schedule() -> None:
    s = Schedule(epochs=10, learning_rate=1.0, decay_from=0.5, warmup=2, ramp=4, eps=0.1, robust_weight=0.7)
    assert [s.progress(e) for e in (0, 1.9, 2, 4, 6, 9)] == [0, 0, 0, 0.5, 1, 1]
    assert Schedule(10, 1.0, 0.5, 0, 0, 0.1, 0.7).progress(0) == 1
    assert s.rate(0) == pytest.approx(0.05) and s.rate(3) == 1 and s.rate(7.5) == pytest.approx(0.5)
    assert s.rate(9.999) == pytest.approx(0.01)


def _batch(seed: int, eps: float) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand((8, 2, 7, 6), generator=generator), torch.randint(0, 4, (8,), generator=generator)
    return Batch(x, y, ball(x, eps, (Fraction(0), Fraction(1))))


ALL = ("full", "pruned", "quantised", "perturbed")


def _members(
    network: Network, batch: Batch, names: tuple[str, ...], weight: float, *, widths: tuple[int, ...] = (3, 3, 4)
) -> dict[str, MemberLoss]:
    step = Step(1.0, 0.02, weight)
    return cactus.members(network.layers(), batch, names, IBP, step, cactus.Ships(widths, clip=0.9))[0]


def test_members_differ_and_the_perturbed_one_is_worse(make_network: Make) -> None:
    network, batch = make_network(0), _batch(0, 0.02)
    losses = {
        weight: {name: float(m.loss.detach()) for name, m in _members(network, batch, ALL, weight).items()}
        for weight in (0.0, 0.5, 1.0)
    }
    assert len(set(losses[0.5].values())) == 4
    assert losses[0.5]["perturbed"] > losses[0.5]["full"]
    for name in ALL:
        assert losses[1.0][name] - losses[0.0][name] >= -1e-4


def test_pruning_to_the_full_width_is_the_full_network(make_network: Make) -> None:
    found = _members(make_network(1), _batch(1, 0.02), ("full", "pruned"), 1.0, widths=(5, 6, 8))
    assert torch.allclose(found["pruned"].loss, found["full"].loss, rtol=1e-4)


def test_an_unknown_member(make_network: Make) -> None:
    with pytest.raises(InternalError, match="no member"):
        _members(make_network(0), _batch(0, 0.1), ("sparser",), 0.5)


def test_the_regulariser_is_finite_without_radius_and_falls_with_tight_bounds(make_network: Make) -> None:
    layers = make_network(2).layers()
    values = []
    for eps in (0.0, 0.01, 0.2):
        batch = _batch(2, eps)
        bounds = propagate(fold_batch(layers, batch.x).net, batch.region, batch.y)
        values.append(float(warmup_regulariser(bounds, batch.region).detach()))
    assert all(np.isfinite(values)) and min(values) >= 0


def test_every_stage_descends(tiny: Recipe, make_network: Make) -> None:
    whole = replace(tiny, model=replace(tiny.model, layer=(*tiny.model.layer, tiny.model.layer[-1])))
    all_channels = replace(whole.model, layer=tuple(replace(layer, kept=0) for layer in whole.model.layer))
    sparse = replace(whole, model=all_channels, compress=replace(whole.compress, sparsity=0.4, round_share=0.3))
    for method, found in METHODS.items():
        recipe = sparse if callable(found) else whole
        for stage in stages(method, recipe):
            if stage.name == "mask":  # what it descends by is the mask, which an earlier stage adds
                continue
            network = make_network(3)
            objective, batch = stage.objective(recipe), _batch(3, 0.02)
            optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.01)

            def closure() -> torch.Tensor:
                optimizer.zero_grad()  # noqa: B023
                loss = objective(network, batch, Step(1.0, 0.02, 0.5)).loss  # noqa: B023
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach()

            losses = [float(stage.update(recipe)(closure, optimizer)) for _ in range(15)]
            assert losses[-1] < losses[0]


def test_clipping_bounds_the_step() -> None:
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([p], 1.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum() * 50
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    clipped(1.0)(closure, optimizer)
    assert p.tolist() == pytest.approx([3 - 0.6, 4 - 0.8], abs=1e-5)


def test_projections(make_network: Make) -> None:
    network = make_network(0)
    norm = network.layers()[0].norm
    assert norm is not None
    with torch.no_grad():
        norm.gamma.fill_(-1)
    unconstrained(network)
    assert float(norm.gamma.detach().max()) == -1
    positive_gamma(network)
    assert float(norm.gamma.detach().min()) == pytest.approx(1e-3)


def test_movement_stays_in_range_and_differs_by_sample() -> None:
    x = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert moved(x, generator) is x and torch.equal(generator.get_state(), state)
    batch = x.expand(200, 1, 3, 4)
    found = moved(batch, generator, shift_pixels=1.5, rotate_degrees=20, zoom=0.2)
    assert float(found.min()) >= 0 and float(found.max()) <= 12 + 1e-4
    assert len({tuple(f.flatten().tolist()) for f in found}) == 200


@pytest.mark.parametrize(
    ("draw", "expected"),
    [((0.5, 0.5, 1.0, 0.5), [[2, 3, 0], [5, 6, 0]]), ((0.5, 0.5, 0.5, 1.0), [[4, 5, 6], [0, 0, 0]])],
)
def test_the_extreme_draws_shift_by_one_pixel(
    monkeypatch: pytest.MonkeyPatch, draw: tuple[float, ...], expected: list[list[float]]
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([draw]))
    x = torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]]])
    out = moved(x, torch.Generator(), shift_pixels=1.0)
    assert torch.allclose(out[0, 0], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_a_quarter_turn_of_an_oblong_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[1.0, 0.5, 0.5, 0.5]]))
    x = torch.zeros(1, 1, 3, 5)
    x[0, 0, 1, 3] = 1
    out = moved(x, torch.Generator(), rotate_degrees=90.0)
    assert torch.allclose(out.sum(), torch.tensor(1.0), atol=1e-5)
    assert float(out[0, 0, :, 2].sum()) == pytest.approx(1, abs=1e-5)
