"""Weights of 4 bits: learned, calibrated and exported as the recipe says, and 8 bits as they always were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cactus_edge.errors import InputError, ModelError, UnsupportedError
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Tensor
from cactus_edge.recipe import Recipe
from cactus_edge.train.calibrate import calibrate, to_graph
from cactus_edge.train.checkpoints import run_key
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import layer_bits, narrowed, quantise_weight, weight_scales
from cactus_edge.train.folded import Folded, detach, fold, forward
from cactus_edge.train.loop import to_torch, train
from cactus_edge.train.models import Network
from cactus_edge.train.quantize import export, quantised

Make = Callable[..., Network]
MIXED = (8, 4, 8)


def asking(recipe: Recipe, *bits: int) -> Recipe:
    return replace(recipe, quantise=replace(recipe.quantise, weight_bits=bits, calibration="min-max"))


@pytest.fixture(scope="module")
def net(tiny: Recipe, few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Folded:
    """Three layers, trained with the middle one in 4 bits."""
    return train(asking(tiny, *MIXED), few_digits, tmp_path_factory.mktemp("runs"), threads=1).folded()


@pytest.mark.parametrize(("bits", "most"), [(4, 7), (8, 127)])
def test_weights_are_rounded_to_their_width(make_network: Make, bits: int, most: int) -> None:
    weight = fold(make_network(3).layers())[0].weight.detach()
    for per_channel in (True, False):
        scales = weight_scales(weight, per_channel=per_channel, bits=bits)[:, None, None, None]
        steps = quantise_weight(weight, per_channel=per_channel, bits=bits) / scales
        assert float(steps.abs().max()) == pytest.approx(most, abs=1e-3)
        assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_one_width_counts_for_every_layer() -> None:
    assert layer_bits((4,), 3) == (4, 4, 4)
    assert layer_bits(MIXED, 3) == MIXED


@pytest.mark.parametrize(
    ("bits", "kind", "named"),
    [
        ((8, 4), InputError, "names 2 widths, the network has 3 layers"),
        ((8, 4, 4, 8), InputError, "names 4 widths"),
        ((8, 3, 8), UnsupportedError, "no file stores weights of 3 bits"),
    ],
)
def test_widths_that_do_not_fit_are_refused_before_training(
    bits: tuple[int, ...], kind: type[Exception], named: str, tiny: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=named):
        train(asking(tiny, *bits), few_digits, tmp_path, threads=1)


def test_a_width_is_part_of_what_a_run_is(tiny: Recipe, few_digits: Dataset) -> None:
    """Unless it is 8, or no member of the network set rounds weights."""
    plain = replace(
        tiny, train=replace(tiny.train, members=("full",)), compress=replace(tiny.compress, members=("full",))
    )
    assert run_key(asking(tiny, 8), few_digits) == run_key(tiny, few_digits) != run_key(asking(tiny, 4), few_digits)
    assert run_key(asking(plain, 4), few_digits) == run_key(plain, few_digits)


def test_the_export_has_the_widths_that_were_learned(net: Folded, tiny: Recipe, few_digits: Dataset) -> None:
    narrow = narrowed(net, MIXED)
    calibration = calibrate(narrow, few_digits, asking(tiny, *MIXED))
    graph = export(narrow, calibration, few_digits.shape)
    layers = [node.op for node in graph.nodes if isinstance(node.op, ops.Conv2d | ops.Dense)]
    assert [op.weight_bits for op in layers] == list(MIXED)
    assert [int(np.abs(op.weight).max()) for op in layers] == [127, 7, 127]
    assert read_tflite(write_tflite(graph)).graph.digest() == graph.digest()
    # The float twin rounds as the integers do.
    x = few_digits.validation.x[:50]
    codes = evaluate(graph, x_codes(x, graph.input), profile("tflm")).astype(np.float64)
    twin = forward(quantised(detach(narrow), calibration), to_torch(few_digits.validation)[0][:50]).detach().numpy()
    real = (codes - graph.output.zero_point) * graph.output.scale
    assert np.abs(real - np.clip(twin, real.min(), real.max())).max() < 6 * graph.output.scale


def x_codes(x: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The codes of x in [0, 1]."""
    return np.clip(np.rint(x / tensor.scale) + tensor.zero_point, -128, 127).astype(np.int8)


def test_every_criterion_decides_on_the_narrow_file(net: Folded, tiny: Recipe, few_digits: Dataset) -> None:
    wide = calibrate(narrowed(net, (8,)), few_digits, asking(tiny, 8))
    narrow = calibrate(narrowed(net, (4,)), few_digits, asking(tiny, 4))
    assert (wide.ceilings, wide.samples) == (narrow.ceilings, narrow.samples)
    assert (wide.certified, wide.correct) != (narrow.certified, narrow.correct)


def test_the_refusal_of_the_last_candidate_is_told(net: Folded, tiny: Recipe, few_digits: Dataset) -> None:
    broken = (*net[:-1], replace(net[-1], bias=net[-1].bias + 1e12))
    recipe = replace(tiny, quantise=replace(tiny.quantise, calibration="certified"))
    with pytest.raises(ModelError, match=r"the last: .*does not fit int32"):
        calibrate(broken, few_digits, recipe)


def test_the_file_is_smaller_by_the_half_bytes(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    model = train(asking(tiny, *MIXED), few_digits, tmp_path, threads=1)
    graphs = [to_graph(model, few_digits, asking(tiny, *bits)) for bits in ((8,), MIXED)]
    saved = len(write_tflite(graphs[0])) - len(write_tflite(graphs[1]))
    middle = graphs[1].nodes[1].op
    assert isinstance(middle, ops.Dense)
    assert abs(saved - middle.weight.size // 2) < 32
