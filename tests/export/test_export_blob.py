"""The canonical blob: its format is the same law in Python and C, it is a function of the graph, and it refuses what C cannot do."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import IN_C, graphs

from cactus_edge.errors import CactusError, ModelError, UnsupportedError
from cactus_edge.formats.c.blob import blob_digest, build, op_nodes, to_blob
from cactus_edge.formats.c.blob_format import (
    COMMON,
    CONSTANTS,
    HEADER,
    HEADER_WORDS,
    MAGIC,
    PACKED,
    RECORDS,
    VERSION,
    Kind,
    parse,
)
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor, rename
from cactus_edge.resources import data_path

TFLM = profile("tflm")


def conv_graph(weight: int = 3, bias: int = 7, z_in: int = -5, scale: float = 0.5, dilation: int = 1) -> Graph:
    """One convolution of one tap and one softmax on two classes."""
    builder = GraphBuilder()
    x = builder.input(Tensor("x", (1, 1, 2), "int8", scale, z_in))
    conv = ops.Conv2d(
        ops.freeze(np.full((2, 1, 1, 2), weight), np.int8),
        ops.freeze([bias, -bias], np.int32),
        ops.freeze([0.25, 0.125], np.float32),
        dilation=(dilation, dilation),
    )
    y = builder.node(conv, [x], Tensor("y", (1, 1, 2), "int8", 0.75, 1))
    z = builder.node(ops.Softmax(), [y], Tensor("z", (1, 1, 2), "int8", 1 / 256, -128))
    return builder.finish(z)


def structs() -> dict[str, list[str]]:
    """The int32_t members of every struct in ce_blob.h, in order."""
    text = re.sub(r"/\*.*?\*/", "", data_path("export", "c", "include", "ce_blob.h").read_text(), flags=re.S)
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, flags=re.S):
        assert re.sub(r"\s*int32_t [\w, ]+;", "", body).strip() == "", f"{name} holds something else than int32_t"
        found[name] = [m for line in re.findall(r"int32_t ([\w, ]+);", body) for m in line.split(", ")]
    return found


def test_the_c_header_says_the_same() -> None:
    c = structs()
    same = {Kind.DEPTHWISE_CONV2D: "conv2d", Kind.AVG_POOL: "pool", Kind.MAX_POOL: "pool"}
    same |= {packed: same.get(kind, kind.name.lower()) for kind, packed in PACKED.items()}
    assert c["ce_blob_header"] == list(HEADER)
    assert c["ce_record"] == list(COMMON)
    for kind in Kind:
        assert c[f"ce_{same.get(kind, kind.name.lower())}_record"] == [*COMMON, *RECORDS[kind]]
    text = data_path("export", "c", "include", "ce_blob.h").read_text()
    for kind in Kind:
        assert f"CE_{kind.name} = {int(kind)}," in text
    assert f"#define CE_BLOB_MAGIC UINT32_C(0x{MAGIC:08x})" in text
    assert f"#define CE_BLOB_VERSION {VERSION}\n" in text
    assert f"#define CE_BLOB_HEADER_WORDS {HEADER_WORDS}\n" in text


def test_golden_bytes() -> None:
    """The format of version 1. A change here is a change of VERSION: certificates name these bytes."""
    blob = build(conv_graph(), TFLM)
    assert blob.data[:4] == b"CEB1"
    conv, softmax = blob.records
    assert conv.kind is Kind.CONV2D and softmax.kind is Kind.SOFTMAX
    words = struct.unpack(f"<{len(blob.data) // 4}i", blob.data)
    # 7 - (-5) * (3 + 3) and -7 + 30.
    assert words[conv.fields["bias"] : conv.fields["bias"] + 2] == (37, 23)
    # 0.5 * 0.25 / 0.75 = 1/6 and half of it: 2/3 * 2^31 rounded, shifts -2 and -3.
    assert words[conv.fields["multiplier"] : conv.fields["multiplier"] + 2] == (1431655765, 1431655765)
    assert words[conv.fields["shift"]] == int.from_bytes(b"\xfe\xfd\x00\x00", "little")
    assert words[softmax.fields["table"]] == 2**31 - 1
    assert hashlib.sha256(blob.data).hexdigest() == blob_digest(conv_graph(), TFLM)
    assert blob_digest(conv_graph(), TFLM) == "53820622be1243f8e6f9d59e88003fdf2e933ce08c1927ceb9da7d58a10b95a5"


@settings(max_examples=100)
@given(graphs(max_nodes=6, ops=IN_C))
def test_blob_is_a_function_of_the_graph(graph: Graph) -> None:
    try:
        blob = build(graph, TFLM)
    except CactusError:
        return
    renamed = rename(graph, {i: f"other{i}" for i in range(len(graph.tensors))})
    assert to_blob(renamed, TFLM) == blob.data
    again = parse(blob.data)
    assert again == blob
    assert len(again.records) == len(op_nodes(graph))
    assert again.header["words"] * 4 == len(blob.data)


def test_float_ends_do_not_change_the_blob() -> None:
    """QUANTIZE and DEQUANTIZE are the caller's: with or without them, the device runs the same integers."""
    core = conv_graph()
    builder = GraphBuilder()
    last = builder.node(ops.Quantize(), [builder.input(Tensor("f", (1, 1, 2), "float32"))], core.tensors[0])
    for node in core.nodes:
        last = builder.node(node.op, [last], core.tensors[node.output])
    graph = builder.finish(builder.node(ops.Dequantize(), [last], Tensor("g", (1, 1, 2), "float32")))
    assert to_blob(graph, TFLM) == to_blob(core, TFLM)


