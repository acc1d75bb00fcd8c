"""MNIST, eps = 0.1, intervals, 10,000 test images: the integer file against the float network and against training small.

    python bench/mnist.py             three seeds; continues where it was interrupted (checkpoints every epoch)

Float and integer use the same region and the same bounds, the margin fused with the last layer in both. `small` is the
network of the same final shape, trained from the start without compression, for as many epochs, exported in the same way.
"""

from __future__ import annotations

from _common import Results, Row, Target, arguments, median, percent, run, table, verdict
from _training import HEAD, Job, line

from cactus_edge.recipe import load_recipe
from cactus_edge.train.data import load_dataset


def removed(rows: list[Row], layers: slice) -> float:
    """Smallest part of the weights of `layers` that is gone, over the rows."""
    return float(min(1 - sum(r["weights_after"][layers]) / sum(r["weights_before"][layers]) for r in rows))


def main() -> int:
    options = arguments(__doc__ or "", seeds=3)
    recipe = load_recipe("mnist")
    dataset = load_dataset(recipe.data)
    results = Results("mnist" if options.split == "test" else "mnist-validation", fresh=options.fresh)
    job = Job(recipe, dataset, options.workdir / "mnist", options.threads, options.split)
    rows: dict[str, list[Row]] = {"cactus": [], "small": []}
    for seed in range(options.seeds):
        for method, measured in rows.items():
            measured.append(job.row(results, method, seed))
    ours, small = rows["cactus"], rows["small"]
    print(
        f"mnist, {ours[0]['samples']} {options.split} samples, eps = {recipe.certify.eps}, profile tflm, {options.seeds} seeds"
    )
    print(table([HEAD, *(line(f"{m} {i}", row) for m in rows for i, row in enumerate(rows[m]))]))
    for name, group in rows.items():
        middle = [percent(median(group, k)) for k in ("float_clean", "float_certified", "clean", "certified")]
        print(f"median {name}: float {middle[0]} / {middle[1]}, int8 {middle[2]} / {middle[3]}")
    convolutions = sum(layer.kind == "conv" for layer in recipe.model.layer)
    return verdict(
        [
            Target("int8 file clean, worst seed, %", 100 * min(r["clean"] for r in ours), 97),
            Target("int8 file certified, worst seed, %", 100 * min(r["certified"] for r in ours), 94),
            Target("certified: file less its float network, worst seed, points",
                   100 * min(r["certified"] - r["float_certified"] for r in ours), 0),
            Target("certified: file less small network's file, median, points",
                   100 * (median(ours, "certified") - median(small, "certified")), 0),
            Target("certified: file less small float network, median, points",
                   100 * (median(ours, "certified") - median(small, "float_certified")), 0),
            Target("weights removed as channels, all layers, %", 100 * removed(ours, slice(None)), 50),
            Target("weights removed, convolutions, %", 100 * removed(ours, slice(0, convolutions)), 50),
            Target("weights removed, dense layers, %", 100 * removed(ours, slice(convolutions, None)), 50),
            Target("bytes of the .tflite, largest", max(r["bytes"] for r in ours), 150_000, at_most=True),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
