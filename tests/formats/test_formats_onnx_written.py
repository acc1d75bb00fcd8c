"""Averages and softmax as we write them, against ONNX Runtime; a .tflite in the runtimes of .onnx, and the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_kit import OPS, live, real_inputs, vnni
from strategies import random_graph, random_inputs

import cactus_edge as ce
from cactus_edge import comparison
from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.onnx import onnx_form, write_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import FloatAverage
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower

ENDS = ("", "softmax", "dequantize", "softmax dequantize")


def networks(seed: int, count: int) -> list[tuple[Graph, bytes, Any]]:
    """Random networks with an average or a softmax, each with its file and inputs."""
    found: list[tuple[Graph, bytes, Any]] = []
    while len(found) < count:
        seed += 1
        rng = np.random.default_rng(seed)
        graph = live(random_graph(rng, 5, (*OPS, "avg_pool", "avg_pool"), ends=ENDS))
        if not any(isinstance(node.op, ops.AvgPool | ops.Softmax) for node in graph.nodes):
            continue
        try:
            data = write_onnx(graph)
            lower(onnx_form(graph), profile("ort-x86"))
        except UnsupportedError:
            continue
        x = random_inputs(rng, graph, 100)
        found.append((graph, data, real_inputs(graph, x) if graph.input.dtype == "int8" else x))
    return found


@vnni
def test_networks_with_averages_and_softmax_agree() -> None:
    seen = set()
    for graph, data, x in networks(0, 60):
        assert agree(data, x, "onnxruntime").exact
        seen |= {type(node.op) for node in graph.nodes}
    assert seen >= {ops.AvgPool, ops.Softmax, ops.Conv2d, ops.Dense}


@vnni
def test_agreement_sees_an_average_of_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = networks(0, 40)

    def exact(self: FloatAverage, x: Any) -> Any:
        total = self.pool.apply(x - self.zero_in) * (self.scale_in / self.scale_out) / self.pool.reach()
        return np.clip(np.rint(total) + self.zero_out, self.lo, self.hi).astype(np.int64)

    monkeypatch.setattr(FloatAverage, "apply", exact)
    assert not all(agree(data, x, "onnxruntime").exact for _, data, x in found)


@vnni
def test_a_tflite_is_compared_in_onnx_runtime_as_the_onnx_it_converts_to() -> None:
    graph, _, _ = next(n for n in networks(100, 20) if n[0].input.dtype == "int8" and n[0].output.dtype == "int8")
    data = write_tflite(graph)
    for x in (
        random_inputs(np.random.default_rng(0), graph, 60),
        real_inputs(graph, random_inputs(np.random.default_rng(0), graph, 60)),
    ):
        found = ce.agree(data, x, runtime=("tflm", "onnxruntime", "c"))
        assert found.exact
        assert [r.found.runtime for r in found.runtimes] == ["tflm", "onnxruntime (as .onnx)", "c"]
        (between,) = found.profiles
        assert (between.reference, between.other, between.inputs) == ("tflm", "ort-x86", 60)


@vnni
def test_an_onnx_is_compared_in_the_runtimes_of_tflite() -> None:
    _, data, x = networks(200, 1)[0]
    found = ce.agree(data, x, runtime=("onnxruntime", "tflm"))
    assert found.exact and [r.found.runtime for r in found.runtimes] == ["onnxruntime", "tflm (as .tflite)"]


@vnni
def test_the_profiles_of_both_formats_are_compared_code_by_code() -> None:
    """Whichever file a runtime reads: the counts are those of the integer cores."""
    differing = 0
    for graph, data, x in networks(300, 12):
        given = comparison._Side(data, comparison.read_model(data), x)
        tflite = comparison._read_by(profile("tflm"), given)
        between = comparison._between("ort-x86", given, "tflm", tflite)
        want, got = given.codes("ort-x86"), tflite.codes("tflm")
        assert between.mismatches == int((want != got).sum()) == sum(between.histogram.values())
        assert (between.first_layer is None) <= (between.mismatches == 0)
        differing += between.mismatches
        assert graph.output.size * len(x) == want.size
    assert differing


def test_what_the_other_format_cannot_hold_is_refused_by_name() -> None:
    graph = next(
        g
        for g in (random_graph(np.random.default_rng(k), 3, ("sub", "mul"), ends=("",)) for k in range(50))
        if any(isinstance(node.op, ops.Sub | ops.Mul) for node in g.nodes)
    )
    x = random_inputs(np.random.default_rng(0), graph, 3)
    with pytest.raises(UnsupportedError, match="cannot be kept exact in ONNX"):
        ce.agree(write_tflite(graph), x, runtime="onnxruntime")
