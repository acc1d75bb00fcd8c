"""digits, eps = 1/16 of the pixel range, intervals: clean and certified accuracy of the integer file, median over seeds.

    python bench/digits.py            five seeds; continues where it was interrupted

The float columns are the network the file was made from: with real weights, and with its activations clamped where it
learned them clamped. `small` is the network of the same final shape, trained from the start by plain interval bounds
without compression, and exported in the same way: the same samples and movements, as many epochs, the same top learning
rate, weights averaged over as many epochs. What it lacks are the wider network and the int8 member of the set.
"""

from __future__ import annotations

from _common import Row, Target, median, run
from _training import ahead, bench

from cactus_edge.recipe import Recipe


def targets(_: Recipe, ours: list[Row], small: list[Row]) -> list[Target]:
    return [
        Target("int8 file clean, median, %", 100 * median(ours, "clean"), 98),
        Target("int8 file certified, median, %", 100 * median(ours, "certified"), 87),
        Target("clean: file less small network's file, points", ahead(ours, small, "clean", "clean"), 0),
        Target("clean: file less small float network, points", ahead(ours, small, "clean", "float_clean"), 0),
        Target("certified: file less small network's file, points", ahead(ours, small, "certified", "certified"), 0),
        Target("certified: file less small float network, points",
               ahead(ours, small, "certified", "float_certified"), 0),
        Target("bytes of the .tflite, largest", max(r["bytes"] for r in ours), 40_000, at_most=True),
        Target("training, processor s, median", median(ours, "training_cpu_s"), 60, at_most=True),
    ]  # fmt: skip


if __name__ == "__main__":
    run(lambda: bench(__doc__ or "", "digits", seeds=5, targets=targets))
