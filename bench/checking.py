"""Time of checking proofs against the time of finding them: proofs with optimised slopes, and trees.

    python bench/checking.py [--samples 60] [--budget 30s] [--fresh]

Dense networks of bench/suites, at radii where the quick means leave samples open. Finding is the processor's time that the complete
search spent on the samples that it proved so, one after the other, on one thread; checking that of `verify` over the same
records, and of the checker in C where a compiler is at hand (reading the model and the proof file included).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from _common import ROOT, Results, Row, Target, positive, run, table, verdict
from _networks import Network, trained

# isort: split

from cactus_edge.certify.complete import Budget, Complete, Decided
from cactus_edge.certify.interval import one_torch_thread
from cactus_edge.errors import InstallError
from cactus_edge.formats.c.checker import c_checker
from cactus_edge.process import settle
from cactus_edge.verify.check import Checker
from cactus_edge.verify.proof import Proof, Record, encode, parse
from cactus_edge.verify.regions import points, region

CASES = {"dense-64": ("5/255", "6/255"), "dense-64-32": ("4/255", "5/255")}
"""Network -> radii at which some samples need a search for slopes, and some a tree."""

KINDS = {"slopes": "optimised slopes", "branching": "trees"}

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """(result, seconds of processor time, of child processes too)."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = used()
    return work(), used() - start


def check(network: Network, slopes: Complete, records: list[Record]) -> tuple[float, float | None, int]:
    """(seconds of verify, of the C checker, bytes of the proof); AssertionError where a record is not accepted."""
    program = network.program
    proof = encode(program, Proof(bytes.fromhex(network.digest), "tflm", len(network.y), slopes.linear.slopes, records))

    def by_verify() -> bool:
        read = parse(proof, program)
        return bool(Checker(program, read.slopes).holds(read.records).all())

    accepted, seconds = timed(by_verify)
    assert accepted
    try:
        with c_checker() as checker:
            answer, in_c = timed(lambda: checker.check(network.model, proof))
    except InstallError:
        return seconds, None, len(proof)
    assert answer.state == "accepted", answer.words
    return seconds, in_c, len(proof)


def measure(network: Network, eps: str, budget: str) -> Row:
    """Finding and checking of each kind of proof."""
    program = network.program
    lower, upper, owner = region(program, eps, (0, 1)).boxes(program, network.x)
    complete = Complete(program, Budget.parse(budget))
    found: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    seconds = dict.fromkeys(KINDS, 0.0)
    around = points(program, network.x)

    def find(i: int) -> Decided:
        one = slice(i, i + 1)
        return next(complete.records(lower[one], upper[one], owner[one], network.y[one], around[one]))

    with one_torch_thread():
        for i in range(len(owner)):
            decided, spent = timed(partial(find, i))
            if decided.effort.by in KINDS:
                found[decided.effort.by].append(decided.record)
                seconds[decided.effort.by] += spent
    row: Row = {"samples": len(network.y), "eps": eps, "budget": budget}
    for kind, records in found.items():
        if records:
            checking, in_c, size = check(network, complete, records)
            row[kind] = {
                "proofs": len(records),
                "finding_s": round(seconds[kind], 3),
                "checking_s": round(checking, 3),
                "share": checking / seconds[kind],
                "in_c_s": None if in_c is None else round(in_c, 3),
                "share_in_c": None if in_c is None else in_c / seconds[kind],
                "bytes": size,
            }
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=positive, default=60)
    parser.add_argument("--budget", default="30s", help="of each sample")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "bench", help="checkpoints of training")
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    given = parser.parse_args()
    settle()
    results, rows = Results("checking", fresh=given.fresh), dict[str, Row]()
    for name, radii in CASES.items():
        network = trained(name, given.workdir).part(slice(given.samples))
        for eps in radii:
            inputs = f"{network.digest} {given.samples} {given.budget}"
            key = f"{name}, eps {eps}"
            rows[key] = results.row(
                key, inputs, partial(measure, network, eps, given.budget), {"model": network.digest}
            )
    columns = ("proofs", "finding_s", "checking_s", "share", "in_c_s", "share_in_c", "bytes")
    lines, targets = [["network, kind", *columns]], list[Target]()
    for kind, words in KINDS.items():
        found = {key: row[kind] for key, row in rows.items() if kind in row}
        lines += [[f"{key}, {words}", *(str(row[c]) for c in columns)] for key, row in found.items()]
        finding, checking = (sum(row[c] for row in found.values()) for c in ("finding_s", "checking_s"))
        if found:
            targets.append(Target(f"{words}: checking, of finding", checking / finding, 0.2, at_most=True))
    print(table(lines))
    return verdict(targets)


if __name__ == "__main__":
    run(main)
