"""What a target gains: nothing is trained for nothing, and what is gained is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cactus_edge.device.targets import load_target
from cactus_edge.errors import InputError
from cactus_edge.gains import for_target, skips
from cactus_edge.recipe import Recipe, load_recipe


def asking(**keys: object) -> Recipe:
    recipe = load_recipe("digits")
    layers = tuple(replace(layer, kept=0) for layer in recipe.model.layer)
    compress = replace(recipe.compress, **keys)  # type: ignore[arg-type]
    return replace(recipe, model=replace(recipe.model, layer=layers), compress=compress)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("2:4", True), ("1:4", True), ("1:2", True), ("2:3", False), ("3:4", False), ("4:8", False), (0.9, False)],
)
def test_kernels_for_two_of_four_skip(asked: str | float, expected: bool) -> None:
    assert skips("2:4", asked) is expected
    assert not skips("", asked)


@pytest.mark.parametrize("target", ["mcu", "raspberry-pi", "jetson-xavier-nx"])
@pytest.mark.parametrize("asked", ["2:4", 0.9], ids=str)
def test_sparsity_for_nothing_is_refused(target: str, asked: str | float) -> None:
    board = load_target(target)
    with pytest.raises(InputError, match="gains nothing on") as caught:
        for_target(asking(sparsity=asked), board)
    assert caught.value.exit_code == 2
    assert "keep = 0.5" in caught.value.hint and "allow_no_gain = true" in caught.value.hint
    allowed = asking(sparsity=asked, allow_no_gain=True)
    assert for_target(allowed, board) == allowed


@pytest.mark.parametrize("target", ["raspberry-pi", "jetson"])
def test_narrow_weights_for_nothing_are_refused(target: str) -> None:
    digits, board = load_recipe("digits"), load_target(target)
    narrow = replace(digits, quantise=replace(digits.quantise, weight_bits=(8, 4, 8, 8)))
    with pytest.raises(
        InputError, match=r"weight_bits = \[8, 4, 8, 8\] gains nothing on .* of 8 bits; 4 would be stored"
    ):
        for_target(narrow, board)
    assert for_target(narrow, load_target("mcu")) is narrow
    budget = replace(digits, quantise=replace(digits.quantise, weight_bytes=20_000))
    with pytest.raises(InputError, match=r"weight_bytes = 20000 gains nothing on .* of 8 bits; 4 would be stored"):
        for_target(budget, board)
    assert for_target(budget, load_target("mcu")) is budget


def test_a_width_that_nothing_stores_is_refused_everywhere() -> None:
    digits = load_recipe("digits")
    narrow = replace(digits, quantise=replace(digits.quantise, weight_bits=(3,)))
    with pytest.raises(InputError, match=r"weights of 4 or 8 bits; 3 would be stored"):
        for_target(narrow, load_target("mcu"))


def test_a_jetson_gains_from_rows_of_four_only() -> None:
    jetson = load_target("jetson")
    assert for_target(asking(sparsity="2:4"), jetson) == asking(sparsity="2:4")
    with pytest.raises(InputError, match="skip zeros of the pattern 2:4 only"):
        for_target(asking(sparsity=0.9), jetson)


@pytest.mark.parametrize(("target", "multiple"), [("mcu", 4), ("raspberry-pi", 16), ("jetson", 32)])
def test_a_share_of_channels_is_in_whole_vectors_of_the_target(target: str, multiple: int) -> None:
    board = load_target(target)
    assert for_target(asking(keep=0.5), board).compress.channel_multiple == multiple
    assert for_target(asking(keep=0.5, channel_multiple=2), board).compress.channel_multiple == 2
    digits = load_recipe("digits")
    assert for_target(digits, board) is digits
