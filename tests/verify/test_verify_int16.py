"""int16 tensors with int8 weights: bounds, verdicts and proofs against concrete executions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from brute import TFLM, boxes, check_bounds, check_verdicts, with_rules
from hypothesis import given
from hypothesis import strategies as st
from int16_kit import random_wide

from cactus_edge.certify.attack import attack
from cactus_edge.certify.interval import TorchEngine
from cactus_edge.errors import InternalError, ModelError, UnsupportedError
from cactus_edge.ir import atoms, evaluate, ops
from cactus_edge.ir.arith import WIDE_MAX, multiply_wide
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.inputs import QuantizeRule
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.spec import check
from cactus_edge.verify import decide, interval
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.interval import Engine, propagate
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.regions import point_boxes, region
from cactus_edge.verify.relax import Relaxation

RUNTIMES = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")


def programs(seed: int, count: int, arithmetic: Profile = TFLM, **options: Any) -> list[Program]:
    """Random networks that the profile runs without overflow, each from a seed of its own."""
    found: list[Program] = []
    while len(found) < count:
        seed += 1
        try:
            program = lower(random_wide(np.random.default_rng(seed), **options), arithmetic)
            prove(program)
        except ModelError:
            continue
        found.append(program)
    return found


def classifiers(seed: int, count: int, arithmetic: Profile = TFLM) -> list[Program]:
    found = [p for p in programs(seed, 3 * count, arithmetic) if p.output_tensor.size > 1]
    return found[:count]


@pytest.mark.parametrize("name", RUNTIMES)
def test_bounds_hold_every_execution(name: str) -> None:
    for k, program in enumerate(programs(100, 25, profile(name))):
        check_bounds(program, program, k)


def test_bounds_of_all_runtimes_hold_every_execution() -> None:
    """Any runtime, chosen anew for each element."""
    done = 0
    for seed in range(60):
        graph = random_wide(np.random.default_rng(seed), middle=("conv2d", "dense", "pad", "mean", "relu"))
        try:
            found = mix([lower(graph, PROFILES[name]) for name in RUNTIMES])
            prove(found)
        except ModelError:
            continue
        check_bounds(found, found, seed)
        done += 1
    assert done > 15


def faulty_affine(program: Program, change: Callable[[Affine], Affine]) -> Program:
    steps = tuple(replace(s, atom=change(s.atom)) if isinstance(s.atom, Affine) else s for s in program.steps)
    return replace(program, steps=steps)


FAULTS: dict[str, Callable[[Program], Program]] = {
    "rounding of 32-bit sums": lambda p: with_rules(p, family="D"),
    "clamp one too low": lambda p: with_rules(p, hi=-1),
    "clamp one too high": lambda p: with_rules(p, lo=1),
    "clamp to int8": lambda p: with_rules(p, lo=32768 - 128, hi=127 - 32767),
    "lost bias": lambda p: faulty_affine(p, lambda a: replace(a, bias=np.zeros_like(a.bias))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bounds_check_sees_a_fault(fault: str) -> None:
    with pytest.raises(AssertionError):
        for k, program in enumerate(programs(0, 40, middle=("dense", "conv2d"))):
            check_bounds(program, FAULTS[fault](program), k)


def test_bounds_check_sees_a_maximum_padded_with_a_code_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = programs(5, 20, middle=("max_pool",))
    monkeypatch.setattr(atoms, "LEAST", -128)
    wrong = [[v for v, _ in propagate(p, *point(p))] for p in truth]
    monkeypatch.undo()
    right = [[v for v, _ in propagate(p, *point(p))] for p in truth]
    assert any(not np.array_equal(a, b) for x, y in zip(wrong, right, strict=True) for a, b in zip(x, y, strict=True))


def point(program: Program) -> tuple[Any, Any]:
    low = np.full((1, *program.values[program.input].shape), -30000, np.int16)
    return low, low


def check_engine(kind: type[Engine], program: Program, seed: int) -> None:
    """The compiled engine equals `propagate`, over boxes of all sizes, for all values."""
    lo, _, hi = boxes(np.random.default_rng(seed), program.values[program.input].shape, 10, "int16")
    expected = propagate(program, lo, hi)
    for (low, high), wanted in zip(kind(program, range(len(program.values))).run(lo, hi), expected, strict=True):
        assert np.array_equal(low, wanted[0]) and np.array_equal(high, wanted[1])


def test_the_engine_equals_its_definition() -> None:
    for k, program in enumerate(programs(1000, 60)):
        check_engine(Engine, program, k)


def test_torchs_engine_equals_its_definition() -> None:
    pytest.importorskip("torch")
    for k, program in enumerate(programs(2000, 10)):
        check_engine(TorchEngine, program, k)


def test_the_engine_sees_carriers_chosen_for_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    real = interval.accumulate
    monkeypatch.setattr(interval, "accumulate", lambda atom, codes: real(atom, (-128, 127)))
    with pytest.raises((AssertionError, InternalError)):
        for k, program in enumerate(programs(1000, 40, middle=("dense", "conv2d"))):
            check_engine(Engine, program, k)


@pytest.mark.parametrize("name", RUNTIMES)
def test_certified_means_that_brute_force_finds_nothing(name: str) -> None:
    assert sum(check_verdicts(p, k) for k, p in enumerate(classifiers(300, 25, profile(name)))) > 20


def test_attack_never_refutes_a_certificate() -> None:
    certified = fell = 0
    for k, program in enumerate(classifiers(700, 30)):
        lo, x, hi = boxes(np.random.default_rng(k), program.values[program.input].shape, 8, "int16")
        labels = evaluate.run(program, x).reshape(8, -1).argmax(1)
        sure, _ = Decider(program).decide(lo, hi, labels)
        found = attack(program, lo, hi, labels, start=x, steps=6, restarts=2)
        assert not (found.found & sure).any()
        assert found.witness.dtype == np.int16
        assert ((lo <= found.witness) & (found.witness <= hi)).all()
        certified, fell = certified + int(sure.sum()), fell + int(found.found.sum())
    assert certified > 20
    assert fell > 20


def test_the_verdict_check_sees_a_forgotten_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Decider.margins
    monkeypatch.setattr(Decider, "margins", lambda self, *a: real(self, *a) + 1)
    with pytest.raises(AssertionError):
        for k, program in enumerate(classifiers(300, 40)):
            check_verdicts(program, k)


def test_the_verdict_check_sees_a_narrowed_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a region's ends were cut to int8."""
    real = Decider.decide
    cut = lambda self, lo, hi, y: real(self, lo, np.minimum(hi, lo.astype(np.int64) + 127).astype(np.int16), y)  # noqa: E731
    monkeypatch.setattr(Decider, "decide", cut)
    with pytest.raises(AssertionError):
        for k, program in enumerate(classifiers(300, 40)):
            check_verdicts(program, k)


