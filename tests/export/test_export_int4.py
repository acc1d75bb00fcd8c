"""Weights of 4 bits in the portable C: kernels, bounds and the checker in C equal Python's, and planted faults show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cortex_m import CortexM
from int4_kit import layer, narrow, widened
from live_kit import Questions, asked, classifier
from strategies import IN_C, random_graph, random_inputs

from cactus_edge.errors import InternalError, ModelError
from cactus_edge.formats.c.blob import build
from cactus_edge.formats.c.blob_format import PACKED, Kind
from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.c.host import HostRuntime, blob_program, compare
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import quantised, run
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.resources import data_path
from cactus_edge.verify.interval import propagate
from cactus_edge.verify.tflite_read import read_tflite

TFLM = profile("tflm")
IN_TFLM = ("conv2d", "depthwise_conv2d", "dense")


def admitted(graphs: list[Graph]) -> list[Graph]:
    """Those that the profile runs."""
    found = []
    for graph in graphs:
        try:
            lower(graph, TFLM)
        except ModelError:
            continue
        found.append(graph)
    return found


@pytest.fixture(scope="module")
def corpus() -> list[Graph]:
    """Single layers, and networks with other ops between."""
    rng = np.random.default_rng(11)
    single = [layer(kind, seed) for kind in IN_TFLM for seed in range(16)]
    return admitted([*single, *(narrow(random_graph(rng, 5, IN_C)) for _ in range(24))])


def test_the_c_computes_what_the_interpreter_does(host_runtime: HostRuntime, corpus: list[Graph]) -> None:
    assert len(corpus) > 50
    kinds = {record.kind for graph in corpus for record in build(graph, TFLM).records}
    assert set(PACKED.values()) <= kinds
    rng = np.random.default_rng(0)
    for graph in corpus:
        x = random_inputs(rng, graph, 12)
        assert compare(graph, x, TFLM, blob_program(host_runtime, graph, TFLM)).exact


def agrees_on(machine: CortexM, graphs: list[Graph]) -> bool:
    rng = np.random.default_rng(1)
    for graph in graphs:
        program = lower(graph, TFLM)
        x = quantised(program, random_inputs(rng, graph, 4))
        expected = run(program, x).reshape(len(x), -1)
        if not np.array_equal(machine.run(build(graph, TFLM), x.reshape(len(x), -1)), expected):
            return False
    return True


@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m0"])
def test_an_emulated_core_agrees(cpu: str, tmp_path: Path, corpus: list[Graph]) -> None:
    """The M4 has a path of its own, with its 16-bit SIMD."""
    assert agrees_on(CortexM(tmp_path, cpu), corpus[::3])


def test_the_blob_has_two_weights_to_a_byte() -> None:
    graph = layer("dense", 5)
    blob, wide = build(graph, TFLM), build(widened(graph), TFLM)
    outputs, inputs = graph.output.size, graph.input.size
    assert (blob.records[0].kind, wide.records[0].kind) == (Kind.DENSE_S4, Kind.DENSE)
    assert len(wide.data) - len(blob.data) == _words(outputs * inputs) - _words(outputs * ((inputs + 1) // 2))
    assert blob.digest != wide.digest


def _words(size: int) -> int:
    return -(-size // 4) * 4


FAULTS = [
    ("ce_nibble.h", "i % 2 ? 4 : 0", "i % 2 ? 0 : 4"),
    ("ce_nibble.h", "return i < n ?", "return i > n ?"),
    ("ce_depthwise_conv2d_s4.c", "w += row", "w += row - 1"),
    ("ce_dense_s4.c", "weight + o * row", "weight + o * row - o / 2"),
]
"""(file, what stands there, what a slip of the pen makes of it)."""


@pytest.mark.parametrize(("file", "right", "wrong"), FAULTS)
def test_a_planted_fault_shows(file: str, right: str, wrong: str, corpus: list[Graph], tmp_path: Path) -> None:
    text = data_path("export", "c", "include" if file.endswith(".h") else "src", file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    faulty, rng = HostRuntime(tmp_path, overlay=tmp_path), np.random.default_rng(0)
    found = (
        compare(graph, random_inputs(rng, graph, 12), TFLM, blob_program(faulty, graph, TFLM)).exact for graph in corpus
    )
    assert not all(found)


def test_a_planted_fault_in_the_simd_path_shows(tmp_path: Path, corpus: list[Graph]) -> None:
    text = (data_path("export", "c", "include") / "ce_nibble.h").read_text()
    assert "bytes >> 4 & low" in text
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "ce_nibble.h").write_text(text.replace("bytes >> 4 & low", "bytes & low"))
    assert not agrees_on(CortexM(tmp_path, "cortex-m4", overlay=[tmp_path / "overlay"]), corpus)


def alike(rng: np.random.Generator) -> Graph:
    """Four classes whose weights differ by one each: far apart, although the ends of their logits overlap."""
    builder = GraphBuilder()
    weight = np.tile(rng.integers(-6, 7, 16), (4, 1)) + np.eye(4, 16, dtype=np.int64)
    bias = ops.freeze([1500, -900, 300, -200], np.int32)
    op = ops.Dense(ops.freeze(weight, np.int8), bias, ops.freeze([2.0**-4], np.float32), weight_bits=4)
    x = builder.input(Tensor("x", (16,), scale=2.0**-4, zero_point=3))
    return builder.finish(builder.node(op, [x], Tensor("y", (4,), scale=0.375, zero_point=-7)))


@pytest.fixture(scope="module")
def questions() -> list[Questions]:
    """About single layers, whose outputs are the classes, and about networks; some certified and some not."""
    rng = np.random.default_rng(3)
    graphs = [layer(kind, seed) for kind in IN_TFLM for seed in range(20)]
    graphs += [narrow(random_graph(rng, 3, (*IN_TFLM, "dense", "dense", "requantize"))) for _ in range(20)]
    found = [asked(rng, graph, 12, 1 + i % 2, (-128, 127)) for i, graph in enumerate(admitted(graphs))]
    found += [
        asked(rng, graph, 12, 30, (-128, 127)) for graph in (alike(rng), narrow(classifier(rng, False, "softmax")))
    ]
    return [q for q in found if q is not None]


def test_live_bounds_are_those_of_verify(host_runtime: HostRuntime, questions: list[Questions]) -> None:
    answers = []
    for q in questions:
        got = q.answered(lambda blob, *question: host_runtime.open(blob).certify(*question))
        assert np.array_equal(got, q.decided())
        answers.append(got)
    decided = np.concatenate(answers)
    decided = decided[decided[:, 0] == 0]
    assert 0.02 < decided[:, 1].mean() < 0.98


BOUND_FAULTS = [
    ("ce_interval.h", "ce_range_add(acc, ce_nibble(w, i),", "ce_range_add(acc, ce_nibble(w, 0),"),
    ("ce_conv2d_bounds_s8.c", "packed + o * row", "packed + o * row - o / 2"),
    ("ce_depthwise_conv2d_bounds_s8.c", "k * ce_nibble_row(r.out_c), o)", "k * ce_nibble_row(r.out_c), k)"),
    ("ce_certify.c", "wj = ce_dense_weight(e->blob, d, j, i)", "wj = ce_dense_weight(e->blob, d, j, i / 2)"),
]


@pytest.mark.parametrize(("file", "right", "wrong"), BOUND_FAULTS)
def test_a_planted_fault_in_the_bounds_shows(
    file: str, right: str, wrong: str, questions: list[Questions], tmp_path: Path
) -> None:
    text = data_path("export", "c", "include" if file.endswith(".h") else "src", file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    faulty = HostRuntime(tmp_path, overlay=tmp_path)
    found = (
        np.array_equal(q.answered(lambda blob, *question: faulty.open(blob).certify(*question)), q.decided())
        for q in questions
    )
    assert not all(found)


def bounded_alike(checker: CChecker, graph: Graph) -> bool:
    """Whether the checker in C bounds every value of the file as `verify` does."""
    model, rng = write_tflite(graph), np.random.default_rng(0)
    program = lower(read_tflite(model).graph, TFLM)
    ends = rng.integers(-128, 128, (2, 3, *program.values[program.input].shape), dtype=np.int8)
    low, high = ends.min(0), ends.max(0)
    expected = [np.concatenate([v[end].reshape(3, -1) for v in propagate(program, low, high)], 1) for end in (0, 1)]
    return all(np.array_equal(g, e) for g, e in zip(checker.bounds(model, low, high), expected, strict=True))


def test_the_checker_in_c_reads_them(c_checker: CChecker, corpus: list[Graph]) -> None:
    assert all(bounded_alike(c_checker, graph) for graph in corpus[::2])


@pytest.mark.parametrize(("right", "wrong"), [("i % 2 ? 4 : 0", "i % 2 ? 0 : 4"), ("half | 0xF0u", "half")])
def test_a_planted_fault_in_the_checker_shows(right: str, wrong: str, corpus: list[Graph], tmp_path: Path) -> None:
    text = data_path("export", "c", "verify", "layers.c").read_text()
    assert right in text
    (tmp_path / "layers.c").write_text(text.replace(right, wrong))
    checker = CChecker(tmp_path, overlay=tmp_path)
    assert not all(bounded_alike(checker, graph) for graph in corpus[:30])


@pytest.mark.parametrize("kind", ["grouped", "depthwise_conv2d", "dense_per_channel"])
def test_the_checker_in_c_refuses_what_the_profile_does(kind: str, c_checker: CChecker) -> None:
    graph = next(g for g in (layer(kind, seed) for seed in range(40)) if _refused(g))
    x = np.zeros((1, *graph.input.shape), np.int8)
    with pytest.raises(InternalError, match="4 bits"):
        c_checker.bounds(write_tflite(graph), x, x)


def _refused(graph: Graph) -> bool:
    return not admitted([graph])
