"""A flattened image keeps the order in which ONNX stores it through ops on each element, up to the weights that absorb it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx_kit import vnni
from onnx_models import File

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx import onnx_form, read_onnx, write_onnx
from cactus_edge.formats.onnx.read import layout
from cactus_edge.formats.onnx.read.layout import stored_columns, stored_image
from cactus_edge.formats.onnx.runtime import OrtSession
from cactus_edge.formats.zeros import zeros
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.graph import Graph, Tensor

IMAGE = (2, 3, 4)
SIZE = 24

Middle = Callable[[GraphBuilder, int], int]


def weight(two_of_four: bool = False) -> ops.Int8:
    """Columns in our order; 2:4, where asked for, in the order of the file."""
    stored = np.random.default_rng(0).integers(1, 128, (5, SIZE), dtype=np.int8)
    if two_of_four:
        stored.reshape(-1, 4)[:, :2] = 0
    return ops.freeze(layout.our_columns(stored, IMAGE), np.int8)


def flat(middle: Middle, dense: bool = True, two_of_four: bool = False) -> Graph:
    """An image, flattened, through `middle`, into a dense layer."""
    b = GraphBuilder()
    x = b.input(Tensor("x", IMAGE, "int8", 0.5, 3))
    x = middle(b, b.node(ops.Reshape(), [x], Tensor("flat", (SIZE,), "int8", 0.5, 3)))
    if dense:
        op = ops.Dense(weight(two_of_four), ops.freeze([7] * 5, np.int32), ops.freeze([0.01], np.float32))
        x = b.node(op, [x], Tensor("sums", (5,), "int8", 0.75, -5))
    return b.finish(x)


def relu(b: GraphBuilder, x: int) -> int:
    return b.node(ops.Relu(), [x], Tensor("relu", (SIZE,), "int8", 0.25, -100))


def add(b: GraphBuilder, x: int) -> int:
    return b.node(ops.Add(), [x, relu(b, x)], Tensor("sum", (SIZE,), "int8", 1.0, 2))


def leaky(b: GraphBuilder, x: int) -> int:
    return b.node(ops.LeakyRelu(0.125), [x], Tensor("leaky", (SIZE,), "int8", 0.25, -20))


def inputs() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 25, (40, *IMAGE)).astype(np.float32)


@vnni
@pytest.mark.parametrize("middle", [relu, add])
def test_a_written_file_computes_the_graph(middle: Middle) -> None:
    graph = flat(middle)
    data = write_onnx(graph)
    read, form = read_onnx(data).graph, onnx_form(graph)
    want = evaluate(form, inputs(), profile("ort-x86"))
    assert np.array_equal(OrtSession(data, read, False).run_batch(inputs()), want)
    assert np.array_equal(evaluate(read, inputs(), profile("ort-x86")), want)


@vnni
def test_a_sum_behind_a_global_average() -> None:
    """One pixel of channels, flattened, is in our order, as what is no image is: a head with a residual sum."""
    b = GraphBuilder()
    x = b.input(Tensor("x", IMAGE, "int8", 0.5, 3))
    mean = b.node(ops.Mean((0, 1), False), [x], Tensor("mean", IMAGE[2:], "int8", 0.25, 3))
    eye = ops.freeze(np.random.default_rng(2).integers(-99, 99, (4, 4)), np.int8)
    op = ops.Dense(eye, ops.freeze([7] * 4, np.int32), ops.freeze([0.01], np.float32))
    dense = b.node(op, [mean], Tensor("dense", IMAGE[2:], "int8", 0.75, -5))
    graph = b.finish(b.node(ops.Add(), [mean, dense], Tensor("sum", IMAGE[2:], "int8", 1.0, 2)))
    data = write_onnx(graph)
    read = read_onnx(data).graph
    want = evaluate(onnx_form(graph), inputs(), profile("ort-x86"))
    assert np.array_equal(OrtSession(data, read, False).run_batch(inputs()), want)
    assert np.array_equal(evaluate(read, inputs(), profile("ort-x86")), want)


@vnni
def test_planted_fault_an_op_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "EACH", tuple(op for op in layout.EACH if op is not ops.Relu))
    with pytest.raises(AssertionError):
        test_a_written_file_computes_the_graph(relu)


@pytest.mark.parametrize("middle", [relu, add])
def test_an_output_in_the_order_of_the_file_is_refused(middle: Middle) -> None:
    with pytest.raises(UnsupportedError, match="orders otherwise"):
        write_onnx(flat(middle, dense=False))


@vnni
def test_each_tensor_of_a_run_is_told_in_our_order() -> None:
    """A LeakyRelu is only in files from elsewhere: its Gemm's columns are the file's, its taps ours."""
    f = File((IMAGE[2], *IMAGE[:2]))
    x = f.rounded(f.node("Flatten", [f.rounded("input", (0.5, 3), "x")], "f", axis=1), (0.5, 3), "flat")
    x = f.rounded(f.node("LeakyRelu", [x], "l", alpha=0.1), (0.25, -20), "leaky")
    gemm = [x, f.weight("w", stored_columns(weight(True), IMAGE), 0.01)]
    data = f.bytes(f.rounded(f.node("Gemm", gemm, "sums", transB=1), (0.75, -5), "y"))
    graph = read_onnx(data).graph
    session = OrtSession(data, graph, True)
    for x in inputs()[:5]:
        session.run(x)
        want = trace(graph, x[None], profile("ort-x86"))
        for node in graph.nodes[:-1]:
            got = session.tensor(node.output)
            if got is not None:
                assert np.array_equal(got.reshape(want[node.output].shape), want[node.output]), graph.tensors[
                    node.output
                ]
    assert [z.two_of_four for z in zeros(graph)] == [True]


@pytest.mark.parametrize("middle", [lambda b, x: x, relu, add, leaky])
def test_two_of_four_is_looked_for_in_the_order_of_the_file(middle: Middle) -> None:
    assert [z.two_of_four for z in zeros(flat(middle, two_of_four=True))] == [True]


def test_what_is_no_image_has_no_order() -> None:
    b = GraphBuilder()
    x = relu(b, b.input(Tensor("x", (SIZE,), "int8", 0.5, 3)))
    assert stored_image(b.finish(x), x) is None


def test_a_dense_layer_of_each_row_is_refused_as_one() -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (3, 4), "int8", 0.5, 3))
    op = ops.Dense(ops.freeze(np.ones((2, 4)), np.int8), ops.freeze([0, 0], np.int32), ops.freeze([0.01], np.float32))
    graph = b.finish(b.node(op, [x], Tensor("rows", (3, 2), "int8", 0.75, -5)))
    with pytest.raises(UnsupportedError, match="each row"):
        write_onnx(graph)
