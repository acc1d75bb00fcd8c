"""C-SAM-style: a soft mask is trained to lie in a flat place, then hardened. A reconstruction, not the paper's code.

Published (He and Chen 2026, arXiv 2601.20301, and the withdrawn predecessor that its reviewers quote): sharpness over pruning masks
instead of weights; a soft mask that begins at |w| over its 90th percentile; a margin term under semantic mutations, consistency of
soft and hard mask, and an L1 penalty; unstructured. Not published: the formulas, the weights and rho. What stands here in their place:

    F(C)  = objective(C) + MARGIN * mean relu(Z / (d + FLOOR) - KAPPA)
    L(C)  = F(clip(C + rho g / ||g||, 0, 1)) + CONSISTENCY * mean ||p(C) - p(H(C))||_1 + PENALTY * mean |C|,    g = grad F(C)

objective: the recipe's, "semantic" as a rule; p(C): the probabilities under the weights times C; Z = max_c |p_c(x) - p_c(x_T)|, x_T the
objective's points; d: half the gap between the two largest p_c(x), so that Z < d is what CC-Cert bounds; H: the mask's largest
entries, of the recipe's share and pattern, straight through. A dense network trained by SAM begins, the very one of `sam`; its weights
learn on while C is trained, by the same loss; then H(C) is fixed, what stays is multiplied by its C, as it was trained, and
fine-tuned by F with SAM's steps. `csam-channels` has one value a channel, and those of least value are gone from the file.

Chosen on the validation split of bench/suites/csam-fashion-mnist.toml: weights that stand still, or nearly, while C is trained
waste those epochs; and hardening C to ones undoes what they learned. A larger MARGIN costs clean accuracy and wins nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cactus_edge.errors import InputError, InternalError
from cactus_edge.recipe import Recipe
from cactus_edge.train.folded import fold_batch, forward
from cactus_edge.train.methods import sam
from cactus_edge.train.methods.hydra import rest, scoring
from cactus_edge.train.methods.posthoc import l1
from cactus_edge.train.models import INPUT, Layers, Network
from cactus_edge.train.objectives import OBJECTIVES
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.prune import choose, take, ties, together, weighed
from cactus_edge.train.sparsity import Masks, Sparsity, masks
from cactus_edge.train.stages import Objective, Schedule, Stage, Terms, clip, never, over_members

PERCENTILE = 0.9
"""The tau of the mask's beginning: a tenth of its entries begin at 1."""

RHO = 0.5
"""Length of the mask's perturbation, l2 over all layers together."""

MARGIN, KAPPA, FLOOR = 0.1, 0.5, 0.05
"""Weight of the margin term, the part of the margin that a mutation may use up, and what keeps a sample without margin finite."""

CONSISTENCY, PENALTY = 0.5, 0.01
"""Weights of the difference between soft and hard mask, and of the mask's mean."""

FAST = 16.0
"""How many times as far as a weight an entry of the mask moves in a step of Adam, a power of two (of gradient descent: its square)."""

Soft = Sequence[Tensor]
"""A mask as float tensors in [0, 1]."""


def initial(size: Tensor) -> Tensor:
    """C0 = clip(|w| / P(|w|), 0, 1) of any shape, P the `PERCENTILE` over one layer."""
    size = size.detach().abs()
    level = percentile(size.float().flatten(), PERCENTILE)
    return (size / level.clamp(min=1e-12)).clamp(max=1)


def percentile(values: Tensor, share: float) -> Tensor:
    """The value [] of `values` [N] at share (N - 1) in their order, linear between two: torch.quantile takes no more than 2^24."""
    place = share * (len(values) - 1)
    low, high = (values.kthvalue(k + 1).values for k in (math.floor(place), math.ceil(place)))
    return torch.lerp(low, high, place - math.floor(place))


