"""Every verdict of the complete search holds for the checker and agrees with enumeration; broken proofs do not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import boxes, inside
from search_kit import Array, balls, decidable, network, robust

from cactus_edge.certify.attack import strict_win
from cactus_edge.certify.complete import LOST, Budget, Complete, Decided, summary
from cactus_edge.errors import InputError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.verify.check import Checker
from cactus_edge.verify.proof import Leaf, Proof, Record, Robust, Split, Tree, encode, parse

pytest.importorskip("torch")

HIDDEN = ((6,), (8, 6))


def decided(program: Program, lower: Array, upper: Array, labels: Array, start: Array, budget: str) -> list[Decided]:
    search = Complete(program, Budget.parse(budget))
    found = list(search.records(lower, upper, np.arange(len(labels)), labels, start))
    assert Checker(program, search.linear.slopes).holds([d.record for d in found]).all()
    return found


def encoded(program: Program, found: list[Decided]) -> bytes:
    own = Complete(program, Budget(nodes=0)).linear.slopes
    return encode(program, Proof(bytes(32), program.profile.name, len(found), own, [d.record for d in found]))


@pytest.mark.parametrize("hidden", HIDDEN, ids=["one", "two"])
def test_small_networks_are_decided_as_enumeration_decides_them(hidden: tuple[int, ...]) -> None:
    means: Counter[str] = Counter()
    for seed in range(4):
        program = network(seed, hidden)
        lower, upper, labels, centres = balls(program, seed, 12, radius=4 + seed)
        for i, d in enumerate(decided(program, lower, upper, labels, centres, "300n")):
            assert d.record.verdict is not None, d.effort.why
            assert isinstance(d.record.verdict, Robust) == robust(program, lower[i], upper[i], int(labels[i]))
            means[d.effort.by] += 1
    assert means["lines"] and means["attack"]


def test_verdicts_of_random_graphs_hold_and_agree_with_points() -> None:
    for seed, program in enumerate(decidable(5_000, 25)):
        rng = np.random.default_rng(seed)
        shape = program.values[program.input].shape
        lower, x, upper = boxes(rng, shape, 4)
        labels = run(program, x).reshape(4, -1).argmax(1).astype(np.int64)
        for d in decided(program, lower, upper, labels, x, "20n"):
            if isinstance(d.record.verdict, Robust):
                points, _ = inside(rng, d.record.lower, d.record.upper)
                out = run(program, points).reshape(len(points), -1)
                assert strict_win(out, np.full(len(points), d.record.label)).all()


def hard() -> Iterator[tuple[Program, Decided]]:
    """Regions that took branching, with proofs of several leaves."""
    for seed in range(5):
        for hidden in HIDDEN:
            program = network(seed, hidden)
            for d in decided(program, *balls(program, seed, 20, radius=7), "300n"):
                if isinstance(d.record.verdict, Robust) and isinstance(d.record.verdict.tree, Split):
                    yield program, d


def test_broken_trees_do_not_hold() -> None:
    """A dropped leaf, a multiplier of the other sign, a threshold that is off, all slopes zero: each is caught wherever it matters."""
    caught: Counter[str] = Counter()
    for program, d in hard():
        verdict = d.record.verdict
        assert isinstance(verdict, Robust) and isinstance(verdict.tree, Split)
        checker = Checker(program, Complete(program, Budget(nodes=0)).linear.slopes)
        tree = verdict.tree
        faults: dict[str, Robust] = {
            "below": replace(verdict, tree=tree.below),
            "above": replace(verdict, tree=tree.above),
            "signs": replace(verdict, tree=_flipped(tree)),
            "flat": replace(verdict, sheets=tuple(np.zeros_like(s) for s in verdict.sheets)),
        }
        for name, fault in faults.items():
            held = checker.holds([replace(d.record, verdict=fault)])[0]
            caught[name] += not held
    assert all(caught[name] for name in ("below", "above", "flat")), caught


def _flipped(tree: Tree) -> Tree:
    if isinstance(tree, Leaf):
        return replace(
            tree,
            rows=tuple(replace(r, multipliers=tuple(replace(m, mu=-m.mu) for m in r.multipliers)) for r in tree.rows),
        )
    return replace(tree, below=_flipped(tree.below), above=_flipped(tree.above))


def test_a_search_that_prices_multipliers_wrongly_proves_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search then believes bounds that are not there; what it returns still comes from the checker."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "maximum", torch.minimum)
    for seed in range(3):
        program = network(seed)
        lower, upper, labels, centres = balls(program, seed, 10, radius=6)
        for i, d in enumerate(decided(program, lower, upper, labels, centres, "40n")):
            if isinstance(d.record.verdict, Robust):
                assert robust(program, lower[i], upper[i], int(labels[i]))


def test_no_budget_decides_by_lines_alone() -> None:
    program = network(2)
    for budget in ("0s", "0n"):
        found = decided(program, *balls(program, 2, 12, radius=6), budget)
        assert {d.effort.by for d in found} <= {"intervals", "lines", "nothing"}
        assert all((d.record.verdict is None) == (d.effort.by == "nothing") for d in found)
        assert len(summary([d.effort for d in found])) == 1 + sum(d.effort.by == "nothing" for d in found)


def test_a_node_budget_gives_the_same_bytes_every_time() -> None:
    program = network(1, (8, 6))
    first, second = (encoded(program, decided(program, *balls(program, 1, 16, radius=8), "60n")) for _ in range(2))
    assert first == second
    assert len(parse(first, program).records) == 16


def test_a_lost_sample_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    program = network(1, (8, 6))
    lower, upper, labels, centres = balls(program, 1, 20, radius=0)
    samples = np.repeat([0, 1], [18, 2])
    lower[[2, 5, 17]], upper[[2, 5, 17]] = -128, 127
    search, asked = Complete(program, Budget.parse("3n")), list[int]()
    real = Complete._alone

    def alone(self: Complete, part: Any, record: Record, *rest: Any) -> Decided:
        asked.append(record.sample)
        return real(self, part, record, *rest)

    monkeypatch.setattr(Complete, "_alone", alone)
    lost: set[int] = set()
    found = list(search.records(lower, upper, samples, labels, centres, falsify=False, lost=lost))
    assert [d.record.sample for d in found] == samples.tolist() and lost == {0} and asked == [0]
    skipped = [n for n, d in enumerate(found) if d.effort.why == LOST]
    assert skipped == [5, 16, 17] and all(found[n].record.verdict is None for n in skipped)
    assert all((d.record.lower == low).all() for d, low in zip(found, lower, strict=True))
    assert isinstance(found[18].record.verdict, Robust)
    assert len(summary([d.effort for d in found])) == 2
    again = list(search.records(lower, upper, samples, labels, centres, falsify=False, lost={0, 1}))
    assert {d.effort.why for d in again} == {LOST} and asked == [0]


def test_no_regions() -> None:
    program = network(0)
    none = np.zeros((0, 3), np.int8)
    assert decided(program, none, none, np.zeros(0, np.int64), none, "9n") == []


@pytest.mark.parametrize("text", ["", "60", "s", "-1s", "1e3n", "1.5n", "10 s"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="expected seconds or nodes"):
        Budget.parse(text)


def test_budgets() -> None:
    assert Budget.parse("2.5s") == Budget(seconds=2.5)
    assert Budget.parse("500n").nodes == 500
