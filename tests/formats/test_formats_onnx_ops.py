"""Sums, joins, averages and rescalings in ONNX Runtime, both forms and both kinds of codes, bit for bit, or refused by name."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_kit import branched, classifier, edit, initializer, mismatches, node, real_inputs, residual, vnni
from onnx_models import File
from strategies import random_inputs
from test_formats_onnx_tensorrt import symmetric

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.onnx import onnx_form, read_onnx, write_onnx
from cactus_edge.formats.onnx.runtime import OrtSession
from cactus_edge.formats.onnx.tensorrt import read_tensorrt
from cactus_edge.formats.read import graph_for, read_for
from cactus_edge.ir import ops
from cactus_edge.ir import rules as rules_module
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.binary import FusedAddRule
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.profile import UINT8


@vnni
def test_random_networks_with_branches_agree() -> None:
    kinds, elements = set(), 0
    for graph, data in branched(0, 60):
        assert read_onnx(data).graph.digest() == onnx_form(graph).digest()
        x = random_inputs(np.random.default_rng(1), graph, 24)
        x = x if graph.input.dtype == "float32" else real_inputs(graph, x)
        assert mismatches(data, x[np.isfinite(x).reshape(len(x), -1).all(1)]) == 0
        elements += len(x) * graph.output.size
        kinds |= {type(n.op).__name__ for n in graph.nodes}
    assert {"Add", "Concat", "Mean", "Relu", "MaxPool", "Dense", "Conv2d"} <= kinds
    assert elements > 3000


def pairs(scales: tuple[float, float, float], zero_points: tuple[int, int, int]) -> tuple[bytes, Any]:
    """A network that adds channel 0 to channel 1 (cut out by convolutions), and all 65,536 pairs of input codes.

    The convolutions scale by 1, so that every pair of codes is added that their zero points leave in range.
    """
    b = GraphBuilder()
    x = b.input(Tensor("x", (256, 256, 2), "int8", 1.0, 0))
    parts = []
    for i in range(2):
        weight = np.zeros((1, 1, 1, 2), np.int8)
        weight[..., i] = 1
        conv = ops.Conv2d(ops.freeze(weight, np.int8), ops.freeze([0], np.int32), ops.freeze([scales[i]], np.float32))
        parts.append(b.node(conv, [x], Tensor(f"p{i}", (256, 256, 1), "int8", scales[i], zero_points[i])))
    data = write_onnx(b.finish(b.node(ops.Add(), parts, Tensor("y", (256, 256, 1), "int8", scales[2], zero_points[2]))))
    codes = np.arange(-128, 128, dtype=np.float32)
    return data, np.stack(np.meshgrid(codes, codes, indexing="ij"), -1)[np.newaxis]


@vnni
def test_sums_agree_on_all_pairs() -> None:
    rng = np.random.default_rng(2)
    for _ in range(12):
        s = [float(np.float32(np.exp(v))) for v in rng.uniform(-1, 1, 2)]
        out = float(np.float32(max(s) * np.exp(rng.uniform(-1, 2))))
        z = [int(v) for v in rng.integers(-128, 128, 3)]
        assert mismatches(*pairs((s[0], s[1], out), (z[0], z[1], z[2]))) == 0


@vnni
def test_sums_on_signed_codes_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the same formula without the move to uint8. It rounds otherwise for a pair in some 100,000."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(16):
        s = [float(np.float32(np.exp(v))) for v in rng.uniform(-3, 0, 2)]
        z = [int(v) for v in rng.integers(-128, 128, 3)]
        files.append(pairs((s[0], s[1], float(np.float32(max(s) * np.exp(rng.uniform(-1, 2))))), (z[0], z[1], z[2])))
    assert sum(mismatches(*f) for f in files) == 0

    def signed(self: FusedAddRule, x1: Any, x2: Any) -> Any:
        (r1, r2), (z1, z2) = self.ratios, self.zero_points
        constant = float(np.float32(self.zero_point) - np.float32(z1 * r1 + float(np.float32(z2 * r2))))
        inner = (np.asarray(x2, np.float64) * r2 + constant).astype(np.float32).astype(np.float64)
        return np.rint(np.clip((np.asarray(x1, np.float64) * r1 + inner).astype(np.float32), -128, 127)).astype(
            np.int64
        )

    monkeypatch.setattr(FusedAddRule, "apply", signed)
    assert sum(mismatches(*f) for f in files) > 0


def rescaled() -> tuple[bytes, Any]:
    """A ReLU from step 1 to step 2, on all codes: every odd one is a tie."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (16, 16, 1), "int8", 1.0, 0))
    data = write_onnx(b.finish(b.node(ops.Relu(), [x], Tensor("y", (16, 16, 1), "int8", 2.0, 1))))
    return data, np.arange(-128, 128, dtype=np.float32).reshape(1, 16, 16, 1)


