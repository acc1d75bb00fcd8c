"""Protocol-buffer bytes of an ONNX file -> messages, with numpy alone and without believing a length.

Stricter than the format: a field that is single appears once, a field that is in no table here is refused, and strings are
UTF-8. A table says per field number what it is called and holds; `SKIPPED` are fields that name, document or describe and
change no result. Source: onnx/onnx.proto; the encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4, groups, are in no ONNX file."""

MOST = 1 << 16
"""Entries of one repeated message or string field; more are refused before the objects for them exist."""

MOST_FIELDS, MOST_PACKED = 100_000, 1 << 21
"""Fields of one file, and bytes of its integers: what takes two bytes there becomes an object of hundreds, a number of one byte
one of eight. A network of a thousand nodes has 30,000 fields; weights stand in raw_data, byte by byte."""

INT, REAL, BYTES, TEXT, SKIPPED = "int", "float", "bytes", "text", "skipped"
SINGLE = {INT: 0, REAL: 0.0, BYTES: b"", TEXT: ""}
"""What a single field is where it is absent."""

Schema = Mapping[int, tuple[str, str]]
"""Field number -> (name, kind). A kind is one of the above, another message's name, or one of these after "*": repeated."""

MESSAGES: Mapping[str, Schema] = {
    "Model": {
        1: ("ir_version", INT),
        2: ("producer_name", SKIPPED),
        3: ("producer_version", SKIPPED),
        4: ("domain", SKIPPED),
        5: ("model_version", SKIPPED),
        6: ("doc_string", SKIPPED),
        7: ("graph", "Graph"),
        8: ("opset_import", "*OperatorSet"),
        14: ("metadata_props", "*Entry"),
        20: ("training_info", "*bytes"),
        25: ("functions", "*bytes"),
    },
    "OperatorSet": {1: ("domain", TEXT), 2: ("version", INT)},
    "Entry": {1: ("key", TEXT), 2: ("value", TEXT)},
    "Graph": {
        1: ("node", "*Node"),
        2: ("name", SKIPPED),
        5: ("initializer", "*Tensor"),
        10: ("doc_string", SKIPPED),
        11: ("input", "*Value"),
        12: ("output", "*Value"),
        13: ("value_info", SKIPPED),
        14: ("quantization_annotation", SKIPPED),
        15: ("sparse_initializer", "*bytes"),
        16: ("metadata_props", SKIPPED),
    },
    "Node": {
        1: ("input", "*text"),
        2: ("output", "*text"),
        3: ("name", TEXT),
        4: ("op_type", TEXT),
        5: ("attribute", "*Attribute"),
        6: ("doc_string", SKIPPED),
        7: ("domain", TEXT),
        9: ("metadata_props", SKIPPED),
    },
    "Attribute": {
        1: ("name", TEXT),
        2: ("f", REAL),
        3: ("i", INT),
        4: ("s", BYTES),
        5: ("t", "Tensor"),
        7: ("floats", "*float"),
        8: ("ints", "*int"),
        13: ("doc_string", SKIPPED),
        20: ("type", INT),
        21: ("ref_attr_name", TEXT),
    },
    "Tensor": {
        1: ("dims", "*int"),
        2: ("data_type", INT),
        3: ("segment", BYTES),
        4: ("float_data", "*float"),
        5: ("int32_data", "*int"),
        6: ("string_data", "*bytes"),
        7: ("int64_data", "*int"),
        8: ("name", TEXT),
        9: ("raw_data", BYTES),
        10: ("double_data", BYTES),
        11: ("uint64_data", "*int"),
        12: ("doc_string", SKIPPED),
        13: ("external_data", "*bytes"),
        14: ("data_location", INT),
        16: ("metadata_props", SKIPPED),
    },
    "Value": {1: ("name", TEXT), 2: ("type", "Type"), 3: ("doc_string", SKIPPED), 4: ("metadata_props", SKIPPED)},
    "Type": {1: ("tensor_type", "TensorType"), 6: ("denotation", SKIPPED)},
    "TensorType": {1: ("elem_type", INT), 2: ("shape", "Shape")},
    "Shape": {1: ("dim", "*Dimension")},
    "Dimension": {1: ("dim_value", INT), 2: ("dim_param", TEXT), 3: ("denotation", SKIPPED)},
}
"""The messages that a model's meaning can be in."""

KINDS = {message: dict(schema.values()) for message, schema in MESSAGES.items()}
"""Per message, field name -> kind."""

Packed = npt.NDArray[Any]


class Message:
    """One message: fields by name, as attributes; what the bytes do not hold reads as its type's empty value."""

    def __init__(self, kind: str, held: dict[str, Any]) -> None:
        self._kind, self._held = kind, held

    def has(self, name: str) -> bool:
        """Whether the bytes hold this field."""
        return name in self._held

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._held:
            return self._held[name]
        kind = KINDS[self._kind][name]
        if kind.startswith("*"):
            return np.zeros(0, np.int64) if kind == "*int" else np.zeros(0, np.float32) if kind == "*float" else []
        return SINGLE[kind] if kind in SINGLE else Message(kind, {})


