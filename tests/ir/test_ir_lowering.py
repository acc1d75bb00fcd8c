"""Single checks of the graph's rules and of the profiles' rows, each with the graph that would pass if it were left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from test_ir_spec import IMAGE, LEGAL, conv, out, refused, single

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import multipliers, ops
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.atoms import FloatAverage
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.profile import DELEGATE, STORED
from cactus_edge.ir.spec import check
from cactus_edge.ir.tables import code_table, interpolation

OTHER = {"scale": 1.0, "zero_point": -3}
"""Another scale and zero point than IMAGE's."""


def constants(rank: int) -> dict[str, Any]:
    """Bias and scales for three outputs, weights of ones: [3, 3, 3, 2], or [3, 3, 3]."""
    return {
        "weight": ops.freeze(np.ones((3, 3, 3, 2)[:rank]), np.int8),
        "bias": ops.freeze(np.zeros(3), np.int32),
        "weight_scale": ops.freeze([0.5] * 3, np.float32),
    }


def transposed(**changes: Any) -> ops.TransposeConv2d:
    return ops.TransposeConv2d(**constants(4) | changes)


def pair(op: ops.Op, y: Tensor, z: Tensor) -> Graph:
    """op(x, y), where y is a ReLU of x."""
    return Graph((IMAGE, y, z), (Node(ops.Relu(), (0,), 1), Node(op, (0, 1), 2)), (0,), (2,))


def with_constant(codes: Any, *inputs: int) -> Graph:
    """ADD of tensors among x (0) and the constant (1) of IMAGE's shape."""
    graph = single(ops.Add(), replace(IMAGE, name="y"), arity=2)
    tensors = (IMAGE, replace(IMAGE, name="c"), graph.output)
    return Graph(tensors, (Node(ops.Add(), inputs, 2),), (0,), (2,), {1: codes})


ONES = np.ones(IMAGE.shape, np.int8)
FLOAT = Tensor("f", IMAGE.shape, "float32")

