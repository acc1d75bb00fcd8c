"""Counterexamples named by numbers: members of a family, one perturbation for all samples; found, replayed, and lies refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from certificate_kit import MODEL, X, Y, issue

from cactus_edge.certify.members import losing_members, told
from cactus_edge.certify.universal import universal
from cactus_edge.errors import CertificateError, InputError, InternalError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.verify import counterexamples
from cactus_edge.verify.certificate import decode, encode, seal
from cactus_edge.verify.counterexamples import Member, Witnesses, read_witnesses, refuted, under, won_by
from cactus_edge.verify.decide import certify
from cactus_edge.verify.families import Patch, tone
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.regions import Region, points, region

Array = Any
UNIT = (Fraction(0), Fraction(1))


def net(size: int, seed: int = 0, classes: int = 3, name: str = "tflm") -> Program:
    """A dense layer on `size` inputs in [0, 1]."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder()
    first = build.input(Tensor("x", (size,), "int8", float(np.float32(1 / 255)), -128))
    weight = ops.freeze(rng.integers(-127, 128, (classes, size)), np.int8)
    bias = ops.freeze(rng.integers(-2000, 2000, classes), np.int32)
    dense = ops.Dense(weight, bias, ops.freeze([np.float32(0.02)], np.float32), ops.Activation.NONE)
    last = build.node(dense, [first], Tensor("y", (classes,), "int8", float(np.float32(0.02 * size))))
    return lower(build.finish(last), profile(name))


def samples(program: Program, count: int, seed: int = 1) -> tuple[Array, Array]:
    x = np.random.default_rng(seed).random((count, program.values[program.input].shape[0])).astype(np.float32)
    codes = points(program, x)
    labels = np.array([next((k for k in range(3) if won_by(program, c[None], np.array([k]))[0]), 0) for c in codes])
    return x, labels


@pytest.mark.parametrize("seed", [2, 3, 7, 10])
def test_one_perturbation_is_found_and_counted(seed: int) -> None:
    """In two dimensions nothing on a fine grid is much worse than what was found, and what is certified is never lost."""
    program = net(2, seed)
    x, y = samples(program, 60)
    around = region(program, "1/8", (0, 1))
    delta = universal(program, around, x, y)
    left = under(program, around, x, y, delta)
    places = itertools.product(np.linspace(-0.125, 0.125, 15), repeat=2)
    grid = [under(program, around, x, y, np.array(at)).sum() for at in places]
    before = under(program, around, x, y, np.zeros(2))
    decision = certify(program, around, x, y)
    assert np.array_equal(before, decision.correct)
    assert left.sum() <= min(grid) + 1 < before.sum()
    assert left[decision.certified].all() and min(grid) >= decision.certified.sum()
    assert np.array_equal(delta, universal(program, around, x, y))


def test_a_perturbation_is_added_exactly() -> None:
    """Against fractions, with ties of the quantisation and ends of the domain."""
    program = net(4)
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 256, (50, 4)) / 255).astype(np.float32)
    around = Region(tuple(Fraction(1, k) for k in (3, 5, 7, 2)), UNIT)
    delta = np.array([0.25, -0.1, 1 / 510, -0.5])
    y = rng.integers(0, 3, 50)
    codes = []
    for row in x:
        exactly = [
            min(max(Fraction(float(v)) + Fraction(float(d)), Fraction(0)), Fraction(1))
            for v, d in zip(row, delta, strict=True)
        ]
        codes.append(program.quantize.apply(np.array([float(v) for v in exactly]).astype(np.float32)))
    assert np.array_equal(under(program, around, x, y, delta), won_by(program, np.stack(codes), y))
    as_codes = points(program, x)
    wins = under(program, around, as_codes, y, delta)
    assert wins.shape == (50,)


