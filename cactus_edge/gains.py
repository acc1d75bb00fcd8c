"""What a target gains from what a recipe compresses: refused before training where it is nothing, stated with the file after it.

Weights of fewer bits than 8 gain where the target's kernels read them packed (`kernels.weight_bits`).
Channels that are removed are gone everywhere. Zeros among the weights are stored and computed like any weight, unless the
target's kernels skip their pattern (`kernels.sparse` of its target.toml).
"""

from __future__ import annotations

from dataclasses import replace

from cactus_edge.device.targets import AnyTarget
from cactus_edge.errors import InputError, UnsupportedError
from cactus_edge.formats.zeros import Zeros, narrow, zeros
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.ops import WEIGHT_RANGES
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_values import n_of_m
from cactus_edge.report.results import Row

WIDE = 256
"""Input and output channels from which NVIDIA found sparse kernels faster than dense ones: NVIDIA/TensorRT issues 3849 and 4065."""

WAY_OUT = "keep = 0.5 removes channels, which every target gains from; or allow_no_gain = true in [compress]"


def for_target(recipe: Recipe, target: AnyTarget) -> Recipe:
    """The recipe with the target's channel multiple, where it leaves that open. Raises what `require_gain` raises."""
    require_gain(recipe, target)
    compress = recipe.compress
    if not compress.keep or compress.channel_multiple:
        return recipe
    return replace(recipe, compress=replace(compress, channel_multiple=target.kernels.channel_multiple))


def require_gain(recipe: Recipe, target: AnyTarget) -> None:
    """InputError for narrow weights and for sparsity that gain nothing on the target; for sparsity unless the recipe allows that."""
    quantise = recipe.quantise
    asked, said = quantise.weight_bits, f"weight_bits = {list(quantise.weight_bits)}"
    if quantise.weight_bytes:
        asked, said = tuple(WEIGHT_RANGES), f"weight_bytes = {quantise.weight_bytes}"
    narrow = sorted(set(asked) - set(target.kernels.weight_bits))
    if narrow:
        raise InputError(
            f"[quantise] {said} gains nothing on {target.title}: its kernels read "
            f"weights of {' or '.join(map(str, target.kernels.weight_bits))} bits; {narrow[0]} would be stored and multiplied as int8",
            hint="leave it out; keep = 0.5 in [compress] removes channels, which every target gains from",
        )
    compress, able = recipe.compress, target.kernels.sparse
    if compress.sparsity == "none" or compress.allow_no_gain or skips(able, compress.sparsity):
        return
    why = f"its kernels skip zeros of the pattern {able} only" if able else _NOTHING
    raise InputError(
        f"[compress] sparsity = {compress.sparsity!r} gains nothing on {target.title}: {why}", hint=WAY_OUT
    )


_NOTHING = "its kernels compute zeros like any weight, and the file stores them"


def skips(kernels: str, sparsity: str | float) -> bool:
    """Whether kernels for the pattern `kernels` skip all zeros of `sparsity`: 1:4 and 1:2 are 2:4 as well, 2:3 and 0.9 are not."""
    able, asked = n_of_m(kernels), n_of_m(sparsity)
    if able is None or asked is None:
        return False
    return able[1] % asked[1] == 0 and asked[0] * (able[1] // asked[1]) <= able[0]


def require_rows(recipe: Recipe, graph: Graph) -> None:
    """UnsupportedError where the recipe asked for a pattern and no layer of the graph has rows that it fits."""
    if recipe.compress.sparsity == "none" or recipe.compress.allow_no_gain:
        return
    found = zeros(graph)
    if not any(z.two_of_four for z in found):
        rows = ", ".join(f"{z.name}: {z.row}" for z in found)
        raise UnsupportedError(
            f"no layer has weights of the pattern {recipe.compress.sparsity}: rows are no multiples of 4 ({rows})",
            hint="layers with a multiple of 4 input channels",
        )


def gains(recipe: Recipe, target: AnyTarget, graph: Graph, before: int) -> tuple[Row, ...]:
    """What the target gains, in words. before: weights of all layers as training began."""
    found = zeros(graph)
    after, multiple = sum(z.weights for z in found), target.kernels.channel_multiple
    rows = []
    if after < before:
        # Outputs are the classes, and a deck's gate is as it is: no choice.
        chosen = [z for z in found if not z.name.startswith(("gate/", "deck/")) and z.name.split("/")[-1] != "logits"]
        odd = [f"{z.name} ({_width(graph, z)})" for z in chosen if _width(graph, z) % multiple]
        fit = f"every width is a multiple of {multiple}, what the kernels compute together"
        if odd:
            fit = f"no multiple of {multiple}, what the kernels compute together: {', '.join(odd)}"
        rows.append(
            Row("Channels", f"{1 - after / before:.0%} of the weights removed, in bytes and work, anywhere; {fit}")
        )
    packed = [z for z in found if z.stored < 8]
    if packed:
        saved = sum(z.weights * (8 - z.stored) // 8 for z in packed)
        names = ", ".join(z.name for z in packed)
        rows.append(Row("Weights of 4 bits", f"{names}: about {saved:,} bytes less, read two to a byte by the kernels"))
    if recipe.compress.sparsity != "none":
        rows.append(Row(f"Zeros, {recipe.compress.sparsity}", _zeros(recipe, target, graph, found)))
    return tuple(rows)


def _zeros(recipe: Recipe, target: AnyTarget, graph: Graph, found: tuple[Zeros, ...]) -> str:
    share = f"{sum(z.zeros for z in found) / sum(z.weights for z in found):.0%} of the weights"
    if not skips(target.kernels.sparse, recipe.compress.sparsity):
        return "; ".join([f"{share}; nothing gained on {target.name}: {_NOTHING}", *filter(None, [narrow(found)])])
    able = [z for z in found if z.two_of_four]
    wide = [z.name for z in able if z.row >= WIDE and _width(graph, z) >= WIDE]
    rest = [f"{z.name} (rows of {z.row})" for z in found if not z.two_of_four]
    words = [
        f"{share}; sparse int8 kernels can run {', '.join(z.name for z in able) or 'no layer'}",
        *([f"not {', '.join(rest)}"] if rest else []),
        f"faster, as a rule, from {WIDE} channels on: {', '.join(wide) or 'none here'}; TensorRT takes what is faster",
        "the size of the .onnx is unchanged",
    ]
    return "; ".join(words)


def _width(graph: Graph, z: Zeros) -> int:
    return graph.tensors[graph.nodes[z.index].output].shape[-1]