@vnni
def test_a_rescaling_that_rounds_otherwise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mismatches(*rescaled()) == 0
    monkeypatch.setattr(rules_module.np, "rint", lambda v: np.floor(v + np.float32(0.5)))
    assert mismatches(*rescaled()) == 32


@vnni
def test_one_rounding_instead_of_two_is_refused() -> None:
    """ONNX Runtime merges QuantizeLinear, DequantizeLinear and another QuantizeLinear behind them."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (16, 16, 1), "int8", 1.0, 0))
    graph = b.finish(b.node(ops.Requantize(), [x], Tensor("y", (16, 16, 1), "int8", 2.0, 1)))
    with pytest.raises(UnsupportedError, match=r"Requantize .*cannot be kept exact"):
        write_onnx(graph)

    def drop(m: Any) -> None:
        relu = node(m, "Relu")
        reader = next(n for n in m.graph.node if relu.output[0] in n.input)
        reader.input[0] = relu.input[0]
        m.graph.node.remove(relu)

    with pytest.raises(UnsupportedError, match="whose two roundings ONNX Runtime makes one"):
        read_onnx(edit(rescaled()[0], drop))


FORMS = [("QDQ", "QUInt8", True), ("QOperator", "QUInt8", True), ("QOperator", "QInt8", False)]


@vnni
@pytest.mark.parametrize(("form", "codes", "join"), FORMS, ids=lambda v: str(v))
@pytest.mark.parametrize("per_channel", [False, True])
def test_residual_networks_quantised_by_onnx_runtime_agree(
    tmp_path: Path, form: str, codes: str, join: bool, per_channel: bool
) -> None:
    data = residual(tmp_path, form, codes, join, per_channel=per_channel)
    model = read_onnx(data)
    kinds = {type(n.op).__name__ for n in model.graph.nodes}
    assert {"Conv2d", "MaxPool", "Concat", "Mean", "Dense"} | ({"Add"} if join else set()) <= kinds
    assert model.unsigned == (codes == "QUInt8")
    x = np.random.default_rng(0).normal(0, 1.2, (1000, 8, 8, 2)).astype(np.float32)
    assert mismatches(data, x) == 0
    session = OrtSession(data, model.graph, True)
    session.run_batch(x[:20])
    for index, want in enumerate(trace(model.graph, x[:20], profile("ort-x86"))):
        if want is not None and (got := session.tensor(index)) is not None:
            assert np.array_equal(got, want), model.graph.tensors[index].name
    assert agree(data, x[:5], "onnxruntime").exact


@vnni
def test_int8_branches_that_onnx_runtime_leaves_in_float_are_refused(tmp_path: Path) -> None:
    data = residual(tmp_path, "QDQ", "QInt8")
    with pytest.raises(UnsupportedError, match="in integers: Conv 'r1', Conv 'c2', Add 'r2'"):
        OrtSession(data, read_onnx(data).graph, False)
    written = write_onnx(read_onnx(data).graph)
    assert mismatches(written, np.random.default_rng(0).normal(0, 1, (100, 8, 8, 2)).astype(np.float32)) == 0


@vnni
def test_both_kinds_of_codes_are_one_graph(tmp_path: Path) -> None:
    """The same network in uint8 and, written by us, in int8: the same outputs."""
    data = residual(tmp_path, "QOperator", "QUInt8")
    graph = read_onnx(data).graph
    written = write_onnx(graph)
    x = np.random.default_rng(1).normal(0, 1, (200, 8, 8, 2)).astype(np.float32)
    a, b = (OrtSession(d, read_onnx(d).graph, False).run_batch(x) for d in (data, written))
    assert np.array_equal(a, b)


def exported_by_torch(per_channel: bool) -> bytes:
    """A small CNN with simulated quantisation as torch's exporter writes it: weights and biases in float32."""
    torch = pytest.importorskip("torch", reason="the exporter is torch's")
    functional, generator = torch.nn.functional, torch.Generator().manual_seed(0)

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense = torch.nn.Conv2d(2, 4, 3), torch.nn.Linear(36, 5)
            with torch.no_grad():
                for p in self.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
            # Fixed numbers, so that the exporter writes them as constants.
            self.scales = [
                w.detach().abs().flatten(1).max(1).values / 127 for w in (self.conv.weight, self.dense.weight)
            ]

        def weight(self, w: Any, scale: Any) -> Any:
            if per_channel:
                return torch.fake_quantize_per_channel_affine(
                    w, scale, torch.zeros(len(w), dtype=torch.int32), 0, -128, 127
                )
            return torch.fake_quantize_per_tensor_affine(w, 0.011, 0, -128, 127)

        def forward(self, x: Any) -> Any:
            x = torch.fake_quantize_per_tensor_affine(x, 0.03, 3, -128, 127)
            x = torch.relu(functional.conv2d(x, self.weight(self.conv.weight, self.scales[0]), self.conv.bias))
            x = functional.max_pool2d(torch.fake_quantize_per_tensor_affine(x, 0.02, -128, -128, 127), 2)
            x = torch.flatten(torch.fake_quantize_per_tensor_affine(x, 0.02, -128, -128, 127), 1)
            x = torch.fake_quantize_per_tensor_affine(x, 0.02, -128, -128, 127)
            x = functional.linear(x, self.weight(self.dense.weight, self.scales[1]), self.dense.bias)
            return torch.fake_quantize_per_tensor_affine(x, 0.1, -7, -128, 127)

    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is the old one, which needs no further package
        torch.onnx.export(
            *(Network().eval(), torch.zeros(1, 2, 8, 8), written),
            opset_version=13,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )
    return written.getvalue()


