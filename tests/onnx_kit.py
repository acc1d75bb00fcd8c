"""Networks and files for the ONNX tests: random chains, models quantised by ONNX Runtime, and files with one sin each."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_parts import Array, RngChoices
from onnx import TensorProto, helper, numpy_helper
from strategies import Maker, random_graph

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx import onnx_form, read_onnx, write_onnx
from cactus_edge.formats.onnx.runtime import OrtSession, has_vnni
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import dequantize, evaluate
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.lowering import lower

CHAIN = ("conv2d", "conv2d", "depthwise_conv2d", "dense", "max_pool")
"""The ops that were shown equal to ONNX Runtime, convolutions twice as often."""


def chain(rng: np.random.Generator, nodes: int = 5, middle: Sequence[str] = CHAIN) -> Graph:
    """A random network in which every op reads the one before it; float32 or int8 at the end."""
    choose = RngChoices(rng)
    make = Maker(choose)
    shape = (choose.integer(1, 8), choose.integer(1, 8), choose.integer(1, 4))
    last = make.builder.input(Tensor("input", shape, "int8", make.scale(), make.zero_point()))
    make.known.append(last)
    for _ in range(4 * nodes):
        if len(make.known) > nodes:
            break
        made = getattr(make, f"make_{choose.pick(middle)}")(last, make.builder.tensor(last))
        last = last if made is None else made
    return make.finish(last, ("", "dequantize"))


def chains(first: int, count: int) -> list[Graph]:
    """The first `count` random chains from seed `first` on that can be written and stay in the profile's range."""
    found: list[Graph] = []
    seed = first
    while len(found) < count:
        graph = chain(np.random.default_rng(seed))
        seed += 1
        try:
            evaluate(graph, np.zeros((0, *graph.input.shape), np.int8), profile("ort-x86"))
        except UnsupportedError as error:
            assert "multiplier" in error.message, error
            continue
        found.append(graph)
    return found


def real_inputs(graph: Graph, codes: Array) -> Array:
    """The float32 values that quantise to `codes`."""
    return dequantize(codes, graph.input.scale, graph.input.zero_point)


def classifier(zero_point: int = -128, activation: ops.Activation = ops.Activation.RELU) -> Graph:
    """Convolution, pool, dense layer over a flattened image of several channels and pixels."""
    rng = np.random.default_rng(3)
    b = GraphBuilder()
    x = b.input(Tensor("input", (4, 4, 2), "int8", 1 / 32, 5))
    weight = ops.freeze(rng.integers(-127, 128, (3, 3, 3, 2)), np.int8)
    bias, scale = ops.freeze([100, -50, 7], np.int32), ops.freeze([0.01, 0.02, 0.003], np.float32)
    conv = ops.Conv2d(weight, bias, scale, (1, 1), ops.Padding2d(1, 1, 1, 1), activation=activation)
    x = b.node(conv, [x], Tensor("conv", (4, 4, 3), "int8", 1 / 16, zero_point))
    x = b.node(ops.MaxPool((2, 2), (2, 2)), [x], Tensor("pool", (2, 2, 3), "int8", 1 / 16, zero_point))
    weight = ops.freeze(rng.integers(-127, 128, (5, 12)), np.int8)
    dense = ops.Dense(weight, ops.freeze(np.arange(5), np.int32), ops.freeze([0.01], np.float32))
    return b.finish(b.node(dense, [x], Tensor("logits", (5,), "int8", 1 / 4, 3)))


def halves(bias: int = 0) -> Graph:
    """Codes times one half: every odd accumulator is a tie."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (16, 16, 1), "int8", 1.0, 0))
    weight = ops.freeze(np.ones((1, 1, 1, 1)), np.int8)
    conv = ops.Conv2d(weight, ops.freeze([bias], np.int32), ops.freeze([1.0], np.float32))
    return b.finish(b.node(conv, [x], Tensor("y", (16, 16, 1), "int8", 2.0, 1)))


def edit(data: bytes, change: Callable[[Any], None]) -> bytes:
    """The file with `change` applied to its ModelProto."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    change(model)
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


def node(model: Any, kind: str, number: int = 0) -> Any:
    """The `number`-th node of a kind."""
    return [n for n in model.graph.node if n.op_type == kind][number]


def initializer(model: Any, name: str) -> Any:
    """The initializer of this name."""
    return next(t for t in model.graph.initializer if t.name == name)


