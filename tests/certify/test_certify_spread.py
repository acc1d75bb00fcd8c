"""Slices decided elsewhere join to the very decision of a serial run; mixed-up, spoilt and kept answers change nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from certificate_kit import GRAPH, MODEL, X, Y
from spread_kit import (
    DIGEST,
    LABELS,
    MANY,
    PROGRAM,
    REGION,
    WORK,
    Here,
    equal,
    proof,
    serial,
)

from cactus_edge.certify import crew, spread
from cactus_edge.certify.complete import Budget, Effort
from cactus_edge.certify.crew import Proofs, decider, finder, joined
from cactus_edge.certify.find import find
from cactus_edge.certify.spread import Alone, Answer, Question, Slice, Store, answer, cut, in_order
from cactus_edge.errors import CertificateError, InternalError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import decide
from cactus_edge.verify.check import decided
from cactus_edge.verify.families import tone
from cactus_edge.verify.regions import region
from cactus_edge.verify.runtimes import TFLITE, runtimes

pytestmark = pytest.mark.usefixtures("short_slices")


ORDERS: dict[str, Callable[[Sequence[Slice]], Sequence[Slice]]] = {
    "forwards": list,
    "backwards": lambda s: s[::-1],
    "turned": lambda s: [*s[1:], s[0]],
}


@pytest.mark.parametrize("order", ORDERS)
def test_joined_slices_are_a_serial_run(order: str) -> None:
    assert equal(decider(1, Here(ORDERS[order]))(PROGRAM, REGION, MANY, LABELS), serial())
    assert proof(Here(ORDERS[order])) == proof(Alone())


def test_joined_proofs_are_one_proof_of_all() -> None:
    """Without an attack the slices make no difference: the bytes are those of one search over all samples."""
    together = find(PROGRAM, REGION, MANY, LABELS, DIGEST)
    assert finder(Alone())(PROGRAM, REGION, MANY, LABELS, DIGEST) == together
    shown, against = decided(PROGRAM, REGION, MANY, LABELS, proof(Alone()), DIGEST)
    assert shown.certified.sum() == decided(PROGRAM, REGION, MANY, LABELS, together, DIGEST)[0].certified.sum() > 0
    assert against.any()


def test_what_each_region_took_is_told_of_its_own_sample() -> None:
    """Whichever slice it was in."""
    pytest.importorskip("torch")
    heard: list[Effort] = []
    finder(Alone(), budget=Budget(nodes=0), hear=heard.append)(PROGRAM, REGION, X, Y, DIGEST)
    assert [effort.sample for effort in heard] == list(range(len(X))) and len(X) > 2 * crew.SEARCH_SLICE


def test_proofs_in_another_order_are_no_proof() -> None:
    """Two samples with different boxes: the checker refuses a join of swapped slices, whoever joined them."""
    halves = [find(PROGRAM, REGION, X[part], Y[part], DIGEST) for part in (slice(0, 20), slice(20, 40))]
    assert decided(PROGRAM, REGION, X, Y, joined(PROGRAM, halves), DIGEST)[0].certified.any()
    for wrong in (halves[::-1], [halves[0], halves[0]], halves[:1]):
        with pytest.raises(CertificateError):
            decided(PROGRAM, REGION, X, Y, joined(PROGRAM, wrong), DIGEST)
    with pytest.raises(InternalError, match="one question"):
        joined(PROGRAM, [halves[0], find(PROGRAM, REGION, X, Y, b"n" * 32)])


def test_every_program_and_region_travels() -> None:
    """Programs of every profile, of mixtures, and regions of several boxes mean the same behind the way to a worker."""
    toned = region(PROGRAM, "1/200", (0, 1), tone(("-1/50", "1/50"), ("9/10", "11/10"), "1/2", 2))
    named = [runtimes(MODEL, name, TFLITE) for name in ("tflm", "all")]
    for program in [p for r in named for p in (r.program, *r.programs)]:
        for around in (REGION, toned):
            sent = pickle.loads(pickle.dumps(Question(program, around, WORK)))
            assert sent.digest == Question(program, around, WORK).digest
            there = decider(1, Here())(sent.program, sent.region, X[:5], Y[:5])
            assert equal(there, decide.certify(program, around, X[:5], Y[:5]))
    assert len({Question(p, REGION, WORK).digest for r in named for p in r.programs}) == len(named[1].programs)


def test_slices_depend_on_the_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(s.x) for s in cut(MANY, LABELS, 37)] == [37, 37, 37, 37, 12]
    assert np.array_equal(np.concatenate([s.x for s in cut(MANY, LABELS, 37)]), MANY)
    monkeypatch.setattr(spread, "SLICE_BYTES", 5 * X[:1].nbytes)
    assert {len(s.x) for s in cut(MANY, LABELS, 37)} == {5}
    monkeypatch.setattr(spread, "SLICE_BYTES", 1)
    assert {len(s.x) for s in cut(MANY, LABELS, 37)} == {1}


def answered() -> tuple[Question, list[Slice], list[Answer]]:
    question = Question(PROGRAM, REGION, WORK)
    slices = cut(MANY, LABELS, 40)
    return question, slices, [answer(question, part) for part in slices]


def test_a_mixed_up_join_is_refused() -> None:
    question, slices, answers = answered()
    assert len(in_order(question, slices, answers)) == 4
    # All four slices hold the same samples at other places: only the place tells them apart.
    for wrong in (
        [answers[1], answers[0], *answers[2:]],
        answers[:-1],
        [*answers, answers[-1]],
        [*answers[:-1], answers[0]],
        [replace(answers[0], key="0" * 64), *answers[1:]],
        [replace(answers[0], found={k: v[:-1] for k, v in answers[0].found.items()}), *answers[1:]],
    ):
        with pytest.raises(InternalError):
            in_order(question, slices, wrong)
    for other in (
        replace(question, work=Proofs(DIGEST, True, False, 40)),
        replace(question, region=region(PROGRAM, "1/65", (0, 1))),
        replace(question, program=runtimes(MODEL, "litert-ref", TFLITE).program),
    ):
        with pytest.raises(InternalError):
            in_order(other, slices, answers)


def test_the_refusal_is_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keys not compared, swapped slices join to another decision without a word."""

    def swapped(a: Answer) -> Answer:
        return replace(a, start={0: 37, 37: 0}.get(a.start, a.start))

    with pytest.raises(InternalError, match="does not belong"):
        decider(1, Here(spoil=swapped))(PROGRAM, REGION, MANY, LABELS)
    monkeypatch.setattr(spread, "_require", lambda *_: None)
    assert not equal(decider(1, Here(spoil=swapped))(PROGRAM, REGION, MANY, LABELS), serial())


