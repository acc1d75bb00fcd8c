"""MNIST, eps = 0.1, intervals, 10,000 test images: the integer file against the float network and against training small.

    python bench/mnist.py             three seeds; continues where it was interrupted (checkpoints every epoch)

Float and integer use the same region and the same bounds, the margin fused with the last layer in both. `small` is the
network of the same final shape, trained from the start without compression, for as many epochs, exported in the same way.
"""

from __future__ import annotations

from _common import Row, Target, run
from _training import ahead, bench, removed

from cactus_edge.recipe import Recipe


def targets(recipe: Recipe, ours: list[Row], small: list[Row]) -> list[Target]:
    convolutions = sum(layer.kind == "conv" for layer in recipe.model.layer)
    return [
        Target("int8 file clean, worst seed, %", 100 * min(r["clean"] for r in ours), 97),
        Target("int8 file certified, worst seed, %", 100 * min(r["certified"] for r in ours), 94),
        Target("certified: file less its float network, worst seed, points",
               100 * min(r["certified"] - r["float_certified"] for r in ours), 0),
        Target("certified: file less small network's file, median, points",
               ahead(ours, small, "certified", "certified"), 0),
        Target("certified: file less small float network, median, points",
               ahead(ours, small, "certified", "float_certified"), 0),
        Target("weights removed as channels, all layers, %", removed(ours), 50),
        Target("weights removed, convolutions, %", removed(ours, slice(0, convolutions)), 50),
        Target("weights removed, dense layers, %", removed(ours, slice(convolutions, None)), 50),
        Target("bytes of the .tflite, largest", max(r["bytes"] for r in ours), 150_000, at_most=True),
    ]  # fmt: skip


if __name__ == "__main__":
    run(lambda: bench(__doc__ or "", "mnist", seeds=3, targets=targets))
