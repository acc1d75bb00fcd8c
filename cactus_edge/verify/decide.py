"""The verdict per sample: does the label's class win strictly, at the file's output, for every point of a region?

A strict win holds under any argmax. Nothing here rests on a rounding constant: a requantisation is its thresholds (see
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
from typing import Any, Literal, assert_never, get_args

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import INT32_MAX
from cactus_edge.ir.atoms import AnyOf, Program, Softmax
from cactus_edge.ir.evaluate import dequantize
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.ir.rules import (
    AnySoftmaxRule,
    FloatSoftmaxRule,
    ScaledSoftmaxRule,
    SoftmaxRule,
    TableSoftmaxRule,
)
from cactus_edge.verify.interval import Bounds, Engine
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.regions import Boxes, Index, Region, check_data, point_boxes
from cactus_edge.verify.relax import Relaxation, samples_at_once
from cactus_edge.verify.softmax import float_softmax_separates, softmax_separates, table_softmax_separates
from cactus_edge.verify.tail import find_tail

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

RULE = "strict-win/1"
"""What a verdict of this module means; it stands in every certificate."""

Method = Literal["interval", "linear"]
"""How a region is bounded: by exact intervals; or by lines as well, where those leave it open."""


def method(name: object) -> Method | None:
    """The method of that name, as a certificate has it; None where there is none."""
    return next((known for known in get_args(Method) if known == name), None)


BATCH = 128
"""Samples decided together: few enough for the arrays of one layer to stay in cache. It changes no result."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Per sample [N]: `correct`, the label wins strictly at the sample itself; `certified`, at every point of its region.

    `margin` int64: a lower bound over the region of out_y - out_j for the closest class j, in steps of the tensor that
    decides (before a softmax). Without a softmax, certified means margin >= 1.
    """

    correct: Bools
    certified: Bools
    margin: Int64


class Decider:
    """The decision for one program, with everything that does not depend on the samples computed once.

    Raises UnsupportedError where the program's end has no decision rule, ModelError where an integer may overflow (`facts` is
    the proof that it does not, without which no bound below would speak of a device).
    """

    def __init__(
        self, program: Program, engine: Callable[[Program, list[int]], Engine] = Engine, bounds: Method = "interval"
    ) -> None:
        self.facts = prove(program)
        self.definite = program.definite
        self.softmaxes, self.logits = _logits(program)
        self.classes = program.output_tensor.size
        _check_end(program, self.softmaxes)
        self.tail = find_tail(program, self.logits, self.classes)
        self.engine = engine(program, [self.logits if self.tail is None else self.tail.source])
        self.relaxation = Relaxation(program) if bounds == "linear" else None

    def decide(self, lower: Codes, upper: Codes, labels: Int64) -> tuple[Bools, Int64]:
        """(certified, margin) [N] over the boxes of codes lower <= x <= upper [N, *input shape], for labels int64 [N] in 0..classes-1."""
        margins = self.margins(lower, upper, labels)
        certified = _every(self._won(margins, labels))
        if self.relaxation is not None:
            size = samples_at_once(self.relaxation.program)
            rest = np.flatnonzero(~certified)
            for part in (rest[i : i + size] for i in range(0, len(rest), size)):
                lined = self.linear_margins(self.relaxation, lower[part], upper[part], labels[part])
                margins[part] = np.maximum(margins[part], lined)
            certified[rest] = _every(self._won(margins[rest], labels[rest]))
        margins[np.arange(len(labels)), labels] = np.iinfo(np.int64).max
        return certified, margins.min(1)

    def margins(self, lower: Codes, upper: Codes, labels: Int64) -> Int64:
        """Lower bounds on out_y - out_j over each box for every class j, int64 [N, classes]; 0 at j = y."""
        rows = np.arange(len(labels))
        (bounds,) = self.engine.run(lower, upper)
        if self.tail is None:
            lo, hi = _flat(bounds)
            margins = lo[rows, labels][:, None] - hi
            margins[rows, labels] = 0
            return margins
        acc = self.tail.accumulators(bounds)
        lo, hi = self.tail.lowest(acc[0]), self.tail.highest(acc[1])
        margins = lo[rows, labels][:, None] - hi
        margins[rows, labels] = 0
        # At its highest level the other class is not passed where the label's own end is no higher: not even tried.
        sample, other = np.nonzero(~self._won(margins, labels) & (hi < hi[rows, labels][:, None]))
        fused = self.tail.fused(sample, labels[sample], other, bounds, acc[0], lo, hi)
        margins[sample, other] = np.maximum(margins[sample, other], fused)
        return margins

    def linear_margins(self, relaxation: Relaxation, lower: Codes, upper: Codes, labels: Int64) -> Int64:
        """`margins` from linear bounds (`relax`); not better everywhere."""
        known = relaxation.bounds(lower, upper)
        n, k = len(labels), self.classes
        value = self.logits if self.tail is None else self.tail.value
        shape = known[value][0].shape[1:]
        factors = np.ones(k, np.int64) if self.tail is None else self.tail.factors
        label, other = np.repeat(labels, k), np.tile(np.arange(k), n)
        sample = np.repeat(np.arange(n), k)
        rows = factors[label][:, None] * np.eye(k)[label] - factors[other][:, None] * np.eye(k)[other]
        least = relaxation.lower({value: rows.reshape(n, k, *shape)}, known).ravel()
        low, high = _flat(known[value])
        if self.tail is not None:
            acc_low = low
            low, high = self.tail.lowest(low), self.tail.highest(high)
            least = np.maximum(least, self.tail.difference(sample, label, other, known[self.tail.source]))
            least = self.tail.behind(sample, label, other, least, acc_low, low, high)
        margins: Int64 = np.maximum(low[sample, label] - high[sample, other], least).reshape(n, k)
        margins[np.arange(n), labels] = 0
        return margins

    def _won(self, margins: Int64, labels: Int64) -> Bools:
        """[N, classes]: whether lower bounds of the logit margins imply out_y > out_j at the output; True at j = y."""
        won = margins >= 1
        for softmax in self.softmaxes:
            behind = 255 - np.clip(margins, 0, 255)
            match softmax:
                case SoftmaxRule(exponentials):
                    won &= softmax_separates(exponentials[behind], INT32_MAX)
                case FloatSoftmaxRule(table):
                    won &= float_softmax_separates(table[behind])
                case ScaledSoftmaxRule(scaled):
                    won &= float_softmax_separates(scaled[behind] / scaled[-1].astype(np.float64))
                case TableSoftmaxRule(table16):
                    won &= table_softmax_separates(table16[behind])
                case _:
                    assert_never(softmax)
        won[np.arange(len(labels)), labels] = True
        return won

    def correct(self, samples: Codes, labels: Int64, last: Codes | None = None) -> Bools:
        """Whether the label wins strictly at each of `samples`, codes [N, *input shape]; N >= 1.

        last: where a sample may become any code from `samples` up to these; the label has to win for each of them, and
        whatever is chosen where the program leaves a choice. Behind a softmax that is then only bounded, not enumerated.
        """
        (bounds,) = self.engine.run(samples, samples if last is None else last)
        if self.tail is None:
            lo, hi = _flat(bounds)
        else:
            acc_low, acc_high = self.tail.accumulators(bounds)
            lo, hi = self.tail.lowest(acc_low), self.tail.highest(acc_high)
        rows = np.arange(len(labels))
        if self.softmaxes and not self.definite:
            return _every(self._won(lo[rows, labels][:, None] - hi, labels))
        for softmax in self.softmaxes:
            # Of one function both ends are the logits themselves.
            lo = hi = softmax.apply(lo)
        won = lo[rows, labels][:, None] > hi
        won[rows, labels] = True
        return _every(won)


def _every(rows: Bools) -> Bools:
    """Whether a whole row [N, K] holds, [N]."""
    return np.asarray(rows.all(1))


def _logits(program: Program) -> tuple[tuple[AnySoftmaxRule, ...], int]:
    """Every rule of the softmax that writes the program's output, if one does, and the value that decides: its input, else the output."""
    for step in program.steps:
        if step.out == program.output:
            atoms = step.atom.atoms if isinstance(step.atom, AnyOf) else (step.atom,)
            if found := tuple(atom.rule for atom in atoms if isinstance(atom, Softmax)):
                return found, step.args[0]
    return (), program.output


