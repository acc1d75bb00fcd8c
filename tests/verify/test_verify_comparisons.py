"""Single comparisons of a re-check, each with what would be taken for a proof if it were left out."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from brute import boxes
from certificate_kit import MODEL, TFLITE, X, Y, issue, recheck
from families_kit import UNIT, codes_of, net
from test_verify_certificate import failed, resealed
from test_verify_proof import _program, _records, diamond, first, lying, shown, written
from test_verify_regions import sensor
from test_verify_relax import dense

from cactus_edge.certify.find import find
from cactus_edge.certify.linear import default_slopes
from cactus_edge.errors import CertificateError, InputError, ModelError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import linear, ops
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import Affine, Monotone, Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.ir.rules import Clamp, Requantise, RoundDivide
from cactus_edge.verify import decide, overflow
from cactus_edge.verify import recheck as unbound
from cactus_edge.verify import relax as relax_module
from cactus_edge.verify.certificate import certify_file, prove_claims
from cactus_edge.verify.check import Checker, decided
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.families import Tone, tone
from cactus_edge.verify.goal import wins
from cactus_edge.verify.interval import accumulate, step_bounds
from cactus_edge.verify.lines import INTERCEPT, ONE, Slope, lines
from cactus_edge.verify.proof import Leaf, Multiplier, Proof, Record, Robust, Row, encode, parse, split
from cactus_edge.verify.regions import Region, region
from cactus_edge.verify.relax import GRAIN, NONE, Relaxation, Rows
from cactus_edge.verify.runtimes import TFLITE as BARE
from cactus_edge.verify.runtimes import runtimes

DIGEST = hashlib.sha256(MODEL).digest()


def higher_box(records: list[Record]) -> None:
    i = first(records, Robust)
    records[i] = replace(records[i], lower=records[i].upper)


def test_a_box_cut_from_below_is_another_box() -> None:
    certificate, proof = lying(_records(higher_box))
    assert failed(recheck(certificate, MODEL, X, Y, proof=proof)) == {"the proof"}


def toned() -> tuple[Program, Region, Proof]:
    """Two boxes a sample."""
    family = tone(brightness=("-1/16", "1/16"), cells=2)
    made = certify_file(
        MODEL, X, Y, form=TFLITE, eps=0, domain=(0, 1), family=family, profile="tflm", created="then", find=find
    )
    assert made.proof is not None and made.decision.certified.any()
    return (program := _program()), region(program, 0, (0, 1), family), parse(made.proof, program)


def shown_by(program: Program, asked: Region, proof: Proof) -> Any:
    return decided(program, asked, X, Y, encode(program, proof), DIGEST)[0].certified


@pytest.mark.parametrize("open_box", [0, 1])
def test_a_sample_is_certified_by_all_of_its_boxes(open_box: int) -> None:
    program, asked, proof = toned()
    assert shown_by(program, asked, proof).any()
    records = list(proof.records)
    records[open_box::2] = [replace(r, verdict=None) for r in records[open_box::2]]
    assert not shown_by(program, asked, replace(proof, records=records)).any()


def test_a_point_of_a_familys_box_is_no_counterexample() -> None:
    """The checker alone takes it for one: it is in the box, and the label loses there."""
    program, asked, proof = toned()
    records, found = list(proof.records), 0
    for i, r in enumerate(records):
        ends = [p for p in (r.lower, r.upper) if not wins(run(program, p[None]), np.array([r.label]))[0]]
        if r.verdict is None and ends:
            records[i], found = replace(r, verdict=ends[0]), found + 1
    assert found
    changed = replace(proof, records=records)
    assert Checker(program, proof.slopes).holds(records).all()
    with pytest.raises(CertificateError, match="no counterexamples"):
        shown_by(program, asked, changed)


def test_a_counterexample_is_one_for_one_arithmetic() -> None:
    several = runtimes(MODEL, "tflm,litert-xnnpack", TFLITE).program
    x = TFLM_CODES[0]
    lost = Record(0, int(Y[0]), x, x, x)  # the label of sample 0 is wrong
    assert Checker(_program(), {}).holds([lost]).all()
    with pytest.raises(InputError, match="one for one arithmetic"):
        Checker(several, {}).holds([lost])


TFLM_CODES = _program().quantize.apply(X)


@pytest.mark.parametrize(("p", "q", "label", "other"), [(2, 1, 20, 25), (1, 2, -30, -20)])
def test_factors_need_a_layer_of_weights_to_weigh(p: int, q: int, label: int, other: int) -> None:
    """The logits are the input, 5 (10) apart: twice the label's (the other's) own is no margin."""
    program = sensor(1.0, 0, (2,))
    x = np.array([label, other], np.int8)
    sheet = np.zeros((2, 0), np.uint8)
    claim = Record(0, 0, x, x, Robust((sheet,), (), Leaf((Row(1, p, q, 0),))))
    assert p * label - q * other >= 1
    with pytest.raises(CertificateError, match="row with factors"):
        Checker(program, {}).holds([claim])
    assert (
        not Checker(program, {}).holds([replace(claim, verdict=Robust((sheet,), (), Leaf((Row(1, 1, 1, 0),))))]).any()
    )


M = Multiplier(1, 0, 5, 20)
ROWS: dict[str, tuple[Row, str]] = {
    "p is 0": (Row(1, 0, 1, None), "factors 0 and 1"),
    "q is 0": (Row(1, 1, 0, None), "factors 1 and 0"),
    "p beyond": (Row(1, 4097, 1, None), "factors 4097 and 1"),
    "q beyond": (Row(1, 1, 4097, None), "factors 1 and 4097"),
    "a place twice": (Row(1, 1, 1, None, (M, M)), "multipliers out of order"),
    "places out of order": (Row(1, 1, 1, None, (replace(M, element=1), M)), "multipliers out of order"),
    "mu beyond": (Row(1, 1, 1, None, (replace(M, mu=2**24),)), "a multiplier of"),
    "mu below": (Row(1, 1, 1, None, (replace(M, mu=-(2**24)),)), "a multiplier of"),
    "s beyond": (Row(1, 1, 1, None, (replace(M, s=61),)), "a multiplier of"),
}


def said(program: Program, row: Row) -> bytes:
    box = np.array([-9, -9], np.int8), np.array([9, 9], np.int8)
    return encode(program, Proof(bytes(32), "tflm", 1, {}, [Record(0, 0, *box, Robust((), (), Leaf((row,))))]))


@pytest.mark.parametrize("name", ROWS)
def test_rows_beyond_the_form_are_refused(name: str) -> None:
    program = diamond()
    row, why = ROWS[name]
    right = (M, replace(M, element=1, mu=2**24 - 1), replace(M, element=2, mu=1 - 2**24, s=60))
    for allowed in (Row(1, 1, 1, None), Row(1, 4096, 4096, None, right)):
        parse(said(program, allowed), program)
    with pytest.raises(CertificateError, match=why):
        parse(said(program, row), program)


def test_two_proofs_for_one_profile_are_refused() -> None:
    program, proof = written(0)
    data = encode(program, proof)
    with pytest.raises(CertificateError, match="two proofs"):
        split(data + data)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sample_that_may_become_two_codes_is_right_for_both(sign: int) -> None:
    """x = 0.5 is code 1 to tflm and 0 to XNNPACK; out_0 - out_1 is 1 for one of them, 0 for the other."""
    build = GraphBuilder()
    one = ops.freeze(np.ones(1, np.float32), np.float32)
    x = build.input(Tensor("x", (1,), "int8", 1.0, 0))
    bias = ops.freeze([1 if sign < 0 else 0, 0], np.int32)
    last = build.node(
        ops.Dense(ops.freeze([[sign], [0]], np.int8), bias, one), [x], Tensor("out", (2,), "int8", 1.0, 0)
    )
    graph = build.finish(last)
    program = mix([lower(graph, PROFILES[name]) for name in ("tflm", "litert-xnnpack")])
    asked, data, labels = (
        Region((Fraction(0),), (Fraction(-9), Fraction(9))),
        np.array([[0.5]], np.float32),
        np.array([0]),
    )
    low, high, _ = asked.boxes(program, data)
    assert (low[0, 0], high[0, 0]) == (0, 1)
    assert [bool(wins(run(program, c), labels)[0]) for c in (low, high)] == [sign < 0, sign > 0]
    proof = Proof(DIGEST, program.profile.name, 1, {}, [Record(0, 0, low[0], high[0], None)])
    decision, _ = decided(program, asked, data, labels, encode(program, proof), DIGEST)
    assert not decision.correct.any()
    assert not decide.certify(program, asked, data, labels).correct.any()


@pytest.mark.parametrize("family", [None, tone(brightness=("-1/16", "1/16"), cells=3)], ids=["ball", "tone"])
def test_no_box_is_left_out_of_the_last_batch(family: Any) -> None:
    """Batches of one box, of all but one, of all, and of more: each as one by one. What is not looked at would be certified."""
    program = _program()
    asked = region(program, "1/16" if family is None else 0, (0, 1), family)
    labels = np.append(Y[:-1], (Y[-1] + 1) % 3)
    alone = [decide.certify(program, asked, X[i : i + 1], labels[i : i + 1]) for i in range(40)]
    expected = [bool(d.certified[0]) for d in alone]
    assert not expected[-1] and any(expected)
    count = 40 * asked.count(X.shape[1:])
    for batch in (1, count - 1, count, count + 1):
        found = decide.certify(program, asked, X, labels, batch=batch)
        assert found.certified.tolist() == expected
        assert found.margin.tolist() == [int(d.margin[0]) for d in alone]


@pytest.mark.parametrize(("inputs", "bias"), [(517, 0), (3, -(2**23))], ids=["-128", "negative"])
def test_the_carrier_holds_the_least_code_and_a_negative_bias(inputs: int, bias: int) -> None:
    """2 * 127 * 127 * 517 is below 2^24, 2 * 128 * 127 * 517 is not: float32 would lose a one."""
    affine = Affine(linear.Dense(np.full((1, inputs), 127, np.int8), (inputs,)), 0, np.array([bias]))
    compiled = accumulate(affine, (-128, 127))
    assert compiled.dtype is np.float64
    lo = np.full((1, inputs), -128)
    hi = lo.copy()
    hi[0, 0] += 1
    for got, want in zip(
        compiled.ends(lo.astype(np.float32), hi.astype(np.float32)), step_bounds(affine, [(lo, hi)]), strict=True
    ):
        assert np.array_equal(got.astype(np.int64), 2 * want)
    total = np.array([2 * 127 * -128 * 516 + 127 * -255 if inputs == 517 else 2 * bias - 1])
    assert total.astype(np.float32).astype(np.int64) != total


def test_the_fused_margin_counts_the_highest_level_too() -> None:
    """out_0 = x + 10 saturates at 127, so that the margin over out_1 = x is least where out_1 is highest."""
    build = GraphBuilder()
    one = ops.freeze(np.ones(1, np.float32), np.float32)
    x = build.input(Tensor("x", (1,), "int8", 1.0, 0))
    op = ops.Dense(ops.freeze([[1], [1]], np.int8), ops.freeze([10, 0], np.int32), one)
    program = lower(build.finish(build.node(op, [x], Tensor("out", (2,), "int8", 1.0, 0))), PROFILES["tflm"])
    decider, label = Decider(program), np.zeros(1, np.int64)
    for low, high in ((a, b) for a in range(95, 127, 5) for b in range(a, 127)):
        points = np.arange(low, high + 1)[:, None].astype(np.int8)
        out = run(program, points).astype(int)
        _, margin = decider.decide(points[:1], points[-1:], label)
        assert margin[0] <= (out[:, 0] - out[:, 1]).min(), (low, high)


@pytest.mark.parametrize("apart", [27, 28, 29, 40, 60])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_too_fine_to_be_added_is_paid_for(apart: int, swapped: bool) -> None:
    """Two coefficients of one value, in units 2^apart apart: no point of its bounds is below the sum that is kept."""
    rng = np.random.default_rng(apart)
    for _ in range(50):
        a, b = (int(v) for v in rng.integers(-(2**23), 2**23, 2))
        bounds = np.sort(rng.integers(-500, 500, (2, 1, 1)), 0)
        state = Rows(np.zeros((1, 1), np.int64), np.ones((1, 1), np.bool_))
        given = [(a, 0), (b, apart)]
        for c, e in given[::-1] if swapped else given:
            state.give(5, np.full((1, 1, 1), c), np.full((1, 1), e), (bounds[0], bounds[1]))
        kept, unit = (int(v.ravel()[0]) for v in state.pending[5])
        constant = Fraction(int(state.constant[0, 0]), 2**GRAIN)
        for v in (int(bounds[0, 0, 0]), int(bounds[1, 0, 0])):
            assert constant + Fraction(kept * v) / Fraction(2) ** unit <= a * v + Fraction(b * v, 2**apart)


def test_an_intercept_out_of_its_range_gives_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the limit is 1, every line through a rule is beyond it; as it stands, none of these is."""
    program = dense(1)[0]
    lo, _, hi = boxes(np.random.default_rng(0), program.values[program.input].shape, 3)
    relaxation = Relaxation(program, default_slopes(program))
    assert relaxation.lines
    known, _ = relaxation.forward(lo, hi)
    hints = {v: (one := np.full((3, 1, *program.values[v].shape), 100), one) for v in relaxation.lines}
    rows = np.ones((3, 1, *program.values[program.output].shape), np.int64)
    assert (relaxation.lower(program.output, rows, known, hints) > NONE).all()
    monkeypatch.setattr(relax_module, "MULTIPLIER", 1)
    assert (relaxation.lower(program.output, rows, known, hints) == NONE).all()