SINS: dict[str, tuple[Callable[[], Graph], str]] = {
    "constants_only": (lambda: with_constant(ONES, 1, 1), "reads constants only"),
    "constant_of_another_shape": (lambda: with_constant(ONES[:1], 0, 1), "is int8 (1, 4, 2) for int8 (4, 4, 2)"),
    "constant_of_another_type": (lambda: with_constant(ONES.astype(np.int16), 0, 1), "is int16 (4, 4, 2) for int8"),
    "dequantised_beside_the_output": (
        lambda: Graph(
            (IMAGE, replace(IMAGE, name="y"), FLOAT),
            (Node(ops.Relu(), (0,), 1), Node(ops.Dequantize(), (1,), 2)),
            (0,),
            (1,),
        ),
        "which is not the model's output",
    ),
    "the_input_is_the_output": (lambda: replace(LEGAL, outputs=(0,)), "output is not written by an op"),
    "depthwise_channels": (
        lambda: single(ops.DepthwiseConv2d(**constants(3)), out(2, 2, 3)),
        "3 output channels are no multiple of 2",
    ),
    "transposed_channels": (
        lambda: single(transposed(), out(6, 6, 3), replace(IMAGE, shape=(4, 4, 3))),
        "does not fit 3 input channels",
    ),
    "transposed_outputs": (lambda: single(transposed(), out(6, 6, 4)), "expected (6, 6, 3)"),
    "pad_rescales": (lambda: single(ops.Pad(((1, 0),) * 3), out(5, 5, 3, **OTHER)), "differ from the output's"),
    "concat_rescales": (lambda: pair(ops.Concat(2), out(4, 4, 2, **OTHER), out(4, 4, 4)), "differ from the output's"),
    "concat_moves_the_zero_point": (
        lambda: pair(ops.Concat(2), out(4, 4, 2, zero_point=4), out(4, 4, 4)),
        "zero point 4 differ from the output's",
    ),
    "transpose_rescales": (lambda: single(ops.Transpose((2, 0, 1)), out(2, 4, 4, **OTHER)), "differ from the output's"),
    "slice_rescales": (
        lambda: single(ops.Slice((0, 0, 0), (4, 4, 1), (1, 1, 1)), out(4, 4, 1, **OTHER)),
        "differ from the output's",
    ),
    "reshape_rescales": (lambda: single(ops.Reshape(), out(32, **OTHER)), "differ from the output's"),
    "nearest_rescales": (lambda: single(ops.ResizeNearest(), out(8, 8, 2, **OTHER)), "differ from the output's"),
    "bilinear_rescales": (lambda: single(ops.ResizeBilinear(), out(8, 8, 2, **OTHER)), "differ from the output's"),
    "second_of_a_maximum_rescales": (
        lambda: pair(ops.Maximum(), out(4, 4, 2, **OTHER), out(4, 4, 2)),
        "differ from the output's",
    ),
    "second_of_a_minimum_rescales": (
        lambda: pair(ops.Minimum(), out(4, 4, 2, **OTHER), out(4, 4, 2)),
        "differ from the output's",
    ),
    "one_scale_for_a_convolution": (
        lambda: single(conv(weight_scale=ops.freeze([0.5], np.float32)), out(2, 2, 3)),
        "1 weight scales for 3 output channels",
    ),
    "mean_axis_beyond": (lambda: single(ops.Mean((3,), True), out(4, 4, 2)), "axes (3,)"),
    "softmax_beta": (
        lambda: single(ops.Softmax(-1.0), out(4, 4, 2, scale=1 / 256, zero_point=-128)),
        "beta -1.0, expected a finite number above zero",
    ),
    "softmax_of_int16_in_another_scale": (
        lambda: single(ops.Softmax(), out(4, 4, 2, dtype="int16", zero_point=0), replace(IMAGE, dtype="int16", zero_point=0)),
        "expected 1/32768 and 0",
    ),
    "slope_of_a_double": (lambda: single(ops.LeakyRelu(0.1), out(4, 4, 2)), "alpha 0.1, expected a finite float32"),
    "wide_bias_of_int8_codes": (
        lambda: single(conv(bias=ops.freeze(np.zeros(3), np.int64)), out(2, 2, 3)),
        "expected int8 and int32 (3,)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("sin", SINS)
def test_sin_is_refused_by_name(sin: str) -> None:
    make, message = SINS[sin]
    refused(make(), message)


@pytest.mark.parametrize("name", ["constants_only", "pad_rescales", "mean_axis_beyond"])
def test_what_each_table_begins_with_is_legal(name: str) -> None:
    """Without the sin the same graph passes."""
    legal = {
        "constants_only": with_constant(ONES, 0, 1),
        "pad_rescales": single(ops.Pad(((1, 0),) * 3), out(5, 5, 3)),
        "mean_axis_beyond": single(ops.Mean((2,), True), out(4, 4, 1)),
    }
    check(legal[name])


# Rows of profiles


IMAGE4, OUT4 = Tensor("x", (3, 3, 4), "int8", 0.5, 1), Tensor("y", (3, 3, 4), "int8", 0.25, -2)
RELU, RELU6 = ops.Activation.RELU, ops.Activation.RELU6


def weights(*shape: int, value: int = 1, outputs: int = 4) -> dict[str, Any]:
    return {
        "weight": ops.freeze(np.full(shape, value), np.int8),
        "bias": ops.freeze([0] * outputs, np.int32),
        "weight_scale": ops.freeze([0.01] * outputs, np.float32),
    }


def one(op: ops.Op, x: Tensor = IMAGE4, y: Tensor = OUT4, count: int = 1) -> Graph:
    return Graph((x, y), (Node(op, (0,) * count, 1),), (0,), (1,))


def shaped(t: Tensor, *shape: int, **changes: Any) -> Tensor:
    return replace(t, shape=shape, **changes)


def squared_through_a_reshape() -> Graph:
    """x * y for y = RESHAPE(RESHAPE(x))."""
    tensors = (IMAGE4, shaped(IMAGE4, 36), replace(IMAGE4, name="z"), OUT4)
    nodes = (Node(ops.Reshape(), (0,), 1), Node(ops.Reshape(), (1,), 2), Node(ops.Mul(), (0, 2), 3))
    return Graph(tensors, nodes, (0,), (3,))


def quantised_real() -> Graph:
    tensors = (Tensor("r", (3, 3, 4), "float32"), IMAGE4, shaped(IMAGE4, 36, name="y"))
    return Graph(tensors, (Node(ops.Quantize(), (0,), 1), Node(ops.Reshape(), (1,), 2)), (0,), (2,))


def rows(bits: int = 8, scales: int = 4) -> Graph:
    """A dense layer on each row of its input."""
    scale = ops.freeze([0.01] * scales, np.float32)
    op = ops.Dense(**weights(4, 4) | {"weight_scale": scale}, weight_bits=bits)
    return one(op, shaped(IMAGE4, 3, 4), shaped(OUT4, 3, 4))


def layer(value: int = 1, activation: ops.Activation = ops.Activation.NONE) -> Graph:
    return one(ops.Dense(**weights(4, 36, value=value), activation=activation), IMAGE4, shaped(OUT4, 4))


POOLED = one(ops.MaxPool((1, 1), (1, 1)), IMAGE4, replace(IMAGE4, name="y"))
ALIKE = replace(IMAGE4, name="y")
TURNED = one(
    ops.TransposeConv2d(**weights(4, 3, 3, 4), stride=(1, 1)), IMAGE4, shaped(OUT4, 5, 5, 4)
)  # fmt: skip

UNSHOWN: list[tuple[str, Graph, str]] = [
    ("x-cube-ai", POOLED, "no rule for MaxPool"),
    ("x-cube-ai", one(ops.Relu6(), y=ALIKE), "no rule for Relu6"),
    ("x-cube-ai", one(ops.Maximum(), y=ALIKE, count=2), "no rule for Maximum"),
    ("x-cube-ai", one(ops.AvgPool((1, 1), (1, 1), activation=RELU6), y=ALIKE), "AvgPool with a fused relu6"),
    ("plumerai", POOLED, "no rule for MaxPool"),
    ("plumerai", one(ops.Pad(((0, 0),) * 3), y=ALIKE), "no rule for Pad"),
    (
        "plumerai",
        one(ops.Dense(**weights(4, 36) | {"weight_scale": ops.freeze([0.01], np.float32)}, activation=RELU), y=shaped(OUT4, 4)),
        "Dense with a fused relu",
    ),
    ("tflm-single-rounding", TURNED, "no rule for TransposeConv2d"),
    ("tflm-single-rounding", one(ops.LeakyRelu(0.5)), "no rule for LeakyRelu"),
    ("tinyengine", POOLED, "no rule for MaxPool|MaxPool"),
    ("litert-xnnpack", one(ops.Mul(), count=2), "Mul of a tensor with itself"),
    ("litert-xnnpack", squared_through_a_reshape(), "Mul of a tensor with itself"),
    ("ort-x86", one(ops.Mul(), count=2), "Mul of a tensor with itself"),
    ("ort-x86", one(ops.Relu6(), y=ALIKE), "no rule for Relu6"),
    ("ort-x86", one(ops.Mean((0, 1), False), y=shaped(OUT4, 4)), "Mean other than over the whole image"),
    ("ort-arm64", one(ops.Mul(), count=2), "no rule for Mul"),
    ("ort-arm64", one(ops.Add(), count=2), "no rule for Add"),
    ("litert-builtin", quantised_real(), "Quantize of 36 elements"),
    ("litert-builtin", one(ops.Mul(), y=replace(OUT4, scale=0.125), count=2), "leaves its 16 bits"),
    ("litert-builtin", rows(bits=4), "no rule for DenseRows.weights4"),
    ("x-cube-ai", rows(scales=1), "no rule for DenseRows"),
    ("litert-xnnpack-arm64", rows(), "no rule for DenseRows"),
    ("litert-xnnpack-arm64", TURNED, "no rule for TransposeConv2d"),
    ("litert-xnnpack-arm64", one(ops.HardSwish()), "no rule for HardSwish"),
    ("litert-xnnpack-arm64", pair(ops.Mul(), replace(IMAGE, name="r"), IMAGE), "no rule for Mul"),
    ("litert-xnnpack-arm64", one(ops.ResizeBilinear(), y=shaped(ALIKE, 6, 6, 4)), "no rule for ResizeBilinear"),
    ("litert-xnnpack-arm64", one(ops.DepthwiseConv2d(**weights(1, 1, 4, value=-128))), "a weight of -128"),
    ("litert-xnnpack-arm64", layer(value=-128), "a weight of -128"),
    ("ort-arm64", one(ops.DepthwiseConv2d(**weights(1, 1, 4, value=-128))), "a weight of -128"),
    ("ort-arm64", layer(value=-128), "a weight of -128"),
    (
        "litert-xnnpack",
        one(ops.Mean((0, 1), True), replace(IMAGE4, scale=2.0**100), shaped(OUT4, 1, 1, 4, scale=2.0**-100)),
        "is no float32",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "graph", "message"), UNSHOWN, ids=[f"{n}: {m}" for n, _, m in UNSHOWN])
def test_what_was_not_shown_is_refused(name: str, graph: Graph, message: str) -> None:
    check(graph)
    with pytest.raises(UnsupportedError, match=message):
        lower(graph, profile(name))


def test_who_finds_out_shapes_and_leaves_operators() -> None:
    """Marks of whole files: a runtime that is missing here would be certified for what it computes of other sizes."""

    def marked(kind: str) -> set[str]:
        return {name for name, row in PROFILES.items() if kind in row.rules}

    assert marked(STORED) == {"tflm", "tflm-single-rounding", "x-cube-ai", "plumerai", "tinyengine"}
    assert marked(DELEGATE) == {"litert-xnnpack", "litert-xnnpack-arm64"}
    assert PROFILES["tinyengine"].rules["Graph"] == ("tinyengine",)


FUSED = ("Conv2d", "GroupedConv2d", "DepthwiseConv2d", "Dense", "DensePerChannel", "Add", "Sub", "MaxPool")


@pytest.mark.parametrize("name", ["litert-xnnpack", "litert-xnnpack-arm64"])
def test_a_fused_end_is_rounded_to_even_by_xnnpack_alone(name: str) -> None:
    """1 / S = 5.5 in float32; average pools run in LiteRT's own kernels, which round away from zero."""
    tie = Tensor("y", (1,), "int8", float(np.float32(0.18181818723678589)), -5)
    kinds = (*FUSED, *(("Mul", "TransposeConv2d") if name == "litert-xnnpack" else ()))
    for kind in kinds:
        assert profile(name).clamp(kind, ops.Activation.RELU_N1_TO_1, tie) == (-10, 0), kind
    assert profile(name).clamp("AvgPool", ops.Activation.RELU_N1_TO_1, tie) == (-11, 1)


def test_tinyengine_leaves_out_every_fused_end() -> None:
    for kind in ("Conv2d", "DepthwiseConv2d", "Dense", "DensePerChannel", "Add", "AvgPool"):
        with pytest.raises(UnsupportedError, match="leaves it out"):
            profile("tinyengine").clamp(kind, RELU, OUT4)


def test_an_average_over_the_image_and_its_border_is_no_mean() -> None:
    graph = one(ops.AvgPool((3, 3), (1, 1), ops.Padding2d(1, 1, 1, 1)))
    assert isinstance(lower(graph, profile("ort-x86")).steps[-1].atom, FloatAverage)


def test_a_mean_that_drops_its_axes_takes_another_kernel() -> None:
    families = []
    for keep, shape in ((True, (1, 1, 4)), (False, (4,))):
        program = lower(one(ops.Mean((0, 1), keep), y=shaped(OUT4, *shape)), profile("litert-builtin"))
        families.append(program.steps[-1].atom.rule.family)  # type: ignore[union-attr]
    assert families == ["HD16", "D"]


# Multipliers


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        *(("Relu", 255), ("Relu6", 255), ("Requantize", 255), ("Mul", 255**2)),
        *(("Relu.int16", 2**15), ("Requantize.int16", 2**15), ("Mul.int16", 2**30)),
    ],
)
def test_no_code_is_shifted_out_of_32_bits(kind: str, most: int) -> None:
    shift = multipliers.CODE_SHIFTS[kind]
    assert most << shift < 2**31 <= most << shift + 1


