"""Changes .tflite files through the schema's Object API, to build files that commit one sin each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    """The file after `change(ModelT)`."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for o in model.subgraphs[0].operators:
        o.inputs, o.outputs = o.inputs.copy(), o.outputs.copy()  # the schema gives read-only views
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def operator(model: Any, name: str) -> Any:
    """The first operator with this builtin name."""
    code = getattr(schema.BuiltinOperator, name)
    return next(o for o in model.subgraphs[0].operators if model.operatorCodes[o.opcodeIndex].builtinCode == code)


def operand(model: Any, name: str, index: int) -> Any:
    """Tensor `index` among the inputs of the first operator with this name."""
    return model.subgraphs[0].tensors[operator(model, name).inputs[index]]


def every_op() -> Graph:
    """A small network in which each op of the graph occurs, float32 at both ends."""
    rng = np.random.default_rng(7)
    b = GraphBuilder()

    def like(shape: tuple[int, ...], scale: float = 0.05, zero_point: int = -3) -> Tensor:
        return Tensor(f"t{len(b._tensors)}", shape, "int8", float(np.float32(scale)), zero_point)

    def weights(*shape: int) -> dict[str, Any]:
        o = shape[-1] if len(shape) == 3 else shape[0]
        return {
            "weight": ops.freeze(rng.integers(-127, 128, shape), np.int8),
            "bias": ops.freeze(rng.integers(-500, 500, o), np.int32),
            "weight_scale": ops.freeze(rng.uniform(0.002, 0.01, o), np.float32),
        }

    source = b.input(Tensor("image", (6, 7, 2), "float32"))
    x = b.node(ops.Quantize(), [source], like((6, 7, 2)))
    padding = ops.same_padding((6, 7), (3, 3), (1, 1))
    a = b.node(
        ops.Conv2d(**weights(4, 3, 3, 2), padding=padding, activation=ops.Activation.RELU6), [x], like((6, 7, 4))
    )
    c = b.node(ops.DepthwiseConv2d(**weights(3, 3, 4), padding=padding), [a], like((6, 7, 4), 0.04, 5))
    a = b.node(ops.Add(ops.Activation.RELU), [a, c], like((6, 7, 4), 0.08))
    a = b.node(ops.MaxPool((2, 2), (2, 2)), [a], like((3, 3, 4), 0.08))
    a = b.node(ops.Pad(((0, 1), (1, 0), (0, 0))), [a], like((4, 4, 4), 0.08))
    a = b.node(ops.Concat(2), [a, a], like((4, 4, 8), 0.08))
    a = b.node(ops.AvgPool((3, 2), (1, 2), ops.same_padding((4, 4), (3, 2), (1, 2))), [a], like((4, 2, 8), 0.08))
    a = b.node(ops.Relu(), [a], like((4, 2, 8), 0.03, -128))
    a = b.node(ops.Relu6(), [a], like((4, 2, 8), 0.03, -128))
    a = b.node(ops.Requantize(), [a], like((4, 2, 8), 0.02, 10))
    a = b.node(ops.Mean((1,), True), [a], like((4, 1, 8), 0.02, 9))
    a = b.node(ops.Reshape(), [a], like((32,), 0.02, 9))
    a = b.node(ops.Dense(**weights(5, 32)), [a], like((5,), 0.1, 2))
    a = b.node(ops.Softmax(), [a], Tensor("scores", (5,), "int8", 1 / 256, -128))
    return b.finish(b.node(ops.Dequantize(), [a], Tensor("probabilities", (5,), "float32")))


def every_op_file() -> bytes:
    """`every_op` as a file with one metadata entry."""
    return write_tflite(every_op(), metadata={"note": b"hello"})
