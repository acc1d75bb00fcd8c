"""A radius for each channel, in the unit of its sensor: exact from the recipe to the region and to the training ball."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cactus_edge import assess
from cactus_edge.errors import InputError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_values import BadValueError, ChannelEps, radius
from cactus_edge.train.bounds import ball
from cactus_edge.train.calibrate import to_graph
from cactus_edge.train.data import Channel, Dataset, Split
from cactus_edge.train.loop import train
from cactus_edge.verify.decide import certify
from cactus_edge.verify.regions import region

CHANNELS = (
    Channel("ax", "g", Fraction(2)),
    Channel("ay", "g", Fraction(2)),
    Channel("gx", "rad/s", Fraction(4)),
)


def signals(channels: tuple[Channel, ...] = CHANNELS, count: int = 12) -> Dataset:
    """Three channels of five steps in [-1, 1], three classes told apart by their mean."""
    rng = np.random.default_rng(0)
    y = np.arange(count, dtype=np.int64) % 3
    x = (rng.uniform(-0.2, 0.2, (count, 5, 1, 3)) + (y[:, None, None, None] - 1) / 2).astype(np.float32)
    split = Split(x, y)
    return Dataset("gait", split, split, split, ("a", "b", "c"), "as made", (Fraction(-1), Fraction(1)), channels)


def test_radii_come_in_the_units_of_the_sensors_and_stay_exact() -> None:
    eps = radius({"g": "0.02", "rad/s": "1/30"})
    data = signals()
    assert data.radii(eps) == (Fraction(1, 100), Fraction(1, 100), Fraction(1, 120))
    assert data.features(eps) == data.radii(eps) * 5
    assert data.said(eps) == "1/50 g (ax, ay) and 1/30 rad/s (gx)"
    assert data.radii(radius(["0.02", "0.02", "0.04"])) == (Fraction(1, 100),)
    assert data.radii(radius({"ax": "0.1", "g": "0.2", "gx": "0"})) == (Fraction(1, 20), Fraction(1, 10), Fraction(0))
    plain = signals(())
    assert plain.radii(Fraction(1, 7)) == (Fraction(1, 7),) and plain.said(Fraction(1, 7)) == ""
    volts = signals(tuple(Channel(n, "mV", Fraction(2)) for n in "abc"))
    assert volts.radii(Fraction(1, 7)) == (Fraction(1, 14),) and volts.said(Fraction(1, 7)) == "1/7 mV"


@pytest.mark.parametrize(
    ("eps", "words"),
    [
        pytest.param("0.1", "g, rad/s", id="one_number_for_two_units"),
        pytest.param(["0.1", "0.1"], "2 radii; 'gait' has 3", id="too_few"),
        pytest.param({"g": "0.1"}, "nothing about gx", id="a_channel_without"),
        pytest.param({"g": "0.1", "rad/s": "0.1", "mT": "1"}, "names 'mT'", id="unknown_unit"),
        pytest.param({"g": "4.1", "rad/s": "0.1"}, "exceeds", id="beyond_the_range"),
    ],
)
def test_a_radius_that_does_not_fit_the_channels_is_refused(eps: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        signals().radii(radius(eps))


@pytest.mark.parametrize("value", [[], {}, ["x"], {"g": -1}, [True], "2"])
def test_what_is_no_radius_is_refused(value: Any) -> None:
    with pytest.raises(BadValueError):
        radius(value)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.fractions(0, 1, max_denominator=64), min_size=3, max_size=3), st.integers(0, 99))
def test_the_ball_holds_each_channel_to_its_own_radius(radii: list[Fraction], seed: int) -> None:
    x = 2 * torch.rand((2, 3, 5, 1), generator=torch.Generator().manual_seed(seed)) - 1
    whole = ball(x, radii, (Fraction(-1), Fraction(1)))
    for c, e in enumerate(radii):
        alone = ball(x[:, c : c + 1], e, (Fraction(-1), Fraction(1)))
        assert torch.equal(whole.centre[:, c : c + 1], alone.centre)
        assert torch.equal(whole.radius[:, c : c + 1], alone.radius)


def test_training_takes_each_channel_at_its_radius(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balls that a stage sees on its way in, of the warm-up, of the last step, and of validation."""
    from cactus_edge.train import loop

    seen: list[Any] = []
    monkeypatch.setattr(loop, "ball", lambda x, eps, domain: seen.append(list(eps)) or ball(x, eps, domain))
    eps = ChannelEps((Fraction(1, 5), Fraction(3, 5)), ("g", "rad/s"))
    recipe = replace(tiny, train=replace(tiny.train, eps=eps), certify=replace(tiny.certify, eps=eps))
    trained = train(recipe, signals(), tmp_path, threads=1)
    assert seen[0] == pytest.approx([0.1, 0.1, 0.15])
    assert seen[1] == [0.0, 0.0, 0.0]
    assert seen[-2] == pytest.approx([0.1, 0.1, 0.15])
    assert seen[-1] == [Fraction(1, 10), Fraction(1, 10), Fraction(3, 20)]
    assert trained.history[-1].eps == pytest.approx(0.6)


def test_the_file_is_certified_for_each_channel_at_its_radius(tiny: Recipe, tmp_path: Path) -> None:
    """The input is signed, its region a box of the radii, and the figures shrink as the multiples of the radii grow."""
    eps = ChannelEps((Fraction(1, 50), Fraction(1, 5)), ("g", "rad/s"))
    recipe = replace(tiny, train=replace(tiny.train, eps=eps), certify=replace(tiny.certify, eps=eps))
    data = signals(count=48)
    trained = train(recipe, data, tmp_path, threads=1)
    program = lower(to_graph(trained, data, recipe), profile("tflm"))
    assert program.quantize.zero_point == 0 and program.codes == (-128, 127)
    x, y = data.test.x, data.test.y
    around = region(program, data.features(eps), data.domain)
    assert around.kind == "box"
    low, high, _ = around.ends(x)
    for c, radius_ in enumerate((0.01, 0.01, 0.05)):
        assert high[..., c] == pytest.approx(np.minimum(x[..., c] + np.float32(radius_), 1), abs=1e-6)
        assert low[..., c] == pytest.approx(np.maximum(x[..., c] - np.float32(radius_), -1), abs=1e-6)
    rows = assess.curve(program, trained, x, y, data.radii(eps), data.domain, 1, lambda *_: None)
    assert [row["eps"] for row in rows] == [float(f) for f in assess.CURVE_FACTORS]
    assert all(a["int8"] >= b["int8"] for a, b in pairwise(rows)) and rows[0]["int8"] > rows[-1]["int8"]
    at_one = next(row for row in rows if row["eps"] == 1)
    decision = certify(program, around, x, y)
    assert at_one["int8"] == decision.certified.mean()
    found = assess.by_class(y, decision.correct, decision.certified)
    assert [row[:2] for row in found] == [[c, 16] for c in range(3)]
    assert sum(row[3] for row in found) == decision.certified.sum()
