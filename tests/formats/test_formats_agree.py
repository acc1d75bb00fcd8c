"""The interpreter against the real TFLM wheel, bit for bit: each op, random networks, real models, real board logs."""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import MIDDLE, graphs, inputs, random_graph, random_inputs
from tflite_edit import every_op_file

from cactus_edge.errors import InputError, InstallError, MismatchError, ModelError, UnsupportedError
from cactus_edge.formats import agree as agree_module
from cactus_edge.formats.agree import RUNTIMES, agree, check_tflm
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import ops, rules
from cactus_edge.ir.arith import multiply_half_up
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.graph import Graph, Tensor


def require_every_tensor(graph: Graph, x: Any) -> None:
    """Compares all tensors of the network, not only its output, for each row of x."""
    data = write_tflite(graph)
    model = read_tflite(data)
    expected = trace(model.graph, x, profile("tflm"))
    session = RUNTIMES["tflm"].open(data, model.graph, True)
    for row, sample in enumerate(x):
        session.run(sample)
        for index, node in enumerate(model.graph.nodes):
            want = expected[node.output]
            if want is not None:
                got = session.tensor(model.file_tensors[node.output])
                assert np.array_equal(got.reshape(want[row].shape), want[row]), model.graph.label(index)


@settings(max_examples=150)
@given(data=st.data())
def test_random_networks_agree_in_every_tensor(data: st.DataObject) -> None:
    graph = data.draw(graphs(max_nodes=6))
    require_every_tensor(graph, data.draw(inputs(graph, 6)))


@pytest.mark.parametrize("kind", MIDDLE)
def test_each_op_agrees(kind: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng, 2, (kind,), ends=("",))
        require_every_tensor(graph, random_inputs(rng, graph, 6))