def test_sums_of_64_bits_are_shifted_by_less_than_8() -> None:
    """TensorFlow Lite's MultiplyByQuantizedMultiplier for int64_t asks for it."""
    row = profile("tflm")
    row.requantise("Conv2d.int16", 1.0, [127.0], 1.0, 0, (-(2**15), 2**15 - 1))
    with pytest.raises(UnsupportedError, match="more than 7"):
        row.requantise("Conv2d.int16", 1.0, [128.0], 1.0, 0, (-(2**15), 2**15 - 1))


@pytest.mark.parametrize("ratio", [2.0**-8 - 2.0**-32, 2.0**7 + 2.0**-16])
def test_a_fraction_of_8_bits_holds_ratios_up_to_its_ends(ratio: float) -> None:
    for inside in (2.0**-8, 2.0**7):
        multipliers.fraction8("Requantize", inside, 1.0)
    with pytest.raises(UnsupportedError, match="XNNPACK takes ratios"):
        multipliers.fraction8("Requantize", ratio, 1.0)


def test_a_product_of_a_tiny_multiplier_was_not_shown() -> None:
    with pytest.raises(UnsupportedError, match="expected one from 2\\^-16 on"):
        lower(pair(ops.Mul(), replace(IMAGE, name="r"), replace(IMAGE, scale=2.0**15)), profile("litert-xnnpack"))
    with pytest.raises(UnsupportedError, match="expected one below 256"):
        multipliers.float_multipliers("Conv2d", np.array([1.0, 256.0]))


