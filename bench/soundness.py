"""Random networks x regions x profiles, and no execution that contradicts a bound or a verdict; rules broken on purpose are noticed.

    python bench/soundness.py [--graphs 10400] [--tiny 520] [--processes 2] [--fresh]
    python bench/soundness.py --reproduce 1234 [--tiny-one]    # one network, with its traceback

The networks, regions and the oracle are tests/soundness_kit.py's: every profile and the mixture of all in turn, regions from a
point to everything, executions of the definition in the ways that a profile leaves open, corners, an attack on what is certified.
Of the tiny networks every point of each region is executed. Work is done in blocks; a second run continues with the blocks
that are missing. Writes bench/results/soundness.json. Exit code 1 where anything was contradicted, or a broken rule was not noticed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import traceback
import warnings
from collections import Counter
from functools import partial

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from _common import ROOT, Results, Row, Target, code, natural, positive, run, table, verdict

sys.path.insert(0, str(ROOT / "tests"))

import soundness_kit

BLOCK, TINY_BLOCK = 1000, 130
"""Networks of one recorded row."""

MOST = 3000
"""Networks after which a broken rule counts as unnoticed."""


def block(job: tuple[int, int, bool]) -> tuple[Counter[str], list[str]]:
    """(counts, violations) of the networks first..end-1."""
    first, end, tiny = job
    warnings.simplefilter("error")
    seen: Counter[str] = Counter()
    violations: list[str] = []
    for number in range(first, end):
        try:
            seen += soundness_kit.examine(number, tiny=tiny)
        except Exception:  # noqa: BLE001 - whatever it is, it is the finding
            violations.append(traceback.format_exc(limit=-2))
    return seen, violations


def examined(pool: multiprocessing.pool.Pool, first: int, end: int, tiny: bool) -> Row:
    """One row: a block of networks, over all processes."""
    step = -(-(end - first) // (4 * len(multiprocessing.active_children())))
    jobs = [(n, min(n + step, end), tiny) for n in range(first, end, step)]
    seen: Counter[str] = Counter()
    violations: list[str] = []
    for counts, found in pool.imap(block, jobs):
        seen += counts
        violations += found
    for line in violations:
        print(line, file=sys.stderr)
    return {**dict(sorted(seen.items())), "violations": len(violations), "first_violations": violations[:5]}


def noticed(name: str) -> Row:
    """One broken rule."""
    return {"noticed_at": soundness_kit.noticed(soundness_kit.FAULTS[name], MOST)}


def sources() -> str:
    """The code that decides what a number means, and what is examined."""
    kits = [f"tests/{name}.py" for name in ("soundness_kit", "proof_kit", "brute", "strategies", "graph_parts")]
    return code(*kits, "cactus_edge/ir", "cactus_edge/verify")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=natural, default=10_400, help="random networks")
    parser.add_argument("--tiny", type=natural, default=520, help="tiny networks whose regions are enumerated")
    parser.add_argument("--processes", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="examine again what is recorded")
    parser.add_argument("--reproduce", type=natural, metavar="NUMBER")
    parser.add_argument("--tiny-one", action="store_true", help="--reproduce is the number of a tiny network")
    given = parser.parse_args()
    if given.reproduce is not None:
        print(soundness_kit.examine(given.reproduce, tiny=given.tiny_one))
        return 0
    results, used = Results("soundness", fresh=given.fresh), sources()
    total: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for tiny, count, size in ((False, given.graphs, BLOCK), (True, given.tiny, TINY_BLOCK)):
            for first in range(0, count, size):
                end = min(first + size, count)
                key = f"{'tiny' if tiny else 'random'} {first} to {end - 1}"
                row = results.row(key, used, partial(examined, pool, first, end, tiny))
                total[tiny].update({k: v for k, v in row.items() if isinstance(v, int)})
    faults = {n: results.row(f"fault: {n}", used, partial(noticed, n)) for n in soundness_kit.FAULTS}
    columns = ("networks", "regions", "executions", "certified", "attacked", "sums", "proofs found", "violations")
    lines = [[kind, *(f"{total[tiny][c]:,}" for c in columns)] for kind, tiny in (("random", False), ("tiny", True))]
    print(table([["networks", *columns], *lines]))
    print(table([["broken rule", "noticed at network"], *([n, str(r["noticed_at"])] for n, r in faults.items())]))
    return verdict(
        [
            Target("random networks", total[False]["networks"], 10_000),
            Target("networks enumerated", total[True]["networks"], 500),
            Target("violations", sum(t["violations"] for t in total.values()), 0, at_most=True),
            Target("broken rules not noticed", sum(r["noticed_at"] is None for r in faults.values()), 0, at_most=True),
        ]
    )


if __name__ == "__main__":
    run(main)
