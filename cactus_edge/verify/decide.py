"""The verdict per sample: does the label's class win, at the file's output, for every point of a region (`goal`)?

Nothing here rests on a rounding constant: a requantisation is its thresholds (see
`interval`), so saturation and ties need no case of their own. Two bounds on out_y - out_j are combined, pair by pair:

* ends: lo(out_y) - hi(out_j);
* fused: with positive integers p (guesses that make p_c * acc_c comparable) and a bound D on p_y acc_y - p_j acc_j through
  the last weights, D = min over the box of (p_y W_y - p_j W_j) x + ...: where out_j = k, acc_j >= A_k = max(t_k, lo(acc_j)), so
  acc_y >= ceil((p_j A_k + D) / p_y) and out_y is at least the rule's value there; the least difference over all k counts
  (`tail`). Before a softmax, `softmax` says which margins of its input separate its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.goal import Bools, Goal, every
from cactus_edge.verify.interval import Bounds, Engine
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.regions import Boxes, Index, Region, check_data, point_boxes

RULES = {False: "strict-win/1", True: "first-maximum/1"}
"""What a verdict of this module means, by `Program.first_maximum`; it stands in every certificate."""

BATCH = 128
"""Samples decided together: few enough for the arrays of one layer to stay in cache. It changes no result."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Per sample [N]: `correct`, the label wins at the sample itself; `certified`, at every point of its region.

    `margin` int64: a lower bound over the region of out_y - out_j for the closest class j, in steps of the tensor that
    decides (before a softmax). Without a softmax, and where only strict wins count, certified means margin >= 1.
    """

    correct: Bools
    certified: Bools
    margin: Int64


class Decider:
    """The decision for one program, with everything that does not depend on the samples computed once.

    Raises UnsupportedError where the program's end has no decision rule, ModelError where an integer may overflow (`facts` is
    the proof that it does not, without which no bound below would speak of a device).
    """

    def __init__(self, program: Program, engine: Callable[[Program, list[int]], Engine] = Engine) -> None:
        self.facts = prove(program)
        self.goal = Goal(program)
        self.tail = self.goal.tail
        self.engine = engine(program, [self.goal.logits if self.tail is None else self.tail.source])

    def decide(self, lower: Codes, upper: Codes, labels: Int64) -> tuple[Bools, Int64]:
        """(certified, margin) [N] over the boxes of codes lower <= x <= upper [N, *input shape], for labels int64 [N] in 0..classes-1."""
        margins = self.margins(lower, upper, labels)
        certified = every(self.goal.won(margins, labels))
        margins[np.arange(len(labels)), labels] = np.iinfo(np.int64).max
        return certified, margins.min(1)

    def margins(self, lower: Codes, upper: Codes, labels: Int64) -> Int64:
        """Lower bounds on out_y - out_j over each box for every class j, int64 [N, classes]; 0 at j = y."""
        rows = np.arange(len(labels))
        (bounds,) = self.engine.run(lower, upper)
        if self.tail is None:
            lo, hi = flat(bounds)
            margins = lo[rows, labels][:, None] - hi
            margins[rows, labels] = 0
            return margins
        acc = self.tail.accumulators(bounds)
        lo, hi = self.tail.lowest(acc[0]), self.tail.highest(acc[1])
        margins = lo[rows, labels][:, None] - hi
        margins[rows, labels] = 0
        # At its highest level the other class is not passed where the label's own end is no higher: not even tried.
        passed = hi[rows, labels][:, None] - hi >= 1 - self.goal.may_tie(labels)
        sample, other = np.nonzero(~self.goal.won(margins, labels) & passed)
        fused = self.tail.fused(self.tail.pairs(sample, labels[sample], other), bounds, acc[0], lo, hi)
        margins[sample, other] = np.maximum(margins[sample, other], fused)
        return margins

    def correct(self, samples: Codes, labels: Int64, last: Codes | None = None) -> Bools:
        """Whether the label wins at each of `samples`, codes [N, *input shape]; N >= 1.

        last: where a sample may become any code from `samples` up to these; the label has to win for each of them, and
        whatever is chosen where the program leaves a choice. Behind a softmax that is then only bounded, not enumerated.
        """
        (bounds,) = self.engine.run(samples, samples if last is None else last)
        if self.tail is None:
            lo, hi = flat(bounds)
        else:
            acc_low, acc_high = self.tail.accumulators(bounds)
            lo, hi = self.tail.lowest(acc_low), self.tail.highest(acc_high)
        return self.goal.right(samples, lo, hi, labels)


def flat(bounds: Bounds) -> tuple[Int64, Int64]:
    """Bounds as int64 [N, elements]."""
    lo, hi = (b.reshape(len(b), -1).astype(np.int64) for b in bounds)
    return lo, hi


def decide(
    program: Program,
    lower: Codes,
    upper: Codes,
    labels: Int64,
    samples: Codes,
    *,
    threads: int = 1,
) -> Decision:
    """The decision over one box lower <= x <= upper around each of `samples`, all codes [N, *input shape]; labels int64 [N].

    Neither `threads` nor the machine changes the result. Raises UnsupportedError where the program's end cannot be decided.
    """
    decider = Decider(program)
    return _decide(
        len(labels),
        1,
        BATCH,
        lambda part: (*decider.decide(lower[part], upper[part], labels[part]), np.arange(len(labels))[part]),
        lambda rest: decider.correct(samples[rest], labels[rest]),
        threads,
    )


def certify(
    program: Program,
    region: Region,
    x: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    *,
    threads: int = 1,
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda done: None,
    engine: Callable[[Program, list[int]], Engine] = Engine,
    each_worker: Callable[[], None] = lambda: None,
) -> Decision:
    """The decision for the regions around x [N, *input shape] (float32 or float64 in sensor units, or codes).

    progress(n) is called with the number of samples decided so far, each_worker() by every thread as it starts. None of
    `threads`, `batch` and a right `engine` (another way to compute `propagate`) changes the result.
    Raises DataError or InputError for unusable data, UnsupportedError where the program's end cannot be decided.
    """
    y = check_data(program, x, labels)
    decider, boxes = Decider(program, engine), Boxes(program, region, x)

    def over_boxes(part: slice) -> tuple[Bools, Int64, Index]:
        lower, upper, owner = boxes(part)
        return (*decider.decide(lower, upper, y[owner]), owner)

    def at_sample(rest: Int64) -> Bools:
        first, last = point_boxes(program, x[rest])
        return decider.correct(first, y[rest], last)

    return _decide(
        len(y),
        region.count(x.shape[1:]),
        batch,
        over_boxes,
        at_sample,
        threads,
        progress,
        each_worker,
    )


def _decide(
    count: int,
    each: int,
    batch: int,
    decide_part: Callable[[slice], tuple[Bools, Int64, Index]],
    correct: Callable[[Int64], Bools],
    threads: int,
    progress: Callable[[int], None] = lambda done: None,
    each_worker: Callable[[], None] = lambda: None,
) -> Decision:
    """Every sample's boxes, `each` of them, in batches, then the samples themselves of those that were not certified.

    decide_part gives what holds of the boxes with these numbers, and whose they are. A region holds its sample, and what
    holds of all boxes of a sample holds of its region.
    """
    certified, margin = np.ones(count, np.bool_), np.full(count, np.iinfo(np.int64).max)
    slices = [slice(i, min(i + batch, count * each)) for i in range(0, count * each, batch)]
    with ThreadPoolExecutor(max(threads, 1), initializer=each_worker) as pool:
        for part, (won, least, owner) in zip(slices, pool.map(decide_part, slices), strict=True):
            np.logical_and.at(certified, owner, won)
            np.minimum.at(margin, owner, least)
            progress(part.stop // each)
        rest = np.flatnonzero(~certified)
        indices = [rest[i : i + batch] for i in range(0, len(rest), batch)]
        right = certified.copy()
        for index, won in zip(indices, pool.map(correct, indices), strict=True):
            right[index] = won
    return Decision(right, certified, margin)
