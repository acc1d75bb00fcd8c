"""What tests of training share: Ctrl-C at a chosen epoch, a history without its times, networks with random statistics, and what
stands for the network."""

from __future__ import annotations

import io
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cactus_edge.recipe import Recipe
from cactus_edge.train.bounds import ball
from cactus_edge.train.data import Dataset
from cactus_edge.train.loop import EpochStats, train
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.trained import TrainedModel

MUTATIONS = "brightness=0.2,contrast=0.2,rotation=10,translation=2,blur=1"


def sample(count: int = 12) -> Batch:
    """Random samples of four classes, at a radius of 0."""
    x = torch.rand((count, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.arange(count) % 4, ball(x, 0.0, None), seed=5)


class CtrlC:
    """Interrupts as Ctrl-C does, in the callback after a given epoch."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, _: EpochStats) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def untimed(model: TrainedModel) -> list[EpochStats]:
    """The history but for how long it took."""
    return [replace(s, seconds=0, cpu_seconds=0) for s in model.history]


def same_after_ctrl_c(recipe: Recipe, dataset: Dataset, folder: Path, method: str, after: int) -> None:
    """A run that is cut after an epoch goes on with the bits of a whole one."""
    whole = train(recipe, dataset, folder / "whole", method=method)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, dataset, folder / "cut", CtrlC(after), method=method)
    resumed = train(recipe, dataset, folder / "cut", method=method)
    assert resumed.digest() == whole.digest() and untimed(resumed) == untimed(whole)


def shaken(network: Network, seed: int) -> Network:
    """The network with larger weights, and biases and normalisation drawn at random: nothing is 0 or 1 by chance of a new one."""
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for layer in network.layers():
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
            layer.weight.mul_(3)
            if layer.norm is not None:
                for tensor in layer.norm.gamma, layer.norm.var:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.3)
                for tensor in layer.norm.beta, layer.norm.mean:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return network


class Server:
    """Serves `files`, and lists what was asked for; Ctrl-C comes with the one called `stopped`."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.stopped, self.asked = files, "", list[str]()

    def open(self, url: str, timeout: float) -> io.BytesIO:
        name = url.rpartition("/")[2]
        self.asked.append(name)
        if name == self.stopped:
            raise KeyboardInterrupt
        if name not in self.files:
            raise urllib.error.URLError("no network here")
        return io.BytesIO(self.files[name])
