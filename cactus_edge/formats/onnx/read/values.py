"""What a value of a QDQ ONNX graph can be, and the growing integer graph that the reader makes of the nodes.

A float value is never more than a view: of the graph's input (`Source`), of int8 codes (`Real`), of an integer constant
(`Constant`), or of a result that the next QuantizeLinear rounds (`Pending`). Everything else would be a float island.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx.read.layout import Image
from cactus_edge.formats.onnx.read.proto import Array, Attributes
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Node, Tensor


@dataclass(frozen=True)
class Source:
    """The graph's float input, tensor 0."""


@dataclass(frozen=True)
class Codes:
    """The codes of a tensor. unsigned: the file holds them as uint8, 128 above ours, which changes no sum of x - zero point."""

    tensor: int
    unsigned: bool


@dataclass(frozen=True)
class Real:
    """A tensor's codes, dequantised with its own scale and zero point."""

    tensor: int


@dataclass(frozen=True, eq=False)
class Constant:
    """scale * integers, one scale per index along `axis` (None: one scale)."""

    integers: Array
    scale: npt.NDArray[np.float32]
    axis: int | None


@dataclass(frozen=True, eq=False)
class Pending:
    """op applied to tensors, before it is rounded: the sample's shape and, for the order of its elements, the image it is."""

    op: ops.Op
    tensors: tuple[int, ...]
    shape: tuple[int, ...]
    image: Image | None


@dataclass(frozen=True)
class Clamped:
    """A tensor's codes, dequantised and clamped by an activation; `alone` if nothing else reads them."""

    tensor: int
    activation: ops.Activation
    alone: bool


Value = Source | Codes | Real | Constant | Pending | Clamped


class Network:
    """Tensors and nodes read so far, the values by name, and how often each name is read.

    uint8: tensors whose codes the file holds as uint8. single: the file's batch is 1. shifted: a weight
    is uint8, or has a zero point.
    """

    def __init__(self, constants: dict[str, Array], uses: Counter[str]) -> None:
        self.constants = constants
        self.uses = uses
        self.values: dict[str, Value] = {}
        self.tensors: list[Tensor] = []
        self.images: list[Image | None] = []
        self.nodes: list[Node] = []
        self.writer: dict[int, int] = {}
        self.uint8: set[int] = set()
        self.renamed: set[int] = set()
        self.single = False
        self.shifted = False
        self.rounded = False

    def tensor(self, tensor: Tensor, image: Image | None) -> int:
        self.tensors.append(tensor)
        self.images.append(image)
        return len(self.tensors) - 1

    def node(self, op: ops.Op, sources: tuple[int, ...], tensor: Tensor, image: Image | None) -> int:
        index = self.tensor(tensor, image)
        self.writer[index] = len(self.nodes)
        self.nodes.append(Node(op, sources, index))
        return index

    def define(self, name: str, value: Value, what: str) -> None:
        if not name or name in self.values or name in self.constants:
            raise ModelError(f"malformed ONNX: {what} writes {name!r}, expected a name of its own")
        if isinstance(value, Pending | Clamped) and not moved(value) and self.uses[name] != 1:
            raise UnsupportedError(
                f"{what}: {self.uses[name]} nodes read its result before it is quantised, expected one QuantizeLinear: a float "
                "island"
            )
        if isinstance(value, Codes) and self.tensors[value.tensor].name == name:
            (self.uint8.add if value.unsigned else self.uint8.discard)(value.tensor)
        self.values[name] = value

    def settle(self, name: str) -> None:
        """Makes a move that nobody has rounded, which needs no rounding, a tensor of the scale that it moved; it has no name."""
        value = self.values.get(name)
        if isinstance(value, Pending) and moved(value):
            like = replace(self.tensors[value.tensors[0]], name="", shape=value.shape)
            self.values[name] = Real(self.node(value.op, value.tensors, like, value.image))

    def fuse(self, tensor: int, activation: ops.Activation, name: str) -> None:
        """Gives the node that writes `tensor` a fused activation and the tensor the name `name`."""
        at = self.writer[tensor]
        op = self.nodes[at].op
        assert isinstance(op, FUSING)
        self.nodes[at] = replace(self.nodes[at], op=replace(op, activation=activation))
        self.tensors[tensor] = replace(self.tensors[tensor], name=name)

    def fusible(self, tensor: int) -> bool:
        """Whether the node that writes `tensor` can take an activation: it has none yet, and no other name hides a reader."""
        at = self.writer.get(tensor)
        op = None if at is None or tensor in self.renamed else self.nodes[at].op
        return isinstance(op, FUSING) and op.activation is ops.Activation.NONE


FUSING = (ops.Conv2d, ops.DepthwiseConv2d, ops.Dense, ops.MaxPool, ops.Add)
"""Ops with a fused activation."""

MOVING = (ops.MaxPool, ops.Reshape, ops.Transpose, ops.Slice, ops.ResizeNearest, ops.Pad)
"""Ops that move or choose codes: their output keeps scale and zero point."""


