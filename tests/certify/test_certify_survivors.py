"""What a build's attack leaves, and that an attack which turns a certified sample is an error of ours, never a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from search_kit import network

from cactus_edge import assess
from cactus_edge.certify import attack as attacks
from cactus_edge.certify.attack import attack
from cactus_edge.errors import InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run

Array = npt.NDArray[Any]


def samples() -> tuple[Program, Array, Array, Array, Array]:
    """A network, boxes around 30 points, the points and the labels that win there."""
    program, rng = network(0), np.random.default_rng(0)
    start = rng.integers(-100, 100, (30, *program.input_tensor.shape)).astype(np.int8)
    low, high = (np.clip(start.astype(int) + d, -128, 127).astype(np.int8) for d in (-25, 25))
    return program, low, high, start, run(program, start).reshape(30, -1).argmax(1)


EVERYONE, NO_ONE = np.ones(30, np.bool_), np.zeros(30, np.bool_)


def test_survivors_are_those_that_the_attack_leaves_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    program, low, high, start, labels = samples()
    fallen = attack(program, low, high, labels, start=start, seed=0).found
    assert 0 < fallen.sum() < 30
    told: list[tuple[int, int, str]] = []

    def advance(done: int, total: int, what: str) -> None:
        told.append((done, total, what))

    left = assess.survivors(program, low, high, start, labels, EVERYONE, NO_ONE, 0, advance)
    assert left == 30 - fallen.sum() and told == [(30, 30, "attacked")]
    monkeypatch.setattr(assess, "ATTACKED", 12)
    told.clear()
    assert assess.survivors(program, low, high, start, labels, EVERYONE, NO_ONE, 0, advance) < 30
    assert [done for done, _, _ in told] == [12, 24, 30]


def test_who_is_wrong_survives_nothing_and_is_not_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    program, low, high, start, labels = samples()
    fallen = attack(program, low[4:], high[4:], labels[4:], start=start[4:], seed=0).found
    labels[:4], right = (labels[:4] + 1) % 3, np.arange(30) >= 4
    attacked: list[int] = []

    def counted(program: Program, low: Array, *rest: Any, **options: Any) -> Any:
        attacked.append(len(low))
        return attack(program, low, *rest, **options)

    monkeypatch.setattr(attacks, "attack", counted)
    assert assess.survivors(program, low, high, start, labels, right, NO_ONE, 0) == 26 - fallen.sum()
    assert attacked == [26]


def test_each_class_has_its_own_counts() -> None:
    y = np.array([2, 0, 2, 0, 2, 5])
    right, certified = (np.array([c == "x" for c in side]) for side in ("xx.xx.", "x....."))
    assert assess.by_class(y, right, certified) == [[0, 2, 2, 0], [2, 3, 2, 1], [5, 1, 0, 0]]


def test_a_certified_sample_that_falls_is_an_error_of_ours() -> None:
    """Of the certified a tenth is attacked all the same: three of thirty."""
    program, low, high, start, labels = samples()
    broken = np.flatnonzero(attack(program, low, high, labels, start=start, seed=0).found)[:1].repeat(30)
    low, high, start, labels = low[broken], high[broken], start[broken], labels[broken]
    with pytest.raises(InternalError, match="sample 0 was certified, and an attack turned it"):
        assess.survivors(program, low, high, start, labels, EVERYONE, EVERYONE, 0)
