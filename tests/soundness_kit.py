"""Random networks under every profile, random regions around random samples, and what no execution may contradict.

`examine` is the oracle: intervals, linear bounds with any slopes, multipliers and tightenings, verdicts, margins and whatever
proofs the checker accepts, found or random, trees included; against executions of the definition (in every way that a profile
leaves open), corners and an attack, or every point of the region where there are few. FAULTS are rules broken on purpose,
each of which it has to notice. The tests run a few numbers, `bench/soundness.py` ten thousand and more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from typing import Any
from unittest import mock

import numpy as np
import proof_kit
from brute import UNCONDITIONAL, Array, boxes, decides, execute, inside, symmetric, with_rules
from graph_parts import RngChoices
from strategies import ENDS, MIDDLE, RARE, make_graph
from tinyengine_kit import translated_graph

from cactus_edge.certify.attack import attack
from cactus_edge.certify.linear import Linear
from cactus_edge.errors import InternalError, UnsupportedError
from cactus_edge.ir import linear
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import Isotone, Max, Program, example
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.tensorrt import TENSORRT
from cactus_edge.verify import check as check_module
from cactus_edge.verify import goal as goal_module
from cactus_edge.verify import interval as interval_module
from cactus_edge.verify import lines as lines_module
from cactus_edge.verify import relax as relax_module
from cactus_edge.verify import tail as tail_module
from cactus_edge.verify.check import Checker
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.interval import propagate
from cactus_edge.verify.lines import INTERCEPT, Pair, Single
from cactus_edge.verify.proof import Robust
from cactus_edge.verify.relax import Multipliers, Relaxation, Rows

ROWS: tuple[Profile | None, ...] = (*PROFILES.values(), None)
"""Every profile, and None: the mixture of all that run the network."""

BOXES, WAYS = 5, 2
"""Regions of one network, and executions of each point where a profile leaves choices."""

TINY = ((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 1, 3))
ALL = 1 << 16
"""Points of a region that is enumerated, at most: two features over all codes."""


def _lowered(graph: Graph, row: Profile) -> Program:
    return lower(symmetric(graph) if row.assumption else graph, row)


@cache
def runnable(row: Profile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(ops, ends) that the profile runs in some network of one op."""

    def some(middle: Sequence[str], ends: Sequence[str]) -> bool:
        for seed in range(30):
            try:
                _lowered(make_graph(RngChoices(np.random.default_rng(seed)), 1, middle, ends=ends), row)
            except UnsupportedError:
                continue
            return True
        return False

    closings = tuple(end for end in ENDS if some(("conv2d", "dense", "reshape"), (end,)))
    return tuple(op for op in (*MIDDLE, *RARE) if some((op,), closings)), closings


def network(number: int, *, tiny: bool = False) -> tuple[str, Program]:
    """(profile's name or "mixture", program) of a number: profiles, sizes and structures in turn."""
    row = ROWS[number % len(ROWS)]
    for attempt in count():
        rng = np.random.default_rng([number, attempt])
        try:
            if row is None:
                return "mixture", _mixture(_graph(rng, PROFILES["tflm"], tiny))
            return row.name, _lowered(_graph(rng, row, tiny), row)
        except UnsupportedError:
            continue
    raise AssertionError("count ended")


def _graph(rng: np.random.Generator, row: Profile, tiny: bool) -> Graph:
    if row.name == "tinyengine":
        return translated_graph(rng)
    middle, ends = runnable(row)
    shape = TINY[int(rng.integers(len(TINY)))] if tiny else None
    return make_graph(RngChoices(rng), int(rng.integers(1, 7)), middle, ends=ends, shape=shape)


def _mixture(graph: Graph) -> Program:
    """Of every unconditional profile that runs the network as its first does."""
    group: list[Program] = []
    for row in UNCONDITIONAL:
        try:
            program = lower(graph, row)
        except UnsupportedError:
            continue
        if not group or program.values == group[0].values:
            group.append(program)
    if len(group) < 2:
        raise UnsupportedError("fewer than two profiles run it")
    return mix(group)


def regions(program: Program, rng: np.random.Generator, tiny: bool) -> tuple[Array, Array, Array]:
    """Codes lower <= x <= upper [BOXES, *shape]; if tiny, of at most ALL points each, among them all codes of two features."""
    shape, dtype = program.values[program.input].shape, program.input_tensor.dtype
    if not tiny:
        return boxes(rng, shape, BOXES, dtype)
    size = int(np.prod(shape))
    x, radius = rng.integers(-128, 128, (BOXES, size)), np.zeros((BOXES, size), np.int64)
    for i in range(BOXES):
        moving = rng.choice(size, min(size, 1 + i % 3), replace=False)
        radius[i, moving] = rng.choice([1, 5, 255 if len(moving) < 3 else 19])
    lower_, upper = np.clip(x - radius, -128, 127), np.clip(x + radius, -128, 127)
    return tuple(a.reshape(BOXES, *shape).astype(np.int8) for a in (lower_, x, upper))  # type: ignore[return-value]


