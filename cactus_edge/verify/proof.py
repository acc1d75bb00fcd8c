"""Proof files: for each region of a data set how its verdict is shown, for a checker that computes every number itself.

Little endian, no padding; one or more proofs, one after the other. A proof:

    8 bytes    "CEPROOF" and the version, 1
    u64        length of this proof in bytes, these included
    32 bytes   SHA-256 of the model file
    u8, ASCII  name of the profile, or of the mixture
    u32 u32 u16  samples of the data set, elements of the input, classes
    u16 rules  each: u16 value, u8 Q, u8 0, u32 count, i32 p: the slopes of `lines`, ascending by value
    records    ascending by (sample, its boxes' order): u32 sample, u16 label, u8 verdict, i8 lower, i8 upper, and

    verdict 0, open: nothing.   verdict 2, refuted: i8 codes in the box that are no strict win of the label.
    verdict 1, robust: u16 sheets, each u8 k below and u8 k above for all elements of the rules' values; tightenings; a tree.
    tightenings: u8 count, each u16 value, u16 sheet, ascending by value: bound this accumulator by lines too.
    tree: u8 1, u16 value, u32 element, i32 t, the tree for v < t, the tree for v >= t; or
          u8 2, tightenings, u8 rows, each u16 class, u16 p, u16 q, u16 sheet (65535: none), u16 count of multipliers,
          each u16 value, u32 element, i32 mu, u8 s, ascending by value and element.

Values are those of `ir.atoms.Program`; a split, a tightening or a multiplier is of an Affine's accumulators, a split also of the
input. What all this means is in `check`. `parse` refuses whatever is not of this form.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import CertificateError
from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.ir.ops import Int8
from cactus_edge.verify.lines import Slope
from cactus_edge.verify.tail import FACTOR

MAGIC = b"CEPROOF\x01"

OPEN, ROBUST, REFUTED = 0, 1, 2
SPLIT, LEAF = 1, 2
NO_SHEET = 0xFFFF
DEEPEST = 200
"""Splits on one path."""
MOST_MU, MOST_S = 2**24, 60

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tighten:
    """Bound the accumulators `value` by lines with the slopes of a sheet."""

    value: int
    sheet: int


@dataclass(frozen=True)
class Multiplier:
    """Changes the coefficient of one accumulator by mu 2^-s."""

    value: int
    element: int
    mu: int
    s: int


@dataclass(frozen=True)
class Row:
    """How class `other` is separated: p acc_label - q acc_other bounded by lines (sheet), or over the last layer's box (None)."""

    other: int
    p: int
    q: int
    sheet: int | None
    multipliers: tuple[Multiplier, ...] = ()


@dataclass(frozen=True)
class Leaf:
    """A part of the region where each class is separated by the ends of its bounds or by a row."""

    rows: tuple[Row, ...]
    tighten: tuple[Tighten, ...] = ()


@dataclass(frozen=True)
class Split:
    """Two parts of the region: v[element] < threshold, and the rest."""

    value: int
    element: int
    threshold: int
    below: Tree
    above: Tree


Tree = Leaf | Split


@dataclass(frozen=True, eq=False)
class Robust:
    """sheets uint8 [2, S] each: k of the lines below and above."""

    sheets: tuple[Bytes, ...]
    tighten: tuple[Tighten, ...]
    tree: Tree


@dataclass(frozen=True, eq=False)
class Record:
    """One box of a sample and its verdict; None: open. int8 codes [*input shape] of a point that the label does not win: refuted."""

    sample: int
    label: int
    lower: Int8
    upper: Int8
    verdict: Robust | Int8 | None


@dataclass(frozen=True, eq=False)
class Proof:
    """The records about one file under one profile."""

    model_sha256: bytes
    profile: str
    samples: int
    slopes: Mapping[int, Slope]
    records: Sequence[Record]


def sheet_values(program: Program, slopes: Mapping[int, Slope]) -> dict[int, slice]:
    """Where each rule's value lies in a sheet's S elements."""
    at, found = 0, {}
    for value in sorted(slopes):
        size = prod(program.values[value].shape)
        found[value] = slice(at, at + size)
        at += size
    return found


