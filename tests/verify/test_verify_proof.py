"""Proofs: what is accepted is true of every execution; what is read back is what was written; a changed proof is about nothing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from brute import boxes, execute, inside, programs
from certificate_kit import MODEL, TFLITE, TFLM, X, Y, issue, recheck
from proof_kit import record, slopes, wins
from test_verify_certificate import failed, resealed
from test_verify_mixture import mixtures
from test_verify_relax import DENSE, everything

from cactus_edge.certify.find import find
from cactus_edge.certify.linear import Linear
from cactus_edge.errors import CertificateError, InputError, UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import check as module
from cactus_edge.verify.certificate import certify_file
from cactus_edge.verify.check import Checker
from cactus_edge.verify.goal import Goal
from cactus_edge.verify.proof import Leaf, Proof, Record, Robust, Split, Tighten, encode, parse, split
from cactus_edge.verify.runtimes import runtimes

Array = Any


def decidable(found: list[Program]) -> list[Program]:
    return [p for p in found if p.output_tensor.size > 1 and p.output_tensor.shape[-1] == p.output_tensor.size]


def some_programs() -> list[Program]:
    tiny: dict[str, Any] = {"middle": ("dense", "relu", "requantize", "conv2d", "add"), "max_nodes": 4}
    return decidable(
        programs(900, 30, **DENSE) + programs(50, 12, **tiny) + everything(40)[:20] + mixtures(500, 8, decidable=True)
    )


def check_proofs(found: list[Program]) -> int:
    """Random proofs, and those of the search: whatever is accepted is won by every execution tried. How many were."""
    accepted = 0
    for k, program in enumerate(found):
        rng = np.random.default_rng(k)
        lo, x, hi = boxes(rng, program.values[program.input].shape, 6)
        labels = execute(rng, program, x)[program.output].reshape(len(x), -1).argmax(1)
        search = Linear(program)
        checker = Checker(program, slopes(rng, program))
        random = [record(rng, checker, lo[i], hi[i], int(labels[i])) for i in range(6) for _ in range(4)]
        for used, records in ((checker, random), (search.checker, search.records(lo, hi, np.arange(6), labels))):
            for claim, held in zip(records, used.holds(records), strict=True):
                if held and claim.verdict is not None:
                    accepted += 1
                    points, _ = inside(rng, claim.lower, claim.upper)
                    assert wins(rng, program, points, claim.label)
    return accepted


def test_what_is_accepted_is_won_by_every_execution() -> None:
    assert check_proofs(some_programs()) > 250


def left_out(patch: pytest.MonkeyPatch) -> None:
    real = module._leaves
    patch.setattr(module, "_leaves", lambda tree, path=(): list(real(tree, path))[:1])


def moved_split(patch: pytest.MonkeyPatch) -> None:
    real = module.cut
    patch.setattr(
        module,
        "cut",
        lambda known, n, path: real(known, n, tuple((v, e, t + 300 if above else t, above) for v, e, t, above in path)),
    )


def lost_class(patch: pytest.MonkeyPatch) -> None:
    real = Goal.won

    def won(self: Goal, margins: Array, labels: Array) -> Array:
        found = real(self, margins, labels)
        found[:, -1] = True
        return found

    patch.setattr(Goal, "won", won)


def ties_win(patch: pytest.MonkeyPatch) -> None:
    real = Goal.won
    patch.setattr(Goal, "won", lambda self, margins, labels: real(self, margins + 1, labels))


def others_row(patch: pytest.MonkeyPatch) -> None:
    real = Checker.margins

    def margins(self: Checker, labels: Array, rows: Any, *rest: Any) -> Array:
        return real(self, labels, [[replace(r, p=1) for r in listed] for listed in rows], *rest) + 40

    patch.setattr(Checker, "margins", margins)


@pytest.mark.parametrize("fault", [left_out, moved_split, lost_class, ties_win, others_row])
def test_the_check_of_proofs_sees_a_fault(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = some_programs()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_proofs(found)


def diamond(least: int = 110) -> Program:
    """out_0 = least - |x_0 + x_1| - |x_0 - x_1| against out_1 = 0, all of scale 1: at |x| <= 30 out_0 >= least - 60."""
    build = GraphBuilder()
    one = ops.freeze(np.ones(1, np.float32), np.float32)
    x = build.input(Tensor("x", (2,), "int8", 1.0, 0))
    signs = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])
    hidden = ops.Dense(
        ops.freeze(signs, np.int8), ops.freeze(np.zeros(4), np.int32), one, activation=ops.Activation.RELU
    )
    h = build.node(hidden, [x], Tensor("h", (4,), "int8", 1.0, 0))
    last = ops.Dense(ops.freeze([[-1] * 4, [0] * 4], np.int8), ops.freeze([least, 0], np.int32), one)
    return lower(build.finish(build.node(last, [h], Tensor("out", (2,), "int8", 1.0, 0))), TFLM)


@pytest.mark.parametrize("wrong", [0, 40])
def test_a_split_proves_what_one_region_does_not(wrong: int) -> None:
    program = diamond(110 - wrong)
    search = Linear(program)
    lo, hi = np.full((1, 2), -30, np.int8), np.full((1, 2), 30, np.int8)
    assert search.records(lo, hi, np.array([0]), np.array([0]))[0].verdict is None
    parts = []
    for low, high in ((-30, -1), (0, 30)):
        half_lo, half_hi = np.array([[low, -30]], np.int8), np.array([[high, 30]], np.int8)
        parts.append(search.records(half_lo, half_hi, np.array([0]), np.array([0]))[0].verdict)
    if wrong:
        assert parts == [None, None]
        return
    sheets, trees = [], []
    for i, part in enumerate(parts):
        assert isinstance(part, Robust) and isinstance(part.tree, Leaf)
        sheets.append(part.sheets[0])
        rows = tuple(replace(r, sheet=None if r.sheet is None else i) for r in part.tree.rows)
        trees.append(Leaf(rows, tuple(Tighten(t.value, i) for t in part.tighten)))
    whole = Robust(tuple(sheets), (), Split(program.input, 0, 0, *trees))
    assert search.checker.holds([Record(0, 0, lo[0], hi[0], whole)]).all()
    for threshold in (-9, 9):
        moved = replace(whole, tree=Split(program.input, 0, threshold, *trees))
        assert not search.checker.holds([Record(0, 0, lo[0], hi[0], moved)]).any()


def valley() -> Program:
    """out_0 = |x - 5| against out_1 = 0, all of scale 1: a win but at x = 5, where they tie."""
    build = GraphBuilder()
    one = ops.freeze(np.ones(1, np.float32), np.float32)
    x = build.input(Tensor("x", (1,), "int8", 1.0, 0))
    bias = ops.freeze([-5, 5], np.int32)
    hidden = ops.Dense(ops.freeze([[1], [-1]], np.int8), bias, one, activation=ops.Activation.RELU)
    h = build.node(hidden, [x], Tensor("h", (2,), "int8", 1.0, 0))
    last = ops.Dense(ops.freeze([[1, 1], [0, 0]], np.int8), ops.freeze([0, 0], np.int32), one)
    return lower(build.finish(build.node(last, [h], Tensor("out", (2,), "int8", 1.0, 0))), TFLM)


def check_no_point_is_between_the_parts() -> None:
    """Of all splits of [0, 10] only those that leave the one lost point out of both parts could be accepted."""
    program = valley()
    checker, hidden = Checker(program, {}), program.steps[0].out
    whole = np.array([[0]], np.int8), np.array([[10]], np.int8)
    for value, offset in ((program.input, 0), (hidden, -5)):
        for threshold in range(1, 11):
            tree = Split(value, 0, threshold + offset, Leaf(()), Leaf(()))
            claim = Record(0, 0, whole[0][0], whole[1][0], Robust((), (), tree))
            assert not checker.holds([claim]).any(), threshold
    for low, high in ((0, 4), (6, 10)):
        part = Record(0, 0, np.array([low], np.int8), np.array([high], np.int8), Robust((), (), Leaf(())))
        assert checker.holds([part]).all()


def test_no_point_is_between_the_parts() -> None:
    check_no_point_is_between_the_parts()


@pytest.mark.parametrize("lost", [(1, 0), (0, 1)], ids=["below", "above"])
def test_the_check_of_parts_sees_one_point_lost(lost: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.cut

    def cut(known: Any, n: int, path: Any) -> None:
        real(known, n, tuple((v, e, t + (lost[1] if above else -lost[0]), above) for v, e, t, above in path))

    monkeypatch.setattr(module, "cut", cut)
    with pytest.raises(AssertionError):
        check_no_point_is_between_the_parts()


def test_more_classes_than_a_leaf_has_rows_for_are_refused() -> None:
    build = GraphBuilder()
    x = build.input(Tensor("x", (1,), "int8", 1.0, 0))
    weight = ops.freeze(np.zeros((257, 1)), np.int8)
    last = ops.Dense(weight, ops.freeze(np.zeros(257), np.int32), ops.freeze(np.ones(1, np.float32), np.float32))
    graph = build.finish(build.node(last, [x], Tensor("out", (257,), "int8", 1.0, 0)))
    with pytest.raises(UnsupportedError, match="up to 256 classes, this network has 257"):
        Linear(lower(graph, TFLM))


# The form


def written(seed: int) -> tuple[Program, Proof]:
    """A proof of every kind of record."""
    rng = np.random.default_rng(seed)
    program = decidable(programs(seed, 8, **DENSE))[0]
    lo, x, hi = boxes(rng, program.values[program.input].shape, 6)
    chosen = slopes(rng, program)
    checker = Checker(program, chosen)
    records: list[Record] = []
    for i in range(6):
        claim = replace(record(rng, checker, lo[i], hi[i], 1), sample=i)
        records.append(claim if i % 3 else replace(claim, verdict=x[i] if i else None))
    return program, Proof(bytes(range(32)), program.profile.name, 6, chosen, records)


@pytest.mark.parametrize("seed", range(6))
def test_what_is_read_back_is_what_was_written(seed: int) -> None:
    program, proof = written(seed)
    data = encode(program, proof)
    again = parse(data, program)
    assert encode(program, again) == data and again.slopes == proof.slopes
    assert split(data + data.replace(b"tflm", b"mlft")) == {"tflm": data, "mlft": data.replace(b"tflm", b"mlft")}


def test_every_truncation_and_appended_byte_is_refused() -> None:
    program, proof = written(0)
    data = encode(program, proof)
    for n in range(0, len(data), 7):
        with pytest.raises(CertificateError):
            parse(data[:n], program)
        with pytest.raises(CertificateError):
            parse(data[:8] + struct.pack("<Q", n) + data[16:n], program)
    longer = data[:8] + struct.pack("<Q", len(data) + 1) + data[16:] + b"\0"
    for bad in (data + b"\0", longer):
        with pytest.raises(CertificateError):
            parse(bad, program)


def test_flipped_bits_are_refused_or_another_proof() -> None:
    program, proof = written(1)
    data = encode(program, proof)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, 8 * len(data), 3000).tolist():
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        try:
            again = parse(bytes(flipped), program)
        except CertificateError:
            continue
        assert encode(program, again) == bytes(flipped)


@pytest.mark.parametrize("data", [b"", b"CEPROOF\x02" + bytes(60), b"CEPROOF\x01" + b"\xff" * 8 + bytes(60), bytes(10)])
def test_what_is_no_proof_is_refused(data: bytes) -> None:
    program, _ = written(0)
    with pytest.raises(CertificateError):
        parse(data, program)
    if data:
        with pytest.raises(CertificateError):
            split(data)


# Certificates


def shown(**options: Any) -> tuple[bytes, bytes]:
    """A certificate that rests on a proof, and that."""
    made = certify_file(
        MODEL,
        X,
        Y,
        form=TFLITE,
        eps="1/16",
        domain=(0, 1),
        profile="tflm",
        created="then",
        find=partial(find, **options),
    )
    assert made.proof is not None
    return made.to_bytes(), made.proof


def test_a_certificate_rests_on_its_proof() -> None:
    certificate, proof = shown(falsify=True)
    report = recheck(certificate, MODEL, X, Y, proof=proof)
    assert report.accepted and report.record["bounds"] == "proof"
    verdict = report.record["verdict"]
    by_intervals = recheck(issue(eps="1/16"), MODEL, X, Y).record["verdict"]
    assert verdict["certified"] >= by_intervals["certified"] and verdict["refuted"] > 0
    assert verdict["correct_bits"] == by_intervals["correct_bits"]
    with pytest.raises(InputError, match="rests on a proof file"):
        recheck(certificate, MODEL, X, Y)
    assert "proof.sha256" in failed(recheck(certificate, MODEL, X, Y, proof=proof + b"\0"))


def lying(change: Callable[[Proof, Program], Proof]) -> tuple[bytes, bytes]:
    """A certificate and a proof that was changed, with digests that fit again."""
    certificate, proof = shown(falsify=True)
    program = _program()
    bad = encode(program, change(parse(proof, program), program))
    digest = {"sha256": hashlib.sha256(bad).hexdigest(), "bytes": len(bad)}
    return resealed(lambda r: r.update(proof=digest), certificate), bad


def _program() -> Program:
    return runtimes(MODEL, "tflm", TFLITE).program


def _records(change: Callable[[list[Record]], Any]) -> Callable[[Proof, Program], Proof]:
    def changed(proof: Proof, program: Program) -> Proof:
        records = list(proof.records)
        return replace(proof, records=change(records) or records)

    return changed


def first(records: list[Record], kind: type) -> int:
    return next(i for i, r in enumerate(records) if isinstance(r.verdict, kind))


def claim_more(records: list[Record]) -> None:
    i, j = first(records, np.ndarray), first(records, Robust)
    records[i] = replace(records[i], verdict=records[j].verdict)


def false_witness(records: list[Record]) -> None:
    i = first(records, Robust)
    records[i] = replace(records[i], verdict=records[i].lower)


def smaller_box(records: list[Record]) -> None:
    i = first(records, Robust)
    records[i] = replace(records[i], upper=records[i].lower)


def outside(records: list[Record]) -> None:
    i = first(records, np.ndarray)
    records[i] = replace(records[i], verdict=np.where(records[i].lower > -128, -128, 127).astype(np.int8))


def another_label(records: list[Record]) -> None:
    records[3] = replace(records[3], label=(records[3].label + 1) % 3)


@pytest.mark.parametrize(
    "change",
    [
        _records(claim_more),
        _records(false_witness),
        _records(smaller_box),
        _records(outside),
        _records(another_label),
        _records(lambda records: records[:-1]),
        _records(lambda records: [*records, records[-1]]),
        _records(lambda records: records.__setitem__(0, replace(records[0], sample=1))),
        lambda proof, program: replace(proof, model_sha256=bytes(32)),
        lambda proof, program: replace(proof, samples=39),
    ],
    ids=["robust", "witness", "box", "outside", "label", "fewer", "more", "order", "model", "samples"],
)
def test_a_proof_that_says_anything_else_is_rejected(change: Callable[[Proof, Program], Proof]) -> None:
    certificate, proof = lying(change)
    assert failed(recheck(certificate, MODEL, X, Y, proof=proof)) == {"the proof"}


def test_a_verdict_beyond_the_proof_is_rejected() -> None:
    certificate, proof = shown(falsify=False)

    def more(record: dict[str, Any]) -> None:
        record["verdict"] |= {"certified": 40, "certified_bits": "ff" * 5}

    assert "verdict.certified" in failed(recheck(resealed(more, certificate), MODEL, X, Y, proof=proof))
    lie = resealed(lambda r: (r.update(bounds="interval"), r.pop("proof")), certificate)
    assert not recheck(lie, MODEL, X, Y).accepted


@pytest.mark.parametrize("name", ["guess", "", None, ["proof"], "linear"])
def test_an_unknown_method_is_no_certificate(name: Any) -> None:
    with pytest.raises(CertificateError, match="is shown by"):
        recheck(resealed(lambda r: r.update(bounds=name)), MODEL, X, Y)


def test_several_profiles_have_a_proof_each() -> None:
    made = certify_file(
        MODEL, X, Y, form=TFLITE, eps="1/32", domain=(0, 1), profile="tflm,litert-xnnpack", created="then", find=find
    )
    assert made.proof is not None
    assert set(split(made.proof)) == {"litert-xnnpack,tflm", "litert-xnnpack", "tflm"}
    assert recheck(made.to_bytes(), MODEL, X, Y, proof=made.proof).accepted
    assert set(made.each) == {"litert-xnnpack", "tflm"}
    for name, own in made.each.items():
        assert not (made.decision.certified & ~own.certified).any(), name
    with pytest.raises(InputError, match="one for one arithmetic"):
        certify_file(MODEL, X, Y, eps=0, domain=(0, 1), profile="tflm,litert-xnnpack", find=partial(find, falsify=True))


def test_a_witness_is_run() -> None:
    program = _program()
    _, proof = shown(falsify=True)
    for claim in parse(proof, program).records:
        if isinstance(claim.verdict, np.ndarray):
            out = run(program, claim.verdict[None])[0].astype(int)
            assert out[claim.label] <= np.delete(out, claim.label).max()