def test_perturbations_that_are_none() -> None:
    program = net(2)
    x, y = samples(program, 5)
    around = region(program, ["1/10", "1/5"], (0, 1))
    assert under(program, around, x, y, np.array([-0.1 + 1e-16, 0.2 - 1e-16])).shape == (5,)
    for outside in ([0.1, 0], [0, -0.21], [np.nan, 0]):
        with pytest.raises(CertificateError, match="outside the ball"):
            under(program, around, x, y, np.array(outside))
    with pytest.raises(InputError, match="kind tone"):
        under(program, region(program, 0, (0, 1), tone(("0", "0.1"), cells=1)), x, y, np.zeros(2))
    with pytest.raises(InputError, match="several"):
        under(mix([program, net(2, name="litert-xnnpack")]), around, x, y, np.zeros(2))


@pytest.mark.parametrize("pivot", ["mean", 0, "1/2"])
def test_members_that_lose_are_found_and_are_members(pivot: Any) -> None:
    found, open_ = 0, 0
    for seed in range(6):
        program = net(3, seed)
        x, y = samples(program, 20, seed)
        around = region(program, 0, (0, 1), tone(("-0.1", "0.1"), ("0.8", "1.2"), pivot, 8))
        decision = certify(program, around, x, y)
        left = np.flatnonzero(decision.correct & ~decision.certified)
        members = losing_members(program, around, x, y, left)
        assert set(members) <= set(left.tolist())
        assert np.flatnonzero(refuted(program, around, x, y, members)).tolist() == sorted(members)
        for b, c in (member.at for member in members.values()):
            assert abs(b) <= Fraction(1, 10) and Fraction(4, 5) <= c <= Fraction(6, 5)
        found, open_ = found + len(members), open_ + len(left) - len(members)
    assert found > 10 and open_ < found


