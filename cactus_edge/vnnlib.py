"""Properties of classifiers in VNN-LIB (https://www.vnnlib.org): a box of inputs, and which orders of the outputs are unsafe.

    (declare-const X_0 Real) .. (declare-const Y_0 Real) ..
    (assert (>= X_0 0.1)) (assert (<= X_0 0.2)) ..
    (assert (or (and (>= Y_0 Y_5)) (and (>= Y_1 Y_5)) ..))     or one conjunction: (assert (>= Y_3 Y_5)) ..

The property holds ("unsat") iff no input of the box has unsafe outputs. Numbers are read exactly, as rationals. Whatever else
VNN-LIB and SMT-LIB can say is refused, with its line: outputs compared with numbers, inputs inside a disjunction, sums.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError

MAX_BYTES = 1 << 27
"""Of a property, unpacked."""

Token = tuple[str, int]
"""A word or a parenthesis, and its line."""

NUMBER = r"[+-]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})([eE][+-]?\d{1,3})?"
VARIABLE = r"([XY])_(0|[1-9]\d{0,7})"
FLIPPED = {"<=": ">=", "<": ">", ">=": "<=", ">": "<"}
IDLE = ("check-sat", "set-logic", "set-info", "set-option", "exit")


@dataclass(frozen=True)
class Order:
    """Output `above` is at least output `below`, or strictly above it."""

    above: int
    below: int
    strict: bool = False


@dataclass(frozen=True)
class Property:
    """lower, upper: of each input, in the file's order. unsafe: outputs for which all orders of any one conjunction hold."""

    name: str
    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    outputs: int
    unsafe: tuple[tuple[Order, ...], ...]

    def violated(self, output: npt.NDArray[Any]) -> bool:
        """Whether one output [K] is unsafe; of codes of one scale, or of reals."""

        def holds(o: Order) -> bool:
            return bool(output[o.above] > output[o.below] or (not o.strict and output[o.above] == output[o.below]))

        return any(all(map(holds, orders)) for orders in self.unsafe)

    def labels(self, first_maximum: bool) -> list[int]:
        """The classes a win of which is safe, whatever else the outputs are: each conjunction has an order that it excludes.

        A win is strict, or first_maximum: no less than the classes behind it.
        """
        excluded = [
            {o.below for o in orders if o.above != o.below and (not first_maximum or o.strict or o.above < o.below)}
            for orders in self.unsafe
        ]
        return sorted(set.intersection(*excluded)) if excluded else []