@pytest.mark.parametrize("family", ["divide", "clamp", "requantise"])
def test_lines_hold_where_a_level_begins_at_an_end_of_all_there_is(family: str) -> None:
    """Every small range as the whole one, every box in it, slopes off the rule's own: then the outermost level decides."""
    rule = {
        "divide": Monotone(RoundDivide(np.array([7]))),
        "clamp": Monotone(Clamp(-3, 4)),
        "requantise": Monotone(Requantise("D", np.array([2**30]), np.array([-2]), 3)),
    }[family]
    for low, high in ((a, b) for a in range(-12, 4, 3) for b in range(a + 1, a + 14)):
        full = np.array([[low]]), np.array([[high]])
        for p in (0, 9, 18, 40):
            found = lines(rule, Slope(7, (p,)), (1,), [full])
            for k in (0, 64, 128, 200):
                for a, b in ((low, high), (low, high - 1), (low + 1, high)):
                    x, args = np.arange(a, b + 1), [(np.array([[[a]]]), np.array([[[b]]]))]
                    value = rule.rule.apply(x) * 2 ** (7 + ONE + INTERCEPT)
                    rise = k * p * x * 2**INTERCEPT
                    above, below = (
                        int(f(np.array([[[k]]]), args)[0, 0, 0]) * 2 ** (7 + ONE) for f in (found.above, found.below)
                    )
                    assert (rise + below <= value).all() and (value <= rise + above).all()


