"""Questions to `ce_certify`, and what `verify` says to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from strategies import IN_C, random_graph, random_inputs

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.c.blob import build
from cactus_edge.formats.c.blob_format import Blob
from cactus_edge.formats.c.live import live_boxes, live_decider
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import quantised, run
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower

TFLM = profile("tflm")
NO_RULE = -3

ENDINGS = ("logits", "softmax", "requantised")

Answer = Callable[[Blob, np.ndarray, np.ndarray, tuple[int, int], np.ndarray], Any]
"""(blob, inputs [N, *input], radii, (least, most code), labels [N]) -> int32 [N, 3]: status, certified, margin."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Inputs x int8 [N, *input] with their radii uint8, the sensor's ends and the labels that the model gives them."""

    program: Program
    blob: Blob
    x: np.ndarray
    radius: np.ndarray
    ends: tuple[int, int]
    labels: np.ndarray

    @property
    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper codes [N, *input]."""
        return live_boxes(self.x, self.radius, self.ends)

    def decided(self) -> np.ndarray:
        """What ce_certify has to answer, int32 [N, 3], from the definition of a certificate's verdict."""
        none = np.full((len(self.x), 3), (NO_RULE, 0, 0), np.int32)
        try:
            decider = live_decider(self.program)
        except UnsupportedError:
            return none
        certified, margin = decider.decide(*self.boxes, self.labels)
        return np.stack([np.zeros_like(margin), certified, margin], 1).astype(np.int32)

    def answered(self, answer: Answer) -> np.ndarray:
        """What `answer` makes of them."""
        return np.asarray(answer(self.blob, self.x, self.radius, self.ends, self.labels))


def asked(rng: np.random.Generator, graph: Graph, count: int, most: int, ends: tuple[int, int]) -> Questions | None:
    """Questions about a graph, radii up to `most`; None where the C runtime does not run it."""
    try:
        program, blob = lower(graph, TFLM), build(graph, TFLM)
    except UnsupportedError:
        return None
    x = quantised(program, random_inputs(rng, graph, count))
    labels = run(program, x).reshape(count, -1).argmax(1)
    return Questions(program, blob, x, rng.integers(0, most + 1, x.shape).astype(np.uint8), ends, labels)


def corpus(
    seed: int, graphs: int, nodes: int = 4, kinds: Sequence[str] = (*IN_C, "dense", "dense", "dense")
) -> Iterator[Questions]:
    """Questions about random graphs of these kinds of ops; by default of every kind, and many end in a dense layer."""
    rng = np.random.default_rng(seed)
    for i in range(graphs):
        graph = random_graph(rng, nodes, kinds)
        if any(isinstance(a.op, ops.Softmax) and isinstance(b.op, ops.Reshape) for a, b in _chained(graph)):
            continue  # `verify` does not look behind a reshape for the softmax; the blob has none
        low, high = (int(v) for v in np.sort(rng.integers(-128, 128, 2)))
        ends = (low, high) if i % 3 else (-128, 127)
        questions = asked(rng, graph, 12, (1, 2, 4, 30)[i % 4], ends)
        if questions is not None:
            yield questions


def _chained(graph: Graph) -> Iterator[tuple[Any, Any]]:
    writer = {node.output: node for node in graph.nodes}
    return ((writer[i], node) for node in graph.nodes for i in node.inputs if i in writer)


def classifier(rng: np.random.Generator, per_channel: bool, ending: str) -> Graph:
    """8 codes -> 16 -> 4 logits, then one of `ENDINGS`, "softmax, reshaped" or "requantised N times".

    The classes' weights have most in common, so that their differences vary less than they do.
    """
    b = GraphBuilder()
    x = b.input(Tensor("x", (8,), scale=0.0625, zero_point=-5))
    hidden = ops.Dense(
        rng.integers(-127, 128, (16, 8), dtype=np.int8),
        rng.integers(-900, 900, 16, dtype=np.int32),
        np.full(1, 2.0**-8, np.float32),
        activation=ops.Activation.RELU,
    )
    x = b.node(hidden, [x], Tensor("hidden", (16,), scale=0.109375, zero_point=-128))
    weight = np.clip(rng.normal(0, 40, 16) + rng.normal(0, 25, (4, 16)), -127, 127).astype(np.int8)
    # Before a softmax, steps so small that one alone does not separate its outputs.
    unit = 1 / 16 if ending.startswith("softmax") else 1
    steps = (unit * 2.0 ** rng.uniform(-9, -8.5, 4 if per_channel else 1)).astype(np.float32)
    dense = ops.Dense(weight, rng.integers(-900, 900, 4, dtype=np.int32), steps)
    x = b.node(dense, [x], Tensor("logits", (4,), scale=unit * 0.09375, zero_point=-9))
    if ending.startswith("softmax"):
        x = b.node(ops.Softmax(), [x], Tensor("p", (4,), scale=1 / 256, zero_point=-128))
    if ending == "softmax, reshaped":
        x = b.node(ops.Reshape(), [x], Tensor("row", (1, 4), scale=1 / 256, zero_point=-128))
    if ending == "requantised":
        x = b.node(ops.Requantize(), [x], Tensor("coarser", (4,), scale=0.140625, zero_point=3))
        x = b.node(ops.Relu(), [x], Tensor("relu", (4,), scale=0.125, zero_point=-100))
    if ending.endswith(" times"):
        for i in range(int(ending.split()[1])):
            x = b.node(ops.Requantize(), [x], Tensor(f"r{i}", (4,), scale=0.09375 + i % 2 / 256, zero_point=3 - i))
    return b.finish(x)
