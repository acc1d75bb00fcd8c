"""The verdict per sample: does the label's class win strictly, at the file's output, for every point of a region?

A strict win holds under any argmax. Nothing here rests on a rounding constant: a requantisation is its thresholds (see
`interval`), so saturation and ties need no case of their own. Two bounds on out_y - out_j are combined, pair by pair:

* ends: lo(out_y) - hi(out_j);
* fused: with positive integers p (guesses that make p_c * acc_c comparable) and a bound D on p_y acc_y - p_j acc_j through
  the last weights, D = min over the box of (p_y W_y - p_j W_j) x + ...: where out_j = k, acc_j >= A_k = max(t_k, lo(acc_j)), so
  acc_y >= ceil((p_j A_k + D) / p_y) and out_y is at least the rule's value there; the least difference over all k counts.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN, INT32_MAX, rdp
from cactus_edge.ir.atoms import Affine, Between, Gather, Monotone, Program, ReshapeTo, Softmax
from cactus_edge.ir.evaluate import dequantize
from cactus_edge.ir.ops import Int8, Int64
from cactus_edge.ir.rules import (
    AnySoftmaxRule,
    FloatRequantise,
    FloatSoftmaxRule,
    Requantise,
    SoftmaxRule,
    TableSoftmaxRule,
)
from cactus_edge.verify.interval import Accumulate, Bounds, Engine, accumulate, full_range, step_bounds, thresholds
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.regions import Boxes, Region, check_data, point_boxes

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

RULE = "strict-win/1"
"""What a verdict of this module means; it stands in every certificate."""

BATCH = 128
"""Samples decided together: few enough for the arrays of one layer to stay in cache. It changes no result."""

PAIR_ELEMENTS = 1 << 20
"""Elements of the arrays over pairs of classes: bounds the memory, changes no result."""


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

    Raises UnsupportedError where the program's end has no decision rule, ModelError where int32 may overflow (`facts` is
    the proof that it does not, without which no bound below would speak of a device).
    """

    def __init__(self, program: Program, engine: Callable[[Program, list[int]], Engine] = Engine) -> None:
        self.facts = prove(program)
        self.softmax = _softmax_rule(program)
        self.logits = program.output if self.softmax is None else program.steps[-1].args[0]
        self.classes = program.output_tensor.size
        _check_end(program, self.softmax)
        self.tail = _find_tail(program, self.logits, self.classes)
        self.engine = engine(program, [self.logits if self.tail is None else self.tail.source])

    def decide(self, lower: Int8, upper: Int8, labels: Int64) -> tuple[Bools, Int64]:
        """(certified, margin) [N] over the boxes lower <= x <= upper, int8 [N, *input shape], for labels int64 [N] in 0..classes-1."""
        margins = self.margins(lower, upper, labels)
        certified = _every(self._won(margins, labels))
        margins[np.arange(len(labels)), labels] = np.iinfo(np.int64).max
        return certified, margins.min(1)

    def margins(self, lower: Int8, upper: Int8, labels: Int64) -> Int64:
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

    def _won(self, margins: Int64, labels: Int64) -> Bools:
        """[N, classes]: whether lower bounds of the logit margins imply out_y > out_j at the output; True at j = y."""
        won = margins >= 1
        if self.softmax is not None:
            behind = 255 - np.clip(margins, 0, 255)
            match self.softmax:
                case SoftmaxRule(exponentials):
                    won &= softmax_separates(exponentials[behind], INT32_MAX)
                case FloatSoftmaxRule(table):
                    won &= float_softmax_separates(table[behind])
                case TableSoftmaxRule(table16):
                    won &= table_softmax_separates(table16[behind])
                case _:
                    assert_never(self.softmax)
        won[np.arange(len(labels)), labels] = True
        return won

    def correct(self, samples: Int8, labels: Int64, last: Int8 | None = None) -> Bools:
        """Whether the label wins strictly at each of `samples`, int8 [N, *input shape]; N >= 1.

        last: where a sample may become any code from `samples` up to these; the label has to win for each of them, and
        whatever an envelope chooses.
        """
        (bounds,) = self.engine.run(samples, samples if last is None else last)
        if self.tail is None:
            lo, hi = _flat(bounds)
        else:
            acc_low, acc_high = self.tail.accumulators(bounds)
            lo, hi = self.tail.lowest(acc_low), self.tail.highest(acc_high)
        if self.softmax is not None:
            # Not in an envelope (`_check_end`): both are the logits themselves.
            lo = hi = self.softmax.apply(lo)
        rows = np.arange(len(labels))
        won = lo[rows, labels][:, None] > hi
        won[rows, labels] = True
        return _every(won)


