"""Certified training for compression: CACTUS and its rivals on the same data, each judged by its integer file.

    python bench/train_methods.py                                            # minutes: digits, every kind of method
    python bench/train_methods.py --suite full                               # every row; hours on few cores
    python bench/train_methods.py --suite full --only fashion-mnist/hydra    # one row, or all that begin so
    python bench/train_methods.py --suite full --list                        # the rows, and which are measured

A suite (bench/suites/train-methods-*.toml) is groups of rows: data, radius and kept channels, and the methods compared there,
each for as many epochs of samples. A row trains, quantises, writes the .tflite, and certifies that file by exact intervals over the
whole test set; `attacked` is what is left of it after the attack on the integer program, `best` what all engines together certify
of the first samples, with a budget each. Whatever is chosen is chosen on the validation split. Rows are stored one by one,
by processes side by side too, so that an interrupted run continues; methods that begin with the same dense network train it once.
Where the recipe's calibration counts every class alike, the figures and what there is to reach are balanced accuracies, means over
the classes: of data that are nine tenths of one class, a network that always says it is certified nine times of ten.

Of groups marked `gpu` rows that are not measured print what they would take on this machine, from measured steps, unless --gpu or
--cpu.
"""

from __future__ import annotations

from _common import Row, Target, median, run, table
from _compared import compare, spread
from _suite import Case, Group

HEAD = ["method", "clean", "attacked", "certified", "best", "float cert.", "bytes", "MACs", "trained in s", "seeds"]


def report(group: Group, rows: dict[Case, list[Row]]) -> list[Target]:
    """Prints the group's table, medians over seeds with the least and the greatest; what there is to reach."""
    sample = next(iter(rows.values()))[0]
    kind = ", balanced accuracies" if is_balanced(group) else ""
    print(
        f"\n{group.title}: {sample['samples']} test samples, eps = {sample['eps']}, {sample['samples_seen']} seen{kind}"
    )
    if is_balanced(group):
        rows = {case: [by_class(row) for row in found] for case, found in rows.items()}
    print(table([HEAD, *(line(case, found) for case, found in rows.items())]))
    return goals(group, rows)


def is_balanced(group: Group) -> bool:
    """Whether its networks are chosen, and so judged, with every class counting alike."""
    return all(case.recipe.quantise.class_balance == 1 for case in group.cases)


def by_class(row: Row) -> Row:
    """The row with the means over classes in the place of the shares of samples."""
    return row | {name: row[f"{name}_balanced"] for name in ("clean", "attacked", "certified", "float_certified")}


def line(case: Case, rows: list[Row]) -> list[str]:
    """One method."""
    best = [r["best"] for r in rows if "best" in r]
    return [
        f"{case.key.split('/', 1)[1]} ({case.role})",
        *(spread(rows, key) for key in ("clean", "attacked", "certified")),
        f"{spread(best, 'certified')} of {best[0]['samples']}, {best[0]['budget']}" if best else "",
        spread(rows, "float_certified"),
        f"{max(r['bytes'] for r in rows):,}",
        f"{rows[0]['macs']:,}",
        f"{median(rows, 'training_cpu_s'):.0f}",
        str(len(rows)),
    ]


def goals(group: Group, rows: dict[Case, list[Row]]) -> list[Target]:
    """The group's goals for ours, as far as the rows that they compare are here.

    Methods are compared by intervals; what ours must reach is by all engines, where those saw the whole test set.
    """
    of = {
        role: [found for case, found in rows.items() if case.role == role]
        for role in ("ours", "baseline", "uncompressed")
    }
    if not of["ours"]:
        return []
    ours, name, found = max(of["ours"], key=lambda r: median(r, "certified")), group.title, group.goal
    certified = 100 * median(ours, "certified")

    def rival(role: str) -> float:
        return max(100 * median(r, "certified") for r in of[role])

    targets = []
    if "clean" in found:
        targets.append(Target(f"{name}: clean, %", 100 * median(ours, "clean"), found["clean"]))
    if "certified" in found:
        targets.append(Target(f"{name}: certified, %", 100 * proved(ours), found["certified"]))
    if "bytes" in found:
        targets.append(Target(f"{name}: bytes", max(r["bytes"] for r in ours), found["bytes"], at_most=True))
    if "ahead" in found and of["baseline"]:
        ahead = certified - rival("baseline")
        targets.append(Target(f"{name}: certified ahead of every baseline, points", ahead, found["ahead"]))
    if "behind" in found and of["uncompressed"]:
        behind = rival("uncompressed") - certified
        targets.append(
            Target(f"{name}: certified behind the uncompressed, points", behind, found["behind"], at_most=True)
        )
    return targets


def proved(rows: list[Row]) -> float:
    """Certified share of the whole test set by the best engine that saw all of it."""
    whole = [{"certified": r["best"]["certified"]} for r in rows if r.get("best", {}).get("samples") == r["samples"]]
    return median(whole if len(whole) == len(rows) else rows, "certified")


if __name__ == "__main__":
    run(lambda: compare(__doc__, "train-methods", report))
