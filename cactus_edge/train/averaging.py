"""The mean of the weights along the last epochs: a flatter point than the last one.

w <- (n w + w_k) / (n + 1) after each epoch k of the window; batch normalisation's running statistics are taken anew for the
mean. Source: Izmailov et al. 2018, arXiv 1803.05407, algorithm 1 with a cycle of one epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cactus_edge.train.models import Network


@dataclass(frozen=True, eq=False)
class Average:
    """Sum over `count` networks of each entry of their state, in float64."""

    count: int
    total: dict[str, Tensor]

    def include(self, network: Network) -> Average:
        """The average over one network more, of the same shapes."""
        state = network.state_dict()
        return Average(self.count + 1, {name: t + state[name].double() for name, t in self.total.items()})

    def network(self, like: Network) -> Network:
        """A network with the mean weights and the geometry of `like`. Its running statistics are means too: take them anew."""
        made = Network(like.layers())
        made.load_state_dict({name: (t / self.count).float() for name, t in self.total.items()})
        return made


def nothing(network: Network) -> Average:
    """The average over no network yet, for networks shaped as this one."""
    return Average(0, {name: torch.zeros_like(t, dtype=torch.float64) for name, t in network.state_dict().items()})
