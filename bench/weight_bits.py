"""One recipe with its weights in 8 bits, in 4 inside, in 4, and as chosen within budgets of bytes: clean and certified accuracy.

    python bench/weight_bits.py       digits, three seeds; continues where it was interrupted

Each width is trained by itself, with members that round to it, from the same seed; narrow ones are fine-tuned in float as well
and at a smaller rate (chosen on the validation split), without which steps of a seventh of the largest weight lose the way. The
column "validation" is what a choice of widths may look at; the test set is used once per file. `blob` is what firmware carries of
the model.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict, replace
from typing import Any

from _common import Results, Row, Target, arguments, percent, run, table, verdict
from _training import PROFILE, Job

from cactus_edge.recipe import load_recipe
from cactus_edge.train.data import load_dataset

WIDTHS: dict[str, dict[str, Any]] = {
    "8": {"weight_bits": (8,)},
    "8, 4, 4, 8": {"weight_bits": (8, 4, 4, 8)},
    "4": {"weight_bits": (4,)},
    "17,500 bytes": {"weight_bytes": 17_500},
    "30,000 bytes": {"weight_bytes": 30_000},
}
"""[quantise] of each row."""

NARROW: dict[str, Any] = {"members": ("full", "quantised"), "learning_rate": 0.003}
"""[compress] of the rows with other widths than 8."""


def measured(job: Job, seed: int) -> Row:
    """The file's row with the bytes of its blob."""
    from cactus_edge.formats.c.blob import build
    from cactus_edge.ir.arithmetic import profile
    from cactus_edge.verify.tflite_read import read_tflite

    trained = job.trained("cactus", seed)
    data, made = job.file(trained)
    blob = len(build(read_tflite(data).graph, profile(PROFILE)).data)
    chosen = {} if trained.chosen is None else {"weight_bits": asdict(trained.chosen)}
    return made | {"blob_bytes": blob} | chosen | job.judged(trained, data)


def main() -> int:
    options = arguments(__doc__ or "", seeds=3)
    results = Results("weight_bits" if options.split == "test" else "weight_bits-validation", fresh=options.fresh)
    recipe = load_recipe("digits")
    dataset = load_dataset(recipe.data)
    found: dict[str, Row] = {}
    for name, keys in WIDTHS.items():
        for seed in range(options.seeds):
            print(f"digits, {name}, seed {seed} ...", file=sys.stderr)
            changed = replace(recipe, quantise=replace(recipe.quantise, **keys))
            if changed != recipe:
                changed = replace(changed, compress=replace(recipe.compress, **NARROW))
            job = Job(changed, dataset, options.workdir / "digits", options.threads, options.split)
            content = f"{changed.digest()}{dataset.digest()}{seed}{options.split}"
            found[f"{name}, seed {seed}"] = results.row(
                f"digits/{name}/{seed}",
                hashlib.sha256(content.encode()).hexdigest(),
                lambda job=job, seed=seed: measured(job, seed),  # type: ignore[misc]
                {"data": dataset.digest(), "recipe": changed.digest()},
            )
    head = [
        "bits of the layers",
        "file",
        "blob",
        "validation cert.",
        f"{options.split} clean",
        f"{options.split} cert.",
    ]
    print(f"profile {PROFILE}\n{table([head, *(_line(name, row) for name, row in found.items())])}")
    first = found["8, seed 0"]
    return verdict(
        [
            Target(
                f"blob of {name}: part of that in 8 bits, at most",
                row["blob_bytes"] / first["blob_bytes"],
                0.7,
                at_most=True,
            )
            for name, row in found.items()
            if not name.startswith("8, seed") and "weight_bits" not in row
        ]
        + [
            Target(
                f"weights and biases of {name}", row["weight_bits"]["bytes"], row["weight_bits"]["budget"], at_most=True
            )
            for name, row in found.items()
            if "weight_bits" in row
        ]
    )


def _line(name: str, row: Row) -> list[str]:
    shares = [percent(row[k]) for k in ("validation_certified", "clean", "certified")]
    if chosen := row.get("weight_bits"):
        name = f"{name}: {', '.join(map(str, chosen['weight_bits']))}"
    return [name, f"{row['bytes']:,}", f"{row['blob_bytes']:,}", *shares]


if __name__ == "__main__":
    run(main)
