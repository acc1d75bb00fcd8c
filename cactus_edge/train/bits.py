"""Widths of the weights, 8 or 4 bits a layer, chosen for the certificate within a budget of bytes.

They are chosen once, on validation samples, for the network that fine-tuning begins with: of the assignments that fit the budget
and in which no layer could be wider, the one of least certified loss in fake integers. (Where a narrower layer lowers the loss,
that is chance, and fine-tuning makes something of every bit that is paid for.) The sets of wide layers of such assignments do not
contain each other, so of n layers there are at most C(n, n/2) (Sperner 1928): few layers are measured in all of them, many along a
greedy path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train.allocation import begun, chunks, layer_bytes, whole_step
from cactus_edge.train.bounds import holds
from cactus_edge.train.fakequant import Ceilings, fake_quantise, narrowed
from cactus_edge.train.folded import Folded, forward, plan
from cactus_edge.train.models import Layer, Layers
from cactus_edge.train.objectives.ibp import IBP
from cactus_edge.train.objectives.loss import Batch, Member
from cactus_edge.train.stages import FINETUNING, Stage

Bits = tuple[int, ...]
"""The width of each layer's weights."""

Sizes = Sequence[Mapping[int, int]]
"""For each layer the widths that it may have, the widest first, and its bytes at each."""

EXACT_LAYERS = 10
"""Layers up to which every assignment is looked at; no more than C(10, 5) = 252 of them are measured."""

SAMPLES = 1024
"""Samples that are bounded together. It changes no choice but by rounding."""


@dataclass(frozen=True)
class ChosenBits:
    """Widths that were chosen, and why. bytes: of weights and int32 biases, at most `budget`. measured: assignments.

    loss, clean, certified: on the validation split before fine-tuning, with these widths and with 8 bits everywhere; the certified
    loss, and shares in [0, 1] by bounds in floating point.
    """

    weight_bits: Bits
    bytes: int
    budget: int
    measured: int
    loss: tuple[float, float]
    clean: tuple[float, float]
    certified: tuple[float, float]


def sizes(layers: Layers) -> Sizes:
    """What `layer_bytes` says of each width that a layer may have."""
    return [{bits: layer_bytes(layer, bits) for bits in _widths(layer)} for layer in layers]


def _widths(layer: Layer) -> Bits:
    # No profile of a board has depthwise layers of an odd number of channels in 4 bits (EVEN in ir.profile).
    return (8,) if layer.depthwise and len(layer.weight) % 2 else (8, 4)


def choose(found: Sizes, budget: int, loss: Callable[[Bits], float]) -> Bits:
    """The widths of least loss among those that fit `budget` and in which no layer could be wider; of equal ones the first are wide.

    Beyond EXACT_LAYERS: from the widest on the layer that costs least loss per byte saved becomes narrower, until they fit; then
    those that fit become wider again, first what lowers the loss most. Raises InputError where nothing fits.
    """
    require_budget(found, budget)

    def cost(bits: Bits) -> int:
        return sum(size[b] for size, b in zip(found, bits, strict=True))

    def changed(bits: Bits, *, wider: bool) -> list[Bits]:
        return [
            (*bits[:i], b, *bits[i + 1 :])
            for i, size in enumerate(found)
            for b in size
            if (b > bits[i] if wider else b < bits[i])
        ]

    def could_be(bits: Bits) -> list[Bits]:
        return [wide for wide in changed(bits, wider=True) if cost(wide) <= budget]

    if len(found) <= EXACT_LAYERS:
        return min((b for b in product(*found) if cost(b) <= budget and not could_be(b)), key=loss)
    bits = tuple(max(size) for size in found)
    while cost(bits) > budget:
        at, price = loss(bits), cost(bits)
        bits = min(changed(bits, wider=False), key=lambda b: (loss(b) - at) / max(price - cost(b), 1))
    while better := could_be(bits):
        bits = min(better, key=loss)
    return bits


def require_budget(found: Sizes, budget: int) -> None:
    """Raises InputError where layers as narrow as they may be exceed the budget."""
    least = sum(min(size.values()) for size in found)
    if least > budget:
        raise InputError(
            f"[quantise] weight_bytes = {budget}: weights as narrow as they can be, and biases, take {least} bytes",
            hint=f"at least {least}, or fewer channels",
        )


def require_choice(recipe: Recipe, stages: Sequence[Stage], shape: tuple[int, int, int], classes: int) -> None:
    """Raises InputError, before training, where no widths can be chosen: nothing is fine-tuned, or nothing fits the budget.

    Where channels are allocated by sensitivity the bytes are not known yet.
    """
    stage = next((stage for stage in stages if stage.name == FINETUNING), None)
    if stage is None:
        raise InputError(
            f"[quantise] weight_bytes chooses widths as fine-tuning begins, and method {recipe.train.method!r} has none",
            hint='weight_bits = [4], or method = "cactus"',
        )
    if recipe.compress.allocation == "uniform":
        network = begun(recipe, shape, classes, recipe.train.seed, compressed=stage.compressed)
        require_budget(sizes(network.layers()), recipe.quantise.weight_bytes)


def chosen_bits(net: Folded, ceilings: Ceilings, recipe: Recipe, held_out: Batch) -> ChosenBits:
    """`choose` for the folded network, its activations in the int8 ranges `ceilings`, on the samples and regions `held_out`.

    The loss is (1 - lambda) CE + lambda CE of the worst case by intervals. Raises InputError where nothing fits the budget.
    """
    parts, step, quantise = chunks(held_out, SAMPLES), whole_step(recipe), recipe.quantise

    @cache
    def measured(bits: Bits) -> tuple[float, float, float]:
        rounded = fake_quantise(narrowed(net, bits), ceilings, quantise.levels)
        loss, clean, certified = 0.0, 0, 0
        for part in parts:
            logits = forward(rounded, part.x)
            found = IBP.of(Member(rounded, logits), part, step)
            assert found.bounds is not None
            loss += float(found.loss) * len(part.y)
            clean += int((logits.argmax(1) == part.y).sum())
            certified += int(holds(found.bounds.margin, part.y).sum())
        count = len(held_out.y)
        return loss / count, clean / count, certified / count

    found = sizes(plan(net))
    with torch.no_grad():
        bits = choose(found, quantise.weight_bytes, lambda b: measured(b)[0])
        loss, clean, certified = zip(measured(bits), measured((8,) * len(net)), strict=True)
    taken = sum(size[b] for size, b in zip(found, bits, strict=True))
    return ChosenBits(bits, taken, quantise.weight_bytes, measured.cache_info().currsize, loss, clean, certified)
