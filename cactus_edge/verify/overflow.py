"""The proof that nothing overflows, per op, over all inputs, for every order and spelling of each sum: int32, or, where a 64-bit
bias says so, the 2^47 up to which 64-bit sums are requantised.

An integer proof survives SIMD width, threads and compilers only where no sum can wrap. Each partial sum of sum_i w_i v_i
with |v_i| <= v, in any order and grouping, stays within v * sum |w_i|; so bounding that bounds them all. Two spellings
are in the field: sum w (x - z) + b, and sum w x + (b - z sum w); the bound for a mixture of both is given as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, assert_never

import numpy as np

from cactus_edge.errors import ModelError
from cactus_edge.ir.arith import INT32_MAX, WIDE_MAX, rdp
from cactus_edge.ir.atoms import (
    Affine,
    AnyOf,
    Atom,
    Between,
    FloatAverage,
    Gather,
    Isotone,
    Max,
    Monotone,
    Program,
    Softmax,
    Table,
)
from cactus_edge.ir.binary import (
    AddRule,
    BinaryRule,
    Extreme,
    FixedPointAddRule,
    FloatAddRule,
    FusedAddRule,
    MulRule,
    UnsignedMulRule,
    VectorAddRule,
)
from cactus_edge.ir.envelope import EnvelopeEnd
from cactus_edge.ir.ops import Int64
from cactus_edge.ir.rules import (
    FLOAT_REQUANTISE,
    REQUANTISE,
    AnySoftmaxRule,
    Clamp,
    Elementwise,
    FloatAffine,
    FloatRequantise,
    FloatRescale,
    Requantise,
    RoundDivide,
    SoftmaxRule,
    TableSoftmaxRule,
)

SOFTMAX_SUM = 2**28 - 1
"""Above it the rounding shift of the outputs would exceed 31, which gemmlowp's int32 code does not define."""


@dataclass(frozen=True)
class Fact:
    """|quantity| <= bound <= limit in op `node`, for every input of the network."""

    node: int
    op: str
    quantity: str
    bound: int
    limit: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def prove(program: Program) -> tuple[Fact, ...]:
    """One fact per quantity that integer arithmetic forms. Raises ModelError, naming the op, where a bound exceeds its limit."""
    facts: list[Fact] = []
    largest: dict[int, Int64] = {}
    for step in program.steps:
        source = largest.get(step.args[0], np.array([-program.codes[0]]))
        op = type(program.graph.nodes[step.node].op).__name__
        width = program.values[step.out].shape[-1:]
        for quantity, bound, limit in _quantities(step.atom, program.codes, source, *width):
            facts.append(Fact(step.node, op, quantity, bound, limit))
            if bound > limit:
                raise ModelError(
                    f"{program.graph.label(step.node)}: {quantity} may reach {bound}, beyond {limit}",
                    hint="smaller weights, a smaller bias or a larger output scale",
                )
        if isinstance(step.atom, Affine):
            largest[step.out] = _direct(step.atom, program.codes)
    return tuple(facts)


def _direct(atom: Affine, codes: tuple[int, int]) -> Int64:
    """Bound of every partial sum of W (x + offset) + b, per channel."""
    bound: Int64 = atom.linear.reach() * max(abs(x + atom.input_offset) for x in codes) + np.abs(atom.bias)
    return bound


def _quantities(atom: Atom, codes: tuple[int, int], source: Int64, width: int = 1) -> Iterator[tuple[str, int, int]]:
    """(name, bound, limit) of each quantity of one step on `codes` whose first argument is bounded by `source`, its rows `width` long."""
    match atom:
        case Affine(linear, offset, bias):
            reach = linear.reach()
            yield "sums of w * (x - z) and the bias", int(_direct(atom, codes).max()), atom.limit
            # |sum w| <= sum |w| holds at every position, padded or not.
            folded = int((reach * (max(map(abs, codes)) + abs(offset)) + np.abs(bias)).max())
            yield "sums of w * x and the bias, z folded anywhere", folded, atom.limit
        case Monotone(rule):
            yield from _rule_quantities(rule, source)
        case Between(lowest, _, _):
            # Both ends scale the same value.
            yield from _rule_quantities(lowest, source)
        case Isotone(add, _):
            yield from _sum_quantities(add, codes)
        case Softmax(rule):
            yield from _softmax_quantities(rule, width)
        case Table() | Max() | FloatAverage() | Gather():
            pass
        case AnyOf(atoms):
            yield from _worst(q for a in atoms for q in _quantities(a, codes, source, width))
        case _:
            assert_never(atom)


