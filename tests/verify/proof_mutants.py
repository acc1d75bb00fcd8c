"""Corrupted proofs and models, and what both checkers say of them: `verify` and the one in C share no code.

A mutant of a case (`proof_cases`) is the same everywhere for the same number. It may be refused, or still be right: another proof of
what was claimed, or of something else that is true; then every execution tried has to confirm it.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from brute import inside
from mutate import blind
from proof_cases import TFLM, Case, program_of
from proof_kit import wins

from cactus_edge.errors import CertificateError, ModelError
from cactus_edge.formats.c.checker import CChecker, State
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.ops import freeze
from cactus_edge.verify.check import Checker
from cactus_edge.verify.lines import Slope
from cactus_edge.verify.proof import Leaf, Multiplier, Proof, Record, Robust, Row, Split, Tree, encode, parse, split

# Corruptions of what a proof says


def _one(proof: Proof, rng: random.Random, change: Callable[[Record, random.Random], Record]) -> Proof:
    """One record changed."""
    at = rng.randrange(len(proof.records))
    records = list(proof.records)
    records[at] = change(records[at], rng)
    return replace(proof, records=records)


def _robust(proof: Proof, rng: random.Random, change: Callable[[Robust, random.Random], Robust]) -> Proof:
    """The reason of one robust record changed."""
    at = rng.choice([i for i, r in enumerate(proof.records) if isinstance(r.verdict, Robust)])
    records = list(proof.records)
    verdict = records[at].verdict
    assert isinstance(verdict, Robust)
    records[at] = replace(records[at], verdict=change(verdict, rng))
    return replace(proof, records=records)


def _in_tree(tree: Tree, rng: random.Random, change: Callable[[Tree, random.Random], Tree]) -> Tree:
    """One node of a tree changed."""
    if isinstance(tree, Split) and rng.random() < 0.6:
        if rng.random() < 0.5:
            return replace(tree, below=_in_tree(tree.below, rng, change))
        return replace(tree, above=_in_tree(tree.above, rng, change))
    return change(tree, rng)


def swapped(proof: Proof, rng: random.Random) -> Proof:
    """Two records change places, with their numbers or without."""
    records = list(proof.records)
    i, j = rng.randrange(len(records)), rng.randrange(len(records))
    records[i], records[j] = records[j], records[i]
    if rng.random() < 0.5:
        records = [replace(r, sample=n) for n, r in enumerate(records)]
    return replace(proof, records=records)


def relabelled(proof: Proof, rng: random.Random) -> Proof:
    return _one(proof, rng, lambda r, rng: replace(r, label=(r.label + rng.choice((1, -1, 2))) % 65536))


def enlarged(proof: Proof, rng: random.Random) -> Proof:
    def larger(r: Record, rng: random.Random) -> Record:
        by, axis = rng.choice((1, 2, 5, 20, 200)), rng.randrange(r.lower.size)
        where = np.ones(r.lower.shape, bool) if rng.random() < 0.5 else (np.arange(r.lower.size) == axis)
        where = where.reshape(r.lower.shape)
        low = np.where(where, np.maximum(r.lower.astype(int) - by, -128), r.lower).astype(np.int8)
        high = np.where(where, np.minimum(r.upper.astype(int) + by, 127), r.upper).astype(np.int8)
        return replace(r, lower=low, upper=high)

    return _one(proof, rng, larger)


def steeper(proof: Proof, rng: random.Random) -> Proof:
    """A rule's slope or its unit changed, for all records."""
    if not proof.slopes:
        return swapped(proof, rng)
    value = rng.choice(sorted(proof.slopes))
    slope = proof.slopes[value]
    if rng.random() < 0.3:
        return replace(proof, slopes={**proof.slopes, value: Slope((slope.q + rng.choice((1, 2, 50))) % 256, slope.p)})
    p = list(slope.p)
    at = rng.randrange(len(p))
    p[at] = rng.choice((0, 2 * p[at], p[at] + 1, -p[at], 2**20, p[at] // 2))
    return replace(proof, slopes={**proof.slopes, value: Slope(slope.q, tuple(p))})


def other_slopes(proof: Proof, rng: random.Random) -> Proof:
    def change(verdict: Robust, rng: random.Random) -> Robust:
        if not verdict.sheets or not verdict.sheets[0].size:
            return replace(verdict, tighten=())
        at = rng.randrange(len(verdict.sheets))
        sheet = verdict.sheets[at].copy()
        flat = sheet.reshape(-1)
        for _ in range(rng.choice((1, 5, flat.size))):
            flat[rng.randrange(flat.size)] = rng.randrange(256)
        return replace(verdict, sheets=(*verdict.sheets[:at], sheet, *verdict.sheets[at + 1 :]))

    return _robust(proof, rng, change)


def other_tree(proof: Proof, rng: random.Random) -> Proof:
    def change(tree: Tree, rng: random.Random) -> Tree:
        if isinstance(tree, Split):
            return rng.choice(
                (
                    replace(tree, threshold=tree.threshold + rng.choice((1, -1, 7, -30, 1000))),
                    replace(tree, below=tree.above, above=tree.below),
                    replace(tree, above=tree.below),
                    replace(tree, element=tree.element + 1),
                    tree.below,
                    tree.above,
                )
            )
        return rng.choice((replace(tree, rows=tree.rows[1:]), replace(tree, tighten=()), _other_row(tree, rng)))

    return _robust(proof, rng, lambda v, rng: replace(v, tree=_in_tree(v.tree, rng, change)))


def _other_row(leaf: Leaf, rng: random.Random) -> Leaf:
    if not leaf.rows:
        return leaf
    at = rng.randrange(len(leaf.rows))
    row = leaf.rows[at]
    changes: list[Row] = [
        replace(row, p=max(row.p + rng.choice((-1, 1, 100)), 0)),
        replace(row, q=min(2 * row.q, 65535)),
        replace(row, sheet=None, multipliers=()),
        replace(row, other=row.other + 1),
        replace(row, sheet=rng.randrange(4)),
    ]
    if row.multipliers:
        k = rng.randrange(len(row.multipliers))
        m = row.multipliers[k]
        other = rng.choice((replace(m, mu=-m.mu), replace(m, s=m.s + 3), replace(m, mu=2**24), Multiplier(0, 0, 1, 1)))
        changes.append(replace(row, multipliers=(*row.multipliers[:k], other, *row.multipliers[k + 1 :])))
    return replace(leaf, rows=(*leaf.rows[:at], rng.choice(changes), *leaf.rows[at + 1 :]))


def other_verdict(proof: Proof, rng: random.Random) -> Proof:
    """One record takes another's verdict, or an end of its box as its counterexample."""
    verdicts = [r.verdict for r in proof.records]
    return _one(proof, rng, lambda r, rng: replace(r, verdict=rng.choice((*verdicts, r.lower, r.upper))))


def other_header(proof: Proof, rng: random.Random) -> Proof:
    return rng.choice(
        (
            replace(proof, samples=proof.samples - 1),
            replace(proof, profile=rng.choice(("tflm ", "litert-ref", ""))),
            replace(proof, model_sha256=bytes(32)),
            replace(proof, slopes=dict(list(proof.slopes.items())[1:])),
            replace(proof, records=proof.records[:-1]),
        )
    )


SAYINGS = (swapped, relabelled, enlarged, steeper, other_slopes, other_tree, other_tree, other_verdict, other_header)


def _spoiled(case: Case, rng: random.Random) -> tuple[str, bytes, bytes]:
    """(kind, model, proof)."""
    data = case.data
    kind = rng.random()
    if kind < 0.5:
        change = rng.choice(SAYINGS)
        try:
            return change.__name__, case.model, encode(case.program, change(case.proof, rng))
        except (struct.error, ValueError):  # a number that the format cannot say
            return "blind", case.model, blind(data, rng)
    if kind < 0.7:
        spoiled = blind(data, rng)
        if len(spoiled) > 16 and rng.random() < 0.7:
            spoiled = spoiled[:8] + struct.pack("<Q", len(spoiled)) + spoiled[16:]
        return "blind", case.model, spoiled
    model = case.change(rng) if kind < 0.85 else _retrained(case, rng)
    if kind < 0.73:
        return "model, not resealed", model, data
    resealed = data[:16] + hashlib.sha256(model).digest() + data[48:]
    return "model" if kind < 0.85 else "weights", model, resealed


def _retrained(case: Case, rng: random.Random) -> bytes:
    """The file with one weight or bias of a layer changed."""
    graph = case.program.graph
    layers = [i for i, n in enumerate(graph.nodes) if hasattr(n.op, "weight")]
    if not layers:
        return case.change(rng)
    at = rng.choice(layers)
    op: Any = graph.nodes[at].op
    field = rng.choice(("weight", "weight", "bias"))
    array = getattr(op, field).copy()
    flat = array.reshape(-1)
    place = rng.randrange(flat.size)
    flat[place] = (
        rng.choice((-127, 127, 0, -int(flat[place])))
        if field == "weight"
        else int(flat[place]) + rng.choice((1, -500, 5000))
    )
    nodes = list(graph.nodes)
    nodes[at] = replace(nodes[at], op=replace(op, **{field: freeze(array, array.dtype)}))
    return write_tflite(replace(graph, nodes=tuple(nodes)))


@dataclass(frozen=True, eq=False)
class Mutant:
    kind: str
    model: bytes
    proof: bytes


def mutant(found: list[Case], number: int) -> tuple[Case, Mutant]:
    rng = random.Random(number)
    chosen = found[number % len(found)]
    return chosen, Mutant(*_spoiled(chosen, rng))


# What both say


def by_verify(model: bytes, proof: bytes) -> tuple[State, Proof | None]:
    """The answer of `verify` on the proof for tflm of a file, and what that says where it is right."""
    try:
        own = split(proof).get(TFLM.name)
        if own is None:
            return "not checked", None
        if own[16:48] != hashlib.sha256(model).digest():
            return "rejected", None
        program = program_of(model)
        parsed = parse(own, program)
        held = Checker(program, parsed.slopes).holds(parsed.records).all()
    except CertificateError:
        return "rejected", None
    except ModelError:
        return "not checked", None
    return ("accepted", parsed) if held else ("rejected", None)


def claims(proof: Proof) -> tuple[Any, ...]:
    """What a proof says, without its reasons."""
    listed = [
        (r.sample, r.label, r.lower.tobytes(), r.upper.tobytes(), r.verdict is None, isinstance(r.verdict, Robust))
        for r in proof.records
    ]
    return proof.model_sha256, proof.profile, proof.samples, listed


def confirmed(model: bytes, proof: Proof, seed: int) -> bool:
    """Whether executions confirm every record of an accepted proof."""
    rng, program = np.random.default_rng(seed), program_of(model)
    for r in proof.records:
        if isinstance(r.verdict, Robust) and not wins(rng, program, inside(rng, r.lower, r.upper)[0], r.label):
            return False
        if isinstance(r.verdict, np.ndarray) and wins(rng, program, r.verdict[None], r.label):
            return False
    return True


def examine(checker: CChecker, chosen: Case, spoiled: Mutant, seed: int) -> str:
    """What became of a mutant, in words; beginning with DEFECT where the checkers differ or what they accept is wrong."""
    state, proof = by_verify(spoiled.model, spoiled.proof)
    answer = checker.check(spoiled.model, spoiled.proof, TFLM.name)
    if answer.state != state:
        beyond = answer.state == "not checked" and "is not supported" in answer.words
        early = {answer.state, state} == {"rejected", "not checked"}
        if not (beyond or early):
            return f"DEFECT {spoiled.kind}: verify has it {state}, the checker in C: {answer.words}"
        return (
            "an operator that the checker in C does not know" if beyond and state == "accepted" else "refused by both"
        )
    if proof is None:
        return "refused by both"
    if not confirmed(spoiled.model, proof, seed):
        return f"DEFECT {spoiled.kind}: accepted by both, and an execution contradicts it"
    return (
        "another proof of the same"
        if claims(proof) == claims(chosen.proof)
        else "a proof of something else that is true"
    )
