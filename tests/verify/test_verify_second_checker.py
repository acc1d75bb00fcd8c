"""The checker in C says what `verify` says: of random proofs, of corrupted ones, leaf by leaf; and planted faults show."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from proof_cases import cases, network, program_of
from proof_kit import record, slopes
from proof_mutants import examine, mutant
from strategies import IN_C, random_graph

from cactus_edge.errors import ModelError
from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.resources import data_path
from cactus_edge.verify.check import Checker
from cactus_edge.verify.goal import Goal
from cactus_edge.verify.proof import Leaf, Proof, Record, Robust, Row, Split, encode

Margins = Counter[tuple[int, ...]]

Claim = tuple[bytes, bytes, bool, Margins]
"""A model, a proof of one record, and what `verify` says: whether that holds, and the margins of its leaves."""


def said(checker: Checker, claim: Record) -> tuple[bool, Margins]:
    """Whether a record holds, and the margins of each leaf that a point can be in, 0 for the label's own and those below 1."""
    seen: Margins = Counter()
    real = Goal.won

    def won(goal: Goal, found: Any, labels: Any) -> Any:
        own = np.maximum(found, 0)
        own[np.arange(len(labels)), labels] = 0
        seen.update(map(tuple, own.tolist()))
        return real(goal, found, labels)

    with mock.patch.object(Goal, "won", won):
        return bool(checker.holds([claim]).all()), seen


