"""What has to hold at a file's output: the label's class wins. Which value decides, and which margins there are enough.

A win is strict, and so holds under any argmax; or, for programs of `first_maximum`, under one that takes the first of equal
maxima: strict over the classes before the label, no less than those behind it. Before a softmax its input decides: `softmax` says which
of its margins separate its outputs, and outputs of one row never fall where its inputs rise, so that a margin of 0 is kept.
"""

from __future__ import annotations

from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import INT32_MAX
from cactus_edge.ir.atoms import AnyOf, Gather, Program, ReshapeTo, Softmax
from cactus_edge.ir.evaluate import dequantize, run
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.ir.rules import (
    AnySoftmaxRule,
    FloatSoftmaxRule,
    ScaledSoftmaxRule,
    SoftmaxRule,
    TableSoftmaxRule,
)
from cactus_edge.verify.softmax import float_softmax_separates, softmax_separates, table_softmax_separates
from cactus_edge.verify.tail import find_tail

Bools = npt.NDArray[np.bool_]


class Goal:
    """The win of one program. logits: the value that decides, over `classes`; tail: the end of the network before it.

    Raises UnsupportedError where the program's end has no decision rule.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.definite, self.first_maximum = program, program.definite, program.first_maximum
        self.softmaxes, self.logits = _logits(program)
        self.classes = program.output_tensor.size
        _check_end(program, self.softmaxes)
        self.tail = find_tail(program, self.logits, self.classes)

    def won(self, margins: Int64, labels: Int64) -> Bools:
        """[N, classes]: whether lower bounds of the logit margins imply that y wins over j at the output; True at j = y."""
        won = margins >= 1
        for softmax in self.softmaxes:
            won &= _separates(softmax, 255 - np.clip(margins, 0, 255))
        won |= (margins >= 0) & self.may_tie(labels)
        won[np.arange(len(labels)), labels] = True
        return won

    def may_tie(self, labels: Int64) -> Bools:
        """[N, classes]: which classes the label wins over with an equal output."""
        return self.first_maximum & (np.arange(self.classes) > labels[:, None])

    def right(self, samples: Codes, low: Int64, high: Int64, labels: Int64) -> Bools:
        """[N]: whether the label wins at points of codes `samples`, whose logits are bounded by low, high [N, classes]. Of a program that
        is one function, bounds that meet are the logits; where they do not it is run."""
        found = every(self.won(low[np.arange(len(labels)), labels][:, None] - high, labels))
        if self.definite:
            known = every(low == high)
            for softmax in self.softmaxes:
                found[known] = wins(softmax.apply(low[known]), labels[known], self.first_maximum)
            if not known.all():
                out = run(self.program, samples[~known]).reshape(-1, self.classes)
                found[~known] = wins(out, labels[~known], self.first_maximum)
        return found


def wins(output: npt.NDArray[Any], labels: Int64, first_maximum: bool = False) -> Bools:
    """[N]: whether output[n, labels[n]] is above every other of output [N, K]; with first_maximum equal ones behind it do not count."""
    own, after = output[np.arange(len(labels)), labels][:, None], np.arange(output.shape[1]) - labels[:, None]
    return every((own > output) | ((own == output) & ((after >= 0) if first_maximum else (after == 0))))


def every(rows: Bools) -> Bools:
    """Whether a whole row [N, K] holds, [N]."""
    return np.asarray(rows.all(1))


def _logits(program: Program) -> tuple[tuple[AnySoftmaxRule, ...], int]:
    """Every rule of the softmax that the output holds, in whatever shape, and the value that decides: its input, else the output."""
    writer, value = {step.out: step for step in program.steps}, program.output
    while (step := writer.get(value)) is not None and step.atom == Gather(ReshapeTo(program.values[value].shape)):
        value = step.args[0]
    if step is None:
        return (), program.output
    atoms = step.atom.atoms if isinstance(step.atom, AnyOf) else (step.atom,)
    found, shape = tuple(a.rule for a in atoms if isinstance(a, Softmax)), program.values[value].shape
    if found and shape[-1] != program.output_tensor.size:
        raise UnsupportedError(f"softmax over rows of {shape}: the output is not one row of classes")
    return (found, step.args[0]) if found else ((), program.output)


def _check_end(program: Program, softmaxes: tuple[AnySoftmaxRule, ...]) -> None:
    tensor = program.output_tensor
    if tensor.size < 2:
        raise UnsupportedError(f"the output {tensor.name!r} has {tensor.size} element; a decision needs two classes")
    if not all(map(_rises, softmaxes)):
        raise UnsupportedError("the softmax's table of exponentials is not monotone")
    least, most = tensor.codes
    codes = np.arange(least, most + 1).astype(tensor.dtype)
    if program.float_output and not (np.diff(dequantize(codes, tensor.scale, tensor.zero_point)) > 0).all():
        raise UnsupportedError(f"the output {tensor.name!r} has codes that dequantise to equal floats: wins may tie")


def _separates(softmax: AnySoftmaxRule, behind: Int64) -> Bools:
    """[N, K]: whether its output of the winner exceeds those whose exponentials are bounded by the entries `behind`."""
    match softmax:
        case SoftmaxRule(exponentials):
            return softmax_separates(exponentials[behind], INT32_MAX)
        case FloatSoftmaxRule(table):
            return float_softmax_separates(table[behind])
        case ScaledSoftmaxRule(scaled):
            return float_softmax_separates(scaled[behind] / scaled[-1].astype(np.float64))
        case TableSoftmaxRule(table16):
            return table_softmax_separates(table16[behind])
        case _:
            assert_never(softmax)


def _rises(softmax: AnySoftmaxRule) -> bool:
    """Whether its exponentials are non-negative and non-decreasing, up to the one that `softmax` takes for the winner's."""
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
    return bool((np.diff(e) >= 0).all() and (e >= 0).all() and e[-1] == top)
