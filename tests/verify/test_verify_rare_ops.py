"""Bounds, lines and verdicts of the ops that few networks have: larger and smaller ones, rows, upsampling, a softmax inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from brute import check_verdicts, programs
from strategies import IN_C, RARE
from test_verify_interval import check_attained, check_engine, check_sound
from test_verify_relax import check_rows

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import Isotone, Program, Softmax
from cactus_edge.ir.binary import Extreme
from cactus_edge.verify import interval as interval_module
from cactus_edge.verify.decide import Decider

NAMES = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")
KINDS = dict(
    zip(RARE, ("Maximum", "Minimum", "DenseRows", "TransposeConv2d", "ResizeBilinear", "Softmax"), strict=True)
)
CASES = [(name, op) for name in NAMES for op in RARE if KINDS[op] in PROFILES[name].rules]


def with_op(name: str, op: str, count: int, **options: Any) -> list[Program]:
    """Random networks of that op among others, under that profile."""
    return programs(0, count, arithmetic=PROFILES[name], **({"middle": (op, op, *IN_C), "max_nodes": 4} | options))


def test_most_runtimes_run_them() -> None:
    assert len(CASES) > 20


@pytest.mark.parametrize(("name", "op"), CASES)
def test_bounds_hold_and_the_engine_equals_its_definition(name: str, op: str) -> None:
    for k, program in enumerate(with_op(name, op, 8)):
        check_sound(program, program, k, 5)
        check_engine(program, k)
        check_rows(program, k)


@pytest.mark.parametrize("op", [op for op in RARE if op != "softmax"])
def test_bounds_of_one_op_are_attained(op: str) -> None:
    for k, program in enumerate(with_op("tflm", op, 10, middle=(op,), max_nodes=1, ends=("",))):
        if len(program.steps) == 1 or op not in ("maximum", "minimum"):
            check_attained(program, k)


@pytest.mark.parametrize("name", NAMES)
def test_a_certified_region_is_won_by_every_execution(name: str) -> None:
    certified = 0
    for k, program in enumerate(with_op(name, "maximum", 25, middle=(*RARE, "dense", "dense"), max_nodes=3)):
        try:
            Decider(program)
        except UnsupportedError:
            continue
        certified += check_verdicts(program, k)
    assert certified > 5


def swapped(program: Program) -> Program:
    steps = (
        replace(s, atom=replace(s.atom, rule=Extreme(not s.atom.rule.larger)))
        if isinstance(s.atom, Isotone) and isinstance(s.atom.rule, Extreme)
        else s
        for s in program.steps
    )
    return replace(program, steps=tuple(steps))


def test_the_check_sees_the_smaller_for_the_larger() -> None:
    with pytest.raises(AssertionError):
        for k, program in enumerate(with_op("tflm", "maximum", 12)):
            check_sound(swapped(program), program, k, 5)


def test_the_check_sees_a_softmax_that_is_taken_for_monotone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = interval_module.step_bounds

    def wrong(atom: Any, args: Any) -> Any:
        return tuple(atom.apply(end) for end in args[0]) if isinstance(atom, Softmax) else real(atom, args)

    monkeypatch.setattr(interval_module, "step_bounds", wrong)
    with pytest.raises(AssertionError):
        for k, program in enumerate(with_op("tflm", "softmax", 20)):
            check_sound(program, program, k, 5)