def encode(program: Program, proof: Proof) -> bytes:
    """The bytes of one proof. Raises ValueError or struct.error for numbers out of their range."""
    name = proof.profile.encode("ascii")
    size = prod(program.values[program.input].shape)
    parts = [proof.model_sha256, struct.pack("<B", len(name)), name]
    parts.append(struct.pack("<IIHH", proof.samples, size, program.output_tensor.size, len(proof.slopes)))
    for value, slope in sorted(proof.slopes.items()):
        parts.append(struct.pack(f"<HBBI{len(slope.p)}i", value, slope.q, 0, len(slope.p), *slope.p))
    for record in proof.records:
        parts.extend(_record(record))
    body = b"".join(parts)
    return MAGIC + struct.pack("<Q", len(MAGIC) + 8 + len(body)) + body


def _record(record: Record) -> Iterator[bytes]:
    verdict = record.verdict
    kind = OPEN if verdict is None else ROBUST if isinstance(verdict, Robust) else REFUTED
    yield struct.pack("<IHB", record.sample, record.label, kind) + record.lower.tobytes() + record.upper.tobytes()
    if isinstance(verdict, Robust):
        yield struct.pack("<H", len(verdict.sheets))
        yield from (sheet.tobytes() for sheet in verdict.sheets)
        yield _tightenings(verdict.tighten)
        yield from _tree(verdict.tree)
    elif verdict is not None:
        yield verdict.astype(np.int8).tobytes()


def _tightenings(listed: Sequence[Tighten]) -> bytes:
    return struct.pack("<B", len(listed)) + b"".join(struct.pack("<HH", t.value, t.sheet) for t in listed)


def _tree(tree: Tree) -> Iterator[bytes]:
    if isinstance(tree, Split):
        yield struct.pack("<BHIi", SPLIT, tree.value, tree.element, tree.threshold)
        yield from _tree(tree.below)
        yield from _tree(tree.above)
        return
    yield struct.pack("<B", LEAF) + _tightenings(tree.tighten) + struct.pack("<B", len(tree.rows))
    for row in tree.rows:
        sheet = NO_SHEET if row.sheet is None else row.sheet
        yield struct.pack("<HHHHH", row.other, row.p, row.q, sheet, len(row.multipliers))
        yield from (struct.pack("<HIiB", m.value, m.element, m.mu, m.s) for m in row.multipliers)