@vnni
@pytest.mark.parametrize("per_channel", [False, True])
def test_networks_exported_by_torch_agree(per_channel: bool) -> None:
    data = exported_by_torch(per_channel)
    graph = read_onnx(data).graph
    assert [type(n.op).__name__ for n in graph.nodes][1:-1] == ["Conv2d", "MaxPool", "Reshape", "Dense"]
    assert mismatches(data, np.random.default_rng(0).normal(0, 1.2, (2000, 8, 8, 2)).astype(np.float32)) == 0


def odd_bias(m: Any) -> None:
    """Half-way between two multiples of its scale, and anywhere."""
    scale = np.float32(1 / 32) * np.float32([0.01, 0.02, 0.003])
    initializer(m, "conv_bias").raw_data = (scale * np.float32([100.5, -51.5, 7.3])).astype(np.float32).tobytes()


@vnni
def test_a_float_bias_is_rounded_as_onnx_runtime_does_it() -> None:
    data = edit(write_onnx(classifier(0), bias="float32"), odd_bias)
    model = read_onnx(data)
    assert model.rounded and not read_onnx(write_onnx(classifier(0), bias="float32")).rounded
    op = model.graph.nodes[1].op
    assert isinstance(op, ops.Conv2d) and op.bias.tolist() == [100, -52, 7]
    assert mismatches(data, np.random.default_rng(0).normal(0, 2, (200, 4, 4, 2)).astype(np.float32)) == 0
    with pytest.raises(UnsupportedError, match="TensorRT does not round it"):
        read_tensorrt(edit(write_onnx(symmetric(classifier(0)), bias="float32"), odd_bias))


