"""Inputs that saturate: centred data, the window in which a network tells values apart, and the file that does the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cactus_edge.errors import DataError, InputError, InternalError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import Recipe
from cactus_edge.train import bounds, folded
from cactus_edge.train.apgd import apgd
from cactus_edge.train.attacks import Attack, climb, pgd
from cactus_edge.train.augment import amplified, moved
from cactus_edge.train.bounds import Box, ball, box, propagate, visible
from cactus_edge.train.calibrate import to_graph
from cactus_edge.train.checkpoints import run_key
from cactus_edge.train.data import Channel, Dataset, load_dataset
from cactus_edge.train.evaluate import float_predict
from cactus_edge.train.folded import Folded, detach, fold, fold_batch, forward
from cactus_edge.train.grids import InputGrid, input_grid
from cactus_edge.train.loop import train
from cactus_edge.train.methods import nncf
from cactus_edge.train.models import INPUT, Network, windowed
from cactus_edge.train.objectives import sabr
from cactus_edge.train.objectives.crown_ibp import linear_margins
from cactus_edge.train.plain import Plain
from cactus_edge.verify.counterexamples import won_by
from cactus_edge.verify.decide import certify
from cactus_edge.verify.regions import Region

HALF = (Fraction(-1, 2), Fraction(1, 2))
WINDOW = (-0.2, 0.15)
Make = Callable[..., Network]


def narrow(make: Make, seed: int, window: tuple[float, float] | None = WINDOW) -> Folded:
    """A random network that tells its inputs apart in `window` alone."""
    return detach(fold(windowed(make(seed).layers(), window)))


def inputs(seed: int, count: int = 5) -> tuple[Tensor, Tensor]:
    """Samples of [-1/2, 1/2] and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((count, 2, 7, 6), generator=generator) - 0.5
    return x, torch.randint(0, 4, (count,), generator=generator)


# Data.


def test_centred_data(tiny: Recipe) -> None:
    plain = load_dataset(tiny.data)
    half = load_dataset(replace(tiny.data, centre=Fraction(1, 2)))
    for part in ("train", "validation", "test"):
        assert np.array_equal(getattr(half, part).x, getattr(plain, part).x - np.float32(0.5))
        assert np.array_equal(getattr(half, part).y, getattr(plain, part).y)
    assert half.domain == HALF and half.zero == Fraction(-1, 2) and half.preprocessing == "pixel / 16 - 1/2"
    assert half.digest() != plain.digest()
    assert replace(tiny, data=replace(tiny.data, centre=Fraction(1, 2))).digest() != tiny.digest()


def test_sensors_with_units_have_no_common_centre(few_digits: Dataset) -> None:
    signals = replace(few_digits, channels=(Channel("acc", "g"),))
    with pytest.raises(DataError, match="centre = 1/2 of what"):
        signals.centred(Fraction(1, 2))


