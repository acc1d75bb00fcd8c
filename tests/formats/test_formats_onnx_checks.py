"""Single checks of the ONNX reader, each with the file that would be read as something else if it were left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_kit import classifier, edit, initializer, node
from onnx_models import File, one, one_on_codes

from cactus_edge.errors import ModelError
from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.ir import ops

GOOD = write_onnx(classifier(0))
P = (1 / 16, 3)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def refused(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_onnx(data)


# One attribute or constant of a good file


def _attribute(kind: str, name: str, value: Any) -> Callable[[Any], None]:
    def change(m: Any) -> None:
        found = node(m, kind)
        kept = [a for a in found.attribute if a.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def _scaled_bias(m: Any) -> None:
    t = initializer(m, "conv_bias_scale")
    t.raw_data = (np.float32(1.001) * numpy_helper.to_array(t)).tobytes()


def _two_zero_points(m: Any) -> None:
    initializer(m, "conv_zero_point").CopyFrom(numpy_helper.from_array(np.int8([0, 9]), "conv_zero_point"))


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (_attribute("Conv", "kernel_shape", [1, 3]), "expected kernel_shape"),
    (_attribute("Gemm", "transA", 1), "transA = 1"),
    (_attribute("Gemm", "beta", 0.5), "alpha or beta other than 1"),
    (_attribute("MaxPool", "dilations", [2, 2]), "a dilated pool"),
    (_attribute("MaxPool", "storage_order", 1), "storage_order = 1"),
    (_attribute("QuantizeLinear", "output_dtype", 5), "output_dtype 5"),
    (_attribute("QuantizeLinear", "precision", 1), "precision = 1"),
    (_scaled_bias, "a bias whose scale is not that of input times weight"),
    (_two_zero_points, r"has shape \(2,\), expected one value"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[m for _, m in CHANGES])
def test_a_change_of_one_field_is_named(change: Callable[[Any], None], message: str) -> None:
    refused(edit(GOOD, change), message)


# One operator


PADS = (ints(0, 0, 1, 0, 0, 0, 0, 0), None, ints(0, 1, 3, 2))
FACTORS = (None, np.float32([1, 1, 2, 2]))
WINDOW = {"kernel_shape": [2, 2]}

ONES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("AveragePool", (), {**WINDOW, "dilations": [2, 2]}, "a dilated pool"),
    ("Pad", PADS, {}, "other than by a constant on all axes"),
    ("Resize", FACTORS, {"antialias": 1}, "antialias = 1"),
    ("Resize", FACTORS, {"exclude_outside": 1}, "exclude_outside = 1"),
]


@pytest.mark.parametrize(("kind", "constants", "attributes", "message"), ONES, ids=[m[3] for m in ONES])
def test_an_operator_with_one_sin_is_named(
    kind: str, constants: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    refused(one(kind, (4, 6, 8), P, constants=constants, opset=18, **attributes), message)


@pytest.mark.parametrize("kind", ["QLinearGlobalAveragePool", "QLinearAveragePool"])
def test_images_in_another_order_are_refused(kind: str) -> None:
    window = WINDOW if kind == "QLinearAveragePool" else {}
    data = [
        one_on_codes(kind, (4, 6, 6), P, (0.1, 0), domain="com.microsoft", **window, channels_last=last)
        for last in (0, 1)
    ]
    read_onnx(data[0])
    refused(data[1], "channels_last = 1")


def test_codes_under_another_scale_than_their_own_are_refused() -> None:
    """QLinearSigmoid states the scale of what it reads."""
    f = File((5,))
    f.rounded("input", P, "x")
    q = f.parameters("y", (1 / 256, -128))
    f.node("QLinearSigmoid", ["x_codes", *f.parameters("z", (1 / 8, 3)), *q], "y_codes", "com.microsoft")
    refused(f.bytes(f.node("DequantizeLinear", ["y_codes", *q], "y")), "differs from that of the tensor it reads")


@pytest.mark.parametrize(
    ("attributes", "message"), [({"transA": 1}, "transA = 1"), ({"alpha": 0.5}, "alpha other than 1")]
)
def test_a_product_on_codes_is_the_plain_one(attributes: dict[str, Any], message: str) -> None:
    def product(**stated: Any) -> bytes:
        f = File((5,))
        f.rounded("input", P, "x")
        weight = [f.constant("w", np.arange(-10, 10, dtype=np.int8).reshape(4, 5))]
        weight += [f.constant("w_scale", np.float32(0.01)), f.constant("w_zero", np.int8(0))]
        bias, q = f.constant("b", np.arange(4, dtype=np.int32)), f.parameters("y", (0.1, 0))
        inputs = ["x_codes", "x_scale", "x_zero", *weight, bias, *q]
        f.node("QGemm", inputs, "y_codes", "com.microsoft", transB=1, **stated)
        return f.bytes(f.node("DequantizeLinear", ["y_codes", *q], "y"))

    read_onnx(product())
    refused(product(**attributes), message)


# Weights


def test_weight_scales_along_the_inputs_are_refused() -> None:
    def convolution(axis: int) -> bytes:
        f = File((2, 4, 4))
        parts = [f.constant("w_codes", np.ones((2, 2, 1, 1), np.int8)), f.constant("w_scale", np.float32([0.1, 0.2]))]
        f.node("DequantizeLinear", [*parts, f.constant("w_zero", np.int8([0, 0]))], "w", axis=axis)
        source = f.rounded("input", P, "x")
        return f.bytes(f.rounded(f.node("Conv", [source, "w"], "c"), (0.1, 0), "y"))

    read_onnx(convolution(0))
    refused(convolution(1), "weight scales along axis 1, other than the outputs' axis 0")


def test_a_float_weight_is_quantised_around_zero() -> None:
    def convolution(zero: int) -> bytes:
        f = File((2, 4, 4))
        q = [f.constant("w_scale", np.float32(0.1)), f.constant("w_zero", np.int8(zero))]
        f.node("QuantizeLinear", [f.constant("w_real", np.full((3, 2, 1, 1), 0.5, np.float32)), *q], "w_codes")
        f.node("DequantizeLinear", ["w_codes", *q], "w")
        source = f.rounded("input", P, "x")
        return f.bytes(f.rounded(f.node("Conv", [source, "w"], "c"), (0.1, 0), "y"))

    read_onnx(convolution(0))
    refused(convolution(3), "a quantised constant other than int8 with zero point 0")


# Activations


def activated(*kinds: str, scale: float = 2.0, zero: int = 0, of_codes: bool = False) -> bytes:
    """A convolution, then activations, on the sum or behind codes of its own."""
    f = File((2, 4, 4), np.int8)
    last = f.node("Conv", [f.rounded("input", P, "x"), f.weight("w", np.ones((3, 2, 1, 1)), 0.1)], "c")
    if of_codes:
        last = f.rounded(last, (0.25, 5), "rounded")
    for k, kind in enumerate(kinds):
        ends = [f.constant(f"end{k}{i}", np.float32(v)) for i, v in enumerate((-1, 1))] if kind == "Clip" else []
        last = f.node(kind, [last, *ends], f"a{k}")
    return f.bytes(f.rounded(last, (scale, zero), "y"))


def test_an_end_that_lies_between_two_codes_is_refused() -> None:
    """1 / 2: ONNX Runtime rounds it to 0, the int8 network to 1."""
    read_onnx(activated("Clip", scale=0.5))
    refused(activated("Clip", scale=2.0), "lies half-way between two codes")
    refused(activated("Clip", scale=2.0, of_codes=True), "lies half-way between two codes")


def test_one_activation_on_a_sum() -> None:
    read_onnx(activated("Relu"))
    refused(activated("Relu", "Clip"), "a second activation")


def test_a_relu_that_onnx_runtime_removes_is_refused() -> None:
    read_onnx(activated("Relu", scale=0.5, zero=-127, of_codes=True))
    refused(activated("Relu", scale=0.5, zero=-128, of_codes=True), "a ReLU of its own to the lowest zero point")


# Two operands, and flattened images, whose elements the file has in another order


def flattened(kind: str, *constants: Any, joined: bool = False, **attributes: Any) -> bytes:
    """An operator on a flattened image of 4 channels and 2 x 2 pixels, and on a vector of as many elements."""
    f = File((4, 2, 2))
    x = f.rounded("input", P, "x")
    flat = f.node("Flatten", [x], "flat")
    names = [f.constant(f"operand_{i}", v) if v is not None else "" for i, v in enumerate(constants)]
    if joined:
        column = f.node("Conv", [x, f.weight("w", np.ones((16, 4, 2, 2)), 0.1)], "column")
        names.append(f.node("Flatten", [f.rounded(column, P, "c")], "vector"))
    return f.bytes(f.rounded(f.node(kind, [flat, *names], "result", **attributes), P, "y"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (flattened("Slice", ints(0), ints(8), ints(1)), "slicing a flattened image"),
        (flattened("Pad", ints(0, 1, 0, 0)), "padding a flattened image"),
        (flattened("Concat", joined=True, axis=1), "joining flattened images"),
        (flattened("Add", joined=True), "of other shapes or orders"),
    ],
    ids=["slice", "pad", "concat", "add"],
)
def test_a_flattened_image_is_not_taken_for_a_vector(data: bytes, message: str) -> None:
    refused(data, message)


def test_an_output_in_the_order_of_the_file_is_refused() -> None:
    f = File((4, 2, 2))
    refused(f.bytes(f.node("Flatten", [f.rounded("input", P, "x")], "y")), "a flattened image in channel-first order")


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_a_tensor_with_itself_is_left_in_float(kind: str) -> None:
    f = File((4, 2, 2))
    x = f.rounded("input", P, "x")
    refused(f.bytes(f.rounded(f.node(kind, [x, x], "sum"), P, "y")), "of a tensor with itself")


def test_the_good_file_is_good() -> None:
    assert isinstance(read_onnx(GOOD).graph.nodes[-1].op, ops.Dequantize)
