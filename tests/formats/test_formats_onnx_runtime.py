"""ONNX Runtime computes what the interpreter does, bit for bit, and in integers, or the file is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_kit import (
    chains,
    classifier,
    edit,
    halve_codes,
    halves,
    initializer,
    mismatches,
    node,
    quantized_by_ort,
    real_inputs,
    vnni,
)
from strategies import random_inputs

from cactus_edge.errors import InputError, ModelError, UnsupportedError
from cactus_edge.formats.onnx import onnx_form, read_onnx, write_onnx
from cactus_edge.formats.onnx import runtime as runtime_module
from cactus_edge.formats.onnx import write as write_module
from cactus_edge.formats.onnx.runtime import OrtSession, check_runnable, optimise, require_fused
from cactus_edge.ir import ops, rules
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.graph import Graph, Tensor


@vnni
def test_random_chains_agree() -> None:
    elements = 0
    for graph in chains(0, 100):
        x = real_inputs(graph, random_inputs(np.random.default_rng(1), graph, 24))
        # Between the codes and on their ties as well.
        x[::3] += np.float32(graph.input.scale / 2)
        assert mismatches(write_onnx(graph), x) == 0
        elements += len(x) * graph.output.size
    assert elements > 5000


@vnni
def test_float_biases_are_the_same_integers() -> None:
    elements = 0
    for graph in chains(500, 30):
        try:
            data = write_onnx(graph, bias="float32")
        except UnsupportedError as error:
            assert "2^21" in error.message
            continue
        assert read_onnx(data).graph.digest() == onnx_form(graph).digest()
        assert mismatches(data, real_inputs(graph, random_inputs(np.random.default_rng(1), graph, 24))) == 0
        elements += 24 * graph.output.size
    assert elements > 1500


@vnni
def test_every_tensor_agrees() -> None:
    for graph in chains(300, 12):
        data = write_onnx(graph)
        model = read_onnx(data)
        x = real_inputs(graph, random_inputs(np.random.default_rng(2), graph, 6))
        session = OrtSession(data, model.graph, True)
        session.run_batch(x)
        for index, want in enumerate(trace(model.graph, x, profile("ort-x86"))):
            if want is not None:
                assert np.array_equal(session.tensor(index), want), model.graph.tensors[index].name


def large() -> Graph:
    """Sizes at which the kernels work in full tiles, with remainders: 17, 33 and 65 channels, dense rows of 1,625."""
    rng = np.random.default_rng(9)
    b = GraphBuilder()
    x = b.input(Tensor("x", (20, 20, 3), "int8", 1 / 64, -11))

    def weights(*shape: int) -> dict[str, Any]:
        scale = rng.uniform(0.5, 2.0, shape[0]) / (40 * np.sqrt(np.prod(shape[1:])))
        bias = rng.integers(-4000, 4000, shape[0])
        weight = rng.integers(-128, 128, shape)
        return {
            "weight": ops.freeze(weight, np.int8),
            "bias": ops.freeze(bias, np.int32),
            "weight_scale": ops.freeze(scale, np.float32),
        }

    same = ops.Padding2d(1, 1, 1, 1)
    step, relu = {"dtype": "int8", "scale": 1 / 32}, ops.Activation.RELU
    x = b.node(
        ops.Conv2d(**weights(17, 3, 3, 3), activation=relu), [x], Tensor("a", (18, 18, 17), **step, zero_point=-128)
    )
    x = b.node(ops.Conv2d(**weights(33, 1, 1, 17)), [x], Tensor("b", (18, 18, 33), **step, zero_point=9))
    depthwise = weights(33, 3, 3)
    depthwise["weight"] = ops.freeze(depthwise["weight"].transpose(1, 2, 0), np.int8)
    x = b.node(ops.DepthwiseConv2d(**depthwise, padding=same), [x], Tensor("c", (18, 18, 33), **step, zero_point=-3))
    conv = ops.Conv2d(**weights(65, 3, 3, 33), stride=(3, 3), activation=relu)
    x = b.node(conv, [x], Tensor("d", (6, 6, 65), **step, zero_point=0))
    x = b.node(ops.MaxPool((2, 2), (1, 1)), [x], Tensor("e", (5, 5, 65), **step))
    x = b.node(ops.Dense(**weights(70, 1625), activation=relu), [x], Tensor("f", (70,), **step, zero_point=-100))
    return b.finish(b.node(ops.Dense(**weights(10, 70)), [x], Tensor("g", (10,), "int8", 1 / 16, 1)))


@vnni
def test_a_network_of_full_tiles_agrees_in_every_tensor() -> None:
    graph = large()
    data = write_onnx(graph)
    model = read_onnx(data)
    x = np.random.default_rng(4).normal(0, 1, (40, 20, 20, 3)).astype(np.float32)
    session = OrtSession(data, model.graph, True)
    session.run_batch(x)
    for index, want in enumerate(trace(model.graph, x, profile("ort-x86"))):
        if want is not None:
            assert np.array_equal(session.tensor(index), want), model.graph.tensors[index].name
            assert len(np.unique(want)) > 100, "the codes vary"


@vnni
def test_one_sample_at_a_time_is_the_same() -> None:
    graph = classifier()
    data, x = write_onnx(graph), np.random.default_rng(0).normal(0, 1, (3, 4, 4, 2)).astype(np.float32)
    session = OrtSession(data, read_onnx(data).graph, False)
    assert np.array_equal(np.stack([session.run(sample) for sample in x]), session.run_batch(x))


@vnni
def test_a_swapped_rounding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_onnx(halves())
    x = np.arange(-128, 128, dtype=np.float32).reshape(1, 16, 16, 1)
    assert mismatches(data, x) == 0

    def away(acc: Any, multiplier: Any) -> Any:
        product = (acc.astype(np.float32) * multiplier.astype(np.float32)).astype(np.float64)
        return np.trunc(product + np.copysign(0.5, product))

    monkeypatch.setitem(rules.FLOAT_REQUANTISE, "F", away)  # type: ignore[index]
    assert mismatches(data, x) == 64


@vnni
def test_columns_left_in_place_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = classifier()
    x = np.random.default_rng(0).normal(0, 2, (50, 4, 4, 2)).astype(np.float32)
    assert mismatches(write_onnx(graph), x) == 0
    monkeypatch.setattr(write_module, "stored_columns", lambda weight, image: weight)
    wrong = write_onnx(graph)
    got = OrtSession(wrong, onnx_form(graph), False).run_batch(x)
    assert (got != evaluate(onnx_form(graph), x, profile("ort-x86"))).sum() > 50


@vnni
@pytest.mark.parametrize("activation", list(ops.Activation))
@pytest.mark.parametrize("zero_point", [-128, -7, 0, 127])
def test_each_activation_agrees(activation: ops.Activation, zero_point: int) -> None:
    x = np.random.default_rng(0).normal(0, 2, (50, 4, 4, 2)).astype(np.float32)
    assert mismatches(write_onnx(classifier(zero_point, activation)), x) == 0


@vnni
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_models_quantised_by_onnx_runtime_agree(tmp_path: Path, opset: int, symmetric: bool, per_channel: bool) -> None:
    data = quantized_by_ort(
        tmp_path, opset=opset, per_channel=per_channel, extra_options={"ActivationSymmetric": symmetric}
    )
    graph = read_onnx(data).graph
    kinds = [type(n.op).__name__ for n in graph.nodes]
    assert kinds == ["Quantize", "Conv2d", "MaxPool", "DepthwiseConv2d", "Reshape", "Dense", "Dequantize"]
    assert mismatches(data, np.random.default_rng(0).normal(0, 1, (200, 8, 8, 2)).astype(np.float32)) == 0
    assert read_onnx(write_onnx(graph)).graph.digest() == graph.digest()


@vnni
def test_a_relu_with_a_scale_of_its_own_agrees() -> None:
    data = edit(write_onnx(classifier(0)), halve_codes)
    graph = read_onnx(data).graph
    at = next(n for n in graph.nodes if isinstance(n.op, ops.Relu))
    assert (graph.tensors[at.inputs[0]].scale, graph.tensors[at.output].scale) == (1 / 16, 0.5)
    assert mismatches(data, np.random.default_rng(0).normal(0, 2, (200, 4, 4, 2)).astype(np.float32)) == 0


def without_bias(model: Any) -> None:
    del node(model, "Conv").input[2:]
    del node(model, "Gemm").input[2:]


def as_matrix_product(model: Any) -> None:
    """MatMul takes the weight transposed, and no bias."""
    gemm, weight = node(model, "Gemm"), initializer(model, "logits_weight")
    gemm.op_type = "MatMul"
    del gemm.input[2:], gemm.attribute[:]
    values = numpy_helper.to_array(weight).T
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), weight.name))


def untransposed(model: Any) -> None:
    gemm, weight = node(model, "Gemm"), initializer(model, "logits_weight")
    del gemm.attribute[:]
    values = numpy_helper.to_array(weight).T
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), weight.name))


def as_reshape(model: Any) -> None:
    flat = node(model, "Flatten")
    flat.op_type = "Reshape"
    flat.input.append("shape")
    del flat.attribute[:]
    value = numpy_helper.from_array(np.array([0, -1], np.int64), "")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["shape"], value=value))


def as_clip(model: Any) -> None:
    relu = node(model, "Relu")
    relu.op_type = "Clip"
    relu.input.append("zero")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))


def vector_parameters(model: Any) -> None:
    """One scale in a vector of one is a scale for all."""
    for constant in ("weight", "bias"):
        for name in ("scale", "zero_point"):
            initializer(model, f"logits_{constant}_{name}").dims.append(1)


@vnni
@pytest.mark.parametrize(
    "spelling", [without_bias, as_matrix_product, untransposed, as_reshape, as_clip, vector_parameters]
)
def test_other_spellings_agree(spelling: Callable[[Any], None]) -> None:
    data = edit(write_onnx(classifier()), spelling)
    x = np.random.default_rng(0).normal(0, 2, (50, 4, 4, 2)).astype(np.float32)
    assert mismatches(data, x) == 0
    if spelling not in (without_bias, as_matrix_product):
        assert read_onnx(data).graph.digest() == onnx_form(classifier()).digest()


@vnni
def test_files_that_survive_damage_mean_what_onnx_runtime_computes() -> None:
    """Bytes of written files are changed at random; whatever is still read must still agree."""
    rng, compared, changed = np.random.default_rng(0), 0, 0
    files = [write_onnx(graph) for graph in chains(50, 4)]
    while compared < 30:
        raw = bytearray(files[int(rng.integers(len(files)))])
        for _ in range(rng.integers(1, 4)):
            raw[int(rng.integers(len(raw)))] = int(rng.integers(256))
        try:
            graph = read_onnx(bytes(raw)).graph
            x = (graph.tensors[1].scale * rng.normal(0, 60, (8, *graph.input.shape))).astype(np.float32)
            wrong = mismatches(bytes(raw), x)
        except (ModelError, InputError):
            continue
        assert wrong == 0, rng.bit_generator.state
        compared += 1
        changed += graph.digest() not in {read_onnx(f).graph.digest() for f in files}
    assert changed > 2


# The proof that ONNX Runtime computes with integers


def test_a_convolution_that_stays_in_float_is_refused() -> None:
    """A ReLU in front of a QuantizeLinear whose zero point is not -128 keeps ONNX Runtime from fusing."""
    graph = classifier(0)

    def move(model: Any) -> None:
        for name in ("conv_before_relu", "conv_before_relu_dq"):
            model.graph.node.remove(next(n for n in model.graph.node if n.output[0] == name))
        node(model, "Relu").input[0] = node(model, "Conv").output[0]

    data = edit(write_onnx(graph), move)
    assert read_onnx(data).graph.digest() == onnx_form(graph).digest(), "the network is the same, its arithmetic is not"
    with pytest.raises(UnsupportedError, match="in integers: FusedConv 'conv_relu'"):
        OrtSession(data, read_onnx(data).graph, False)


def test_an_unoptimised_model_is_refused() -> None:
    graph = onnx_form(classifier())
    with pytest.raises(UnsupportedError, match="in integers: Conv 'conv_sum', Gemm 'logits_sum'"):
        require_fused(write_onnx(graph), graph)


def test_a_bias_that_is_no_int32_constant_is_refused() -> None:
    graph = onnx_form(classifier())

    def float_bias(model: Any) -> None:
        initializer(model, "conv_bias").data_type = onnx.TensorProto.FLOAT

    with pytest.raises(UnsupportedError, match=r"QLinearConv .* whose bias is not the network"):
        require_fused(edit(optimise(write_onnx(graph)), float_bias), graph)


def test_a_kernel_that_is_missing_is_counted() -> None:
    graph = onnx_form(classifier())
    more = replace(graph, nodes=(*graph.nodes, graph.nodes[1]))
    with pytest.raises(UnsupportedError, match="2 integer kernels for 3 convolutions"):
        require_fused(optimise(write_onnx(graph)), more)


def test_what_onnx_runtime_refuses_is_a_model_error() -> None:
    def unknown(model: Any) -> None:
        model.graph.node.append(helper.make_node("NoSuchOp", ["input"], ["z"]))

    with pytest.raises(ModelError, match="ONNX Runtime does not accept the model"):
        optimise(edit(write_onnx(classifier()), unknown))


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = classifier()
    monkeypatch.setattr(runtime_module.platform, "machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match="this machine is aarch64"):
        check_runnable(graph)
    monkeypatch.setattr(runtime_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(runtime_module, "has_vnni", lambda: False)
    with pytest.raises(UnsupportedError, match="op 0 Conv2d -> 'conv': this processor has no VNNI"):
        check_runnable(graph)
    check_runnable(halves())
    monkeypatch.setattr(runtime_module, "has_vnni", lambda: True)
    check_runnable(graph)
