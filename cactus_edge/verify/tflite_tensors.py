"""Tensors and buffers of a .tflite file, each checked before it is used. Part of the trusted reader (`tflite_read`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir import graph as ir
from cactus_edge.ir import ops
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify.flatbuffer import Table, Tables

if TYPE_CHECKING:
    from cactus_edge.verify.tflite_dilated import Phases

MAX_RANK = 8

INTEGERS: dict[str, ir.DType] = {"INT8": "int8", "INT16": "int16"}
"""Types of activations that hold codes."""

MAX_INDICES = 256
"""Entries of a vector of sizes, axes or operands: each becomes an object of many times its bytes."""

HINTS = {
    "UINT8": "a model of uint8 codes inside is the older, asymmetric scheme: convert it again to int8 (uint8 input and output are read)",
}


@dataclass(frozen=True)
class Quantization:
    """scale float32 [n] finite and above zero, zero_point int64 [n] in int8; n > 1: one per slice along `dimension`."""

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    dimension: int


class Tensors:
    """The tensors of one subgraph: constants by their index in the file, activations in the order they are written.

    `file_index[t]`: the file's index of activation t, -1 where the file has no such tensor. `measured`: those that SHAPE
    reads. `whole`: those whose first axis in the file is no batch of 1 and therefore belongs to the sample. `unsigned`:
    those that hold uint8 codes, 128 above the graph's. `phases`: tensors between the ends of a dilated convolution.
    `resolved`: the first thing that a runtime has to find out, in words: a shape that is not the stored one, a buffer
    behind the FlatBuffer. `left`: the first operator that XNNPACK leaves to other kernels for an operand that is no constant.
    """

    def __init__(self, tensors: Tables, buffers: Tables) -> None:
        self._tensors, self._buffers = tensors, buffers
        if len(buffers) and len(self.buffer(0)):
            raise ModelError("malformed .tflite: buffer 0: expected no data (it stands for 'none'), got some")
        self.activations: list[ir.Tensor] = []
        self.file_index: list[int] = []
        self.graph_index: dict[int, int] = {}
        self.measured: set[int] = set()
        self.whole: set[int] = set()
        self.unsigned: set[int] = set()
        self.phases: dict[int, Phases] = {}
        self.resolved: str | None = None
        self.left: str | None = None
        self.constants: dict[int, ops.Codes] = {}
        self.folded: dict[int, npt.NDArray[Any]] = {}

    def buffer(self, index: int) -> npt.NDArray[np.uint8]:
        """The bytes of buffer `index`, a view of the file."""
        table = self._buffers[index]
        data = table.vector(fb.Buffer.DATA, "u1")
        offset, size = (table.number(f, "Q", 0) for f in (fb.Buffer.OFFSET, fb.Buffer.SIZE))
        if offset <= 1 and size <= 1:
            return np.zeros(0, np.uint8) if data is None else data
        if data is not None and len(data):
            raise ModelError(
                f"malformed .tflite: {table.what}: expected data inside the FlatBuffer or behind it, got both"
            )
        return self._behind(table, offset, size)

    def _behind(self, table: Table, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """The bytes that lie behind the FlatBuffer, a view of the file."""
        if self.resolved is None:
            self.resolved = f"{table.what} lies behind the FlatBuffer, at byte {offset}"
        found: npt.NDArray[np.uint8] = np.frombuffer(
            table.reader.data, np.uint8, size, table.reader.claim(offset, size, f"{table.what} behind the FlatBuffer")
        )
        return found

    def define(self, index: int, role: str, shape: tuple[int, ...] | None = None, *, unsigned: bool = False) -> int:
        """Adds the file's tensor `index` as an activation that is written here; its index in the graph.

        shape: the one that it has when the file runs, batch included, where that need not be what the file stores.
        """
        table = self._tensors[index]
        if index in self.graph_index:
            raise ModelError(
                f"malformed .tflite: {role} is {table.what}: expected a tensor that was not written before"
            )
        if len(self.buffer(table.number(fb.Tensor.BUFFER, "I", 0))):
            raise UnsupportedError(f"{role} is {table.what}, which is constant; expected an activation")
        if shape is not None:
            self._compare(table, shape, role)
        self.graph_index[index] = self._append(read_activation(table, shape, unsigned=unsigned), index)
        if (shape or _shape(table))[:1] != (1,):
            self.whole.add(self.graph_index[index])
        if unsigned:
            self.unsigned.add(self.graph_index[index])
        return self.graph_index[index]

    def between(self, index: int, shape: tuple[int, ...], role: str) -> None:
        """Notes that the file's tensor `index` has `shape` when the file runs; it is no tensor of the graph."""
        if index in self.graph_index or self._is_constant(index):
            raise ModelError(
                f"malformed .tflite: {role} is {self._tensors[index].what}: expected one not written before"
            )
        self._compare(self._tensors[index], shape, role)

    def _compare(self, table: Table, shape: tuple[int, ...], role: str) -> None:
        if shape != _shape(table) and self.resolved is None:
            self.resolved = f"{role}, {table.what}, has shape {shape} when it runs, and {_shape(table)} in the file"

    def add(self, tensor: ir.Tensor, codes: npt.NDArray[np.int8] | None = None) -> int:
        """The graph's index of an activation, or a constant, that the file does not have."""
        index = self._append(tensor, -1)
        if codes is not None:
            self.constants[index] = ops.freeze(codes, np.int8)
        return index

    def _append(self, tensor: ir.Tensor, file_index: int) -> int:
        self.activations.append(tensor)
        self.file_index.append(file_index)
        return len(self.activations) - 1

    def use(self, index: int, role: str) -> int:
        """The graph's index of the activation `index` of the file."""
        if index in self.graph_index:
            return self.graph_index[index]
        table = self._tensors[index]
        if len(self.buffer(table.number(fb.Tensor.BUFFER, "I", 0))):
            raise UnsupportedError(f"{role} is {table.what}, a constant; expected an activation")
        raise ModelError(
            f"malformed .tflite: {role} is {table.what}: expected a tensor written before, got one that is not"
        )

    def use_operands(self, operands: list[tuple[int, str]]) -> tuple[int, ...]:
        """The graph's indices of (tensor of the file, its role), among which a constant counts as an activation.

        A constant takes as many axes as the first activation has, with 1 in front.
        """
        constant = [i not in self.graph_index and self._is_constant(i) for i, _ in operands]
        if all(constant):
            raise UnsupportedError(f"{operands[0][1]} and all others are constants; expected an activation")
        first = self.use(*operands[constant.index(False)])
        return tuple(
            self._define_constant(i, role, first) if fixed else self.use(i, role)
            for (i, role), fixed in zip(operands, constant, strict=True)
        )

    def fold(self, index: int, values: npt.NDArray[Any], role: str) -> None:
        """Makes the file's tensor `index` a constant of the int32 `values`."""
        table = self._tensors[index]
        if index in self.folded or index in self.graph_index or self._is_constant(index):
            raise ModelError(
                f"malformed .tflite: {role} is {table.what}: expected a tensor that was not written before"
            )
        if (_type(table), _shape(table)) != ("INT32", values.shape):
            raise ModelError(
                f"malformed .tflite: {role} is {table.what}: expected INT32 {values.shape}, got {_type(table)} {_shape(table)}"
            )
        self.folded[index] = values

    def _is_constant(self, index: int) -> bool:
        return bool(len(self.buffer(self._tensors[index].number(fb.Tensor.BUFFER, "I", 0))))

    def _define_constant(self, index: int, role: str, first: int) -> int:
        rank = len(self.activations[first].shape) + 1
        dtype = self.activations[first].dtype
        codes, table = self.constant(index, dtype.upper(), role)
        q = quantization(table)
        if q is None or q.scale.size != 1:
            raise UnsupportedError(f"{role}, {table.what}, is a constant without one scale and zero point")
        shape = (*(1,) * (rank - codes.ndim), *codes.shape)
        if len(shape) != rank or shape[0] != 1:
            raise UnsupportedError(f"{role}, {table.what}, is a constant of shape {codes.shape} for {rank} axes")
        name = table.text(fb.Tensor.NAME)
        tensor = ir.Tensor(name, shape[1:], dtype, float(q.scale[0]), int(q.zero_point[0]))
        self.graph_index[index] = self._append(tensor, index)
        self.constants[self.graph_index[index]] = ops.freeze(codes.reshape(shape[1:]), dtype)
        return self.graph_index[index]

    def peek(self, index: int, shape: tuple[int, ...] | None = None, *, unsigned: bool = False) -> ir.Tensor:
        """The activation that tensor `index` of the file will be, before it is written; `shape` as in `define`."""
        return read_activation(self._tensors[index], shape, unsigned=unsigned)

    def stored_shape(self, index: int) -> tuple[int, ...]:
        """The shape that the file stores for tensor `index`, batch axis included."""
        return _shape(self._tensors[index])

    def type_name(self, index: int) -> str:
        """The type of tensor `index` of the file."""
        return _type(self._tensors[index])

    def constant(self, index: int, type_name: str, role: str) -> tuple[npt.NDArray[Any], Table]:
        """The elements of constant tensor `index` in its shape, and its table."""
        table = self._tensors[index]
        shape, found = _shape(table), _type(table)
        if found != type_name:
            raise UnsupportedError(f"{role}, {table.what}, is {found}; expected {type_name}")
        if index in self.folded:
            return self.folded[index], table
        data = self.buffer(table.number(fb.Tensor.BUFFER, "I", 0))
        if not len(data):
            raise UnsupportedError(f"{role}, {table.what}, is not a constant of the file")
        count, packed = math.prod(shape), type_name == "INT4"
        expected = -(-count // 2) if packed else count * np.dtype(fb.DTYPES[type_name]).itemsize
        if len(data) != expected:
            raise ModelError(
                f"malformed .tflite: {role}, {table.what}: expected {expected} bytes for {type_name} {shape}, got {len(data)}"
            )
        return (unpack_nibbles(data, count) if packed else data.view(fb.DTYPES[type_name])).reshape(shape), table


def unpack_nibbles(data: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.int8]:
    """The int4 elements of INT4 data as int8 [count]: element 2k is the low half of byte k, 2k + 1 the high half, two's complement.

    Where `count` is odd the last high half is no element. Source: kernels/internal/portable_tensor_utils.cc, UnpackPackedIntToInt8.
    """
    halves = np.stack([data << 4, data & 0xF0], -1).view(np.int8)
    return np.asarray((halves >> 4).reshape(-1)[:count])


def refuse(table: Table, *fields: IntEnum) -> None:
    """Raises UnsupportedError where a field that the graph cannot express is set."""
    for field in fields:
        if table.has(field):
            raise UnsupportedError(f"{table.what} uses {field.name.lower()}, which is not supported")


def indices(table: Table, field: IntEnum) -> list[int]:
    """A short vector of int32: sizes of axes, operands. Raises UnsupportedError for a long one."""
    found = table.vector(field, "<i4")
    if found is not None and len(found) > MAX_INDICES:
        raise UnsupportedError(
            f"{table.what}: {field.name.lower()} has {len(found)} entries, at most {MAX_INDICES} are"
        )
    return [] if found is None else found.tolist()


def _type(table: Table) -> str:
    code: int = table.number(fb.Tensor.TYPE, "b", 0)
    if not 0 <= code < len(fb.TYPES):
        raise UnsupportedError(f"{table.what} has type code {code}, expected one of 0..{len(fb.TYPES) - 1}")
    return fb.TYPES[code]


def _shape(table: Table) -> tuple[int, ...]:
    """The tensor's shape, batch axis included. Also refuses what a tensor may carry besides: sparsity, state, external data."""
    if table.number(fb.Tensor.IS_VARIABLE, "B", 0):
        raise UnsupportedError(f"{table.what} uses is_variable, which is not supported")
    if table.number(fb.Tensor.EXTERNAL_BUFFER, "I", 0):
        raise UnsupportedError(f"{table.what} uses external_buffer, which is not supported")
    refuse(table, fb.Tensor.SPARSITY, fb.Tensor.VARIANT_TENSORS)
    shape = tuple(indices(table, fb.Tensor.SHAPE))
    if len(shape) > MAX_RANK or any(n <= 0 for n in shape) or math.prod(shape) >= 1 << 31:
        raise ModelError(
            f"malformed .tflite: {table.what}: expected at most {MAX_RANK} positive sizes and fewer than 2^31 elements, "
            f"got shape {shape[: MAX_RANK + 1]}"
        )
    return shape


def read_activation(table: Table, shape: tuple[int, ...] | None = None, *, unsigned: bool = False) -> ir.Tensor:
    """The activation: without its first axis where that is a batch of 1, else the whole; `shape` as in `Tensors.define`.

    unsigned: its codes are uint8, which the graph has as int8 codes 128 below.
    """
    stored, type_name = _shape(table), _type(table)
    name = table.text(fb.Tensor.NAME)
    signature = indices(table, fb.Tensor.SHAPE_SIGNATURE) or list(stored)
    full = stored if shape is None else shape
    known = [n if shape is not None and s == -1 else s for s, n in zip(signature, full, strict=False)]
    if len(signature) != len(full) or known[:1] not in ([-1], list(full[:1])) or tuple(known[1:]) != full[1:]:
        if shape is not None and -1 not in signature:
            raise ModelError(f"malformed .tflite: {table.what} {name!r}: expected the shape {full}, got {stored}")
        raise UnsupportedError(f"{table.what} {name!r} has the dynamic shape {signature}; only the batch size may vary")
    if not full:
        raise UnsupportedError(f"{table.what} {name!r} is a single number; expected a first (batch) axis")
    sample = full[1:] if full[0] == 1 else full
    if type_name == "FLOAT32":
        return ir.Tensor(name, sample, "float32")
    dtype = INTEGERS.get(type_name) if not unsigned else "int8" if type_name == "UINT8" else None
    if dtype is None:
        raise UnsupportedError(
            f"{table.what} {name!r} is {type_name}; expected INT8 or INT16 activations", hint=HINTS.get(type_name, "")
        )
    q = quantization(table, 128 if unsigned else 0)
    if q is None or q.scale.size != 1:
        got = "no quantisation" if q is None else f"{q.scale.size} scales"
        raise ModelError(f"malformed .tflite: {table.what} {name!r}: expected one scale and zero point, got {got}")
    return ir.Tensor(name, sample, dtype, float(q.scale[0]), int(q.zero_point[0]))


def quantization(table: Table, above: int = 0) -> Quantization | None:
    """Scales (finite, above zero) with as many zero points, `above` an int8; None where the tensor has none."""
    params = table.table(fb.Tensor.QUANTIZATION, fb.Quantization)
    if params is None:
        return None
    if params.number(fb.Quantization.DETAILS_TYPE, "B", 0):
        raise UnsupportedError(f"{table.what} uses a custom quantisation, which is not supported")
    scale = params.vector(fb.Quantization.SCALE, "<f4")
    if scale is None or not scale.size:
        return None
    stored = params.vector(fb.Quantization.ZERO_POINT, "<i8")
    # LiteRT refuses a scale without a zero point, and TFLM computes with whatever lies in memory there.
    zero_point = np.zeros(0, np.int64) if stored is None else stored - above
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ModelError(f"malformed .tflite: {table.what}: expected finite scales above zero, got {_first_bad(scale)}")
    least, most = (int(zero_point.min()), int(zero_point.max())) if zero_point.size else (0, 0)
    if zero_point.size != scale.size or least < -128 or most > 127:
        raise ModelError(
            f"malformed .tflite: {table.what}: expected {scale.size} zero points in [{above - 128}, {above + 127}], "
            f"got {zero_point.size} in [{least + above}, {most + above}]"
        )
    return Quantization(scale, zero_point, params.number(fb.Quantization.QUANTIZED_DIMENSION, "i", 0))


def _first_bad(scale: npt.NDArray[np.float32]) -> float:
    return float(scale[~(np.isfinite(scale) & (scale > 0))][0])