def test_a_member_moves_each_feature_by_its_own_eps() -> None:
    program = net((4,))
    x, at = np.array([0.2, 0.4, 0.6, 0.8]), (Fraction(1, 50), Fraction(1))
    eps = Fraction(0), Fraction(1, 10), Fraction(1, 300), Fraction(0)
    asked = Region(eps, UNIT, tone(("-1/20", "1/20"), cells=1))
    low, high = asked.around(program, x, at)
    reals = [Fraction(v) + at[0] for v in x.tolist()]
    assert np.array_equal(low, codes_of(program, [r - e for r, e in zip(reals, eps, strict=True)], (4,))[0])
    assert np.array_equal(high, codes_of(program, [r + e for r, e in zip(reals, eps, strict=True)], (4,))[1])
    assert ((high - low)[[0, 3]] <= 1).all() and (high - low)[1] > 40


def test_of_several_limits_the_least_counts() -> None:
    assert list(overflow._worst([("sum", 5, 10), ("sum", 7, 6), ("sum", 1, 8), ("else", 1, 2)])) == [
        ("sum", 7, 6),
        ("else", 1, 2),
    ]


def test_the_pivot_lies_between_its_doubles() -> None:
    """A sum that is rounded, then divided and rounded again: one unit in the last place would not hold both."""
    family = Tone(pivot="mean")
    for size in range(1, 12):
        x = np.random.default_rng(size).random((400, size)) * 2.0 ** (size % 5)
        for values, low, high in zip(x.tolist(), *(p.tolist() for p in family._pivots(x)), strict=True):
            mean = sum(map(Fraction, values)) / size
            assert Fraction(low) <= mean <= Fraction(high)