@pytest.mark.parametrize("runtime", ["tflm", "litert-ref", "litert-builtin"])
@pytest.mark.parametrize(
    ("s_in", "s_out", "zero_point"), [(202, 224, -114), (146 / 255, 104 / 255, -78), (237 / 7, 184 / 7, -124)]
)
def test_relu_agrees_where_its_multiplier_in_float32_is_another(
    s_in: float, s_out: float, zero_point: int, runtime: str
) -> None:
    """The TFLM wheel forms it in double, LiteRT in float32."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (256,), "int8", float(np.float32(s_in)), zero_point))
    graph = b.finish(b.node(ops.Relu(), [x], Tensor("y", (256,), "int8", float(np.float32(s_out)), -128)))
    codes = np.arange(-128, 128, dtype=np.int8)[np.newaxis]
    agree(write_tflite(graph), codes, runtime).require()
    other = replace(profile("tflm"), rules={**profile("tflm").rules, "Relu": ("D", "float32_ratio")})
    assert not np.array_equal(evaluate(graph, codes, other), evaluate(graph, codes, profile("tflm")))


def test_random_outputs_agree() -> None:
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        graph = random_graph(rng, 6)
        agree(write_tflite(graph), random_inputs(rng, graph, 12)).require()


def test_requantisation_agrees_for_all_codes_and_extreme_scales() -> None:
    codes = np.arange(-128, 128, dtype=np.int8)[np.newaxis]
    for kind in (ops.Requantize(), ops.Relu()):
        for power in np.linspace(-36, 22, 40):
            b = GraphBuilder()
            x = b.input(Tensor("x", (256,), "int8", float(np.float32(0.7)), int(power) % 11 - 5))
            scale = float(np.float32(2.0**-power))
            agree(write_tflite(b.finish(b.node(kind, [x], Tensor("y", (256,), "int8", scale, 3)))), codes).require()


@pytest.mark.parametrize("scale", [2.0**-24, 1e-3, 0.05, 0.3, 1.0, 7.9, 15.9, 16.5, 500.0])
@pytest.mark.parametrize("row", [1, 2, 10, 511])
def test_softmax_agrees(scale: float, row: int) -> None:
    rng = np.random.default_rng(row)
    b = GraphBuilder()
    x = b.input(Tensor("x", (row,), "int8", float(np.float32(scale)), 0))
    graph = b.finish(b.node(ops.Softmax(), [x], Tensor("y", (row,), "int8", 1 / 256, -128)))
    agree(write_tflite(graph), random_inputs(rng, graph, 24)).require()


def test_dense_per_channel_and_grouped_convolution_run_in_tflm() -> None:
    rng = np.random.default_rng(5)
    b = GraphBuilder()
    x = b.input(Tensor("x", (4, 4, 6), "int8", 0.5, -3))
    weight = ops.freeze(rng.integers(-127, 128, (4, 3, 3, 3)), np.int8)
    scale, bias = ops.freeze([0.01, 0.001, 0.02, 0.03], np.float32), ops.freeze([1, 2, 3, 4], np.int32)
    y = b.node(ops.Conv2d(weight, bias, scale), [x], Tensor("y", (2, 2, 4), "int8", 3.0, 5))
    weight = ops.freeze(rng.integers(-127, 128, (4, 16)), np.int8)
    graph = b.finish(b.node(ops.Dense(weight, bias, scale), [y], Tensor("z", (4,), "int8", 9.0, 1)))
    found = agree(write_tflite(graph), random_inputs(rng, graph, 40))
    assert found.exact and found.elements == 160


def test_a_swapped_rounding_is_caught_and_located(monkeypatch: pytest.MonkeyPatch) -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (256,), "int8", 1.0, 0))
    y = b.node(ops.Reshape(), [x], Tensor("same", (16, 16), "int8", 1.0, 0))
    y = b.node(ops.Requantize(), [y], Tensor("quarter", (16, 16), "int8", 4.0, 0))
    y = b.node(ops.Reshape(), [y], Tensor("flat", (256,), "int8", 4.0, 0))
    data, codes = write_tflite(b.finish(y)), np.arange(-128, 128, dtype=np.int8)[np.newaxis]
    assert agree(data, codes).exact
    monkeypatch.setitem(rules.REQUANTISE, "D", multiply_half_up)  # type: ignore[index]
    found = agree(data, codes)
    # Halved to odd y < 0 first, half of the negative codes tie at the second rounding: away from zero in the wheel.
    assert (found.mismatches, found.differing_inputs, found.max_difference) == (64, 1, 1.0)
    first = found.first_layer
    assert first is not None and first.label == "op 1 Requantize -> 'quarter'"
    assert (first.node, first.position, first.expected, first.got) == (1, (0, 1), -31, -32)
    with pytest.raises(MismatchError, match="op 1 Requantize -> 'quarter': 64 of 256 elements differ by at most 1"):
        found.require()


def test_an_argmax_that_moves_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data, x = every_op_file(), random_inputs(np.random.default_rng(0), read_tflite(every_op_file()).graph, 8)
    true = evaluate(read_tflite(data).graph, x, profile("tflm"))
    monkeypatch.setattr(agree_module, "evaluate", lambda *_: np.roll(true, 1, axis=1))
    found = agree(data, x)
    assert found.argmax_flips > 0 and found.first_layer is None, "no layer differs: the fault is behind them"


def test_no_inputs_agree_trivially() -> None:
    found = agree(every_op_file(), np.zeros((0, 6, 7, 2), np.float32))
    assert found.exact and (found.inputs, found.elements) == (0, 0)


def test_float_data_for_an_int8_file_are_quantised_as_the_profile_says() -> None:
    graph = random_graph(np.random.default_rng(4), 3, ("relu",), ends=("",))
    real = np.random.default_rng(0).normal(0, 1, (5, *graph.input.shape)).astype(np.float32)
    assert agree(write_tflite(graph), real).exact


# Refusals


def test_what_tflm_cannot_run_is_refused_by_name() -> None:
    def one(op: ops.Op, shape: tuple[int, ...], out: tuple[int, ...], count: int = 1) -> Graph:
        b = GraphBuilder()
        x = b.input(Tensor("x", shape, "int8", 1 / 256, -128))
        return b.finish(b.node(op, [x] * count, Tensor("y", out, "int8", 1 / 256, -128)))

    for graph, named in [
        (one(ops.Pad(((0, 1),) * 5), (1,) * 5, (2,) * 5), "op 0 Pad.*pads 6 axes"),
        (one(ops.Concat(0), (1,) * 6, (2, 1, 1, 1, 1, 1), 2), "op 0 Concat.*joins tensors of 7 axes"),
        (one(ops.Concat(0), (1,), (11,), 11), "op 0 Concat.*joins 11 tensors"),
        (one(ops.Softmax(), (512,), (512,)), "op 0 Softmax.*rows of 512"),
    ]:
        with pytest.raises(UnsupportedError, match=named):
            check_tflm(graph)
        with pytest.raises(UnsupportedError, match=named):
            agree(write_tflite(graph), np.zeros((1, *graph.input.shape), np.int8))


def test_a_model_that_the_wheel_refuses_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agree_module, "TFLM_CONCAT_INPUTS", 99)
    b = GraphBuilder()
    x = b.input(Tensor("x", (1,), "int8", 1.0, 0))
    data = write_tflite(b.finish(b.node(ops.Concat(0), [x] * 12, Tensor("y", (12,), "int8", 1.0, 0))))
    with pytest.raises(ModelError, match="does not accept the model"):
        agree(data, np.zeros((1, 1), np.int8))


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(agree_module.metadata, "version", missing)
    with pytest.raises(InstallError, match="tflite-micro"):
        agree(every_op_file(), np.zeros((1, 6, 7, 2), np.float32))


def test_unusable_data_and_runtimes_are_named() -> None:
    with pytest.raises(InputError, match="unknown runtime 'tflmm'"):
        agree(every_op_file(), np.zeros((1, 6, 7, 2), np.float32), runtime="tflmm")
    with pytest.raises(InputError, match="shape"):
        agree(every_op_file(), np.zeros((1, 6, 7, 3), np.float32))
    with pytest.raises(InputError, match="takes float32"):
        agree(every_op_file(), np.zeros((1, 6, 7, 2), np.int8))


# Real models, real data, real boards


@pytest.fixture(scope="module")
def kws(models_folder: Path, data_folder: Path) -> tuple[bytes, Any, Any]:
    """The MLPerf Tiny keyword model, its 1,000 inputs and their labels."""
    with np.load(data_folder / "mlperf-tiny-kws" / "kws01_test.npz") as stored:
        return (models_folder / "mlperf-tiny" / "kws_ref_model.tflite").read_bytes(), stored["x"], stored["y"]


@pytest.fixture(scope="module")
def kws_scores(kws: tuple[bytes, Any, Any]) -> Any:
    return evaluate(read_tflite(kws[0]).graph, kws[1], profile("tflm"))


def test_kws_is_right_on_901_of_1000(kws: tuple[bytes, Any, Any], kws_scores: Any) -> None:
    assert int((kws_scores.argmax(1) == kws[2]).sum()) == 901


def test_kws_equals_the_wheel(kws: tuple[bytes, Any, Any], kws_scores: Any) -> None:
    data, x, _ = kws
    session = RUNTIMES["tflm"].open(data, read_tflite(data).graph, False)
    assert np.array_equal(np.stack([session.run(sample) for sample in x]), kws_scores)


def test_kws_equals_the_board_log(data_folder: Path, kws_scores: Any) -> None:
    """A Nucleo-L4R5ZI printed its softmax outputs with three digits, truncated."""
    with open(data_folder / "device-logs" / "kws-nucleo-l4r5zi-tflm-v0.5.csv", newline="") as log:
        printed = np.array([[round(1000 * float(v)) for v in row[1:]] for row in list(csv.reader(log))[1:]])
    ours = (kws_scores.astype(np.int64) + 128) * 1000 // 256
    assert len(printed) == 1000
    assert int((ours == printed).all(1).sum()) == 1000


def test_resnet_equals_the_wheel(models_folder: Path) -> None:
    data = (models_folder / "mlperf-tiny" / "pretrainedResnet_quant.tflite").read_bytes()
    rng = np.random.default_rng(8)
    noise = rng.integers(-128, 128, (6, 32, 32, 3))
    smooth = rng.integers(-128, 128, (6, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    found = agree(data, np.concatenate([noise, smooth]).astype(np.int8))
    found.require()
    assert found.elements == 120