def test_floats_round_half_away_on_both_sides() -> None:
    values = [-2.5, -0.5, 0.5, 1.5, -1.25]
    assert [multipliers.round_half_away_f32(np.float32(v)) for v in values] == [-3, -1, 1, 2, -1]


@pytest.mark.parametrize("shift", [24, 25, 30])
def test_a_slope_that_leaves_32_bits_is_refused(shift: int) -> None:
    x, y = shaped(IMAGE4, 4, scale=2.0 ** (shift - 1)), shaped(OUT4, 4, scale=1.0)
    with pytest.raises(UnsupportedError, match=f"shifts left by {shift} bits, more than 23"):
        lower(one(ops.LeakyRelu(0.5), x, y), profile("tflm"))


# Tables


@pytest.mark.parametrize(
    ("op", "rule", "scales", "zero_point", "message"),
    [
        (ops.HardSwish(), "dequantised", (0.09375, 0.046875), -59, "whether a product and a sum are rounded once"),
        (ops.Logistic(), "mlas", (0.020167436450719833, 1 / 256), -46, "so near a tie"),
        (ops.LeakyRelu(0.5), "fraction8", (200.0, 1.0), 0, "XNNPACK takes them from 2.-8 to 2.7"),
    ],
    ids=["fused", "near a tie", "ratio"],
)
def test_a_table_that_is_not_known_is_refused(
    op: Any, rule: str, scales: tuple[float, float], zero_point: int, message: str
) -> None:
    x, y = (shaped(IMAGE4, 4, scale=s, zero_point=z) for s, z in zip(scales, (zero_point, -128), strict=True))
    with pytest.raises(UnsupportedError, match=message):
        code_table(op, (rule,), x, y)


