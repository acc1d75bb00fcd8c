"""Ranges by each criterion against their definitions, and what the choice for the certificate promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cactus_edge.errors import InputError, InternalError, ModelError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Conv2d, Dense
from cactus_edge.recipe import BUILT_IN, Recipe, parse_recipe
from cactus_edge.train import calibrate as module
from cactus_edge.train.calibrate import calibrate, chosen
from cactus_edge.train.data import Dataset, Split
from cactus_edge.train.fakequant import clamp, fake_quantise, narrowed, peaks
from cactus_edge.train.folded import Folded, detach, fold, forward
from cactus_edge.train.grids import Calibration, adjusted, clip_weights, drop_weights, shift_biases
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network
from cactus_edge.train.observe import bias_shifts, observe, values
from cactus_edge.train.quantize import export
from cactus_edge.train.ranges import (
    CELLS,
    ERROR_RANGES,
    Criterion,
    Histogram,
    divergence,
    histogram,
    largest,
    least_divergence,
    least_error,
    percentile,
)
from cactus_edge.train.ranking import Margins, output_grid, range_grid
from cactus_edge.verify.decide import certify
from cactus_edge.verify.regions import Region

Make = Callable[..., Network]
USUAL = ("min-max", "percentile", "entropy", "mse")


def _heavy(seed: int, count: int = 20_000) -> npt.NDArray[np.float32]:
    """Half zeros, and a long tail: what a ReLU leaves."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_t(3, count), 0).astype(np.float32)


def _seen(values: npt.NDArray[np.float32], parts: int = 3) -> Histogram:
    return histogram(np.array_split(values, parts), float(np.abs(values).max()))


def test_a_histogram_counts_every_magnitude_once() -> None:
    values = np.array([-4.0, 0.0, 1.0, 2.0, -2.0, 0.0, 3.0], np.float32)
    seen = histogram([values[:3], values[3:]], 4.0, cells=4)
    assert seen.counts.tolist() == [1, 2, 1, 1] and seen.zeros == 2
    assert seen.centres.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert seen.joined(seen).counts.sum() == 10
    with pytest.raises(InternalError, match="above the peak"):
        histogram([values], 3.9)


def _brute_percentile(values: npt.NDArray[np.float32], percent: float) -> float:
    magnitudes = np.sort(np.abs(values))
    return float(magnitudes[max(math.ceil(percent / 100 * len(magnitudes)) - 1, 0)])


def _brute_error(values: npt.NDArray[np.float32], levels: int) -> float:
    """The mean squared error of each range, from the values themselves."""
    top = float(np.abs(values).max())
    found = []
    for part in range(1, ERROR_RANGES + 1):
        step = top * part / ERROR_RANGES / levels
        found.append(np.mean((np.abs(values) - np.minimum(np.rint(np.abs(values) / step), levels) * step) ** 2))
    return top * (1 + int(np.argmin(found))) / ERROR_RANGES


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_and_errors_follow_their_definitions(seed: int) -> None:
    values = _heavy(seed)
    seen, cell = _seen(values), float(values.max()) / CELLS
    assert largest(seen, 255) == values.max()
    for percent in (50.0, 90.0, 99.0, 99.9, 100.0):
        found, expected = percentile(percent)(seen, 255), _brute_percentile(values, percent)
        assert expected <= found + 1e-9 and found <= expected + cell * (1 + 1e-6)
    for levels in (7, 31, 255):
        found, expected = least_error(seen, levels), _brute_error(values, levels)
        assert found == pytest.approx(expected, abs=2 * float(values.max()) / ERROR_RANGES)


def test_a_planted_fault_in_a_criterion_is_caught() -> None:
    """Zeros that are forgotten move a percentile by far more than a cell."""
    values = _heavy(0)
    seen, cell = _seen(values), float(values.max()) / CELLS
    forgetful = percentile(99.0)(replace(seen, zeros=0), 255)
    assert abs(forgetful - _brute_percentile(values, 99.0)) > 100 * cell


