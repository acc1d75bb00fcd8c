"""Random small networks, and the smallest recipe that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from train_kit import MUTATIONS, shaken

from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.train.build import build
from cactus_edge.train.data import Dataset, Split, load_dataset
from cactus_edge.train.models import Network

TINY = """\
name = "tiny"

[data]
set = "digits"
validation_samples = 60
test_samples = 60

[model]
[[model.layer]]
kind = "conv"
channels = 6
kept = 4
stride = 2

[[model.layer]]
kind = "dense"
channels = 10
kept = 7

[train]
eps = "1/16"
epochs = 3
warmup_epochs = 1
ramp_epochs = 1
batch = 16
learning_rate = 0.03
members = ["full", "pruned", "quantised", "perturbed"]

[compress]
finetune_epochs = 2

[quantise]
clips = [1.0, 0.7]

[certify]
eps = "1/32"
"""


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """The recipe `tiny` as it is written."""
    return TINY


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """Three epochs on a few digits, then two on four and seven channels."""
    return parse_recipe(TINY, "tiny.toml")


@pytest.fixture(scope="session")
def few_digits(tiny: Recipe) -> Dataset:
    """The digits with 150 training samples."""
    whole = load_dataset(tiny.data)
    train = Split(whole.train.x[:150].copy(), whole.train.y[:150].copy())
    return Dataset(whole.name, train, whole.validation, whole.test, whole.labels, whole.preprocessing)


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """A random network on samples of 7 x 6 x 2: two convolutions (SAME with stride 2, VALID) and two dense layers."""

    def make(seed: int = 0, *, batch_norm: bool = True, widths: tuple[int, ...] = (5, 6, 8)) -> Network:
        head = f"[model]\nbatch_norm = {str(batch_norm).lower()}\n\n"
        first = '[[model.layer]]\nkind = "conv"\nchannels = 5\nkernel = 3\nstride = 2\n\n'
        second = 'channels = 6\nkernel = 2\npadding = "valid"\n'
        text = TINY.replace("[model]\n", head + first).replace("channels = 6\nkept = 4\nstride = 2\n", second)
        model = parse_recipe(text, "made.toml").model
        layers = tuple(replace(layer, channels=n, kept=0) for layer, n in zip(model.layer, widths, strict=True))
        return shaken(build(replace(model, layer=layers), (7, 6, 2), 4, seed), seed)

    return make


@pytest.fixture(scope="session")
def half(tiny: Recipe) -> Recipe:
    """Half of the weights go; the samples are mutated."""
    train_ = replace(tiny.train, epochs=2, ramp_epochs=0, warmup_epochs=0, members=("full",))
    train_ = replace(train_, objective="semantic", mutations=MUTATIONS, robust_weight=0.5)
    compress = replace(tiny.compress, finetune_epochs=3, sparsity=0.5, learning_rate=0.01)
    layers = tuple(replace(layer, kept=0) for layer in tiny.model.layer)
    return replace(tiny, model=replace(tiny.model, layer=layers), train=train_, compress=compress)
