"""Bytes of an ONNX file -> the tables that `read` walks. Nothing the file claims is used before it is checked here.

Weights outside the file are refused, and no path that a file names is ever opened. Constants are decoded here, with their
sizes compared before any array exists; the wire format below is `wire`'s.
Source: onnx/onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx.read.wire import Message, parse_message
from cactus_edge.ir.spec import MAX_ELEMENTS

Array = npt.NDArray[Any]

OPSETS = (13, 23)
"""Oldest and newest operator set understood: 13 brought QDQ per channel; between them no attribute that is admitted changed."""

IR_VERSIONS = (4, 13)
"""From 4 on, an initializer is a constant rather than a graph input's default."""

FLOAT, UINT8, INT8, INT32, INT64, BOOL = 1, 2, 3, 6, 7, 9
ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_STRING, ATTRIBUTE_TENSOR, ATTRIBUTE_INTS = 1, 2, 3, 4, 7
"""TensorProto.DataType and AttributeProto.AttributeType, as stored."""

DTYPES: dict[int, tuple[str, str]] = {
    FLOAT: ("<f4", "float_data"),
    UINT8: ("u1", "int32_data"),
    INT8: ("i1", "int32_data"),
    INT32: ("<i4", "int32_data"),
    INT64: ("<i8", "int64_data"),
    BOOL: ("?", "int32_data"),
}
"""Per data type: the numpy dtype of its raw bytes, and the field that holds its values otherwise."""

OTHER_TYPES = {4: "uint16", 5: "int16", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}
OTHER_TYPES |= {17: "float8", 18: "float8", 19: "float8", 20: "float8", 21: "uint4", 22: "int4", 23: "float4"}
"""What files may hold beside, for messages: above all codes of 16 and of 4 bits."""

EXTERNAL = 1

NEITHER = "not an ONNX file (nor .tflite, which has TFL3 at byte 4)"
"""What is wrong with other bytes: every file without the mark of .tflite is taken for ONNX."""


def parse(data: bytes) -> Message:
    """The file's ModelProto, its header checked. Raises ModelError (malformed) or UnsupportedError."""
    model = _model(data)
    if not model.has("graph") or not model.opset_import:
        raise ModelError(f"{NEITHER}: it has no graph or no operator set", hint="give the model file itself")
    if not IR_VERSIONS[0] <= model.ir_version <= IR_VERSIONS[1]:
        raise UnsupportedError(f"ONNX IR version {model.ir_version}, expected {IR_VERSIONS[0]} to {IR_VERSIONS[1]}")
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OPSETS[0] <= versions[0] <= OPSETS[1]:
        raise UnsupportedError(f"ONNX operator sets {versions}, expected one from {OPSETS[0]} to {OPSETS[1]}")
    for field in ("functions", "training_info"):
        if len(getattr(model, field, ())):
            raise UnsupportedError(f"the ONNX model has {field}, which are not supported")
    if len(model.graph.sparse_initializer):
        raise UnsupportedError("the ONNX model has sparse initializers, which are not supported")
    return model


def _model(data: bytes) -> Message:
    try:
        return parse_message(memoryview(data), "Model")
    except UnsupportedError as error:
        raise UnsupportedError(f"{NEITHER}, that can be read: {error.message}") from error
    except ModelError as error:
        raise ModelError(f"{NEITHER}: its bytes do not parse: {error.message}") from error


def constants(tensors: Sequence[Any]) -> dict[str, Array]:
    """The initializers by name, read-only, decoded. Raises UnsupportedError for external data and other data types."""
    found: dict[str, Array] = {}
    for t in tensors:
        name = t.name
        if not name or name in found:
            raise ModelError(f"malformed ONNX: initializer {name!r}: expected a name of its own")
        found[name] = decode(t, f"initializer {name!r}")
    return found