def wide_dense(bias: int, weight: int = 127, inputs: int = 4, scale: float = 2.0**-20) -> Graph:
    """Two classes; S_in = S_out = 1."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (inputs,), "int16"))
    weights = ops.freeze(np.full((2, inputs), weight), np.int8)
    op = ops.Dense(weights, ops.freeze([bias, 0], np.int64), ops.freeze([scale], np.float32))
    return b.finish(b.node(op, [x], Tensor("y", (2,), "int16")))


def test_sums_of_64_bits_have_their_own_limit() -> None:
    reach = 4 * 127 * 32768
    facts = prove(lower(wide_dense(WIDE_MAX - reach, scale=2.0**-31), TFLM))
    assert {(f.bound, f.limit) for f in facts if "bias" in f.quantity} == {(WIDE_MAX, WIDE_MAX)}
    with pytest.raises(ModelError, match="op 0 Dense -> 'y': sums of w"):
        prove(lower(wide_dense(WIDE_MAX - reach + 1, scale=2.0**-31), TFLM))


def test_the_overflow_check_sees_sums_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded for int8 codes, the network above would pass."""
    program = lower(wide_dense(WIDE_MAX - 4 * 127 * 128, scale=2.0**-31), TFLM)
    with pytest.raises(ModelError):
        prove(program)
    monkeypatch.setattr(Program, "codes", (-128, 127))
    prove(program)


