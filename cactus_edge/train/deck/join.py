"""Several integer networks and a gate as one: the same ops as any network, so everything that runs or bounds one runs this.

Every card is a branch that reads the input, and ends in logits on one grid; they are joined, the gate's code beside them, and a dense
layer takes means of whole codes:

    agnostic    y = mean of all cards' codes
    gated       p_0 = relu(mean for scheme 0 - b - R (g is the largest code)),  p_1 likewise where g is the smallest,  y = p_0 + p_1

with b below all means and R the whole range of a code: the part that the gate did not choose is exactly 0. So there is no rounding
but that of the means, and none between a card's logits and its own file's but for the common grid. Logits are averaged and not
softmaxes: int8 softmax has 256 steps, most of them near 0, ties where several cards are sure, and no linear bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cactus_edge.errors import ModelError
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.ops import Activation, Concat, Dense, freeze
from cactus_edge.train.deck.gate import Gate
from cactus_edge.train.ranking import range_grid

CODE = (-128, 127)


@dataclass(frozen=True)
class Means:
    """The least and the largest mean of the cards' logits that the output can say, in codes of their grid."""

    least: float
    most: float


def joined(
    cards: Sequence[Graph], groups: Sequence[Sequence[int]], gate: Gate | None, means: Means, *, symmetric: bool
) -> Graph:
    """The deck of `cards`, which share the input's and the logits' grid. groups: those that answer, or for either scheme of the gate.

    symmetric: zero points of 0. Raises ModelError where grids differ or the groups are not one, with a gate two, of some cards each.
    """
    first = cards[0]
    for i, card in enumerate(cards):
        for ours, other, what in ((card.input, first.input, "input"), (card.output, first.output, "logits")):
            if ours.shape != other.shape or not ours.quantised_like(other):
                raise ModelError(f"card {i}: its {what} are {_grid(ours)}, those of card 0 {_grid(other)}")
    if len(groups) != (1 if gate is None else 2) or not all(groups):
        raise ModelError(
            f"groups of cards {[list(group) for group in groups]}, expected {1 if gate is None else 2}, none empty"
        )
    builder = GraphBuilder()
    at = builder.input(first.input)
    ends = [_append(builder, card, at, f"card{i}/") for i, card in enumerate(cards)]
    ends += [] if gate is None else [gate.append(builder, at, first.output)]
    count = sum(builder.tensor(end).size for end in ends)
    every = builder.node(Concat(0), ends, replace(first.output, name="deck/cards", shape=(count,)))
    if gate is None:
        return builder.finish(_mean(builder, every, len(cards), first.output, means, symmetric))
    return builder.finish(_selected(builder, every, len(cards), groups, first.output, means, symmetric))


def _grid(t: Tensor) -> str:
    return f"{t.shape} of scale {t.scale:.6g} and zero point {t.zero_point}"


def _append(builder: GraphBuilder, card: Graph, at: int, prefix: str) -> int:
    """Adds the card's nodes behind the input `at`; the index of its logits."""
    place = {card.inputs[0]: at}
    for index, codes in card.constants.items():
        tensor = card.tensors[index]
        place[index] = builder.constant(replace(tensor, name=prefix + tensor.name), codes)
    for node in card.nodes:
        tensor = card.tensors[node.output]
        named = replace(tensor, name=prefix + tensor.name)
        place[node.output] = builder.node(node.op, [place[i] for i in node.inputs], named)
    return place[card.outputs[0]]


def _mean(builder: GraphBuilder, every: int, cards: int, logits: Tensor, means: Means, symmetric: bool) -> int:
    """Behind the joined logits: the mean over all cards, on a grid that spans `means`."""
    classes = logits.size
    weight = freeze(np.tile(np.eye(classes), cards), np.int8)
    low, high = ((m - logits.zero_point) * logits.scale for m in (means.least, means.most))
    grid = range_grid(low, high, symmetric=symmetric)
    dense = Dense(weight, freeze(np.zeros(classes), np.int32), freeze([1 / cards], np.float32))
    return builder.node(dense, [every], Tensor("logits", (classes,), "int8", grid.scale, grid.zero_point))


def _selected(
    builder: GraphBuilder,
    every: int,
    cards: int,
    groups: Sequence[Sequence[int]],
    logits: Tensor,
    means: Means,
    symmetric: bool,
) -> int:
    """Behind the joined logits and the gate's code: the mean over the cards of the group that it chose.

    With S = sum of w (q_c - z) over a group's cards, w = L / their number and L the least common multiple of both numbers, and g
    the gate's code: p_1 = relu(S + L (g - z) + L (2 z - 127 - b)), which is L (mean - b) at g = 127 and at most 0 at g = -128; p_0 =
    relu(S - L (g - z) - L (128 + b)), with both ends exchanged. b, a whole code, is the least mean that counts.
    """
    classes, z = logits.size, logits.zero_point
    common = math.lcm(*(len(group) for group in groups))
    least = int(np.clip(math.floor(means.least), *CODE))
    most = int(np.clip(math.ceil(means.most), least + 1, CODE[1]))
    weight = np.zeros((2, classes, cards * classes + 1), np.int8)
    for side, group in enumerate(groups):
        for card in group:
            weight[side, :, card * classes : (card + 1) * classes] = (
                common // len(group) * np.eye(classes, dtype=np.int8)
            )
    weight[0, :, -1], weight[1, :, -1] = -common, common
    bias = np.repeat([common * (CODE[0] - least), common * (2 * z - CODE[1] - least)], classes)
    levels, zero_point = (127, 0) if symmetric else (255, -128)
    part = Tensor(
        "deck/chosen", (2 * classes,), "int8", float(np.float32((most - least) * logits.scale / levels)), zero_point
    )
    select = Dense(
        freeze(weight.reshape(2 * classes, -1), np.int8),
        freeze(bias, np.int32),
        freeze([1 / common], np.float32),
        Activation.RELU,
    )
    parts = builder.node(select, [every], part)
    both = Dense(
        freeze(np.tile(np.eye(classes, dtype=np.int8), 2), np.int8),
        freeze(np.zeros(classes), np.int32),
        freeze([1.0], np.float32),
    )
    return builder.node(both, [parts], replace(part, name="logits", shape=(classes,)))
