"""Weights of 4 bits in .tflite files: read, written, refused, and computed by the real runtimes bit for bit as int8 ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from agree_kit import admitted, seeded
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from int4_kit import KINDS, layer, narrow, widened
from strategies import graphs, random_inputs
from tflite_edit import edited, operand, operator

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.agree import RUNTIMES, agree
from cactus_edge.formats.nibbles import pack_nibbles
from cactus_edge.formats.onnx.read.model import read_onnx
from cactus_edge.formats.onnx.write import write_onnx
from cactus_edge.formats.tflite import explicit_padding, read_tflite, write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.spec import check
from cactus_edge.verify import tflite_tensors
from cactus_edge.verify.tflite_tensors import unpack_nibbles

TFLITE = sorted(name for name, row in PROFILES.items() if row.reads == "tflite")
SHOWN = {
    "tflm": {"conv2d", "depthwise_conv2d", "dense"},
    "litert-ref": {*KINDS} - {"depthwise_conv2d"},
    "litert-builtin": set(KINDS),
    "litert-xnnpack": set(KINDS),
}
"""Which layers each profile was shown to run in 4 bits; none under any other."""


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=33))
def test_packing_and_unpacking_are_inverse(codes: list[int]) -> None:
    packed = pack_nibbles(np.array(codes, np.int8))
    assert packed.dtype == np.uint8 and len(packed) == (len(codes) + 1) // 2
    assert unpack_nibbles(packed, len(codes)).tolist() == codes


def test_the_low_half_comes_first() -> None:
    """-7 is 1001, 3 is 0011, -1 is 1111; the last half byte of three is no weight, whatever it holds."""
    assert pack_nibbles(np.array([-7, 3, -1], np.int8)).tolist() == [0x39, 0x0F]
    assert unpack_nibbles(np.array([0x39, 0xAF], np.uint8), 3).tolist() == [-7, 3, -1]


@pytest.mark.parametrize("code", [-9, 8, 127])
def test_a_code_that_does_not_fit_is_not_packed(code: int) -> None:
    with pytest.raises(OverflowError, match=r"expected \[-8, 7\]"):
        pack_nibbles(np.array([code], np.int8))


@settings(max_examples=25)
@given(graph=graphs(max_nodes=4, ops=("conv2d", "depthwise_conv2d", "dense")))
def test_reading_what_was_written_is_the_identity(graph: Graph) -> None:
    packed = explicit_padding(narrow(graph))
    data = write_tflite(packed)
    assert read_tflite(data).graph.digest() == packed.digest()
    assert write_tflite(read_tflite(data).graph) == data


def test_the_width_is_in_the_digest_and_not_in_what_is_computed() -> None:
    graph = layer("conv2d", 3)
    assert graph.digest() != widened(graph).digest()
    x = random_inputs(np.random.default_rng(0), graph, 8)
    for name in SHOWN:
        row = profile(name)
        if name != "litert-xnnpack":  # there the two widths run on kernels that round otherwise
            assert np.array_equal(evaluate(graph, x, row), evaluate(widened(graph), x, row))


def test_weights_take_half_the_bytes() -> None:
    graph = layer("conv2d", 3)
    (node,) = graph.nodes
    assert isinstance(node.op, ops.Conv2d)
    saved = len(write_tflite(widened(graph))) - len(write_tflite(graph))
    assert abs(saved - node.op.weight.size // 2) < 32  # buffers are padded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHOWN)
def test_the_wheel_computes_what_the_profile_says(name: str, kind: str) -> None:
    found = admitted(seeded(lambda seed: layer(kind, seed), 16, 8), name)
    # One output makes one scale of a scale for each; XNNPACK's dense and TFLM's depthwise layers need even channels.
    least = 4 if (name, kind[:5]) in (("litert-xnnpack", "dense"), ("tflm", "depth")) else 14
    assert found >= least if kind in SHOWN[name] else found < 5


@pytest.mark.parametrize("name", TFLITE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_shown_is_refused_by_name(name: str, kind: str) -> None:
    graph = next(g for g in (layer(kind, seed) for seed in range(40)) if _several(g))
    if kind in SHOWN.get(name, ()):
        return
    with pytest.raises(UnsupportedError) as refusal:
        lower(graph, profile(name))
    assert "'y'" in refusal.value.message or name == "tinyengine"
    if name in SHOWN:
        assert "8 bits" in refusal.value.hint


def _several(graph: Graph) -> bool:
    """Several outputs, and an even number of input channels, which alone is no reason to refuse."""
    return graph.output.shape[-1] > 1 and graph.input.shape[-1] % 2 == 0


@pytest.mark.parametrize(("name", "kind"), [("tflm", "depthwise_conv2d"), ("litert-xnnpack", "dense")])
def test_odd_rows_are_refused(name: str, kind: str) -> None:
    graph = next(g for g in (layer(kind, seed) for seed in range(40)) if g.input.shape[-1] % 2)
    with pytest.raises(UnsupportedError, match=r"'y'.* an odd number, was not shown equal") as refusal:
        lower(graph, profile(name))
    assert "8 bits" in refusal.value.hint
    lower(widened(graph), profile(name))


def _swapped(data: Any, count: int) -> Any:
    return unpack_nibbles(data >> 4 | data << 4, count)


def _unsigned(data: Any, count: int) -> Any:
    return unpack_nibbles(data, count) & 7


def _tail(data: Any, count: int) -> Any:
    return unpack_nibbles(data, count + count % 2)[-count:]


@pytest.mark.parametrize("fault", [_swapped, _unsigned, _tail])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_planted_faults_in_the_reader_show(runtime: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if RUNTIMES[runtime].profile not in SHOWN:
        pytest.skip("reads no weights of 4 bits")
    monkeypatch.setattr(tflite_tensors, "unpack_nibbles", fault)
    found = []
    for graph in (layer("conv2d", seed) for seed in range(14)):
        (node,) = graph.nodes
        assert isinstance(node.op, ops.Conv2d)
        if node.op.weight.size % 2 or fault is not _tail:
            found.append(agree(write_tflite(graph), random_inputs(np.random.default_rng(1), graph, 8), runtime))
    assert found and not all(f.exact for f in found)


Change = Callable[[Any], None]


def _weight(**values: Any) -> Change:
    def change(model: Any) -> None:
        for name, value in values.items():
            setattr(operand(model, "CONV_2D", 1), name, value)

    return change


def _quantised(**values: Any) -> Change:
    def change(model: Any) -> None:
        for name, value in values.items():
            setattr(operand(model, "CONV_2D", 1).quantization, name, value)

    return change


def _cut(by: int) -> Change:
    def change(model: Any) -> None:
        buffer = model.buffers[operand(model, "CONV_2D", 1).buffer]
        buffer.data = np.resize(buffer.data, len(buffer.data) + by)

    return change


def _activation(model: Any) -> None:
    model.subgraphs[0].tensors[operator(model, "CONV_2D").outputs[0]].type = schema.TensorType.INT4


def _bias(model: Any) -> None:
    operand(model, "CONV_2D", 2).type = schema.TensorType.INT4


SINS: dict[str, tuple[Change, str]] = {
    "a_byte_short": (_cut(-1), "bytes for INT4"),
    "a_byte_long": (_cut(1), "bytes for INT4"),
    "said_to_be_int8": (_weight(type=schema.TensorType.INT8), "bytes for INT8"),
    "said_to_be_int2": (_weight(type=schema.TensorType.INT2), "is INT2; expected INT8"),
    "said_to_be_uint4": (_weight(type=schema.TensorType.UINT4), "is UINT4; expected INT8"),
    "zero_point": (_quantised(zeroPoint=np.full(24, 1, np.int64)), "zero point"),
    "no_scales": (_weight(quantization=None), "a quantised weight"),
    "int4_activation": (_activation, "INT4; expected INT8 or INT16"),
    "int4_bias": (_bias, "is INT4; expected INT32"),
}


@pytest.mark.parametrize("sin", SINS)
def test_files_with_one_sin_are_refused(sin: str) -> None:
    change, named = SINS[sin]
    graph = next(g for g in (layer("conv2d", seed) for seed in range(200)) if g.output.shape[-1] == 24)
    with pytest.raises(ModelError) as refusal:
        read_tflite(edited(write_tflite(graph), change))
    assert named in refusal.value.message


@pytest.mark.parametrize(("bits", "named"), [(2, "of 2 bits, expected 4"), (4, r"weights in \[8, 8\] of 4 bits")])
def test_a_graph_with_weights_that_no_file_holds_is_refused(bits: int, named: str) -> None:
    graph = layer("dense", 1)
    (node,) = graph.nodes
    assert isinstance(node.op, ops.Dense)
    weight = ops.freeze(np.full_like(node.op.weight, 8), np.int8)
    with pytest.raises(ModelError, match=named):
        check(replace(graph, nodes=(replace(node, op=replace(node.op, weight=weight, weight_bits=bits)),)))


def test_onnx_stores_a_byte_each() -> None:
    graph = layer("conv2d", 3)
    wide, packed = (read_onnx(write_onnx(g)).graph for g in (widened(graph), graph))
    assert packed.digest() == wide.digest()
    assert {getattr(node.op, "weight_bits", 8) for node in packed.nodes} == {8}