def test_a_sum_of_64_bits_may_not_be_requantised_beyond_32() -> None:
    with pytest.raises(ModelError, match="the requantised value and its zero point may reach"):
        prove(lower(wide_dense(2**46, scale=2.0**-14), TFLM))


def test_sums_of_32_bits_keep_theirs() -> None:
    graph = wide_dense(0, inputs=600)
    op = graph.nodes[0].op
    assert isinstance(op, ops.Dense)
    narrow = replace(op, bias=ops.freeze([0, 0], np.int32))
    with pytest.raises(ModelError, match="beyond 2147483647"):
        prove(lower(replace(graph, nodes=(replace(graph.nodes[0], op=narrow),)), TFLM))
    prove(lower(graph, TFLM))


@given(
    x=st.one_of(st.integers(-(2**47), 2**47), st.sampled_from([-(2**47), 2**47, 0, -1, 1])),
    multiplier=st.one_of(st.integers(0, 2**31 - 1), st.sampled_from([0, 2**31 - 1, 0x7FFEFFFF, 0x7FFF0000])),
    shift=st.integers(-31, 7),
)
def test_the_wide_product_is_its_formula(x: int, multiplier: int, shift: int) -> None:
    reduced = (multiplier + 2**15) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    expected = (x * reduced + (1 << (14 - shift))) >> (15 - shift)
    assert int(multiply_wide(np.array(x), multiplier, shift)) == expected
    assert int(multiply_wide(np.array(x + 1), multiplier, shift)) >= expected


def test_values_saturate_at_the_ends_of_their_type() -> None:
    x = np.array([-1e6, -32768.5, -0.5, 0.5, 32767.4, 1e6], np.float32)
    for rounding, half in (("half_away", 1), ("half_even_product", 0)):
        codes = QuantizeRule(1.0, 0, rounding, "int16").apply(x)
        assert codes.dtype == np.int16
        assert codes.tolist() == [-32768, -32768, -half, half, 32767, 32767]


def test_regions_are_those_of_int16() -> None:
    program = lower(wide_dense(0), TFLM)
    ball = region(program, 3)
    assert ball.domain == (Fraction(-32768), Fraction(32767))
    samples = np.array([[-32768, 0, 1000, 32767]], np.int16)
    assert all(np.array_equal(end, samples) for end in point_boxes(program, samples))
    decided = decide.certify(program, ball, samples, np.array([0]))
    assert decided.margin.dtype == np.int64


def test_linear_bounds_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="linear bounds are for int8"):
        Relaxation(lower(wide_dense(0), TFLM), {})


ILLEGAL: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "zero point": (
        lambda g: replace(g, tensors=(replace(g.tensors[0], zero_point=1), *g.tensors[1:])),
        r"zero point 1, expected one in \[0, 0\] for int16",
    ),
    "mixed": (
        lambda g: replace(g, tensors=(replace(g.tensors[0], dtype="int8"), *g.tensors[1:])),
        "mixes int16 and int8 activations",
    ),
    "bias beyond 2^47": (
        lambda g: replace(
            g,
            nodes=(replace(g.nodes[0], op=replace(g.nodes[0].op, bias=np.array([-(2**63), 0]))),),  # type: ignore[call-arg]
        ),
        "a bias of magnitude 9223372036854775808",
    ),
    "bias of 64 bits for int8": (
        lambda g: replace(g, tensors=tuple(replace(t, dtype="int8") for t in g.tensors)),
        "bias int64",
    ),
}


@pytest.mark.parametrize("sin", ILLEGAL)
def test_illegal_networks_are_refused(sin: str) -> None:
    change, message = ILLEGAL[sin]
    with pytest.raises(ModelError, match=message):
        check(change(wide_dense(0)))
