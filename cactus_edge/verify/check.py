"""Checks of proofs: does every record of a proof show its verdict? Nothing is believed that can be computed.

A region is bounded at the root of its tree by exact intervals, with tightenings by lines where the record has some; a leaf is
bounded by the same pass, cut with the root's bounds and with the splits on its path. A leaf that no point can be in holds.
Otherwise each class must be separated: by the ends of the bounds, or by the row for it, through the tail (`decide`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import CertificateError, InputError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.decide import BATCH, Decision, flat
from cactus_edge.verify.goal import Bools, Goal, every, wins
from cactus_edge.verify.interval import Bounds
from cactus_edge.verify.lines import Slope
from cactus_edge.verify.proof import Bytes, Leaf, Record, Robust, Row, Tighten, Tree, parse, sheet_values
from cactus_edge.verify.regions import Region, check_data, point_boxes
from cactus_edge.verify.relax import NONE, Hints, Multipliers, Relaxation, Tightening, samples_at_once
from cactus_edge.verify.tail import Pairs

Path = tuple[tuple[int, int, int, bool], ...]
"""Splits from the root: (value, element, threshold, whether at or above it)."""


_Listed = Sequence[tuple[int, int, Row]]
"""Rows with the leaf each belongs to, and its place among that leaf's rows of its kind."""

_Sheets = Sequence[Sequence[Bytes]]


@dataclass(frozen=True, eq=False)
class _Part:
    """A leaf of a record: where the record stands among those bounded together, and the splits on the way to it."""

    at: int
    robust: Robust
    label: int
    path: Path
    leaf: Leaf


