"""The zeros among a file's weights, layer by layer, and whether they stand where sparse kernels skip them.

Weights are looked at in the order in which an ONNX file has them and TensorRT reads them: along the input channels of each output
channel and tap of a convolution, along the columns of a dense layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cactus_edge.formats.onnx.read.layout import stored_columns, stored_image
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Node


@dataclass(frozen=True)
class Zeros:
    """One op with weights. index: of the node; name: of its output; row: weights that a kernel sums up in a row.

    most: largest number of weights other than 0 in 4 consecutive ones of a row, None where rows are no multiples of 4. codes:
    how many different integers other than 0 there are. stored: bits that the file has for each weight.
    """

    index: int
    name: str
    kind: str
    weights: int
    zeros: int
    row: int
    most: int | None
    codes: int
    stored: int = 8

    @property
    def bits(self) -> int:
        """Bits that would tell a weight other than 0 from its like in this op."""
        return max(self.codes - 1, 0).bit_length()

    @property
    def share(self) -> float:
        """Zeros over weights."""
        return self.zeros / self.weights

    @property
    def two_of_four(self) -> bool:
        """Whether at most 2 of every 4 in a row are not 0: what TensorRT asks (developer guide, "Structured Sparsity")."""
        return self.most is not None and self.most <= 2


def zeros(graph: Graph) -> tuple[Zeros, ...]:
    """Every op with weights, in order. Depthwise convolutions have rows of one weight."""
    found = []
    for index, node in enumerate(graph.nodes):
        weight = ops.constants(node.op).get("weight")
        if weight is None:
            continue
        rows = _rows(graph, node)
        row = 1 if rows is None else rows.shape[1]
        most = None
        if rows is not None and row % 4 == 0:
            most = int(np.count_nonzero(rows.reshape(-1, 4), axis=1).max(initial=0))
        name = graph.tensors[node.output].name
        count = int(weight.size - np.count_nonzero(weight))
        stored = getattr(node.op, "weight_bits", 8)
        kind = type(node.op).__name__
        found.append(Zeros(index, name, kind, int(weight.size), count, row, most, _codes(weight), stored))
    return tuple(found)


def _codes(weight: ops.Int8) -> int:
    return int(np.count_nonzero(np.unique(weight)))


def narrow(found: Sequence[Zeros]) -> str:
    """Which ops would need fewer bits than the file stores for each weight other than 0, in words; "" for none."""
    by_bits: dict[int, list[Zeros]] = {}
    for z in found:
        if z.zeros < z.weights and z.bits < z.stored:
            by_bits.setdefault(z.bits, []).append(z)
    each = [f"{bits} in {', '.join(f'#{z.index}' for z in ops)}" for bits, ops in sorted(by_bits.items())]
    return (
        f"bits that would tell the rest apart: {'; '.join(each)}; the file stores {stored_bits(found)}" if each else ""
    )


def stored_bits(found: Sequence[Zeros]) -> str:
    """The bits that a weight takes, and in which ops where they differ."""
    widths = sorted({z.stored for z in found})
    if len(widths) < 2:
        return f"{widths[0] if widths else 8} in every op"
    return ", ".join(f"{bits} in {', '.join(f'#{z.index}' for z in found if z.stored == bits)}" for bits in widths)


def _rows(graph: Graph, node: Node) -> ops.Int8 | None:
    """The weights as rows [N, row], None where each stands alone."""
    match node.op:
        case ops.Conv2d(weight=weight):
            return weight.reshape(-1, weight.shape[3])
        case ops.Dense(weight=weight):
            return stored_columns(weight, stored_image(graph, node.inputs[0]))
        case _:
            return None
