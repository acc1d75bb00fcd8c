"""A chain of layers in one region, condensed to what is not constant there: a small dense matrix for each layer.

Most rules of a trained network are constant in a region: clamped for all its inputs. What is left are a few hundred elements
and the dense matrices between them, whatever the layers were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from cactus_edge.certify.slopes import Twin
from cactus_edge.ir.atoms import Affine, Gather, Program, ReshapeTo, Step
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.interval import Bounds
from cactus_edge.verify.lines import Single

if TYPE_CHECKING:
    from torch import Tensor

Layer = tuple[Step, Step | None]
"""A layer of weights, and the rule that writes what it reads; None: it reads the input."""

ROWS = 256
"""Rows of a layer's matrix that are made at once: bounds the memory."""

ENTRIES = 1 << 24
"""Of all matrices, up to which a region has its own."""


def chain(program: Program, value: int, twin: Twin) -> list[Layer] | None:
    """The layers below the accumulators `value`, from there to the input; None where they are no chain of weights and rules."""
    writer = {step.out: step for step in program.steps}

    def source(of: int) -> int:
        while (
            of in writer and isinstance(atom := writer[of].atom, Gather) and isinstance(atom.rearrangement, ReshapeTo)
        ):
            of = writer[of].args[0]
        return of

    layers: list[Layer] = []
    while True:
        layer = writer.get(source(value))
        if layer is None or not isinstance(layer.atom, Affine) or layer.out not in twin.exact.exact:
            return None
        read = source(layer.args[0])
        if read == program.input:
            return [*layers, (layer, None)]
        rule = writer.get(read)
        if rule is None or not isinstance(twin.exact.lines.get(read), Single):
            return None
        layers.append((layer, rule))
        value = rule.args[0]


def entries(program: Program, layers: Sequence[Layer], known: Sequence[Bounds]) -> int:
    """Of the matrices that `condensed` makes."""
    rows, total = prod(program.values[layers[0][0].out].shape), 0
    for _, rule in layers:
        low, high = known[program.input if rule is None else rule.out]
        columns = int((low < high).sum())
        rows, total = columns, total + rows * columns
    return total


@dataclass(frozen=True, eq=False)
class Rule:
    """Of a rule's elements [K], in steps of its result: its slope m, and the constants of its lines (`lines.Single`)."""

    m: Tensor
    most: Tensor
    least: Tensor


@dataclass(frozen=True, eq=False)
class Matrix:
    """W [K, kept inputs] and bias [K] of the kept elements of a layer, the constant inputs in it. rule: that writes the inputs,
    kept: their flat indices, span: their place among all rules' kept elements; `lines`: what the rule's are made of."""

    weight: Tensor
    bias: Tensor
    kept: Int64
    rule: Step | None
    span: slice
    lines: Rule | None


def condensed(twin: Twin, layers: Sequence[Layer], known: Sequence[Bounds]) -> list[Matrix]:
    """The matrices of `layers`, in that order, for the region whose values are bounded by `known` [*shape]."""
    program, found = twin.program, list[Matrix]()
    rows, at = np.arange(prod(program.values[layers[0][0].out].shape)), 0
    for layer, rule in layers:
        low, high = (b.reshape(-1) for b in known[program.input if rule is None else rule.out])
        kept = np.flatnonzero(low < high)
        span = slice(at, at if rule is None else at + len(kept))
        weight, bias = _matrix(twin, layer, rows, kept, low)
        found.append(Matrix(weight, bias, kept, rule, span, None if rule is None else _rule(twin, rule, kept)))
        rows, at = kept, span.stop
    return found


def _matrix(twin: Twin, step: Step, rows: Int64, kept: Int64, fixed: Int64) -> tuple[Tensor, Tensor]:
    """The layer's rows over its kept inputs, and their bias with what the `fixed` others add."""
    torch, atom = twin.torch, step.atom
    assert isinstance(atom, Affine)
    shape = twin.program.values[step.out].shape
    rest = fixed.astype(np.float64) + atom.input_offset
    rest[kept] = atom.input_offset
    columns, others = (torch.from_numpy(x).to(twin.device) for x in (kept, rest))
    bias = torch.from_numpy(np.broadcast_to(atom.bias, shape).reshape(-1)[rows].astype(np.float64)).to(twin.device)
    weight = torch.zeros(len(rows), len(kept), device=twin.device)
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        unit = np.zeros((1, len(some), prod(shape)), np.float32)
        unit[0, np.arange(len(some)), some] = 1
        whole = twin.adjoints[step.out](twin.tensor(unit).reshape(1, len(some), *shape)).reshape(len(some), -1)
        weight[start : start + ROWS] = whole[:, columns]
        bias[start : start + ROWS] += whole.double() @ others
    return weight, bias.float()


def _rule(twin: Twin, step: Step, kept: Int64) -> Rule:
    rule, shape = twin.exact.lines[step.out], twin.program.values[step.out].shape
    assert isinstance(rule, Single)
    constants = (np.broadcast_to(c, (1, *shape)).reshape(-1)[kept] for c in (rule.p[0], rule.most, rule.least))
    return Rule(*(twin.tensor(c / 2.0**rule.q) for c in constants))