def test_a_place_beyond_the_image_is_refused() -> None:
    """2 elements to 3000: the reference kernel's step is rounded up, by which its last places leave the image."""
    with pytest.raises(UnsupportedError, match="its last place lies beyond the image"):
        interpolation("fixed10", 2, 3000, False, False)


@pytest.mark.parametrize("name", sorted(multipliers.REAL_MULTIPLIERS))
def test_each_multiplier_is_rounded_where_its_name_says(name: str) -> None:
    """Scales whose products and quotients no float32 holds: each way has its own number, and another step would be seen."""
    rng = np.random.default_rng(0)
    s_in, s_out = (float(np.float32(v)) for v in rng.uniform(0.01, 0.1, 2))
    s_weight = rng.uniform(0.001, 0.01, 200).astype(np.float32).astype(np.float64)
    f32 = np.float32
    exact = np.array([Fraction(s_in) * Fraction(w) / Fraction(s_out) for w in s_weight.tolist()])
    wanted = {
        "double": exact.astype(np.float64),
        "double_to_float32": exact.astype(np.float64).astype(f32),
        "float32_product": [float(f32(s_in) * f32(w)) / s_out for w in s_weight],
        "float32_ratio": [float(f32(s_in) / f32(s_out)) * w for w in s_weight],
        "float32": [f32(s_in) * f32(w) / f32(s_out) for w in s_weight],
    }
    found = multipliers.REAL_MULTIPLIERS[name](s_in, s_weight, s_out)
    near = {
        other: int((np.abs(found - np.asarray(w, np.float64)) <= 4e-16 * found).sum()) for other, w in wanted.items()
    }
    assert near.pop(name) == len(found), name
    assert max(near.values()) < 0.9 * len(found), near
