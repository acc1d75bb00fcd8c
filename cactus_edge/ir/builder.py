"""Builds a graph op by op and checks it once at the end."""

from __future__ import annotations

from collections.abc import Sequence

from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.ops import Codes, Op, freeze
from cactus_edge.ir.spec import check


class GraphBuilder:
    """Appends tensors and nodes in execution order; `finish` returns the checked graph."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._nodes: list[Node] = []
        self._inputs: list[int] = []
        self._constants: dict[int, Codes] = {}

    def tensor(self, index: int) -> Tensor:
        """The tensor added as `index`."""
        return self._tensors[index]

    def input(self, tensor: Tensor) -> int:
        """Adds a graph input, returns its tensor index."""
        self._tensors.append(tensor)
        self._inputs.append(len(self._tensors) - 1)
        return self._inputs[-1]

    def constant(self, tensor: Tensor, codes: Codes) -> int:
        """Adds a tensor that always holds `codes` [*tensor.shape], returns its index."""
        self._tensors.append(tensor)
        self._constants[len(self._tensors) - 1] = freeze(codes, tensor.dtype)
        return len(self._tensors) - 1

    def node(self, op: Op, inputs: Sequence[int], output: Tensor) -> int:
        """Adds an op that reads `inputs` and writes the new tensor `output`, returns that tensor's index."""
        self._tensors.append(output)
        self._nodes.append(Node(op, tuple(inputs), len(self._tensors) - 1))
        return len(self._tensors) - 1

    def finish(self, *outputs: int) -> Graph:
        """The graph. Raises ModelError where `spec.check` refuses it."""
        graph = Graph(tuple(self._tensors), tuple(self._nodes), tuple(self._inputs), outputs, self._constants)
        check(graph)
        return graph