class Checker:
    """What can be said about records of one program, with what does not depend on them computed once.

    Raises UnsupportedError and CertificateError as `Goal` and `Relaxation` do.
    """

    def __init__(
        self, program: Program, slopes: Mapping[int, Slope], relaxation: type[Relaxation] = Relaxation
    ) -> None:
        self.program, self.goal = program, Goal(program)
        self.relaxation = relaxation(program, slopes)
        self.sheet = sheet_values(program, slopes)
        self.size = samples_at_once(program)

    def holds(self, records: Sequence[Record]) -> Bools:
        """Whether each record's verdict is shown, [N]; an open one says nothing, and holds."""
        held = np.ones(len(records), np.bool_)
        robust = [i for i, r in enumerate(records) if isinstance(r.verdict, Robust)]
        for part in _batches(robust, lambda i: _values(_robust(records[i]).tighten), self.size):
            held[part] = self._robust([records[i] for i in part])
        refuted = [i for i, r in enumerate(records) if isinstance(r.verdict, np.ndarray)]
        if refuted:
            held[refuted] = self._refuted([records[i] for i in refuted])
        return held

    def right(self, lower: Codes, upper: Codes, labels: Int64) -> Bools:
        """Whether the label wins at samples that may become any codes lower <= x <= upper [N, *input shape], [N]."""
        known, _ = self.relaxation.forward(lower, upper)
        return self.goal.right(lower, *flat(known[self.goal.logits]), labels)

    def _refuted(self, records: Sequence[Record]) -> Bools:
        if not self.program.definite:
            raise InputError(
                f"a counterexample is one for one arithmetic, and {self.program.profile.name} is several or an envelope",
                hint="one --profile that is no envelope",
            )
        codes, lower, upper = (np.stack(x) for x in zip(*((r.verdict, r.lower, r.upper) for r in records), strict=True))
        labels = np.array([r.label for r in records])
        inside = ((codes >= lower) & (codes <= upper)).reshape(len(records), -1).all(1)
        out = run(self.program, codes).reshape(len(records), -1)
        lost: Bools = inside & ~wins(out, labels, self.program.first_maximum)
        return lost

    def _robust(self, records: Sequence[Record]) -> Bools:
        """Of records with tightenings of the same values."""
        lower, upper = np.stack([r.lower for r in records]), np.stack([r.upper for r in records])
        parts = [
            _Part(at, robust, record.label, path, leaf)
            for at, record in enumerate(records)
            for robust in (_robust(record),)
            for path, leaf in _leaves(robust.tree)
        ]
        whole = [(robust, robust.tighten) for robust in map(_robust, records)]
        root, _ = self.relaxation.forward(lower, upper, tighten=self._tightening(whole))
        held = np.ones(len(records), np.bool_)
        for at in _batches(range(len(parts)), lambda i: (not parts[i].path, _values(parts[i].leaf.tighten)), self.size):
            together = [parts[i] for i in at]
            np.logical_and.at(held, [p.at for p in together], self._leaves(together, root))
        return held

    def _leaves(self, parts: Sequence[_Part], root: Sequence[Bounds]) -> Bools:
        """Whether each leaf holds, all with tightenings of the same values, and all of split regions or all of whole ones."""
        at = np.array([p.at for p in parts])
        known: Sequence[Bounds] = [(low[at], high[at]) for low, high in root]
        empty = np.zeros(len(parts), np.bool_)
        if parts[0].path or parts[0].leaf.tighten:
            for n, part in enumerate(parts):
                cut(known, n, part.path)
            lower, upper = known[self.program.input]
            tighten = self._tightening([(p.robust, p.leaf.tighten) for p in parts])
            known, empty = self.relaxation.forward(lower, upper, known, tighten)
        held = empty.copy()
        rest = np.flatnonzero(~empty).tolist()
        if rest:
            listed = [parts[i] for i in rest]
            labels = np.array([p.label for p in listed])
            inside = [(low[rest], high[rest]) for low, high in known]
            margins = self.margins(labels, [p.leaf.rows for p in listed], [p.robust.sheets for p in listed], inside)
            held[rest] = every(self.goal.won(margins, labels))
        return held

    def margins(
        self,
        labels: Int64,
        rows: Sequence[Sequence[Row]],
        sheets: Sequence[Sequence[Bytes]],
        known: Sequence[Bounds],
    ) -> Int64:
        """Lower bounds on out_y - out_j for every class j at the value that decides, int64 [N, classes], given bounds of all values.

        labels int64 [N]; rows: those of each sample, sheets: what they name. From the ends, and for a class with a row from that.
        """
        everyone = np.arange(len(labels))
        low, high = flat(known[self.goal.logits])
        margins = low[everyone, labels][:, None] - high
        boxed = [(n, 0, row) for n, listed in enumerate(rows) for row in listed if row.sheet is None]
        lined = [
            (n, r, row)
            for n, listed in enumerate(rows)
            for r, row in enumerate(row for row in listed if row.sheet is not None)
        ]
        for listed, least_of in ((boxed, self._over_box), (lined, self._by_lines)):
            if not listed:
                continue
            sample, other, p, q = np.array([(n, row.other, row.p, row.q) for n, _, row in listed], np.int64).T
            pairs = Pairs(sample, labels[sample], other, p, q)
            found = least_of(pairs, listed, sheets, known)
            if self.goal.tail is not None:
                acc_low, _ = flat(known[self.goal.tail.value])
                found = self.goal.tail.behind(pairs, found, acc_low, low, high)
            margins[sample, other] = np.maximum(margins[sample, other], found)
        return margins

    def _over_box(self, pairs: Pairs, listed: _Listed, sheets: _Sheets, known: Sequence[Bounds]) -> Int64:
        if self.goal.tail is None:
            raise CertificateError("a row without lines, where the network does not end in a layer of weights")
        return self.goal.tail.difference(pairs, known[self.goal.tail.source])

    def _by_lines(self, pairs: Pairs, listed: _Listed, sheets: _Sheets, known: Sequence[Bounds]) -> Int64:
        tail, count, width = self.goal.tail, len(sheets), max(r for _, r, _ in listed) + 1
        if tail is None and ((pairs.p != 1) | (pairs.q != 1)).any():
            raise CertificateError("a row with factors, where the network does not end in a layer of weights")
        value = self.goal.logits if tail is None else tail.value
        n, r = pairs.sample, np.array([r for _, r, _ in listed])
        rows = np.zeros((count, width, self.goal.classes), np.int64)
        rows[n, r, pairs.label] += pairs.p
        rows[n, r, pairs.other] -= pairs.q
        chosen = np.zeros((count, width, 2, self.elements), np.uint8)
        for at, place, row in listed:
            chosen[at, place] = sheets[at][row.sheet or 0]
        shaped = rows.reshape(count, width, *self.program.values[value].shape)
        found: Int64 = self.relaxation.lower(value, shaped, known, self.hints(chosen), _multipliers(listed))[n, r]
        return found

    @property
    def elements(self) -> int:
        """S, of one half of a sheet."""
        return max((at.stop for at in self.sheet.values()), default=0)

    def hints(self, sheets: Bytes) -> Hints:
        """Sheets uint8 [N, R, 2, S] as hints by value."""
        found: dict[int, tuple[Int64, Int64]] = {}
        for value, at in self.sheet.items():
            shape = (*sheets.shape[:2], *self.program.values[value].shape)
            below, above = (sheets[:, :, side, at].astype(np.int64).reshape(shape) for side in (0, 1))
            found[value] = below, above
        return found

    def _tightening(self, wanted: Sequence[tuple[Robust, tuple[Tighten, ...]]]) -> Tightening:
        """What `Relaxation.forward` asks, for records with tightenings of the same values."""
        sheets = {
            listed[0].value: [robust.sheets[t.sheet] for (robust, _), t in zip(wanted, listed, strict=True)]
            for listed in zip(*(tighten for _, tighten in wanted), strict=True)
        }
        tightened = self.relaxation.tightened
        return lambda v, known: tightened(v, known, self.hints(np.stack(sheets[v])[:, None])) if v in sheets else None


