"""What verdicts are measured against: concrete executions of the definition, every point of a box where there are few."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from strategies import random_graph

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import evaluate, ops
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.atoms import AnyOf, Atom, Between, Gather, Monotone, Program, ReshapeTo, Softmax, example
from cactus_edge.ir.graph import Graph, code_range
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.rules import Requantise
from cactus_edge.verify.decide import Decider, decide
from cactus_edge.verify.interval import propagate

Array = npt.NDArray[Any]
TFLM = profile("tflm")
UNCONDITIONAL = [row for row in PROFILES.values() if not row.assumption]
FEW = 2_000
"""Points up to which a box is enumerated."""


def programs(seed: int, count: int, *, arithmetic: Profile = TFLM, **options: Any) -> list[Program]:
    """Random networks that the profile runs, each from a seed of its own."""
    found: list[Program] = []
    while len(found) < count:
        seed += 1
        try:
            found.append(lower(random_graph(np.random.default_rng(seed), **options), arithmetic))
        except UnsupportedError:
            continue
    return found


def groups(seed: int, count: int, *, decidable: bool = False, **options: Any) -> list[list[Program]]:
    """Random networks, each under every profile that runs it; every second one also under a row that rounds one code away."""
    found: list[list[Program]] = []
    while len(found) < count:
        seed += 1
        graph = random_graph(np.random.default_rng(seed), **options)
        group = []
        for row in UNCONDITIONAL:
            try:
                program = lower(graph, row)
                if decidable:
                    Decider(program)
            except UnsupportedError:
                continue
            # ONNX Runtime's average has no accumulator, and is never mixed with one that has: files are of one format.
            if not group or program.values == group[0].values:
                group.append(program)
        if len(group) < 2 or group[0].profile.name != "tflm":
            continue
        if len(found) % 2:
            group.append(with_rules(group[0], zero_point=1))
        found.append(group)
    return found


def mixtures(seed: int, count: int, **options: Any) -> list[Program]:
    """Each of `groups` as the one program of any mixture."""
    return [mix(group) for group in groups(seed, count, **options)]


def symmetric(graph: Graph) -> Graph:
    """The network as TensorRT takes it: zero points 0, weights from -127, no activation but ReLU."""

    def op(old: Any) -> Any:
        changes: dict[str, Any] = {}
        if isinstance(old, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense):
            changes["weight"] = ops.freeze(np.maximum(old.weight, -127), np.int8)
        if getattr(old, "activation", ops.Activation.NONE) is not ops.Activation.NONE:
            changes["activation"] = ops.Activation.RELU
        return replace(old, **changes)

    tensors = tuple(replace(t, zero_point=0) for t in graph.tensors)
    return replace(graph, tensors=tensors, nodes=tuple(replace(n, op=op(n.op)) for n in graph.nodes))


def boxes(rng: np.random.Generator, shape: tuple[int, ...], n: int, dtype: str = "int8") -> tuple[Array, Array, Array]:
    """lower <= x <= upper [n, *shape] of an integer type: points, a few moving features, balls, everything."""
    size = int(np.prod(shape))
    least, most = code_range(dtype)
    step = (most + 1) // 128
    x = rng.integers(least, most + 1, (n, size))
    radius = np.zeros((n, size), np.int64)
    for i in range(n):
        some = rng.choice(size, min(size, int(rng.integers(1, 7))), replace=False)
        match i % 5:
            case 0:
                radius[i, some] = 1
            case 1:
                radius[i, some] = rng.integers(0, 12, len(some))
            case 2:
                radius[i] = step * rng.integers(0, 4)
            case 3:
                radius[i] = step * rng.integers(0, 40)
            case _:
                radius[i, some] = most - least
    lo, hi = np.clip(x - radius, least, most), np.clip(x + radius, least, most)
    return tuple(a.reshape(n, *shape).astype(dtype) for a in (lo, x, hi))  # type: ignore[return-value]


def inside(rng: np.random.Generator, lo: Array, hi: Array) -> tuple[Array, bool]:
    """(points of one box [M, *shape], whether they are all of them): else random points and random corners."""
    low, high = lo.astype(int).ravel(), hi.astype(int).ravel()
    moving = np.flatnonzero(low < high)
    if np.log(high - low + 1.0).sum() <= np.log(FEW):
        grid = np.meshgrid(*[np.arange(low[i], high[i] + 1) for i in moving], indexing="ij")
        points = np.repeat(low[None], max(grid[0].size if grid else 1, 1), 0)
        for i, axis in zip(moving, grid, strict=True):
            points[:, i] = axis.ravel()
        return points.reshape(-1, *lo.shape).astype(lo.dtype), True
    uniform = rng.integers(low, high + 1, (40, low.size))
    corners = np.where(rng.random((40, low.size)) < 0.5, low, high)
    return np.concatenate([uniform, corners]).reshape(-1, *lo.shape).astype(lo.dtype), False


def margins(program: Program, points: Array, label: int) -> Array:
    """out_label - max of the others at the file's output, int64 [M]."""
    return _margins(evaluate.run(program, points).astype(np.int64), label)


