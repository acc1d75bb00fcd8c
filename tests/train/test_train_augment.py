"""Random changes of training samples, and which samples an epoch sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train import augmix as augmix_module
from cactus_edge.train.augment import amplified, augmented, cropped, mirrored, noisy, views
from cactus_edge.train.augmix import augmix
from cactus_edge.train.data import Dataset, Split
from cactus_edge.train.loop import train
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


UNIT = (Fraction(0), Fraction(1))


def pictures(count: int = 60, channels: int = 1) -> torch.Tensor:
    return torch.rand((count, channels, 9, 12), generator=generator(7)) ** 2


@pytest.mark.parametrize("domain", [UNIT, (Fraction(-1), Fraction(3))], ids=["unit", "other"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmix_stays_in_range_and_follows_from_the_seed(domain: tuple[Fraction, Fraction], channels: int) -> None:
    low, high = map(float, domain)
    x = pictures(channels=channels) * (high - low) + low
    first, again, other = (augmix(x, domain, generator(s)) for s in (1, 1, 2))
    assert first.shape == x.shape and float(first.min()) >= low and float(first.max()) <= high
    assert torch.equal(first, again) and not torch.equal(first, other)
    changed = (first != x).flatten(1).any(1)
    assert float(changed.double().mean()) > 0.9
    rescaled = augmix((x - low) / (high - low), UNIT, generator(1)) * (high - low) + low
    assert torch.allclose(first, rescaled, atol=0.02 * (high - low)), "a byte may fall on either side of a threshold"


def test_augmix_gives_the_same_bits_with_any_number_of_threads() -> None:
    x, before, found = pictures(400, 3), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(augmix(x, UNIT, generator()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_mixture_is_one_of_the_picture_and_its_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no operation does anything, the mixture is the picture: all weights add up to 1."""
    x = pictures()
    assert not torch.allclose(augmix(x, UNIT, generator()), x, atol=0.05)
    monkeypatch.setattr(augmix_module, "_applied", lambda made, drawn, level: made)
    assert torch.allclose(augmix(x, UNIT, generator()), x, atol=1e-6)


def test_tables_are_pillows() -> None:
    image = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    byte = (pictures(20) * 255).round()
    level = torch.linspace(0.1, 3, 20)
    want: dict[str, Callable[[Any, float], Any]] = {
        "autocontrast": lambda p, _: ops.autocontrast(p),
        "equalize": lambda p, _: ops.equalize(p),
        "posterize": lambda p, n: ops.posterize(p, 4 - int(n * 0.4)),
        "solarize": lambda p, n: ops.solarize(p, 256 - int(n * 25.6)),
    }
    for name, of_pillow in want.items():
        found = augmix_module.pointwise(name, byte / 255, level) * 255
        for one, picture, grade in zip(found, byte, level.tolist(), strict=True):
            made = np.asarray(of_pillow(image.fromarray(picture[0].numpy().astype(np.uint8)), grade))
            assert np.abs(one[0].numpy() - made).max() <= 1, name  # Pillow's own tables are in whole steps


@pytest.mark.parametrize("name", augmix_module.AFFINE)
def test_moves_are_pillows(name: str) -> None:
    image = pytest.importorskip("PIL.Image")
    picture, level = torch.rand((1, 1, 14, 20), generator=generator()), 2.9
    shear, right, down = 0.03 * level, int(level * 20 / 30), int(level * 14 / 30)
    matrix = {
        "shear x": (1, shear, 0, 0, 1, 0),
        "shear y": (1, 0, 0, shear, 1, 0),
        "translate x": (1, 0, right, 0, 1, 0),
        "translate y": (1, 0, 0, 0, 1, down),
    }
    real = image.fromarray(picture[0, 0].numpy())
    if name == "rotate":
        made = np.asarray(real.rotate(int(level * 3), resample=image.Resampling.BILINEAR))
    else:
        made = np.asarray(
            real.transform(real.size, image.Transform.AFFINE, matrix[name], resample=image.Resampling.BILINEAR)
        )
    found = augmix_module._moved(picture, torch.tensor([augmix_module._matrix(name, level, 14, 20)]))[0, 0].numpy()
    assert np.abs(found - made)[3:-3, 3:-3].max() < 1e-4  # at the edge Pillow rounds where a pixel is still inside
    assert np.abs(found - picture[0, 0].numpy()).max() > 0.1


def test_noise_reaches_half_of_the_samples() -> None:
    x = torch.full((400, 1, 6, 6), 0.5)
    found = noisy(x, UNIT, generator())
    touched = (found != x).flatten(1).any(1)
    assert 160 < int(touched.sum()) < 240
    assert float((found - x)[touched].std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(found, noisy(x, UNIT, generator())) and float(found.min()) >= 0


def test_with_a_consistency_the_sample_stays_clean_and_two_views_are_shown(tiny: Recipe) -> None:
    x = pictures(8)
    for augment in ("augmix", "gaussian"):
        alone = replace(tiny.train, augment=augment)
        both = replace(alone, consistency=12.0)
        assert not torch.equal(augmented(x, alone, UNIT, generator()), x) and views(x, alone, UNIT, generator()) == ()
        assert augmented(x, both, UNIT, generator()) is x
        one, other = views(x, both, UNIT, generator())
        assert not torch.equal(one, other) and not torch.equal(one, x)


def test_signals_are_not_mixed(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    steps = [
        Split(s.x.reshape(len(s.x), 64, 1, 1), s.y) for s in (few_digits.train, few_digits.validation, few_digits.test)
    ]
    signals = replace(few_digits, train=steps[0], validation=steps[1], test=steps[2])
    with pytest.raises(InputError, match="augmix mixes pictures"):
        train(replace(tiny, train=replace(tiny.train, augment="augmix")), signals, tmp_path)