def points(rng: np.random.Generator, lo: Array, hi: Array, tiny: bool) -> Array:
    """Points of one box [M, *shape]: every one if tiny, else random ones and corners, or every one where there are few."""
    if not tiny:
        return inside(rng, lo, hi)[0]
    low, high = lo.ravel().astype(np.int64), hi.ravel().astype(np.int64)
    moving = np.flatnonzero(low < high)
    grid = np.meshgrid(*(np.arange(low[i], high[i] + 1) for i in moving), indexing="ij")
    found = np.repeat(low[None], grid[0].size if grid else 1, 0)
    assert len(found) <= ALL
    for i, axis in zip(moving, grid, strict=True):
        found[:, i] = axis.ravel()
    return found.reshape(-1, *lo.shape).astype(lo.dtype)


Bounded = Callable[[Program], Program]


def examine(number: int, *, tiny: bool = False, bounded: Bounded = lambda p: p) -> Counter[str]:
    """Counts of what was examined. AssertionError, with the number, where an execution contradicts a bound or a verdict.

    bounded: what is bounded instead of the program.
    """
    name, program = network(number, tiny=tiny)
    rng = np.random.default_rng(number)
    lo, x, hi = regions(program, rng, tiny)
    every = [points(rng, a, b, tiny) for a, b in zip(lo, hi, strict=True)]
    wrong = f"network {number}{', tiny' if tiny else ''} ({name})"
    seen = Counter({"networks": 1, "regions": len(lo), f"profile {name}": 1})
    faulty = bounded(program)
    ways = 1 if program.definite else WAYS
    runs = [[execute(rng, program, p) for _ in range(ways)] for p in every]
    seen["executions"] += ways * sum(map(len, every))
    known = propagate(faulty, lo, hi)
    for i, of_box in enumerate(runs):
        for values in of_box:
            for value, (low, high) in zip(values, known, strict=True):
                assert (value >= low[i]).all() and (value <= high[i]).all(), f"{wrong}: leaves its interval"
    seen += _verdicts(wrong, program, faulty, rng, (lo, x, hi), runs)
    return seen + _lines(wrong, program, faulty, rng, (lo, x, hi), runs)


def _verdicts(
    wrong: str,
    program: Program,
    faulty: Program,
    rng: np.random.Generator,
    around: tuple[Array, Array, Array],
    runs: list[list[list[Array]]],
) -> Counter[str]:
    lo, x, hi = around
    try:
        decider = Decider(faulty)
    except UnsupportedError:
        return Counter()
    labels = execute(rng, program, x)[program.output].reshape(len(x), -1).argmax(1)
    certified, margin = decider.decide(lo, hi, labels)
    deciding = decides(program)
    for i, label in enumerate(labels):
        for values in runs[i]:
            least, deciding_least = (_margin(values[v], int(label)) for v in (program.output, deciding))
            assert least >= 1 or not certified[i], f"{wrong}: loses where it is certified"
            assert deciding_least >= margin[i], f"{wrong}: a margin below its bound"
    seen = Counter({"certified": int(certified.sum()), "decided": len(labels)})
    if program.definite and certified.any():
        found = attack(program, lo, hi, labels, start=x, steps=6, restarts=2, seed=int(rng.integers(2**31))).found
        assert not (found & certified).any(), f"{wrong}: an attack wins where it is certified"
        seen["attacked"] = int(certified.sum())
    return seen


ROWS_EACH, WIDE = 3, 600
"""Random sums bounded per region, and elements of a value above which it is not tightened here."""