@pytest.mark.parametrize("field", ["node", "op"])
def test_false_is_no_zero_in_a_certificate(field: str) -> None:
    """To Python the two lists of facts are equal; to a reader of the certificate they are not. As they stand they are accepted."""
    assert recheck(resealed(lambda r: r["overflow"][0].update(node=0)), MODEL, X, Y).accepted
    lie = resealed(lambda r: r["overflow"][0].update({field: False if field == "node" else 0}))
    assert failed(recheck(lie, MODEL, X, Y)) == {"overflow"}


def test_every_runtime_is_asked_about_the_file() -> None:
    """One of two says that it does not compute the file in integers, whichever it is."""
    certificate = issue(profile="litert-ref,tflm")
    for refuses in ("litert-ref", "tflm", ""):

        def confirm(data: bytes, row: Any, refuses: str = refuses) -> None:
            if row.name == refuses:
                raise ModelError("a float kernel")

        asked = replace(TFLITE, trusted="the runtime", confirm=confirm)
        report = unbound.recheck(certificate, MODEL, X, Y, formats=(asked,))
        states = {c.name: c.state for c in report.checks}
        assert states[unbound.CONFIRMED] == ("failed" if refuses else "ok")


def test_a_proof_for_a_profile_that_is_not_asked_about_is_refused() -> None:
    certificate, proof = shown(falsify=False)
    more = proof + proof.replace(b"tflm", b"mlft", 1)
    digest = {"sha256": hashlib.sha256(more).hexdigest(), "bytes": len(more)}
    lie = resealed(lambda r: r.update(proof=digest), certificate)
    assert failed(recheck(lie, MODEL, X, Y, proof=more)) == {"the proof"}