def test_an_int8_sum_in_qoperator_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=r"QLinearAdd .*int8 sum or product, which ONNX Runtime rounds in another way"
    ):
        read_onnx(residual(tmp_path, "QOperator", "QInt8"))


def test_uint8_codes_are_refused_where_nothing_was_shown(tmp_path: Path) -> None:
    data, arm = residual(tmp_path, "QDQ", "QUInt8", join=False), profile("ort-arm64")
    assert read_for(data, profile("ort-x86")).digest() == read_for(data, arm).digest()
    with pytest.raises(UnsupportedError, match="activations are uint8"):
        read_for(data, replace(arm, rules={k: v for k, v in arm.rules.items() if k != UINT8}))


def joined(mean: bool) -> Graph:
    """Two layers on one input that join, and an average of the whole; or their mean alone, of one of them."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (2, 2, 3), "int8", 0.5, 3))
    ends = []
    for i in range(1 if mean else 2):
        weight = ops.freeze(np.arange(-6, 6).reshape(4, 1, 1, 3) * (i + 1), np.int8)
        conv = ops.Conv2d(weight, ops.freeze(np.arange(4), np.int32), ops.freeze([0.01] * 4, np.float32))
        ends.append(b.node(conv, [x], Tensor(f"c{i}", (2, 2, 4), "int8", 0.25, -5)))
    if mean:
        return b.finish(b.node(ops.Mean((0, 1), True), ends, Tensor("y", (1, 1, 4), "int8", 0.25, -5)))
    both = b.node(ops.Concat(2), ends, Tensor("both", (2, 2, 8), "int8", 0.25, -5))
    return b.finish(b.node(ops.AvgPool((2, 2), (2, 2)), [both], Tensor("y", (1, 1, 8), "int8", 0.25, -5)))


def test_what_was_shown_on_uint8_codes_is_refused_on_int8_ones() -> None:
    """On aarch64, where int8 codes stay what they are; on x86-64 ONNX Runtime moves them itself."""
    arm, data = profile("ort-arm64"), write_onnx(joined(False))
    assert read_onnx(data).unsigned and not read_onnx(data).signed
    lower(read_for(data, arm), arm)
    data = write_onnx(joined(True))
    assert read_onnx(data).signed and not read_onnx(data).unsigned
    assert read_for(data, profile("ort-x86")).digest() == read_onnx(data).graph.digest()
    with pytest.raises(UnsupportedError, match="Mean -> 'y': on int8 codes it was not shown equal") as refused:
        read_for(data, arm)
    assert "uint8" in refused.value.hint


def test_codes_of_both_signs_are_refused_where_each_was_shown_alone() -> None:
    model, arm = read_onnx(write_onnx(joined(False))), profile("ort-arm64")
    mixed = replace(model, uint8=model.uint8 - {max(model.uint8)})
    assert graph_for(mixed, profile("ort-x86")) is model.graph
    with pytest.raises(UnsupportedError, match="activations are int8 and uint8"):
        graph_for(mixed, arm)


@vnni
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_uint8_weights_agree_where_they_are_symmetric(tmp_path: Path, form: str) -> None:
    from onnxruntime.quantization import QuantType

    data = residual(tmp_path, form, "QUInt8", weight_type=QuantType.QUInt8)
    assert mismatches(data, np.random.default_rng(0).normal(0, 1.2, (500, 8, 8, 2)).astype(np.float32)) == 0
    wide = {"weight_type": QuantType.QUInt8, "extra_options": {"WeightSymmetric": False}, "per_channel": False}
    with pytest.raises(UnsupportedError, match=r"weights from .* around their zero point") as refused:
        read_onnx(residual(tmp_path, form, "QUInt8", **wide))
    assert "WeightSymmetric" in str(refused.value.hint)


def as_mean(m: Any) -> None:
    node(m, "GlobalAveragePool").op_type = "ReduceMean"


def as_difference(m: Any) -> None:
    node(m, "Add").op_type = "Sub"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_mean, "ReduceMean.*which ONNX Runtime sums in float"),
        (as_difference, "Sub.*which ONNX Runtime computes in float"),
    ],
)
def test_what_is_computed_in_float_is_refused(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"node .*{message}"):
        read_onnx(edit(residual(tmp_path, "QDQ", "QInt8"), change))


def test_ratios_beyond_what_was_shown_are_refused() -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (2, 2, 2), "int8", 1.0, 0))
    graph: Graph = b.finish(b.node(ops.Add(), [x, x], Tensor("y", (2, 2, 2), "int8", 4096.0, 0)))
    with pytest.raises(UnsupportedError, match=r"Add.*ratios from"):
        evaluate(graph, np.zeros((1, 2, 2, 2), np.int8), profile("ort-x86"))


def quantised_cnn(folder: Path, batch: str | int, prepared: bool) -> bytes:
    """Convolution, batch normalisation, ReLU, average pool, reshape, dense layer through `quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rng = np.random.default_rng(4)
    f = File((2, 8, 8), batch=batch)
    weight = [f.constant(n, rng.normal(0, 0.4, s).astype(np.float32)) for n, s in (("w", (4, 2, 3, 3)), ("b", 4))]
    norm = [f.constant(f"n{i}", np.abs(rng.normal(1, 0.3, 4)).astype(np.float32)) for i in range(4)]
    value = f.node("BatchNormalization", [f.node("Conv", ["input", *weight], "c"), *norm], "n")
    value = f.node("AveragePool", [f.node("Relu", [value], "r")], "a", kernel_shape=[2, 2], strides=[2, 2])
    value = f.node("Reshape", [value, f.constant("s", np.array([batch if batch == 1 else 0, -1], np.int64))], "f")
    dense = f.constant("v", rng.normal(0, 0.3, (36, 3)).astype(np.float32))
    before, after = folder / "float.onnx", folder / "int8.onnx"
    before.write_bytes(f.bytes(f.node("MatMul", [value, dense], "y")))
    if prepared:
        quant_pre_process(str(before), str(before), skip_symbolic_shape=True)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = [{"input": rng.normal(0, 1, (1, 2, 8, 8)).astype(np.float32)} for _ in range(16)]

        def get_next(self) -> Any:
            return self.batches.pop() if self.batches else None

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(before, after, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
    return after.read_bytes()


@vnni
@pytest.mark.parametrize("batch", ["N", 1])
def test_a_folded_batch_norm_and_either_batch_agree(tmp_path: Path, batch: str | int) -> None:
    data = quantised_cnn(tmp_path, batch, prepared=True)
    graph = read_onnx(data).graph
    assert [type(n.op).__name__ for n in graph.nodes[1:-1]] == ["Conv2d", "AvgPool", "Reshape", "Dense"]
    session = OrtSession(data, graph, False)
    for x in np.random.default_rng(0).normal(0, 1.2, (50, 1, 8, 8, 2)).astype(np.float32):
        assert np.array_equal(session.run_batch(x), evaluate(graph, x, profile("ort-x86")))


def test_a_batch_norm_that_nobody_folded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="the operator BatchNormalization") as refused:
        read_onnx(quantised_cnn(tmp_path, "N", prepared=False))
    assert "quant_pre_process" in refused.value.hint
