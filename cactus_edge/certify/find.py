"""Finding proofs: a record for each region of a data set, by the means that are asked for, as the bytes of a proof file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.attack import attack
from cactus_edge.certify.complete import Complete, Decided, Effort
from cactus_edge.certify.interval import one_torch_thread
from cactus_edge.certify.linear import Linear
from cactus_edge.errors import InputError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.proof import Proof, Record, encode
from cactus_edge.verify.regions import Boxes, Region, check_data, points

BATCH = 128
"""Regions searched together."""


def find(
    program: Program,
    region: Region,
    x: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    model_sha256: bytes,
    *,
    lines: bool = True,
    falsify: bool = False,
    search: Linear | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> bytes:
    """A proof about the regions around x [N, *input shape], as `verify.proof` has it: each robust, refuted or open.

    By intervals; lines: then by lines; falsify: then by looking for counterexamples around what is left. search: a `Linear` of
    the program, to be used again. Raises DataError for unusable data, UnsupportedError where the program has no proofs,
    InputError for counterexamples of several arithmetics.
    """
    y = check_data(program, x, labels)
    if falsify and not program.definite:
        raise InputError(
            f"a counterexample is one for one arithmetic, and {program.profile.name} is several or an envelope",
            hint="one --profile that is no envelope",
        )
    if falsify and region.family is not None:
        raise InputError(f"no counterexamples are looked for in regions of kind {region.kind}", hint="without --attack")
    search, boxes = search or Linear(program), Boxes(program, region, x)
    records: list[Record] = []
    count = region.count(x.shape[1:]) * len(y)
    for start in range(0, count, BATCH):
        lower, upper, owner = boxes(slice(start, min(start + BATCH, count)))
        found = search.records(lower, upper, owner, y[owner], lines=lines)
        records += refuted(program, found, lower, upper, points(program, x[owner])) if falsify else found
        progress(len(records))
    return encode(program, Proof(model_sha256, program.profile.name, len(y), search.slopes, records))


def find_all(
    search: Complete, region: Region, x: npt.NDArray[Any], labels: npt.NDArray[Any], model_sha256: bytes
) -> tuple[bytes, list[Effort]]:
    """Likewise by all means within the budget of `search`, and how each of the region's boxes was decided.

    Counterexamples are looked for where a point of a box is one of the region: around samples, not in families of regions.
    """
    program = search.program
    y, boxes = check_data(program, x, labels), Boxes(program, region, x)
    decided: list[Decided] = []
    lost: set[int] = set()
    count = region.count(x.shape[1:]) * len(y)
    with one_torch_thread():
        for start in range(0, count, BATCH):
            lower, upper, owner = boxes(slice(start, min(start + BATCH, count)))
            around = points(program, x[owner])
            decided += search.records(lower, upper, owner, y[owner], around, falsify=region.family is None, lost=lost)
    slopes, records = search.linear.slopes, [d.record for d in decided]
    shown = encode(program, Proof(model_sha256, program.profile.name, len(y), slopes, records))
    return shown, [d.effort for d in decided]


def refuted(
    program: Program, records: Sequence[Record], lower: Codes, upper: Codes, start: Codes, **options: Any
) -> list[Record]:
    """The records, open ones with a counterexample where `attack` finds one; `options` are its own."""
    left = np.array([i for i, r in enumerate(records) if r.verdict is None], np.int64)
    if not len(left):
        return list(records)
    labels: Int64 = np.array([records[i].label for i in left])
    tried = attack(program, lower[left], upper[left], labels, start=start[left], **options)
    found = {int(left[i]): tried.witness[i] for i in np.flatnonzero(tried.found)}
    return [replace(r, verdict=found[i]) if i in found else r for i, r in enumerate(records)]