def _check_end(program: Program, softmaxes: tuple[AnySoftmaxRule, ...]) -> None:
    tensor = program.output_tensor
    if tensor.size < 2:
        raise UnsupportedError(f"the output {tensor.name!r} has {tensor.size} element; a decision needs two classes")
    for softmax in softmaxes:
        match softmax:
            case SoftmaxRule(e):
                top = float(INT32_MAX)
            case FloatSoftmaxRule(e):
                top = 1
            case ScaledSoftmaxRule(e):
                top = float(e.max())
            case TableSoftmaxRule(e):
                top = 65535
            case _:
                assert_never(softmax)
        if tensor.shape[-1] != tensor.size:
            raise UnsupportedError(f"softmax over rows of {tensor.shape}: the output is not one row of classes")
        if not ((np.diff(e) >= 0).all() and (e >= 0).all() and e[-1] == top):
            raise UnsupportedError("the softmax's table of exponentials is not monotone")
    least, most = tensor.codes
    codes = np.arange(least, most + 1).astype(tensor.dtype)
    if program.float_output and not (np.diff(dequantize(codes, tensor.scale, tensor.zero_point)) > 0).all():
        raise UnsupportedError(f"the output {tensor.name!r} has codes that dequantise to equal floats: wins may tie")


def _flat(bounds: Bounds) -> tuple[Int64, Int64]:
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
    bounds: Method = "interval",
) -> Decision:
    """The decision over one box lower <= x <= upper around each of `samples`, all codes [N, *input shape]; labels int64 [N].

    Neither `threads` nor the machine changes the result. Raises UnsupportedError where the program's end cannot be decided.
    """
    decider = Decider(program, bounds=bounds)
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
    bounds: Method = "interval",
    engine: Callable[[Program, list[int]], Engine] = Engine,
    each_worker: Callable[[], None] = lambda: None,
) -> Decision:
    """The decision for the regions around x [N, *input shape] (float32 or float64 in sensor units, or codes).

    bounds: the method, which decides how many regions are certified, and never whether one is. progress(n) is called with the
    number of samples decided so far, each_worker() by every thread as it starts. None of
    `threads`, `batch` and a right `engine` (another way to compute `propagate`) changes the result.
    Raises DataError or InputError for unusable data, UnsupportedError where the program's end cannot be decided.
    """
    y = check_data(program, x, labels)
    decider, boxes = Decider(program, engine, bounds), Boxes(program, region, x)

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
