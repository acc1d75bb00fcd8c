"""Operators with one attribute or operand that was not shown, or makes no sense: each is refused by the node's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import File, one, one_on_codes

from cactus_edge.errors import ModelError
from cactus_edge.formats.onnx import read_onnx


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


SINS: list[tuple[str, str, tuple[Any, ...], dict[str, Any], str]] = [
    ("transposed batch", "Transpose", (), {"perm": [1, 0, 2, 3]}, "a transpose .* that moves the batch"),
    ("no permutation", "Transpose", (), {"perm": [0, 1, 1, 3]}, "expected a permutation of 4 axes"),
    ("short permutation", "Transpose", (), {"perm": [0, 1]}, "'perm' has 2 values, expected 4"),
    ("sliced batch", "Slice", (ints(0), ints(1), ints(0)), {}, "axis 0 of 4, other than one of a sample"),
    ("sliced backwards", "Slice", (ints(5), ints(0), ints(2), ints(-1)), {}, "backwards or empty"),
    ("empty slice", "Slice", (ints(5), ints(2), ints(2)), {}, "backwards or empty"),
    ("slice twice", "Slice", (ints(0, 0), ints(1, 1), ints(2, -2)), {}, "a start, an end and a step per axis"),
    ("slice of nine", "Slice", (np.zeros(9, np.int64), ints(1), ints(2)), {}, "at most 8 integers"),
    ("float slice", "Slice", (np.zeros(1, np.float32), ints(1), ints(2)), {}, "input 1 .* is float32"),
    ("negative pads", "Pad", (ints(0, 0, -1, 0, 0, 0, 0, 0),), {}, "pads .* below zero"),
    ("padded batch", "Pad", (ints(1, 0, 0, 0, 0, 0, 0, 0),), {}, "or of the batch"),
    ("too few pads", "Pad", (ints(1, 1),), {}, "pads .* of 4 axes"),
    ("huge pads", "Pad", (ints(0, 0, 1 << 40, 0, 0, 0, 0, 0),), {}, "expected at most"),
    ("reflected", "Pad", (ints(0, 0, 1, 0, 0, 0, 0, 0),), {"mode": "reflect"}, "padding other than by a constant"),
    ("padded by one", "Pad", (ints(0, 0, 1, 0, 0, 0, 0, 0), np.float32(1)), {}, r"padding by 1\.0"),
    ("broken factor", "Resize", (None, np.float32([1, 1, 1.5, 2])), {}, "other than by whole factors"),
    ("no factor", "Resize", (None, np.float32([1, 1, np.nan, 2])), {}, "other than by whole factors"),
    ("huge factor", "Resize", (None, np.float32([1, 1, 2, 1e9])), {}, "other than by whole factors"),
    ("more channels", "Resize", (None, np.float32([1, 2, 2, 2])), {}, "other than by whole factors"),
    ("linear", "Resize", (None, np.float32([1, 1, 2, 2])), {"mode": "linear"}, "other than to the nearest pixel"),
    (
        "asymmetric, rounded",
        "Resize",
        (None, np.float32([1, 1, 2, 2])),
        {"coordinate_transformation_mode": "asymmetric"},
        "other than to the nearest pixel",
    ),
    ("to sizes", "Resize", (None, None, ints(1, 4, 12, 16)), {}, "resizing to sizes"),
    ("squeezed height", "Squeeze", (ints(2),), {}, "expected axes of size 1"),
    ("squeezed batch", "Squeeze", (ints(0),), {}, "other than different ones of a sample"),
    ("unsqueezed batch", "Unsqueeze", (ints(0),), {}, "other than different ones of a sample"),
    ("reshaped batch", "Reshape", (ints(4, -1),), {}, "does not keep the batch in front"),
    ("two unknown sizes", "Reshape", (ints(-1, -1),), {}, "does not keep the batch in front"),
    ("wrong size", "Reshape", (ints(0, 191),), {}, "a shape for 192 elements"),
    ("reordered", "Reshape", (ints(0, 6, 8, 4),), {}, r"a reshape from \[N, \*\(4, 6, 8\)\] to"),
    ("zero allowed", "Reshape", (ints(0, 192),), {"allowzero": 1}, "allowzero = 1"),
    ("no slope", "LeakyRelu", (), {"alpha": float("nan")}, "alpha nan, expected a finite float32"),
    ("integer slope", "LeakyRelu", (), {"alpha": 1}, "'alpha' has type 2, expected 1"),
    ("cast to codes", "Cast", (), {"to": 3}, "a cast other than of float32 to float32"),
    ("dropout", "Dropout", (np.float32(0.5), np.bool_(True)), {}, "a dropout in training mode"),
    ("hard sigmoid", "HardSigmoid", (), {}, "HardSigmoid, which ONNX Runtime computes in float"),
    ("mean", "ReduceMean", (), {"axes": [2, 3]}, "ReduceMean, which ONNX Runtime sums in float"),
    ("batch norm", "BatchNormalization", (np.ones(4, np.float32),) * 4, {}, "the operator BatchNormalization"),
    ("softmax of an image", "Softmax", (), {"axis": 1}, r"a softmax over \[N, \*\(6, 8, 4\)\], other than"),
    ("log softmax", "LogSoftmax", (), {"axis": 1}, "LogSoftmax, which ONNX Runtime computes in float"),
    ("odd output", "Sigmoid", (), {}, "expected 1/256 and -128"),
]


@pytest.mark.parametrize(
    ("kind", "constants", "attributes", "message"), [s[1:] for s in SINS], ids=[s[0] for s in SINS]
)
def test_each_sin_is_named(kind: str, constants: tuple[Any, ...], attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_onnx(one(kind, (4, 6, 8), (0.05, -7), constants=constants, **attributes))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ReduceMean", "GlobalAveragePool says the same"),
        ("BatchNormalization", "quant_pre_process"),
        ("LogSoftmax", "leave it out"),
    ],
)
def test_what_to_do_instead(kind: str, message: str) -> None:
    with pytest.raises(ModelError) as refused:
        read_onnx(one(kind, (4, 6, 8), (0.05, -7)))
    assert message in refused.value.hint


@pytest.mark.parametrize("kind", ["QLinearLeakyRelu", "QLinearSigmoid", "QLinearAveragePool"])
def test_too_few_operands_are_named(kind: str) -> None:
    with pytest.raises(ModelError, match="expected 5 to 5 inputs"):
        read_onnx(one_on_codes(kind, (4, 6, 8), (0.05, -7), domain="com.microsoft"))


def test_a_softmax_behind_the_last_codes_is_an_island_that_is_named() -> None:
    f = File((5,))
    f.node("Softmax", [f.rounded("input", (0.05, 3), "x")], "y", axis=1)
    with pytest.raises(ModelError, match=r"'y' is the float32 result of the last Softmax.*island") as refused:
        read_onnx(f.bytes("y"))
    assert "the order of the classes is that of its input" in refused.value.hint
