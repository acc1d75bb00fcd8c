"""The program of several runtimes at once: for every element of every layer, in every run, what any one of them computes.

A verdict for it holds on each of the runtimes, on a network whose parts run on different ones, and where the choice changes from one
element to the next. One about each runtime by itself is tighter, and says less.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar

import numpy as np

from cactus_edge.errors import InternalError, UnsupportedError
from cactus_edge.ir.atoms import Affine, AnyOf, Program, Step
from cactus_edge.ir.inputs import MixedQuantizeRule, QuantizeRule
from cactus_edge.ir.profile import Profile

T = TypeVar("T")


def mix(programs: Sequence[Program]) -> Program:
    """The mixture of one graph's programs, one per profile; the program itself where there is one only.

    Its profile has no rules, so that nothing can be lowered for it. Raises ValueError for no program, or for two graphs,
    UnsupportedError where profiles multiply by different weights (bilinear resizing).
    """
    if len({p.graph.digest() for p in programs}) != 1:
        raise ValueError("a mixture is made of programs of one graph")
    return _joined(programs) if len(programs) > 1 else programs[0]


def _joined(programs: Sequence[Program]) -> Program:
    first, *rest = programs
    if any((p.values, p.input, p.output) != (first.values, first.input, first.output) for p in rest):
        raise InternalError(f"the programs of {first.graph.outputs} have different values")
    names = ",".join(p.profile.name for p in programs)
    return replace(
        first,
        profile=Profile(names, f"any of {names}", "", "", first.profile.reads, {}, ""),
        steps=tuple(_mixed(step) for step in zip(*(p.steps for p in programs), strict=True)),
        quantize=MixedQuantizeRule(_distinct(_rules(programs))),
    )


def _rules(programs: Sequence[Program]) -> list[QuantizeRule]:
    return [r for p in programs for r in ((p.quantize,) if isinstance(p.quantize, QuantizeRule) else p.quantize.rules)]


def _mixed(steps: Sequence[Step]) -> Step:
    """One step of the mixture from the same step of each program."""
    first = steps[0]
    if any((s.args, s.out, s.node) != (first.args, first.out, first.node) for s in steps):
        raise InternalError(f"the profiles' steps of node {first.node} do not correspond")
    atoms = _distinct(a for s in steps for a in (s.atom.atoms if isinstance(s.atom, AnyOf) else (s.atom,)))
    if len(atoms) == 1:
        return first
    if any(isinstance(atom, Affine) for atom in atoms):
        raise UnsupportedError(
            f"node {first.node}: the profiles multiply by different weights, which no mixture of rules describes",
            hint="one --profile at a time",
        )
    return replace(first, atom=AnyOf(atoms))


def _distinct(items: Iterable[T]) -> tuple[T, ...]:
    """The items without those that have the content of an earlier one."""
    return tuple({_content(item): item for item in reversed(list(items))}.values())[::-1]


def _content(value: object) -> Hashable:
    """What makes two rules or atoms the same function: their types and fields, arrays by their elements."""
    if is_dataclass(value):
        return type(value), *(_content(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple):
        return tuple(_content(v) for v in value)
    if isinstance(value, Hashable):
        return value
    raise InternalError(f"no content of a {type(value).__name__} to compare")
