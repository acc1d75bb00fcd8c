"""The integer graph against the fake-quantised network, and what calibration promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.ir.arith import LARGEST_FLOAT_BIAS
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Conv2d, Dense
from cactus_edge.recipe import Recipe
from cactus_edge.train.calibrate import calibrate, to_graph
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import fake_quantise, peaks, quantise_weight, weight_scales
from cactus_edge.train.folded import Folded, detach, fold, forward, round_to_grid
from cactus_edge.train.grids import Calibration, symmetric_steps
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network
from cactus_edge.train.quantize import LARGEST_BIAS, export, integers, quantised
from cactus_edge.verify.decide import certify
from cactus_edge.verify.regions import Region

INPUT_SCALE = float(np.float32(1 / 255))

Make = Callable[..., Network]


def _calibrated(net: Folded, x: torch.Tensor, clip: float) -> Calibration:
    ceilings = tuple(clip * float(p) for p in peaks(net, x))
    largest = float(forward(net, x).abs().max())
    return Calibration(ceilings, (clip,) * len(ceilings), INPUT_SCALE, float(np.float32(2 * largest / 255)), 3, 0, 0, 0)


@pytest.mark.parametrize("clip", [1.0, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_the_graph_follows_the_fake_quantised_network(make_network: Make, seed: int, clip: float) -> None:
    """Layer by layer on the integers' own inputs: at most one step apart, and rarely that (ties, bias rounding)."""
    net = detach(fold(make_network(seed, batch_norm=seed % 2 == 0).layers()))
    codes = np.random.default_rng(seed).integers(-128, 128, (20, 7, 6, 2)).astype(np.int8)
    x = torch.from_numpy(((codes.astype(np.float32) + 128) * np.float32(INPUT_SCALE)).transpose(0, 3, 1, 2).copy())
    calibration = _calibrated(net, x, clip)
    graph = export(net, calibration, (7, 6, 2))
    fake = quantised(net, calibration)
    z, differing, total = x, 0, 0
    arrays = trace(graph, codes, profile("tflm"))
    for affine, node in zip(fake, graph.nodes, strict=True):
        tensor, found = graph.tensors[node.output], arrays[node.output]
        assert found is not None
        real = affine.post(affine.pre(z)).numpy()
        expected = np.clip(np.rint(real / tensor.scale) + tensor.zero_point, -128, 127)
        expected = expected.reshape(20, -1) if affine.layer.dense else expected.transpose(0, 2, 3, 1)
        gap = np.abs(expected - found)
        assert gap.max() <= 1
        differing, total = differing + int((gap > 0).sum()), total + gap.size
        values = np.float32(tensor.scale) * (found.astype(np.float32) - tensor.zero_point)
        shape = (20, -1, 1, 1) if affine.layer.dense else found.shape
        z = torch.from_numpy(values.reshape(shape) if affine.layer.dense else values.transpose(0, 3, 1, 2).copy())
    assert differing < 0.01 * total