def decode(t: Any, what: str) -> Array:
    """One TensorProto as a read-only array of int8, uint8, int32, int64, float32 or bool."""
    if t.data_location == EXTERNAL or len(t.external_data):
        raise UnsupportedError(
            f"{what} keeps its data outside the file, which is never followed",
            hint="save the model with its weights inside: onnx.save(onnx.load(path), path)",
        )
    if t.data_type not in DTYPES:
        found = OTHER_TYPES.get(t.data_type, f"data type {t.data_type}")
        raise UnsupportedError(f"{what} is {found}, expected int8, uint8, int32, int64 or float32")
    dims = tuple(int(n) for n in t.dims[:9])
    if len(dims) > 8 or any(not 0 <= n <= MAX_ELEMENTS for n in dims) or math.prod(dims) > MAX_ELEMENTS:
        raise ModelError(f"malformed ONNX: {what}: shape {dims}, expected at most {MAX_ELEMENTS} elements")
    dtype, field = DTYPES[t.data_type]
    stored = {
        f
        for f in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
        if len(getattr(t, f))
    }
    if t.has("segment") or stored - {field} or (stored and t.has("raw_data")):
        raise ModelError(f"malformed ONNX: {what}: expected its values in one place, got also {sorted(stored)}")
    count, want = math.prod(dims), np.dtype(dtype)
    if t.has("raw_data"):
        if len(t.raw_data) != count * want.itemsize:
            raise ModelError(f"malformed ONNX: {what}: {len(t.raw_data)} bytes for shape {dims}")
        values = np.frombuffer(t.raw_data, want)
    else:
        listed = np.array(getattr(t, field), np.float32 if field == "float_data" else np.int64)
        if listed.size != count:
            raise ModelError(f"malformed ONNX: {what}: {listed.size} values for shape {dims}")
        values = listed.astype(want)
        if not np.array_equal(values, listed, equal_nan=field == "float_data"):
            raise ModelError(f"malformed ONNX: {what}: values outside {want.name}")
    result: Array = values.astype(want.newbyteorder("=")).reshape(dims)
    result.setflags(write=False)
    return result


class Attributes:
    """A node's attributes, each read at most once under its declared type; `finish` refuses what nobody read."""

    def __init__(self, node: Any, what: str) -> None:
        self._what = what
        self._left: dict[str, Any] = {}
        for a in node.attribute:
            name = a.name
            if name in self._left or a.ref_attr_name:
                raise ModelError(f"malformed ONNX: {what}: attribute {name!r} twice or by reference")
            self._left[name] = a

    def _take(self, name: str, kind: int) -> Any:
        a = self._left.pop(name, None)
        if a is not None and a.type != kind:
            raise ModelError(f"malformed ONNX: {self._what}: attribute {name!r} has type {a.type}, expected {kind}")
        return a

    def integer(self, name: str, default: int) -> int:
        a = self._take(name, ATTRIBUTE_INT)
        return default if a is None else int(a.i)

    def number(self, name: str, default: float) -> float:
        a = self._take(name, ATTRIBUTE_FLOAT)
        return default if a is None else float(a.f)

    def text(self, name: str, default: bytes) -> bytes:
        a = self._take(name, ATTRIBUTE_STRING)
        return default if a is None else bytes(a.s)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """As many integers as `default` has."""
        a = self._take(name, ATTRIBUTE_INTS)
        found = default if a is None else tuple(a.ints[: len(default) + 1].tolist())
        if len(found) != len(default):
            raise ModelError(
                f"malformed ONNX: {self._what}: attribute {name!r} has {len(found)} values, expected {len(default)}"
            )
        return found

    def constant(self, name: str) -> Array | None:
        a = self._take(name, ATTRIBUTE_TENSOR)
        return None if a is None else decode(a.t, f"{self._what}: attribute {name!r}")

    def expect(self, name: str, value: int, *also: int) -> None:
        """Raises UnsupportedError unless the integer attribute is absent, `value` or one of `also`."""
        found = self.integer(name, value)
        if found not in (value, *also):
            raise UnsupportedError(f"{self._what}: {name} = {found} is not supported, expected {value}")

    def finish(self) -> None:
        if self._left:
            raise UnsupportedError(f"{self._what}: attribute {sorted(self._left)[0]!r} is not supported")