def test_darkness_surrounds_centred_pictures() -> None:
    x = torch.rand((3, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    found = moved(x - 0.5, a, shift_pixels=2, rotate_degrees=30, zoom=0.2, zero=-0.5)
    assert torch.allclose(found, moved(x, b, shift_pixels=2, rotate_degrees=30, zoom=0.2) - 0.5, atol=1e-6)
    assert float(found.min()) == -0.5
    found = amplified(x - 0.5, a, 0.5, HALF, -0.5)
    assert torch.allclose(found, amplified(x, b, 0.5, (Fraction(0), Fraction(1))) - 0.5, atol=1e-6)


# The grid of the input.


@pytest.mark.parametrize(
    ("grid", "domain", "window"),
    [
        (InputGrid(255, -128), (Fraction(0), Fraction(1)), None),
        (InputGrid(510, -128), (Fraction(0), Fraction(1)), (0.0, 0.5)),
        (InputGrid(127, 0), (Fraction(-1), Fraction(1)), None),
        (InputGrid(254, 0), HALF, None),
        (InputGrid(255, 0), HALF, None),  # 127/255: the last half step rounds to it
        (InputGrid(256, 0), HALF, None),
        (InputGrid(258, 0), HALF, (-128 / 258, 127 / 258)),
        (InputGrid(640, 0), HALF, (-0.2, 127 / 640)),
    ],
)
def test_a_window_is_what_int8_does_not_hold(
    grid: InputGrid, domain: tuple[Fraction, Fraction], window: tuple[float, float] | None
) -> None:
    assert grid.window(domain) == (None if window is None else pytest.approx(window))


def test_signed_data_keep_their_steps_in_a_symmetric_network(tiny: Recipe, few_digits: Dataset) -> None:
    recipe = replace(tiny, quantise=replace(tiny.quantise, symmetric=True, input_steps=640))
    assert input_grid(recipe, few_digits) == InputGrid(96, 0)  # three in a radius of 1/32
    assert input_grid(recipe, few_digits.centred(Fraction(1, 2))) == InputGrid(640, 0)


# The network.


@pytest.mark.parametrize("seed", range(3))
def test_beyond_the_window_nothing_is_told_apart(make_network: Make, seed: int) -> None:
    x, _ = inputs(seed)
    layers = make_network(seed).layers()
    net, whole = narrow(make_network, seed), narrow(make_network, seed, None)
    assert torch.equal(forward(net, x), forward(whole, x.clamp(*WINDOW)))
    assert not torch.allclose(forward(net, x), forward(whole, x), atol=1e-3)
    assert torch.allclose(Plain(windowed(layers, WINDOW))(x).flatten(1), forward(net, x), atol=1e-4)
    assert torch.equal(fold_batch(windowed(layers, WINDOW), x).logits, fold_batch(layers, x.clamp(*WINDOW)).logits)


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_and_shrink(make_network: Make, seed: int) -> None:
    """They are those of the whole network on the region that is seen; where that is a point, they are a point."""
    (x, y), eps = inputs(seed), 0.3
    net, region = narrow(make_network, seed), ball(x, eps, HALF)
    found = propagate(net, region, y)
    assert torch.allclose(found.margin, propagate(narrow(make_network, seed, None), visible(net, region), y).margin)
    linear, whole = linear_margins(net, region, y, found), narrow(make_network, seed, None)
    assert torch.allclose(linear, linear_margins(whole, visible(net, region), y, found))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(40):
        t = torch.rand(x.shape, generator=generator).round() if seed % 2 else torch.rand(x.shape, generator=generator)
        out = forward(net, region.lower + 2 * region.radius * t)
        margin = out.gather(1, y[:, None]) - out
        assert float((found.margin - margin).max()) < 1e-4 and float((linear - margin).max()) < 1e-4
    dark = ball(torch.full_like(x, -0.5), eps, HALF)
    assert float(propagate(net, dark, y).pre[0].radius.max()) < 1e-6


def test_bounds_without_the_window_do_not_shrink(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault of the test above."""
    _, y = inputs(0)
    dark = ball(torch.full((5, 2, 7, 6), -0.5), 0.3, HALF)
    monkeypatch.setattr(folded, "seen", lambda x, layer: x)
    assert float(propagate(narrow(make_network, 0), dark, y).pre[0].radius.max()) > 1e-2


def test_attacks_move_where_something_is_seen(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """From dark pixels, whose gradient is 0, none would get away."""
    net = narrow(make_network, 1)
    x = torch.full((8, 2, 7, 6), -0.5) + 0.1 * torch.rand((8, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    y, eps, within = forward(net, x).argmax(1), 0.6, ball(x, 0.6, HALF)
    way = Attack(steps=10, random_start=False)

    def broken() -> list[int]:
        points = (
            pgd(net, x, y, eps, HALF, steps=10),
            apgd(net, x, y, eps, HALF, steps=10),
            climb(net, within, y, way, origin=x),
        )
        for point in points:
            seen, region = visible(net, box(point, point)).centre, visible(net, within)
            assert bool(((seen >= region.lower - 1e-6) & (seen <= region.upper + 1e-6)).all())
        return [int((forward(net, point).argmax(1) != y).sum()) for point in points]

    assert min(broken()) == 8
    monkeypatch.setattr(bounds, "cut", lambda region, window: region)
    assert broken()[2] == 0


def test_other_tools_quantisers_see_what_is_seen(make_network: Make, few_digits: Dataset) -> None:
    """They take the input's range from the samples, and with it the file saturates."""
    half = few_digits.centred(Fraction(1, 2))
    shown = nncf._seen(narrow(make_network, 0), half)
    for part in (shown.train.x, shown.validation.x, shown.test.x):
        assert (part.min(), part.max()) == (np.float32(WINDOW[0]), np.float32(WINDOW[1]))
    assert nncf._seen(narrow(make_network, 0, None), half) is half


def test_no_window_for_what_is_not_the_input(make_network: Make) -> None:
    layers = make_network(0).layers()
    assert [layer.window for layer in windowed(layers, WINDOW)] == [WINDOW, None, None, None]
    assert windowed(layers, None) is layers
    with pytest.raises(InternalError, match="has a window"):
        Network((layers[0], replace(layers[1], window=WINDOW), *layers[2:]))
    with pytest.raises(InputError, match="a sum adds the network's input"):
        windowed((replace(layers[0], adds=INPUT), *layers[1:]), WINDOW)


def test_runs_of_other_windows_never_mix(tiny: Recipe, few_digits: Dataset) -> None:
    half = few_digits.centred(Fraction(1, 2))

    def key(data: Dataset, steps: int) -> str:
        return run_key(replace(tiny, quantise=replace(tiny.quantise, input_steps=steps)), data)

    assert key(half, 640) != key(half, 320) != key(half, 255)
    assert key(half, 255) == key(half, 128)  # nothing is cut: only the export knows
    assert key(few_digits, 255) == key(few_digits, 128)


# The file.


@pytest.fixture(scope="module")
def saturating(tiny: Recipe) -> Recipe:
    """The tiny recipe on centred digits whose input saturates at a fifth of the range on either side."""
    data = replace(tiny.data, centre=Fraction(1, 2))
    return replace(tiny, data=data, quantise=replace(tiny.quantise, input_steps=640))


def test_objectives_are_given_what_is_seen_of_a_region(
    saturating: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box around a point at the window's end that is as wide as the whole region's would hold what no input becomes."""
    given: list[Box] = []

    def noted(net: Folded, region: Box, *args: Any, **kinds: Any) -> Tensor:
        given.append(region)
        return climb(net, region, *args, **kinds)

    monkeypatch.setattr(sabr, "climb", noted)
    changed = replace(saturating.train, objective="sabr", box_ratio=0.5, epochs=2, warmup_epochs=0, attack_steps=1)
    dataset = few_digits.centred(saturating.data.centre)
    train(replace(saturating, train=changed), dataset, tmp_path, threads=1)
    assert given and max(float(box.radius.max()) for box in given) > 0
    assert all(float(b.lower.min()) >= -0.2 - 1e-6 and float(b.upper.max()) <= 127 / 640 + 1e-6 for b in given)


def test_the_file_saturates_as_training_did(saturating: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    dataset = few_digits.centred(saturating.data.centre)
    trained = train(saturating, dataset, tmp_path, threads=1)
    graph = to_graph(trained, dataset, saturating)
    program = lower(graph, profile("tflm"))
    source = graph.input
    assert (source.scale, source.zero_point) == (float(np.float32(1 / 640)), 0)
    x, y = dataset.test.x, dataset.test.y
    cut = x.clip(-0.2, np.float32(127 / 640))
    assert np.array_equal(program.quantize.apply(x), program.quantize.apply(cut))
    assert np.array_equal(float_predict(trained, x), float_predict(trained, cut))
    region = Region((Fraction(1, 16),), dataset.domain)
    least, most, _ = region.boxes(program, x)
    pure = (x == -0.5) | (x == 0.5)
    assert pure.any() and np.array_equal(least[pure], most[pure])
    found = certify(program, region, x, y, threads=1)
    assert found.certified.any()
    rng = np.random.default_rng(0)
    for _ in range(50):
        moves = rng.uniform(-1 / 16, 1 / 16, x.shape) if rng.random() < 0.5 else rng.choice([-1 / 16, 1 / 16], x.shape)
        codes = program.quantize.apply((x + moves).clip(-0.5, 0.5).astype(np.float32))
        assert ((least <= codes) & (codes <= most)).all()
        assert won_by(program, codes, y)[found.certified].all()