def _every(rows: Bools) -> Bools:
    """Whether a whole row [N, K] holds, [N]."""
    return np.asarray(rows.all(1))


def softmax_separates(e: Int64, winner: int) -> Bools:
    """Whether int8 softmax gives the winner's exponential E a larger output than e_j, [N, K] for rows e of upper bounds.

    e_i bounds the exponential of class i from above; the winner's own entry is E = `winner`. With S the sum of rdp(e_i, 12), g
    its fixed-point reciprocal and n the shift: g / 2^n is within 2^-26, relative, of 2^27 / S (for every S: exhaustive test).
    srdhm(g, E) - srdhm(g, e) >= floor(g (E - e) / 2^31), and rdp(., n) never rounds numbers 2^n apart to the same; so
    g (E - e) >= 2^(31 + n) suffices, which (2^26 - 1) (E - e) >= 2^30 S implies, also for a larger e or S than the true ones.
    Saturation cannot tie them: S >= (E + e) / 2^12 - 1 keeps e's output near 256 / 2 - 128 at most.
    """
    total = rdp(e, 12).sum(1, keepdims=True)
    enough: Bools = (2**26 - 1) * (winner - e) >= 2**30 * total
    return enough


def table_softmax_separates(e: Int64) -> Bools:
    """Whether the softmax of a `TableSoftmaxRule` gives the winner, whose entry is 65535, a larger output than e_j, [N, K].

    e_i bounds the entry of class i from above, but for the 1 by which a C library's expf may move it. With S the sum of the true
    entries, (m, s) stand for M = 256 / S within 2^-21, relative: the sum's conversion, two roundings to float32 and QM. As S >=
    65535, s <= -7 and D(e; m, s) is within 1/2 + 2^-8 of e times that number, the same for both classes. So
    256 (65535 - 1 - e_j) (1 - 2^-21) > (1 + 2^-7) S suffices; below, 2^-6 and 2^9 are more than twice those slacks. Both outputs
    at 127 would need e_j M > 254, whose sum with the winner's is beyond 256.
    """
    total = (e + 1).sum(1, keepdims=True)
    enough: Bools = 64 * (256 * (65534 - e) - 2**9) >= 65 * total
    return enough


def float_softmax_separates(e: npt.NDArray[np.float32]) -> Bools:
    """Whether LiteRT's float softmax gives the winner, whose exponential is 1, a larger int8 output than e_j, [N, K].

    e_i bounds the exponential of class i from above. With S the sum of the true exponentials, p_i = 256 e_i / S in the reals
    and K + 16 roundings of at most 2^-24 each on the way to it (the sum in any order; 8 of them for a C library's expf), the
    floats p_w - p_j >= 1 suffice: RHA(p + 1) = RHA(p) + 1 for p >= 0. They follow from
    256 ((1 - d) - (1 + d) e_j) >= (1 + d) S with d = (K + 16) 2^-23, twice that slack, also for a larger S and e than the true
    ones. Both outputs at 127 would need p_j >= 254.5, whose sum with p_w is beyond 256 (1 + d).
    """
    wide = e.astype(np.float64)
    slack = (e.shape[1] + 16) * 2.0**-23
    enough: Bools = 256 * ((1 - slack) - (1 + slack) * wide) >= (1 + slack) * wide.sum(1, keepdims=True)
    return enough


