"""Multi-prize tickets (biprop): binary networks found in random weights.

A layer computes with alpha * sign(w) where its mask is 1 and with 0 elsewhere, alpha = sum |w| m / sum m of the layer; the mask is
chosen by scores as in edge-popup, with the same straight-through gradient dL/ds = dL/dw_eff * w * sign(s). So every weight of a
layer is -alpha, 0 or alpha, and one bit tells those that are there. Source: Diffenderfer and Kailkhura 2021, arXiv 2103.09377
(algorithm 1); the binary cards of Diffenderfer et al. 2021, arXiv 2106.09129.
"""

from __future__ import annotations

from torch import Tensor

from cactus_edge.recipe import Recipe
from cactus_edge.train.methods.popup import Ticket, tickets
from cactus_edge.train.stages import Stage


class BinaryTicket(Ticket):
    """A ticket of which a layer keeps the signs and one magnitude."""

    def computing(self, weight: Tensor, mask: Tensor) -> Tensor:
        """alpha * mask * sign(weight); zeros where the mask keeps nothing."""
        alpha = (weight.abs() * mask).sum() / mask.sum().clamp(min=1)
        return alpha * mask * weight.sign()


def biprop(recipe: Recipe) -> tuple[Stage, ...]:
    """Signs of the weights as they were drawn."""
    return tickets(BinaryTicket, "biprop", recipe)
