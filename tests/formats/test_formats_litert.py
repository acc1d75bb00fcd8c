"""The interpreter against the real LiteRT wheel, bit for bit, with each of its sets of kernels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies
from agree_kit import admitted, seeded
from strategies import MIDDLE, random_graph

from cactus_edge.errors import MismatchError, ModelError, UnsupportedError
from cactus_edge.formats.agree import RUNTIMES, agree
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import ops, rules
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor

LITERT = ("litert-ref", "litert-builtin", "litert-xnnpack")


@pytest.fixture
def ties() -> Iterator[None]:
    """Scales whose quotients are small fractions."""
    with strategies.ties():
        yield


def agreed(name: str, make: Callable[[int], Graph], count: int) -> int:
    """Networks, out of `count`, that the profile admits; requires that the wheel computes each bit for bit."""
    return admitted(seeded(make, count, 6), name)


@pytest.mark.parametrize("name", LITERT)
@pytest.mark.parametrize("kind", MIDDLE)
@pytest.mark.usefixtures("ties")
def test_each_op_agrees(kind: str, name: str) -> None:
    in_blocks = ("add", "broadcast_add", "requantize", "concat")
    least = {"sum": 25 * (name == "litert-xnnpack"), "mul": 5}.get(kind, 25)
    least = min(least, 5) if name == "litert-builtin" and kind in in_blocks else least
    assert agreed(name, lambda seed: random_graph(np.random.default_rng(seed), 1, (kind,), ends=("",)), 40) >= least


@pytest.mark.parametrize("name", LITERT)
def test_random_networks_agree(name: str) -> None:
    found = agreed(name, lambda seed: random_graph(np.random.default_rng(1000 + seed), 6), 120)
    assert found >= (15 if name == "litert-builtin" else 90)


def vectors(op: str, seed: int) -> Graph:
    """One op on many channels, so that blocks of 8 and 16 and what is left over both occur."""
    rng = np.random.default_rng(seed)
    maker = strategies.Maker(strategies.RngChoices(rng))
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(7, 40)))
    x = Tensor("x", shape, "int8", maker.scale(), maker.zero_point())
    last = maker.builder.input(x)
    maker.known.append(last)
    if op == "mean":
        out = maker.fresh((1, 1, shape[2]), x.scale * maker.scale(0.2, 2.0))
        return maker.builder.finish(maker.builder.node(ops.Mean((0, 1), True), [last], out))
    made = None
    while made is None:
        made = getattr(maker, f"make_{op}")(last, x)
    return maker.builder.finish(made)


@pytest.mark.parametrize("name", LITERT)
@pytest.mark.parametrize("op", ["mean", "depthwise_conv2d", "conv2d"])
@pytest.mark.usefixtures("ties")
def test_many_channels_agree(op: str, name: str) -> None:
    assert agreed(name, lambda seed: vectors(op, seed), 40) >= 30


def pairs(scales: tuple[float, float], zero_points: tuple[int, int], out: Tensor, act: ops.Activation) -> Graph:
    """x + REQUANTIZE(x): every code meets one other, which the second scale chooses."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (256,), "int8", scales[0], zero_points[0]))
    other = b.node(ops.Requantize(), [x], Tensor("r", (256,), "int8", scales[1], zero_points[1]))
    return b.finish(b.node(ops.Add(act), [x, other], out))


@pytest.mark.parametrize("name", LITERT)
def test_additions_of_small_fractions_agree(name: str) -> None:
    rng = np.random.default_rng(3)
    codes = np.stack([np.arange(-128, 128), rng.permutation(np.arange(-128, 128))]).astype(np.int8)
    for _ in range(120):
        q = float(rng.choice([3, 7, 11, 13, 77]))
        s1, s2, so = (float(np.float32(rng.integers(3, 13) / q)) for _ in range(3))
        z = [int(v) for v in rng.integers(-128, 128, 3)]
        act = list(ops.Activation)[int(rng.integers(4))]
        graph = pairs((s1, s2), (z[0], z[1]), Tensor("y", (256,), "int8", so, z[2]), act)
        agree(write_tflite(graph), codes, name).require()


