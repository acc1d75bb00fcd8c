"""Constraints restored after each step: the `projection` seam of a training stage."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cactus_edge.train.models import Network

Projection = Callable[[Network], None]


def unconstrained(network: Network) -> None:
    """Leaves the network as it is."""


def positive_gamma(network: Network) -> None:
    """gamma <- max(gamma, 1e-3): a normalised channel neither flips nor dies, so that its gamma says how much it matters."""
    with torch.no_grad():
        for layer in network.layers():
            if layer.norm is not None:
                layer.norm.gamma.clamp_(min=1e-3)
