"""AveragePool in ONNX Runtime: a float32 sum tap by tap, bit for bit; its bounds; where it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_kit import mismatches, vnni
from onnx_models import File, one, one_on_codes

from cactus_edge.certify.gradient import margin_gradient
from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.formats.onnx.runtime import OrtSession
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import linear, ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import FloatAverage
from cactus_edge.ir.evaluate import quantised, run
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.interval import step_bounds


def pools(rng: np.random.Generator, count: int) -> list[tuple[bytes, Any]]:
    """Files of one pool over (9, 10, 1 to 40), each with all kinds of geometry and scales, and inputs on every code."""
    made = []
    for _ in range(count):
        kernel = [int(v) for v in rng.integers(1, 5, 2)]
        pads = [int(rng.integers(0, k)) for k in (*kernel, *kernel)]
        strides = [int(v) for v in rng.integers(1, 4, 2)]
        scale = float(np.float32(np.exp(rng.uniform(-5, -1))))
        before = (scale, int(rng.integers(-128, 128)))
        other = (float(np.float32(scale * np.exp(rng.uniform(-1, 1)))), int(rng.integers(-128, 128)))
        channels = int(rng.integers(1, 40))
        data = one(
            "AveragePool",
            *((channels, 9, 10), before, before if rng.random() < 0.5 else other),
            codes=np.int8 if rng.random() < 0.5 else np.uint8,
            kernel_shape=kernel,
            pads=pads,
            strides=strides,
        )
        codes = rng.integers(-128, 128, (3, 9, 10, channels))
        made.append((data, (np.float32(scale) * (codes - before[1])).astype(np.float32)))
    return made


@vnni
@pytest.mark.parametrize(("power", "runs"), [(8, False), (7, True), (-32, True), (-33, False)])
def test_a_global_average_is_taken_where_the_runtime_runs_it(power: int, runs: bool) -> None:
    """Multipliers S_in / (4 S_out) of 2^power, by ONNX Runtime's own word."""
    scale = 2.0 ** (power // 2)
    data = one("GlobalAveragePool", (3, 2, 2), (scale, 0), (scale / 2.0 ** (power + 2), 0))
    x = (np.random.default_rng(0).integers(-128, 128, (5, 2, 2, 3)) * scale).astype(np.float32)
    if runs:
        assert mismatches(data, x) == 0
        return
    graph = read_onnx(data).graph
    with pytest.raises(UnsupportedError, match="where ONNX Runtime refuses to run"):
        lower(graph, profile("ort-x86"))
    with pytest.raises(ModelError, match="does not run the model"):
        OrtSession(data, graph, False).run_batch(x)


@vnni
def test_averages_agree() -> None:
    for data, x in pools(np.random.default_rng(0), 60):
        assert isinstance(read_onnx(data).graph.nodes[1].op, ops.AvgPool)
        assert mismatches(data, x) == 0


def whole(rng: np.random.Generator) -> tuple[bytes, Any, FloatAverage]:
    """An average whose window is the image, inputs, and what a window of less would compute."""
    h, w, c = (int(n) for n in rng.integers(1, 6, 3))
    scale, z = float(np.float32(np.exp(rng.uniform(-4, 0)))), int(rng.integers(-128, 128))
    after = (scale, z) if rng.random() < 0.5 else (float(np.float32(scale * 1.3)), -5)
    strides = [int(n) for n in rng.integers(1, 4, 2)]
    data = one("AveragePool", (c, h, w), (scale, z), after, codes=np.uint8, kernel_shape=[h, w], strides=strides)
    codes = rng.integers(-128, 128, (100, h, w, c))
    pool = linear.WindowSum((h, w, c), (h, w), (1, 1))
    return data, (np.float32(scale) * (codes - z)).astype(np.float32), FloatAverage(pool, scale, z, *after)


@vnni
def test_an_average_of_the_whole_image_is_the_global_one() -> None:
    """Which ties otherwise: the other rule would differ."""
    rng = np.random.default_rng(4)
    other = 0
    for data, x, average in (whole(rng) for _ in range(60)):
        assert mismatches(data, x) == 0
        graph = read_onnx(data).graph
        program = lower(graph, profile("ort-x86"))
        codes = quantised(program, x)
        other += int((run(program, codes) != average.apply(codes.astype(np.int64))).sum())
    assert other > 0


@vnni
def test_averages_on_codes_agree() -> None:
    x = np.random.default_rng(0).normal(0, 4, (40, 6, 8, 4)).astype(np.float32)
    for after in ((0.05, -7), (0.031, 20)):
        data = one_on_codes(
            *("QLinearAveragePool", (4, 6, 8), (0.05, -7), after, np.uint8, "com.microsoft"),
            kernel_shape=[2, 2],
            strides=[2, 2],
        )
        assert mismatches(data, x) == 0


@vnni
def test_an_integer_sum_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: ties are decided by the float32 rounding of the taps."""
    files = pools(np.random.default_rng(0), 20)

    def exact(self: FloatAverage, x: Any) -> Any:
        total = self.pool.apply(x - self.zero_in) * (self.scale_in / self.scale_out) / self.pool.reach()
        return np.clip(np.rint(total) + self.zero_out, self.lo, self.hi).astype(np.int64)

    monkeypatch.setattr(FloatAverage, "apply", exact)
    assert sum(mismatches(*f) for f in files) > 0


def averages(rng: np.random.Generator) -> FloatAverage:
    pool = linear.WindowSum((3, 4, 2), (2, 3), (1, 2), ops.Padding2d(1, 0, 1, 1))
    scales = np.float32(np.exp(rng.uniform(-5, 0, 2)))
    z_in, z_out = (int(v) for v in rng.integers(-128, 128, 2))
    return FloatAverage(pool, float(scales[0]), z_in, float(scales[1]), z_out)


def test_bounds_hold_and_are_attained() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        atom = averages(rng)
        low, high = np.sort(rng.integers(-128, 128, (2, 1, 3, 4, 2)), axis=0)
        least, most = step_bounds(atom, [(low, high)])
        inside = rng.integers(low, high + 1, (200, 3, 4, 2))
        assert (least <= atom.apply(inside)).all() and (atom.apply(inside) <= most).all()
        assert np.array_equal(atom.apply(low), least) and np.array_equal(atom.apply(high), most)


def test_no_tap_lowers_the_average() -> None:
    """The proof of the bounds, tried: one tap at a time, through every code."""
    rng = np.random.default_rng(2)
    for _ in range(40):
        atom = averages(rng)
        x = np.repeat(rng.integers(-128, 128, (1, 3, 4, 2)), 256, 0)
        x[:, rng.integers(3), rng.integers(4), rng.integers(2)] = np.arange(-128, 128)
        assert (np.diff(atom.apply(x), axis=0) >= 0).all()


def test_the_attack_goes_through_it() -> None:
    """The margin rises with the taps of the true class and falls with those of the other."""
    f = File((2, 4, 5))
    value = f.node("AveragePool", [f.rounded("input", (0.05, 3), "x")], "a", kernel_shape=[4, 4], strides=[1, 2])
    value = f.node("Flatten", [f.rounded(value, (0.04, -9), "y")], "f")
    program = lower(read_onnx(f.bytes(f.rounded(value, (0.04, -9), "z"))).graph, profile("ort-x86"))
    assert isinstance(program.steps[0].atom, FloatAverage)
    x = np.random.default_rng(0).integers(-20, 20, (5, 4, 5, 2)).astype(np.int8)
    gradient = margin_gradient(program, x, np.zeros(5, np.int64))[:, :, :4]
    assert (gradient[..., 0] > 0).all() and (gradient[..., 1] < 0).all()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"pads": [1, 1, 1, 1], "count_include_pad": 1}, "count_include_pad = 1"),
        ({"strides": [3, 3], "ceil_mode": 1}, "ceil_mode = 1 where it adds a window"),
        ({"kernel_shape": [0, 2]}, "kernel_shape above zero"),
        ({"p": 2}, "attribute 'p'"),
    ],
)
def test_what_was_not_shown_is_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_onnx(one("AveragePool", (2, 4, 4), (0.05, 3), **{"kernel_shape": [2, 2], **attributes}))


def test_int8_codes_without_a_quantiser_in_between_are_refused() -> None:
    data = one_on_codes(
        *("QLinearAveragePool", (4, 6, 8), (0.05, -7), (0.05, 7), np.int8, "com.microsoft"), kernel_shape=[2, 2]
    )
    with pytest.raises(UnsupportedError, match="an average of int8 codes"):
        read_onnx(data)


def test_other_runtimes_and_formats_refuse_another_scale() -> None:
    graph = read_onnx(one("AveragePool", (2, 4, 4), (0.05, 3), (0.04, -9), kernel_shape=[2, 2])).graph
    with pytest.raises(UnsupportedError, match=r"AvgPool .*another scale or zero point than its input's"):
        lower(graph, profile("tflm"))
    with pytest.raises(UnsupportedError, match="average keeps its input's scale"):
        write_tflite(graph)
    assert read_onnx(write_onnx(graph)).graph.digest() == graph.digest()
