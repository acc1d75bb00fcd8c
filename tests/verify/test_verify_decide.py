"""`certified` implies that brute force finds nothing; ties, saturation and softmax included. The overflow proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute import TFLM, boxes, inside, margins, programs
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs

from cactus_edge.certify.attack import attack
from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir import evaluate, ops
from cactus_edge.ir.atoms import Affine, Program, Softmax
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.rules import SoftmaxRule
from cactus_edge.verify import goal as goal_module
from cactus_edge.verify import overflow
from cactus_edge.verify import tail as tail_module
from cactus_edge.verify.check import Checker
from cactus_edge.verify.decide import BATCH, Decider, certify, decide
from cactus_edge.verify.interval import Engine, propagate
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.regions import region
from cactus_edge.verify.tflite_read import read_tflite

Array = Any


def dense(
    weight: Array,
    bias: Array,
    multiplier: Any = 0.01,
    zero_point: int = 0,
    softmax: float = 0.0,
    float_out: bool = False,
) -> Program:
    """One dense layer on codes with zero point 0 and scale 1: logits = round(acc * multiplier) + zero_point."""
    w = np.asarray(weight)
    out = softmax or 1.0
    scales = np.atleast_1d(np.asarray(multiplier, np.float32) * np.float32(out)).astype(np.float32)
    build = GraphBuilder()
    last = build.input(Tensor("x", (w.shape[1],)))
    op = ops.Dense(ops.freeze(w, np.int8), ops.freeze(bias, np.int32), ops.freeze(scales, np.float32))
    last = build.node(op, [last], Tensor("logits", (len(w),), "int8", float(np.float32(out)), zero_point))
    if softmax:
        last = build.node(ops.Softmax(), [last], Tensor("p", (len(w),), "int8", 1 / 256, -128))
    if float_out:
        last = build.node(ops.Dequantize(), [last], Tensor("real", (len(w),), "float32"))
    return lower(build.finish(last), TFLM)


def check_certified(program: Program, seed: int, n: int = 10) -> tuple[int, int]:
    """Brute force finds no point that refutes a verdict or a margin; (certified, enumerated and true but not certified)."""
    rng = np.random.default_rng(seed)
    lo, x, hi = boxes(rng, program.values[program.input].shape, n)
    labels = evaluate.run(program, x).reshape(n, -1).astype(np.int64).argmax(1)
    labels[-1] = (labels[-1] + 1) % program.output_tensor.size
    decision = decide(program, lo, hi, labels, x)
    missed = 0
    for i in range(n):
        points, all_of_them = inside(rng, lo[i], hi[i])
        least = margins(program, points, labels[i]).min()
        assert decision.correct[i] == (margins(program, x[i : i + 1], labels[i])[0] >= 1)
        assert least >= 1 or not decision.certified[i]
        if not goal_module.Goal(program).softmaxes:
            assert decision.margin[i] <= least
        missed += all_of_them and least >= 1 and not decision.certified[i]
    return int(decision.certified.sum()), missed


def classifiers(seed: int, count: int, **options: Any) -> list[Program]:
    """Random networks that end in a row of at least two classes."""
    found: list[Program] = []
    while len(found) < count:
        for program in programs(seed, count, **options):
            try:
                Decider(program)
            except UnsupportedError:
                continue
            found.append(program)
        seed += 10_000
    return found[:count]


@pytest.mark.parametrize("seed", range(0, 600, 100))
def test_certified_means_that_brute_force_finds_nothing(seed: int) -> None:
    totals = np.sum([check_certified(p, seed + k) for k, p in enumerate(classifiers(seed, 25))], axis=0)
    assert totals[0] > 20


def test_the_fused_margin_decides_most_one_layer_boxes() -> None:
    """For one dense layer the fused bound is exact pair by pair: what brute force shows, it certifies."""
    certified, missed = np.sum(
        [check_certified(p, k) for k, p in enumerate(classifiers(5, 40, max_nodes=1, middle=("dense",), ends=("",)))],
        axis=0,
    )
    assert certified > 50
    assert missed <= 1


@settings(max_examples=60)
@given(data=st.data())
def test_attack_never_refutes_a_certificate(data: st.DataObject) -> None:
    graph = data.draw(graphs(max_nodes=4, ends=("", "softmax", "softmax reshape")))
    try:
        program = lower(graph, TFLM)
        decider = Decider(program)
    except UnsupportedError:
        return
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lo, x, hi = boxes(rng, program.values[program.input].shape, 8)
    labels = evaluate.run(program, x).reshape(8, -1).argmax(1)
    certified, _ = decider.decide(lo, hi, labels)
    fell = attack(program, lo, hi, labels, start=x, steps=8, restarts=2).found
    assert not (fell & certified).any()


# Planted faults: each must turn the brute-force check red.


def test_check_sees_a_forgotten_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Decider.margins
    monkeypatch.setattr(Decider, "margins", lambda self, *a: real(self, *a) + 1)
    with pytest.raises(AssertionError):
        for k, program in enumerate(classifiers(0, 40, ends=("",))):
            check_certified(program, k)


def test_check_sees_forgotten_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding forgotten: a positive difference of accumulators taken for a win."""

    def naive(self: Any, pairs: Any, least: Array, *_: Any) -> Array:
        return (least > 0).astype(np.int64)

    monkeypatch.setattr(tail_module.Tail, "_behind", naive)
    with pytest.raises(AssertionError):
        for k, program in enumerate(classifiers(5, 60, max_nodes=1, middle=("dense",), ends=("",))):
            check_certified(program, k)


