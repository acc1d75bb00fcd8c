"""Real runtimes against the interpreter, and the profiles of those runtimes among themselves, on one file and its data.

A runtime is a row of `formats.agree.RUNTIMES`, or "c": the portable C, written for this model and compiled for this machine.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError
from cactus_edge.formats.agree import RUNTIMES, Agreement, LayerDifference, agree, layer_difference, open_session
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate, quantised, run, trace
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.report.table import Column
from cactus_edge.verify.read import AnyModel, read_model, require_format

Array = npt.NDArray[Any]
Histogram = Mapping[int, int]
Table = tuple[Sequence[str | Column], Sequence[Sequence[str]]]

C, C_PROFILE = "c", "tflm"
"""The runtime that is the portable C, and the profile whose arithmetic it computes."""

TAIL, BAR = 8, 32
"""Steps that a histogram shows one by one on each side, and the length of its longest bar."""


@dataclass(frozen=True)
class RuntimeAgreement:
    """One runtime against its own profile. histogram: runtime's minus interpreter's, in output steps -> elements, zero left out."""

    found: Agreement
    histogram: Histogram

    def cells(self) -> tuple[str, ...]:
        """As a row of text."""
        a = self.found
        return (
            a.runtime,
            a.profile,
            "equal" if a.exact else "DIFFERS",
            f"{a.differing_inputs:,}",
            f"{a.mismatches:,}",
            f"{a.argmax_flips:,}",
            a.version,
        )


@dataclass(frozen=True)
class ProfileDifference:
    """How two profiles differ on this model and data, by the interpreter: `other` against `reference`, counted as in Agreement."""

    reference: str
    other: str
    inputs: int
    differing_inputs: int
    mismatches: int
    argmax_flips: int
    histogram: Histogram
    first_layer: LayerDifference | None

    def cells(self) -> tuple[str, ...]:
        """As a row of text."""
        counts = (self.differing_inputs, self.mismatches, self.argmax_flips)
        return (f"{self.other} - {self.reference}", *(f"{n:,}" for n in counts))


@dataclass(frozen=True)
class Comparison:
    """What `agree` found: each runtime against its profile, and the profiles among themselves, which may well differ."""

    inputs: int
    elements: int
    runtimes: tuple[RuntimeAgreement, ...]
    profiles: tuple[ProfileDifference, ...]

    @property
    def exact(self) -> bool:
        """Whether every runtime computes what its profile says, in every bit."""
        return all(r.found.exact for r in self.runtimes)


def compare(data: bytes, x: Array, names: Sequence[str]) -> Comparison:
    """Runs the file `data` in each runtime on x [N, *input shape] and compares it with the interpreter under its profile.

    Where the runtimes have several profiles, these are compared with the first one. Raises InputError for an unknown runtime,
    naming the nearest, and what `formats.agree.agree` and `formats.c.write_c` raise.
    """
    for name in names:
        if name not in (known := (*RUNTIMES, C)):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
            raise InputError(f"unknown runtime {name!r}", hint=hint)
        require_format(data, profile(C_PROFILE if name == C else RUNTIMES[name].profile))
    model = read_model(data)
    graph = model.graph
    found = tuple(_c(graph, x) if name == C else _runtime(data, model, x, name) for name in names)
    rules = list(dict.fromkeys(r.found.profile for r in found))
    others = tuple(_between(graph, x, rules[0], other) for other in rules[1:])
    return Comparison(len(x), len(x) * graph.output.size, found, others)


def _runtime(data: bytes, model: AnyModel, x: Array, name: str) -> RuntimeAgreement:
    """The runtime runs again for its histogram where it differs."""
    found = agree(data, x, name)
    if found.exact:
        return RuntimeAgreement(found, {})
    entry = RUNTIMES[name]
    rules, graph = profile(entry.profile), model.graph
    samples = x if x.dtype == graph.input.dtype else quantised(lower(graph, rules), x)
    session = open_session(entry, data, model)
    got = np.stack([session.run(sample) for sample in samples])
    return RuntimeAgreement(found, _histogram(graph, evaluate(graph, x, rules), got))


def _c(graph: Graph, x: Array) -> RuntimeAgreement:
    """The int8 core in C: what a file does in float32 at its ends is not in it."""
    from cactus_edge.formats.c import host
    from cactus_edge.formats.c.write import write_c

    rules = profile(C_PROFILE)
    program = lower(graph, rules)
    codes = quantised(program, x)
    with tempfile.TemporaryDirectory() as folder, host.compiled(write_c(graph, rules, Path(folder))) as compiled:
        found = replace(host.compare(graph, codes, rules, compiled), runtime=C)
        histogram: Histogram = {}
        if not found.exact:
            want = run(program, codes)
            histogram = _histogram(graph, want, compiled.run(codes).reshape(want.shape))
    return RuntimeAgreement(found, histogram)


def _between(graph: Graph, x: Array, reference: str, other: str) -> ProfileDifference:
    want, got = (evaluate(graph, x, profile(name)) for name in (reference, other))
    rows = (want != got).reshape(len(x), -1)
    bad = np.flatnonzero(rows.any(1))
    flips = want.reshape(rows.shape).argmax(1) != got.reshape(rows.shape).argmax(1)
    first = None
    if bad.size:
        sample = x[bad[0] : bad[0] + 1]
        one, two = (trace(graph, sample, profile(name)) for name in (reference, other))
        layers = (
            layer_difference(graph, index, int(bad[0]), a, b)
            for index, node in enumerate(graph.nodes)
            if (a := one[node.output]) is not None and (b := two[node.output]) is not None
        )
        first = next((layer for layer in layers if layer is not None), None)
    return ProfileDifference(
        reference, other, len(x), bad.size, int(rows.sum()), int(flips.sum()), _histogram(graph, want, got), first
    )


def _histogram(graph: Graph, want: Array, got: Array) -> Histogram:
    """got - want in steps of the output's scale -> how often, without 0, from the least to the largest."""
    gap = got.astype(np.float64) - want.astype(np.float64)
    if want.dtype == np.float32:
        gap = gap / graph.tensors[graph.nodes[-1].inputs[0]].scale
    steps, counts = np.unique(np.rint(gap).astype(np.int64), return_counts=True)
    return {int(s): int(n) for s, n in zip(steps, counts, strict=True) if s}


def histogram_table(histogram: Histogram) -> Table:
    """Heading and rows: difference, elements, a bar; what lies beyond `TAIL` steps is counted together on each side."""
    shown: dict[int, int] = {}
    for step, count in histogram.items():
        end = max(-TAIL, min(TAIL, step))
        shown[end] = shown.get(end, 0) + count
    most = max(shown.values(), default=1)
    rows = []
    for step, count in sorted(shown.items()):
        beyond = " or less" if step == -TAIL else " or more" if step == TAIL else ""
        rows.append((f"{step:+d}{beyond}", f"{count:,}", "#" * -(-BAR * count // most)))
    return [Column("difference", right=True), Column("elements", right=True), ""], rows
