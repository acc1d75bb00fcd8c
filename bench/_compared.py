"""What the benches of methods share: their options, and going through the rows of a suite."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from _common import ROOT, Results, Row, Target, median, positive, verdict
from _methods import Measurement, estimate, measurements
from _suite import Case, Group, load_suite

Report = Callable[[Group, dict[Case, list[Row]]], list[Target]]
"""Prints a group's rows, a seed each; gives what there is to reach."""


def compare(description: str, bench: str, report: Report) -> int:
    """Measures or lists the rows of `bench` that the command line names and reports each group; 0 where every target is met.

    Suites are bench/suites/BENCH-NAME.toml, results bench/results/BENCH.json with underscores.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("quick", "full"), default="quick")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="rows that begin so; may be repeated"
    )
    parser.add_argument(
        "--seeds", type=positive, default=0, help="how many training seeds, from 0 (default: the suite's)"
    )
    parser.add_argument("--budget", default="", help="of each sample of `best`, as 2s or 500n (default: the suite's)")
    parser.add_argument("--threads", type=positive, default=1, help="for training and certifying (default 1)")
    parser.add_argument("--gpu", action="store_true", help="train the groups that are marked gpu instead of estimating")
    parser.add_argument(
        "--cpu", action="store_true", help="train them on the processor, for the hours that are estimated"
    )
    parser.add_argument("--list", action="store_true", help="what there is and what is measured; measures nothing")
    parser.add_argument("--fresh", action="store_true", help="measure again what is named")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "bench", help="checkpoints of training")
    given = parser.parse_args()
    results = Results(bench.replace("-", "_"))
    targets: list[Target] = []
    for group in load_suite(bench, given.suite, given.only):
        group = dataclasses.replace(group, budget=given.budget or group.budget, gpu=group.gpu and not given.cpu)
        left = group.gpu and not given.gpu  # shown as far as it is measured, and estimated
        rows: dict[Case, list[Row]] = {}
        for case in group.cases:
            found = measurements(bench, group, case, given.seeds, given.workdir, given.threads)
            if given.list:
                _listed(results, found, left=left)
                continue
            found = [m for m in found if m.stored(results)] if left else found
            if found:
                rows[case] = [m.row(results, fresh=given.fresh and not left) for m in found]
        if rows:
            targets += report(group, rows)
        if left and not given.list:
            print(f"\n{group.title}: what is not measured is not trained without --gpu or --cpu")
            _estimated(group, [case for case in group.cases if case not in rows], given.threads)
    return verdict(targets) if targets else 0


def _estimated(group: Group, cases: list[Case], threads: int) -> None:
    """A line for each row, and one for all of them."""
    hours: dict[str, float] = {}
    for case in cases:
        found = estimate(group, case, threads)
        hours |= found.hours
        print(found, flush=True)
    if hours:
        total = sum(hours.values())
        print(
            f"all of these: about {total:.1f} processor hours a seed, what rows share trained once, without judging them"
        )


def _listed(results: Results, found: list[Measurement], *, left: bool) -> None:
    """A line for each row. left: whether it takes an option to measure it."""
    for m in found:
        missing = "needs --gpu or --cpu" if left else "not measured"
        print(f"{m.key}: {'measured' if m.stored(results) else missing}")


def spread(rows: list[Row], key: str) -> str:
    """The median in per cent, and the least and the greatest where there are several."""
    values = [100 * r[key] for r in rows]
    middle = f"{100 * median(rows, key):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"
