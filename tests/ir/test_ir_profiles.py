"""The rules that only some runtimes take: against their definitions, non-decreasing, and refused where nothing was shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.c.blob import to_blob
from cactus_edge.ir import arith, ops, rules
from cactus_edge.ir.arithmetic import PROFILES, profile, profile_table_digest
from cactus_edge.ir.binary import FixedPointAddRule, FusedAddRule
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.rules import FloatAffine, FloatRequantise, Requantise, activation_range

ACC = st.integers(-(2**24), 2**24)
MULTIPLIER = st.integers(2**30, 2**31 - 1)
INT8 = st.integers(-128, 127)


def away(value: Fraction) -> int:
    return int(math.copysign(math.floor(abs(value) + Fraction(1, 2)), value))


def even(value: Fraction) -> int:
    return round(value)


@given(ACC, MULTIPLIER, st.integers(-31, 6))
def test_half_up_is_two_roundings_up(x: int, m: int, s: int) -> None:
    first = math.floor(Fraction(x * 2 ** max(s, 0) * m, 2**31) + Fraction(1, 2))
    expected = math.floor(Fraction(first, 2 ** max(-s, 0)) + Fraction(1, 2))
    assert arith.multiply_half_up(np.int64(x), m, s) == expected


@given(st.integers(-(2**31), 2**31 - 1), MULTIPLIER, st.integers(-31, 30))
def test_single_rounding_is_one_rounding_up(x: int, m: int, s: int) -> None:
    exact = Fraction(x * m) * Fraction(2) ** (s - 31)
    assert arith.multiply_single_rounding(np.int64(x), m, s) == math.floor(exact + Fraction(1, 2))


@pytest.mark.parametrize(("x", "family", "expected"), [(-2, "D", -1), (-2, "H", 0), (2, "D", 1), (2, "H", 1)])
def test_a_tie_tells_the_families_apart(x: int, family: str, expected: int) -> None:
    """y = SRDHM(x, 2^30) = x / 2 = -1, then one more halving: away from zero, or up."""
    rule = rules.REQUANTISE[family]
    assert rule(np.array([x]), np.array([2**30]), np.array([-1])) == expected


def test_a_note_that_calls_one_product_ambiguous_is_wrong() -> None:
    x, m = np.array([-1032852841]), np.array([1578349059])
    for family in ("D", "H", "S"):
        assert rules.REQUANTISE[family](x, m, np.array([0])) == -759122106


@pytest.mark.parametrize(("family", "block"), [("HD8", 8), ("HD16", 16)])
def test_vector_blocks_round_up_and_their_tail_away(family: str, block: int) -> None:
    count = 2 * block + 3
    y = rules.REQUANTISE[family](np.full(count, -2), np.full(count, 2**30), np.full(count, -1))
    assert (y[: 2 * block] == 0).all() and (y[2 * block :] == -1).all()
    assert (
        rules.REQUANTISE[family](np.full(block - 1, -2), np.full(block - 1, 2**30), np.full(block - 1, -1)) == -1
    ).all()


@given(st.floats(-(2.0**60), 2.0**60))
def test_double_rounding_is_c_round(value: float) -> None:
    assert arith.round_half_away_f64(np.array(value)) == away(Fraction(value))


def test_double_rounding_survives_the_largest_number_below_a_half() -> None:
    values = np.array([0.49999999999999994, -0.49999999999999994, 0.5, -0.5, 4503599627370495.5])
    assert arith.round_half_away_f64(values).tolist() == [0.0, 0.0, 1.0, -1.0, 4503599627370496.0]


def f32(value: Fraction) -> Fraction:
    """The nearest float32, ties to even: through the definition, not through a double."""
    if value == 0:
        return value
    exponent = max(math.frexp(float(value))[1] - 24, -149)
    if abs(value) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    return round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent


REAL = st.floats(2.0**-30, 2.0**6, width=32)


@given(st.integers(-(2**31) + 1, 2**31 - 1), REAL, INT8, INT8, INT8)
def test_family_f_is_two_float32_roundings_and_one_to_even(x: int, m: float, z: int, a: int, b: int) -> None:
    lo, hi = min(a, b), max(a, b)
    real = f32(f32(Fraction(x)) * Fraction(m))
    expected = even(min(max(real, Fraction(lo - z)), Fraction(hi - z))) + z
    assert FloatRequantise("F", np.array([m]), z, lo, hi).apply(np.array([x]))[0] == expected


@given(st.integers(-(2**30), 2**30), st.floats(2.0**-30, 1.0), INT8)
def test_family_e_rounds_a_double_away_from_zero(x: int, m: float, z: int) -> None:
    expected = min(max(away(Fraction(float(x) * m)) + z, -128), 127)
    assert FloatRequantise("E", np.array([m]), z).apply(np.array([x]))[0] == expected


@given(st.integers(-(2**24), 2**24), REAL, st.floats(-1000, 1000, width=32))
def test_a_float_affine_rounds_after_each_operation(x: int, m: float, offset: float) -> None:
    real = f32(f32(Fraction(x) * Fraction(m)) + Fraction(offset))
    expected = even(min(max(real, Fraction(-128)), Fraction(127)))
    assert FloatAffine(m, offset).apply(np.array([x]))[0] == expected


@given(INT8, INT8, st.tuples(INT8, INT8), st.tuples(st.integers(0, 2**21), st.integers(0, 2**21)), st.integers(12, 30))
def test_xnnpack_add_is_a_shift_of_a_sum(a: int, b: int, z: tuple[int, int], m: tuple[int, int], shift: int) -> None:
    exact = Fraction((a - z[0]) * m[0] + (b - z[1]) * m[1], 2**shift)
    expected = min(max(math.floor(exact + Fraction(1, 2)) + 3, -128), 127)
    assert FixedPointAddRule(z, m, shift, 3, -128, 127).apply(np.array(a), np.array(b)) == expected


RATIO = st.floats(2.0**-10, 255.0, width=32)


@given(INT8, INT8, st.tuples(INT8, INT8), st.tuples(RATIO, RATIO), INT8)
def test_onnx_runtime_add_is_two_fused_steps(
    a: int, b: int, z: tuple[int, int], r: tuple[float, float], z_out: int
) -> None:
    """fma rounds once: here by exact fractions."""
    u, v, uz, vz = (Fraction(n + 128) for n in (a, b, *z))
    r1, r2 = (Fraction(x) for x in r)
    constant = f32(Fraction(z_out + 128) - f32(uz * r1 + f32(vz * r2)))
    total = f32(u * r1 + f32(v * r2 + constant))
    expected = even(min(max(total, Fraction(0)), Fraction(255))) - 128
    assert FusedAddRule(z, r, z_out).apply(np.array(a), np.array(b)) == expected


@given(RATIO, RATIO, st.tuples(RATIO, RATIO), INT8)
def test_onnx_runtime_add_is_non_decreasing(p: float, q: float, r: tuple[float, float], z: int) -> None:
    codes = np.arange(-128, 128)
    grid = FusedAddRule((int(p) - 128, int(q) - 128), r, z).apply(codes[:, None], codes[None])
    assert (np.diff(grid, axis=0) >= 0).all() and (np.diff(grid, axis=1) >= 0).all()


@given(REAL, REAL, INT8, INT8)
def test_a_rescaling_is_two_roundings_and_non_decreasing(s: float, t: float, z: int, w: int) -> None:
    codes = np.arange(-128, 128)
    got = rules.FloatRescale(s, t, w, input_zero_point=z).apply(codes)
    assert (np.diff(got) >= 0).all()
    x = int(z * 7919 % 256) - 128
    real = f32(f32(Fraction(s) * (x - z)) / Fraction(t))
    assert got[x + 128] == min(max(even(real) + w, -128), 127)


def requantise(family: str) -> Callable[[float, int], Any]:
    def build(real: float, z: int) -> Any:
        if family in rules.FLOAT_REQUANTISE:
            return FloatRequantise(family, np.array([real]), z)
        m, s = arith.quantize_multiplier(real)
        return Requantise(family, np.array([m]), np.array([s]), z)

    return build


@pytest.mark.parametrize("family", [*rules.REQUANTISE, *rules.FLOAT_REQUANTISE])
@given(data=st.data())
def test_every_family_is_non_decreasing(family: str, data: st.DataObject) -> None:
    rule = requantise(family)(data.draw(st.floats(2.0**-20, 1.0, width=32)), data.draw(INT8))
    x = np.sort(np.array(data.draw(st.lists(st.integers(-(2**24), 2**24), min_size=2, max_size=40))))
    near = np.unique(np.concatenate([x - 1, x, x + 1]))[:, None]
    assert (np.diff(rule.apply(near)[:, 0]) >= 0).all()


def test_a_planted_fall_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.FLOAT_REQUANTISE, "F", lambda x, m: -(x * m))  # type: ignore[index]
    with pytest.raises(AssertionError):
        test_every_family_is_non_decreasing("F")


def test_activations_round_as_the_runtime_does() -> None:
    """1 / S = 5.5 in float32: away from zero, or to even after the zero point is added."""
    scale = float(np.float32(0.18181818723678589))
    out = Tensor("y", (1,), "int8", scale, -5)
    assert activation_range(ops.Activation.RELU_N1_TO_1, out) == (-11, 1)
    assert activation_range(ops.Activation.RELU_N1_TO_1, out, "half_even_sum") == (-10, 0)


# Profiles


def one(op: ops.Op, x: Tensor, y: Tensor, count: int = 1) -> Graph:
    b = GraphBuilder()
    return b.finish(b.node(op, [b.input(x)] * count, y))


def conv(group: int, scale: float = 0.01) -> ops.Conv2d:
    return ops.Conv2d(
        ops.freeze(np.ones((4, 1, 1, group)), np.int8),
        ops.freeze([0] * 4, np.int32),
        ops.freeze([scale] * 4, np.float32),
    )


def narrow(least: int) -> ops.Conv2d:
    """Weights from `least` up."""
    weight = np.full((4, 1, 1, 4), least)
    return ops.Conv2d(ops.freeze(weight, np.int8), ops.freeze([0] * 4, np.int32), ops.freeze([0.01] * 4, np.float32))


def fused(activation: ops.Activation) -> ops.Conv2d:
    return replace(conv(4), activation=activation)


def depthwise(pad: int) -> ops.DepthwiseConv2d:
    """3 x 3, padded by `pad` before and by 0 or 1 after the image, so that 3 x 3 becomes 2 x 2 or 1 x 1."""
    constants = (
        ops.freeze(np.ones((3, 3, 4)), np.int8),
        ops.freeze([0] * 4, np.int32),
        ops.freeze([0.01] * 4, np.float32),
    )
    return ops.DepthwiseConv2d(*constants, padding=ops.Padding2d(pad, 0, pad, 0))


def small(tensor: Tensor) -> Tensor:
    return replace(tensor, shape=(2, 2, 4))


def narrowed(tensor: Tensor) -> Tensor:
    return replace(tensor, shape=(1, 1, 4))


LOUD = Tensor("x", (4,), "int8", 8.0, 0)
IMAGE, OUT = Tensor("x", (3, 3, 4), "int8", 0.5, 1), Tensor("y", (3, 3, 4), "int8", 0.25, -2)


def family(name: str, op: ops.Op) -> str:
    rule = lower(one(op, IMAGE, OUT), profile(name)).steps[-1].atom.rule  # type: ignore[union-attr]
    assert isinstance(rule, Requantise | FloatRequantise)
    return rule.family


def test_the_table_says_who_takes_which_family() -> None:
    expected = {"tflm": "DD", "litert-ref": "DD", "litert-builtin": "HD", "litert-xnnpack": "FF"}
    for name, families in expected.items():
        assert family(name, conv(4)) + family(name, conv(2)) == families


@pytest.mark.parametrize(
    ("name", "graph", "message"),
    [
        ("litert-builtin", one(ops.Add(), IMAGE, OUT, 2), "Add of 36 elements.*blocks of 16"),
        ("litert-builtin", one(ops.Requantize(), IMAGE, OUT), "Requantize of 36 elements"),
        ("litert-builtin", one(ops.Dequantize(), IMAGE, Tensor("y", (3, 3, 4), "float32")), "no rule for Dequantize"),
        ("litert-xnnpack", one(conv(4, 200.0), IMAGE, OUT), "Conv2d: a multiplier of 400"),
        ("litert-xnnpack", one(ops.Add(), IMAGE, Tensor("y", (3, 3, 4), "int8", 600.0, 0), 2), "ratios from 2\\^-10"),
        (
            "litert-xnnpack",
            one(ops.Requantize(), IMAGE, Tensor("y", (3, 3, 4), "int8", 600.0, 0)),
            "ratios from 2\\^-8",
        ),
        ("litert-xnnpack-arm64", one(narrow(-128), IMAGE, OUT), "a weight of -128"),
        ("x-cube-ai", one(ops.Add(), IMAGE, OUT, 2), "no rule for Add"),
        ("x-cube-ai", one(conv(2), IMAGE, OUT), "no rule for GroupedConv2d"),
        ("x-cube-ai", one(ops.Requantize(), IMAGE, OUT), "no rule for Requantize"),
        ("x-cube-ai", one(fused(ops.Activation.RELU6), IMAGE, OUT), "a fused relu6"),
        ("plumerai", one(fused(ops.Activation.NONE), IMAGE, OUT), "a fused none"),
        ("plumerai", one(ops.Add(), IMAGE, OUT, 2), "no rule for Add"),
        ("tflm-single-rounding", one(ops.Sub(), IMAGE, OUT, 2), "no rule for Sub"),
        (
            "tflm-single-rounding",
            one(ops.Tanh(), LOUD, replace(LOUD, name="y", scale=1 / 128, zero_point=0)),
            "to 2\\^3",
        ),
        ("tinyengine", one(fused(ops.Activation.RELU), IMAGE, OUT), "leaves it out"),
        ("tinyengine", one(conv(2), IMAGE, OUT), "no rule for GroupedConv2d"),
        ("tinyengine", one(replace(conv(4), stride=(2, 2)), IMAGE, small(OUT)), "stride 2 on 4 channels"),
        ("tinyengine", one(depthwise(1), IMAGE, small(OUT)), "another size than the image"),
        ("tinyengine", one(depthwise(0), IMAGE, narrowed(OUT)), "0\\) rows and columns before"),
        (
            "tinyengine",
            one(ops.AvgPool((2, 2), (1, 1)), IMAGE, small(replace(IMAGE, name="y"))),
            "less than the whole image",
        ),
        ("tinyengine", one(ops.Add(), IMAGE, OUT, 2), "a tensor with itself"),
        (
            "tinyengine",
            one(ops.Pad(((1, 1), (1, 1), (0, 0))), IMAGE, replace(IMAGE, name="y", shape=(5, 5, 4))),
            "a PAD other",
        ),
    ],
)
def test_what_was_not_shown_equal_is_refused_by_name(name: str, graph: Graph, message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"op 0 .*{message}|{message}"):
        lower(graph, profile(name))


def test_weights_down_to_minus_127_do_not_wrap_on_arm() -> None:
    assert lower(one(narrow(-127), IMAGE, OUT), profile("litert-xnnpack-arm64")).steps


def test_every_profile_has_a_digest_of_its_own() -> None:
    assert len({p.digest() for p in PROFILES.values()}) == len(PROFILES)
    assert all(p.name == name for name, p in PROFILES.items())


def test_the_table_has_a_digest_that_moves_with_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    before = profile_table_digest()
    row = PROFILES["litert-ref"]
    monkeypatch.setitem(PROFILES, "litert-ref", replace(row, rules={**row.rules, "Mean": ("H", "folded_count")}))  # type: ignore[index]
    assert profile_table_digest() != before
    monkeypatch.delitem(PROFILES, "litert-ref")  # type: ignore[arg-type]
    assert profile_table_digest() != before


@pytest.mark.parametrize("name", [n for n in PROFILES if n != "tflm"])
def test_the_c_runtime_refuses_other_arithmetics(name: str) -> None:
    weight = ops.freeze(np.ones((4, 36)), np.int8)
    dense = ops.Dense(weight, ops.freeze([0] * 4, np.int32), ops.freeze([0.01], np.float32))
    with pytest.raises(UnsupportedError):
        to_blob(one(dense, IMAGE, Tensor("y", (4,), "int8", 0.25, 0)), profile(name))


def test_the_c_runtime_refuses_a_sum_that_is_rounded_once() -> None:
    b = GraphBuilder()
    x = b.input(IMAGE)
    graph = b.finish(b.node(ops.Add(), [x, x], OUT))
    assert to_blob(graph, profile("tflm"))
    with pytest.raises(UnsupportedError, match="no such ADD"):
        to_blob(graph, profile("tflm-single-rounding"))


def test_a_depthwise_convolution_may_not_overwrite_what_is_read_again() -> None:
    b = GraphBuilder()
    x = b.input(IMAGE)
    y = b.node(replace(depthwise(1), padding=ops.Padding2d(1, 1, 1, 1)), [x], replace(OUT, name="y"))
    assert lower(b.finish(y), profile("tinyengine")).steps
    b = GraphBuilder()
    x = b.input(IMAGE)
    y = b.node(replace(depthwise(1), padding=ops.Padding2d(1, 1, 1, 1)), [x], replace(OUT, name="y"))
    with pytest.raises(UnsupportedError, match="after it was overwritten"):
        lower(b.finish(b.node(ops.Add(), [x, y], replace(OUT, name="z"))), profile("tinyengine"))
