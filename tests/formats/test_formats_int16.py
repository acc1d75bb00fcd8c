"""int16 tensors with int8 weights: the interpreter against the real TFLM and LiteRT wheels, bit for bit, and what files may say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strategies
from ai_edge_litert import schema_py_generated as schema
from int16_kit import MIDDLE, random_wide
from strategies import random_inputs
from tflite_edit import edited, operand, operator

from cactus_edge.errors import MismatchError, ModelError, UnsupportedError
from cactus_edge.formats.agree import RUNTIMES, agree
from cactus_edge.formats.c.blob import to_blob
from cactus_edge.formats.tflite import explicit_padding, read_tflite, write_tflite
from cactus_edge.ir import ops, rules
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.overflow import prove

NAMES = ("tflm", "litert-ref", "litert-builtin", "litert")
"""`litert` is what LiteRT does by default, with XNNPACK, which leaves int16 alone."""


def agreed(name: str, make: Callable[[int], Graph], count: int) -> int:
    """Networks, out of `count`, that the profile admits; requires that the wheel computes each bit for bit."""
    admitted = 0
    for seed in range(count):
        graph = make(seed)
        try:
            prove(lower(graph, profile(RUNTIMES[name].profile)))
            found = agree(write_tflite(graph), random_inputs(np.random.default_rng(seed), graph, 12), name)
        except UnsupportedError:
            continue
        except ModelError as error:
            assert "may reach" in error.message
            continue
        found.require()
        admitted += 1
    return admitted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MIDDLE)
def test_each_op_agrees(kind: str, name: str) -> None:
    if kind == "sum" and name != "tflm":
        assert agreed(name, lambda seed: random_wide(np.random.default_rng(seed), 1, (kind,), ends=("",)), 5) == 0
        return
    in_blocks = name in ("litert-builtin", "litert") and kind in ("add", "broadcast_add")
    least = 3 if in_blocks else 18
    assert agreed(name, lambda seed: random_wide(np.random.default_rng(seed), 1, (kind,), ends=("",)), 25) >= least


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["conv2d", "dense"])
def test_sums_of_32_bits_agree(kind: str, name: str) -> None:
    def make(seed: int) -> Graph:
        return random_wide(np.random.default_rng(seed), 1, (kind,), ends=("",), wide_bias=False)

    assert agreed(name, make, 25) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_random_networks_agree(name: str) -> None:
    admitted = agreed(name, lambda seed: random_wide(np.random.default_rng(1000 + seed), 6), 50)
    assert admitted >= (5 if name in ("litert-builtin", "litert") else 35)


@pytest.mark.parametrize("name", NAMES)
def test_quantised_inputs_agree(name: str) -> None:
    """Also where values tie, and behind the ends of int16."""
    rng = np.random.default_rng(4)
    for _ in range(25):
        scale = float(np.float32(rng.choice([1.0, 0.5, 1 / 3, 1 / 7, 0.1, 0.9]) * 2.0 ** rng.integers(-12, 2)))
        b = GraphBuilder()
        x = b.input(Tensor("r", (160,), "float32"))
        q = b.node(ops.Quantize(), [x], Tensor("q", (160,), "int16", scale))
        graph = b.finish(b.node(ops.Reshape(), [q], Tensor("y", (10, 16), "int16", scale)))
        real = np.float32(scale) * (rng.integers(-40000, 40000, (8, 160)) + rng.choice([0, 0.5, -0.5, 0.25], (8, 160)))
        agree(write_tflite(graph), real.astype(np.float32), name).require()


SUMS: dict[str, ops.Op] = {"add": ops.Add(), "sub": ops.Sub()}


def two_scales(op: ops.Op, seed: int) -> Graph:
    """The sum of x and REQUANTIZE(x): roundings of a term show in a few of 100,000 elements only."""
    scales = [float(np.float32(s)) for s in np.random.default_rng(seed).uniform([0.5, 0.5, 1.5], [1, 1, 2])]
    b = GraphBuilder()
    x = b.input(Tensor("x", (8192,), "int16", scales[0]))
    other = b.node(ops.Requantize(), [x], Tensor("r", (8192,), "int16", scales[1]))
    shuffled = b.node(ops.Reshape(), [x], Tensor("square", (64, 128), "int16", scales[0]))
    turned = b.node(ops.Transpose((1, 0)), [shuffled], Tensor("turned", (128, 64), "int16", scales[0]))
    flat = b.node(ops.Reshape(), [turned], Tensor("flat", (8192,), "int16", scales[0]))
    return b.finish(b.node(op, [flat, other], Tensor("y", (8192,), "int16", scales[2])))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", SUMS)
def test_sums_of_two_scales_agree(op: str, name: str) -> None:
    assert agreed(name, lambda seed: two_scales(SUMS[op], seed), 8) == 8


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("tflm", "Conv2d.int16", ("D", "double")),
        ("tflm", "Conv2d.int16.bias32", ("W", "double")),
        ("tflm", "DepthwiseConv2d.int16", ("H", "double")),
        ("tflm", "DensePerChannel.int16", ("E", "double")),
        ("tflm", "Add.int16", ("vector15",)),
        ("tflm", "Sub.int16", ("vector15",)),
        ("tflm", "Mul.int16", ("W", "double")),
        ("tflm", "Mean.int16", ("H", "folded_count")),
        ("tflm", "Relu.int16", ("D", "float32_ratio")),
        ("tflm", "Requantize.int16", ("W", "double")),
        ("litert-ref", "DensePerChannel.int16", ("W", "double")),
        ("litert-ref", "DensePerChannel.int16", ("D", "double")),
        ("litert-ref", "Add.int16", ("vector15",)),
        ("litert-ref", "Relu.int16", ("D", "double")),
        ("litert-builtin", "Conv2d.int16.bias32", ("D", "double")),
        ("litert-builtin", "DensePerChannel.int16.bias32", ("D", "double")),
        ("litert", "Conv2d.int16", ("F", "float32")),
        ("litert", "Add.int16", ("D_shift15", "blocks16")),
    ],
)
def test_a_neighbouring_rule_is_told_apart(
    name: str, kind: str, rule: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agreement is sharp enough to see each rule's nearest relative."""
    row = PROFILES[RUNTIMES[name].profile]
    monkeypatch.setitem(row.rules, kind, rule)  # type: ignore[index]
    named = {"Conv2d": "conv2d", "DepthwiseConv2d": "depthwise_conv2d", "DensePerChannel": "dense"}
    first, *rest = kind.split(".")
    op, wide = named.get(first, first.lower()), "bias32" not in rest

    def make(seed: int) -> Graph:
        if op in SUMS:
            return two_scales(SUMS[op], seed)
        return random_wide(np.random.default_rng(seed), 1, (op,), ends=("",), wide_bias=wide)

    with strategies.ties(), pytest.raises(MismatchError):
        agreed(name, make, 300)


