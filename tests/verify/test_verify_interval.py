"""Bounds hold every concrete execution, and the compiled engine computes the definition's bounds exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import TFLM, boxes, inside, programs, with_rules
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs, regions

from cactus_edge.errors import InternalError, UnsupportedError
from cactus_edge.ir import evaluate, linear, ops
from cactus_edge.ir.atoms import (
    Affine,
    Gather,
    Isotone,
    Monotone,
    Program,
    ReshapeTo,
    Softmax,
    Step,
    Table,
    Value,
)
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.rules import Clamp, Requantise, RoundDivide
from cactus_edge.verify import interval
from cactus_edge.verify.interval import Engine, accumulate, full_range, propagate, staircase, step_bounds, thresholds


def check_sound(bounded: Program, truth: Program, seed: int, n: int = 10) -> None:
    """No value of a concrete execution of `truth` leaves the bounds computed on `bounded`."""
    rng = np.random.default_rng(seed)
    lo, _, hi = boxes(rng, truth.values[truth.input].shape, n)
    bounds = propagate(bounded, lo, hi)
    for i in range(n):
        points, _ = inside(rng, lo[i], hi[i])
        for (low, high), value in zip(bounds, evaluate.values(truth, points), strict=True):
            assert (low[i] <= value).all() and (value <= high[i]).all()


def check_attained(program: Program, seed: int) -> None:
    """Where one op follows the input and the box is enumerated, its bounds are attained, element by element."""
    rng = np.random.default_rng(seed)
    lo, _, hi = boxes(rng, program.values[program.input].shape, 5)
    bounds = propagate(program, lo, hi)
    for i in range(5):
        points, all_of_them = inside(rng, lo[i], hi[i])
        if all_of_them:
            for (low, high), value in zip(bounds, evaluate.values(program, points), strict=True):
                assert np.array_equal(value.min(0), low[i]) and np.array_equal(value.max(0), high[i])


def check_engine(program: Program, seed: int) -> None:
    """The compiled engine equals `propagate`, over boxes of all sizes, for all values and for a few."""
    rng = np.random.default_rng(seed)
    lo, _, hi = boxes(rng, program.values[program.input].shape, 10)
    expected = propagate(program, lo, hi)
    every = range(len(program.values))
    for targets in (every, [int(rng.integers(len(program.values)))]):
        for target, (low, high) in zip(targets, Engine(program, targets).run(lo, hi), strict=True):
            assert np.array_equal(low, expected[target][0]) and np.array_equal(high, expected[target][1])


@settings(max_examples=120)
@given(data=st.data())
def test_bounds_hold_every_execution(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    try:
        program = lower(graph, TFLM)
    except UnsupportedError:
        return
    lo, hi = data.draw(regions(graph))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    points, _ = inside(rng, lo, hi)
    bounds = propagate(program, lo[None], hi[None])
    for (low, high), value in zip(bounds, evaluate.values(program, points), strict=True):
        assert (low <= value).all() and (value <= high).all()


@pytest.mark.parametrize("seed", range(0, 600, 100))
def test_bounds_hold_random_networks(seed: int) -> None:
    for k, program in enumerate(programs(seed, 40, max_nodes=6)):
        check_sound(program, program, seed + k)


ALONE = "conv2d depthwise_conv2d dense avg_pool max_pool mean sum requantize hard_swish leaky_relu tanh transpose slice"


@pytest.mark.parametrize("kind", ALONE.split())
def test_bounds_of_one_op_are_attained(kind: str) -> None:
    for k, program in enumerate(programs(7, 10, max_nodes=1, middle=(kind,), ends=("",))):
        check_attained(program, k)


FAULTS: dict[str, Callable[[Program], Program]] = {
    "another rounding family": lambda p: with_rules(p, family="H"),
    "clamp one too low": lambda p: with_rules(p, hi=-1),
    "clamp one too high": lambda p: with_rules(p, lo=1),
    "zero point off by one": lambda p: with_rules(p, zero_point=1),
    "shift off by one": lambda p: with_rules(p, shift=np.int64(-3)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_soundness_check_sees_a_wrong_rule(fault: str) -> None:
    with pytest.raises(AssertionError):
        for k, program in enumerate(programs(0, 60, middle=("dense", "requantize"))):
            check_sound(FAULTS[fault](program), program, k)


@pytest.mark.parametrize("kind", [linear.Conv, linear.Dense])
def test_soundness_check_sees_a_lost_absolute_value(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "absolute", lambda self: self)
    with pytest.raises(AssertionError):
        for k, program in enumerate(programs(0, 20, middle=("conv2d", "dense"))):
            check_sound(program, program, k)


def products(count: int) -> list[Program]:
    """x * y and x - y of two different halves of the input, with every sign of both factors."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        b = GraphBuilder()
        x = b.input(Tensor("x", (2, 1, 2), "int8", 0.5, int(rng.integers(-60, 60))))
        parts = [
            b.node(ops.Slice((k, 0, 0), (1, 1, 2), (1, 1, 1)), [x], replace(b.tensor(x), shape=(1, 2))) for k in (0, 1)
        ]
        op, scale = (ops.Mul(), 16.0) if seed % 2 else (ops.Sub(), 0.75)
        made.append(lower(b.finish(b.node(op, parts, Tensor("y", (1, 2), "int8", scale, 3))), TFLM))
    return made


