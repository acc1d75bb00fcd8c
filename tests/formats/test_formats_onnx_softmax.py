"""A softmax at the end in ONNX Runtime, bit for bit; what decides there; where int8 codes wrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_kit import mismatches, vnni
from onnx_models import File, one, one_on_codes

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx import read_onnx
from cactus_edge.formats.onnx.certified import ONNX
from cactus_edge.formats.onnx.runtime import OrtSession
from cactus_edge.ir import rules
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.rules import ScaledSoftmaxRule, scaled_softmax_rule
from cactus_edge.verify.certificate import certify_file
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.regions import points
from cactus_edge.verify.softmax import float_softmax_separates

LAST = (1 / 256, -128)


def rows(rng: np.random.Generator, depth: int, scale: float, zero_point: int, count: int) -> Any:
    """Inputs of a row of codes near each other and far apart."""
    codes = rng.integers(-128, 128, (count, depth)) // rng.choice([1, 4, 16], (count, 1))
    return (np.float32(scale) * (codes - zero_point)).astype(np.float32)


def drawn(rng: np.random.Generator) -> tuple[int, float, int]:
    return (
        int(rng.choice([2, 3, 5, 10, 37, 100])),
        float(np.float32(np.exp(rng.uniform(-5, -0.5)))),
        int(rng.integers(-128, 128)),
    )


@vnni
def test_softmax_agrees() -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        depth, scale, zero_point = drawn(rng)
        x = rows(rng, depth, scale, zero_point, 2000)
        codes = np.int8 if number % 2 else np.uint8
        assert mismatches(one("Softmax", (depth,), (scale, zero_point), LAST, codes=codes, axis=1), x) == 0
        on_codes = one_on_codes(
            *("QLinearSoftmax", (depth,), (scale, zero_point), LAST, np.uint8, "com.microsoft"), axis=-1, opset=13
        )
        assert mismatches(on_codes, x) == 0


def hardest(rng: np.random.Generator, other: ScaledSoftmaxRule, depth: int, scale: float, zero_point: int) -> Any:
    """Rows of codes on which `other` rounds otherwise than the rule."""
    codes = rng.integers(-128, 128, (20000, depth)) // rng.choice([1, 4, 16], (20000, 1))
    rule = scaled_softmax_rule(scale, depth)
    found = codes[(rule.apply(codes) != other.apply(codes)).any(1)]
    return (np.float32(scale) * (found - zero_point)).astype(np.float32)


@vnni
def test_the_factor_and_its_float32_logarithm_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the rows on which plain exponentials round otherwise ONNX Runtime is with the rule: a planted fault is red there."""
    rng, compared = np.random.default_rng(0), 0
    for _ in range(12):
        depth, scale, zero_point = drawn(rng)
        plain = ScaledSoftmaxRule(np.exp(np.arange(-255.0, 1.0) * scale).astype(np.float32))
        x = hardest(rng, plain, depth, scale, zero_point)
        if not len(x):
            continue
        data = one("Softmax", (depth,), (scale, zero_point), LAST, axis=1)
        assert mismatches(data, x) == 0
        with monkeypatch.context() as patch:
            patch.setattr("cactus_edge.ir.profile.scaled_softmax_rule", lambda scale, depth, plain=plain: plain)
            assert mismatches(data, x) > 0
        compared += len(x)
    assert compared > 1


def test_what_is_said_to_separate_does() -> None:
    rng, said = np.random.default_rng(1), 0
    for _ in range(60):
        depth, scale, _ = drawn(rng)
        rule = scaled_softmax_rule(scale, depth)
        codes = rng.integers(-128, 128, (500, depth)) // rng.choice([1, 8], (500, 1))
        behind = codes - codes.max(1, keepdims=True) + 255
        separate = float_softmax_separates(rule.table[behind] / rule.table[-1].astype(np.float64))
        out = rule.apply(codes)
        assert (out.max(1, keepdims=True) > out)[separate & (behind < 255)].all()
        said += int(separate.sum())
    assert said > 1000


@vnni
def test_a_file_with_a_softmax_is_certified_and_rechecked() -> None:
    f = File((6,))
    weight = f.weight("w", np.random.default_rng(0).integers(-127, 128, (3, 6)), 0.02)
    value = f.node("Gemm", [f.rounded("input", (1 / 32, 0), "x"), weight], "g", transB=1)
    value = f.node("Softmax", [f.rounded(value, (1 / 16, 3), "l")], "s", axis=-1)
    data = f.bytes(f.rounded(value, LAST, "y"))
    x = np.random.default_rng(0).normal(0, 1, (60, 6)).astype(np.float32)
    program = lower(read_onnx(data).graph, profile("ort-x86"))
    y = run(program, points(program, x)).argmax(1)
    made = certify_file(data, x, y, eps="1/64", domain=None, profile="ort-x86", form=ONNX)
    assert 10 < made.decision.certified.sum() < 60
    assert recheck(made.to_bytes(), data, x, y, formats=(ONNX,)).accepted
    rng = np.random.default_rng(1)
    for _ in range(50):
        near = (x + rng.uniform(-1 / 64, 1 / 64, x.shape)).astype(np.float32)
        out = OrtSession(data, program.graph, False).run_batch(near)
        best = np.sort(out, 1)
        wins = (out.argmax(1) == y) & (best[:, -1] > best[:, -2])
        assert wins[made.decision.certified].all()


def test_int8_codes_are_refused_where_their_largest_output_wraps() -> None:
    data = one_on_codes(*("QLinearSoftmax", (4,), (0.5, 0), LAST, np.int8, "com.microsoft"), axis=-1, opset=13)
    with pytest.raises(UnsupportedError, match="a softmax of int8 codes, whose largest output wraps"):
        read_onnx(data)


@pytest.mark.parametrize("depth", [1, 1 << 17])
def test_rows_that_were_not_shown_are_refused(depth: int) -> None:
    with pytest.raises(UnsupportedError, match="softmax over"):
        rules.scaled_softmax_rule(0.1, depth)