class Masked(Network, ABC):
    """A network with a soft mask. Its parameters `mask0`, ... are C / FAST."""

    def __init__(self, layers: Layers, start: Soft) -> None:
        super().__init__(layers)
        self._count = len(start)
        for i, mask in enumerate(start):
            self.register_parameter(f"mask{i}", nn.Parameter(mask / FAST))

    def parts(self) -> tuple[Tensor, ...]:
        """The parameters of the mask."""
        return tuple(getattr(self, f"mask{i}") for i in range(self._count))

    def mask(self) -> tuple[Tensor, ...]:
        """C."""
        return tuple(FAST * part for part in self.parts())

    def layers(self) -> Layers:
        """The layers under C: gradients flow into it."""
        return self.under(self.mask())

    @abstractmethod
    def under(self, mask: Soft) -> Layers:
        """The layers times a mask."""

    @abstractmethod
    def hard(self, mask: Soft) -> tuple[Tensor, ...]:
        """H(C): 1 for what stays, else 0, without gradient."""

    @abstractmethod
    def chosen(self) -> Network:
        """The network of what H(C) leaves, times its C, without a mask."""


class MaskedWeights(Masked):
    """One value a weight."""

    def __init__(self, layers: Layers, sparsity: Sparsity) -> None:
        super().__init__(layers, tuple(initial(layer.weight) for layer in layers))
        self._sparsity = sparsity

    def under(self, mask: Soft) -> Layers:
        layers = Network.layers(self)
        return tuple(replace(layer, weight=layer.weight * m) for layer, m in zip(layers, mask, strict=True))

    def _hard(self, mask: Soft) -> Masks:
        layers = Network.layers(self)
        return masks(tuple(replace(a, weight=m) for a, m in zip(layers, mask, strict=True)), self._sparsity)

    def hard(self, mask: Soft) -> tuple[Tensor, ...]:
        return tuple(kept.to(m) for kept, m in zip(self._hard(mask), mask, strict=True))

    def chosen(self) -> Network:
        mask = self.mask()
        return Network(self.under(tuple(m * h for m, h in zip(mask, self.hard(mask), strict=True))))


class MaskedChannels(Masked):
    """One value a channel, the same for channels that are tied; those that are tied to the input stay as they are."""

    def __init__(self, layers: Layers, widths: tuple[int, ...]) -> None:
        group = ties(layers)
        self._groups = sorted({g for g in group if g != INPUT})
        size = together(layers, l1(layers))
        super().__init__(layers, tuple(initial(size[g]) for g in self._groups))
        self._widths = widths

    def _by_layer(self, mask: Soft) -> tuple[Tensor, ...]:
        of = dict(zip(self._groups, mask, strict=True))
        layers = Network.layers(self)
        return tuple(
            layer.weight.new_ones(len(layer.weight)) if g == INPUT else of[g]
            for g, layer in zip(ties(layers), layers, strict=False)
        )

    def under(self, mask: Soft) -> Layers:
        return weighed(Network.layers(self), self._by_layer(mask))

    def hard(self, mask: Soft) -> tuple[Tensor, ...]:
        kept = choose(Network.layers(self), self._widths, self._by_layer(mask))
        return tuple(torch.zeros_like(m).index_fill(0, kept[g], 1.0) for g, m in zip(self._groups, mask, strict=True))

    def chosen(self) -> Network:
        mask = self.mask()
        return Network(take(self.under(mask), choose(Network.layers(self), self._widths, self._by_layer(mask))))


def margin_term(p: Tensor, moved: Tensor) -> Tensor:
    """mean relu(Z / (d + FLOOR) - KAPPA) of probabilities p, moved [N, classes] of samples and of their mutations."""
    first, second = p.topk(2, dim=1).values.unbind(1)
    z = (p - moved).abs().amax(1)
    return F.relu(z / ((first - second) / 2 + FLOOR) - KAPPA).mean()