def test_bounds_of_products_and_differences_are_attained() -> None:
    for k, program in enumerate(products(20)):
        check_attained(program, k)
        check_engine(program, k)


LOOKUP_FAULTS: dict[str, Callable[[Any], Any]] = {
    "a product taken for non-decreasing": lambda a: Isotone(a.rule, (1, 1)) if isinstance(a, Isotone) else a,
    "a difference taken for a sum": lambda a: Isotone(a.rule, (1, 1)) if isinstance(a, Isotone) else a,
    "a table taken for monotone": lambda a: Monotone(a) if isinstance(a, Table) else a,
}


@pytest.mark.parametrize("fault", LOOKUP_FAULTS)
def test_soundness_check_sees_a_wrong_shape(fault: str) -> None:
    made = (
        programs(0, 20, max_nodes=1, middle=("hard_swish",))
        if "table" in fault
        else products(40)["product" in fault :: 2]
    )
    with pytest.raises(AssertionError):
        for k, program in enumerate(made):
            steps = tuple(replace(s, atom=LOOKUP_FAULTS[fault](s.atom)) for s in program.steps)
            check_sound(replace(program, steps=steps), program, k)


@pytest.mark.parametrize("seed", range(0, 600, 100))
def test_engine_equals_definition(seed: int) -> None:
    for k, program in enumerate(programs(seed, 40, max_nodes=6)):
        check_engine(program, seed + k)


def test_a_wrong_guess_is_refused_and_the_rule_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Requantise, "slope", lambda self: np.full(self.multiplier.shape, 0.013))
    monkeypatch.setattr(RoundDivide, "slope", lambda self: np.full(self.divisor.shape, 0.013))
    refused = 0
    for k, program in enumerate(programs(3, 10, middle=("conv2d", "dense", "avg_pool"))):
        check_engine(program, k)
        for step in program.steps:
            if isinstance(step.atom, Affine):
                low, high = step_bounds(step.atom, [full_range(program, step.atom.linear.in_shape)])
                found = next(s.atom.rule for s in program.steps if s.args == (step.out,))  # type: ignore[union-attr]
                refused += staircase(found, low[0], high[0], np.float32) is None  # type: ignore[arg-type]
    assert refused > 5


def test_engine_check_sees_an_unproved_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    real = interval.Staircase.__call__

    def late(self: interval.Staircase, t2: Any) -> Any:
        """Answers rightly while the guess is judged (few dimensions), wrongly in use."""
        moved = replace(self, above=self.above + 0.5, under=None if self.under is None else self.under + 0.5)
        return real(moved if t2.shape[0] == 10 else self, t2)

    monkeypatch.setattr(interval.Staircase, "__call__", late)
    with pytest.raises(AssertionError):
        for k, program in enumerate(programs(3, 10, middle=("dense",))):
            check_engine(program, k)


RULES = st.one_of(
    st.builds(
        lambda m, s, z, lo, hi: Requantise("D", np.array([m]), np.array([s]), z, min(lo, hi), max(lo, hi)),
        st.one_of(st.integers(2**30, 2**31 - 1), st.just(0)),
        st.integers(-24, 2),
        st.integers(-128, 127),
        st.integers(-128, 127),
        st.integers(-128, 127),
    ),
    st.builds(lambda d: RoundDivide(np.array([d])), st.integers(1, 400)),
    st.builds(lambda a, b: Clamp(min(a, b), max(a, b)), st.integers(-128, 127), st.integers(-128, 127)),
)