def halve_codes(model: Any) -> None:
    """Gives the codes of a `classifier` behind its activation, up to the dense layer, another scale."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    names = {"conv", "pool", "pool_flat"}
    for n in model.graph.node:
        if n.op_type in ("QuantizeLinear", "DequantizeLinear") and names & {*n.input, *n.output}:
            n.input[1] = "half"
    scale = initializer(model, "logits_bias_scale")
    scale.raw_data = (8 * numpy_helper.to_array(scale)).astype(np.float32).tobytes()


def quantized_by_ort(folder: Path, opset: int = 21, **options: Any) -> bytes:
    """A small random CNN as `onnxruntime.quantization.quantize_static` writes it (QDQ, int8, images [N, 2, 8, 8])."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    rng = np.random.default_rng(11)

    def drawn(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "depthwise", group=4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "last", transB=1),
    ]
    weights = [drawn("w1", 4, 2, 3, 3), drawn("b1", 4), drawn("w2", 4, 1, 3, 3), drawn("b2", 4)]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [*weights, drawn("w3", 5, 16), drawn("b3", 5)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    before, after = folder / "float.onnx", folder / "int8.onnx"
    before.write_bytes(model.SerializeToString())

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = [{"x": rng.normal(0, 1, (8, 2, 8, 8)).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> Any:
            return self.batches.pop() if self.batches else None

    settings = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True} | options
    quantize_static(before, after, Reader(), quant_format=QuantFormat.QDQ, **settings)
    return after.read_bytes()


vnni = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not has_vnni(), reason="the profile is that of x86-64 with VNNI"
)
"""Tests that ask ONNX Runtime for the bits of profile ort-x86."""


OPS = (*CHAIN, "add", "add", "concat", "mean", "relu")
"""Every op that was shown equal to ONNX Runtime, in networks with branches."""


def mismatches(data: bytes, x: Array) -> int:
    """Output elements in which ONNX Runtime and the interpreter differ."""
    graph = read_onnx(data).graph
    got, want = OrtSession(data, graph, False).run_batch(x), evaluate(graph, x, profile("ort-x86"))
    assert got.shape == want.shape
    return int((got.view(np.uint32) != want.view(np.uint32)).sum())


def live(graph: Graph) -> Graph:
    """The graph without the nodes that its output does not need: ONNX Runtime leaves them out too."""
    needed, nodes = set(graph.outputs), []
    for n in reversed(graph.nodes):
        if n.output in needed:
            needed.update(n.inputs)
            nodes.append(n)
    kept = sorted(needed | set(graph.inputs))
    at = {old: new for new, old in enumerate(kept)}
    moved = tuple(Node(n.op, tuple(at[i] for i in n.inputs), at[n.output]) for n in reversed(nodes))
    tensors = tuple(graph.tensors[i] for i in kept)
    return Graph(tensors, moved, (at[graph.inputs[0]],), (at[graph.outputs[0]],))


def branched(first: int, count: int) -> list[tuple[Graph, bytes]]:
    """The first `count` random networks of `OPS` from seed `first` on that ONNX can hold, each with its file."""
    found: list[tuple[Graph, bytes]] = []
    for seed in range(first, first + 40 * count):
        graph = live(random_graph(np.random.default_rng(seed), 7, OPS, ends=("", "dequantize")))
        try:
            data = write_onnx(graph)
            lower(onnx_form(graph), profile("ort-x86"))
        except UnsupportedError:
            continue
        found.append((graph, data))
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} of {count} networks")


def residual(folder: Path, form: str, codes: str, join: bool = True, opset: int = 17, **options: Any) -> bytes:
    """A residual CNN as `quantize_static` writes it: form "QDQ" or "QOperator", activations "QInt8" or "QUInt8"."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    rng = np.random.default_rng(5)

    def drawn(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "branch", pads=[1, 1, 1, 1]),
        *([helper.make_node("Add", ["c2", "r1"], ["s"], "sum")] if join else []),
        helper.make_node("Relu", ["s" if join else "c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w3", "b3"], ["c3"], "narrow"),
        helper.make_node("Concat", ["c3", "p"], ["j"], "join", axis=1),
        helper.make_node("GlobalAveragePool", ["j"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], "last", transB=1),
    ]
    weights = [drawn("w1", 6, 2, 3, 3), drawn("b1", 6), drawn("w2", 6, 6, 3, 3), drawn("b2", 6)]
    weights += [drawn("w3", 3, 6, 1, 1), drawn("b3", 3), drawn("w4", 5, 9), drawn("b4", 5)]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5]),
    ]
    graph = helper.make_graph(nodes, "residual", ports[:1], ports[1:], weights)
    before, after = folder / "float.onnx", folder / "int8.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    before.write_bytes(model.SerializeToString())

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = [{"x": rng.normal(0, 1, (8, 2, 8, 8)).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> Any:
            return self.batches.pop() if self.batches else None

    settings: dict[str, Any] = {"weight_type": QuantType.QInt8, "per_channel": True} | options
    settings["extra_options"] = {"WeightSymmetric": True} | settings.get("extra_options", {})
    quantize_static(
        before, after, Reader(), quant_format=QuantFormat[form], activation_type=QuantType[codes], **settings
    )
    return after.read_bytes()


def symmetric(graph: Graph) -> Graph:
    """The network with zero points of 0 and weights from -127."""

    def op(old: Any) -> Any:
        return replace(old, weight=ops.freeze(np.maximum(old.weight, -127), np.int8)) if hasattr(old, "weight") else old

    tensors = tuple(replace(t, zero_point=0) for t in graph.tensors)
    return replace(graph, tensors=tensors, nodes=tuple(replace(n, op=op(n.op)) for n in graph.nodes))