def test_a_spoilt_answer_is_refused_when_it_comes(tmp_path: Path) -> None:
    by = Here(spoil=lambda a: replace(a, start=0) if a.start == 74 else a)
    with pytest.raises(InternalError, match="does not belong"):
        decider(1, by, tmp_path)(PROGRAM, REGION, MANY, LABELS)


def test_what_was_finished_is_not_done_again(tmp_path: Path) -> None:
    first = Here(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        decider(1, first, tmp_path)(PROGRAM, REGION, MANY, LABELS)
    told: list[int] = []
    second = Here()
    found = decider(1, second, tmp_path, told.append)(PROGRAM, REGION, MANY, LABELS)
    assert equal(found, serial())
    assert sorted(first.seen + second.seen) == [0, 37, 74, 111, 148] and len(second.seen) == 3
    assert told == [111, 148, 160]
    third = Here()
    assert equal(decider(1, third, tmp_path)(PROGRAM, REGION, MANY, LABELS), found)
    assert third.seen == []


def test_proofs_are_not_found_again_either(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        proof(Here(stop_after=2), tmp_path)
    by = Here()
    assert proof(by, tmp_path) == proof(Alone())
    assert by.seen == [74, 111, 148]
    by = Here()
    finder(by, tmp_path, falsify=False)(PROGRAM, REGION, MANY, LABELS, DIGEST)
    assert len(by.seen) == 5, "another search is another question"


@pytest.mark.parametrize("what", ["radius", "samples", "labels", "rule", "runtime", "code"])
def test_another_question_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    decider(1, Here(), tmp_path)(PROGRAM, REGION, MANY, LABELS)
    program, around, x, labels = PROGRAM, REGION, MANY, LABELS
    match what:
        case "rule":
            program = replace(PROGRAM, first_maximum=True)
        case "runtime":
            program = lower(GRAPH, profile("litert-ref"))
        case "radius":
            around = region(PROGRAM, "1/63", (0, 1))
        case "samples":
            x = np.nextafter(MANY, np.float32(0.5))
        case "labels":
            labels = (LABELS + 1) % 3
        case _:
            monkeypatch.setattr(spread, "code_digest", lambda: "another")
    by = Here()
    decider(1, by, tmp_path)(program, around, x, labels)
    assert len(by.seen) == 5


def test_what_is_kept_may_be_damaged_or_moved(tmp_path: Path) -> None:
    decider(1, Here(), tmp_path)(PROGRAM, REGION, MANY, LABELS)
    (folder,) = tmp_path.iterdir()
    (folder / "0.npz").write_bytes((folder / "37.npz").read_bytes())
    (folder / "74.npz").write_bytes((folder / "74.npz").read_bytes()[:50])
    (folder / "111.npz").write_bytes(b"")
    by = Here()
    assert equal(decider(1, by, tmp_path)(PROGRAM, REGION, MANY, LABELS), serial())
    assert by.seen == [0, 74, 111]
    assert Store(None, Question(PROGRAM, REGION, WORK)).load(cut(MANY, LABELS, 37)[0]) is None
