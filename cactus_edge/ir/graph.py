"""The integer network: immutable, ordered, hashed.

A graph is a tuple of tensors and a tuple of nodes in execution order; nodes name tensors by index. Weights live in the
ops. `spec.check` says what is legal; `evaluate` says what it computes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Literal

import numpy as np

from cactus_edge.ir.ops import Codes, Op, Padding2d

DType = Literal["int8", "int16", "float32"]


def code_range(dtype: str) -> tuple[int, int]:
    """(least, most) integer of an integer type."""
    ends = np.iinfo(dtype)
    return int(ends.min), int(ends.max)


@dataclass(frozen=True)
class Tensor:
    """One activation. real = scale * (q - zero_point) for integers q; `scale` is a float32 value held as a Python float.

    `shape` is one sample's, without the batch axis.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType = "int8"
    scale: float = 1.0
    zero_point: int = 0

    @property
    def size(self) -> int:
        """Elements of one sample."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Bytes of one sample."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def codes(self) -> tuple[int, int]:
        """(least, most) integer of its type. Raises ValueError for float32."""
        return code_range(self.dtype)

    def quantised_like(self, other: Tensor) -> bool:
        """Whether both tensors mean the same real number by the same integer."""
        return self.scale == other.scale and self.zero_point == other.zero_point


@dataclass(frozen=True)
class Node:
    """One operation: reads the tensors `inputs`, writes the tensor `output`."""

    op: Op
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Graph:
    """Tensors, nodes in execution order, and which tensors are the graph's inputs and outputs.

    `constants`: tensor index -> its codes [*shape], for tensors that no node writes.
    """

    tensors: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Codes] = field(default_factory=dict, hash=False)

    @property
    def input(self) -> Tensor:
        """The only input (`spec.check` guarantees that there is one)."""
        return self.tensors[self.inputs[0]]

    @property
    def output(self) -> Tensor:
        """The only output."""
        return self.tensors[self.outputs[0]]

    def label(self, index: int) -> str:
        """How messages name node `index`: number, kind and the tensor it writes."""
        node = self.nodes[index]
        return f"op {index} {type(node.op).__name__} -> {self.tensors[node.output].name!r}"

    def weights(self) -> int:
        """Number of weight elements (biases not counted)."""
        return sum(int(node.op.weight.size) for node in self.nodes if hasattr(node.op, "weight"))

    def digest(self) -> str:
        """SHA-256 (hex) of everything the graph says except tensor names: equal digests compute equal functions."""
        h = hashlib.sha256()
        for part in _parts(self):
            h.update(len(part).to_bytes(8, "little"))
            h.update(part)
        return h.hexdigest()


def _parts(graph: Graph) -> Iterator[bytes]:
    yield json.dumps(
        [graph.inputs, graph.outputs, [[t.shape, t.dtype, float(t.scale).hex(), t.zero_point] for t in graph.tensors]]
    ).encode()
    for index in sorted(graph.constants):
        yield from _value(f"constant {index}", graph.constants[index])
    for node in graph.nodes:
        yield json.dumps([type(node.op).__name__, node.inputs, node.output]).encode()
        for f in fields(node.op):
            value = getattr(node.op, f.name)
            # Networks whose weights are bytes have the digest that they had before there were others.
            if f.name != "weight_bits" or value != 8:
                yield from _value(f.name, value)


def _value(name: str, value: Any) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield json.dumps([name, str(value.dtype), value.shape]).encode()
        yield value.astype(value.dtype.newbyteorder("<")).tobytes()
    elif isinstance(value, Enum):
        yield json.dumps([name, value.value]).encode()
    elif isinstance(value, Padding2d):
        yield json.dumps([name, value.top, value.bottom, value.left, value.right]).encode()
    elif isinstance(value, float):
        yield json.dumps([name, value.hex()]).encode()
    else:
        yield json.dumps([name, value]).encode()


def rename(graph: Graph, names: dict[int, str]) -> Graph:
    """The same graph with other tensor names (its digest does not change)."""
    tensors = tuple(replace(t, name=names.get(i, t.name)) for i, t in enumerate(graph.tensors))
    return replace(graph, tensors=tensors)
