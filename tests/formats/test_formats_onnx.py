"""QDQ ONNX: what is written is read back and computes the same."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx_kit import chain, classifier, halves, real_inputs

from cactus_edge.errors import InputError, InstallError, UnsupportedError
from cactus_edge.formats.onnx import onnx_form, read_onnx, write_onnx
from cactus_edge.formats.onnx.runtime import optimise
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import dequantize, evaluate
from cactus_edge.ir.graph import Graph, Tensor


def test_what_is_written_is_read_back() -> None:
    for seed in range(120):
        graph = chain(np.random.default_rng(seed))
        formed = onnx_form(graph)
        assert onnx_form(formed).digest() == formed.digest(), seed
        assert read_onnx(write_onnx(graph)).graph.digest() == formed.digest(), seed


def test_the_form_computes_the_same() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        graph = chain(rng)
        codes = rng.integers(-128, 128, (8, *graph.input.shape)).astype(np.int8)
        want = evaluate(graph, codes, profile("tflm"))
        if graph.output.dtype == "int8":
            want = dequantize(want, graph.output.scale, graph.output.zero_point)
        read = read_onnx(write_onnx(graph)).graph
        assert np.array_equal(evaluate(read, real_inputs(graph, codes), profile("tflm")), want), seed


def test_bytes_are_a_function_of_graph_and_metadata() -> None:
    graph, metadata = classifier(), {"b": b"{}", "a": '{"name": "ä"}'.encode()}
    data = write_onnx(graph, metadata=metadata)
    assert data == write_onnx(graph, metadata=dict(reversed(metadata.items())))
    model = read_onnx(data)
    assert model.metadata == metadata
    assert model.file_tensors == tuple(range(len(model.graph.tensors)))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    with pytest.raises(InputError, match="metadata 'x' is not UTF-8"):
        write_onnx(graph, metadata={"x": b"\xff"})


def test_tensors_of_one_name_get_names_of_their_own() -> None:
    graph = classifier()
    same = replace(graph, tensors=tuple(replace(t, name="t") for t in graph.tensors))
    assert read_onnx(write_onnx(same)).graph.digest() == onnx_form(graph).digest()


def test_what_onnx_runtime_was_not_shown_to_compute_is_refused_by_name() -> None:
    def one(op: ops.Op, out: Tensor, inputs: int = 1, scale: float = 1.0) -> Graph:
        b = GraphBuilder()
        x = b.input(Tensor("x", (2, 2, 2), "int8", scale, 0))
        return b.finish(b.node(op, [x] * inputs, out))

    image = Tensor("y", (2, 2, 2), "int8", 1.0, 0)
    pool = ops.MaxPool((1, 1), (1, 1), activation=ops.Activation.RELU6)
    for graph, message in [
        (
            one(ops.AvgPool((1, 1), (1, 1), activation=ops.Activation.RELU), image),
            "op 0 AvgPool -> 'y' cannot be kept exact",
        ),
        (one(ops.Softmax(), replace(image, scale=1 / 256, zero_point=-128)), "ONNX has one of beta 1 over a row"),
        (one(ops.Reshape(), replace(image, shape=(2, 4))), r"reshapes to \(2, 4\)"),
        (one(ops.Reshape(), replace(image, shape=(8,))), "a flattened image"),
        (one(pool, replace(image, scale=12.0), scale=12.0), "half-way between two codes"),
        (one(ops.Requantize(), replace(image, scale=2.0**-70)), "expected them in"),
    ]:
        with pytest.raises(UnsupportedError, match=message):
            write_onnx(graph)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = classifier()
    data = write_onnx(graph)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InstallError, match="onnxruntime"):
        optimise(data)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InstallError, match="package onnx"):
        write_onnx(graph)
    assert read_onnx(data).graph.digest() == onnx_form(graph).digest(), "reading needs numpy alone"


@pytest.mark.parametrize("bias", [(1 << 21) + 1, -(1 << 21) - 1])
def test_a_bias_that_float32_may_not_hold_is_refused(bias: int) -> None:
    graph = halves(bias)
    assert read_onnx(write_onnx(graph)).graph.digest() == onnx_form(graph).digest()
    with pytest.raises(UnsupportedError, match=r"beyond 2\^21"):
        write_onnx(graph, bias="float32")
