"""ResNet-18, pre-activation WRN-18-2 and MobileNet-V2: sizes of the literature, the function of the literature, and the file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_kit import shaken

from cactus_edge.formats.agree import agree
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_model import ModelRecipe, expanded
from cactus_edge.train.build import build
from cactus_edge.train.calibrate import calibrate
from cactus_edge.train.data import Dataset, Split
from cactus_edge.train.folded import detach, fold, forward
from cactus_edge.train.models import Layer, Network, per_channel
from cactus_edge.train.quantize import export, quantised
from cactus_edge.train.sparsity import Sparsity, sparsified
from cactus_edge.verify.tflite_read import read_tflite

SIZES = {
    # weights of convolutions and classifier, millions; RobustBench's cards have these networks
    ("resnet18", 2.0): 44.64,
    ("resnet18", 1.0): 11.16,
    ("wrn18-2", 1.0): 24.87,
    ("mobilenet-v2", 1.0): 2.20,
}


def made(net: str, width: float, shape: tuple[int, int, int] = (32, 32, 3)) -> Network:
    return build(expanded(ModelRecipe(net=net, width=width)), shape, 10, 0)


@pytest.mark.parametrize(("net", "width"), SIZES, ids=lambda value: str(value))
def test_sizes_are_those_of_the_literature(net: str, width: float) -> None:
    layers = made(net, width).layers()
    weights = sum(layer.weight.numel() for layer in layers if not layer.scales)
    assert round(weights / 1e6, 2) == SIZES[net, width]


@pytest.mark.parametrize("net", ["resnet18", "wrn18-2", "mobilenet-v2"])
def test_the_width_scales_every_layer(net: str) -> None:
    whole, half = made(net, 0.5).widths(), made(net, 0.25).widths()
    assert all(abs(w - 2 * h) <= 1 for w, h in zip(whole, half, strict=True))


def test_a_wide_network_normalises_before_it_convolves() -> None:
    """The layers compute what pre-activation blocks are: x + conv(relu(bn(conv(relu(bn(x))))))."""
    network = shaken(made("wrn18-2", 0.03, (16, 16, 3)), 0)
    layers, x = network.layers(), torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(forward(fold(layers), x), _preactivation(list(layers), x), rtol=1e-3, atol=1)
    swapped = [replace(layer, relu=True) if layer.adds is not None else layer for layer in layers]
    assert not torch.allclose(forward(fold(tuple(swapped)), x), _preactivation(list(layers), x), rtol=1e-2, atol=1), (
        "post-activation"
    )


def _preactivation(layers: list[Layer], x: torch.Tensor) -> torch.Tensor:
    queue = iter(layers)

    def norm(layer: Layer, z: torch.Tensor) -> torch.Tensor:
        n = layer.norm
        assert n is not None
        return F.relu(F.batch_norm(z, n.mean, n.var, n.gamma, n.beta, eps=1e-5))

    def conv(layer: Layer, z: torch.Tensor) -> torch.Tensor:
        p = layer.padding
        return F.conv2d(F.pad(z, (p.left, p.right, p.top, p.bottom)), layer.weight, layer.bias, layer.stride)

    z = conv(next(queue), x)
    for _ in range(8):
        first = next(queue)
        assert first.scales
        active = norm(first, first.weight[:, 0] * z + per_channel(first.bias))
        into = next(queue)
        short = z
        if into.weight.shape[2:] == (1, 1):
            short, into = conv(into, active), next(queue)
        z = short + conv(next(queue), norm(into, conv(into, active)))
    last = next(queue)
    z = norm(last, last.weight[:, 0] * z + per_channel(last.bias))
    classifier = next(queue)
    return F.linear(z.mean((2, 3)), classifier.weight.flatten(1), classifier.bias)


def test_normalisations_are_not_pruned() -> None:
    network = made("wrn18-2", 0.05, (16, 16, 3))
    for by_layer in (False, True):
        thin = sparsified(network, Sparsity(None, 0.9, by_layer)).layers()
        assert all(bool((layer.weight == 1).all()) for layer in thin if layer.scales)
        rest = torch.cat([layer.weight.flatten() for layer in thin if not layer.scales])
        assert float((rest == 0).double().mean()) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("net", "width"), [("resnet18", 0.05), ("wrn18-2", 0.05), ("mobilenet-v2", 0.08)])
def test_the_file_computes_the_network(tiny: Recipe, net: str, width: float) -> None:
    network = shaken(made(net, width, (8, 8, 1)), 1)
    rng = np.random.default_rng(0)
    part = Split(rng.random((40, 8, 8, 1)).astype(np.float32), np.arange(40) % 10)
    noise = Dataset("noise", part, part, part, tuple("0123456789"), "")
    x = torch.from_numpy(part.x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for layer, (mean, var) in _moments(network, x):
            assert layer.norm is not None
            layer.norm.mean.copy_(mean)
            layer.norm.var.copy_(var)
    folded = detach(fold(network.layers()))
    recipe = replace(tiny, quantise=replace(tiny.quantise, calibration="min-max"))
    grids = calibrate(folded, noise, recipe)
    data = write_tflite(export(folded, grids, (8, 8, 1)), metadata={})
    program = lower(read_tflite(data).graph, profile("tflm"))
    codes = program.quantize.apply(part.x)
    integer, twin = run(program, codes), forward(quantised(folded, grids), x).numpy()
    assert np.corrcoef(integer.ravel(), twin.ravel())[0, 1] > 0.6, "deep, untrained, and rounded at other places"
    agree(data, codes).require()


def _moments(network: Network, x: torch.Tensor) -> list[tuple[Layer, tuple[torch.Tensor, torch.Tensor]]]:
    from cactus_edge.train.folded import statistics

    layers = network.layers()
    return [(layer, found) for layer, found in zip(layers, statistics(layers, x), strict=True) if found is not None]