def split(data: bytes) -> dict[str, bytes]:
    """The bytes of each proof of a file by its profile's name. Raises CertificateError for what is no sequence of proofs."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        reader = _Reader(data, at)
        (length,) = reader.take("<8xQ") if data[at : at + 8] == MAGIC else (0,)
        if not 48 <= length <= len(data) - at:
            raise CertificateError(f"no proof of version 1 at byte {at}", hint="is it the file that certify wrote?")
        reader.skip(32)
        (count,) = reader.take("<B")
        name = reader.skip(count).decode("ascii", "replace")
        if name in found:
            raise CertificateError(f"two proofs for profile {name!r}")
        found[name] = data[at : at + length]
        at += length
    return found


def parse(data: bytes, program: Program) -> Proof:
    """The one proof in `data`, about `program`. Raises CertificateError for anything that is not of the form above."""
    reader = _Reader(data, 0)
    if reader.skip(8) != MAGIC or reader.take("<Q") != (len(data),):
        raise CertificateError("not one proof of version 1")
    digest = reader.skip(32)
    name = reader.skip(*reader.take("<B")).decode("ascii", "replace")
    samples, size, classes, rules = reader.take("<IIHH")
    expected = prod(program.values[program.input].shape), program.output_tensor.size
    if (size, classes) != expected or name != program.profile.name:
        raise CertificateError(
            f"the proof is about {size} inputs, {classes} classes and profile {name!r}, "
            f"expected {expected[0]}, {expected[1]} and {program.profile.name!r}"
        )
    slopes: dict[int, Slope] = {}
    for _ in range(rules):
        value, q, zero, count = reader.take("<HBBI")
        if zero or count > size + 2**17 or value >= len(program.values) or value <= max(slopes, default=-1):
            raise CertificateError(f"the slopes of value {value} are out of order or of another form")
        slopes[value] = Slope(q, reader.take(f"<{count}i"))
    records = _Records(reader, program, sum(prod(program.values[v].shape) for v in slopes), samples)
    return Proof(digest, name, samples, slopes, list(records))


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def skip(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise CertificateError(f"the proof ends at byte {len(self.data)}, inside of something")
        self.at += count
        return part

    def take(self, form: str) -> tuple[int, ...]:
        numbers: tuple[int, ...] = struct.unpack(form, self.skip(struct.calcsize(form)))
        return numbers


class _Records:
    """The records from the reader's position to the end of its data."""

    def __init__(self, reader: _Reader, program: Program, elements: int, samples: int) -> None:
        self.reader, self.elements, self.samples = reader, elements, samples
        self.shape = program.values[program.input].shape
        self.classes = program.output_tensor.size
        self.accumulators = {
            s.out: prod(program.values[s.out].shape) for s in program.steps if isinstance(s.atom, Affine)
        }
        self.splittable = {program.input: prod(self.shape), **self.accumulators}

    def __iter__(self) -> Iterator[Record]:
        last = 0
        while self.reader.at < len(self.reader.data):
            sample, label, kind = self.reader.take("<IHB")
            self._must(last <= sample < self.samples, f"sample {sample} of {self.samples} stands after {last}")
            self._must(label < self.classes, f"label {label} of sample {sample}")
            last = sample
            lower, upper = self._codes(), self._codes()
            self._must(bool((lower <= upper).all()), f"an empty box of sample {sample}")
            match kind:
                case 0:
                    yield Record(sample, label, lower, upper, None)
                case 1:
                    yield Record(sample, label, lower, upper, self._robust(label))
                case 2:
                    yield Record(sample, label, lower, upper, self._codes())
                case _:
                    raise CertificateError(f"verdict {kind} of sample {sample}")

    def _must(self, good: bool, what: str) -> None:
        if not good:
            raise CertificateError(f"{what}, before byte {self.reader.at} of the proof")

    def _codes(self) -> Int8:
        return np.frombuffer(self.reader.skip(prod(self.shape)), np.int8).reshape(self.shape)

    def _robust(self, label: int) -> Robust:
        (count,) = self.reader.take("<H")
        sheets = tuple(
            np.frombuffer(self.reader.skip(2 * self.elements), np.uint8).reshape(2, self.elements) for _ in range(count)
        )
        return Robust(sheets, self._tightenings(count), self._tree(label, count, 0))

    def _tightenings(self, sheets: int) -> tuple[Tighten, ...]:
        listed = [Tighten(*self.reader.take("<HH")) for _ in range(*self.reader.take("<B"))]
        self._must(all(a.value < b.value for a, b in pairwise(listed)), "tightenings out of order")
        self._must(all(t.value in self.accumulators and t.sheet < sheets for t in listed), "a tightening of nothing")
        return tuple(listed)

    def _tree(self, label: int, sheets: int, depth: int) -> Tree:
        (tag,) = self.reader.take("<B")
        if tag == SPLIT and depth < DEEPEST:
            value, element, threshold = self.reader.take("<HIi")
            self._must(element < self.splittable.get(value, 0), f"a split of element {element} of value {value}")
            below = self._tree(label, sheets, depth + 1)
            return Split(value, element, threshold, below, self._tree(label, sheets, depth + 1))
        self._must(tag == LEAF, "neither a split nor a leaf, or too deep a tree")
        tighten = self._tightenings(sheets)
        rows = tuple(self._row(sheets) for _ in range(*self.reader.take("<B")))
        others = [row.other for row in rows]
        self._must(len({*others, label}) == len(rows) + 1 and max(others, default=0) < self.classes, "a row of a class")
        return Leaf(rows, tighten)

    def _row(self, sheets: int) -> Row:
        other, p, q, sheet, count = self.reader.take("<HHHHH")
        self._must(1 <= p <= FACTOR and 1 <= q <= FACTOR, f"factors {p} and {q}")
        self._must(sheet < sheets or sheet == NO_SHEET, f"sheet {sheet} of {sheets}")
        listed = tuple(Multiplier(*self.reader.take("<HIiB")) for _ in range(count))
        for m in listed:
            inside = m.element < self.accumulators.get(m.value, 0) and abs(m.mu) < MOST_MU and m.s <= MOST_S
            self._must(inside, f"a multiplier of element {m.element} of value {m.value}")
        places = [(m.value, m.element) for m in listed]
        self._must(all(a < b for a, b in pairwise(places)), "multipliers out of order")
        return Row(other, p, q, None if sheet == NO_SHEET else sheet, listed)
