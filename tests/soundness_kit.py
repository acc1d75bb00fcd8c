"""Random networks under every profile, random regions around random samples, and what no execution may contradict.

`examine` is the oracle: bounds of every value, verdicts and margins, against executions of the definition (in every way that a
profile leaves open), corners and an attack, or every point of the region where there are few. FAULTS are rules broken on purpose,
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
from brute import UNCONDITIONAL, Array, boxes, execute, inside, symmetric, with_rules
from graph_parts import RngChoices
from strategies import ENDS, MIDDLE, RARE, make_graph
from tinyengine_kit import translated_graph

from cactus_edge.certify.attack import attack
from cactus_edge.errors import InternalError, UnsupportedError
from cactus_edge.ir import linear
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import Isotone, Max, Program, Softmax, example
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.tensorrt import TENSORRT
from cactus_edge.verify import decide as decide_module
from cactus_edge.verify import interval as interval_module
from cactus_edge.verify import tail as tail_module
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.interval import propagate

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
    return seen


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
    deciding = program.steps[-1].args[0] if isinstance(example(program.steps[-1].atom), Softmax) else program.output
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
    "a softmax that always separates": _patched(
        decide_module, "softmax_separates", lambda real: lambda e, winner: np.ones(e.shape, np.bool_)
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
