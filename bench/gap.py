"""What is left open between attacked and certified accuracy on networks trained on small boxes, by intervals and by all means.

    python bench/gap.py [--samples 500] [--budget 10s] [--processes 2] [--fresh]

The digits, mnist and fashion-mnist networks trained with SABR (here, unless a checkpoint is there), at the radius of their training,
on the first test samples. Attacked accuracy counts the samples that are right and for which no counterexample was found by any
means here: the search's, or a long attack of another kind (bench/_attack.py) on what stays open. Certified is counted by
intervals, by lines without any search for slopes, and by the complete search with its budget for each sample.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from _common import ROOT, Results, Row, Target, percent, positive, run, table, verdict
from _networks import Network, trained

# isort: split
import numpy as np
from _attack import survivors
from _search import searched

from cactus_edge.certify.interval import certify
from cactus_edge.certify.linear import Linear
from cactus_edge.process import settle
from cactus_edge.verify.check import decided
from cactus_edge.verify.proof import Robust
from cactus_edge.verify.regions import region

RECIPES = {"digits-sabr": "1/16", "cactus-mnist": "1/10", "fashion-mnist-sabr": "1/10"}
"""Recipes, and the radius that each is trained for."""


def measure(network: Network, eps: str, budget: str, processes: int) -> Row:
    """One row."""
    program, key = network.program, bytes.fromhex(network.digest)
    around = region(program, eps, (0, 1))
    plain = certify(program, around, network.x, network.y, threads=processes)
    left = np.flatnonzero(plain.correct & ~plain.certified)
    rest = network.part(left)
    lower, upper, _ = around.boxes(program, rest.x)
    records = Linear(program).records(lower, upper, left, rest.y) if len(left) else []
    lined = np.array([isinstance(r.verdict, Robust) for r in records], np.bool_)
    shares, found, _ = searched(rest, around, budget, processes)
    robust, refuted = np.zeros((2, len(left)), np.bool_)
    for k, (share, (proof, _)) in enumerate(zip(shares, found, strict=True)):
        shown, lost = decided(program, around, share.x, share.y, proof, key)
        robust[k::processes], refuted[k::processes] = shown.certified, lost
    open_ = np.flatnonzero(~robust & ~refuted)
    standing = np.ones(len(left), np.bool_)
    if len(open_):
        standing[open_] = survivors(rest.part(open_), lower[open_], upper[open_])
    count, sure = len(network.y), int(plain.certified.sum())
    attacked = sure + int((standing & ~refuted).sum())
    before = attacked - sure
    after = before - int(robust.sum())
    return {
        "samples": count,
        "eps": eps,
        "clean": float(plain.correct.mean()),
        "attacked": attacked / count,
        "intervals": sure / count,
        "lines": (sure + int(lined.sum())) / count,
        "complete": (sure + int(robust.sum())) / count,
        "interval_gap": before / count,
        "gap": after / count,
        "share": after / before if before else 0.0,
        "budget": budget,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "bench" / "train-methods", help="checkpoints")
    parser.add_argument("--samples", type=positive, default=500)
    parser.add_argument("--budget", default="10s", help="of each sample that intervals leave open")
    parser.add_argument("--processes", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    given = parser.parse_args()
    settle()
    results, rows = Results("gap", fresh=given.fresh), dict[str, Row]()
    for name, eps in RECIPES.items():
        network = trained(name, given.workdir).part(slice(given.samples))
        inputs = f"{network.digest} {given.samples} {given.budget}"
        work = partial(measure, network, eps, given.budget, given.processes)
        rows[name] = results.row(name, inputs, work, {"model": network.digest})
    columns = ("clean", "attacked", "intervals", "lines", "complete", "interval_gap", "gap")
    lines = [[name, str(r["samples"]), r["eps"], *(percent(r[c]) for c in columns)] for name, r in rows.items()]
    print(table([["file", "samples", "eps", *columns], *lines]))
    what = "open after all means, of what intervals leave open"
    return verdict([Target(f"{n}: {what}", r["share"], 1 / 3, at_most=True) for n, r in rows.items()])


if __name__ == "__main__":
    run(main)