@settings(max_examples=300)
@given(rule=RULES, start=st.integers(-(2**20), 2**20), width=st.integers(0, 3000), wide=st.booleans())
def test_a_staircase_is_its_rule_everywhere(rule: Any, start: int, width: int, wide: bool) -> None:
    low, high = np.array([-(2**22) if wide else start]), np.array([2**22 if wide else start + width])
    levels, t = thresholds(rule.apply, low, high)
    for level, at in zip(levels, t[:, 0], strict=True):
        assert at > high[0] or rule.apply(np.array([at]))[0] >= level
        assert at <= low[0] or rule.apply(np.array([at - 1]))[0] < level
    found = staircase(rule, low, high, np.float32)
    assert found is not None
    if wide:
        near = (t + np.arange(-3, 4)).ravel()
        a = np.concatenate([near, np.random.default_rng(width).integers(low[0], high[0] + 1, 500)])
        a = a[(a >= low[0]) & (a <= high[0])]
    else:
        a = np.arange(low[0], high[0] + 1)
    assert np.array_equal(found((2 * a[:, None]).astype(np.float32)), rule.apply(a[:, None]))


@pytest.mark.parametrize(
    ("weight", "bias", "dtype"),
    [
        (127, 0, np.float32),
        (127, 2**23, np.float64),
        (127, 2**52, np.int64),
    ],
)
def test_the_carrier_is_chosen_by_proof(weight: int, bias: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    w = rng.choice(np.array([-weight, weight], np.int8), (3, 300))
    affine = Affine(linear.Dense(w, (300,)), 5, np.full(3, bias, np.int64))
    compiled = accumulate(affine, (-128, 127))
    assert compiled.dtype is dtype
    lo, _, hi = boxes(rng, (300,), 20)
    expected = step_bounds(affine, [(lo.astype(np.int64), hi.astype(np.int64))])
    got = compiled.ends(lo.astype(np.float32), hi.astype(np.float32))
    for e, g in zip(expected, got, strict=True):
        assert np.array_equal(2 * e, g.astype(np.int64))


def test_the_largest_float32_layer_is_exact() -> None:
    """Just under the limit: 2 * (128 * 127 * 516 + ...) < 2^24, all terms of one sign."""
    w = np.full((1, 514), 127, np.int8)
    affine = Affine(linear.Dense(w, (514,)), 0, np.array([20_000]))
    compiled = accumulate(affine, (-128, 127))
    assert compiled.dtype is np.float32
    for value in (-128, 127):
        x = np.full((1, 514), value)
        low, high = compiled.ends(x.astype(np.float32), x.astype(np.float32))
        assert low[0, 0] == high[0, 0] == 2 * (514 * 127 * value + 20_000)


def test_an_accumulator_that_another_atom_reads_is_refused() -> None:
    """The engine holds accumulators doubled: nothing but a rule may read one."""
    (program,) = programs(1, 1, max_nodes=1, middle=("dense",), ends=("",))
    acc = program.steps[0].out
    values = (*program.values, Value(program.values[acc].shape, None, "copy"))
    step = Step(Gather(ReshapeTo(program.values[acc].shape)), (acc,), len(program.values), 0)
    with pytest.raises(TypeError, match="doubled"):
        Engine(replace(program, values=values, steps=(*program.steps, step)), [len(program.values)])


def test_a_matrix_library_that_takes_short_cuts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = linear.Dense.apply

    def bfloat16(self: Any, x: Any) -> Any:
        result = real(self, x)
        return (
            result if x.dtype == np.int64 else (result.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
        )

    monkeypatch.setattr(linear.Dense, "apply", bfloat16)
    (program,) = programs(4, 1, max_nodes=1, middle=("dense",), ends=("",))
    with pytest.raises(InternalError, match="definition"):
        Engine(program, range(len(program.values)))


def test_softmax_is_bounded_by_all_of_int8() -> None:
    (program,) = programs(1, 1, max_nodes=1, middle=("dense",), ends=("softmax",))
    assert isinstance(program.steps[-1].atom, Softmax)
    lo, _, hi = boxes(np.random.default_rng(0), program.values[program.input].shape, 2)
    low, high = propagate(program, lo, hi)[-1]
    assert (low == -128).all() and (high == 127).all()