@pytest.mark.parametrize("name", LITERT)
@pytest.mark.parametrize("row", [2, 10, 64])
def test_softmax_agrees(row: int, name: str) -> None:
    rng = np.random.default_rng(row)
    for scale in (1e-3, 0.02, 0.1, 0.37, 1.5):
        b = GraphBuilder()
        shape = (4000 // row, row)
        x = b.input(Tensor("x", shape, "int8", float(np.float32(scale)), 3))
        graph = b.finish(b.node(ops.Softmax(), [x], Tensor("y", shape, "int8", 1 / 256, -128)))
        codes = np.clip(np.rint(rng.normal(0, 25, (3, *shape))), -128, 127).astype(np.int8)
        agree(write_tflite(graph), codes, name).require()


@pytest.mark.parametrize("name", LITERT)
def test_quantise_ties_agree(name: str) -> None:
    rng = np.random.default_rng(4)
    for k in range(60):
        scale = float(np.float32(rng.choice([1.0, 0.5, 1 / 3, 1 / 7, 0.1, 0.9]) * 2.0 ** rng.integers(-6, 4)))
        b = GraphBuilder()
        x = b.input(Tensor("r", (160,), "float32"))
        q = b.node(ops.Quantize(), [x], Tensor("q", (160,), "int8", scale, int(rng.integers(-128, 128))))
        graph = b.finish(b.node(ops.Reshape(), [q], replace(b.tensor(q), name="y", shape=(10, 16))))
        real = np.float32(scale) * (rng.integers(-200, 200, (3, 160)) + rng.choice([0, 0.5, -0.5, 0.25], (3, 160)))
        values = np.nextafter(real.astype(np.float32), np.float32([-np.inf, np.inf][k % 2])) if k % 3 else real
        agree(write_tflite(graph), values.astype(np.float32), name).require()


def test_relu6_rescales_in_litert_and_is_refused_for_tflm() -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (256,), "int8", 0.125, 5))
    graph = b.finish(b.node(ops.Relu6(), [x], Tensor("y", (256,), "int8", float(np.float32(0.03)), -100)))
    codes = np.arange(-128, 128, dtype=np.int8)[np.newaxis]
    for name in LITERT:
        agree(write_tflite(graph), codes, name).require()
    with pytest.raises(UnsupportedError, match="only clamps"):
        agree(write_tflite(graph), codes, "tflm")


