"""Bounds, verdicts and overflow proofs under the arithmetics other than TFLM's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import boxes, inside, margins, programs
from hypothesis import given
from hypothesis import strategies as st
from test_verify_interval import check_engine, check_sound
from tinyengine_kit import translated_programs

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir import evaluate
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.atoms import Affine, Isotone, Monotone, Program, Softmax
from cactus_edge.ir.binary import AddRule, FixedPointAddRule, FloatAddRule, FusedAddRule
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.rules import (
    FloatAffine,
    FloatRequantise,
    FloatRescale,
    FloatSoftmaxRule,
    Requantise,
    float_softmax_rule,
    table_softmax_rule,
)
from cactus_edge.verify import goal as goal_module
from cactus_edge.verify.decide import Decider, decide
from cactus_edge.verify.interval import staircase, thresholds
from cactus_edge.verify.overflow import prove

OTHERS = [name for name in PROFILES if name != "tflm"]
MIDDLE = {
    "x-cube-ai": ("conv2d", "depthwise_conv2d", "dense", "avg_pool", "reshape"),
    "plumerai": ("conv2d", "depthwise_conv2d", "dense", "avg_pool", "reshape"),
    "ort-x86": (
        "conv2d",
        "dense",
        "depthwise_conv2d",
        "add",
        "add",
        "mean",
        "max_pool",
        "relu",
        "requantize",
        "concat",
    ),
    "litert-builtin": ("conv2d", "depthwise_conv2d", "dense", "avg_pool", "max_pool", "mean", "relu", "relu6"),
}


def under(name: str, seed: int, count: int, **options: Any) -> list[Program]:
    """Random networks of the ops that the profile runs."""
    if name == "tinyengine":
        return translated_programs(seed, count, options["max_nodes"])
    kinds = MIDDLE.get(
        name,
        ["conv2d", "depthwise_conv2d", "dense", "add", "avg_pool", "mean", "requantize", "relu", "max_pool", "concat"],
    )
    return programs(seed, count, arithmetic=profile(name), **({"middle": kinds, "ends": ("",)} | options))


@pytest.mark.parametrize("name", OTHERS)
def test_bounds_hold_random_networks(name: str) -> None:
    for k, program in enumerate(under(name, 0, 40, max_nodes=5)):
        check_sound(program, program, k, 6)


@pytest.mark.parametrize("name", OTHERS)
def test_the_engine_equals_its_definition(name: str) -> None:
    for k, program in enumerate(under(name, 500, 30, max_nodes=4)):
        check_engine(program, k)


def spoiled(program: Program) -> Program:
    """The program with another rounding, or another constant, in each of its rules."""

    def other(atom: Any) -> Any:
        match atom:
            case Monotone(FloatRequantise() as rule):
                return Monotone(replace(rule, zero_point=rule.zero_point + 1))
            case Monotone(FloatAffine() as rule):
                return Monotone(replace(rule, offset=rule.offset + 1))
            case Monotone(FloatRescale() as rule):
                return Monotone(replace(rule, zero_point=rule.zero_point + 1))
            case Isotone(FusedAddRule() as rule, signs):
                return Isotone(replace(rule, zero_point=rule.zero_point + 1), signs)
            case Isotone(FixedPointAddRule() | FloatAddRule() | AddRule() as rule, signs):
                return Isotone(replace(rule, zero_point=rule.zero_point + 1), signs)
            case Monotone(Requantise() as rule):
                return Monotone(replace(rule, zero_point=rule.zero_point + 1))
            case _:
                return atom

    return replace(program, steps=tuple(replace(s, atom=other(s.atom)) for s in program.steps))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("litert-xnnpack", kind) for kind in ("dense", "mean", "add")),
        *(("ort-x86", kind) for kind in ("dense", "add", "relu", "requantize")),
        *(("tflm-single-rounding", kind) for kind in ("dense", "add", "mean", "requantize")),
        ("plumerai", "dense"),
        ("tinyengine", "any"),
    ],
)
def test_the_soundness_check_sees_a_wrong_float_rule(name: str, kind: str) -> None:
    with pytest.raises(AssertionError):
        for k, program in enumerate(under(name, 0, 20, max_nodes=1, middle=(kind,))):
            check_sound(spoiled(program), program, k)


@given(
    rule=st.one_of(
        st.builds(
            lambda f, m, z: FloatRequantise(f, np.array([float(np.float32(m))]), z),
            st.sampled_from(["F", "E", "T"]),
            st.floats(2.0**-16, 1.0),
            st.integers(-128, 127),
        ),
        st.builds(lambda m, b: FloatAffine(m, b), st.floats(2.0**-16, 1.0, width=32), st.floats(-300, 300, width=32)),
    ),
    start=st.integers(-(2**20), 2**20),
    width=st.integers(0, 2000),
)
def test_a_float_staircase_is_its_rule_everywhere(rule: Any, start: int, width: int) -> None:
    low, high = np.array([start]), np.array([start + width])
    a = np.arange(start, start + width + 1)[:, None]
    levels, t = thresholds(rule.apply, low, high)
    for level, at in zip(levels, t[:, 0], strict=True):
        assert at > high[0] or rule.apply(np.array([at]))[0] >= level
        assert at <= low[0] or rule.apply(np.array([at - 1]))[0] < level
    found = staircase(rule, low, high, np.float32)
    if found is not None:
        assert np.array_equal(found((2 * a).astype(np.float32)), rule.apply(a))


@pytest.mark.parametrize(
    ("name", "end"),
    [(n, end) for n in OTHERS for end in ("", "softmax") if not end or "Softmax" in PROFILES[n].rules],
)
def test_no_certified_point_ties_or_loses(name: str, end: str) -> None:
    certified = 0
    options: dict[str, Any] = {"max_nodes": 1, "middle": ("dense",)} if end else {"max_nodes": 3}
    for k, program in enumerate(under(name, 900, 25, ends=(end,), **options)):
        try:
            decider = Decider(program)
        except UnsupportedError:
            continue
        rng = np.random.default_rng(k)
        lo, x, hi = boxes(rng, program.values[program.input].shape, 10)
        y = evaluate.run(program, x).reshape(len(x), -1).argmax(1)
        found, _ = decider.decide(lo, hi, y)
        for i in np.flatnonzero(found):
            assert margins(program, inside(rng, lo[i], hi[i])[0], int(y[i])).min() >= 1
        certified += int(found.sum())
    assert certified > 10


def test_float_softmax_separates_agrees_with_the_rule() -> None:
    """Wherever the criterion holds for exact exponentials, the outputs differ strictly; and it is rarely too careful."""
    rng = np.random.default_rng(0)
    held = strict = 0
    for scale in (0.004, 0.03, 0.1, 0.7):
        rule = float_softmax_rule(1.0, scale)
        x = np.sort(rng.integers(-128, 128, (4000, 10)) // rng.choice([1, 4, 30], (4000, 1)), axis=1)[:, ::-1]
        out = rule.apply(x)
        e = rule.table[x - x[:, :1] + 255]
        holds = goal_module.float_softmax_separates(e)[:, 1:]
        wins = out[:, :1] > out[:, 1:]
        assert not (holds & ~wins).any()
        # A C library's exponentials in the last place.
        shaken = replace(rule, table=np.append(np.nextafter(rule.table[:-1], np.float32(2)), np.float32(1)))
        moved = shaken.apply(x)
        assert not (holds & ~(moved[:, :1] > moved[:, 1:])).any()
        held, strict = held + holds.sum(), strict + wins.sum()
    assert held > 0.9 * strict


def test_table_softmax_separates_agrees_with_the_rule() -> None:
    rng = np.random.default_rng(0)
    held = strict = 0
    for scale in (0.004, 0.03, 0.1, 0.7):
        rule = table_softmax_rule(1.0, scale)
        x = np.sort(rng.integers(-128, 128, (4000, 10)) // rng.choice([1, 4, 30], (4000, 1)), axis=1)[:, ::-1]
        out = rule.apply(x)
        holds = goal_module.table_softmax_separates(rule.table[x - x[:, :1] + 255])[:, 1:]
        wins = out[:, :1] > out[:, 1:]
        assert not (holds & ~wins).any()
        # A C library's exponentials in the last place move an entry by one.
        moved = replace(rule, table=np.minimum(rule.table + 1, 65535)).apply(x)
        assert not (holds & ~(moved[:, :1] > moved[:, 1:])).any()
        held, strict = held + holds.sum(), strict + wins.sum()
    assert held > 0.9 * strict


def test_the_table_softmax_check_sees_a_missing_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goal_module, "table_softmax_separates", lambda e: e < 65535)
    with pytest.raises(AssertionError):
        test_table_softmax_separates_agrees_with_the_rule()


def test_the_softmax_check_sees_a_missing_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goal_module, "float_softmax_separates", lambda e: e < 1)
    with pytest.raises(AssertionError):
        test_float_softmax_separates_agrees_with_the_rule()


def test_a_float_table_that_is_not_monotone_is_refused() -> None:
    (program,) = under("litert-builtin", 1, 1, max_nodes=1, middle=("dense",), ends=("softmax",))
    rule = program.steps[-1].atom.rule  # type: ignore[union-attr]
    assert isinstance(rule, FloatSoftmaxRule)
    table = rule.table.copy()
    table[100] = 1
    atom = Softmax(FloatSoftmaxRule(table))
    with pytest.raises(UnsupportedError, match="monotone"):
        Decider(replace(program, steps=(*program.steps[:-1], replace(program.steps[-1], atom=atom))))


# Overflow


def test_the_proof_lists_what_the_float_rules_and_xnnpack_add_compute() -> None:
    (dense,) = under("litert-xnnpack", 1, 1, max_nodes=1, middle=("dense",))
    assert "the value that becomes a float" in {f.quantity for f in prove(dense)}
    (add,) = under("litert-xnnpack", 1, 1, max_nodes=1, middle=("add",))
    rule = next(s.atom.rule for s in add.steps if isinstance(s.atom, Isotone))
    assert isinstance(rule, FixedPointAddRule)
    (fact,) = [f for f in prove(add) if f.op == "Add"]
    codes = np.array([-128, 127])
    for x in codes:
        for y in codes:
            worst = abs(x * rule.multipliers[0]) + abs(y * rule.multipliers[1]) + (1 << (rule.shift - 1))
            folded = sum(abs(z * m) for z, m in zip(rule.zero_points, rule.multipliers, strict=True))
            assert worst + folded <= fact.bound <= fact.limit


@pytest.mark.parametrize("name", ["litert-xnnpack", "litert-ref"])
def test_an_accumulator_beyond_int32_is_refused(name: str) -> None:
    (program,) = under(name, 2, 1, max_nodes=1, middle=("dense",))
    first = program.steps[0]
    assert isinstance(first.atom, Affine)
    big = replace(first.atom, bias=first.atom.bias + 2**31)
    with pytest.raises(ModelError, match="may reach"):
        prove(replace(program, steps=(replace(first, atom=big), *program.steps[1:])))


def test_family_e_converts_before_it_clamps() -> None:
    (program,) = under("litert-ref", 2, 1, max_nodes=1, middle=("dense",))
    last = program.steps[-1]
    assert isinstance(last.atom, Monotone) and isinstance(last.atom.rule, FloatRequantise)
    wide = Monotone(replace(last.atom.rule, multiplier=last.atom.rule.multiplier * 2.0**40))
    with pytest.raises(ModelError, match="the requantised value and its zero point"):
        prove(replace(program, steps=(*program.steps[:-1], replace(last, atom=wide))))


def test_one_network_has_a_verdict_of_its_own_under_each_arithmetic() -> None:
    """The same file, region and sample: bounds and outputs belong to the profile that is named."""
    seen = set()
    for program in under("litert-xnnpack", 40, 30, max_nodes=3, middle=("conv2d", "dense")):
        rng = np.random.default_rng(0)
        lo, x, hi = boxes(rng, program.values[program.input].shape, 10)
        other = lower(program.graph, profile("tflm"))
        if program.output_tensor.size < 2:
            continue
        y = np.zeros(10, np.int64)
        a, b = (decide(p, lo, hi, y, x).margin for p in (program, other))
        seen.add(bool((a != b).any()))
    assert seen == {True, False}