def _lines(
    wrong: str,
    program: Program,
    faulty: Program,
    rng: np.random.Generator,
    around: tuple[Array, Array, Array],
    runs: list[list[list[Array]]],
) -> Counter[str]:
    lo, x, hi = around
    try:
        checker, finder = Checker(faulty, proof_kit.slopes(rng, faulty)), Linear(faulty)
    except UnsupportedError:
        return Counter()
    n, accumulators = len(lo), proof_kit.accumulators(faulty)
    hints = checker.hints(rng.integers(0, 160, (n, 1, 2, checker.elements)).astype(np.uint8))
    tightened = {v for v in accumulators if rng.random() < 0.5 and np.prod(program.values[v].shape) <= WIDE}
    relaxation = checker.relaxation
    known, empty = relaxation.forward(
        lo, hi, tighten=lambda value, so_far: relaxation.tightened(value, so_far, hints) if value in tightened else None
    )
    assert not empty.any(), f"{wrong}: a region has no point"
    value = int(rng.choice([program.output, *accumulators, len(program.values) - 1]))
    shape = program.values[value].shape
    rows = rng.integers(-3, 4, (n, ROWS_EACH, *shape)) * (rng.random((n, ROWS_EACH, *shape)) < 0.3 + 0.7 * rng.random())
    multipliers = {v: _multipliers(rng, program, v, n) for v in accumulators if rng.random() < 0.5}
    least = relaxation.lower(value, rows, known, hints, multipliers)
    for i, of_box in enumerate(runs):
        for values in of_box:
            for v, (low, high) in enumerate(known):
                assert (values[v] >= low[i]).all() and (values[v] <= high[i]).all(), (
                    f"{wrong}: leaves a tightened bound"
                )
            sums = values[value].reshape(len(values[value]), -1) @ rows[i].reshape(ROWS_EACH, -1).T
            assert (sums >= least[i]).all(), f"{wrong}: a sum below its linear bound"
    split = int(rng.choice([program.input, *accumulators]))
    element = int(rng.integers(np.prod(program.values[split].shape)))
    for i, of_box in enumerate(runs):
        at = of_box[0][split].reshape(len(of_box[0][split]), -1)[:, element]
        threshold = int(rng.choice(at))
        for above in (False, True):
            cut = [(low[i : i + 1].copy(), high[i : i + 1].copy()) for low, high in known]
            check_module.cut(cut, 0, ((split, element, threshold, above),))
            leaf, empty = relaxation.forward(*cut[program.input], cut)
            there = (at >= threshold) == above
            assert not (empty[0] and there.any()), f"{wrong}: a part that has points is taken for empty"
            for v, (low, high) in enumerate(leaf):
                inside_leaf = of_box[0][v][there]
                assert (inside_leaf >= low).all() and (inside_leaf <= high).all(), f"{wrong}: leaves its part's bound"
    labels = execute(rng, program, x)[program.output].reshape(n, -1).argmax(1)
    guessed = [proof_kit.record(rng, checker, lo[i], hi[i], int(labels[i])) for i in range(n)]
    found = finder.records(lo, hi, np.arange(n), labels)
    held = np.stack([checker.holds(guessed), finder.checker.holds(found)])
    claimed = np.array([[isinstance(r.verdict, Robust) for r in records] for records in (guessed, found)])
    for i, label in enumerate(labels):
        for values in runs[i] if (held & claimed)[:, i].any() else ():
            assert _margin(values[program.output], int(label)) >= 1, f"{wrong}: loses where a proof is accepted"
    return Counter({"sums": least.size, "random proofs": n, "random proofs accepted": int(held[0].sum())}) + Counter(
        {"proofs found": int(claimed[1].sum()), "found and refused": int((claimed & ~held)[1].sum())}
    )


def _multipliers(rng: np.random.Generator, program: Program, value: int, n: int) -> Multipliers:
    """One for each row."""
    box, row = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(ROWS_EACH), indexing="ij"))
    element = rng.integers(0, np.prod(program.values[value].shape), len(box))
    return Multipliers(box, row, element, rng.integers(-(2**20), 2**20, len(box)), rng.integers(8, 40, len(box)))


def _margin(out: Array, label: int) -> int:
    rows = out.reshape(len(out), -1)
    return int((rows[:, label] - np.delete(rows, label, 1).max(1)).min())


# Rules broken on purpose


@dataclass(frozen=True)
class Fault:
    """A rule broken while it is entered, and what is bounded instead of a program."""

    entered: Callable[[], AbstractContextManager[Any]] = nullcontext
    bounded: Bounded = lambda program: program
    choices: bool = False
    """Whether it only shows where executions differ: under an envelope or a mixture."""


def _rules(**changes: Any) -> Fault:
    return Fault(bounded=lambda program: with_rules(program, **changes))


def _patched(where: Any, name: str, fault: Any, *, choices: bool = False) -> Fault:
    """where.name replaced by fault(what it was)."""
    return Fault(lambda: mock.patch.object(where, name, fault(getattr(where, name))), choices=choices)


def _smallest_tap(real: Any) -> Any:
    def bounds(atom: Any, args: Any) -> Any:
        low, high = real(atom, args)
        return (low, -atom.apply(-args[0][1])) if isinstance(atom, Max) else (low, high)

    return bounds


