"""How many samples the complete search decides: dense int8 networks that were trained for clean accuracy alone.

    python bench/completeness.py [--samples 100] [--eps 1 2 4] [--budget 10s] [--processes 2] [--fresh]

Networks 784-64-10 and 784-64-32-10 of bench/suites, trained and quantised by the product itself; the first test images, radii in
255ths of the pixel range. Each sample has the budget to itself, in one process. Every proof is then checked, every counterexample
replayed, and what is robust is attacked for long by other means (bench/_attack.py): one point found would be a contradiction.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from fractions import Fraction
from functools import partial
from pathlib import Path

from _common import ROOT, Results, Row, Target, natural, positive, run, table, verdict
from _networks import DENSE, Network, trained

# isort: split
import numpy as np
from _attack import survivors
from _search import searched

from cactus_edge.process import settle
from cactus_edge.verify.check import decided
from cactus_edge.verify.regions import region


def measure(network: Network, eps: str, budget: str, processes: int) -> Row:
    """One row."""
    around = region(network.program, eps, (0, 1))
    shares, found, searching = searched(network, around, budget, processes)
    start = time.monotonic()
    robust, refuted = np.zeros((2, len(network.y)), np.bool_)
    for k, (share, (proof, _)) in enumerate(zip(shares, found, strict=True)):
        shown, lost = decided(network.program, around, share.x, share.y, proof, bytes.fromhex(network.digest))
        robust[k::processes], refuted[k::processes] = shown.certified, lost
    checking = time.monotonic() - start
    sure = network.part(np.flatnonzero(robust))
    lower, upper, _ = around.boxes(sure.program, sure.x)
    standing = survivors(sure, lower, upper) if len(sure.y) else np.ones(0, np.bool_)
    efforts = [effort for _, listed in found for effort in listed]
    seconds = np.array([effort.seconds for effort in efforts])
    return {
        "samples": len(network.y),
        "robust": int(robust.sum()),
        "refuted": int(refuted.sum()),
        "decided": float((robust | refuted).mean()),
        "contradictions": int((~standing).sum()),
        "by": dict(sorted(Counter(effort.by for effort in efforts).items())),
        "median_s": round(float(np.median(seconds)), 3),
        "slowest_s": round(float(seconds.max()), 2),
        "searching_s": round(searching, 1),
        "checking_s": round(checking, 1),
        "proof_bytes": sum(len(proof) for proof, _ in found),
        "budget": budget,
        "processes": processes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=positive, default=100)
    parser.add_argument("--eps", type=natural, nargs="+", default=[1, 2, 4], help="radii in 255ths")
    parser.add_argument("--budget", default="10s", help="of each sample")
    parser.add_argument("--processes", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "bench", help="checkpoints of training")
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    given = parser.parse_args()
    settle()
    results, rows = Results("completeness", fresh=given.fresh), dict[str, Row]()
    for name in DENSE:
        network = trained(name, given.workdir).part(slice(given.samples))
        for eps in given.eps:
            inputs = f"{network.digest} {given.samples} {given.budget} {given.processes}"
            work = partial(measure, network, str(Fraction(eps, 255)), given.budget, given.processes)
            key = f"{name}, eps {eps}/255"
            rows[key] = results.row(key, inputs, work, {"model": network.digest})
    columns = ("robust", "refuted", "decided", "contradictions", "median_s", "slowest_s", "searching_s", "checking_s")
    print(table([["network", *columns], *([key, *(str(row[c]) for c in columns)] for key, row in rows.items())]))
    targets = [Target(f"{key}: decided", row["decided"], 0.95) for key, row in rows.items()]
    total = sum(row["contradictions"] for row in rows.values())
    return verdict([*targets, Target("contradictions", total, 0, at_most=True)])


if __name__ == "__main__":
    run(main)