@pytest.mark.parametrize("name", LITERT)
def test_the_first_layer_that_differs_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside XNNPACK's part of the graph too, whose tensors cannot be read."""
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.input(Tensor("x", (4, 4, 16), "int8", 0.5, 0))
    bias, scale = ops.freeze([0] * 16, np.int32), ops.freeze([0.01] * 16, np.float32)
    for k in range(3):
        weight = ops.freeze(rng.integers(-127, 128, (16, 1, 1, 16)), np.int8)
        x = b.node(ops.Conv2d(weight, bias, scale), [x], Tensor(f"conv{k}", (4, 4, 16), "int8", 0.5 + k, 0))
    data, codes = write_tflite(b.finish(x)), rng.integers(-128, 128, (3, 4, 4, 16)).astype(np.int8)
    assert agree(data, codes, name).exact

    def wrong(self: Any, v: Any) -> Any:
        return np.clip(self.zero_point + np.rint(v * self.slope()) + 1, -128, 127).astype(np.int64)

    for rule in (rules.Requantise, rules.FloatRequantise):
        monkeypatch.setattr(rule, "apply", wrong)
    found = agree(data, codes, name)
    assert found.first_layer is not None and found.first_layer.label == "op 0 Conv2d -> 'conv0'"
    with pytest.raises(MismatchError, match="conv0"):
        found.require()


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("litert-builtin", "Conv2d", ("D", "double")),
        ("litert-builtin", "DepthwiseConv2d", ("H", "double")),
        ("litert-ref", "Dense", ("D", "float32_product")),
        ("litert-xnnpack", "Conv2d", ("S", "double")),
        ("litert-xnnpack", "Mean", ("D", "folded_count")),
        ("litert-xnnpack", "Requantize", ("D", "double")),
        ("litert-xnnpack", "Relu", ("D", "double")),
        ("litert-xnnpack", "Sub", ("D_shift20",)),
        ("litert-xnnpack", "LeakyRelu", ("D", "float32")),
        ("litert-xnnpack", "Mul", ("D", "float32")),
        ("litert-xnnpack", "Mul", ("F", "float32")),
        ("litert-ref", "Mul", ("F", "float32")),
        ("litert-builtin", "Sub", ("xnnpack",)),
        ("litert-builtin", "LeakyRelu", ("fraction8",)),
    ],
)
@pytest.mark.usefixtures("ties")
def test_a_neighbouring_rule_is_told_apart(
    name: str, kind: str, rule: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agreement is sharp enough to see each rule's nearest relative."""
    right = PROFILES[name]
    monkeypatch.setitem(right.rules, kind, rule)  # type: ignore[index]
    named = {"Conv2d": "conv2d", "DepthwiseConv2d": "depthwise_conv2d", "LeakyRelu": "leaky_relu"}
    op = named.get(kind, kind.lower())
    with pytest.raises(MismatchError):
        agreed(name, lambda seed: random_graph(np.random.default_rng(seed), 1, (op,), ends=("",)), 150)


def test_activations_that_tie_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / S = 5.5 in float32, and an odd zero point: XNNPACK rounds the sum to even, other kernels the quotient away from zero."""
    b = GraphBuilder()
    scale = float(np.float32(0.18181818723678589))
    x = b.input(Tensor("x", (4, 4, 2), "int8", scale, 0))
    weight, bias = ops.freeze(np.full((1, 1, 2), 127), np.int8), ops.freeze([0, 0], np.int32)
    act = ops.Activation.RELU_N1_TO_1
    conv = ops.DepthwiseConv2d(weight, bias, ops.freeze([1.0, 1.0], np.float32), activation=act)
    data = write_tflite(b.finish(b.node(conv, [x], Tensor("y", (4, 4, 2), "int8", scale, -5))))
    codes = np.stack([np.full((4, 4, 2), v) for v in (-128, 0, 127)]).astype(np.int8)
    for name in LITERT:
        agree(data, codes, name).require()
    kind = "DepthwiseConv2d.activation"
    monkeypatch.setitem(PROFILES["litert-xnnpack"].rules, kind, ("half_away",))  # type: ignore[index]
    assert agree(data, codes, "litert-xnnpack").mismatches > 0


def test_a_file_that_litert_refuses_is_a_model_error() -> None:
    graph = random_graph(np.random.default_rng(1), 1, ("dense",), ends=("",))
    with pytest.raises(ModelError, match="LiteRT does not accept"):
        RUNTIMES["litert"].open(write_tflite(graph)[:200], graph, False)


# Real models, real data, a real board


@pytest.fixture(scope="module")
def kws(models_folder: Path, data_folder: Path) -> tuple[bytes, Any, Any]:
    """The MLPerf Tiny keyword model, its 1,000 inputs and their labels."""
    with np.load(data_folder / "mlperf-tiny-kws" / "kws01_test.npz") as stored:
        return (models_folder / "mlperf-tiny" / "kws_ref_model.tflite").read_bytes(), stored["x"], stored["y"]


@pytest.fixture(scope="module")
def tflm_scores(kws: tuple[bytes, Any, Any]) -> Any:
    return evaluate(read_tflite(kws[0]).graph, kws[1], profile("tflm"))


@pytest.mark.parametrize(
    ("name", "right", "unlike_tflm"), [("litert-xnnpack", 902, 364), ("litert-builtin", 901, 4), ("litert-ref", 901, 9)]
)
def test_kws_equals_the_wheel(
    kws: tuple[bytes, Any, Any], tflm_scores: Any, name: str, right: int, unlike_tflm: int
) -> None:
    data, x, y = kws
    graph = read_tflite(data).graph
    ours = evaluate(graph, x, profile(name))
    session = RUNTIMES[name].open(data, graph, False)
    assert np.array_equal(np.stack([session.run(sample) for sample in x]), ours)
    assert int((ours.argmax(1) == y).sum()) == right
    assert int((ours != tflm_scores).any(1).sum()) == unlike_tflm


def test_kws_equals_the_x_cube_ai_board_log(kws: tuple[bytes, Any, Any], data_folder: Path) -> None:
    """A Nucleo-L4R5ZI with X-CUBE-AI printed its softmax outputs with three digits, rounded."""
    with open(data_folder / "device-logs" / "kws-nucleo-l4r5zi-xcubeai-v1.1.csv", newline="") as log:
        printed = np.array([[round(1000 * float(v)) for v in row[1:]] for row in list(csv.reader(log))[1:]])
    scores = evaluate(read_tflite(kws[0]).graph, kws[1], profile("x-cube-ai"))
    ours = np.rint((scores.astype(np.int64) + 128) * 1000 / 256)
    assert len(printed) == 1000
    assert int((ours == printed).all(1).sum()) == 1000


@pytest.mark.parametrize("name", LITERT)
def test_resnet_equals_the_wheel(models_folder: Path, name: str) -> None:
    data = (models_folder / "mlperf-tiny" / "pretrainedResnet_quant.tflite").read_bytes()
    rng = np.random.default_rng(8)
    noise = rng.integers(-128, 128, (6, 32, 32, 3))
    smooth = rng.integers(-128, 128, (6, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    agree(data, np.concatenate([noise, smooth]).astype(np.int8), name).require()