@dataclass(frozen=True, eq=False)
class _Tail:
    """The last Affine and the monotone steps between it and the logits, over K classes.

    weight float64 [K, I] and bias int64 [K]: acc = weight (x + offset) + bias. factors int64 [K]: the p of the module's
    head. steps int64 [1 + L, K]: steps[k - first_level, c] = the least reachable accumulator of class c with output >= k,
    at its highest. ladder: the thresholds of all classes at their lowest, from level own_level + 1 on, as one increasing
    array, class c raised by c * 2^40. Highest and lowest are one rule, except under an envelope.
    """

    source: int
    offset: int
    shape: tuple[int, ...]
    atoms: tuple[_TailAtom, ...]
    compiled: Accumulate
    weight: npt.NDArray[np.float64]
    bias: Int64
    factors: Int64
    first_level: int
    steps: Int64
    own_level: int
    ladder: Int64

    def accumulators(self, bounds: Bounds) -> tuple[Int64, Int64]:
        """Bounds of the accumulators, int64 [N, K], from those of the value `source`."""
        low, high = (np.asarray(b, np.int64).reshape(len(b), -1) >> 1 for b in self.compiled.ends(*bounds))
        return low, high

    def lowest(self, acc: Int64) -> Int64:
        """The least logits of accumulators acc int64 [M, K]."""
        return _apply(self.atoms, acc, self.shape, -1)

    def highest(self, acc: Int64) -> Int64:
        """The largest logits of accumulators acc int64 [M, K]."""
        return _apply(self.atoms, acc, self.shape, 1)

    def fused(
        self, sample: Int64, label: Int64, other: Int64, bounds: Bounds, acc_low: Int64, low: Int64, high: Int64
    ) -> Int64:
        """The fused bound on out_label - out_other, int64 [P], for P pairs of classes, each of one sample's box.

        sample, label, other int64 [P]; bounds [N, ...] of the value `source`; acc_low, low, high int64 [N, K]: what is known of
        the accumulators and the logits.
        """
        block = max(PAIR_ELEMENTS // max(self.weight.shape[1], 256), 1)
        parts = [slice(k, k + block) for k in range(0, len(sample), block)]
        lower, upper = (np.asarray(b, np.float64).reshape(len(b), -1) for b in bounds)
        done = [self._pairs(sample[c], label[c], other[c], lower, upper, acc_low, low, high) for c in parts]
        return np.concatenate([np.zeros(0, np.int64), *done])

    def _pairs(
        self, i: Int64, y: Int64, j: Int64, lower: Array, upper: Array, acc_low: Int64, low: Int64, high: Int64
    ) -> Int64:
        p, q = self.factors[y], self.factors[j]
        rows = p[:, None] * self.weight[y] - q[:, None] * self.weight[j]
        centre, radius = lower[i] + upper[i] + 2 * self.offset, upper[i] - lower[i]
        twice = (rows * centre - np.abs(rows) * radius).sum(1)
        least = (twice.astype(np.int64) >> 1) + p * self.bias[y] - q * self.bias[j]
        # First the highest level alone: where that is not passed, the ends' own bound has to do.
        margins: Int64 = low[i, y] - high[i, j]
        top = self._reached(i, y, j, high[i, j][:, None], least, acc_low, low)[:, 0] - high[i, j]
        rest = np.flatnonzero(top >= 1)
        if len(rest):
            i, y, j, least = i[rest], y[rest], j[rest], least[rest]
            start, end = low[i, j][:, None], high[i, j][:, None]
            level = np.minimum(start + np.arange(int((end - start).max()) + 1), end)
            margins[rest] = (self._reached(i, y, j, level, least, acc_low, low) - level).min(1)
        return margins

    def _reached(self, i: Int64, y: Int64, j: Int64, level: Int64, least: Int64, acc_low: Int64, low: Int64) -> Int64:
        """The lowest logit of class y where class j is at `level` [P, L], given p_y acc_y - p_j acc_j >= least."""
        p, q = self.factors[y], self.factors[j]
        # Below first_level stands what every accumulator reaches.
        row = np.maximum(level - self.first_level, 0)
        other_acc = np.maximum(self.steps[row, j[:, None]], acc_low[i, j][:, None])
        own_acc = -(-(q[:, None] * other_acc + least[:, None]) // p[:, None])
        reached: Int64 = np.maximum(self._level(own_acc, y[:, None]), low[i, y][:, None])
        return reached

    def _level(self, acc: Int64, label: Int64) -> Int64:
        """A lower bound on class `label`'s logit for accumulators >= acc: the thresholds of that class that acc reaches."""
        count = len(self.ladder) // len(self.factors)
        found = np.searchsorted(self.ladder, np.clip(acc, -(2**38), 2**38) + label * 2**40, side="right")
        level: Int64 = self.own_level + found - label * count
        return level


_TailAtom = Monotone | Between | Gather


def _find_tail(program: Program, logits: int, classes: int) -> _Tail | None:
    """The tail that ends in value `logits`; None where other steps lie between, so that only end points count."""
    writer = {step.out: step for step in program.steps}
    atoms: tuple[_TailAtom, ...] = ()
    value = logits
    while value in writer:
        step = writer[value]
        match step.atom:
            case Affine():
                return _tail(step.atom, atoms, step.args[0], classes)
            case Monotone() | Between() | Gather(ReshapeTo()):
                atoms, value = (step.atom, *atoms), step.args[0]
            case _:
                return None
    return None


def _tail(affine: Affine, atoms: tuple[_TailAtom, ...], source: int, classes: int) -> _Tail | None:
    shape = affine.linear.out_shape
    factors = _factors(atoms, shape, classes)
    reach = int((256 * affine.linear.reach() + np.abs(affine.bias)).max())
    # `fused` adds at most two classes, doubled, with centre and radius: every product through float64 must be exact.
    if 8 * int(factors.max()) * reach >= 2**53:
        return None
    low, high = (b.reshape(classes) for b in step_bounds(affine, [full_range(affine.linear.in_shape)]))
    unit = np.eye(classes, dtype=np.int64).reshape(classes, *shape)
    weight = affine.linear.adjoint(unit).reshape(classes, -1).astype(np.float64)
    bias = np.broadcast_to(affine.bias, shape).reshape(classes)
    _, t = thresholds(lambda acc: _apply(atoms, acc, shape, 1), low, high)
    _, own = thresholds(lambda acc: _apply(atoms, acc, shape, -1), low, high)
    first, own_first = (int(_apply(atoms, low[None], shape, sign).min()) for sign in (1, -1))
    ladder = (own + np.arange(classes) * 2**40).T.ravel()
    steps = np.vstack([low[None], t])
    compiled = accumulate(affine)
    return _Tail(
        source, affine.input_offset, shape, atoms, compiled, weight, bias, factors, first, steps, own_first, ladder
    )


def _apply(atoms: tuple[_TailAtom, ...], acc: Int64, shape: tuple[int, ...], sign: int) -> Int64:
    """The monotone steps on accumulators [M, K], through their own shape; at their lowest for sign -1, at their highest for 1."""
    value = acc.reshape(len(acc), *shape)
    for atom in atoms:
        if isinstance(atom, Between):
            value = (atom.lowest if sign < 0 else atom.highest).apply(value)
        else:
            value = atom.apply(value)
    return value.reshape(len(acc), -1)


def _factors(atoms: tuple[_TailAtom, ...], shape: tuple[int, ...], classes: int) -> Int64:
    """Positive integers [K] about proportional to what each class's accumulator is multiplied by; all 1 where that is one number."""
    rules = (a.member if isinstance(a, Between) else a.rule for a in atoms if not isinstance(a, Gather))
    first = next(rules, None)
    if not isinstance(first, Requantise | FloatRequantise):
        return np.ones(classes, np.int64)
    scale = np.broadcast_to(first.slope(), shape).reshape(classes)
    if (scale == scale[0]).all():
        return np.ones(classes, np.int64)
    factors: Int64 = np.maximum(np.rint(scale * (4096 / scale.max())), 1).astype(np.int64)
    return factors


def _softmax_rule(program: Program) -> AnySoftmaxRule | None:
    atom = program.steps[-1].atom if program.steps else None
    return atom.rule if isinstance(atom, Softmax) else None


def _check_end(program: Program, softmax: AnySoftmaxRule | None) -> None:
    tensor = program.output_tensor
    if tensor.size < 2:
        raise UnsupportedError(f"the output {tensor.name!r} has {tensor.size} element; a decision needs two classes")
    if softmax is not None:
        if program.quantize.rounding == "envelope" or any(isinstance(s.atom, Between) for s in program.steps):
            raise UnsupportedError("a softmax behind requantisations that are only known to lie in an envelope")
        match softmax:
            case SoftmaxRule(e):
                top = INT32_MAX
            case FloatSoftmaxRule(e):
                top = 1
            case TableSoftmaxRule(e):
                top = 65535
            case _:
                assert_never(softmax)
        if tensor.shape[-1] != tensor.size:
            raise UnsupportedError(f"softmax over rows of {tensor.shape}: the output is not one row of classes")
        if not ((np.diff(e) >= 0).all() and (e >= 0).all() and e[-1] == top):
            raise UnsupportedError("the softmax's table of exponentials is not monotone")
    codes = np.arange(INT8_MIN, INT8_MAX + 1).astype(np.int8)
    if program.float_output and not (np.diff(dequantize(codes, tensor.scale, tensor.zero_point)) > 0).all():
        raise UnsupportedError(f"the output {tensor.name!r} has codes that dequantise to equal floats: wins may tie")


def _flat(bounds: Bounds) -> tuple[Int64, Int64]:
    lo, hi = (b.reshape(len(b), -1).astype(np.int64) for b in bounds)
    return lo, hi


def decide(program: Program, lower: Int8, upper: Int8, labels: Int64, samples: Int8, *, threads: int = 1) -> Decision:
    """The decision over int8 boxes lower <= x <= upper around `samples`, all int8 [N, *input shape]; labels int64 [N].

    Neither `threads` nor the machine changes the result. Raises UnsupportedError where the program's end cannot be decided.
    """
    decider = Decider(program)
    return _decide(
        len(labels),
        BATCH,
        lambda part: decider.decide(lower[part], upper[part], labels[part]),
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
    """The decision for the regions around x [N, *input shape] (float32 or float64 in sensor units, or int8 codes).

    progress(n) is called with the number of samples decided so far, each_worker() by every thread as it starts. None of
    `threads`, `batch` and a right `engine` (another way to compute `propagate`) changes the result.
    Raises DataError or InputError for unusable data, UnsupportedError where the program's end cannot be decided.
    """
    y = check_data(program, x, labels)
    decider, boxes = Decider(program, engine), Boxes(program, region, x)

    def at_sample(rest: Int64) -> Bools:
        first, last = point_boxes(program, x[rest])
        return decider.correct(first, y[rest], last)

    return _decide(
        len(y),
        batch,
        lambda part: decider.decide(*boxes(x[part]), y[part]),
        at_sample,
        threads,
        progress,
        each_worker,
    )


def _decide(
    count: int,
    batch: int,
    decide_part: Callable[[slice], tuple[Bools, Int64]],
    correct: Callable[[Int64], Bools],
    threads: int,
    progress: Callable[[int], None] = lambda done: None,
    each_worker: Callable[[], None] = lambda: None,
) -> Decision:
    """Every sample's region in batches, then the samples themselves of those that were not certified: a region holds its sample."""
    certified, margin = np.zeros(count, np.bool_), np.zeros(count, np.int64)
    slices = [slice(i, min(i + batch, count)) for i in range(0, count, batch)]
    with ThreadPoolExecutor(max(threads, 1), initializer=each_worker) as pool:
        for part, decided in zip(slices, pool.map(decide_part, slices), strict=True):
            certified[part], margin[part] = decided
            progress(part.stop)
        rest = np.flatnonzero(~certified)
        indices = [rest[i : i + batch] for i in range(0, len(rest), batch)]
        right = certified.copy()
        for index, won in zip(indices, pool.map(correct, indices), strict=True):
            right[index] = won
    return Decision(right, certified, margin)
