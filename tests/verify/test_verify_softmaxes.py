"""Margins beside which a softmax separates under one rule and ties under another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute import UNCONDITIONAL

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.verify import goal as goal_module
from cactus_edge.verify.goal import Goal


def unlike_softmaxes(scale: float) -> list[Program]:
    """A softmax of two classes on logits of this scale, under every profile that runs it; margins of 1 separate in some of them."""
    build = GraphBuilder()
    one = ops.freeze(np.ones(1, np.float32), np.float32)
    small = float(np.float32(scale))
    x = build.input(Tensor("x", (1,), "int8", small, 0))
    dense = ops.Dense(ops.freeze([[1], [0]], np.int8), ops.freeze([0, 0], np.int32), one)
    x = build.node(dense, [x], Tensor("logits", (2,), "int8", small, 0))
    graph = build.finish(build.node(ops.Softmax(), [x], Tensor("p", (2,), "int8", 1 / 256, -128)))
    found = []
    for row in UNCONDITIONAL:
        try:
            found.append(lower(graph, row))
        except UnsupportedError:
            continue
    return found


def check_every_softmax() -> int:
    """Of how many rows of margins the rules say different things; the mixture says what all of them say, in whatever order."""
    rows = np.array([[0, m] for m in range(-2, 12)])
    labels, differ = np.zeros(len(rows), np.int64), 0
    for scale in np.linspace(0.0077, 0.0083, 13):
        group = unlike_softmaxes(scale)
        own = np.array([Goal(p).won(rows, labels) for p in group])
        differ += int((own.any(0) != own.all(0)).sum())
        for order in (group, group[::-1]):
            assert np.array_equal(Goal(mix(order)).won(rows, labels), own.all(0)), scale
    return differ


def test_a_softmax_separates_only_where_every_rule_does() -> None:
    assert check_every_softmax() > 0


def test_the_check_of_softmaxes_sees_all_but_one_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = goal_module._logits
    monkeypatch.setattr(goal_module, "_logits", lambda program: (real(program)[0][:1], real(program)[1]))
    with pytest.raises(AssertionError):
        check_every_softmax()


def ties_that_are_wins() -> int:
    """Two logits 1 apart whose softmax is 256 / 2 +- 1/2, nearly: of all float32 scales around there, where a win is said of a tie."""
    middle = np.float32(np.log(257 / 255))
    near = (middle.view(np.int32) + np.arange(-40, 41, dtype=np.int32)).view(np.float32)
    wrong = said = 0
    for scale in (*near, *np.linspace(0.0075, 0.0081, 25)):
        for program in unlike_softmaxes(float(scale)):
            for m in (1, 2):
                won = Goal(program).won(np.array([[0, m]]), np.zeros(1, np.int64))[0, 1]
                out = run(program, np.array([[m]], np.int8))[0]
                wrong, said = wrong + int(won and out[0] <= out[1]), said + int(won)
    assert said > 100
    return wrong


def test_no_softmax_is_said_to_separate_what_it_ties() -> None:
    assert ties_that_are_wins() == 0


def without_slack(e: Any) -> Any:
    wide = e.astype(np.float64)
    return 256 * (1 + 2e-6 - wide) >= wide.sum(1, keepdims=True)


def test_the_check_of_ties_sees_a_slack_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goal_module, "float_softmax_separates", without_slack)
    assert ties_that_are_wins() > 0
