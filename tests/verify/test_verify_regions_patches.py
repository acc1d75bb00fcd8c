"""Every filling of every window lies in one of a patch's boxes; what is certified no patch refutes."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from families_kit import UNIT, Array, net

from cactus_edge.ir.evaluate import run
from cactus_edge.verify.decide import certify
from cactus_edge.verify.families import Patch
from cactus_edge.verify.regions import Region, points

IMAGES = [((4, 5, 2), (2, 3)), ((3, 3), (1, 1)), ((3, 4), (3, 4)), ((2, 3, 1), (1, 2))]


def check_patches() -> None:
    """Every window's every filling lies in some box, and every box is one window on the sample."""
    rng = np.random.default_rng(3)
    for shape, size in IMAGES:
        program, around = net(shape), Region((Fraction(0),), UNIT, Patch(*size))
        x = rng.integers(0, 256, (3, *shape)).astype(np.float32) / 255
        low, high, owner = around.boxes(program, x)
        rows, columns = (shape[a] - size[a] + 1 for a in (0, 1))
        assert owner.tolist() == [n for n in range(3) for _ in range(rows * columns)]
        expected = {n: [] for n in range(3)}
        for n, row, column in itertools.product(range(3), range(rows), range(columns)):
            wide, narrow = points(program, x[n][None])[0].copy(), points(program, x[n][None])[0].copy()
            window = np.s_[row : row + size[0], column : column + size[1]]
            narrow[window], wide[window] = -128, 127
            expected[n].append((narrow.tobytes(), wide.tobytes()))
            for got, want in zip(
                around.around(program, x[n], (Fraction(row), Fraction(column))), (narrow, wide), strict=True
            ):
                assert np.array_equal(got, want)
        for n in range(3):
            assert [
                (a.tobytes(), b.tobytes()) for a, b in zip(low[owner == n], high[owner == n], strict=True)
            ] == expected[n]


def test_patches() -> None:
    check_patches()


def test_a_patch_among_noise() -> None:
    program, around = net((2, 2)), Region((Fraction(3, 255),), UNIT, Patch(1, 1))
    low, high, _ = around.boxes(program, np.full((1, 2, 2), 100 / 255))
    assert low[0].tolist() == [[-128, -31], [-31, -31]] and high[0].tolist() == [[127, -25], [-25, -25]]


def test_no_patch_refutes_what_is_certified() -> None:
    certified = 0
    for seed in range(30):
        program = net((2, 2), seed, scale=1.0)
        domain = (Fraction(0), Fraction(5))
        x = np.random.default_rng(seed).integers(0, 6, (6, 2, 2)).astype(np.float32)
        labels = run(program, points(program, x)).argmax(1)
        around = Region((Fraction(0),), domain, Patch(1, 2))
        decision = certify(program, around, x, labels)
        for i in range(6):
            filled = []
            for row, *values in itertools.product(range(2), range(6), range(6)):
                image = x[i].copy()
                image[row] = values
                filled.append(image)
            outputs = run(program, points(program, np.stack(filled))).astype(int)
            wins = outputs[:, labels[i]] > np.delete(outputs, labels[i], 1).max(1)
            assert wins.all() or not decision.certified[i]
            certified += int(decision.certified[i])
    assert certified > 20


# Planted faults.


def test_checks_see_a_position_missed_at_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Patch._positions
    monkeypatch.setattr(
        Patch, "_positions", lambda self, shape: (right(self, shape)[0], max(1, right(self, shape)[1] - 1))
    )
    with pytest.raises(AssertionError):
        check_patches()


def test_checks_see_a_window_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Patch.moved

    def wrong(self: Patch, x: Array, owner: Array, position: Array) -> Any:
        return right(Patch(self.height, max(1, self.width - 1)), x, owner, position)

    monkeypatch.setattr(Patch, "moved", wrong)
    with pytest.raises((AssertionError, ValueError)):
        check_patches()
