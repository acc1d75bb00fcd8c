"""Bilinear resizing and transposed convolutions of many shapes against the real runtimes; their bounds against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from agree_kit import admitted

from cactus_edge.errors import MismatchError, UnsupportedError
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import linear, lowering, ops
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import values
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.interval import Engine, propagate
from cactus_edge.verify.overflow import prove

RUNTIMES = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")
MODES = ((False, False), (True, False), (False, True))


def f32(value: float) -> float:
    return float(np.float32(value))


def single(op: ops.Op, x: Tensor, y: Tensor) -> Graph:
    b = GraphBuilder()
    return b.finish(b.node(op, [b.input(x)], y))


def resizes(seed: int, count: int) -> Iterator[Graph]:
    rng = np.random.default_rng(seed)
    for k in range(count):
        h, w, oh, ow = (int(n) for n in rng.integers(1, 20, 4))
        size = (2 * h, 2 * w) if k % 3 == 0 else (oh, ow)
        c = int(rng.choice([1, 3, 8, 19]))
        op = ops.ResizeBilinear(*MODES[k % 3 if k % 2 else int(rng.integers(3))])
        yield single(op, Tensor("x", (h, w, c), "int8", 0.5, 3), Tensor("y", (*size, c), "int8", 0.5, 3))


def transposed(seed: int, count: int) -> Iterator[Graph]:
    rng = np.random.default_rng(seed)
    for k in range(count):
        h, w, c = (int(n) for n in rng.integers(1, 6, 3))
        o = int(rng.choice([1, 3, 8, 17]))
        kernel, stride = ((int(a), int(b)) for a, b in (rng.integers(1, 5, 2), rng.integers(1, 4, 2)))
        if k % 2:
            height, width = (int(n * s - rng.integers(0, s)) for n, s in zip((h, w), stride, strict=True))
            padding = ops.same_padding((height, width), kernel, stride)
        else:
            sizes = zip((h, w), stride, kernel, strict=True)
            height, width = (int((n - 1) * s + m + rng.integers(0, s)) for n, s, m in sizes)
            padding = ops.NO_PADDING
        s_in, scale = f32(2.0 ** rng.uniform(-6, -2)), np.float32(2.0 ** rng.uniform(-9, -6, o))
        op = ops.TransposeConv2d(
            ops.freeze(rng.integers(-127, 128, (o, *kernel, c)), np.int8),
            ops.freeze(rng.integers(-3000, 3000, o), np.int32),
            ops.freeze(scale, np.float32),
            stride,
            padding,
            ops.Activation[rng.choice(["NONE", "RELU", "RELU6"])],
        )
        z_in, z_out = (int(z) for z in rng.integers(-128, 128, 2))
        s_out = f32(s_in * float(scale.mean()) * 2.0 ** rng.uniform(3, 9))
        x = Tensor("x", (h, w, c), "int8", s_in, z_in)
        yield single(op, x, Tensor("y", (height, width, o), "int8", s_out, z_out))


KINDS = {"resize": resizes, "transposed": transposed}


def codes(graph: Graph, count: int) -> Any:
    return np.random.default_rng(1).integers(-128, 128, (count, *graph.input.shape)).astype(np.int8)


def equal(graphs: Iterator[Graph], runtime: str) -> int:
    """How many of the networks the profile admits; requires that the runtime computes each bit for bit."""
    return admitted(((graph, codes(graph, 8)) for graph in graphs), runtime)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_equal_to_the_real_runtimes(kind: str, runtime: str) -> None:
    gaps = kind == "transposed" and runtime == "litert-xnnpack"
    assert equal(KINDS[kind](0, 30), runtime) >= (12 if gaps else 30)


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again(kind: str) -> None:
    for graph in KINDS[kind](2, 20):
        assert read_tflite(write_tflite(graph)).graph.digest() == graph.digest()


def test_strides_beyond_the_kernel_are_refused_where_other_kernels_run_them() -> None:
    refused = 0
    for graph in transposed(0, 30):
        op = graph.nodes[0].op
        assert isinstance(op, ops.TransposeConv2d)
        if any(s > k for s, k in zip(op.stride, op.weight.shape[1:3], strict=True)):
            refused += 1
            with pytest.raises(UnsupportedError, match="beyond its kernel"):
                lower(graph, PROFILES["litert-xnnpack"])
    assert refused > 5


def bounded(graphs: Iterator[Graph], name: str) -> None:
    """No execution leaves the bounds, the compiled engine has the same ones, and the adjoint is one."""
    rng = np.random.default_rng(3)
    for graph in graphs:
        try:
            program = lower(graph, PROFILES[name])
        except UnsupportedError:
            continue
        prove(program)
        x = codes(graph, 2).astype(np.int64)
        low, high = (np.clip(x + d, -128, 127).astype(np.int8) for d in (-3, 3))
        bounds = propagate(program, low, high)
        (fast,) = Engine(program, [program.output]).run(low, high)
        assert all(np.array_equal(f, b) for f, b in zip(fast, bounds[program.output], strict=True))
        for _ in range(4):
            found = values(program, rng.integers(low, high.astype(int) + 1).astype(np.int8))
            for value, (lo, hi) in zip(found, bounds, strict=True):
                assert (lo <= value).all() and (value <= hi).all()
        atom = program.steps[0].atom
        y = rng.integers(-9, 10, (1, *atom.linear.out_shape))
        one = rng.integers(-9, 10, (1, *atom.linear.in_shape))
        assert (atom.linear.apply(one) * y).sum() == (one * atom.linear.adjoint(y)).sum()
        assert (np.abs(atom.linear.absolute().apply(np.ones_like(one))) <= atom.linear.reach()).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tflm", "litert-xnnpack"])
def test_no_execution_leaves_its_bounds(kind: str, name: str) -> None:
    bounded(KINDS[kind](4, 12), name)


def test_signs_forgotten_in_a_bound_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.Transposed, "absolute", lambda self: self)
    with pytest.raises(AssertionError):
        bounded(transposed(4, 12), "tflm")


def test_another_unit_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """XNNPACK's weights with the reference kernel's division differ in the last place."""
    real = lowering.interpolation
    monkeypatch.setattr(lowering, "interpolation", lambda rule, *rest: real("float11", *rest) // 2)
    with pytest.raises(MismatchError):
        equal(resizes(0, 30), "tflm")