def with_margin(loss: Loss) -> Loss:
    """F: the objective and, where it has points, MARGIN * the margin term under them."""

    def of(member: Member, batch: Batch, step: Step) -> MemberLoss:
        found = loss.of(member, batch, step)
        if batch.points is None or step.robust_weight == 0:
            return found
        p, moved = member.logits(batch.x).softmax(1), forward(member.net, batch.points).softmax(1)
        return replace(found, loss=found.loss + MARGIN * margin_term(p, moved))

    return replace(loss, of=of)


def perturbed(mask: Soft, gradients: Soft, rho: float) -> tuple[Tensor, ...]:
    """clip(C + rho * g / ||g||, 0, 1), ||g|| over all tensors together; its gradient goes to C where nothing is clipped."""
    norm = torch.sqrt(sum((g.detach().square().sum() for g in gradients), torch.zeros(())))
    scale = rho / norm.clamp(min=1e-12)
    return tuple((m + scale * g.detach()).clamp(0, 1) for m, g in zip(mask, gradients, strict=True))


def consistency(p: Tensor, network: Masked, x: Tensor) -> Tensor:
    """mean ||p - p(H(C))||_1 over the samples x, p [N, classes] under C; the gradient goes straight through H."""
    mask = network.mask()
    hard = tuple(m + (h - m).detach() for h, m in zip(network.hard(mask), mask, strict=True))
    return (p - fold_batch(network.under(hard), x).logits.softmax(1)).abs().sum(1).mean()


def sharp_mask(recipe: Recipe) -> Objective:
    """L(C)."""
    loss = with_margin(OBJECTIVES[recipe.train.objective](recipe.train))

    def objective(network: Network, batch: Batch, step: Step) -> Terms:
        if not isinstance(network, Masked):
            raise InternalError(f"C-SAM-style training of a mask, and a {type(network).__name__} has none")
        mask = network.mask()
        clean = fold_batch(network.under(mask), batch.x)
        batch = loss.aim(clean.net, batch, step)
        here = loss.of(Member(clean.net, clean.logits), batch, step).loss
        gradients = torch.autograd.grad(here, mask, retain_graph=True)
        there = fold_batch(network.under(perturbed(mask, gradients, RHO)), batch.x)
        total = loss.of(Member(there.net, there.logits), batch, step).loss
        total = total + CONSISTENCY * consistency(clean.logits.softmax(1), network, batch.x)
        total = total + PENALTY * torch.cat([m.flatten() for m in mask]).mean()
        return Terms(total, int((clean.logits.detach().argmax(1) == batch.y).sum()), 0)

    return objective


def _weights(network: Network, recipe: Recipe, _: Batch) -> Network:
    sparsity = Sparsity.of(recipe.compress)
    if sparsity is None:
        raise InputError(
            "csam lets weights go, and [compress] has no sparsity", hint='sparsity = 0.5, or method = "csam-channels"'
        )
    return MaskedWeights(network.layers(), sparsity)


def _channels(network: Network, _: Recipe, __: Batch) -> Network:
    return MaskedChannels(network.layers(), network.kept_widths())


def _chosen(network: Network, _: Recipe, __: Batch) -> Network:
    assert isinstance(network, Masked)
    return network.chosen()


def _in_range(network: Network) -> None:
    if isinstance(network, Masked):
        with torch.no_grad():
            for part in network.parts():
                part.clamp_(0, 1 / FAST)
    positive_gamma(network)


def _masking(recipe: Recipe) -> Schedule:
    """As long as HYDRA's scores are trained, at the whole robust weight."""
    return replace(scoring(recipe), ramp=0)


_fine = over_members(lambda _: ("full",), with_margin)

CSAM = (
    sam.DENSE,
    Stage("mask", _weights, False, _masking, sharp_mask, clip, _in_range, never),
    Stage("compress", _chosen, True, rest, _fine, sam.flat, positive_gamma, never),
)

CHANNELS = (
    sam.DENSE,
    Stage("mask", _channels, False, _masking, sharp_mask, clip, _in_range, never),
    Stage("compress", _chosen, True, rest, _fine, sam.flat, positive_gamma, never),
)
