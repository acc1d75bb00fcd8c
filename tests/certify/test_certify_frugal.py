"""Rows that are left out cost no verdict, and whatever the others show the checker accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from search_kit import balls, decidable, network

from cactus_edge.certify import frugal as module
from cactus_edge.certify.frugal import Frugal
from cactus_edge.certify.linear import Linear
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.verify.check import Checker
from cactus_edge.verify.proof import Record, Robust


def around(program: Program, seed: int, count: int) -> tuple[Any, Any, Any]:
    """Boxes of any sizes around random points with the classes they have."""
    rng = np.random.default_rng(seed)
    shape = program.values[program.input].shape
    centres = rng.integers(-100, 100, (count, *shape))
    radius = rng.integers(0, 24, (count, *(1,) * len(shape)))
    labels = run(program, centres.astype(np.int8)).reshape(count, -1).argmax(1).astype(np.int64)
    lower, upper = (np.clip(centres + side * radius, -128, 127).astype(np.int8) for side in (-1, 1))
    return lower, upper, labels


def searched(program: Program, seed: int, count: int = 24) -> tuple[Linear, list[Record]]:
    lower, upper, labels = around(program, seed, count)
    search = Linear(program)
    return search, search.records(lower, upper, np.arange(count), labels)


def networks() -> list[Program]:
    return [network(seed, hidden, 4, 6) for seed in range(6) for hidden in ((), (12,), (10, 8), (9, 8, 7))]


def test_the_checker_accepts_what_they_show() -> None:
    shown = 0
    for k, program in enumerate(networks() + decidable(900, 25)):
        search, records = searched(program, k)
        assert Checker(program, search.slopes).holds(records).all()
        lines = [r for r in records if isinstance(r.verdict, Robust) and r.verdict.sheets]
        shown += len(lines)
    assert shown > 40


def test_they_show_what_all_rows_show(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [[r.verdict is not None for r in searched(p, k)[1]] for k, p in enumerate(networks())]
    monkeypatch.setattr(module, "_picks", lambda program, narrow: True)
    every = [[r.verdict is not None for r in searched(p, k)[1]] for k, p in enumerate(networks())]
    assert not (np.array(few) & ~np.array(every)).any()
    assert np.sum(few) > 0.98 * np.sum(every)


@pytest.mark.parametrize("size", [1, 1 << 10])
def test_blocks_change_no_result(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [[r.verdict is not None for r in searched(p, k)[1]] for k, p in enumerate(networks()[:12])]
    monkeypatch.setattr(module, "BLOCK", size)
    assert usual == [[r.verdict is not None for r in searched(p, k)[1]] for k, p in enumerate(networks()[:12])]


def test_rows_are_left_out() -> None:
    program = network(0, (10, 8), 4, 6)
    search, (lower, upper, _) = Linear(program), around(program, 0, 24)
    known, _ = search.checker.relaxation.forward(lower, upper)
    bent = [search.frugal._bent(v, *known[v]).mean() for v in search.narrow if v != search.frugal.value]
    assert bent and all(0 < share < 0.8 for share in bent)


def a_row_more(patch: pytest.MonkeyPatch) -> None:
    real = Frugal._bound
    patch.setattr(Frugal, "_bound", lambda self, *args: real(self, *args) + 400)


def another_sample(patch: pytest.MonkeyPatch) -> None:
    real = Frugal._bound
    patch.setattr(Frugal, "_bound", lambda self, value, sample, *args: real(self, value, 0 * sample, *args))


def open_is_won(patch: pytest.MonkeyPatch) -> None:
    real = Frugal._rows
    patch.setattr(Frugal, "_rows", lambda self, pairs: np.abs(real(self, pairs)))


@pytest.mark.parametrize("fault", [a_row_more, another_sample, open_is_won])
def test_a_fault_makes_proofs_that_the_checker_rejects(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    for k, program in enumerate(networks()):
        search, records = searched(program, k)
        if not Checker(program, search.slopes).holds(records).all():
            return
    pytest.fail("all proofs hold")


def test_points_are_decided_like_balls() -> None:
    program = network(3, (10, 8), 4, 6)
    lower, upper, labels, _ = balls(program, 5, 8, 0)
    records = Linear(program).records(lower, upper, np.arange(8), labels)
    out = np.sort(run(program, lower).astype(np.int64), 1)
    assert [isinstance(r.verdict, Robust) for r in records] == (out[:, -1] > out[:, -2]).tolist()
