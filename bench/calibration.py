"""The same trained network calibrated by each criterion: clean and certified accuracy of each int8 file, exact intervals.

    python bench/calibration.py       digits, mnist, fashion-mnist, one seed; continues where it was interrupted

`cactus` networks were trained with their int8 versions, `small` ones without any knowledge of quantisation: there calibration
matters more. Every criterion sees the validation split alone; the test set is used once per file. The column "validation" is
what decides, by the bounds that the test columns are counted with.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from statistics import mean

from _common import Results, Row, Target, arguments, percent, run, table, verdict
from _training import PROFILE, Job

from cactus_edge.recipe import load_recipe
from cactus_edge.train.data import load_dataset

RECIPES, METHODS = ("digits", "mnist", "fashion-mnist"), ("cactus", "small")
OURS = "certified"
CRITERIA: dict[str, dict[str, object]] = {
    "min-max": {"calibration": "min-max"},
    "percentile 99.9": {"calibration": "percentile", "percentile": 99.9},
    "percentile 99.99": {"calibration": "percentile", "percentile": 99.99},
    "entropy": {"calibration": "entropy"},
    "mse": {"calibration": "mse"},
    OURS: {"calibration": "certified"},
}


def rows(job: Job, method: str, seed: int, results: Results) -> dict[str, Row]:
    """One row per criterion for one network, which is trained at most once."""
    from cactus_edge.train.checkpoints import run_key

    recipe, found = job.recipe, {}
    for name, keys in CRITERIA.items():
        changed = replace(recipe, quantise=replace(recipe.quantise, **keys))  # type: ignore[arg-type]
        one = replace(job, recipe=changed)
        key = run_key(recipe, job.dataset, method, seed)
        content = f"{key}{changed.digest('quantise', 'certify')}{job.split}"
        digests = {"data": job.dataset.digest(), "recipe": changed.digest()}
        found[name] = results.row(
            f"{recipe.name}/{method}/{seed}/{name}",
            hashlib.sha256(content.encode()).hexdigest(),
            lambda one=one: one.measure(method, seed),  # type: ignore[misc]
            digests,
        )
    return found


def main() -> int:
    options = arguments(__doc__ or "", seeds=1)
    results = Results("calibration" if options.split == "test" else "calibration-validation", fresh=options.fresh)
    networks: dict[str, dict[str, Row]] = {}
    for method in METHODS:
        for name in RECIPES:
            recipe = load_recipe(name)
            job = Job(recipe, load_dataset(recipe.data), options.workdir / name, options.threads, options.split)
            for seed in range(options.seeds):
                label = f"{name} {method} {seed}"
                print(f"{label} ...", file=sys.stderr)
                networks[label] = rows(job, method, seed, results)
    lines = [
        ["network, criterion", "validation", f"{options.split} clean", f"{options.split} cert.", "calibrated in s"]
    ]
    for label, group in networks.items():
        lines += [_line(f"{label}, {name}", row) for name, row in group.items()]
    print(f"profile {PROFILE}\n{table(lines)}")
    for label, group in networks.items():
        print(
            f"{label}: {group[OURS]['chosen']}; certified over min-max {_ahead(group, 'certified', 'min-max'):+.2f} points"
        )
    return verdict(targets(networks))


def targets(networks: dict[str, dict[str, Row]]) -> list[Target]:
    others = [name for name in CRITERIA if name != OURS]
    least = min(_ahead(g, "validation_certified", name) for g in networks.values() for name in others)
    gain = mean(min(_ahead(g, "certified", name) for name in others) for g in networks.values())
    return [
        Target("certified of validation: ours less the best other, least over networks, points", least, 0),
        Target("certified: ours less the best other of each network, mean over networks, points", gain, 0),
    ]


def _ahead(group: dict[str, Row], key: str, other: str) -> float:
    return 100 * float(group[OURS][key] - group[other][key])


def _line(label: str, row: Row) -> list[str]:
    figures = [percent(row[k]) for k in ("validation_certified", "clean", "certified")]
    return [label, *figures, f"{row['calibrating_s']:.1f}"]


if __name__ == "__main__":
    run(main)