def _one_corner(real: Any) -> Any:
    def bounds(atom: Any, args: Any) -> Any:
        if isinstance(atom, Isotone):
            return tuple(atom.rule.apply(*(a[k] for a in args)) for k in (0, 1))
        return real(atom, args)

    return bounds


def _no_price(real: Any) -> Any:
    def shift(self: Any, value: int, by: Any, bounds: Any) -> None:
        constant = self.constant.copy()
        real(self, value, by, bounds)
        self.constant = constant

    return shift


def _lowest_end(real: Any) -> Any:
    """Of max(mu l, mu u) only mu l."""
    return lambda self, value, by, bounds: real(self, value, by, (bounds[0],) * 2)


def _free_rounding(real: Any) -> Any:
    def rounded(self: Any, a: Array, e: Array, bounds: Any) -> Any:
        constant = self.constant.copy()
        kept = real(self, a >> 12 << 12, e, bounds)
        self.constant = constant
        return kept

    return rounded


def _gap(real: Any) -> Any:
    return lambda known, n, path: real(known, n, tuple((v, e, t + above, above) for v, e, t, above in path))


def _middle(real: Any) -> Any:
    def difference(self: Any, pairs: Any, bounds: Any) -> Array:
        return real(self, pairs, ((bounds[0] + bounds[1]) // 2,) * 2)

    return difference


FAULTS: Mapping[str, Fault] = {
    "another rounding": _rules(family="H"),
    "a clamp one too low": _rules(hi=-1),
    "a clamp one too high": _rules(lo=1),
    "an output one off": _rules(zero_point=1),
    "a shift one off": _rules(shift=np.int64(-1)),
    "a lost absolute value, dense": _patched(linear.Dense, "absolute", lambda real: lambda self: self),
    "a lost absolute value, convolution": _patched(linear.Conv, "absolute", lambda real: lambda self: self),
    "a maximum bounded by its smallest tap": _patched(interval_module, "step_bounds", _smallest_tap),
    "one corner of two arguments": _patched(interval_module, "step_bounds", _one_corner),
    "a level one too high": _patched(
        tail_module.Tail, "_level", lambda real: lambda self, acc, label: real(self, acc, label) + 1
    ),
    "a tie taken for a win": _patched(Decider, "margins", lambda real: lambda self, *a: real(self, *a) + 1),
    "a fused margin without its radius": _patched(tail_module.Tail, "difference", _middle),
    "a multiplier without its price": _patched(Rows, "shift", _no_price),
    "a multiplier's price at the wrong end": _patched(Rows, "shift", _lowest_end),
    "rounding of coefficients that is not paid": _patched(Rows, "rounded", _free_rounding),
    "a lost sign in a layer's adjoint": _patched(
        relax_module, "_adjoint", lambda real: lambda linear, a: real(linear, np.abs(a))
    ),
    "a line above one step too low": _patched(
        Single, "above", lambda real: lambda self, k, args: real(self, k, args) - (1 << INTERCEPT)
    ),
    "a line below one step too high": _patched(
        Single, "below", lambda real: lambda self, k, args: real(self, k, args) + (1 << INTERCEPT)
    ),
    "a sum's line above one step too low": _patched(
        Pair, "above", lambda real: lambda self, k, args: real(self, k, args) - (1 << INTERCEPT)
    ),
    "the worst threshold forgotten": _patched(lines_module, "_extreme", lambda real: lambda *a: real(*a) // 2),
    "a linear bound one too high": _patched(Relaxation, "lower", lambda real: lambda self, *a: real(self, *a) + 1),
    "a split whose threshold is on neither side": _patched(check_module, "cut", _gap),
    "a softmax that always separates": _patched(
        goal_module, "softmax_separates", lambda real: lambda e, winner: np.ones(e.shape, np.bool_)
    ),
    "the first of several rules for all": _patched(
        interval_module, "step_bounds", lambda real: lambda atom, args: real(example(atom), args), choices=True
    ),
}
"""Each has to be noticed by `examine` for some number."""


def noticed(fault: Fault, most: int) -> int | None:
    """The first of `most` numbers for which the oracle, or the product's own checks, object to the broken rule; else None."""
    numbers = (n for n in count() if not fault.choices or (ROWS[n % len(ROWS)] or TENSORRT) is TENSORRT)
    for number in islice(numbers, most):
        with fault.entered():
            try:
                examine(number, tiny=number % 4 == 3, bounded=fault.bounded)
            except (AssertionError, InternalError):
                return number
    return None
