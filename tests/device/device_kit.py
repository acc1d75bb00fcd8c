"""What the tests of boards share: a small model and what is built of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cactus_edge.device.firmware import FirmwareReport
from cactus_edge.device.protocol import Timeouts
from cactus_edge.device.targets import Target
from cactus_edge.formats.c.blob import op_nodes
from cactus_edge.formats.c.write import CSources
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import trace
from cactus_edge.ir.graph import Graph, Tensor

HASTY = Timeouts(name_s=0.2, command_s=0.4, infer_s=2.0)
"""Short enough for tests that wait for a time-out on purpose; an answer takes milliseconds."""


@dataclass(frozen=True)
class Built:
    """A model, 128 inputs, what the interpreter computes for them, its C sources and its firmware."""

    graph: Graph
    inputs: npt.NDArray[np.int8]
    expected: npt.NDArray[np.int8]
    sources: CSources
    firmware: FirmwareReport
    target: Target

    @property
    def digest(self) -> str:
        return self.sources.digest

    def layers(self, index: int) -> list[tuple[str, bytes]]:
        """Label and expected bytes after each operation, as `measure.Layers` wants them."""
        tensors = trace(self.graph, self.inputs[index : index + 1], profile("tflm"))
        nodes = [self.graph.nodes[i] for i in op_nodes(self.graph)]
        return [
            (self.graph.label(i), _bytes(tensors[n.output])) for i, n in zip(op_nodes(self.graph), nodes, strict=True)
        ]


def _bytes(tensor: npt.NDArray[np.int8] | None) -> bytes:
    assert tensor is not None
    return tensor.tobytes()


def small_graph(seed: int = 7) -> Graph:
    """9x9x2 -> convolution -> depthwise -> average pool -> dense of 7 logits; awkward scales, outputs over all of int8."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> npt.NDArray[np.int8]:
        return rng.integers(-127, 128, shape, dtype=np.int8)

    def bias(n: int) -> npt.NDArray[np.int32]:
        return rng.integers(-900, 900, n, dtype=np.int32)

    def scales(n: int) -> npt.NDArray[np.float32]:
        return (2.0 ** rng.uniform(-9, -7, n)).astype(np.float32)

    b = GraphBuilder()
    x = b.input(Tensor("image", (9, 9, 2), scale=0.0625, zero_point=-5))
    x = b.node(
        ops.Conv2d(
            weights(6, 3, 3, 2), bias(6), scales(6), (1, 1), ops.Padding2d(1, 1, 1, 1), activation=ops.Activation.RELU
        ),
        [x],
        Tensor("conv", (9, 9, 6), scale=0.109375, zero_point=-128),
    )
    x = b.node(
        ops.DepthwiseConv2d(weights(3, 3, 6), bias(6), scales(6), (2, 2)),
        [x],
        Tensor("depthwise", (4, 4, 6), scale=0.1875, zero_point=3),
    )
    x = b.node(ops.AvgPool(kernel=(2, 2), stride=(2, 2)), [x], Tensor("pool", (2, 2, 6), scale=0.1875, zero_point=3))
    x = b.node(ops.Reshape(), [x], Tensor("flat", (24,), scale=0.1875, zero_point=3))
    x = b.node(
        ops.Dense(weights(7, 24), bias(7), scales(7)[:1]), [x], Tensor("logits", (7,), scale=0.1328125, zero_point=-9)
    )
    return b.finish(x)
