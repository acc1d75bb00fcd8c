"""Witnesses are real, gradients point downhill, and a net that can be enumerated is broken wherever it can be."""

from __future__ import annotations

import itertools
from importlib import import_module

import numpy as np
import numpy.typing as npt
import pytest
from search_kit import balls, network

from cactus_edge.certify.attack import Search, attack, strict_win
from cactus_edge.certify.gradient import gradient, margin_gradient
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run, values
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower


def dense(rng: np.random.Generator, inputs: int, outputs: int, activation: ops.Activation) -> ops.Dense:
    weight = ops.freeze(rng.integers(-127, 128, (outputs, inputs)), np.int8)
    bias = ops.freeze(rng.integers(-500, 500, outputs), np.int32)
    return ops.Dense(weight, bias, ops.freeze([np.float32(0.02)], np.float32), activation)


def small_net(seed: int) -> Program:
    """Three inputs, one hidden layer, two classes: small enough to enumerate boxes."""
    rng = np.random.default_rng(seed)
    scale = [float(np.float32(v)) for v in (0.05, 0.08, 0.9)]
    b = GraphBuilder()
    x = b.input(Tensor("x", (3,), scale=scale[0]))
    hidden = Tensor("h", (6,), scale=scale[1], zero_point=-128)
    h = b.node(dense(rng, 3, 6, ops.Activation.RELU), [x], hidden)
    y = b.node(dense(rng, 6, 2, ops.Activation.NONE), [h], Tensor("y", (2,), scale=scale[2]))
    return lower(b.finish(y), profile("tflm"))


def test_every_witness_lies_in_the_region_and_really_loses() -> None:
    for seed in range(10):
        program = small_net(seed)
        rng = np.random.default_rng(seed)
        centre = rng.integers(-100, 100, (50, 3)).astype(np.int8)
        labels = run(program, centre).argmax(1)
        lower_, upper = (
            np.clip(centre.astype(int) - 20, -128, 127).astype(np.int8),
            np.clip(centre.astype(int) + 20, -128, 127).astype(np.int8),
        )
        result = attack(program, lower_, upper, labels, start=centre, seed=seed)
        assert (result.witness >= lower_).all() and (result.witness <= upper).all()
        assert np.array_equal(~strict_win(run(program, result.witness), labels), result.found)


def test_finds_nearly_all_that_enumeration_finds() -> None:
    breakable, found = 0, 0
    for seed in range(12):
        program = small_net(seed)
        rng = np.random.default_rng(seed)
        centre = rng.integers(-100, 100, (20, 3)).astype(np.int8)
        labels = run(program, centre).argmax(1)
        result = attack(program, centre - 4, centre + 4, labels, start=centre, seed=seed)
        offsets = np.array(list(itertools.product(range(-4, 5), repeat=3)))
        for i in range(len(centre)):
            points = (centre[i].astype(int) + offsets).astype(np.int8)
            truth = not strict_win(run(program, points), np.full(len(points), labels[i])).all()
            assert truth or not result.found[i]
            breakable += truth
            found += truth and result.found[i]
    assert breakable > 20
    assert found >= 0.8 * breakable


def test_gradient_agrees_with_finite_differences_of_the_unclamped_margin() -> None:
    program = small_net(3)
    x = np.array([[10, -20, 30]], np.int8)
    labels = np.array([0])
    slope = margin_gradient(program, x, labels)[0]
    step = 40
    for i in range(3):
        up, down = x.copy(), x.copy()
        up[0, i] += step
        down[0, i] -= step
        difference = [int(np.diff(run(program, p).astype(int)[0])[0]) * -1 for p in (up, down)]
        numeric = (difference[0] - difference[1]) / (2 * step)
        assert np.sign(slope[i]) == np.sign(numeric) or abs(numeric) < 0.05


