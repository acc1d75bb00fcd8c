"""What tests of agreement with runtimes share: networks with inputs, those that a profile admits, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from strategies import random_inputs

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.ops import Codes

Case = tuple[Graph, Codes]


def seeded(make: Callable[[int], Graph], count: int, inputs: int) -> Iterator[Case]:
    """`count` networks, each with random inputs of the same seed."""
    for seed in range(count):
        graph = make(seed)
        yield graph, random_inputs(np.random.default_rng(seed), graph, inputs)


def admitted(cases: Iterable[Case], name: str) -> int:
    """How many of the networks the profile admits; requires that the runtime computes each of those bit for bit."""
    count = 0
    for graph, codes in cases:
        try:
            found = agree(write_tflite(graph), codes, name)
        except UnsupportedError:
            continue
        found.require()
        count += 1
    return count