def read(path: Path) -> Property:
    """The property of a .vnnlib or .vnnlib.gz. Raises InputError, naming file and line, for what is beyond the form above."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            with gzip.open(path) as stream:
                data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", hint="check the path") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="check the path") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES} bytes")
    try:
        return parse(data.decode("ascii"), path.name)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no ASCII text: {error}") from error


def parse(text: str, name: str) -> Property:
    """The property in `text`. Raises as `read` does."""
    return _Parser(text, name).property()


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.tokens = list(_tokens(text))
        self.at = 0
        self.declared: dict[str, set[int]] = {"X": set(), "Y": set()}
        self.ends: dict[str, dict[int, Fraction]] = {">=": {}, "<=": {}}
        self.everywhere: list[Order] = []
        self.either: list[tuple[Order, ...]] | None = None

    def property(self) -> Property:
        while self.at < len(self.tokens):
            self._command()
        counts = {}
        for kind, numbers in self.declared.items():
            counts[kind] = len(numbers)
            if not numbers or max(numbers) != len(numbers) - 1:
                raise InputError(
                    f"{self.name}: {kind} are not declared as {kind}_0, {kind}_1, ... without gaps",
                    hint=f"(declare-const {kind}_0 Real), one for each; is this the file, and whole?",
                )
        for side, ends in self.ends.items():
            if missing := sorted(self.declared["X"] - ends.keys()):
                raise InputError(f"{self.name}: X_{missing[0]} has no bound {side}", hint="every input needs two")
        if self.either is None and not self.everywhere:
            raise InputError(
                f"{self.name}: nothing is said of the outputs",
                hint="(assert (or (and (>= Y_0 Y_5)) ...)), what is unsafe",
            )
        lower, upper = ([self.ends[side][i] for i in range(counts["X"])] for side in (">=", "<="))
        unsafe = [(*self.everywhere, *orders) for orders in ([()] if self.either is None else self.either)]
        return Property(self.name, tuple(lower), tuple(upper), counts["Y"], tuple(unsafe))

    def _fail(self, what: str, line: int) -> InputError:
        return InputError(
            f"{self.name}, line {line}: {what}",
            hint="a box (>= X_0 0.1) (<= X_0 0.2) ..., and (or (and (>= Y_0 Y_5)) ...) or one conjunction of the outputs",
        )

    def _take(self, expected: str = "") -> Token:
        if self.at == len(self.tokens):
            raise InputError(f"{self.name}: the file ends inside an expression", hint="is it truncated?")
        word, line = self.tokens[self.at]
        if expected and word != expected:
            raise self._fail(f"{word!r} where {expected!r} is expected", line)
        self.at += 1
        return word, line

    def _peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def _command(self) -> None:
        self._take("(")
        word, line = self._take()
        if word in ("declare-const", "declare-fun"):
            variable, line = self._take()
            found = re.fullmatch(VARIABLE, variable)
            if found is None:
                raise self._fail(f"a declaration of {variable!r}", line)
            if word == "declare-fun":
                self._take("(")
                self._take(")")
            self._take("Real")
            if int(found[2]) in self.declared[found[1]]:
                raise self._fail(f"{variable} is declared twice", line)
            self.declared[found[1]].add(int(found[2]))
        elif word == "assert":
            self._assertion()
        elif word in IDLE:
            while self._peek() not in ("(", ")", ""):
                self._take()
        else:
            raise self._fail(f"the command {word!r}", line)
        self._take(")")

    def _assertion(self) -> None:
        """A conjunction, or the one disjunction."""
        self._take("(")
        word, line = self._take()
        if word == "or":
            if self.either is not None:
                raise self._fail("a second disjunction", line)
            self.either = []
            while self._peek() == "(":
                self.either.append(tuple(self._conjunction()))
            if not self.either:
                raise self._fail("an empty disjunction", line)
        elif word == "and":
            while self._peek() == "(":
                self._assertion()
        else:
            self._literal(word, line, self.everywhere)
        self._take(")")

    def _conjunction(self) -> list[Order]:
        """Orders of outputs only."""
        found: list[Order] = []
        self._take("(")
        word, line = self._take()
        if word == "and":
            while self._peek() == "(":
                found += self._conjunction()
        else:
            self._literal(word, line, found, inputs=False)
        self._take(")")
        return found

    def _literal(self, relation: str, line: int, orders: list[Order], inputs: bool = True) -> None:
        """Of an input and a number, or of two outputs."""
        if relation not in FLIPPED:
            raise self._fail(f"{relation!r}, which is none of <= >= < > and or", line)
        left, right = self._term(), self._term()
        if isinstance(left, Fraction):
            left, right, relation = right, left, FLIPPED[relation]
        match left, right:
            case ("X", int(i)), Fraction() as end:
                if relation not in self.ends or not inputs:
                    raise self._fail(f"a bound {relation} of X_{i}" + ("" if inputs else " inside a disjunction"), line)
                better = max if relation == ">=" else min
                self.ends[relation][i] = better(end, self.ends[relation].get(i, end))
            case ("Y", int(i)), ("Y", int(j)):
                above, below = (i, j) if relation.startswith(">") else (j, i)
                orders.append(Order(above, below, relation in "<>"))
            case _:
                raise self._fail("neither an input and a number nor two outputs are compared", line)

    def _term(self) -> tuple[str, int] | Fraction:
        word, line = self._take()
        if word == "(":
            operator, _ = self._take()
            first = self._term()
            second = self._term() if self._peek() != ")" else None
            self._take(")")
            match operator, first, second:
                case "-", Fraction() as a, None:
                    return -a
                case "/", Fraction() as a, Fraction() as b if b:
                    return a / b
            raise self._fail(f"a term with {operator!r}", line)
        if re.fullmatch(NUMBER, word):
            return Fraction(word)
        found = re.fullmatch(VARIABLE, word)
        if found is None or int(found[2]) not in self.declared[found[1]]:
            raise self._fail(f"{word!r}, which is neither a number nor declared", line)
        return found[1], int(found[2])


def _tokens(text: str) -> Iterator[Token]:
    for number, line in enumerate(text.splitlines(), 1):
        for word in re.findall(r"[()]|[^\s()]+", line.split(";", 1)[0]):
            yield word, number


def shaped(numbers: tuple[Fraction, ...], shape: tuple[int, ...], channels_first: bool) -> npt.NDArray[np.object_]:
    """Exact numbers [*shape], images channel last; channels_first: the file counts them C, H, W."""
    flat = np.array(numbers, object)
    if channels_first and len(shape) == 3:
        return np.moveaxis(flat.reshape(shape[2], *shape[:2]), 0, 2)
    return flat.reshape(shape)
