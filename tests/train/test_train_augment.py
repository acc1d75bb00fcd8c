"""Random changes of training samples, and which samples an epoch sees."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch

from cactus_edge.recipe import Recipe
from cactus_edge.train.augment import amplified, augmented, cropped, mirrored
from cactus_edge.train.sampling import batches, typical

DOMAIN = (Fraction(-1), Fraction(1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_any_change_the_samples_are_the_same_and_no_number_is_drawn(tiny: Recipe) -> None:
    x, drawn = torch.rand(3, 1, 4, 4), generator()
    assert augmented(x, tiny.train, DOMAIN, drawn) is x
    assert torch.equal(torch.rand(2, generator=drawn), torch.rand(2, generator=generator()))


def test_a_crop_is_a_shift_with_its_edge_repeated() -> None:
    x = torch.rand(40, 2, 5, 6)
    shifted = {(r, c): _shifted(x, r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)}
    found = cropped(x, generator(), 1)
    seen = set()
    for n in range(len(x)):
        matches = [at for at, whole in shifted.items() if torch.equal(whole[n], found[n])]
        assert matches
        seen |= set(matches)
    assert len(seen) == 9


def _shifted(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return padded[:, :, 1 + rows : 1 + rows + x.shape[2], 1 + columns : 1 + columns + x.shape[3]]


def test_a_signal_is_shifted_in_time_alone() -> None:
    x = torch.arange(20.0)[None, None, :, None].expand(30, 1, 20, 1)
    found = cropped(x, generator(), 3)
    assert found.shape == x.shape
    steps = (found - x)[:, 0, 5:15, 0]
    assert (steps == steps[:, :1]).all() and set(steps[:, 0].tolist()) <= {-3, -2, -1, 0, 1, 2, 3}


def test_mirrored_samples_are_left_to_right() -> None:
    x = torch.rand(50, 1, 3, 4)
    found = mirrored(x, generator())
    turned = [torch.equal(found[n], x[n].flip(2)) for n in range(50)]
    assert all(t or torch.equal(found[n], x[n]) for n, t in enumerate(turned)) and 10 < sum(turned) < 40


def test_a_gain_stays_inside_the_domain() -> None:
    x = 2 * torch.rand(50, 1, 3, 4) - 1
    found = amplified(x, generator(), 0.5, DOMAIN)
    assert found.abs().max() <= 1
    inside = found.abs() < 1
    factor = (found / x)[inside]
    assert factor.min() >= 0.5 and factor.max() <= 1.5 and factor.std() > 0.1


def test_changes_are_those_of_the_seed(tiny: Recipe) -> None:
    train = replace(tiny.train, crop=2, mirror=True, gain=0.1, rotate_degrees=5.0)
    x = torch.rand(8, 1, 6, 6)
    first, again, other = (augmented(x, train, DOMAIN, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_balanced_epochs_show_rare_classes_as_often() -> None:
    y = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    for balance, low, high in ((1.0, 0.28, 0.39), (0.5, 0.05, 0.10)):
        index = torch.cat(list(batches(y, 100, balance, generator())))
        assert len(index) == 1000
        share = torch.bincount(y[index], minlength=3) / 1000
        assert low < share[2] < high
    whole = torch.cat(list(batches(y, 100, 0, generator())))
    assert torch.equal(whole, torch.randperm(1000, generator=generator()))
    assert torch.equal(typical(y, 5, 0), torch.arange(5))
    assert torch.bincount(y[typical(y, 400, 1.0)], minlength=3).min() > 80