def test_check_sees_a_softmax_taken_for_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goal_module, "softmax_separates", lambda e, winner: np.ones(e.shape, bool))
    with pytest.raises(AssertionError):
        for k, program in enumerate(classifiers(0, 60, ends=("softmax",))):
            check_certified(program, k)


def test_check_sees_a_radius_without_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tail_module.Tail.difference

    def middle(self: Any, pairs: Any, bounds: Any) -> Array:
        return real(self, pairs, ((bounds[0] + bounds[1]) // 2,) * 2)

    monkeypatch.setattr(tail_module.Tail, "difference", middle)
    with pytest.raises(AssertionError):
        for k, program in enumerate(classifiers(5, 40, max_nodes=1, middle=("dense",), ends=("",))):
            check_certified(program, k)


# Ties and saturation, by hand.


def verdict(program: Program, lo: list[int], hi: list[int], label: int) -> tuple[bool, bool, int]:
    a, b = np.array([lo], np.int8), np.array([hi], np.int8)
    decision = decide(program, a, b, np.array([label]), a)
    return bool(decision.correct[0]), bool(decision.certified[0]), int(decision.margin[0])


def test_a_tie_is_not_a_win() -> None:
    same = dense([[100, 0], [100, 0]], [0, 0])
    assert verdict(same, [50, 0], [50, 0], 0) == (False, False, 0)
    # Accumulators 4040 and 4000 both round to 40; 6060 and 6000 to 61 and 60.
    close = dense([[101, 0], [100, 0]], [0, 0])
    assert verdict(close, [40, 0], [40, 0], 0) == (False, False, 0)
    assert verdict(close, [60, 0], [60, 0], 0) == (True, True, 1)


@pytest.mark.parametrize(("weight", "label"), [([[127], [87]], 0), ([[-127], [-87]], 1)])
def test_saturated_logits_tie(weight: list[list[int]], label: int) -> None:
    assert verdict(dense(weight, [0, 0], 1.0), [100], [100], label) == (False, False, 0)


def test_the_fused_margin_wins_where_end_points_overlap() -> None:
    """Both logits move by 100, their difference stays 4 steps."""
    program = dense([[100], [100]], [400, 0])
    assert verdict(program, [-50], [50], 0) == (True, True, 4)
    # At the top the winner saturates at 127 and the other follows: a tie.
    assert verdict(program, [-50], [127], 0)[:2] == (True, False)


def test_per_channel_scales_are_fused_too() -> None:
    """logits 0.01 * (100 x + 300) and 0.02 * 50 x: equal slopes through different multipliers."""
    program = dense([[100], [50]], [300, 0], [0.01, 0.02])
    assert verdict(program, [-60], [60], 0) == (True, True, 3)


def test_softmax_can_tie_where_logits_differ() -> None:
    """At a scale of 1/1000 one step of a logit is a thousandth: both probabilities are 1/2."""
    assert verdict(dense([[1], [0]], [0, 0], 1.0, softmax=0.001), [1], [1], 0) == (False, False, 1)
    assert verdict(dense([[1], [0]], [0, 0], 1.0, softmax=0.1), [1], [1], 0) == (True, True, 1)


def test_a_softmax_in_another_shape_decides_at_its_input() -> None:
    """As without the reshape, whose outputs' intervals alone would certify less; and brute force refutes nothing."""
    plain, reshaped = (classifiers(7, 25, ends=(end,)) for end in ("softmax", "softmax reshape"))
    found = [sum(check_certified(p, k)[0] for k, p in enumerate(programs)) for programs in (plain, reshaped)]
    assert found[0] == found[1] > 20


def test_a_softmax_in_the_middle_does_not_decide_who_wins_a_point() -> None:
    """Its outputs are any codes to the bounds, at a point too; whether a point is right is what the program says."""
    programs = classifiers(21, 30, middle=("dense", "softmax"), ends=("", "softmax", "softmax reshape"))
    inside = [p for p in programs if sum(isinstance(s.atom, Softmax) for s in p.steps) > 1]
    assert len(inside) > 5
    for k, program in enumerate(inside):
        check_certified(program, k)
        rng = np.random.default_rng(k)
        _, x, _ = boxes(rng, program.values[program.input].shape, 20)
        labels = rng.integers(0, program.output_tensor.size, 20)
        wanted = [margins(program, x[i : i + 1], labels[i])[0] >= 1 for i in range(20)]
        assert np.array_equal(Checker(program, {}).right(x, x, labels), wanted)
        assert np.array_equal(Decider(program).correct(x, labels), wanted)


def test_planted_fault_bounds_that_are_taken_for_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    real = goal_module.Goal.right
    monkeypatch.setattr(goal_module.Goal, "right", lambda goal, x, low, high, labels: real(goal, x, low, low, labels))
    with pytest.raises(AssertionError):
        test_a_softmax_in_the_middle_does_not_decide_who_wins_a_point()


def test_two_large_probabilities_do_not_tie_at_the_top() -> None:
    assert verdict(dense([[1], [0]], [0, 0], 1.0, softmax=0.1), [120], [127], 0) == (True, True, 120)


def test_softmax_separates_agrees_with_the_rule() -> None:
    """Wherever the criterion holds for exact exponentials, the outputs differ strictly; and it is rarely too careful."""
    rng = np.random.default_rng(0)
    held = strict = 0
    for scale in (0.004, 0.03, 0.1, 0.7):
        program = dense(np.eye(10, dtype=np.int8), np.zeros(10), 1.0, softmax=scale)
        rule = program.steps[-1].atom.rule  # type: ignore[union-attr]
        assert isinstance(rule, SoftmaxRule)
        x = np.sort(rng.integers(-128, 128, (4000, 10)) // rng.choice([1, 4, 30], (4000, 1)), axis=1)[:, ::-1]
        out = rule.apply(x)
        e = rule.exponentials[x - x[:, :1] + 255]
        holds = goal_module.softmax_separates(e, 2**31 - 1)[:, 1:]
        wins = out[:, :1] > out[:, 1:]
        assert not (holds & ~wins).any()
        held, strict = held + holds.sum(), strict + wins.sum()
    assert held > 0.9 * strict


@pytest.mark.slow
def test_the_fixed_point_reciprocal_by_exhaustion() -> None:
    """g / 2^n is within 2^-26 of 2^27 / S, relative, for every sum of exponentials that is allowed at all.

    g depends on S * 2^leading alone, and the sums in [2^27, 2^28) take every value of it that smaller sums take.
    """
    assert overflow.SOFTMAX_SUM == 2**28 - 1
    for start in range(2**27, 2**28, 2**18):
        check_reciprocal(np.arange(start, start + 2**18, dtype=np.int64))
    check_reciprocal(np.random.default_rng(0).integers(2**19, 2**27, 2**16))


def check_reciprocal(total: Array) -> None:
    g, shift = SoftmaxRule.reciprocal(total)
    # g / 2^shift against 2^27 / S is g * (S << leading) against 2^62, with leading = 35 - shift.
    assert (np.abs(g * (total << (35 - shift)) - 2**62) <= 2**36).all()


def test_reciprocal_check_sees_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SoftmaxRule.reciprocal
    monkeypatch.setattr(SoftmaxRule, "reciprocal", lambda total: (real(total)[0] - 64, real(total)[1]))
    with pytest.raises(AssertionError):
        check_reciprocal(np.arange(2**19, 2**19 + 100, dtype=np.int64))


# What has no decision rule, and results that must not depend on how they were computed.


def test_ends_without_a_rule_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="two classes"):
        Decider(dense([[1, 2]], [0]))
    for reshaped in (False, True):
        with pytest.raises(UnsupportedError, match="one row"):
            Decider(lower(_softmax_rows(reshaped), TFLM))


@pytest.mark.parametrize(("scale", "ties"), [(2.0**-149, False), (2.0**-150, True)])
def test_codes_that_dequantise_to_equal_floats_are_refused(scale: float, ties: bool) -> None:
    program = dense([[1], [2]], [0, 0], float_out=True)
    tensors = list(program.graph.tensors)
    tensors[1] = replace(tensors[1], scale=scale)
    changed = replace(program, graph=replace(program.graph, tensors=tuple(tensors)))
    if ties:
        with pytest.raises(UnsupportedError, match="equal floats"):
            Decider(changed)
    else:
        Decider(changed)


def _softmax_rows(reshaped: bool) -> Graph:
    build = GraphBuilder()
    last = build.input(Tensor("x", (2, 3), "int8", 0.125, 0))
    last = build.node(ops.Softmax(), [last], Tensor("p", (2, 3), "int8", 1 / 256, -128))
    if reshaped:
        last = build.node(ops.Reshape(), [last], Tensor("flat", (6,), "int8", 1 / 256, -128))
    return build.finish(last)


def test_a_table_that_is_not_monotone_is_refused() -> None:
    program = dense([[1], [2]], [0, 0], softmax=0.1)
    table = program.steps[-1].atom.rule.exponentials.copy()  # type: ignore[union-attr]
    table[100] = table[101] + 1
    atom = Softmax(SoftmaxRule(table))
    with pytest.raises(UnsupportedError, match="monotone"):
        Decider(replace(program, steps=(*program.steps[:-1], replace(program.steps[-1], atom=atom))))


def test_threads_and_batches_change_nothing() -> None:
    (program,) = classifiers(11, 1, max_nodes=3, middle=("conv2d", "dense"), ends=("",))
    rng = np.random.default_rng(0)
    shape, n = program.values[program.input].shape, 2 * BATCH + 5
    x = rng.integers(-128, 128, (n, *shape)).astype(np.int8)
    y = evaluate.run(program, x).reshape(n, -1).argmax(1)
    ball = region(program, program.quantize.scale * 3)
    seen: list[int] = []
    first = certify(program, ball, x, y, progress=seen.append)
    assert seen == [BATCH, 2 * BATCH, n]
    for options in ({"threads": 3}, {"batch": 7}, {"threads": 2, "batch": 1000}):
        again = certify(program, ball, x, y, **options)  # type: ignore[arg-type]
        for name in ("correct", "certified", "margin"):
            assert np.array_equal(getattr(first, name), getattr(again, name))


# Overflow.


def check_overflow(program: Program, seed: int) -> None:
    """No partial sum, in a random order, with the zero point folded or not, exceeds the bound that `prove` states."""
    rng = np.random.default_rng(seed)
    facts = prove(program)
    for step in program.steps:
        if not isinstance(step.atom, Affine):
            continue
        bound = max(f.bound for f in facts if f.node == step.node and f.quantity.startswith("sums"))
        linear, offset = step.atom.linear, step.atom.input_offset
        unit = np.zeros((1, *linear.out_shape), np.int64)
        where = tuple(int(rng.integers(n)) for n in unit.shape)
        unit[where] = 1
        w = linear.adjoint(unit).ravel()
        b = int(np.broadcast_to(step.atom.bias, unit.shape)[where])
        for x in (np.where(w > 0, 127, -128), np.where(w > 0, -128, 127), rng.integers(-128, 128, w.size)):
            order = rng.permutation(w.size)
            for terms in ([b, *(w * (x + offset))[order]], [*(w * x)[order], b + offset * int(w.sum())]):
                assert np.abs(np.cumsum(terms)).max() <= bound


def test_no_partial_sum_exceeds_its_bound() -> None:
    for k, program in enumerate(programs(0, 60, middle=("conv2d", "dense", "depthwise_conv2d", "avg_pool", "mean"))):
        check_overflow(program, k)


def test_overflow_check_sees_a_forgotten_zero_point(monkeypatch: pytest.MonkeyPatch) -> None:
    real = overflow._quantities

    def blind(atom: Any, *rest: Any) -> Any:
        return real(replace(atom, input_offset=0) if isinstance(atom, Affine) else atom, *rest)

    monkeypatch.setattr(overflow, "_quantities", blind)
    with pytest.raises(AssertionError):
        for k, program in enumerate(programs(0, 60, middle=("conv2d", "dense"))):
            check_overflow(program, k)


def test_a_graph_that_may_overflow_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"op 0 Dense -> 'logits': sums .* may reach"):
        prove(dense([[127, 127], [1, 1]], [2**31 - 1, 0], 1e-6))
    with pytest.raises(ModelError, match="2\\^max"):
        prove(dense([[127, 127], [1, 1]], [2**20, 0], 2.0**12))
    small = dense([[1], [2]], [0, 0], softmax=0.1)
    wide = tuple(replace(v, shape=(512,)) for v in small.values)
    with pytest.raises(ModelError, match="exponentials"):
        prove(replace(small, values=wide))
    with pytest.raises(ModelError):
        Decider(dense([[127, 127], [1, 1]], [2**31 - 1, 0], 1e-6))


@pytest.mark.parametrize("name", ["kws_ref_model.tflite", "pretrainedResnet_quant.tflite"])
def test_reference_networks(name: str, models_folder: Path) -> None:
    """Third-party networks of the field: compiled bounds equal the definition's, and verdicts survive sampling and attack."""
    program = lower(read_tflite((models_folder / "mlperf-tiny" / name).read_bytes()).graph, TFLM)
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (6, *program.values[program.input].shape)).astype(np.int8)
    radius = np.zeros_like(x)
    radius[1:4, 10:12] = 1
    radius[4:] = 3
    lo, hi = (np.clip(x.astype(int) + s * radius, -128, 127).astype(np.int8) for s in (-1, 1))
    values = range(len(program.values))
    for (low, high), (got_low, got_high) in zip(
        propagate(program, lo, hi), Engine(program, values).run(lo, hi), strict=True
    ):
        assert np.array_equal(low, got_low) and np.array_equal(high, got_high)
    labels = evaluate.run(program, x).reshape(6, -1).argmax(1)
    decision = decide(program, lo, hi, labels, x)
    assert decision.certified[0]
    for i in np.flatnonzero(decision.certified):
        points, _ = inside(rng, lo[i], hi[i])
        assert margins(program, points, labels[i]).min() >= 1
    assert not (attack(program, lo, hi, labels, start=x, steps=4, restarts=1).found & decision.certified).any()