def _brute_divergence(bins: list[float], kept: int, groups: int) -> float:
    """KL(P || Q), bin by bin in plain Python."""
    p = bins[:kept]
    p[-1] += sum(bins[kept:])
    q = [0.0] * kept
    for group in range(groups):
        inside = [k for k in range(kept) if k * groups // kept == group and bins[k] > 0]
        for k in inside:
            q[k] = sum(bins[j] for j in inside) / len(inside)
    total_p, total_q, sum_ = sum(p), sum(q), 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0 and b == 0:
            return math.inf
        if a > 0:
            sum_ += a / total_p * math.log((a / total_p) / (b / total_q))
    return sum_


@pytest.mark.parametrize("groups", [2, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_divergence_is_that_of_an_independent_sum(seed: int, groups: int) -> None:
    bins = np.random.default_rng(seed).poisson(np.linspace(3, 0.2, 16)).astype(float)
    bins[-1] += 1
    for kept in range(groups, 17):
        expected = _brute_divergence(bins.tolist(), kept, groups)
        assert divergence(bins, kept, groups) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # The planted fault: outliers that are dropped instead of clipped.
    clipped = divergence(bins, 10, groups)
    assert math.isinf(clipped) or clipped != pytest.approx(divergence(bins[:10], 10, groups))


def test_entropy_clips_a_long_tail_and_keeps_what_is_even() -> None:
    assert least_divergence(_seen(np.linspace(0.001, 1, 50_000, dtype=np.float32)), 127) > 0.9
    tailed = _seen(np.random.default_rng(0).laplace(size=200_000).astype(np.float32))
    assert least_divergence(tailed, 127) < 0.8 * largest(tailed, 127)


@pytest.mark.parametrize("criterion", [largest, percentile(99.9), least_error, least_divergence])
def test_every_range_is_positive_and_within_the_peak(criterion: Criterion) -> None:
    for seen in (_seen(_heavy(1)), histogram((), 1e-3), histogram([np.full(5, 2, np.float32)], 2.0)):
        assert 0 < criterion(seen, 255) <= seen.peak * (1 + 1e-12)


def test_what_is_observed_is_what_the_network_makes(make_network: Make) -> None:
    net = detach(fold(make_network(0).layers()))
    x = torch.rand((30, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, found, logits = observe(net, x), values(net, x), forward(net, x)
        inside = observe(clamp(net, tuple(0.5 * p for p in peaks(net, x))), x)
    assert [h.peak for h in seen.hidden] == [float(p) for p in peaks(net, x)]
    assert [int(h.counts.sum()) + h.zeros for h in seen.hidden] == [v.numel() for v in found[:-1]]
    assert (seen.least, seen.most) == (float(logits.min()), float(logits.max())) and not any(seen.signed)
    assert inside.hidden[0].peak == pytest.approx(0.5 * seen.hidden[0].peak)


def test_corrected_biases_remove_the_mean_error_of_rounding(make_network: Make) -> None:
    net = detach(fold(make_network(1).layers()))
    x = torch.rand((200, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    coarse = tuple(replace(a, weight=(a.weight * 8).round() / 8) for a in net)
    with torch.no_grad():
        ends = peaks(net, x)
        shifts = bias_shifts(clamp(net, ends), fake_quantise(coarse, ends), x)
        real, wrong = forward(net, x), forward(fake_quantise(coarse, ends), x)
        right = forward(fake_quantise(shift_biases(coarse, shifts), ends), x)
    assert float((right - real).mean(0).abs().max()) < 1e-4 < 0.05 * float((wrong - real).mean(0).abs().max())


def test_clipped_weights_have_finer_steps(make_network: Make) -> None:
    net = detach(fold(make_network(2).layers()))
    clipped = clip_weights(net, (0.5, 1.0, 0.8, 1.0))
    for a, b, part in zip(net, clipped, (0.5, 1.0, 0.8, 1.0), strict=True):
        dims = (0, 1, 2, 3) if a.layer.dense else (1, 2, 3)
        torch.testing.assert_close(b.weight.abs().amax(dims), part * a.weight.abs().amax(dims))
        kept = a.weight.abs() <= part * a.weight.abs().amax(dims, keepdim=True)
        assert torch.equal(a.weight[kept], b.weight[kept])


@pytest.mark.parametrize("dense_bits", [8, 4])
def test_dropped_weights_are_the_small_integers(make_network: Make, dense_bits: int) -> None:
    """Zeros where an integer was no larger than its layer's floor, and nothing else changes in the file."""
    net = narrowed(detach(fold(make_network(2).layers())), (8, 8, dense_bits, 8))
    floors = (0, 3, 1, 2)
    plain = Calibration((1.0, 2.0, 3.0), (1.0,) * 3, float(np.float32(1 / 255)), 0.5, -7, 0, 0, 0)
    before, after = (
        [node.op for node in export(net, c, (7, 6, 2)).nodes if isinstance(node.op, Conv2d | Dense)]
        for c in (plain, replace(plain, weight_floors=floors))
    )
    for old, new, floor in zip(before, after, floors, strict=True):
        kept = np.abs(old.weight.astype(int)) > floor
        assert np.array_equal(new.weight, old.weight * kept) and np.array_equal(new.bias, old.bias)
        assert (floor == 0) == bool(kept.all() or np.array_equal(new.weight, old.weight))
    assert drop_weights(net, ()) is net


def test_the_export_is_of_the_adjusted_network(make_network: Make) -> None:
    net = detach(fold(make_network(3).layers()))
    plain = Calibration((1.0, 2.0, 3.0), (1.0,) * 3, float(np.float32(1 / 255)), 0.5, -7, 0, 0, 0)
    shifts = tuple(tuple(0.01 * k for k in range(len(a.bias))) for a in net)
    changed = replace(plain, weight_clips=(0.7, 1.0, 0.9, 1.0), weight_floors=(0, 2, 1, 0), bias_shifts=shifts)
    graph = export(net, changed, (7, 6, 2))
    assert graph.digest() == export(adjusted(net, changed), plain, (7, 6, 2)).digest()
    assert graph.digest() != export(net, plain, (7, 6, 2)).digest()


def _margins(certified: list[float], rival: list[float], own: list[float]) -> Margins:
    columns = [torch.tensor(c) for c in (certified, rival, own, rival, own)]
    return Margins(*columns, weight=torch.ones(len(own)))


def test_the_output_grid_spans_what_is_certified_and_what_is_correct() -> None:
    found = _margins([2.0, 3.0, 0.5, -1.0], [1.0, -2.0, 0.5, 4.0], [3.0, 2.0, 1.0, 3.0])
    grid = output_grid(found, symmetric=False)
    assert grid.scale < 0.45 and (127 - grid.zero_point) * grid.scale > 1.0
    assert output_grid(found, symmetric=True).zero_point == 0
    nothing = output_grid(_margins([-1.0], [4.0], [3.0]), symmetric=False)
    assert (127 - nothing.zero_point) * nothing.scale >= 4 * 0.99


@pytest.mark.parametrize(("least", "most"), [(-3.0, 5.0), (0.5, 2.0), (-4.0, -1.0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_grid_spans_its_range(least: float, most: float, symmetric: bool) -> None:
    grid = range_grid(least, most, symmetric=symmetric)
    low, high = ((code - grid.zero_point) * grid.scale for code in (-128, 127))
    assert low <= min(least, 0) + grid.scale and high >= max(most, 0) - grid.scale
    assert not symmetric or grid.zero_point == 0


@pytest.fixture(scope="module")
def trained(tiny: Recipe, few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Folded:
    return train(tiny, few_digits, tmp_path_factory.mktemp("run"), threads=1).folded()


def _by(recipe: Recipe, criterion: str, percent: float = 99.99) -> Recipe:
    return replace(recipe, quantise=replace(recipe.quantise, calibration=criterion, percentile=percent))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_choice_certifies_no_less_than_any_criterion(
    tiny: Recipe, few_digits: Dataset, trained: Folded, symmetric: bool
) -> None:
    recipe = replace(tiny, quantise=replace(tiny.quantise, symmetric=symmetric))
    ours = calibrate(trained, few_digits, recipe)
    rule = profile("ort-x86" if symmetric else "tflm")
    for name, percent in [(c, 99.99) for c in USUAL] + [("percentile", 99.9)]:
        theirs = calibrate(trained, few_digits, _by(recipe, name, percent))
        program = lower(export(trained, theirs, few_digits.shape), rule)
        split, region = few_digits.validation, Region(few_digits.features(tiny.certify.eps), few_digits.domain)
        found = certify(program, region, split.x, split.y)
        assert (int(found.certified.sum()), int(found.correct.sum())) == (theirs.certified, theirs.correct)
        assert theirs.chosen.startswith(name) and not theirs.weight_clips and not theirs.bias_shifts
        assert ours.certified >= theirs.certified and ours.samples == theirs.samples == 60


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_balanced_choice_counts_by_class(
    tiny: Recipe, few_digits: Dataset, trained: Folded, balance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against weights that are summed class by class; the planted fault, plain counts, gives another record."""
    split = few_digits.validation
    kept = np.flatnonzero((split.y < 3) | (np.arange(len(split.y)) % 4 == 0))
    dataset = replace(few_digits, validation=Split(split.x[kept], split.y[kept]))
    recipe = replace(tiny, quantise=replace(tiny.quantise, class_balance=balance))
    labels, region = dataset.validation.y, Region(dataset.features(tiny.certify.eps), dataset.domain)
    sizes = {c: int((labels == c).sum()) for c in sorted({*labels.tolist()})}
    assert max(sizes.values()) > min(sizes.values())
    whole = sum(n ** (1 - balance) for n in sizes.values())

    def weighed(right: npt.NDArray[np.bool_]) -> float:
        return (
            sum(float(right[labels == c].mean()) * n ** (1 - balance) for c, n in sizes.items()) / whole * len(labels)
        )

    ours = calibrate(trained, dataset, recipe)
    for name in USUAL:
        theirs = calibrate(trained, dataset, _by(recipe, name))
        program = lower(export(trained, theirs, dataset.shape), profile("tflm"))
        found = certify(program, region, dataset.validation.x, labels)
        assert theirs.certified == pytest.approx(weighed(found.certified))
        assert theirs.correct == pytest.approx(weighed(found.correct))
        assert ours.certified >= theirs.certified
    monkeypatch.setattr(module, "shares", lambda y, balance: torch.ones(len(y)))
    plain = calibrate(trained, dataset, _by(recipe, USUAL[-1]))
    assert (plain.certified, plain.correct) != pytest.approx((theirs.certified, theirs.correct))


def test_soft_counts_weigh_samples() -> None:
    """A sample that counts three times is as three; the grid of the logits is chosen for those that count."""
    few = _margins([2.0, -1.0], [1.0, 4.0], [3.0, 3.0])
    heavy = replace(few, weight=torch.tensor([1.5, 0.5]))
    many = _margins([2.0, 2.0, 2.0, -1.0], [1.0, 1.0, 1.0, 4.0], [3.0, 3.0, 3.0, 3.0])
    assert heavy.score(0.5) == pytest.approx(many.score(0.5)) != pytest.approx(few.score(0.5))
    rare = 2  # of 40: a fine grid certifies the others, a coarse one them
    columns = ([small] * (40 - rare) + [large] * rare for small, large in ((0.1, 9.0), (0.1, 40.0), (0.2, 49.0)))
    apart = _margins(*columns)
    for weight in (1.0, 100.0):
        weights = torch.cat([torch.ones(40 - rare), torch.full((rare,), weight)])
        grid = output_grid(replace(apart, weight=weights), symmetric=False)
        fits = (apart.certified > 1.02 * grid.scale) & (apart.rival < (126.5 - grid.zero_point) * grid.scale)
        assert fits.tolist() == [weight == 1] * (40 - rare) + [weight > 1] * rare


def counted(certified: int, correct: int) -> Calibration:
    return Calibration((), (), 1.0, 1.0, 0, certified, correct, 100)


def test_accuracy_never_buys_back_what_a_usual_criterion_certifies() -> None:
    """80 + 95 is more than 82 + 90, but another criterion certifies 82; of equal sums the most certified wins."""
    usual, accurate, even, better = counted(82, 90), counted(80, 95), counted(83, 89), counted(82, 93)
    assert chosen([accurate, usual], [usual]) is usual
    assert chosen([accurate], []) is accurate
    assert chosen([usual, even], [usual]) is even
    assert chosen([accurate, usual, even, better], [usual]) is better


def test_the_choice_is_the_same_again(tiny: Recipe, few_digits: Dataset, trained: Folded) -> None:
    assert calibrate(trained, few_digits, tiny) == calibrate(trained, few_digits, tiny)


def test_a_choice_without_the_other_criteria_is_caught(
    tiny: Recipe, few_digits: Dataset, trained: Folded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: a search whose candidates are spoilt still gives what the best of the others certifies."""
    proposed = module._Bench.proposed
    best = max(calibrate(trained, few_digits, _by(tiny, name)).certified for name in USUAL)

    def spoilt(bench: module._Bench) -> list[Calibration]:
        return [replace(c, out_scale=100.0, out_zero_point=0) for c in proposed(bench)]

    monkeypatch.setattr(module._Bench, "proposed", spoilt)
    assert calibrate(trained, few_digits, tiny).certified >= best > 0
    monkeypatch.setattr(module._Bench, "usual", lambda bench, name: spoilt(bench)[0])
    assert calibrate(trained, few_digits, tiny).certified < best


def test_integers_that_fit_no_type_are_refused(tiny: Recipe, few_digits: Dataset, trained: Folded) -> None:
    broken = (*trained[:-1], replace(trained[-1], bias=trained[-1].bias + 1e12))
    with pytest.raises(ModelError):
        calibrate(broken, few_digits, _by(tiny, "min-max"))


def test_an_unknown_criterion_is_refused_with_its_line() -> None:
    content = (BUILT_IN / "digits.toml").read_text().replace("[quantise]", '[quantise]\ncalibration = "best"')
    line = content.splitlines().index('calibration = "best"') + 1
    with pytest.raises(InputError, match=f"digits.toml:{line}: calibration"):
        parse_recipe(content, "digits.toml")
