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
from cactus_edge.formats.read import AnyModel, read_model
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import dequantize, evaluate, quantised, run, trace
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.profile import Profile
from cactus_edge.report.table import Column
from cactus_edge.verify.read import format_of

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


@dataclass(frozen=True, eq=False)
class _Side:
    """One file for one runtime: its bytes, what they mean, and the data x as that file takes them."""

    data: bytes
    model: AnyModel
    x: Array

    @property
    def graph(self) -> Graph:
        return self.model.graph

    def codes(self, name: str) -> Array:
        """What the interpreter makes of x under that profile, int64 [N, *output shape]."""
        program = lower(self.graph, profile(name))
        return run(program, quantised(program, self.x)).astype(np.int64)

    def layers(self, name: str, sample: int) -> Mapping[str, tuple[int, Array]]:
        """By the name of a node's output: the node's index, and its codes of that sample under that profile."""
        traced = trace(self.graph, self.x[sample : sample + 1], profile(name))
        outputs = ((i, node.output, traced[node.output]) for i, node in enumerate(self.graph.nodes))
        return {self.graph.tensors[t].name: (i, codes) for i, t, codes in outputs if codes is not None}


def compare(data: bytes, x: Array, names: Sequence[str]) -> Comparison:
    """Runs the file `data` in each runtime on x [N, *input shape] and compares it with the interpreter under its profile.

    A runtime that reads another format gets the same integer graph in that one, as `convert` writes it. Where the runtimes have
    several profiles, these are compared with the first one. Raises InputError for an unknown runtime, naming the nearest,
    UnsupportedError for a graph that the other format cannot hold exactly, and what `formats.agree.agree` and
    `formats.c.write_c` raise.
    """
    for name in names:
        if name not in (known := (*RUNTIMES, C)):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"
            raise InputError(f"unknown runtime {name!r}", hint=hint)
    given = _Side(data, read_model(data), x)
    found: list[RuntimeAgreement] = []
    sides: dict[str, _Side] = {}
    for name in names:
        side = given if name == C else _read_by(profile(RUNTIMES[name].profile), given)
        one = _c(side.graph, x) if name == C else _runtime(side, name)
        if side is not given:
            converted = f"{name} (as .{profile(RUNTIMES[name].profile).reads})"
            one = replace(one, found=replace(one.found, runtime=converted))
        found.append(one)
        sides.setdefault(one.found.profile, side)
    (reference, first), *rest = sides.items()
    others = tuple(_between(reference, first, other, side) for other, side in rest)
    return Comparison(len(x), len(x) * given.graph.output.size, tuple(found), others)


def _read_by(rules: Profile, given: _Side) -> _Side:
    """The file itself, or its integer graph in the format that the profile's runtime reads."""
    if rules.reads == format_of(given.data):
        return given
    if rules.reads == "onnx":
        from cactus_edge.formats.onnx import write_onnx

        data = write_onnx(given.graph)
    else:
        from cactus_edge.formats.tflite import write_tflite

        data = write_tflite(given.graph)
    model, x = read_model(data), given.x
    if model.graph.input.dtype == "float32" and x.dtype.kind == "i":
        x = dequantize(x, given.graph.input.scale, given.graph.input.zero_point)
    return _Side(data, model, x)


def _runtime(side: _Side, name: str) -> RuntimeAgreement:
    """The runtime runs again for its histogram where it differs."""
    found = agree(side.data, side.x, name)
    if found.exact:
        return RuntimeAgreement(found, {})
    entry, graph, x = RUNTIMES[name], side.graph, side.x
    rules = profile(entry.profile)
    samples = x if x.dtype == graph.input.dtype else quantised(lower(graph, rules), x)
    session = open_session(entry, side.data, side.model)
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


def _between(reference: str, first: _Side, other: str, second: _Side) -> ProfileDifference:
    want, got = first.codes(reference), second.codes(other)
    rows = (want != got).reshape(len(want), -1)
    bad = np.flatnonzero(rows.any(1))
    flips = want.reshape(rows.shape).argmax(1) != got.reshape(rows.shape).argmax(1)
    layer = None
    if bad.size:
        ours, theirs = first.layers(reference, int(bad[0])), second.layers(other, int(bad[0]))
        pairs = ((index, a, theirs[name][1]) for name, (index, a) in ours.items() if name in theirs)
        layers = (
            layer_difference(first.graph, index, int(bad[0]), a, b.reshape(a.shape))
            for index, a, b in pairs
            if a.size == b.size
        )
        layer = next((difference for difference in layers if difference is not None), None)
    return ProfileDifference(
        reference, other, len(want), bad.size, int(rows.sum()), int(flips.sum()), _steps(want, got), layer
    )


def _steps(want: Array, got: Array) -> Histogram:
    """got - want for codes -> how often, without 0, from the least to the largest."""
    steps, counts = np.unique(got - want, return_counts=True)
    return {int(s): int(n) for s, n in zip(steps, counts, strict=True) if s}


def _histogram(graph: Graph, want: Array, got: Array) -> Histogram:
    """got - want in steps of the output's scale -> how often, without 0, from the least to the largest."""
    gap = got.astype(np.float64) - want.astype(np.float64)
    if want.dtype == np.float32:
        gap = gap / graph.tensors[graph.nodes[-1].inputs[0]].scale
    rounded = np.rint(gap).astype(np.int64)
    return _steps(np.zeros_like(rounded), rounded)


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
