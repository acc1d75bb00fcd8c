"""Small networks with right proofs of a few records: by intervals, by lines, by trees, refuted and open ones."""

from __future__ import annotations

import functools
import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from mutate import TfliteMutator

from cactus_edge.certify.linear import Linear
from cactus_edge.errors import ModelError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.proof import Leaf, Multiplier, Proof, Record, Robust, Split, Tree, encode
from cactus_edge.verify.read import graph_for
from cactus_edge.verify.tflite_read import read_tflite

TFLM = profile("tflm")
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A model, a right proof about it, and mutants of the file."""

    model: bytes
    program: Program
    proof: Proof
    change: TfliteMutator

    @property
    def data(self) -> bytes:
        return encode(self.program, self.proof)


@functools.lru_cache(maxsize=64)
def program_of(model: bytes) -> Program:
    """What the bytes mean under tflm. Raises ModelError where they do not, or where an integer may overflow."""
    program = lower(graph_for(read_tflite(model), TFLM), TFLM)
    prove(program)
    return program


def network(rng: np.random.Generator) -> Graph:
    """A network whose outputs vary: each layer's scale is near what its random weights make of random codes."""
    build = GraphBuilder()

    def tensor(name: str, shape: tuple[int, ...], scale: float, zero_point: int) -> Tensor:
        return Tensor(name, shape, "int8", float(np.float32(scale)), zero_point)

    def layer(x: int, op: type[ops.Conv2d | ops.DepthwiseConv2d | ops.Dense], outputs: int, last: bool = False) -> int:
        source = build.tensor(x)
        h, w, c = source.shape if len(source.shape) == 3 else (1, 1, source.size)
        shape = {ops.Conv2d: (outputs, 3, 3, c), ops.DepthwiseConv2d: (3, 3, c), ops.Dense: (outputs, c)}[op]
        fan_in = {ops.Conv2d: 9 * c, ops.DepthwiseConv2d: 9, ops.Dense: c}[op]
        if op is ops.DepthwiseConv2d:
            outputs = c
        scales = rng.uniform(0.004, 0.006, outputs if op is not ops.Dense or rng.random() < 0.5 else 1)
        reach = np.sqrt(fan_in) * 60 * 60
        weights = {
            "weight": ops.freeze(rng.integers(-110, 111, shape), np.int8),
            "bias": ops.freeze(rng.integers(int(-reach), int(reach), outputs), np.int32),
            "weight_scale": ops.freeze(scales, np.float32),
            "activation": ops.Activation.NONE if last else rng.choice([*ops.Activation][:2]),
        }
        geometry = {} if op is ops.Dense else {"padding": ops.same_padding((h, w), (3, 3), (1, 1))}
        out = (outputs,) if op is ops.Dense else (h, w, outputs)
        scale = reach * source.scale * 0.005 / 50
        return build.node(op(**weights, **geometry), [x], tensor(f"t{x}", out, scale, int(rng.integers(-100, 20))))

    image = bool(rng.integers(0, 2))
    shape = (
        (int(rng.integers(3, 6)), int(rng.integers(3, 6)), int(rng.integers(1, 3)))
        if image
        else (int(rng.integers(3, 12)),)
    )
    x = build.input(tensor("x", shape, 0.02, -10))
    if image:
        x = layer(x, ops.Conv2d, 3)
        for kind in rng.permutation(["depthwise", "add", "max", "average", "pad", "concat", "clamp", "mean"])[
            :3
        ].tolist():
            t = build.tensor(x)
            h, w, c = t.shape
            match kind:
                case "depthwise":
                    x = layer(x, ops.DepthwiseConv2d, c)
                case "add":
                    y = layer(x, ops.Conv2d, c)
                    x = build.node(ops.Add(), [x, y], tensor(f"a{x}", t.shape, 2 * t.scale, -20))
                case "max" | "average" if min(h, w) > 1:
                    op: Any = (ops.MaxPool if kind == "max" else ops.AvgPool)((2, 2), (1, 2))
                    x = build.node(op, [x], replace(t, name=f"p{x}", shape=(h - 1, (w - 2) // 2 + 1, c)))
                case "pad":
                    x = build.node(
                        ops.Pad(((1, 0), (0, 1), (0, 0))), [x], replace(t, name=f"b{x}", shape=(h + 1, w + 1, c))
                    )
                case "concat":
                    x = build.node(ops.Concat(2), [x, x], replace(t, name=f"c{x}", shape=(h, w, 2 * c)))
                case "clamp":
                    x = build.node(ops.Relu(), [x], tensor(f"r{x}", t.shape, t.scale, -120))
                case "mean":
                    x = build.node(ops.Mean((0,), True), [x], tensor(f"m{x}", (1, w, c), t.scale / 2, -10))
        x = build.node(ops.Reshape(), [x], replace(build.tensor(x), name="flat", shape=(build.tensor(x).size,)))
    x = layer(layer(x, ops.Dense, 8), ops.Dense, int(rng.integers(2, 6)), last=True)
    if rng.random() < 0.3:
        x = build.node(ops.Softmax(), [x], Tensor("softmax", build.tensor(x).shape, "int8", 1 / 256, -128))
    return build.finish(x)


def case(seed: int) -> Case | None:
    """The case of a seed; None where its network has no decision, or no region that is harder than intervals show."""
    rng = np.random.default_rng(seed)
    model = write_tflite(network(rng))
    try:
        program = program_of(model)
        search = Linear(program)
    except ModelError:
        return None
    x = rng.integers(-128, 128, (6, *program.values[program.input].shape))
    labels = run(program, x.astype(np.int8)).reshape(len(x), -1).argmax(1)
    proved = [largest(search, x[i], int(label)) for i, label in enumerate(labels)]
    easy = [r for r in proved if r is not None and not r.verdict.sheets]  # type: ignore[union-attr]
    hard = [varied(rng, search, r) for r in proved if r is not None and r not in easy]
    lo, hi = (np.clip(x[0] + by, -128, 127).astype(np.int8) for by in (-2, 2))
    lost = Record(0, (int(labels[0]) + 1) % search.checker.goal.classes, lo, hi, x[0].astype(np.int8))
    if not hard:
        return None
    some = [*_sample(rng, hard, 5), *_sample(rng, easy, 2), lost, replace(hard[0], verdict=None)]
    records = [replace(r, sample=n) for n, r in enumerate(some)]
    proof = Proof(hashlib.sha256(model).digest(), TFLM.name, len(records), search.slopes, records)
    return Case(model, program, proof, TfliteMutator(model))


def largest(search: Linear, x: Array, label: int) -> Record | None:
    """A robust record about the largest of some balls around x that can be proved: little is to spare there."""
    found = None
    for radius in (1, 2, 3, 4, 6, 8, 12):
        lo, hi = (np.clip(x + by, -128, 127).astype(np.int8) for by in (-radius, radius))
        verdict = grown(search, lo, hi, label, 2)
        if verdict is None:
            break
        found = Record(0, label, lo, hi, verdict)
    return found


def grown(search: Linear, lo: Array, hi: Array, label: int, depth: int) -> Robust | None:
    """A proof by lines, by splits of the widest input element in the middle where there is none; None where that ends."""
    one = np.array([0])
    verdict = search.records(lo[None], hi[None], one, np.array([label]))[0].verdict
    if isinstance(verdict, Robust):
        return verdict
    width = (hi.astype(int) - lo).ravel()
    at = int(width.argmax())
    if not depth or not width[at]:
        return None
    middle = int(lo.ravel()[at]) + (int(width[at]) + 1) // 2
    lower_hi, upper_lo = hi.copy(), lo.copy()
    lower_hi.reshape(-1)[at], upper_lo.reshape(-1)[at] = middle - 1, middle
    below, above = grown(search, lo, lower_hi, label, depth - 1), grown(search, upper_lo, hi, label, depth - 1)
    if below is None or above is None:
        return None
    trees = (_moved(below, 0), _moved(above, len(below.sheets)))
    return Robust((*below.sheets, *above.sheets), (), Split(search.program.input, at, middle, *trees))


def _moved(part: Robust, by: int) -> Tree:
    """The tree of a part of a region among the sheets of the whole; what bounded its root bounds its leaf."""

    def moved(tree: Tree) -> Tree:
        if isinstance(tree, Split):
            return replace(tree, below=moved(tree.below), above=moved(tree.above))
        rows = tuple(row if row.sheet is None else replace(row, sheet=row.sheet + by) for row in tree.rows)
        tighten = tree.tighten or part.tighten
        return Leaf(rows, tuple(replace(t, sheet=t.sheet + by) for t in tighten))

    return moved(part.tree)


def varied(rng: np.random.Generator, search: Linear, claim: Record) -> Record:
    """The record with a split of an accumulator or with multipliers in front of its tree, where it still holds."""
    verdict = claim.verdict
    assert isinstance(verdict, Robust)
    known, _ = search.checker.relaxation.forward(claim.lower[None], claim.upper[None])
    value = int(rng.choice([s.out for s in search.program.steps if isinstance(s.atom, Affine)]))
    element = int(rng.integers(0, known[value][0].size))
    ends = [int(b.reshape(-1)[element]) for b in known[value]]
    multiplier = Multiplier(value, element, int(rng.integers(-200, 200)), int(rng.integers(8, 16)))

    def with_multiplier(tree: Tree) -> Tree:
        if isinstance(tree, Split):
            return replace(tree, below=with_multiplier(tree.below), above=with_multiplier(tree.above))
        return replace(
            tree, rows=tuple(r if r.sheet is None else replace(r, multipliers=(multiplier,)) for r in tree.rows)
        )

    changed = with_multiplier(verdict.tree) if rng.random() < 0.5 else verdict.tree
    other = replace(
        claim, verdict=replace(verdict, tree=Split(value, element, (ends[0] + ends[1]) // 2, changed, changed))
    )
    return other if search.checker.holds([other])[0] else claim


def _sample(rng: np.random.Generator, listed: list[Record], most: int) -> list[Record]:
    return [listed[i] for i in sorted(rng.permutation(len(listed))[:most].tolist())]


@functools.cache
def cases(count: int) -> list[Case]:
    """The first `count` cases."""
    return list(itertools.islice((made for made in map(case, itertools.count()) if made is not None), count))