def test_a_clamp_of_int8_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rules.Requantise.apply
    monkeypatch.setattr(rules.Requantise, "apply", lambda self, x: np.clip(real(self, x), -128, 127))
    with pytest.raises(MismatchError):
        agreed("tflm", lambda seed: random_wide(np.random.default_rng(seed), 1, ("conv2d",), ends=("",)), 10)


def network(bias: str = "int64") -> Graph:
    """QUANTIZE, CONV_2D, DEPTHWISE_CONV_2D, ADD, FULLY_CONNECTED, DEQUANTIZE."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> dict[str, Any]:
        o = shape[-1] if len(shape) == 3 else shape[0]
        return {
            "weight": ops.freeze(rng.integers(-127, 128, shape), np.int8),
            "bias": ops.freeze(rng.integers(-(2**20), 2**20, o), bias if len(shape) != 3 else "int64"),
            "weight_scale": ops.freeze(rng.uniform(0.002, 0.01, o), np.float32),
        }

    b = GraphBuilder()
    same = ops.same_padding((4, 4), (3, 3), (1, 1))
    image = b.input(Tensor("image", (4, 4, 2), "float32"))
    x = b.node(ops.Quantize(), [image], Tensor("q", (4, 4, 2), "int16", 2.0**-12))
    c = b.node(ops.Conv2d(**weights(4, 3, 3, 2), padding=same), [x], Tensor("c", (4, 4, 4), "int16", 2.0**-10))
    d = b.node(ops.DepthwiseConv2d(**weights(3, 3, 4), padding=same), [c], Tensor("d", (4, 4, 4), "int16", 2.0**-9))
    s = b.node(ops.Add(ops.Activation.RELU), [c, d], Tensor("s", (4, 4, 4), "int16", 2.0**-8))
    y = b.node(ops.Dense(**weights(3, 64)), [s], Tensor("y", (3,), "int16", 2.0**-6))
    return b.finish(b.node(ops.Dequantize(), [y], Tensor("real", (3,), "float32")))


@pytest.mark.parametrize("bias", ["int64", "int32"])
def test_what_is_written_is_read_back(bias: str) -> None:
    graph = network(bias)
    assert read_tflite(write_tflite(graph)).graph.digest() == explicit_padding(graph).digest()
    assert {t.dtype for t in graph.tensors} == {"int16", "float32"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", ["int64", "int32"])
def test_a_network_agrees(bias: str, name: str) -> None:
    x = np.random.default_rng(1).uniform(-8, 8, (50, 4, 4, 2)).astype(np.float32)
    agree(write_tflite(network(bias)), x, name).require()


def _options(name: str, **fields: Any) -> Callable[[Any], None]:
    return lambda model: operator(model, name).builtinOptions.__dict__.update(fields)


def _without_bias(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        operator(model, name).inputs[2] = -1

    return change


def _quantization(name: str, **fields: Any) -> Callable[[Any], None]:
    return lambda model: operand(model, name, 0).quantization.__dict__.update(fields)


def _far_bias(model: Any) -> None:
    tensor = operand(model, "CONV_2D", 2)
    model.buffers[tensor.buffer].data = np.array([2**47, 0, 0, 0], "<i8").tobytes()


def _typed(name: str, index: int, code: int) -> Callable[[Any], None]:
    return lambda model: setattr(operand(model, name, index), "type", code)


INT32 = schema.TensorType.INT32
REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "zero_point": (_quantization("CONV_2D", zeroPoint=np.int64([3])), "zero point 3, expected one in [0, 0] for int16"),
    "mixed": (_typed("ADD", 1, schema.TensorType.INT8), "the model mixes int16 and int8 activations"),
    "powers_of_two": (_options("ADD", potScaleInt16=True), "operator 3 ADD: int16 with scales that are powers of two"),
    "bias_beyond_2_47": (_far_bias, "a bias of magnitude 140737488355328, expected at most 140737488355327"),
    "no_bias": (_without_bias("CONV_2D"), "operator 1 CONV_2D: int16 without a bias"),
    "no_dense_bias": (_without_bias("FULLY_CONNECTED"), "operator 4 FULLY_CONNECTED: int16 without a bias"),
    "another_bias_than_stated": (
        _options("FULLY_CONNECTED", quantizedBiasType=INT32),
        "a bias of INT64 where quantized_bias_type means INT32",
    ),
}


@pytest.mark.parametrize("sin", REFUSED)
def test_a_file_with_one_sin_is_refused(sin: str) -> None:
    change, message = REFUSED[sin]
    with pytest.raises(ModelError) as refusal:
        read_tflite(edited(write_tflite(network()), change))
    assert message in str(refusal.value)


def test_a_dense_layer_without_bias_sums_in_64_bits() -> None:
    """As converters leave out a bias of zeros."""

    def change(model: Any) -> None:
        _without_bias("FULLY_CONNECTED")(model)
        _options("FULLY_CONNECTED", quantizedBiasType=schema.TensorType.INT64)(model)

    data = edited(write_tflite(network()), change)
    x = np.random.default_rng(1).uniform(-8, 8, (50, 4, 4, 2)).astype(np.float32)
    for name in NAMES:
        agree(data, x, name).require()


def test_the_portable_c_refuses_int16_by_name() -> None:
    with pytest.raises(UnsupportedError, match="activations are int16: the portable C") as refusal:
        to_blob(network(), profile("tflm"))
    assert "int8" in refusal.value.hint