def test_everything_that_decides_an_output_changes_the_digest() -> None:
    digests = [
        blob_digest(graph, TFLM)
        for graph in (
            conv_graph(),
            conv_graph(weight=4),
            conv_graph(bias=8),
            conv_graph(z_in=-6),
            conv_graph(scale=0.25),
        )
    ]
    assert len(set(digests)) == len(digests)


def test_dilation_of_a_single_tap_has_one_spelling() -> None:
    assert to_blob(conv_graph(dilation=2), TFLM) == to_blob(conv_graph(), TFLM)


def changed(name: str, value: int) -> bytes:
    data = bytearray(to_blob(conv_graph(), TFLM))
    struct.pack_into("<i", data, 4 * HEADER.index(name), value)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(to_blob(conv_graph(), TFLM)[:-1], id="cut_one_byte"),
        pytest.param(to_blob(conv_graph(), TFLM)[:-4], id="cut_one_word"),
        pytest.param(to_blob(conv_graph(), TFLM) + bytes(4), id="one_word_more"),
        pytest.param(changed("magic", MAGIC + 1), id="other_magic"),
        pytest.param(changed("version", 2), id="other_version"),
        pytest.param(changed("arithmetic", 7), id="other_arithmetic"),
        pytest.param(changed("ops", 1), id="fewer_ops"),
        pytest.param(changed("ops", 3), id="more_ops"),
        pytest.param(changed("ops", -1), id="negative_ops"),
        pytest.param(changed("constants", 17), id="constants_inside_records"),
        pytest.param(changed("constants", 1 << 30), id="constants_outside"),
        pytest.param(changed("arena", 1), id="arena_too_small"),
        pytest.param(changed("in", -1), id="input_before_arena"),
        pytest.param(changed("out_bytes", 1 << 30), id="output_beyond_arena"),
    ],
)
def test_a_broken_blob_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        parse(data)


@settings(max_examples=20)
@given(graphs(max_nodes=3, ops=IN_C))
def test_no_changed_word_crashes_the_parser(graph: Graph) -> None:
    try:
        data = to_blob(graph, TFLM)
    except CactusError:
        return
    rng = np.random.default_rng(0)
    for at in rng.integers(0, parse(data).header["constants"], 50):
        broken = bytearray(data)
        struct.pack_into("<i", broken, 4 * int(at), int(rng.integers(-(2**31), 2**31)))
        try:
            blob = parse(bytes(broken))
        except ModelError:
            continue
        for record in blob.records:
            for name in CONSTANTS.get(record.kind, ()):
                assert blob.header["constants"] <= record.fields[name] < blob.header["words"]


def test_an_accumulator_that_can_overflow_is_refused() -> None:
    with pytest.raises(ModelError, match=r"op 0 Conv2d.*beyond int32"):
        to_blob(conv_graph(bias=2**31 - 200), TFLM)
    assert to_blob(conv_graph(bias=2**31 - 1500), TFLM)


def test_another_family_is_refused() -> None:
    rules = {**TFLM.rules, "Conv2d": ("S", "double")}
    with pytest.raises(UnsupportedError, match="family 'S'"):
        to_blob(conv_graph(), replace(TFLM, rules=rules))


def test_a_softmax_too_deep_is_refused() -> None:
    builder = GraphBuilder()
    x = builder.input(Tensor("x", (512,), "int8", 0.125, 0))
    graph = builder.finish(builder.node(ops.Softmax(), [x], Tensor("y", (512,), "int8", 1 / 256, -128)))
    with pytest.raises(UnsupportedError, match="512"):
        to_blob(graph, TFLM)


def test_every_profile_either_has_a_blob_or_says_why() -> None:
    for name in PROFILES:
        try:
            to_blob(conv_graph(), profile(name))
        except UnsupportedError:
            assert name != "tflm"
