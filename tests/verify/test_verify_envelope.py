"""Envelopes: no allowed execution leaves them, and a verdict under one holds for every choice that a runtime may make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import boxes, check_bounds, check_verdicts, symmetric
from hypothesis import given
from hypothesis import strategies as st
from strategies import random_graph
from test_verify_interval import check_engine

from cactus_edge.errors import InternalError, UnsupportedError
from cactus_edge.ir import envelope, ops
from cactus_edge.ir.atoms import Between, Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.envelope import EnvelopeEnd, requantise_ends
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.inputs import QuantizeRule
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.tensorrt import TENSORRT
from cactus_edge.verify import decide as decide_module
from cactus_edge.verify import interval as interval_module
from cactus_edge.verify import tail as tail_module
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.interval import Engine, propagate
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.regions import box, point_boxes, region

Array = Any
MIDDLE = ("conv2d", "depthwise_conv2d", "dense", "dense", "max_pool", "reshape")
f32 = np.float32

ROUNDINGS = (np.rint, lambda v: np.trunc(v + np.copysign(0.5, v)), lambda v: np.floor(v + 0.5))
"""Ties to even, away from zero, up."""


def epilogues(acc0: Array, bias: Array, s_in: Array, s_w: Array, s_out: Array) -> Iterator[Array]:
    """What kernels may compute before they round, float32: orders, groupings, fused additions, reciprocals."""
    x, b = acc0.astype(f32), (bias * (s_in * s_w).astype(np.float64)).astype(f32)
    alpha, inverse = s_in * s_w, f32(1) / s_out
    yield (acc0 + bias).astype(f32) * (alpha / s_out)
    yield (x * alpha + b) / s_out
    yield (x * alpha + b) * inverse
    yield x * (s_in / s_out * s_w) + b / s_out
    yield x * (s_w * (s_in * inverse)) + b * inverse
    yield (x * s_in * s_w + b) * inverse
    fused = x.astype(np.float64) * alpha.astype(np.float64) + b.astype(np.float64)
    yield fused.astype(f32) * inverse
    yield (x.astype(np.float64) * (alpha * inverse) + (b * inverse).astype(np.float64)).astype(f32)


def drawn(seed: int, n: int = 4000) -> tuple[Array, ...]:
    """(sums without bias, biases, three scales), accumulators mostly next to ties, a third of the scales powers of two."""
    rng = np.random.default_rng(seed)
    scales = [(2.0 ** rng.uniform(-9, 1, n)).astype(f32) for _ in range(3)]
    exact = rng.random(n) < 0.3
    s_in, s_w, s_out = (np.where(exact, f32(2) ** np.rint(np.log2(s)), s).astype(f32) for s in scales)
    multiplier = s_in.astype(float) * s_w / s_out
    near = np.rint((rng.integers(-130, 130, n) + 0.5) / multiplier) + rng.integers(-1, 2, n)
    acc = np.clip(near, -(2**30), 2**30).astype(np.int64)
    bias = (rng.integers(-1, 2, n) * 2.0 ** rng.uniform(0, 21, n)).astype(np.int64)
    return acc - bias, bias, s_in, s_w, s_out


def ends(bias: Array, s_in: Array, s_w: Array, s_out: Array, clamp: tuple[int, int] = (-128, 127)) -> list[EnvelopeEnd]:
    """Both ends with one multiplier per element."""
    found = requantise_ends(1.0, np.ones(1), 1.0, 0, clamp, "")
    real = s_in.astype(float) * s_w / s_out
    return [replace(e, multiplier=real, slack=2 * envelope.ROOM * np.abs(bias) * real) for e in found]


def check_epilogues(seed: int, change: Any = lambda end: end) -> None:
    """Every simulated kernel stays inside."""
    acc0, bias, *scales = drawn(seed)
    for clamp in ((-128, 127), (0, 127)):
        low, high = (change(e).apply(acc0 + bias) for e in ends(bias, *scales, clamp))
        for real in epilogues(acc0, bias, *scales):
            for rounded in ROUNDINGS:
                code = np.clip(rounded(real.astype(np.float64)), *clamp)
                assert (low <= code).all() and (code <= high).all()


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_float32_operations_leaves_the_envelope(seed: int) -> None:
    check_epilogues(seed)


def test_the_epilogue_check_sees_an_envelope_without_room() -> None:
    with pytest.raises(AssertionError):
        for seed in range(6):
            check_epilogues(seed, lambda end: replace(end, room=0.0, slack=0 * end.slack))


def test_the_epilogue_check_sees_ties_to_one_side_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "nearest", lambda v, sign: np.floor(v + 0.5))
    with pytest.raises(AssertionError):
        check_epilogues(0, lambda end: replace(end, room=0.0))


def test_the_epilogue_check_sees_a_forgotten_bias() -> None:
    """Large biases that cancel in the accumulator leave the roundings of their own."""
    with pytest.raises(AssertionError):
        for seed in range(6):
            check_epilogues(seed, lambda end: replace(end, slack=0 * end.slack))


def test_away_from_ties_an_envelope_is_one_code() -> None:
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**17), 2**17, (20_000, 1))
    low, high = requantise_ends(0.02, [0.003], 0.05, 400, (-128, 127), "")
    assert (high.apply(acc) - low.apply(acc)).mean() < 0.001


@given(
    multiplier=st.floats(2.0**-30, 255.0),
    slack=st.floats(0, 3),
    sign=st.sampled_from([-1, 1]),
    start=st.integers(-(2**31), 2**31),
)
def test_ends_never_decrease(multiplier: float, slack: float, sign: int, start: int) -> None:
    end = EnvelopeEnd(np.array([multiplier]), np.array([slack]), sign)
    for x in (np.arange(start, start + 300), np.arange(-150, 150)):
        assert (np.diff(end.apply(x[:, None])[:, 0]) >= 0).all()


# Networks. Every tensor symmetric; an execution takes any code between the two ends, element by element.


def wide(program: Program, room: float = 2.0**-5, slack: float = 0.3) -> Program:
    """The program with envelopes so wide that most elements have a choice."""

    def end(e: Any) -> Any:
        return replace(e, room=room, slack=e.slack + slack)

    steps = tuple(
        replace(s, atom=Between(end(s.atom.lowest), s.atom.member, end(s.atom.highest)))
        if isinstance(s.atom, Between)
        else s
        for s in program.steps
    )
    return replace(program, steps=steps)


def networks(seed: int, count: int, *, decidable: bool = False, **options: Any) -> list[Program]:
    """Random symmetric networks, every second one with wide envelopes."""
    found: list[Program] = []
    settings = {"max_nodes": 4, "middle": MIDDLE, "ends": ("",)} | options
    while len(found) < count:
        seed += 1
        try:
            program = lower(symmetric(random_graph(np.random.default_rng(seed), **settings)), TENSORRT)
            program = wide(program) if len(found) % 2 else program
            if decidable:
                Decider(program)
        except UnsupportedError:
            continue
        found.append(program)
    return found


def test_no_execution_leaves_the_bounds() -> None:
    for k, program in enumerate(networks(0, 40)):
        check_bounds(program, program, k)


def test_the_bounds_check_sees_an_envelope_that_is_too_narrow() -> None:
    with pytest.raises(AssertionError):
        for k, program in enumerate(networks(0, 12)):
            check_bounds(wide(program), program, k)


def test_the_engine_equals_its_definition() -> None:
    for k, program in enumerate(networks(300, 25)):
        check_engine(program, k)


def test_the_engine_sees_one_end_used_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine._ends
    monkeypatch.setattr(Engine, "_ends", lambda self, *a: (real(self, *a)[0],) * 2)
    with pytest.raises(InternalError, match="differ from their definition"):
        for k, program in enumerate(networks(300, 12)):
            check_engine(program, k)


def test_a_certified_region_is_won_by_every_execution() -> None:
    certified = [check_verdicts(p, k) for k, p in enumerate(networks(0, 50, decidable=True, max_nodes=3))]
    assert sum(certified[::2]) > 25 and sum(certified[1::2]) > 12


def test_the_last_layer_is_fused_with_the_margin_under_an_envelope() -> None:
    better = 0
    for k, program in enumerate(networks(50, 40, decidable=True, max_nodes=1, middle=("dense",))):
        decider = Decider(program)
        assert decider.tail is not None
        lo, _, hi = boxes(np.random.default_rng(k), program.values[program.input].shape, 8)
        labels = np.zeros(8, np.int64)
        fused = decider.margins(lo, hi, labels)
        low, high = (b.reshape(8, -1) for b in propagate(program, lo, hi)[program.output])
        apart = low[:, :1] - high
        apart[:, 0] = 0
        assert (fused >= apart).all()
        better += int((fused > apart).sum())
    assert better > 10


def no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tail_module._apply
    monkeypatch.setattr(tail_module, "_apply", lambda atoms, acc, shape, sign: real(atoms, acc, shape, 1))


def member_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tail_module._apply
    monkeypatch.setattr(tail_module, "_apply", lambda atoms, acc, shape, sign: real(atoms, acc, shape, -sign))


def sample_as_one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module.Tail, "highest", tail_module.Tail.lowest)


def narrow_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval_module.Between, "__match_args__", ("lowest", "highest", "member"))
    monkeypatch.setattr(Engine, "_self_check", lambda self: None)
    real = Engine._ends
    monkeypatch.setattr(Engine, "_ends", lambda self, *a: (real(self, *a)[1],) * 2)


@pytest.mark.parametrize("fault", [no_sign, member_only, sample_as_one_code, narrow_interval])
def test_the_verdict_check_sees_a_fault(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = networks(0, 60, decidable=True, max_nodes=3)[1::2]
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        for k, program in enumerate(found):
            check_verdicts(program, k)


def test_overflow_is_proved_for_an_envelope_too() -> None:
    program = networks(0, 1, max_nodes=1, middle=("dense",))[0]
    assert {"the value that becomes a float"} < {fact.quantity for fact in prove(program)}


# The input.


def quantisers(scale: float, x: Array) -> Iterator[Array]:
    for real in (x / f32(scale), x * (f32(1) / f32(scale))):
        for rounded in ROUNDINGS:
            yield np.clip(rounded(real.astype(np.float64)), -128, 127)


@given(scale=st.floats(2.0**-20, 4.0, width=32), seed=st.integers(0, 2**32 - 1))
def test_the_input_stays_between_its_codes(scale: float, seed: int) -> None:
    rule = QuantizeRule(scale, 0, "envelope")
    rng = np.random.default_rng(seed)
    ties = ((rng.integers(-130, 130, 300) + 0.5) * scale).astype(f32)
    x = np.sort(np.concatenate([ties, np.nextafter(ties, f32(9e9)), np.nextafter(ties, f32(-9e9))]))
    low, high = rule.lowest(x), rule.highest(x)
    for codes in (rule.apply(x), *quantisers(scale, x)):
        assert (low <= codes).all() and (codes <= high).all()
    assert (np.diff(low.astype(int)) >= 0).all() and (np.diff(high.astype(int)) >= 0).all()


def dense(weight: Array, scale: float = 1.0, **changes: Any) -> Graph:
    """One dense layer without bias on float inputs of scale `scale`; changes: fields of its tensors."""
    w = ops.freeze(weight, np.int8)
    b = GraphBuilder()
    real = b.input(Tensor("real", (w.shape[1],), "float32"))
    x = b.node(ops.Quantize(), [real], replace(Tensor("x", (w.shape[1],), "int8", scale, 0), **changes))
    bias, scales = ops.freeze(np.zeros(len(w)), np.int32), ops.freeze([1.0], np.float32)
    activation = changes.get("activation", ops.Activation.NONE)
    out = Tensor("logits", (len(w),), "int8", 1.0, 0)
    return b.finish(b.node(ops.Dense(w, bias, scales, activation), [x], out))


def test_a_sample_on_a_tie_is_correct_only_if_both_codes_win() -> None:
    """x = 1/2 may become 0 or 1: with weights (1, 0) the first class wins for one of them."""
    program = lower(dense([[1], [0]]), TENSORRT)
    x, y = np.array([[0.5], [1.0]], f32), np.array([0, 0])
    low, high = point_boxes(program, x)
    assert low[:, 0].tolist() == [0, 1] and high[:, 0].tolist() == [1, 1]
    decision = decide_module.certify(program, region(program, 0), x, y)
    assert decision.correct.tolist() == decision.certified.tolist() == [False, True]
    lower_, upper = box(program, region(program, 0), x)
    assert lower_[:, 0].tolist() == [0, 1] and upper[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (lambda: symmetric(dense([[1], [0]])), ""),
        (lambda: dense([[1], [0]], zero_point=1), "zero point 1"),
        (lambda: dense([[-128], [0]]), "a weight of -128"),
        (lambda: dense([[1], [0]], 2.0**-25), "overflows or loses bits"),
    ],
    ids=["symmetric", "zero point", "weight", "scale"],
)
def test_what_tensorrt_takes(graph: Any, message: str) -> None:
    if not message:
        lower(graph(), TENSORRT)
        return
    with pytest.raises(UnsupportedError, match=message):
        lower(graph(), TENSORRT)


def test_a_clipped_activation_is_refused() -> None:
    graph = dense([[1], [0]])
    node = graph.nodes[-1]
    clipped = replace(node, op=replace(node.op, activation=ops.Activation.RELU6))  # type: ignore[call-arg]
    with pytest.raises(UnsupportedError, match="fused relu6"):
        lower(replace(graph, nodes=(*graph.nodes[:-1], clipped)), TENSORRT)
