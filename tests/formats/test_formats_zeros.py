"""The zeros of a file's weights, counted as TensorRT's documentation counts them."""

from __future__ import annotations

import numpy as np
import pytest

from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.formats.zeros import narrow, zeros
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.ops import Conv2d, Dense, DepthwiseConv2d, Int8, freeze


def graph(conv: Int8, dense: Int8) -> Graph:
    """8 x 8 x C -> conv [O, 3, 3, C] -> depthwise -> dense [4, 6 * 6 * O], zero points of 0."""
    builder = GraphBuilder()
    o = conv.shape[0]
    at = builder.input(Tensor("x", (8, 8, conv.shape[3]), "int8", 0.5, 0))
    bias, one = freeze(np.zeros(o), np.int32), freeze(np.full(o, 0.25), np.float32)
    at = builder.node(Conv2d(conv, bias, one), [at], Tensor("conv", (6, 6, o), "int8", 0.5, 0))
    each = freeze(np.arange(o).reshape(1, 1, o), np.int8)
    at = builder.node(DepthwiseConv2d(each, bias, one), [at], Tensor("each", (6, 6, o), "int8", 0.5, 0))
    four = freeze(np.zeros(4), np.int32)
    out = Tensor("out", (4,), "int8", 0.5, 0)
    return builder.finish(builder.node(Dense(dense, four, freeze([0.25], np.float32)), [at], out))


def halved(rows: Int8) -> Int8:
    """[N, K] with the first two of every four set to 0."""
    found = rows.reshape(-1, 4).copy()
    found[:, :2] = 0
    return found.reshape(rows.shape)


@pytest.fixture
def sparse() -> Graph:
    rng = np.random.default_rng(0)
    conv = halved(rng.integers(1, 100, (8 * 9, 4)).astype(np.int8)).reshape(8, 3, 3, 4)
    stored = halved(rng.integers(1, 100, (4, 8 * 36)).astype(np.int8))  # channel, height, width
    dense = stored.reshape(4, 8, 6, 6).transpose(0, 2, 3, 1).reshape(4, -1)
    return graph(freeze(conv, np.int8), freeze(dense, np.int8))


def trt_has_sparse_weights(kcrs: Int8) -> bool:
    """TensorRT developer guide, "Structured Sparsity", as a plain loop."""
    k, c, r, s = kcrs.shape
    return c % 4 == 0 and all(
        np.count_nonzero(kcrs[i, j : j + 4, y, x]) <= 2
        for i in range(k)
        for y in range(r)
        for x in range(s)
        for j in range(0, c, 4)
    )


def test_two_of_four_where_tensorrt_reads_it(sparse: Graph) -> None:
    conv, each, dense = zeros(sparse)
    assert (conv.name, conv.weights, conv.zeros, conv.row, conv.two_of_four) == ("conv", 288, 144, 4, True)
    assert (each.weights, each.zeros, each.row, each.two_of_four) == (8, 1, 1, False)
    assert (dense.share, dense.row, dense.two_of_four) == (0.5, 288, True)


@pytest.mark.parametrize("where", ["conv", "dense"])
def test_one_weight_too_many_is_seen(sparse: Graph, where: str) -> None:
    """The planted fault: a third weight in one row of four."""
    weights = {node.op.__class__.__name__: node.op.weight.copy() for node in sparse.nodes}  # type: ignore[union-attr]
    changed = weights["Conv2d"] if where == "conv" else weights["Dense"]
    changed.flat[(changed == 0).argmax()] = 1
    found = {z.name: z.two_of_four for z in zeros(graph(weights["Conv2d"], weights["Dense"]))}
    assert found == {"conv": where != "conv", "each": False, "out": where != "dense"}


def test_the_bytes_of_an_onnx_file_say_the_same(sparse: Graph) -> None:
    import onnx

    data = write_onnx(sparse, bias="float32", relu="sum")
    assert [z.two_of_four for z in zeros(read_onnx(data).graph)] == [True, False, True]
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
    stored = [a for a in tensors.values() if a.dtype == np.int8 and a.ndim in (2, 4) and a.size > 8]
    assert len(stored) == 2 and all(trt_has_sparse_weights(a.reshape(*a.shape, *(1, 1)[: 4 - a.ndim])) for a in stored)


def test_bits_that_would_tell_weights_apart() -> None:
    conv = np.zeros((8, 3, 3, 4), np.int8)
    conv[:, 0, 0, 0], conv[:3, 1, 1, 1] = 127, -127
    dense = np.arange(-64, 64, dtype=np.int8).repeat(9).reshape(4, 288)
    one, each, other = zeros(graph(freeze(conv, np.int8), freeze(dense, np.int8)))
    assert [(z.codes, z.bits) for z in (one, each, other)] == [(2, 1), (7, 3), (127, 7)]
    assert narrow([one, each, other]) == (
        "bits that would tell the rest apart: 1 in #0; 3 in #1; 7 in #2; the file stores 8 in every op"
    )
    every = np.concatenate([np.arange(-127, 128)] * 2)[:288].astype(np.int8)
    wide = zeros(graph(freeze(every.reshape(8, 3, 3, 4), np.int8), freeze(dense, np.int8)))[0]
    assert wide.bits == 8 and narrow([wide]) == ""
    empty = zeros(graph(freeze(conv * 0, np.int8), freeze(dense, np.int8)))[0]
    assert empty.bits == 0 and narrow([empty]) == ""