def _worst(found: Iterable[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
    """Of each quantity the largest bound and the least limit."""
    worst: dict[str, tuple[int, int]] = {}
    for quantity, bound, limit in found:
        most, least = worst.get(quantity, (bound, limit))
        worst[quantity] = max(bound, most), min(limit, least)
    yield from ((quantity, bound, limit) for quantity, (bound, limit) in worst.items())


def _softmax_quantities(rule: AnySoftmaxRule, width: int) -> Iterator[tuple[str, int, int]]:
    if isinstance(rule, SoftmaxRule):
        yield "the sum of exponentials (Q12.19)", width * int(rdp(rule.exponentials, 12).max()), SOFTMAX_SUM
    elif isinstance(rule, TableSoftmaxRule):
        yield "the sum of exponentials", width * int(rule.table.max()), SOFTMAX_SUM


def _sum_quantities(add: BinaryRule, ends: tuple[int, int]) -> Iterator[tuple[str, int, int]]:
    codes = np.array(ends)
    match add:
        case AddRule() | VectorAddRule():
            lefts = (0, 0) if isinstance(add, AddRule) else add.shifts
            shifted = [
                int(np.abs(codes - z).max()) << (add.left_shift + s)
                for z, s in zip(add.zero_points, lefts, strict=True)
            ]
            yield "an argument times 2^left_shift", max(shifted), INT32_MAX
            total = sum(int(np.abs(add.term(i, codes)).max()) for i in range(2))
            yield "the sum of both terms", total << max(add.output_shift, 0), INT32_MAX
            result = add.scaled(np.array([-total, total]), add.output_multiplier, add.output_shift)
            yield "the requantised sum and its zero point", int(np.abs(result).max()) + abs(add.zero_point), INT32_MAX
        case MulRule(zero_points, rule):
            product = int(np.prod([np.abs(codes - z).max() for z in zero_points]))
            yield from _rule_quantities(rule, np.array([product]))
        case FixedPointAddRule():
            # x * m and z * m as separate terms, in any order, with the rounding constant.
            largest = int(np.abs(codes).max())
            terms = sum(m * (largest + abs(z)) for m, z in zip(add.multipliers, add.zero_points, strict=True))
            yield "the sum of both products, zero points folded anywhere", terms + (1 << (add.shift - 1)), INT32_MAX
        case FusedAddRule() | FloatAddRule() | UnsignedMulRule() | Extreme():
            # On floats; what is converted to an integer is clamped to 8 bits before, or small by the ratios it takes. Or on codes.
            pass
        case _:
            assert_never(add)


def _rule_quantities(rule: Elementwise, source: Int64) -> Iterator[tuple[str, int, int]]:
    match rule:
        case Requantise():
            yield from _fixed_quantities(rule, source + abs(rule.input_zero_point))
        case FloatRequantise():
            yield from _float_quantities(rule, source + abs(rule.input_zero_point))
        case FloatAffine() | EnvelopeEnd():
            yield "the value that becomes a float", int(source.max()), INT32_MAX
        case RoundDivide(divisor):
            yield "the sum and half its divisor", int((source + divisor // 2).max()), INT32_MAX
        case Clamp() | FloatRescale():
            pass
        case _:
            assert_never(rule)


def _fixed_quantities(rule: Requantise, value: Int64) -> Iterator[tuple[str, int, int]]:
    if rule.family == "W":
        yield "the value that is multiplied in 64 bits", int(value.max()), WIDE_MAX
    else:
        # Family S multiplies the value itself, in 64 bits.
        left = 0 * rule.shift if rule.family == "S" else np.maximum(rule.shift, 0)
        yield "the value times 2^max(shift, 0)", int((value << left).max()), INT32_MAX
    family = REQUANTISE[rule.family]
    scaled = max(int(np.abs(family(v, rule.multiplier, rule.shift)).max()) for v in (value, -value))
    yield "the requantised value and its zero point", scaled + abs(rule.zero_point), INT32_MAX


def _float_quantities(rule: FloatRequantise, value: Int64) -> Iterator[tuple[str, int, int]]:
    # A sum of 64 bits has its own limit, far below where double would round it.
    yield "the value that becomes a float", int(value.max()), WIDE_MAX if rule.family == "E" else INT32_MAX
    if rule.family != "F":
        # Converted to int32 before it is clamped; family F clamps first.
        scaled = max(np.abs(FLOAT_REQUANTISE[rule.family](v, rule.multiplier)).max() for v in (value, -value))
        yield "the requantised value and its zero point", int(scaled) + abs(rule.zero_point), INT32_MAX