def heavy(bias: int) -> bytes:
    """x * 200 + 200 * bias, clamped: XNNPACK has it in floats, TFLM shifts the sum left by 8 bits."""
    build = GraphBuilder()
    x = build.input(Tensor("x", (1,), "int8", 1.0, 0))
    op = ops.Dense(
        ops.freeze([[1], [0]], np.int8), ops.freeze([bias, 0], np.int32), ops.freeze([np.float32(200)], np.float32)
    )
    return write_tflite(build.finish(build.node(op, [x], Tensor("out", (2,), "int8", 1.0, 0))), metadata={})


@pytest.mark.parametrize(("bias", "overflows"), [(2**15, False), (2**24, True)])
def test_overflow_is_proved_for_every_profile_that_has_a_proof(bias: int, overflows: bool) -> None:
    """Open records for each: nothing but `prove` knows that TFLM's sum would leave int32."""
    model, x, y = heavy(bias), np.ones((1, 1), np.float32), np.array([0])
    named = runtimes(model, "litert-xnnpack,tflm", BARE)
    asked, digest = region(named.program, 0, (-9, 9)), hashlib.sha256(model).digest()
    code = np.ones(1, np.int8)
    proofs = b"".join(
        encode(p, Proof(digest, p.profile.name, 1, {}, [Record(0, 0, code, code, None)])) for p in named.proved
    )
    with pytest.raises(ModelError, match="2\\^max") if overflows else nullcontext():
        prove_claims(model, x, y, asked, named, decide.certify, BARE, proofs)
