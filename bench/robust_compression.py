"""Robust when compressed: networks trained, compressed and fine-tuned in each way, judged by the integer file.

    python bench/robust_compression.py                                        # small rows on a processor, labelled with their size
    python bench/robust_compression.py --suite full                           # what the full size takes; --gpu or --cpu trains it
    python bench/robust_compression.py --only adverfine/pruned                # the rows that begin so
    python bench/robust_compression.py --list                                 # the rows, and which are measured

A suite (bench/suites/robust-compression-*.toml) is groups of rows with judges (bench/_judges.py), as for train_methods. `clean`,
`robust` and `pgd` are of the int8 file; in brackets stands the float network before quantisation, which is what the pruned rows
of the AdverFine paper are. `robust`: under the worst of the group's attacks (random starts inside the sensor's range, APGD on two
losses, the attack on the integers, which sees the first samples alone: `integer`). `pgd`: under AdverFine's own attack.
`corrupted`: mean over fifteen corruptions at five severities. `PCA`: the share that CC-Cert bounds below 1e-4, probabilistic, its
mean over the transforms; rows are compared by its mean over seeds, and seed by seed with the standard error of the difference.
`batches of 100`: the same where a host gates batches, as the paper does. `of one in float32`: bytes against the weights of
one uncompressed card. `paper`: its clean accuracy and that under its attack, mean and deviation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from _common import Row, Target, mean_pca, median, percent, run, table
from _compared import compare, spread
from _suite import Case, Group

Cell = Callable[[list[Row], Case], str]
"""What a column shows of a case and its rows, a seed each; "" for nothing."""


def _share(key: str, of_float: str) -> Cell:
    def cell(rows: list[Row], _: Case) -> str:
        return f"{spread(rows, key)} [{spread(rows, of_float)}]" if key in rows[0] else ""

    return cell


def _alone(key: str) -> Cell:
    return lambda rows, _: spread(rows, key) if key in rows[0] else ""


def _integer(rows: list[Row], _: Case) -> str:
    found = rows[0].get("integer")
    return f"{percent(found['before'])} to {percent(found['robust'])} of {found['samples']}" if found else ""


def _pca(rows: list[Row], _: Case) -> str:
    return mean_pca(rows)[1] if "pca" in rows[0] else ""


def _transforms(rows: list[Row], _: Case) -> str:
    by_name = {name: median([row["pca"] for row in rows], name) for name in sorted(rows[0].get("pca", {}))}
    return ", ".join(f"{name} {percent(share)}" for name, share in by_name.items())


def _paper(_: list[Row], case: Case) -> str:
    return " / ".join(f"{mean:.2f} +- {deviation:.2f}" for mean, deviation in case.paper.values())


def _third(rows: list[Row], _: Case) -> str:
    deck = rows[0].get("deck")
    return percent(max(r["bytes"] for r in rows) / deck["float_bytes"]) if deck else ""


def _board(rows: list[Row], _: Case) -> str:
    found = rows[0].get("board")
    return f"{found['equal']} of {found['inputs']} equal, {found['flash_bytes']:,} B flash" if found else ""


COLUMNS: dict[str, Cell] = {
    "clean": _share("clean", "float_clean"),
    "certified": _share("certified", "float_certified"),
    "robust": _alone("robust"),
    "integer": _integer,
    "pgd": _share("pgd", "float_pgd"),
    "paper": _paper,
    "corrupted": _alone("corrupted"),
    "batches of 100": _alone("batched"),
    "of one in float32": _third,
    "emulated board": _board,
    "PCA": _pca,
    "of which": _transforms,
    "bytes": lambda rows, _: f"{max(r['bytes'] for r in rows):,}",
    "seen": lambda rows, _: f"{rows[0]['samples_seen']:,}",
    "trained in s": lambda rows, _: f"{median(rows, 'training_cpu_s'):.0f}",
    "seeds": lambda rows, _: str(len(rows)),
}
"""What can be said of a row, by the name of its column; columns of which no judge says anything are left out."""


def report(group: Group, rows: dict[Case, list[Row]]) -> list[Target]:
    """Prints the group's table, medians over seeds with the least and the greatest; what there is to reach."""
    sample = next(iter(rows.values()))[0]
    print(f"\n{group.title}: {sample['samples']} test samples, eps = {sample['eps']}")
    columns = {name: [cell(found, case) for case, found in rows.items()] for name, cell in COLUMNS.items()}
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    names = [case.key.split("/", 1)[1] for case in rows]
    print(table([["row", *shown], *([name, *(c[i] for c in shown.values())] for i, name in enumerate(names))]))
    for line in paired(group, rows):
        print(line)
    return [*comparisons(group, rows), *distances(group, rows), *deployed(rows)]