def random_claims(seed: int) -> list[Claim]:
    """Random proofs about a random network, none where it has no decision."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, int(rng.integers(1, 6)), IN_C, ends=("", "softmax")) if seed % 3 == 0 else network(rng)
    model = write_tflite(graph)
    try:
        program = program_of(model)
        checker = Checker(program, chosen := slopes(rng, program))
    except ModelError:
        return []
    if checker.goal.classes > 200:  # rows are counted in a byte
        return []
    x = rng.integers(-128, 128, (3, *program.values[program.input].shape))
    labels = run(program, x.astype(np.int8)).reshape(3, -1).argmax(1).tolist()
    found = []
    for i, radius in enumerate((1, 3, 12)):
        lo, hi = (np.clip(x[i] + by, -128, 127).astype(np.int8) for by in (-radius, radius))
        listed = [record(rng, checker, lo, hi, labels[i]) for _ in range(4)]
        for claim in (*listed, Record(0, labels[i], lo, hi, None), Record(0, labels[i], lo, hi, lo)):
            proof = Proof(hashlib.sha256(model).digest(), "tflm", 1, chosen, [claim])
            found.append((model, encode(program, proof), *said(checker, claim)))
    return found


def ramps(softmax: bool, reshaped: bool = False) -> list[Claim]:
    """out_0 - out_1 = 40 - x over boxes [-40, b] that are split at 10: true up to some b, and not beyond."""
    build = GraphBuilder()
    one = ops.freeze([1.0], np.float32)
    op = ops.Dense(ops.freeze([[-1], [0]], np.int8), ops.freeze([40, 0], np.int32), one)
    x = build.node(op, [build.input(Tensor("x", (1,), "int8", 2.0**-9, 0))], Tensor("y", (2,), "int8", 2.0**-9, 0))
    if softmax:
        x = build.node(ops.Softmax(), [x], Tensor("softmax", (2,), "int8", 1 / 256, -128))
    if reshaped:
        x = build.node(ops.Reshape(), [x], replace(build.tensor(x), name="row", shape=(1, 2)))
    model = write_tflite(build.finish(x))
    program = program_of(model)
    checker, found = Checker(program, {}), []
    leaf = Leaf((Row(1, 1, 1, None),))
    for end in range(-10, 42):
        verdict = Robust((), (), Split(program.input, 0, 10, leaf, leaf))
        claim = Record(0, 0, np.array([-40], np.int8), np.array([end], np.int8), verdict)
        proof = Proof(hashlib.sha256(model).digest(), "tflm", 1, {}, [claim])
        found.append((model, encode(program, proof), *said(checker, claim)))
    return found


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    """Random proofs, and tight ones, one record each."""
    found = [
        *ramps(False),
        *ramps(True),
        *ramps(True, reshaped=True),
        *(claim for seed in range(15) for claim in random_claims(seed)),
    ]
    for case in cases(3):
        checker = Checker(case.program, case.proof.slopes)
        for one in case.proof.records:
            proof = Proof(case.proof.model_sha256, "tflm", case.proof.samples, case.proof.slopes, [one])
            found.append((case.model, encode(case.program, proof), *said(checker, one)))
    return found


def differing(checker: CChecker, claims: list[Claim]) -> int | None:
    """The first claim of which the checker says something else."""
    for i, (model, proof, held, expected) in enumerate(claims):
        state, got = checker.margins(model, proof)
        # It stops at the first leaf that does not hold.
        same = Counter(got) == expected if held else not Counter(got) - expected
        if (state == "accepted") != held or not same:
            return i
    return None


def test_it_says_what_verify_says(c_checker: CChecker, claims: list[Claim]) -> None:
    held = sum(held for _, _, held, margins in claims if margins)
    assert held > 60 and len(claims) - held > 60
    assert differing(c_checker, claims) is None


def test_corrupted_proofs_and_models_are_refused_by_both_or_still_right(c_checker: CChecker) -> None:
    found, seen = cases(3), Counter[str]()
    for number in range(120):
        outcome = examine(c_checker, *mutant(found, number), number)
        assert "DEFECT" not in outcome, f"mutant {number}: {outcome}"
        seen[outcome] += 1
    assert seen["refused by both"] > 60


FAULTS = [
    ("lines.c", "(first + 1) * rise", "first * rise"),
    ("lines.c", "(last - 1) * rise", "last * rise"),
    ("lines.c", "+ ce_up(1, lines->q) - p);", ");"),
    ("lines.c", "return above ? -coarse(-b, lines->q) : coarse(b, lines->q);", "return coarse(b, lines->q);"),
    ("lines.c", "above ? lines->over : lines->under", "above ? lines->under : lines->over"),
    ("relax.c", "return e - t;", "return e;"),
    ("relax.c", "ce_up(b[i], fine - second)", "b[i]"),
    ("relax.c", "add(&bill, -ce_most(", "add(&bill, -ce_least("),
    ("relax.c", "if (a[i] > 0 || certain) {", "if (a[i] != 0 || certain) {"),
    ("decide.c", "ceiling(q * first + least, p)", "ceiling(q * first - least, p)"),
    ("decide.c", "ce_most(level, own_least) - k", "ce_most(level, own_least) - k + 1"),
    ("proof.c", "ce_least(*high, s->threshold - 1)", "ce_least(*high, s->threshold)"),
    ("proof.c", "(ties && other == own)", "(ties && other > own)"),
    ("rule.c", "ce_up(total, 30)", "ce_up(total, 29)"),
]
"""(file, what stands there, what a slip of the pen makes of it)."""


@pytest.mark.parametrize(("file", "right", "wrong"), FAULTS)
def test_a_planted_fault_shows(file: str, right: str, wrong: str, claims: list[Claim], tmp_path: Path) -> None:
    text = data_path("export", "c", "verify", file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    assert differing(CChecker(tmp_path, overlay=tmp_path), claims) is not None, "no proof shows the fault"


def test_proofs_for_other_profiles_are_not_checked(c_checker: CChecker) -> None:
    case = cases(3)[0]
    other = case.data.replace(b"tflm", b"x-cu", 1)
    assert c_checker.check(case.model, case.data + other).state == "not checked"
    assert c_checker.check(case.model, case.data + other, "tflm").state == "accepted"
    assert c_checker.check(case.model, other).state == "not checked"
    assert c_checker.check(case.model, case.data + case.data).state == "rejected"
    assert c_checker.check(case.model, case.data, "x-cube-ai").state == "not checked"


def test_what_cannot_be_read_is_not_checked(c_checker: CChecker) -> None:
    case = cases(3)[0]
    assert c_checker.check(case.model, b"").state == "not checked"
    spoiled = case.model[:-40]
    resealed = case.data[:16] + hashlib.sha256(spoiled).digest() + case.data[48:]
    assert c_checker.check(spoiled, resealed).state == "not checked"
    assert c_checker.check(spoiled, case.data).state == "rejected"
