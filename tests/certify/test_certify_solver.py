"""The solver finds a counterexample exactly where there is one; what a wrong encoding finds, the replay refuses."""

from __future__ import annotations

import numpy as np
import pytest
from brute import boxes
from search_kit import balls, decidable, network, robust

from cactus_edge.certify import solver
from cactus_edge.certify.solver import Answer, search
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.goal import Goal
from cactus_edge.verify.interval import propagate

pytest.importorskip("ortools")


def asked(program: Program, lower: np.ndarray, upper: np.ndarray, label: int) -> Answer:
    known = [(low[0], high[0]) for low, high in propagate(program, lower[None], upper[None])]
    return search(Goal(program), program, known, label, seconds=5, limit="work", start=lower)


def test_an_answer_is_the_truth() -> None:
    seen = set()
    for seed in range(6):
        program = network(seed, (6,) if seed % 2 else (5, 4))
        lower, upper, labels, _ = balls(program, seed, 4, radius=4 + seed)
        for lo, hi, label in zip(lower, upper, labels.tolist(), strict=True):
            answer = asked(program, lo, hi, label)
            truth = robust(program, lo, hi, label)
            assert answer.none == truth and (answer.found is None) == truth
            if answer.found is not None:
                assert (lo <= answer.found).all() and (answer.found <= hi).all()
            seen.add(truth)
    assert seen == {True, False}


def test_an_encoding_with_thresholds_off_by_one_finds_what_the_replay_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level begins far too early: the model then has outputs that the network has not."""

    def early(rule: object, low: Int64, high: Int64) -> tuple[Int64, Int64]:
        levels, t = original(rule, low, high)  # type: ignore[arg-type]
        return levels, np.where((t > low) & (t <= high), np.maximum(t - 400, low + 1), t)

    original = solver.thresholds
    monkeypatch.setattr(solver, "thresholds", early)
    refused = 0
    for seed in range(8):
        program = network(seed)
        lower, upper, labels, _ = balls(program, seed, 6, radius=6)
        for lo, hi, label in zip(lower, upper, labels.tolist(), strict=True):
            answer = asked(program, lo, hi, label)
            assert answer.found is None or not robust(program, lo, hi, label)
            refused += answer.why == "the solver's counterexample is none"
    assert refused


def test_random_graphs_are_encoded_or_refused() -> None:
    answers = 0
    for seed, program in enumerate(decidable(6_000, 25)):
        lower, x, upper = boxes(np.random.default_rng(seed), program.values[program.input].shape, 2)
        labels = run(program, x).reshape(2, -1).argmax(1)
        for lo, hi, label in zip(lower, upper, labels.tolist(), strict=True):
            answer = asked(program, lo, hi, label)
            answers += answer.none or answer.found is not None
            assert answer.why
    assert answers >= 10
