"""Zeros and widths through the whole of training, to the bytes of the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from train_kit import CtrlC, untimed

from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.formats.zeros import zeros
from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.recipe_model import ModelRecipe
from cactus_edge.train.allocation import begun
from cactus_edge.train.calibrate import to_graph
from cactus_edge.train.data import Dataset
from cactus_edge.train.loop import train
from cactus_edge.train.sparsity import Sparsity, masks
from cactus_edge.train.trained import TrainedModel
from cactus_edge.verify.tflite_read import read_tflite

TEXT = """\
name = "tiny"
[data]
set = "digits"
validation_samples = 60
test_samples = 60
[model]
[[model.layer]]
kind = "conv"
channels = 8
stride = 2
[[model.layer]]
kind = "conv"
channels = 8
stride = 2
[[model.layer]]
kind = "dense"
channels = 16
[train]
eps = "1/16"
epochs = 2
warmup_epochs = 1
batch = 16
learning_rate = 0.02
members = ["full", MEMBERS]
[compress]
finetune_epochs = 3
average_epochs = 2
members = ["full", "quantised", "perturbed"]
KEYS
[quantise]
clips = [1.0, 0.7]
[certify]
eps = "1/32"
"""


def asking(members: str, *keys: str) -> Recipe:
    named = ", ".join(f'"{m}"' for m in members.split())
    return parse_recipe(TEXT.replace("MEMBERS", named).replace("KEYS", "\n".join(keys)), "tiny.toml")


TWO_OF_FOUR = asking("sparse joint", 'sparsity = "2:4"', "keep = 0.5", "channel_multiple = 4")


@pytest.fixture(scope="module")
def sparse(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return train(TWO_OF_FOUR, few_digits, tmp_path_factory.mktemp("sparse"))


def test_rows_of_four_hold_in_what_training_leaves(sparse: TrainedModel) -> None:
    assert sparse.widths_after == (4, 4, 8)
    layers = sparse.network.layers()
    for layer, kept in zip(layers, masks(layers, Sparsity((2, 4))), strict=True):
        assert not bool((layer.weight != 0)[~kept].any())
    assert [round(float((a.weight == 0).float().mean()), 2) for a in layers] == [0, 0.5, 0.5, 0.5]


def test_the_bytes_of_both_files_have_the_zeros(sparse: TrainedModel, few_digits: Dataset) -> None:
    symmetric = replace(TWO_OF_FOUR, quantise=replace(TWO_OF_FOUR.quantise, symmetric=True))
    graph = to_graph(sparse, few_digits, TWO_OF_FOUR)
    for read in (
        read_tflite(write_tflite(graph)).graph,
        read_onnx(write_onnx(to_graph(sparse, few_digits, symmetric), bias="float32", relu="sum")).graph,
    ):
        found = zeros(read)
        assert [z.two_of_four for z in found] == [False, True, True, True]
        assert [z.row for z in found] == [1, 4, 16, 8]
        for z, layer in zip(found, sparse.network.layers(), strict=True):
            weight = read.nodes[z.index].op.weight  # type: ignore[union-attr]
            stored = layer.weight.detach().permute(0, 2, 3, 1).numpy().reshape(weight.shape)
            assert not np.any(weight[stored == 0])


def test_an_interrupted_run_ends_in_the_same_zeros(sparse: TrainedModel, few_digits: Dataset, tmp_path: Path) -> None:
    for after in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train(TWO_OF_FOUR, few_digits, tmp_path, on_epoch=CtrlC(after))
    again = train(TWO_OF_FOUR, few_digits, tmp_path)
    assert again.digest() == sparse.digest() and untimed(again) == untimed(sparse)


@pytest.mark.parametrize("gradient", ["kept", "all"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_share_of_all_weights(few_digits: Dataset, tmp_path: Path, scope: str, gradient: str) -> None:
    keys = ("sparsity = 0.75", f'sparsity_scope = "{scope}"', f'mask_gradient = "{gradient}"')
    recipe = asking("sparse", *keys)
    recipe = replace(recipe, compress=replace(recipe.compress, finetune_epochs=1, average_epochs=1))
    found = train(recipe, few_digits, tmp_path)
    weights = [layer.weight for layer in found.network.layers()]
    shares = [float((w == 0).float().mean()) for w in weights]
    whole = float((torch.cat([w.flatten() for w in weights]) == 0).float().mean())
    assert whole == pytest.approx(0.75, abs=0.01)
    assert (max(shares) - min(shares) < 0.02) == (scope == "layer")


@pytest.mark.parametrize("importance", ["reach", "l1", "l2", "taylor"])
def test_widths_by_sensitivity(few_digits: Dataset, tmp_path: Path, importance: str) -> None:
    """No more MACs than the uniform widths, whole multiples, and an interrupted run finds its widths again."""
    keys = ("keep = 0.5", "channel_multiple = 2", 'allocation = "sensitivity"', f'importance = "{importance}"')
    recipe = asking("pruned", *keys)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, few_digits, tmp_path, on_epoch=CtrlC(4))
    found = train(recipe, few_digits, tmp_path)
    first, second, third = found.widths_after
    assert first % 2 == second % 2 == third % 2 == 0
    assert 16 * 9 * first + 4 * 9 * first * second + 4 * second * third + 10 * third <= 16 * 36 + 4 * 144 + 4 * 32 + 80


def test_the_small_network_has_the_kept_widths(few_digits: Dataset, tmp_path: Path) -> None:
    found = train(TWO_OF_FOUR, few_digits, tmp_path, method="small")
    assert found.widths_before == found.widths_after == (4, 4, 8)


MODULE = """
from torch import nn

def make(shape, classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(8, classes)
    )
"""


@pytest.mark.parametrize("compressed", [False, True], ids=["whole", "small"])
def test_a_share_of_the_channels_of_an_own_module(tmp_path: Path, compressed: bool) -> None:
    (tmp_path / f"nets_{compressed}.py").write_text(MODULE)
    recipe = asking("pruned", "keep = 0.5", "channel_multiple = 2")
    model = ModelRecipe(module=f"nets_{compressed}:make", folder=str(tmp_path))
    network = begun(replace(recipe, model=model), (8, 8, 1), 10, 0, compressed=compressed)
    assert network.kept_widths() == (4, 4)
    assert network.widths() == ((4, 4) if compressed else (8, 8))
