"""Files of NNCF's post-training quantisation: read and equal to ONNX Runtime, or refused with what to set."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, load_from_string, numpy_helper

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.formats.onnx.runtime import OrtSession, has_vnni
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not has_vnni(), reason="the profile is that of x86-64 with VNNI"
)


def network(flatten: str) -> Any:
    """A float CNN [N, 2, 8, 8] -> [N, 5] that ends in an Identity, which gives NNCF an edge to quantise the output on."""
    rng = np.random.default_rng(11)

    def drawn(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name)

    flat = ["f2"] + (["shape"] if flatten == "Reshape" else [])
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "depthwise", group=4),
        helper.make_node("Relu", ["c2"], ["f2"], "relu2"),
        helper.make_node(flatten, flat, ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "last", transB=1),
        helper.make_node("Identity", ["y"], ["out"], "end"),
    ]
    weights = [drawn("w1", 4, 2, 3, 3), drawn("b1", 4), drawn("w2", 4, 1, 3, 3), drawn("b2", 4), drawn("w3", 5, 16)]
    weights += [drawn("b3", 5), numpy_helper.from_array(np.array([0, -1], np.int64), "shape")]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8]),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 5]),
    ]
    graph = helper.make_graph(nodes, "cnn", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def nncf() -> Iterator[Any]:
    """NNCF, which sends no telemetry from a continuous integration."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("NNCF_CI", "1")
        patch.setenv("CI", "true")
        warnings.simplefilter("ignore")
        yield pytest.importorskip("nncf", reason="files of NNCF")


def quantised(nncf: Any, preset: str, flatten: str = "Reshape", **settings: Any) -> bytes:
    rng = np.random.default_rng(1)
    samples = [{"x": rng.normal(0, 1, (1, 2, 8, 8)).astype(np.float32)} for _ in range(20)]
    made = nncf.quantize(
        network(flatten),
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset[preset],
        subset_size=20,
        advanced_parameters=nncf.AdvancedQuantizationParameters(**settings),
    )
    data: bytes = made.SerializeToString()
    return data


def integer(nncf: Any) -> dict[str, Any]:
    """The settings with which every operator becomes an integer one: they are README's."""
    parameters = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
    return {"quantize_outputs": True, "activations_quantization_params": parameters}


@pytest.fixture(scope="module", params=["PERFORMANCE", "MIXED"])
def data(request: pytest.FixtureRequest, nncf: Any) -> bytes:
    return quantised(nncf, request.param, **integer(nncf))


def inputs() -> Any:
    return np.random.default_rng(0).normal(0, 1.2, (2000, 8, 8, 2)).astype(np.float32)


def mismatches(data: bytes) -> int:
    graph = read_onnx(data).graph
    got, want = OrtSession(data, graph, False).run_batch(inputs()), evaluate(graph, inputs(), profile("ort-x86"))
    return int((got.view(np.uint32) != want.view(np.uint32)).sum())


def test_a_file_of_integers_agrees(data: bytes) -> None:
    """Codes of both signs, weights per channel, float biases, an average over what no rounding follows."""
    model = read_onnx(data)
    kinds = [type(n.op).__name__ for n in model.graph.nodes]
    assert kinds == ["Quantize", "Conv2d", "MaxPool", "DepthwiseConv2d", "Reshape", "Dense", "Dequantize"]
    assert model.unsigned and len(model.uint8) < 4, "int8 in front, uint8 behind a ReLU"
    assert mismatches(data) == 0


def test_another_weight_is_caught(data: bytes) -> None:
    """A planted fault: one code of the first convolution."""
    changed = load_from_string(data)
    weight = next(t for t in changed.graph.initializer if list(t.dims) == [4, 2, 3, 3])
    codes = numpy_helper.to_array(weight).copy()
    codes[0, 0, 0, 0] ^= 64
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    graph = read_onnx(changed.SerializeToString()).graph
    want = evaluate(graph, inputs(), profile("ort-x86"))
    assert (OrtSession(data, read_onnx(data).graph, False).run_batch(inputs()) != want).any()


def test_a_flatten_that_onnx_runtime_leaves_in_float_is_refused_and_can_be_rewritten(nncf: Any) -> None:
    data = quantised(nncf, "MIXED", "Flatten", **integer(nncf))
    graph = read_onnx(data).graph
    with pytest.raises(UnsupportedError, match="in integers: Gemm 'y'") as refused:
        OrtSession(data, graph, False)
    assert "convert" in str(refused.value.hint)
    assert mismatches(write_onnx(graph)) == 0


def test_what_nncf_does_by_itself_is_refused_by_name(nncf: Any) -> None:
    """Scales per channel in front of a depthwise convolution, and a last product that nobody rounds."""
    with pytest.raises(UnsupportedError, match=r"QuantizeLinear .*activations with a scale per channel") as refused:
        read_onnx(quantised(nncf, "PERFORMANCE"))
    assert "per_channel=False" in str(refused.value.hint)
    parameters = {k: v for k, v in integer(nncf).items() if k != "quantize_outputs"}
    with pytest.raises(
        UnsupportedError, match=r"'out' is the float32 result of the last Dense.*island at the end"
    ) as ends:
        read_onnx(quantised(nncf, "PERFORMANCE", **parameters))
    assert "quantize_outputs=True" in str(ends.value.hint)