class Allowance:
    """How much one file may still describe."""

    def __init__(self) -> None:
        self.fields, self.packed = MOST_FIELDS, MOST_PACKED

    def take(self, packed: int) -> None:
        """Counts a field, or `packed` bytes of integers. Raises UnsupportedError where a file has more than any network."""
        self.fields -= not packed
        self.packed -= packed
        if self.fields < 0 or self.packed < 0:
            raise UnsupportedError(
                f"it has more than {MOST_FIELDS} fields or {MOST_PACKED} bytes of integers",
                hint="store weights as raw_data, as onnx.numpy_helper.from_array does",
            )


def parse_message(data: memoryview, kind: str, left: Allowance | None = None) -> Message:
    """The message of `kind` in `data`. Raises ModelError for bytes that are none, UnsupportedError for fields without a table entry."""
    schema, held = MESSAGES[kind], dict[str, Any]()
    left = left or Allowance()
    at = 0
    while at < len(data):
        left.take(0)
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        start, at = at, _end(data, at, wire)
        if number not in schema:
            raise UnsupportedError(f"the ONNX {kind.lower()} has a field of number {number}, which is not supported")
        name, what = schema[number]
        if what == SKIPPED:
            continue
        if what.startswith("*"):
            listed = held.setdefault(name, [])
            if len(listed) >= MOST:
                raise UnsupportedError(f"the ONNX {kind.lower()} has more than {MOST} of {name}")
            listed.append(_value(data, start, at, wire, what[1:], name, True, left))
            continue
        if name in held:
            raise ModelError(f"malformed ONNX: {kind.lower()} with two of {name}, expected one")
        held[name] = _value(data, start, at, wire, what, name, False, left)
    for name, what in schema.values():
        if what in ("*int", "*float") and name in held:
            held[name] = np.concatenate(held[name])
    return Message(kind, held)


def _value(
    data: memoryview, start: int, end: int, wire: int, what: str, name: str, repeated: bool, left: Allowance
) -> Any:
    """One field's value; numbers of a repeated field are arrays, packed or single."""
    if what in (INT, REAL):
        if what == INT and wire == VARINT:
            number = _varint(data, start)[0] & (1 << 64) - 1
            number -= (number >> 63) << 64
            return np.array([number], np.int64) if repeated else number
        if what == REAL and wire == FIXED32:
            piece = data[start:end]
        elif wire == LENGTH and repeated:
            piece = data[_varint(data, start)[1] : end]
        else:
            raise ModelError(f"malformed ONNX: {name} has wire type {wire}")
        if what == INT and len(piece):
            left.take(len(piece))
        numbers = _varints(piece) if what == INT else _floats(piece, name)
        return numbers if repeated else numbers[0].item()
    if wire != LENGTH:
        raise ModelError(f"malformed ONNX: {name} has wire type {wire}")
    piece = data[_varint(data, start)[1] : end]
    if what == BYTES:
        return bytes(piece)
    if what == TEXT:
        try:
            return str(piece, "utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"malformed ONNX: the {name} {bytes(piece[:40])!r} is not UTF-8") from None
    return parse_message(piece, what, left)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer at `at`, and where it ends."""
    if at < len(data) and data[at] < 128:
        return data[at], at + 1
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise ModelError("malformed ONNX: a number is cut off")


def _end(data: memoryview, at: int, wire: int) -> int:
    """Where the value of this wire type ends, inside `data`."""
    if wire == VARINT:
        return _varint(data, at)[1]
    if wire == LENGTH:
        size, at = _varint(data, at)
    elif wire in (FIXED64, FIXED32):
        size = 8 if wire == FIXED64 else 4
    else:
        raise ModelError(f"malformed ONNX: wire type {wire}")
    if size > len(data) - at:
        raise ModelError(f"malformed ONNX: a field of {size} bytes in a message of {len(data)}")
    return at + size


def _varints(piece: memoryview) -> Packed:
    """The signed 64-bit integers packed in `piece`."""
    raw = np.frombuffer(piece, np.uint8)
    last = np.flatnonzero(raw < 128)
    if raw.size and (not last.size or last[-1] != raw.size - 1):
        raise ModelError("malformed ONNX: a number is cut off")
    first = np.append(0, last[:-1] + 1)[: last.size]
    sizes = last - first + 1
    if sizes.max(initial=1) > 10:
        raise ModelError("malformed ONNX: a number of more than 10 bytes")
    values = np.zeros(last.size, np.uint64)
    for i in range(int(sizes.max(initial=0))):
        longer = sizes > i
        values[longer] |= (raw[first[longer] + i] & np.uint8(127)).astype(np.uint64) << np.uint64(7 * i)
    return values.view(np.int64)


def _floats(piece: memoryview, name: str) -> Packed:
    """The float32 values in `piece`."""
    if len(piece) % 4:
        raise ModelError(f"malformed ONNX: {name} of {len(piece)} bytes, expected a multiple of 4")
    return np.frombuffer(piece, "<f4")
