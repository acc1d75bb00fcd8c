"""The linear maps against loops that read like the formula, and their adjoints against the inner product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cactus_edge.ir import linear
from cactus_edge.ir.ops import Padding2d, same_padding


@st.composite
def convolutions(draw: st.DrawFn) -> linear.Conv:
    groups, per_group, out_per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = Padding2d(*(draw(st.integers(0, 2)) for _ in range(4)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = draw(st.tuples(st.integers(reach[0], reach[0] + 4), st.integers(reach[1], reach[1] + 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.integers(-127, 128, (groups * out_per_group, *kernel, per_group)).astype(np.int8)
    return linear.Conv(weight, (*size, groups * per_group), stride, pads, dilation)


def conv_by_loops(conv: linear.Conv, x: np.ndarray) -> np.ndarray:
    oh, ow, outs = conv.out_shape
    h, w, channels = conv.in_shape
    y = np.zeros((oh, ow, outs), np.int64)
    per_group = conv.weight.shape[3]
    groups = channels // per_group
    for oy in range(oh):
        for ox in range(ow):
            for o in range(outs):
                group = o // (outs // groups)
                for ky in range(conv.kernel[0]):
                    for kx in range(conv.kernel[1]):
                        iy = oy * conv.stride[0] + ky * conv.dilation[0] - conv.padding.top
                        ix = ox * conv.stride[1] + kx * conv.dilation[1] - conv.padding.left
                        if 0 <= iy < h and 0 <= ix < w:
                            for i in range(per_group):
                                y[oy, ox, o] += int(conv.weight[o, ky, kx, i]) * int(x[iy, ix, group * per_group + i])
    return y


@given(convolutions(), st.integers(0, 2**32 - 1))
def test_conv_equals_the_loops(conv: linear.Conv, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-255, 256, (2, *conv.in_shape))
    expected = np.stack([conv_by_loops(conv, sample) for sample in x])
    for dtype in (np.int64, np.float64):
        assert np.array_equal(conv.apply(x.astype(dtype)), expected)


@given(convolutions(), st.integers(0, 2**32 - 1))
def test_reach_bounds_every_output(conv: linear.Conv, seed: int) -> None:
    x = np.random.default_rng(seed).choice([-1, 1], (4, *conv.in_shape))
    assert (np.abs(conv.apply(x)) <= conv.reach()).all()
    assert np.array_equal(conv.absolute().reach(), conv.reach())


MAPS = [
    linear.Dense(np.arange(-6, 6).reshape(3, 4), (2, 2, 1)),
    linear.Conv(np.arange(-18, 18).reshape(2, 3, 3, 2), (5, 4, 2), (2, 1), Padding2d(1, 0, 2, 1)),
    linear.Conv(np.arange(-8, 8).reshape(4, 2, 2, 1), (5, 5, 2), (1, 2), Padding2d(), (2, 1)),
    linear.WindowSum((5, 4, 3), (3, 2), (2, 2), Padding2d(1, 1, 0, 1)),
    linear.AxisSum((4, 3, 2), (0, 1), False),
    linear.AxisSum((4, 3, 2), (1,), True),
    linear.Transposed(linear.Conv(np.arange(-18, 18).reshape(2, 3, 3, 2), (5, 4, 2), (2, 1), Padding2d(1, 0, 2, 1))),
    linear.Interpolation(np.arange(6).reshape(3, 2), np.arange(-4, 8).reshape(4, 3), 2),
]


@pytest.mark.parametrize("linear_map", MAPS, ids=lambda m: type(m).__name__)
def test_adjoint_moves_across_the_inner_product(linear_map: linear.Linear) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (3, *linear_map.in_shape))
    y = rng.integers(-9, 10, (3, *linear_map.out_shape))
    assert (linear_map.apply(x) * y).sum() == (x * linear_map.adjoint(y)).sum()


def flipped(conv: linear.Conv) -> linear.Conv:
    """Its taps in the opposite order."""
    return replace(conv, weight=conv.weight[:, ::-1, ::-1])


def small(conv: linear.Conv) -> np.ndarray:
    """The reach without absolute values: positive and negative taps cancel."""
    return np.abs(conv.weight.astype(np.int64).sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("test", "name", "fault"),
    [
        (test_conv_equals_the_loops, "apply", lambda real: lambda conv, x: real(flipped(conv), x)),
        (test_reach_bounds_every_output, "reach", lambda real: small),
        (lambda: test_adjoint_moves_across_the_inner_product(MAPS[1]), "adjoint", lambda real: lambda conv, y: real(flipped(conv), y)),
        (lambda: test_adjoint_moves_across_the_inner_product(MAPS[6]), "apply", lambda real: lambda conv, y: real(flipped(conv), y)),
    ],
    ids=["taps", "reach", "adjoint", "transposed"],
)  # fmt: skip
def test_planted_faults(test: Callable[[], None], name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.Conv, name, fault(getattr(linear.Conv, name)))
    with pytest.raises((AssertionError, ExceptionGroup)):
        test()


def test_planted_fault_a_lost_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = linear.Interpolation(MAPS[7].rows, np.abs(MAPS[7].columns), 2)
    monkeypatch.setattr(
        linear.Interpolation, "adjoint", lambda self, y: linear.Interpolation(wrong.rows.T, wrong.columns.T, 2).apply(y)
    )
    with pytest.raises(AssertionError):
        test_adjoint_moves_across_the_inner_product(MAPS[7])


def test_window_sum_counts_only_taps_inside() -> None:
    pool = linear.WindowSum((3, 3, 1), (2, 2), (2, 2), Padding2d(0, 1, 0, 1))
    assert pool.reach()[..., 0].tolist() == [[4, 2], [2, 1]]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        ((28, 28), (3, 3), (2, 2), (0, 1, 0, 1)),
        ((7, 8), (3, 3), (1, 1), (1, 1, 1, 1)),
        ((5, 5), (2, 2), (2, 2), (0, 1, 0, 1)),
    ],
)
def test_same_padding_puts_the_odd_one_last(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert same_padding(size, kernel, stride) == Padding2d(*expected)
    out = linear.output_size(size, kernel, stride, same_padding(size, kernel, stride))
    assert out == (-(-size[0] // stride[0]), -(-size[1] // stride[1]))
