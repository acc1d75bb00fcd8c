"""Fashion-MNIST, eps = 0.1, intervals, 10,000 test images: the integer file, its float network, and training small.

    python bench/fashion_mnist.py     one seed; continues where it was interrupted (checkpoints every epoch)

As bench/mnist.py measures. The radius is a lot for these pictures; there is no accuracy to reach, only what compression
must not cost.
"""

from __future__ import annotations

from _common import Row, Target, run
from _training import ahead, bench, removed

from cactus_edge.recipe import Recipe


def targets(_: Recipe, ours: list[Row], small: list[Row]) -> list[Target]:
    return [
        Target("certified: file less its float network, worst seed, points",
               100 * min(r["certified"] - r["float_certified"] for r in ours), 0),
        Target("certified: file less small network's file, median, points",
               ahead(ours, small, "certified", "certified"), 0),
        Target("weights removed as channels, all layers, %", removed(ours), 50),
        Target("bytes of the .tflite, largest", max(r["bytes"] for r in ours), 150_000, at_most=True),
    ]  # fmt: skip


if __name__ == "__main__":
    run(lambda: bench(__doc__ or "", "fashion-mnist", seeds=1, targets=targets))
