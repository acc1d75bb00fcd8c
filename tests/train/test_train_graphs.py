"""Networks that are no chains: sums, depthwise layers, averages, kernels of two sides, from the float bounds to the file."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from train_kit import shaken

from cactus_edge.certify.find import find
from cactus_edge.errors import InternalError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import trace
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_model import LayerRecipe, ModelRecipe
from cactus_edge.train import bounds
from cactus_edge.train.bounds import Box, ball, logits
from cactus_edge.train.build import build
from cactus_edge.train.calibrate import Calibration, to_graph
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import ceilings_of, clamp, fake_quantise, peaks
from cactus_edge.train.folded import Folded, detach, fold, fold_batch, forward, plan
from cactus_edge.train.loop import train
from cactus_edge.train.models import INPUT, Layers, Network, check, sources, walk
from cactus_edge.train.prune import choose, importance, shrink, take, ties
from cactus_edge.train.quantize import export, quantised
from cactus_edge.verify.check import decided
from cactus_edge.verify.decide import certify
from cactus_edge.verify.regions import Region
from cactus_edge.verify.tflite_read import read_tflite

SHAPE = (9, 6, 2)
SEEDS = range(6)
UNIT = (Fraction(0), Fraction(1))
IN_SCALE = float(np.float32(1 / 255))


def _recipe(seed: int) -> ModelRecipe:
    """A stem and three blocks: identity or projected residual, depthwise, or strided, then a head that may average."""
    rng = random.Random(seed)
    made = [LayerRecipe(kind="conv", channels=4, kernel=(3, 2), stride=(2, 1), name="b0")]
    channels = 4
    for block in range(1, 4):
        kind, before = (("identity", "projected", "depthwise", "strided") * 2)[seed % 4 + block], f"b{block - 1}"
        if kind == "identity":
            made.append(LayerRecipe(kind="conv", channels=rng.choice((3, 5))))
            made.append(LayerRecipe(kind="conv", channels=channels, adds=before, name=f"b{block}"))
        elif kind == "projected":
            channels = 6
            made.append(LayerRecipe(kind="conv", channels=6, kernel=1, stride=(1, 2), relu=False, name=f"s{block}"))
            made.append(LayerRecipe(kind="conv", channels=6, stride=(1, 2), reads=before, adds=f"s{block}"))
            made[-1] = replace(made[-1], name=f"b{block}")
        elif kind == "depthwise":
            made.append(LayerRecipe(kind="depthwise", kernel=(3, 1), relu=rng.random() < 0.7))
            channels = 5
            made.append(LayerRecipe(kind="conv", channels=5, kernel=1, name=f"b{block}"))
        else:
            channels = 5
            made.append(LayerRecipe(kind="conv", channels=5, kernel=2, pool=(1, 2), name=f"b{block}"))
    if seed % 2:
        made.append(LayerRecipe(kind="dense", channels=7, pool=(2, 1)))
    return ModelRecipe(layer=tuple(made), pool=1 if seed % 2 else "global", batch_norm=seed % 3 > 0)


def _network(seed: int) -> Network:
    return shaken(build(_recipe(seed), SHAPE, 4, seed), seed)


def _folded(seed: int) -> Folded:
    return detach(fold(_network(seed).layers()))


def _images(seed: int, count: int) -> Tensor:
    return torch.rand((count, SHAPE[2], *SHAPE[:2]), generator=torch.Generator().manual_seed(seed))


def test_the_samples_hold_all_kinds_of_layers() -> None:
    layers = [layer for seed in SEEDS for layer in _network(seed).layers()]
    kinds = {(a.adds is not None, a.depthwise, a.pool is not None, a.relu, a.dense) for a in layers}
    assert {k[0] for k in kinds} == {k[1] for k in kinds} == {k[2] for k in kinds} == {True, False}
    assert any(not a.relu and not a.dense for a in layers) and any(
        a.adds is not None and a.norm is None for a in layers
    )


def _plainly(layers: Layers, x: Tensor) -> Tensor:
    """The same function written with torch's own layers and a list of all values."""
    values = [x]
    for layer, (reads, adds) in zip(layers, sources(layers), strict=True):
        z, p = values[reads + 1], layer.padding
        if layer.pool is not None:
            z = F.avg_pool2d(z, layer.pool, layer.pool)
        groups = z.shape[1] if layer.depthwise else 1
        z = F.pad(z, (p.left, p.right, p.top, p.bottom))
        z = F.conv2d(z, layer.weight, layer.bias, stride=layer.stride, groups=groups)
        if layer.norm is not None:
            n = layer.norm
            z = F.batch_norm(z, n.mean, n.var, n.gamma, n.beta, eps=1e-5)
        z = z if adds is None else z + values[adds + 1]
        values.append(F.relu(z) if layer.relu else z)
    return values[-1].flatten(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_walk_computes_what_torch_does(seed: int) -> None:
    network, x = _network(seed), _images(seed, 6)
    with torch.no_grad():
        assert torch.allclose(forward(fold(network.layers()), x), _plainly(network.layers(), x), atol=1e-4)
        clean = fold_batch(network.layers(), x)
        assert torch.allclose(forward(clean.net, x), clean.logits, atol=1e-4)
    found = peaks(clean.net, x)
    assert len(found) == len(clean.peaks) == len(clean.net) - 1 + sum(a.layer.adds is not None for a in clean.net)
    assert all(float(a) == pytest.approx(float(b), rel=1e-4) for a, b in zip(found, clean.peaks, strict=True))


def _violation(net: Folded, x: Tensor, y: Tensor, eps: float, seed: int) -> float:
    """By how much the worst of many points leaves the bounds of hidden values, logits and margins (<= 0: none)."""
    region = ball(x, eps, UNIT)
    found, outputs = logits(net, region, y)
    worst, generator = -float("inf"), torch.Generator().manual_seed(seed)
    for k in range(40):
        t = torch.rand(x.shape, generator=generator)
        z = region.lower + 2 * region.radius * ((t > 0.5).float() if k % 2 else t)
        seen: list[Tensor] = []

        def step(i: int, read: Tensor, other: Tensor | None, seen: list[Tensor] = seen) -> Tensor:
            seen.append(net[i].join(net[i].pre(read), other))
            return net[i].post(seen[-1])

        out = walk(plan(net), z, step).flatten(1)
        for pre, a in zip(found.pre, seen, strict=False):
            worst = max(worst, float((pre.lower - a).max()), float((a - pre.upper).max()))
        margin = out.gather(1, y[:, None]) - out
        worst = max(worst, float((found.margin - margin).max()))
        worst = max(worst, float((outputs.lower - out).max()), float((out - outputs.upper).max()))
    return worst


@pytest.mark.parametrize("form", ["real", "int8", "clamped"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_point_leaves_its_bounds(seed: int, form: str) -> None:
    net, x = _folded(seed), _images(seed, 5)
    tops = tuple(0.7 * top for top in peaks(net, x))
    net = {"real": net, "int8": fake_quantise(net, tops), "clamped": clamp(net, tops)}[form]
    # float32 sums of a few hundred terms of order ten
    assert _violation(net, x, torch.arange(5) % 4, 0.02 * (seed + 1), seed) < 1e-3


def test_a_sum_whose_other_term_has_no_radius_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bounds.join

    def blind(affine: bounds.Affine, pre: Box, other: Box | None) -> Box:
        return honest(affine, pre, None if other is None else Box(other.centre, 0 * other.radius))

    monkeypatch.setattr(bounds, "join", blind)
    assert _violation(_folded(0), _images(0, 5), torch.arange(5) % 4, 0.1, 0) > 1e-2


def _calibrated(net: Folded, x: Tensor, *, symmetric: bool = False) -> Calibration:
    tops = tuple(0.8 * float(p) for p in peaks(net, x))
    largest = float(forward(net, x).abs().max())
    scale = float(np.float32(1 / 127)) if symmetric else IN_SCALE
    out = float(np.float32(2 * largest / 254))
    return Calibration(tops, (0.8,) * len(tops), scale, out, 0, 0, 0, 0, symmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_graph_follows_the_fake_quantised_network(seed: int, symmetric: bool) -> None:
    """Tensor by tensor on the integers' own inputs: at most one step apart, and rarely that (ties, bias rounding)."""
    net = _folded(seed)
    rng = np.random.default_rng(seed)
    least = 0 if symmetric else -128
    codes = rng.integers(least, 128, (12, *SHAPE)).astype(np.int8)
    calibration = _calibrated(net, _images(seed, 30), symmetric=symmetric)
    graph = export(net, calibration, SHAPE)
    arrays = trace(graph, codes, profile("ort-x86" if symmetric else "tflm"))
    made = {graph.tensors[i].name: (graph.tensors[i], a) for i, a in enumerate(arrays) if a is not None}
    fake, kinds = quantised(net, calibration), {True: "dense", False: "conv"}

    def real(name: str) -> Tensor:
        tensor, found = made[name]
        values = np.float32(tensor.scale) * (found.astype(np.float32) - tensor.zero_point)
        shape = (len(found), -1, 1, 1) if found.ndim == 2 else found.shape
        return torch.from_numpy(values.reshape(shape) if found.ndim == 2 else values.transpose(0, 3, 1, 2).copy())

    differing = total = 0

    def compare(name: str, expected: Tensor) -> None:
        nonlocal differing, total
        tensor, found = made[name]
        want = np.clip(np.rint(expected.numpy() / tensor.scale) + tensor.zero_point, -128, 127)
        gap = np.abs((want.reshape(found.shape) if found.ndim == 2 else want.transpose(0, 2, 3, 1)) - found)
        assert gap.max() <= 1, name
        if not name.startswith("pool"):  # every second mean of two codes is a tie
            differing, total = differing + int((gap > 0).sum()), total + gap.size

    outputs = {INPUT: "input"}
    for i, (affine, (reads, adds)) in enumerate(zip(fake, sources(plan(fake)), strict=True)):
        kind = "depthwise" if affine.layer.depthwise else kinds[affine.layer.dense]
        name = "logits" if i == len(fake) - 1 else f"{kind}{i}"
        read = real(outputs[reads])
        if affine.layer.pool is not None:
            compare(f"pool{i}", affine.read(read))
            read = real(f"pool{i}")
        z = affine.map(read)
        if adds is not None:
            compare(name, affine.join(z, torch.zeros(())))
            compare(f"sum{i}", affine.post(real(name) + real(outputs[adds])))
            outputs[i] = f"sum{i}"
        else:
            compare(name, affine.post(z))
            outputs[i] = name
    assert differing < 0.02 * total


@pytest.mark.parametrize("seed", SEEDS)
def test_the_file_holds_the_graph_and_runtimes_compute_it(seed: int) -> None:
    net = _folded(seed)
    graph = export(net, _calibrated(net, _images(seed, 30)), SHAPE)
    data = write_tflite(graph)
    codes = np.random.default_rng(seed).integers(-128, 128, (16, *SHAPE)).astype(np.int8)
    assert len(read_tflite(data).graph.nodes) >= len(graph.nodes)
    for runtime in ("tflm", "litert") if seed == 0 else ("tflm",):
        agree(data, codes, runtime).require()
    symmetric = export(net, _calibrated(net, _images(seed, 30), symmetric=True), SHAPE)
    onnx = write_onnx(symmetric)
    assert read_onnx(onnx).graph.weights() == symmetric.weights()


def test_onnx_runtime_computes_a_sum_and_a_mean() -> None:
    net = _folded(0)
    x = _images(1, 16).numpy().transpose(0, 2, 3, 1).copy()
    agree(write_onnx(export(net, _calibrated(net, _images(0, 30), symmetric=True), SHAPE)), x, "onnxruntime").require()


def _silence(layers: Layers, kept: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for layer, rows in zip(layers, kept, strict=False):
            dropped = torch.ones(layer.weight.shape[0], dtype=torch.bool)
            dropped[rows] = False
            for tensor in (layer.norm.gamma, layer.norm.beta) if layer.norm is not None else (layer.weight, layer.bias):
                tensor[dropped] = 0


def _smaller(network: Network) -> tuple[int, ...]:
    """One channel in two of each group of tied layers."""
    return tuple((len(layer.weight) + 1) // 2 for layer in network.layers()[:-1])


@pytest.mark.parametrize("seed", SEEDS)
def test_removal_equals_masking_with_tied_channels(seed: int) -> None:
    network, x = _network(seed), _images(seed, 6)
    small, kept = shrink(network, _smaller(network))
    group = ties(network.layers())
    assert all(torch.equal(kept[i], kept[g]) for i, g in enumerate(group))
    assert sum(g != i for i, g in enumerate(group)) >= 1
    _silence(network.layers(), kept)
    with torch.no_grad():
        a, b = forward(fold(small.layers()), x), forward(fold(network.layers()), x)
        assert torch.allclose(a, b, atol=1e-4)


def test_untied_channels_are_caught() -> None:
    """The planted fault: a sum of the right shapes over other channels is another function, and other widths are refused."""
    network, x = _network(0), _images(0, 6)
    layers, widths = network.layers(), _smaller(network)
    kept = list(choose(layers, widths))
    group = ties(layers)
    i = next(i for i, g in enumerate(group) if g != i and not layers[i].depthwise)
    kept[i] = torch.arange(len(layers[i].weight))[-len(kept[i]) :] if kept[i][0] == 0 else kept[i] - 1
    wrong = take(layers, tuple(kept))
    right = take(layers, choose(layers, widths))
    with torch.no_grad():
        assert not torch.allclose(forward(fold(wrong), x), forward(fold(right), x), atol=1e-3)
    uneven = tuple(w + (j == i) for j, w in enumerate(widths))
    with pytest.raises(InternalError, match="tied"):
        choose(layers, uneven)


def test_importance_passes_through_sums_and_depthwise_layers() -> None:
    network = _network(0)
    scores, group = importance(network.layers()), ties(network.layers())
    for i, g in enumerate(group):
        assert torch.equal(scores[i], scores[g])
    assert all(float(s.min()) > 0 for s in scores)


def test_a_depthwise_layer_on_the_input_keeps_all_channels() -> None:
    model = ModelRecipe(layer=(LayerRecipe(kind="depthwise"), LayerRecipe(kind="conv", channels=4)))
    layers = build(model, SHAPE, 3, 0).layers()
    assert ties(layers) == (INPUT, 1)
    with pytest.raises(InternalError, match="tied"):
        choose(layers, (1, 2))


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda layers: (replace(layers[0], reads=1), *layers[1:]), id="reads_a_later_one"),
        pytest.param(lambda layers: (layers[0], replace(layers[1], in_size=(3, 3)), *layers[2:]), id="another_map"),
        pytest.param(lambda layers: (*layers[:-1], replace(layers[-1], relu=True)), id="relu_at_the_end"),
        pytest.param(lambda layers: (*layers[:-1], replace(layers[-1], adds=0)), id="sum_at_the_end"),
        pytest.param(lambda layers: (layers[0], replace(layers[1], adds=INPUT), *layers[2:]), id="sum_of_other_shapes"),
        pytest.param(lambda layers: (replace(layers[0], pool=(1, 1)), *layers[1:]), id="means_of_the_input"),
    ],
)
def test_layers_that_are_no_network(broken: Callable[[Layers], Layers]) -> None:
    layers = _network(0).layers()
    check(layers)
    with pytest.raises(InternalError):
        check(broken(layers))


def test_ceilings_are_read_back() -> None:
    net, x = _folded(0), _images(0, 5)
    tops = peaks(net, x)
    assert ceilings_of(net) is None
    for made in (clamp(net, tops), fake_quantise(net, tops)):
        found = ceilings_of(made)
        assert found is not None and all(a is b for a, b in zip(found, tops, strict=True))
    with pytest.raises(InternalError, match="ceilings"):
        clamp(net, (*tops, tops[0]))


RESIDUAL = (
    LayerRecipe(kind="conv", channels=6, kept=4, stride=2, name="stem"),
    LayerRecipe(kind="depthwise"),
    LayerRecipe(kind="conv", channels=6, kept=4, kernel=1, adds="stem"),
)


def test_a_residual_net_trains_resumes_ships_and_is_certified(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    recipe = replace(tiny, model=ModelRecipe(layer=RESIDUAL, pool="global"))
    trained = train(recipe, few_digits, tmp_path, threads=1)
    assert (trained.widths_before, trained.widths_after) == ((6, 6, 6), (4, 4, 4))
    assert train(recipe, few_digits, tmp_path, threads=1).digest() == trained.digest()
    graph = to_graph(trained, few_digits, recipe)
    assert [type(node.op).__name__ for node in graph.nodes] == [
        "Conv2d", "DepthwiseConv2d", "Conv2d", "Add", "AvgPool", "Dense"
    ]  # fmt: skip
    data, program = write_tflite(graph), lower(graph, profile("tflm"))
    x, y = few_digits.test.x[:20], few_digits.test.y[:20]
    agree(data, program.quantize.apply(x)).require()
    around, digest = Region((Fraction(1, 64),), few_digits.domain), bytes(32)
    by_intervals = certify(program, around, x, y)
    by_lines, _ = decided(program, around, x, y, find(program, around, x, y, digest), digest)
    assert (by_intervals.certified <= by_lines.certified).all() and (by_lines.certified <= by_lines.correct).all()
    assert by_lines.certified.sum() > 0