def moved(value: Value) -> bool:
    """Whether a value holds codes of its source, moved or chosen, which rounding leaves as they are."""
    op = value.op if isinstance(value, Pending) else None
    return isinstance(op, MOVING) and not (isinstance(op, FUSING) and op.activation is not ops.Activation.NONE)


class Operator:
    """One node of the file: its operands and attributes, with messages that name it and its index."""

    def __init__(self, net: Network, node: Any, index: int) -> None:
        self.net, self.kind = net, node.op_type
        self.domain = node.domain if node.domain != "ai.onnx" else ""
        self.what = f"node {index} {self.kind} {node.name!r}"
        if node.domain not in ("", "ai.onnx", "com.microsoft"):
            raise UnsupportedError(f"{self.what} of domain {node.domain!r} is not supported")
        self.inputs = tuple(node.input)
        self.outputs = tuple(node.output)
        self.attributes = Attributes(node, self.what)
        for name in self.inputs:
            if name and name not in net.values and name not in net.constants:
                raise ModelError(f"malformed ONNX: {self.what} reads {name!r} before it is written")

    def operands(self, least: int, most: int) -> None:
        """Raises ModelError unless the node has `least` to `most` inputs and one output."""
        if not least <= len(self.inputs) <= most or len(self.outputs) != 1:
            raise ModelError(
                f"malformed ONNX: {self.what}: expected {least} to {most} inputs and 1 output, got {len(self.inputs)} and "
                f"{len(self.outputs)}"
            )

    def name(self, index: int) -> str:
        """The name of operand `index`."""
        if index >= len(self.inputs):
            raise self.malformed(f"at least {index + 1} inputs", len(self.inputs))
        return str(self.inputs[index])

    def has(self, index: int) -> bool:
        """Whether the optional operand `index` is there."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def value(self, index: int) -> Value | None:
        """The value that is operand `index`; None for a plain constant."""
        return self.net.values.get(self.name(index))

    def plain(self, index: int, *dtypes: npt.DTypeLike) -> Array:
        """The constant operand `index` of one of the types. Raises UnsupportedError where it is computed or of another one."""
        name = self.name(index)
        if name not in self.net.constants:
            raise UnsupportedError(f"{self.what}: input {index} {name!r} is not a constant")
        found = self.net.constants[name]
        if found.dtype not in dtypes:
            wanted = " or ".join(str(np.dtype(d)) for d in dtypes)
            raise UnsupportedError(f"{self.what}: input {index} {name!r} is {found.dtype}, expected {wanted}")
        return found

    def scalar(self, index: int, *dtypes: npt.DTypeLike) -> Any:
        """The only element of the constant operand `index`."""
        found = self.plain(index, *dtypes)
        if found.size != 1 or found.ndim > 1:
            raise UnsupportedError(f"{self.what}: input {index} has shape {found.shape}, expected one value")
        return found.reshape(-1)[0]

    def real(self, index: int = 0) -> int:
        """The tensor whose dequantised codes are operand `index`. Raises UnsupportedError for a float island."""
        self.net.settle(self.name(index))
        value = self.value(index)
        if not isinstance(value, Real):
            raise UnsupportedError(
                f"{self.what}: input {index} {self.inputs[index]!r} is not the result of a DequantizeLinear: a float island",
                hint="quantise every operator of the model",
            )
        return value.tensor

    def codes(self, index: int) -> Codes:
        """The codes that are operand `index`."""
        value = self.value(index)
        if not isinstance(value, Codes):
            raise UnsupportedError(f"{self.what}: input {index} {self.inputs[index]!r} is no quantised tensor")
        return value

    def dequantised(self, index: int, dtype: npt.DTypeLike) -> Constant:
        """The dequantised integer constant that is operand `index`."""
        value = self.value(index)
        if not isinstance(value, Constant):
            raise UnsupportedError(
                f"{self.what}: input {index} {self.inputs[index]!r} is not a constant behind a DequantizeLinear: it would be "
                "computed in float"
            )
        if value.integers.dtype != dtype:
            raise UnsupportedError(f"{self.what}: input {index} is {value.integers.dtype}, expected {np.dtype(dtype)}")
        return value

    def define_constant(self, values: Array) -> None:
        """Makes `values` the constant that the node writes."""
        name = self.outputs[0]
        if not name or name in self.net.values or name in self.net.constants:
            raise self.malformed("an output name of its own", repr(name))
        self.net.constants[name] = values

    def rename(self) -> None:
        """Makes operand 0 known under the node's output name as well."""
        if self.inputs[0] in self.net.constants:
            self.define_constant(self.net.constants[self.inputs[0]])
            return
        value = self.value(0)
        if value is None:
            raise self.malformed("an operand", "none")
        if isinstance(value, Real | Codes):
            self.net.renamed.add(value.tensor)
        self.net.define(self.outputs[0], value, self.what)

    def malformed(self, expected: str, got: object) -> ModelError:
        return ModelError(f"malformed ONNX: {self.what}: expected {expected}, got {got}")

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self.what}: {what} is not supported")