def image_net(seed: int) -> Program:
    """A dense layer on 3 x 3 pixels of 6 values."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder()
    first = build.input(Tensor("x", (3, 3, 1), "int8", 1.0, 0))
    flat = build.node(ops.Reshape(), [first], Tensor("flat", (9,), "int8", 1.0, 0))
    weight = ops.freeze(rng.integers(-127, 128, (3, 9)), np.int8)
    dense = ops.Dense(
        weight, ops.freeze(np.zeros(3), np.int32), ops.freeze([np.float32(0.02)], np.float32), ops.Activation.NONE
    )
    return lower(build.finish(build.node(dense, [flat], Tensor("y", (3,), "int8", 1.0))), profile("tflm"))


def test_patches_that_fool_are_found_and_are_patches() -> None:
    """Against every filling of every window of 1 x 2 pixels."""
    found = breakable = 0
    for seed in range(6):
        program = image_net(seed)
        x = np.random.default_rng(seed).integers(0, 6, (8, 3, 3, 1)).astype(np.float32)
        y = np.array([(run(program, points(program, v[None]))[0]).argmax() for v in x])
        around = Region((Fraction(0),), (Fraction(0), Fraction(5)), Patch(1, 2))
        members = losing_members(program, around, x, y, range(8))
        assert np.flatnonzero(refuted(program, around, x, y, members)).tolist() == sorted(members)
        claims = Witnesses(members).claims(program, around, x, y, np.zeros(8, np.bool_))
        read = read_witnesses(claims, program.input_tensor).members
        assert read is not None and Witnesses(read).claims(program, around, x, y, np.zeros(8, np.bool_)) == claims
        for i in range(8):
            filled = np.repeat(x[i][None], 3 * 2 * 36, 0)
            for k, (row, column, *values) in enumerate(itertools.product(range(3), range(2), range(6), range(6))):
                filled[k, row, column : column + 2, 0] = values
            lost = ~won_by(program, points(program, filled), np.full(len(filled), y[i]))
            breakable += int(lost.any())
            found += int(i in members)
            assert lost.any() or i not in members
    assert breakable > 10 and found >= 0.9 * breakable


def test_noise_around_a_member_is_searched_too() -> None:
    program = net(3, 2)
    x, y = samples(program, 40)
    family = tone(("-0.02", "0.02"), cells=4)
    counts = []
    for eps in ("0", "1/20"):
        around = region(program, eps, (0, 1), family)
        members = losing_members(program, around, x, y, np.flatnonzero(certify(program, around, x, y).correct))
        assert np.flatnonzero(refuted(program, around, x, y, members)).tolist() == sorted(members)
        counts.append(len(members))
    assert counts[0] < counts[1]


def test_what_certificates_hold_is_read_and_replayed() -> None:
    program = net(3, 2)
    x, y = samples(program, 30)
    wide = region(program, 0, (0, 1), tone(("-0.1", "0.1"), cells=4))
    decision = certify(program, wide, x, y)
    members = losing_members(program, wide, x, y, np.flatnonzero(decision.correct & ~decision.certified))
    claims = Witnesses(members).claims(program, wide, x, y, decision.certified)
    again = Witnesses(read_witnesses(claims, program.input_tensor).members).claims(
        program, wide, x, y, decision.certified
    )
    assert members and again == claims
    ball = region(program, "1/20", (0, 1))
    certified = certify(program, ball, x, y).certified
    delta = universal(program, ball, x, y)
    found = Witnesses(delta=delta).claims(program, ball, x, y, certified)
    read = read_witnesses(found, program.input_tensor)
    assert read.delta is not None and np.array_equal(read.delta, delta) and read.members is None
    group = found["universal"]
    assert group["at_least"] == certified.sum() <= group["at_most"] == under(program, ball, x, y, delta).sum() < 30
    assert Witnesses().claims(program, ball, x, y, certified) == {}


def test_lies_are_refused() -> None:
    program = net(3, 2)
    x, y = samples(program, 30)
    wide = region(program, 0, (0, 1), tone(("-0.1", "0.1"), cells=4))
    decision = certify(program, wide, x, y)
    members = losing_members(program, wide, x, y, np.flatnonzero(decision.correct & ~decision.certified))
    some, member = next(iter(members.items()))
    b, c = member.at
    won = int(np.flatnonzero(decision.certified)[0])
    one = Fraction(1)
    for lie, said in (
        ({won: Member((b, c))}, "won by its label"),
        ({30: member}, "of which there are 30"),
        ({-1: member}, "of which there are 30"),
        ({some: Member((Fraction(1, 2), one))}, "no member"),
        ({some: Member((b,))}, "no member"),
        ({some: Member((b, Fraction(2)))}, "no member"),
        ({some: Member((b, c), np.full(3, -128, np.int8))}, "may become"),
    ):
        with pytest.raises(CertificateError, match=said):
            refuted(program, wide, x, y, lie)
    with pytest.raises(InternalError):
        Witnesses(members).claims(program, wide, x, y, np.ones(30, np.bool_))
    with pytest.raises(InternalError):
        ball = region(program, "1/5", (0, 1))
        Witnesses(delta=universal(program, ball, x, y)).claims(program, ball, x, y, np.ones(30, np.bool_))
    for record in (
        {"counterexamples": {"x": {"at": ["1", "1"]}}},
        {"counterexamples": {"1": {"at": ["1/0"]}}},
        {"counterexamples": {"1": {"codes": "00"}}},
        {"counterexamples": {"1": {"at": ["0", "1"], "codes": "0000"}}},
        {"counterexamples": {"1": 3}},
        {"universal": {"delta": "zz"}},
        {"universal": {"delta": "00" * 8}},
    ):
        with pytest.raises(CertificateError):
            read_witnesses(record, program.input_tensor)


def test_a_patch_is_no_universal_perturbation() -> None:
    program = net(4)
    with pytest.raises(InputError, match="kind patch"):
        under(program, Region((Fraction(0),), UNIT, Patch(1, 1)), *samples(program, 2), np.zeros(4))


def test_the_checks_see_a_perturbation_that_is_not_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counterexamples.np, "clip", lambda value, low, high: value)
    with pytest.raises(AssertionError):
        scale_test()


def scale_test() -> None:
    """Beyond the domain is the end of the domain: with a domain narrower than the codes that is another code."""
    program = net(2, 3)
    x, y = samples(program, 40)
    x = (x / 2).astype(np.float32)
    around = region(program, "1/2", (0, "1/2"))
    at_end = won_by(program, points(program, np.full_like(x, 0.5)), y)
    assert np.array_equal(under(program, around, x, y, np.array([0.5, 0.5])), at_end)


def test_beyond_the_domain() -> None:
    scale_test()


WIDE = tone(("-1/2", "1/2"), cells=2)
HELD = {
    "counterexamples": issue(eps="0", family=WIDE, tell=partial(told, members=True)),
    "universal": issue(eps="1/8", tell=partial(told, delta=True)),
}


def lie(kind: str, change: Callable[[dict[str, Any]], object]) -> set[str]:
    """The checks that fail once a certificate was changed and sealed again."""
    record = decode(HELD[kind])
    change(record)
    return {c.name for c in recheck(encode(seal(record)), MODEL, X, Y).checks if c.state == "failed"}


def first(members: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(iter(members.values()))
    return entry


def test_certificates_hold_them_and_a_recheck_replays_them() -> None:
    for kind, source in HELD.items():
        assert recheck(source, MODEL, X, Y).accepted
        assert decode(source)[kind]
        assert lie(kind, lambda record: None) == set()
    group = decode(HELD["universal"])["universal"]
    assert decode(HELD["universal"])["verdict"]["certified"] == group["at_least"] < group["at_most"] < 39


@pytest.mark.parametrize(
    ("kind", "change", "name"),
    [
        ("counterexamples", lambda r: first(r["counterexamples"]).update(at=["0", "1"]), "the proof"),
        ("counterexamples", lambda r: first(r["counterexamples"]).update(at=["1", "1"]), "the proof"),
        ("counterexamples", lambda r: first(r["counterexamples"]).update(at=["2/4", "1"]), None),
        ("counterexamples", lambda r: first(r["counterexamples"]).update(codes="80" * 6), "the proof"),
        ("counterexamples", lambda r: first(r["counterexamples"]).update(why="so"), None),
        ("counterexamples", lambda r: r["counterexamples"].update({"40": {"at": ["0", "1"]}}), "the proof"),
        ("counterexamples", lambda r: r["counterexamples"].update({"0.5": {"at": ["0", "1"]}}), "the proof"),
        ("counterexamples", lambda r: r.update(counterexamples=[]), "counterexamples"),
        (
            "counterexamples",
            lambda r: r.update(region={"kind": "linf", "eps": "1/2", "domain": ["0", "1"]}),
            "the proof",
        ),
        ("universal", lambda r: r["universal"].update(at_most=1), "universal.at_most"),
        ("universal", lambda r: r["universal"].update(at_least=39), "universal.at_least"),
        ("universal", lambda r: r["universal"].update(delta="00" * 48), "universal.at_most"),
        ("universal", lambda r: r["universal"].update(delta="00" * 40), "the proof"),
        ("universal", lambda r: r["universal"].update(delta="ff" * 48), "the proof"),
        ("universal", lambda r: r["universal"].update(sure=True), "universal.sure"),
        ("universal", lambda r: r["region"].update(eps="1/128"), "the proof"),
    ],
)
def test_sealed_lies_are_rejected(kind: str, change: Callable[[dict[str, Any]], object], name: str | None) -> None:
    failed = lie(kind, change)
    assert failed if name is None else name in failed


def test_what_is_told_needs_one_arithmetic() -> None:
    with pytest.raises(InputError, match="several"):
        issue(eps="1/8", profile="litert-ref,tflm", tell=partial(told, delta=True))
