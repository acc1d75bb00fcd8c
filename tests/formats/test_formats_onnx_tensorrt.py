"""TensorRT's rules for QDQ files: for each rule a file that breaks it alone, and what a real TensorRT parser says to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_kit import chain, classifier, edit, initializer, node, symmetric

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.formats.onnx.tensorrt import RULES, read_tensorrt, require_tensorrt, violations
from cactus_edge.ir import ops

Change = Callable[[Any], None]


def good(relu: str = "codes") -> bytes:
    """A file without a fault."""
    return write_onnx(symmetric(classifier(0)), bias="float32", relu=relu)  # type: ignore[arg-type]


def constant(name: str, values: Any) -> Change:
    """Gives an initializer other values, shape and type."""

    def change(model: Any) -> None:
        initializer(model, name).CopyFrom(numpy_helper.from_array(np.asarray(values), name))

    return change


def rewire(kind: str, number: int, place: int, values: Any) -> Change:
    """Makes an input of a node a constant of its own."""

    def change(model: Any) -> None:
        name = f"new_{place}"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        node(model, kind, number).input[place] = name

    return change


def computed(kind: str, number: int, place: int) -> Change:
    """Puts an Identity before an input of a node."""

    def change(model: Any) -> None:
        reader = node(model, kind, number)
        before = helper.make_node("Identity", [reader.input[place]], ["computed"])
        reader.input[place] = "computed"
        model.graph.node.insert(0, before)

    return change


def no_zero_point(model: Any) -> None:
    del node(model, "QuantizeLinear").input[2]


def two_activation_scales(model: Any) -> None:
    constant("input_scale", np.full(2, 1 / 32, np.float32))(model)
    constant("input_zero_point", np.zeros(2, np.int8))(model)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        node(model, kind).attribute.append(helper.make_attribute("axis", 1))


def scales_along_the_inputs(model: Any) -> None:
    weight = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "conv_weight")
    weight.attribute[0].i = 1
    constant("conv_weight_scale", np.full(2, 0.01, np.float32))(model)
    constant("conv_weight_zero_point", np.zeros(2, np.int8))(model)


def extreme_weight(model: Any) -> None:
    weight = numpy_helper.to_array(initializer(model, "conv_weight")).copy()
    weight.flat[0] = -128
    constant("conv_weight", weight)(model)


def int32_weight(model: Any) -> None:
    weight = numpy_helper.to_array(initializer(model, "conv_weight"))
    constant("conv_weight", weight.astype(np.int32))(model)
    constant("conv_weight_zero_point", np.zeros(3, np.int32))(model)


def operator_on_codes(model: Any) -> None:
    """The pool as one node on codes; its neighbours then hold nothing that needs a scale."""
    node(model, "MaxPool").op_type = "QLinearMaxPool"


SINS: dict[str, tuple[str, Change, bool]] = {
    "operator on codes": ("QDQ form", operator_on_codes, False),
    "zero point": ("symmetric", constant("conv_zero_point", np.int8(3)), False),
    "weight zero point": ("symmetric", constant("conv_weight_zero_point", np.array([1, 0, 0], np.int8)), False),
    "int32 weight": ("dequantised type", int32_weight, False),
    "scale 0": ("scale", constant("conv_scale", np.float32(0)), False),
    "negative scale": ("scale", constant("conv_scale", np.float32(-0.1)), False),
    "one zero point for three scales": ("scale", constant("conv_weight_zero_point", np.zeros(1, np.int8)), False),
    "infinite scale": ("constant scale", constant("conv_scale", np.float32(np.inf)), True),
    "half-precision scale": ("constant scale", constant("input_scale", np.float16(0.1)), False),
    "computed scale": ("constant scale", computed("QuantizeLinear", 0, 1), True),
    "computed zero point": ("constant zero point", computed("QuantizeLinear", 0, 2), True),
    "uint8 zero point": ("int8 codes", constant("input_zero_point", np.uint8(0)), True),
    "no zero point": ("int8 codes", no_zero_point, True),
    "activation per channel": ("per tensor", two_activation_scales, True),
    "weight scales along the inputs": ("per channel", scales_along_the_inputs, True),
    "float weight": ("quantised inputs", rewire("Conv", 0, 1, np.ones((3, 2, 3, 3), np.float32)), True),
    "computed bias": ("float bias", computed("Conv", 0, 2), True),
    "weight -128": ("weight range", extreme_weight, True),
}
"""Sin -> (the one rule that it breaks, the change to a good file, what the parser of TensorRT for RTX 1.7.1.116 says to it)."""


def parser() -> Callable[[bytes], bool]:
    """The real parser, which needs no GPU; it is proprietary and therefore no dependency."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the optional package tensorrt-rtx-cu12 is not installed")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)

    def parses(data: bytes) -> bool:
        network = trt.Builder(logger).create_network(0)
        return bool(trt.OnnxParser(network, logger).parse(data))

    return parses


@pytest.mark.parametrize("relu", ["codes", "sum"])
@pytest.mark.parametrize("activation", list(ops.Activation), ids=lambda a: a.value)
def test_our_files_obey_every_rule(activation: ops.Activation, relu: str) -> None:
    graph = symmetric(classifier(0, activation))
    data = write_onnx(graph, bias="float32", relu=relu)  # type: ignore[arg-type]
    assert violations(data) == ()
    assert read_tensorrt(data).graph.digest() == read_tensorrt(write_onnx(graph, bias="float32")).graph.digest()


def test_relu_on_the_sum_stands_before_the_quantisation() -> None:
    def kinds(data: bytes) -> list[str]:
        found: list[str] = []
        edit(data, lambda model: found.extend(n.op_type for n in model.graph.node))
        return found

    assert "Conv Relu QuantizeLinear" in " ".join(kinds(good("sum")))
    assert "Conv QuantizeLinear DequantizeLinear Relu QuantizeLinear" in " ".join(kinds(good()))


@pytest.mark.parametrize("sin", SINS)
def test_each_file_breaks_one_rule(sin: str) -> None:
    rule, change, accepted = SINS[sin]
    found = violations(edit(good(), change))
    assert {v.rule for v in found} == {rule}
    assert not accepted or not any(v.refused for v in found)


def test_every_rule_has_its_file() -> None:
    assert {rule for rule, _, _ in SINS.values()} == {rule.name for rule in RULES}


@pytest.mark.parametrize("sin", ["", *SINS])
def test_the_real_parser_says_what_was_recorded(sin: str) -> None:
    parses = parser()
    data = edit(good(), SINS[sin][1]) if sin else good("sum")
    assert parses(data) == (SINS[sin][2] if sin else True)


def test_the_real_parser_takes_random_networks_that_obey() -> None:
    parses = parser()
    taken = 0
    for seed in range(20):
        graph = symmetric(chain(np.random.default_rng(seed)))
        try:
            data = write_onnx(graph, bias="float32", relu="sum")
        except UnsupportedError:
            continue
        require_tensorrt(data)
        assert parses(data), seed
        taken += 1
    assert taken > 10


def test_each_violation_is_named() -> None:
    with pytest.raises(
        UnsupportedError, match=r"node 0 QuantizeLinear 'input/QuantizeLinear': a zero point other than 0.*more"
    ):
        require_tensorrt(write_onnx(classifier(0)))
    with pytest.raises(UnsupportedError, match="'conv_bias_dq/DequantizeLinear' takes data type 6, expected int8"):
        require_tensorrt(write_onnx(symmetric(classifier(0))))


def test_what_is_no_onnx_file_is_no_verdict() -> None:
    with pytest.raises(ModelError, match="not an ONNX file"):
        violations(b"\xff" * 40)