def gated(seed: int) -> Program:
    """Two classes from a product of a gate (logistic of a channel mean) and an image, through a transpose and a slice."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder()
    x = b.input(Tensor("x", (2, 2, 2), "int8", 0.0625, 3))
    mean = b.node(ops.Mean((0, 1), True), [x], Tensor("m", (1, 1, 2), "int8", 0.0625, 0))
    gate = b.node(ops.Logistic(), [mean], Tensor("g", (1, 1, 2), "int8", 1 / 256, -128))
    scaled = b.node(ops.Mul(), [x, gate], Tensor("s", (2, 2, 2), "int8", 0.0625, -4))
    swish = b.node(ops.HardSwish(), [scaled], Tensor("h", (2, 2, 2), "int8", 0.0625, -60))
    turned = b.node(ops.Transpose((2, 0, 1)), [swish], Tensor("t", (2, 2, 2), "int8", 0.0625, -60))
    cut = b.node(ops.Slice((0, 0, 0), (2, 2, 1), (1, 1, 1)), [turned], Tensor("c", (2, 2), "int8", 0.0625, -60))
    weight = ops.freeze(rng.integers(-127, 128, (2, 4)), np.int8)
    dense = ops.Dense(weight, ops.freeze([0, 0], np.int32), ops.freeze([0.01], np.float32))
    return lower(b.finish(b.node(dense, [cut], Tensor("y", (2,), "int8", 0.03125, 0))), profile("tflm"))


def test_gradient_flows_through_gates_lookups_and_moves() -> None:
    """Its signs are those of differences over a wide step, wherever these are clear and nothing saturates."""
    checked = 0
    for seed in range(12):
        program = gated(seed)
        x = np.random.default_rng(seed).integers(20, 90, (1, 2, 2, 2)).astype(np.int8)
        slope = margin_gradient(program, x, np.array([0]))[0]
        for index in np.ndindex(2, 2, 2):
            ends = np.repeat(x, 2, 0).astype(np.int64)
            ends[(slice(None), *index)] += (-15, 15)
            margins = run(program, ends.astype(np.int8)).astype(int)
            difference = np.diff(margins[:, 0] - margins[:, 1])[0]
            if min(abs(difference), abs(30 * slope[index])) > 12:
                assert np.sign(slope[index]) == np.sign(difference)
                checked += 1
    assert checked >= 20


@pytest.mark.parametrize("sharp", [0.0, 0.7])
def test_the_gradient_in_float32_is_float64s_in_the_type_of_its_seed(sharp: float) -> None:
    """Through gates, tables, means and moves too; and it is no copy of the smooth one where it shall be sharp."""
    for seed, make in itertools.product(range(6), (gated, small_net)):
        program = make(seed)
        shape = program.values[program.input].shape
        x = np.random.default_rng(seed).integers(20, 60, (3, *shape)).astype(np.int8)
        known = values(program, x)
        above = np.random.default_rng(seed).normal(0, 1, known[program.output].shape)
        double, single = (
            gradient(program, known, program.output, above.astype(t), sharp) for t in (np.float64, np.float32)
        )
        assert (double.dtype, single.dtype) == (np.float64, np.float32)
        np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-4 * np.abs(double).max())
        if sharp and np.abs(double).max() > 0:
            assert not np.allclose(double, gradient(program, known, program.output, above), rtol=1e-3)


def test_same_seed_same_witness() -> None:
    program = small_net(1)
    centre = np.zeros((5, 3), np.int8)
    labels = np.zeros(5, np.int64)
    runs = [attack(program, centre - 9, centre + 9, labels, start=centre, seed=4).witness for _ in range(2)]
    assert np.array_equal(*runs)


def test_no_samples_no_witnesses() -> None:
    none = np.zeros((0, 3), np.int8)
    result = attack(small_net(0), none, none, np.zeros(0, np.int64), start=none)
    assert result.found.shape == (0,) and result.witness.shape == (0, 3)


def test_a_stopped_attack_has_still_tried_its_start() -> None:
    program = small_net(0)
    centre = np.random.default_rng(0).integers(-100, 100, (20, 3)).astype(np.int8)
    winner = run(program, centre).argmax(1)
    won = strict_win(run(program, centre), winner)
    assert won.any()
    for label, expected in ((winner, ~won), (1 - winner, np.ones(20, np.bool_))):
        result = attack(program, centre, centre, label, start=centre, stop=lambda: True)
        assert np.array_equal(result.found, expected)


def test_steps_of_the_rules_are_used() -> None:
    """The roundings take the label further down than straight lines do, in far more regions than the other way round."""

    def reached(sharp: float, seed: int) -> npt.NDArray[np.float64]:
        program = network(seed, hidden=(16,), inputs=40)
        lower, upper, labels, centres = balls(program, seed, 16, radius=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(import_module("cactus_edge.certify.attack"), "SHARP", sharp)
            search = Search(program, lower, upper, labels, centres, seed)
            search.gradients(0, 80)
        return np.where(search.found, -np.inf, search.least.min(1))

    pairs = [(reached(1.5, seed), reached(0.0, seed)) for seed in range(4)]
    assert sum((a < b).sum() for a, b in pairs) > 4 * sum((a > b).sum() for a, b in pairs)


def test_a_tie_is_no_win() -> None:
    assert strict_win(np.array([[3, 3], [4, 3]], np.int8), np.array([0, 0])).tolist() == [False, True]