def decided(
    program: Program, region: Region, x: npt.NDArray[Any], labels: npt.NDArray[Any], proof: bytes, model_sha256: bytes
) -> tuple[Decision, Bools]:
    """(decision, refuted [N]) as the proof shows them for the regions around x [N, *input shape], once all of it was checked.

    margin is 1 where certified, or 0 where the first of equal maxima wins: a proof shows no more. Raises CertificateError for a proof
    that is malformed, about another question, or wrong in any record; the errors of `regions.check_data` for unusable data.
    """
    y = check_data(program, x, labels)
    parsed = parse(proof, program)
    count = region.count(x.shape[1:]) * len(y)
    if parsed.model_sha256 != model_sha256 or parsed.samples != len(y) or len(parsed.records) != count:
        raise CertificateError("the proof is about another model, or another number of samples or regions")
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        for record, low, high, i in zip(parsed.records[part], *region.boxes(program, x, part), strict=True):
            same = record.sample == i and record.label == y[i]
            if not (same and (record.lower == low).all() and (record.upper == high).all()):
                raise CertificateError(f"the proof has another region where sample {i}'s stands")
    checker = Checker(program, parsed.slopes)
    held = checker.holds(parsed.records)
    if not held.all():
        wrong = parsed.records[int(np.flatnonzero(~held)[0])]
        kind = "robust" if isinstance(wrong.verdict, Robust) else "refuted"
        raise CertificateError(f"the proof does not show that sample {wrong.sample} is {kind}")
    certified, against = np.ones(len(y), np.bool_), np.zeros(len(y), np.bool_)
    for record in parsed.records:
        certified[record.sample] &= isinstance(record.verdict, Robust)
        against[record.sample] |= isinstance(record.verdict, np.ndarray)
    if region.family is not None and against.any():
        raise CertificateError("a box of a family holds more than the family: its points are no counterexamples")
    correct = certified.copy()
    rest = np.flatnonzero(~certified)
    for at in (rest[i : i + checker.size] for i in range(0, len(rest), checker.size)):
        correct[at] = checker.right(*point_boxes(program, x[at]), y[at])
    return Decision(correct, certified, np.where(certified, int(not program.first_maximum), NONE)), against


def _robust(record: Record) -> Robust:
    assert isinstance(record.verdict, Robust)
    return record.verdict


def _values(tighten: Iterable[Tighten]) -> tuple[int, ...]:
    return tuple(t.value for t in tighten)


def _batches(indices: Iterable[int], key: Callable[[int], Any], size: int) -> Iterator[list[int]]:
    """The indices of one key together, at most `size` at a time."""
    for _, group in groupby(sorted(indices, key=key), key=key):
        listed = list(group)
        yield from (listed[i : i + size] for i in range(0, len(listed), size))


def _leaves(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Leaf]]:
    if isinstance(tree, Leaf):
        yield path, tree
        return
    at = tree.value, tree.element, tree.threshold
    yield from _leaves(tree.below, (*path, (*at, False)))
    yield from _leaves(tree.above, (*path, (*at, True)))


def cut(known: Sequence[Bounds], n: int, path: Path) -> None:
    """Cuts sample n's bounds, int64 [N, *shape] of each value, with the splits of the path, in place."""
    for value, element, threshold, above in path:
        end = known[value][0 if above else 1]
        at: tuple[Any, ...] = (n, *np.unravel_index(element, end.shape[1:]))
        end[at] = max(end[at], threshold) if above else min(end[at], threshold - 1)


def _multipliers(listed: _Listed) -> dict[int, Multipliers]:
    """Those of all rows by value."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for n, r, row in listed:
        for m in row.multipliers:
            found.setdefault(m.value, []).append((n, r, m.element, m.mu, m.s))
    return {value: Multipliers(*np.array(rows, np.int64).T) for value, rows in found.items()}
