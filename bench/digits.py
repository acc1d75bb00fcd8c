"""digits, eps = 1/16 of the pixel range, intervals: clean and certified accuracy of the integer file, median over seeds.

    python bench/digits.py            five seeds; continues where it was interrupted

The float columns are the network the file was made from. `small` is the network of the same final shape, trained from
the start by plain interval bounds without compression, for as many epochs, and exported in the same way.
"""

from __future__ import annotations

from _common import Results, Row, Target, arguments, median, percent, run, table, verdict
from _training import HEAD, Job, line

from cactus_edge.recipe import load_recipe
from cactus_edge.train.data import load_dataset


def main() -> int:
    options = arguments(__doc__ or "", seeds=5)
    recipe = load_recipe("digits")
    dataset = load_dataset(recipe.data)
    results = Results("digits" if options.split == "test" else "digits-validation", fresh=options.fresh)
    job = Job(recipe, dataset, options.workdir / "digits", options.threads, options.split)
    rows: dict[str, list[Row]] = {"cactus": [], "small": []}
    for seed in range(options.seeds):
        for method, measured in rows.items():
            measured.append(job.row(results, method, seed))
    ours, small = rows["cactus"], rows["small"]
    print(
        f"digits, {ours[0]['samples']} {options.split} samples, eps = {recipe.certify.eps}, profile tflm, {options.seeds} seeds"
    )
    print(table([HEAD, *(line(f"{m} {i}", row) for m in rows for i, row in enumerate(rows[m]))]))
    for name, group in rows.items():
        middle = [percent(median(group, k)) for k in ("float_clean", "float_certified", "clean", "certified")]
        print(f"median {name}: float {middle[0]} / {middle[1]}, int8 {middle[2]} / {middle[3]}")
    return verdict(
        [
            Target("int8 file clean, median, %", 100 * median(ours, "clean"), 98),
            Target("int8 file certified, median, %", 100 * median(ours, "certified"), 87),
            Target("certified: file less uncompressed small float network, points",
                   100 * (median(ours, "certified") - median(small, "float_certified")), 0),
            Target("certified: file less small network's file, points",
                   100 * (median(ours, "certified") - median(small, "certified")), 0),
            Target("bytes of the .tflite, largest", max(r["bytes"] for r in ours), 40_000, at_most=True),
            Target("training, s, median", median(ours, "training_s"), 60, at_most=True),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
