"""Shape arithmetic in front of RESHAPE: folded for one sample, and refused where it says something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_edit import edited, operator

from cactus_edge.errors import ModelError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor


def reshaping() -> Graph:
    b = GraphBuilder()
    x = b.input(Tensor("x", (4, 6, 2), "int8", 0.5, 0))
    y = b.node(ops.Relu6(), [x], Tensor("r", (4, 6, 2), "int8", 0.5, 0))
    return b.finish(b.node(ops.Reshape(), [y], Tensor("y", (8, 6), "int8", 0.5, 0)))


FILE = write_tflite(reshaping())


@dataclass
class Editor:
    """Adds int32 tensors and operators in front of the model's RESHAPE."""

    model: Any

    def tensor(self, shape: Sequence[int], values: Any = None) -> int:
        buffer, t = schema.BufferT(), schema.TensorT()
        buffer.data = None if values is None else np.asarray(values, "<i4").tobytes()
        self.model.buffers.append(buffer)
        t.name, t.shape, t.type, t.buffer = (
            "i",
            np.array(shape, np.int32),
            schema.TensorType.INT32,
            len(self.model.buffers) - 1,
        )
        self.model.subgraphs[0].tensors.append(t)
        return len(self.model.subgraphs[0].tensors) - 1

    def constant(self, values: Any) -> int:
        return self.tensor(np.shape(values), values)

    def emit(self, name: str, inputs: Sequence[int], shape: Sequence[int], **options: Any) -> int:
        o, code = schema.OperatorT(), schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
        self.model.operatorCodes.append(code)
        o.opcodeIndex = len(self.model.operatorCodes) - 1
        out = self.tensor(shape)
        o.inputs, o.outputs = np.array(inputs, np.int32), np.array([out], np.int32)
        table = "".join(part.title() for part in name.split("_")) + "Options"
        o.builtinOptions, o.builtinOptionsType = getattr(schema, f"{table}T")(), getattr(schema.BuiltinOptions, table)
        for key, value in options.items():
            assert hasattr(o.builtinOptions, key)
            setattr(o.builtinOptions, key, value)
        operators = self.model.subgraphs[0].operators
        operators.insert(len(operators) - 1, o)
        return out

    def shape(self) -> int:
        return self.emit("SHAPE", [operator(self.model, "RESHAPE").inputs[0]], [4], outType=schema.TensorType.INT32)

    def cut(self, values: int, begin: int, end: int, shape: Sequence[int], **options: Any) -> int:
        ends = [self.constant([v]) for v in (begin, end, 1)]
        return self.emit("STRIDED_SLICE", [values, *ends], shape, **options)

    def target(self, tensor: int) -> None:
        reshape = operator(self.model, "RESHAPE")
        reshape.inputs = np.array([reshape.inputs[0], tensor], np.int32)
        reshape.builtinOptions, reshape.builtinOptionsType = None, 0


def packed(model: Any) -> None:
    """What the converter writes for Reshape: [SHAPE(x)[0], 8, 6]."""
    e = Editor(model)
    batch = e.cut(e.shape(), 0, 1, [], shrinkAxisMask=1)
    e.target(e.emit("PACK", [batch, e.constant(np.int32(8)), e.constant(np.int32(6))], [3], valuesCount=3))


def joined(model: Any) -> None:
    """And for UpSampling2D: SHAPE(x)[:1] joined with [8, 6]; here with the last size taken from the shape as well."""
    e = Editor(model)
    shape = e.shape()
    first = e.cut(shape, 0, 1, [1], beginMask=1)
    e.target(e.emit("CONCATENATION", [first, e.constant([8]), e.cut(shape, -2, -1, [1])], [3]))


CODES = np.random.default_rng(0).integers(-128, 128, (3, 4, 6, 2)).astype(np.int8)


@pytest.mark.parametrize("change", [packed, joined])
def test_shape_arithmetic_is_folded(change: Callable[[Any], None]) -> None:
    data = edited(FILE, change)
    assert read_tflite(data).graph.digest() == read_tflite(FILE).graph.digest()
    for name in ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack"):
        agree(data, CODES, name).require()


def _wrong_target(model: Any) -> None:
    e = Editor(model)
    batch = e.cut(e.shape(), 1, 2, [], shrinkAxisMask=1)
    e.target(e.emit("PACK", [batch, e.constant(np.int32(2)), e.constant(np.int32(6))], [3], valuesCount=3))


def _index_beyond(model: Any) -> None:
    e = Editor(model)
    e.target(e.cut(e.shape(), 4, 5, [], shrinkAxisMask=1))


def _wrong_declaration(model: Any) -> None:
    e = Editor(model)
    e.target(e.cut(e.shape(), 0, 2, [3]))


def _growing(model: Any) -> None:
    e = Editor(model)
    shape = e.shape()
    for _ in range(40):
        shape = e.emit("CONCATENATION", [shape, shape], [4])
    e.target(shape)


def _packed_lists(model: Any) -> None:
    e = Editor(model)
    e.target(e.emit("PACK", [e.shape(), e.constant([1, 2, 3, 4])], [2, 4], valuesCount=2))


def _written_twice(model: Any) -> None:
    e = Editor(model)
    shape = e.shape()
    e.shape()
    made = model.subgraphs[0].operators[-2]
    made.outputs = np.array([shape], np.int32)
    e.target(shape)


def _constants_only(model: Any) -> None:
    e = Editor(model)
    e.target(
        e.emit("PACK", [e.constant(np.int32(1)), e.constant(np.int32(8)), e.constant(np.int32(6))], [3], valuesCount=3)
    )


SINS: dict[str, tuple[Callable[[Any], None], str]] = {
    "another_target": (_wrong_target, "expected the shape"),
    "index_beyond": (_index_beyond, "an index into 4 elements, got 4"),
    "wrong_declaration": (_wrong_declaration, r"expected INT32 \(2,\), got INT32 \(3,\)"),
    "growing": (_growing, "expected INT32 .8,., got INT32 .4,.|joining shapes"),
    "packed_lists": (_packed_lists, "tensors that are no numbers"),
    "written_twice": (_written_twice, "expected a tensor that was not written before"),
    "constants_only": (_constants_only, "a constant; expected an activation"),
}


@pytest.mark.parametrize("sin", SINS)
def test_refused_by_name(sin: str) -> None:
    change, message = SINS[sin]
    with pytest.raises(ModelError, match=message):
        read_tflite(edited(FILE, change))


def test_shape_of_what_is_no_tensor_yet() -> None:
    def change(model: Any) -> None:
        e = Editor(model)
        shape = e.shape()
        model.subgraphs[0].operators.insert(0, model.subgraphs[0].operators.pop(1))
        e.target(shape)

    with pytest.raises(ModelError, match="written before"):
        read_tflite(edited(FILE, change))
