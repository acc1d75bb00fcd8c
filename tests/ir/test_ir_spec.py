"""Illegal graphs, one sin each, and what the message must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cactus_edge.errors import InputError, ModelError, UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.rules import activation_range
from cactus_edge.ir.spec import check

IMAGE = Tensor("x", (4, 4, 2), scale=0.5, zero_point=3)


def conv(**changes: object) -> ops.Conv2d:
    op = ops.Conv2d(
        ops.freeze(np.ones((3, 3, 3, 2)), np.int8), ops.freeze(np.zeros(3), np.int32), ops.freeze([0.5] * 3, np.float32)
    )
    return replace(op, **changes)  # type: ignore[arg-type]


def dense(inputs: int, outputs: int = 3) -> ops.Dense:
    weight = ops.freeze(np.ones((outputs, inputs)), np.int8)
    return ops.Dense(weight, ops.freeze(np.zeros(outputs), np.int32), ops.freeze([0.5], np.float32))


def single(op: ops.Op, out: Tensor, x: Tensor = IMAGE, arity: int = 1) -> Graph:
    return Graph((x, out), (Node(op, (0,) * arity, 1),), (0,), (1,))


def out(*shape: int, **changes: object) -> Tensor:
    return replace(Tensor("y", shape, scale=0.5, zero_point=3), **changes)  # type: ignore[arg-type]


LEGAL = single(conv(), out(2, 2, 3))

SINS: dict[str, tuple[Callable[[], Graph], str]] = {
    "no_node": (lambda: Graph((IMAGE,), (), (0,), (0,)), "no op"),
    "two_outputs": (lambda: replace(LEGAL, outputs=(1, 1)), "one input and one output"),
    "reads_before_write": (lambda: Graph((IMAGE, out(3), out(3)), (Node(dense(3), (2,), 1),), (0,), (1,)), "before it is written"),
    "writes_twice": (lambda: Graph((IMAGE, out(2, 2, 3)), LEGAL.nodes * 2, (0,), (1,)), "written before"),
    "tensor_out_of_range": (lambda: Graph((IMAGE, out(3)), (Node(dense(32), (7,), 1),), (0,), (1,)), "names tensor 7"),
    "scale_zero": (lambda: single(conv(), out(2, 2, 3, scale=0.0)), "scale 0.0"),
    "scale_nan": (lambda: single(conv(), out(2, 2, 3, scale=float("nan"))), "scale nan"),
    "scale_not_float32": (lambda: single(conv(), out(2, 2, 3, scale=0.1)), "float32"),
    "zero_point_200": (lambda: single(conv(), out(2, 2, 3, zero_point=200)), "zero point 200"),
    "empty_axis": (lambda: single(conv(), out(0, 2, 3)), "positive sizes"),
    "wrong_output_shape": (lambda: single(conv(), out(4, 4, 3)), "expected (2, 2, 3)"),
    "kernel_larger_than_image": (lambda: single(conv(dilation=(2, 2)), out(1, 1, 3)), "does not fit"),
    "channels_do_not_divide": (lambda: single(conv(), out(2, 2, 3), replace(IMAGE, shape=(4, 4, 3))), "does not fit 3"),
    "bias_too_short": (lambda: single(conv(bias=ops.freeze(np.zeros(2), np.int32)), out(2, 2, 3)), "bias"),
    "weight_scales_short": (lambda: single(conv(weight_scale=ops.freeze([1, 1], np.float32)), out(2, 2, 3)), "2 weight scales"),
    "weight_scale_negative": (lambda: single(conv(weight_scale=ops.freeze([1, 1, -1], np.float32)), out(2, 2, 3)), "above zero"),
    "stride_zero": (lambda: single(conv(stride=(0, 1)), out(2, 2, 3)), "stride (0, 1)"),
    "dense_width": (lambda: single(dense(5), out(3)), "does not fit an input of shape (4, 4, 2)"),
    "dense_too_wide": (lambda: single(dense(70000), out(3), Tensor("x", (70000,))), "70000 taps"),
    "add_broadcasts": (
        lambda: Graph((IMAGE, out(2, 2, 3), out(4, 4, 2)), (LEGAL.nodes[0], Node(ops.Add(), (0, 1), 2)), (0,), (2,)),
        "do not broadcast",
    ),
    "add_with_one_input": (lambda: single(ops.Add(), out(4, 4, 2)), "takes 1 inputs"),
    "pool_rescales": (lambda: single(ops.MaxPool((2, 2), (2, 2)), out(2, 2, 2, scale=1.0)), "differ from the output's"),
    "pool_padding_beyond_window": (lambda: single(ops.MaxPool((1, 1), (1, 1), ops.Padding2d(1)), out(5, 4, 2)), "not smaller"),
    "mean_axis_twice": (lambda: single(ops.Mean((0, 0)), out(4, 2)), "axes (0, 0)"),
    "pad_negative": (lambda: single(ops.Pad(((-1, 0), (0, 0), (0, 0))), out(3, 4, 2)), "pads"),
    "concat_axis": (lambda: single(ops.Concat(3), out(4, 4, 2)), "axis 3"),
    "reshape_loses_elements": (lambda: single(ops.Reshape(), out(31)), "reshapes"),
    "softmax_scale": (lambda: single(ops.Softmax(), out(4, 4, 2)), "1/256"),
    "softmax_of_a_scalar": (lambda: single(ops.Softmax(), out(scale=1 / 256, zero_point=-128), Tensor("x", ())), "at least one axis"),
    "padding_bomb": (
        lambda: single(ops.AvgPool((40000, 40000), (1, 1), ops.Padding2d(39999, 39999, 39999, 39999)), out(2, 2, 2)),
        "elements after padding",
    ),
    "float_tensor_inside": (lambda: single(conv(), out(2, 2, 3, dtype="float32")), "float32"),
    "float_island": (
        lambda: Graph(
            (IMAGE, out(4, 4, 2, dtype="float32"), out(4, 4, 2), out(4, 4, 2)),
            (Node(ops.Dequantize(), (0,), 1), Node(ops.Quantize(), (1,), 2), Node(ops.Relu(), (2,), 3)),
            (0,),
            (3,),
        ),
        "float island",
    ),
}  # fmt: skip


def refused(graph: Graph, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        check(graph)
    assert message in str(caught.value)


@pytest.mark.parametrize("sin", SINS)
def test_sin_is_refused_by_name(sin: str) -> None:
    make, message = SINS[sin]
    refused(make(), message)


def test_legal_graph_passes_and_names_its_ops() -> None:
    check(LEGAL)
    assert LEGAL.label(0) == "op 0 Conv2d -> 'y'"


def test_relu6_that_rescales_is_refused_by_the_profile() -> None:
    graph = single(ops.Relu6(), out(4, 4, 2, scale=1.0))
    check(graph)
    with pytest.raises(UnsupportedError, match="op 0 Relu6"):
        lower(graph, profile("tflm"))


REFUSED: dict[str, tuple[Callable[[], Graph], str]] = {
    "softmax_too_deep": (
        lambda: single(ops.Softmax(), out(512, scale=1 / 256, zero_point=-128), Tensor("x", (512,), scale=0.5)),
        "512 elements",
    ),
    "requantise_wraps": (lambda: single(ops.Requantize(), out(4, 4, 2, scale=2.0**-25)), "more than 23"),
    "relu6_beyond_int32": (
        lambda: single(conv(activation=ops.Activation.RELU6), out(2, 2, 3, scale=2.0**-30)),
        "TFLM refuses",
    ),
    "mean_out_of_range": (lambda: single(ops.Mean((0, 1)), out(2, scale=2.0**-40)), "more than 30"),
}


@pytest.mark.parametrize("sin", REFUSED)
def test_what_the_runtime_cannot_compute_is_refused_by_name(sin: str) -> None:
    make, message = REFUSED[sin]
    graph = make()
    check(graph)
    with pytest.raises(UnsupportedError) as caught:
        lower(graph, profile("tflm"))
    assert message in str(caught.value)


def test_relu6_at_the_smallest_scale_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="TFLM refuses inf codes"):
        activation_range(ops.Activation.RELU6, Tensor("y", (1,), "int8", 2.0**-140, 0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e9])
def test_values_that_no_two_runtimes_quantise_alike_are_refused(value: float) -> None:
    rule = profile("tflm").quantize(Tensor("x", (1,), "int8", 1.0, 0))
    with pytest.raises(InputError, match="no two runtimes"):
        rule.apply(np.array([0.0, value], np.float32))


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'tflm'"):
        profile("tflmm")


def test_profile_without_a_rule_refuses_the_op_by_name() -> None:
    poor = replace(PROFILES["tflm"], rules={"Conv2d": ("D", "double"), "Quantize": ("half_away",)})
    graph = single(ops.Reshape(), out(32))
    with pytest.raises(UnsupportedError, match=r"op 0 Reshape.*no rule"):
        lower(graph, poor)
    assert poor.digest() != PROFILES["tflm"].digest()


def test_freeze_refuses_what_does_not_fit() -> None:
    with pytest.raises(OverflowError):
        ops.freeze([300], np.int8)
    with pytest.raises(ValueError):
        ops.freeze([1], np.int8)[0] = 2


def test_digest_sees_every_constant_and_no_name() -> None:
    weight = LEGAL.nodes[0].op.weight.copy()  # type: ignore[union-attr]
    weight[0, 0, 0, 0] ^= 1
    other = single(conv(weight=ops.freeze(weight, np.int8)), out(2, 2, 3))
    assert other.digest() != LEGAL.digest()
    renamed = single(conv(), out(2, 2, 3, name="z"))
    assert renamed.digest() == LEGAL.digest()
    assert single(conv(), out(2, 2, 3, zero_point=4)).digest() != LEGAL.digest()


def test_builder_checks_what_it_built() -> None:
    builder = GraphBuilder()
    x = builder.input(IMAGE)
    builder.node(conv(), [x], out(9, 9, 9))
    with pytest.raises(ModelError, match="expected"):
        builder.finish(1)