def test_a_planted_fault_is_caught(make_network: Make) -> None:
    """Exported with the weights of one channel swapped, the graph does not follow any more."""
    network = make_network(0)
    net = detach(fold(network.layers()))
    x = torch.rand((20, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    calibration = _calibrated(net, x, 1.0)
    broken = (replace(net[0], weight=net[0].weight.flip(0)), *net[1:])
    samples = x.numpy().transpose(0, 2, 3, 1).copy()
    good, bad = (evaluate(export(n, calibration, (7, 6, 2)), samples, profile("tflm")) for n in (net, broken))
    real = forward(quantised(net, calibration), x).numpy() / calibration.out_scale + 3
    assert np.abs(good - real).max() <= 4 < np.abs(bad - real).max() / 3


def test_geometry_and_grids_of_the_graph(make_network: Make) -> None:
    net = detach(fold(make_network(0).layers()))
    graph = export(net, Calibration((1.0, 2.0, 3.0), (1.0,) * 3, INPUT_SCALE, 0.5, -7, 0, 0, 0), (7, 6, 2))
    assert (graph.input.scale, graph.input.zero_point, graph.input.shape) == (INPUT_SCALE, -128, (7, 6, 2))
    assert (graph.output.scale, graph.output.zero_point, graph.output.shape) == (0.5, -7, (4,))
    first, second, third, last = (node.op for node in graph.nodes)
    assert isinstance(first, Conv2d) and isinstance(second, Conv2d)
    assert first.weight_scale.shape == (5,) and first.weight.shape == (5, 3, 3, 2)
    assert (first.padding.top, first.padding.bottom, first.padding.left, first.padding.right) == (1, 1, 0, 1)
    assert isinstance(third, Dense) and isinstance(last, Dense)
    assert third.weight_scale.shape == last.weight_scale.shape == (1,)


def test_weights_use_the_whole_symmetric_range(make_network: Make) -> None:
    weight = fold(make_network(3).layers())[0].weight.detach()
    for per_channel in (True, False):
        steps = (
            quantise_weight(weight, per_channel=per_channel)
            / weight_scales(weight, per_channel=per_channel)[:, None, None, None]
        )
        assert float(steps.abs().max()) == pytest.approx(127, abs=1e-3)
        assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_a_channel_of_zeros_keeps_a_legal_scale() -> None:
    weight = torch.zeros(2, 1, 1, 1)
    assert weight_scales(weight, per_channel=True).tolist() == pytest.approx([1 / 127] * 2)
    assert torch.equal(quantise_weight(weight, per_channel=True), weight)


def test_fake_quantisation_has_straight_through_gradients(make_network: Make) -> None:
    network = make_network(2)
    x = torch.rand((4, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    net = fold(network.layers())
    forward(fake_quantise(net, peaks(net, x)), x).square().sum().backward()  # type: ignore[no-untyped-call]
    for layer in network.layers():
        assert layer.weight.grad is not None and float(layer.weight.grad.abs().sum()) > 0


def test_a_bias_beyond_int32(make_network: Make) -> None:
    """A channel of a convolution gets coarser steps, the others keep theirs; a dense layer, which has one scale, is refused."""
    net = detach(fold(make_network(0).layers()))
    added = torch.zeros_like(net[0].bias)
    added[1] = 1e9
    weight, bias, scale = integers(replace(net[0], bias=net[0].bias + added), INPUT_SCALE, "conv0")
    plain = integers(net[0], INPUT_SCALE, "conv0")
    kept = np.arange(len(scale)) != 1
    for found, other in zip((weight, bias, scale), plain, strict=True):
        assert np.array_equal(found[kept], other[kept])
    assert not weight[1].any() and abs(float(bias[1]) * scale[1] * INPUT_SCALE / 1e9 - 1) < 1e-6
    assert 0 < bias[1] <= LARGEST_BIAS
    huge = (*net[:2], replace(net[2], bias=net[2].bias + 1e9), net[3])
    with pytest.raises(ModelError, match="dense2: a bias"):
        export(huge, Calibration((1.0, 1.0, 1.0), (1.0,) * 3, INPUT_SCALE, 0.5, 0, 0, 0, 0), (7, 6, 2))


def test_a_channel_that_is_little_but_its_bias_fits_a_float32_bias(make_network: Make) -> None:
    """Weights a thousand times smaller: their own steps would make a bias of 2^22 and more, which TensorRT's float32 does not hold."""
    net = detach(fold(make_network(0).layers()))
    small = torch.ones_like(net[0].bias)
    small[0] = 1e-3
    bias = torch.full_like(net[0].bias, 0.5)
    net = (replace(net[0], weight=net[0].weight * small[:, None, None, None], bias=bias), *net[1:])
    calibration = Calibration((1.0, 1.0, 1.0), (1.0,) * 3, float(np.float32(1 / 127)), 0.5, 0, 0, 0, 0, True)
    exported = export(net, calibration, (7, 6, 2))
    op = exported.nodes[0].op
    assert isinstance(op, Conv2d)
    assert np.abs(op.bias).max() < LARGEST_FLOAT_BIAS < np.abs(integers(net[0], calibration.in_scale, "x")[1]).max()
    free, bound = integers(net[0], calibration.in_scale, "x"), (op.weight, op.bias, op.weight_scale)
    for mine, other in zip(free, bound, strict=True):
        assert (mine[1:] == other[1:]).all()
    np.testing.assert_allclose(op.bias * op.weight_scale * calibration.in_scale, bias.numpy(), rtol=1e-4)
    write_onnx(exported, bias="float32")
    with pytest.raises(UnsupportedError, match="beyond 2"):
        write_onnx(export(net, replace(calibration, symmetric=False), (7, 6, 2)), bias="float32")


def test_calibration_counts_what_verify_certifies(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    trained = train(tiny, few_digits, tmp_path, threads=1)
    net, split = trained.folded(), few_digits.validation
    wide = replace(tiny, quantise=replace(tiny.quantise, clips=(1.0,)))
    for recipe in tiny, wide:
        calibration = calibrate(net, few_digits, recipe)
        program = lower(export(net, calibration, few_digits.shape), profile("tflm"))
        decision = certify(program, Region((tiny.certify.eps,), few_digits.domain), split.x, split.y)
        # Ranked by floating-point bounds, decided on integers: the counts may differ by a borderline sample.
        assert abs(int(decision.certified.sum()) - calibration.certified) <= 2
        assert abs(int(decision.correct.sum()) - calibration.correct) <= 2
        assert calibration.certified <= calibration.correct <= calibration.samples == 60
        assert calibration.certified > 0


def test_symmetric_calibration_counts_what_verify_certifies(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    recipe = replace(tiny, quantise=replace(tiny.quantise, symmetric=True))
    trained = train(recipe, few_digits, tmp_path, threads=1)
    calibration = calibrate(trained.folded(), few_digits, recipe)
    graph = export(trained.folded(), calibration, few_digits.shape)
    assert {t.zero_point for t in graph.tensors} == {0} and calibration.levels == 127
    program, split = lower(graph, profile("ort-x86")), few_digits.validation
    decision = certify(program, Region((recipe.certify.eps,), few_digits.domain), split.x, split.y)
    assert abs(int(decision.certified.sum()) - calibration.certified) <= 2
    assert abs(int(decision.correct.sum()) - calibration.correct) <= 2


def test_the_symmetric_graph_follows_the_fake_quantised_network(make_network: Make) -> None:
    net = detach(fold(make_network(1).layers()))
    codes = np.random.default_rng(1).integers(0, 128, (20, 7, 6, 2)).astype(np.int8)
    x = torch.from_numpy((codes.astype(np.float32) * np.float32(1 / 127)).transpose(0, 3, 1, 2).copy())
    ceilings = tuple(0.8 * float(p) for p in peaks(net, x))
    calibration = Calibration(ceilings, (0.8,) * len(ceilings), float(np.float32(1 / 127)), 0.0625, 0, 0, 0, 0, True)
    graph, z = export(net, calibration, (7, 6, 2)), x
    arrays = trace(graph, codes, profile("ort-x86"))
    for affine, node in zip(quantised(net, calibration)[:-1], graph.nodes, strict=False):
        tensor, found = graph.tensors[node.output], arrays[node.output]
        assert found is not None and found.min() >= 0
        real = affine.post(affine.pre(z)).numpy()
        expected = np.rint(real / tensor.scale)
        expected = expected.reshape(20, -1) if affine.layer.dense else expected.transpose(0, 2, 3, 1)
        assert expected.max() == 127 and np.abs(expected - found).max() <= 1
        z = torch.from_numpy(np.float32(tensor.scale) * found.astype(np.float32))
        z = z.reshape(20, -1, 1, 1) if affine.layer.dense else z.permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize(
    ("eps", "steps"),
    [("1/16", 112), ("1/10", 120), ("3/20", 120), ("1/50", 100), ("2/255", 127), ("1/90", 90), ("0", 127)],
)
def test_steps_of_a_symmetric_input(eps: str, steps: int) -> None:
    assert symmetric_steps((Fraction(eps),)) == steps


def test_the_exported_network_classifies_as_the_float_one(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    trained = train(tiny, few_digits, tmp_path, threads=1)
    graph = to_graph(trained, few_digits, tiny)
    assert graph.weights() == sum(trained.weights_after) < sum(trained.weights_before)
    out = evaluate(graph, few_digits.test.x, profile("tflm"))
    x = torch.from_numpy(few_digits.test.x.transpose(0, 3, 1, 2).copy())
    assert (out.argmax(1) == forward(trained.folded(), x).argmax(1).numpy()).mean() > 0.85


@pytest.mark.parametrize("levels", [255, 127])
@pytest.mark.parametrize("ceiling", [0.3, 1.7, 5.0])
def test_rounding_to_the_grid_is_torchs_fake_quantisation(ceiling: float, levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    step, y = torch.tensor(ceiling / levels), torch.randn(20_000, generator=generator) * ceiling
    ours, theirs = y.clone().requires_grad_(), y.clone().requires_grad_()
    a = round_to_grid(ours, step, levels)
    b = torch.fake_quantize_per_tensor_affine(theirs, step, torch.zeros((), dtype=torch.int32), 0, levels)
    weight = torch.randn(20_000, generator=generator)
    for out in a, b:
        (out * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(a, b)
    assert ours.grad is not None and theirs.grad is not None and torch.equal(ours.grad, theirs.grad)