def execute(rng: np.random.Generator, program: Program, x: Array) -> list[Array]:
    """Every value for codes x [N, *shape], each choice made anew: at one of an envelope's ends or between, of several atoms any."""
    known = {program.input: x.astype(np.int64), **program.repeated_constants(len(x))}
    for step in program.steps:
        known[step.out] = _chosen(rng, step.atom, [known[a] for a in step.args])
    return [known[i] for i in range(len(program.values))]


def _chosen(rng: np.random.Generator, atom: Atom, args: list[Array]) -> Array:
    match atom:
        case Between(lowest, member, highest):
            low, usual, high = (rule.apply(args[0]) for rule in (lowest, member, highest))
            assert (low <= usual).all() and (usual <= high).all()
            at_ends = np.where(rng.random(low.shape) < 0.5, low, high)
            return (low, high, rng.integers(low, high + 1), at_ends)[int(rng.integers(0, 4))]
        case AnyOf(atoms):
            results = [_chosen(rng, a, args) for a in atoms]
            by_row = isinstance(atoms[0], Softmax) or rng.random() < 0.3
            shape = (len(args[0]), *(1,) * (results[0].ndim - 1)) if by_row else results[0].shape
            return np.choose(rng.integers(0, len(atoms), shape), results)
        case _:
            return atom.apply(*args)


def decides(program: Program) -> int:
    """The value that a margin is of: the input of a softmax that nothing but reshapes follow, else the output."""
    value = program.output
    for step in reversed(program.steps):
        if step.out == value:
            atom = example(step.atom)
            if isinstance(atom, Softmax):
                return step.args[0]
            if not (isinstance(atom, Gather) and isinstance(atom.rearrangement, ReshapeTo)):
                break
            value = step.args[0]
    return program.output


def check_bounds(program: Program, bounded: Program, seed: int) -> None:
    """No execution of `program` leaves the bounds of `bounded`."""
    rng = np.random.default_rng(seed)
    lo, _, hi = boxes(rng, program.values[program.input].shape, 8, program.input_tensor.dtype)
    bounds = propagate(bounded, lo, hi)
    for i in range(len(lo)):
        points, _ = inside(rng, lo[i], hi[i])
        for _ in range(2):
            for value, (low, high) in zip(execute(rng, program, points), bounds, strict=True):
                assert (value >= low[i]).all() and (value <= high[i]).all()


def check_verdicts(program: Program, seed: int) -> int:
    """No execution refutes a verdict; the number of certified regions."""
    rng = np.random.default_rng(seed)
    lo, x, hi = boxes(rng, program.values[program.input].shape, 8, program.input_tensor.dtype)
    labels = execute(rng, program, x)[program.output].reshape(len(x), -1).argmax(1)
    decision = decide(program, lo, hi, labels, x)
    deciding = decides(program)
    for i, label in enumerate(labels):
        points = np.concatenate([x[i][None], inside(rng, lo[i], hi[i])[0]])
        for _ in range(6):
            values = execute(rng, program, points)
            margin, deciding_margin = (_margins(values[v], int(label)) for v in (program.output, deciding))
            assert margin[0] >= 1 or not decision.correct[i]
            assert margin.min() >= 1 or not decision.certified[i]
            assert deciding_margin.min() >= decision.margin[i]
    return int(decision.certified.sum())


def _margins(out: Array, label: int) -> Array:
    rows = out.reshape(len(out), -1)
    return rows[:, label] - np.delete(rows, label, 1).max(1)


def with_rules(program: Program, **changes: Any) -> Program:
    """The program with fields of every requantisation replaced (a number: added to the field)."""

    def changed(rule: Requantise) -> Requantise:
        fields = {k: getattr(rule, k) + v if isinstance(v, int) else v for k, v in changes.items()}
        return replace(rule, **fields)

    steps = tuple(
        replace(s, atom=Monotone(changed(s.atom.rule)))
        if isinstance(s.atom, Monotone) and isinstance(s.atom.rule, Requantise)
        else s
        for s in program.steps
    )
    return replace(program, steps=steps)