def deployed(rows: dict[Case, list[Row]]) -> list[Target]:
    """What decks must be: a third of one uncompressed card in float32, and on the board what the interpreter says."""
    found = []
    for case, measured in rows.items():
        row = measured[0]
        if "deck" in row:
            share = 100 * max(r["bytes"] for r in measured) / row["deck"]["float_bytes"]
            found.append(Target(f"{case.key}: bytes, % of one card in float32", share, 100 / 3, at_most=True))
        if "board" in row:
            differ = row["board"]["inputs"] - row["board"]["equal"]
            found.append(Target(f"{case.key}: outputs that differ on the emulated board", differ, 0, at_most=True))
    return found


def comparisons(group: Group, rows: dict[Case, list[Row]]) -> list[Target]:
    """What the group expects of one row against another, or against a figure from elsewhere, as far as the rows are here."""
    of = {case.key.split("/", 1)[1]: found for case, found in rows.items()}
    targets = []
    for e in group.expects:
        if e["row"] in of and ("at" in e or e["above"] in of):
            there = e["at"] if "at" in e else 100 * _figure(of[e["above"]], e["column"])
            what = f"{group.key}: {e['column']}, {e['row']} above {e['above']}, points"
            targets.append(Target(what, 100 * _figure(of[e["row"]], e["column"]) - there, e.get("by", 0)))
    return targets


def paired(group: Group, rows: dict[Case, list[Row]]) -> list[str]:
    """A line for each comparison of `pca`: the mean difference of rows of one seed and its standard error, s / sqrt(n).

    Rows of a seed begin at the same weights and see the samples in one order, so their difference varies less than either.
    """
    of = {case.key.split("/", 1)[1]: found for case, found in rows.items()}
    lines = []
    for e in group.expects:
        if e["column"] != "pca" or e["row"] not in of or e["above"] not in of:
            continue
        pairs = zip(of[e["row"]], of[e["above"]], strict=False)  # as many seeds as both have
        apart = [100 * (mean_pca([ours])[0] - mean_pca([other])[0]) for ours, other in pairs]
        if len(apart) > 1:
            error = statistics.stdev(apart) / len(apart) ** 0.5
            ahead = sum(points > 0 for points in apart)
            lines.append(
                f"by seed, {e['row']} less {e['above']}: {statistics.fmean(apart):+.2f} points, standard error {error:.2f}, "
                f"above in {ahead} of {len(apart)}"
            )
    return lines


def _figure(rows: list[Row], column: str) -> float:
    """A median over seeds; of `pca` the mean over transforms and seeds, since rows differ little beside what seeds do."""
    return mean_pca(rows)[0] if column == "pca" else median(rows, column)


def distances(group: Group, rows: dict[Case, list[Row]]) -> list[Target]:
    """How far each case is from the paper's, in its deviations, where the group's goal limits that: float before it, then the file."""
    if "deviations" not in group.goal:
        return []
    return [
        Target(f"{case.key}: {key}, the paper's deviations away", away, group.goal["deviations"], at_most=True)
        for case, found in rows.items()
        for key, (mean, deviation) in case.paper.items()
        for away in [abs(100 * median(found, key) - mean) / max(deviation, 0.01)]
    ]


if __name__ == "__main__":
    run(lambda: compare(__doc__, "robust-compression", report))
