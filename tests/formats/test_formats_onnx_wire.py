"""The protocol-buffer reader against the onnx package's own, and its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx.read import wire
from cactus_edge.formats.onnx.read.wire import Message, parse_message

INT64 = st.integers(-(2**63), 2**63 - 1)


def parsed(message: Any, kind: str) -> Message:
    return parse_message(memoryview(message.SerializeToString()), kind)


def compare(dims: list[int], ints: list[int], floats: list[float], name: str, raw: bytes) -> None:
    """One tensor through the package's bytes and our reader."""
    wanted = onnx.TensorProto(dims=dims, int32_data=ints, float_data=floats, name=name, raw_data=raw, data_type=3)
    got = parsed(wanted, "Tensor")
    assert isinstance(got.dims, np.ndarray) and got.dims.tolist() == dims
    assert got.int32_data.tolist() == ints and got.float_data.tolist() == floats
    assert (got.name, got.raw_data, got.data_type, got.data_location) == (name, raw, 3, 0)
    assert got.has("raw_data") == wanted.HasField("raw_data")


@given(
    dims=st.lists(INT64, max_size=9),
    ints=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40),
    floats=st.lists(st.floats(width=32, allow_nan=False), max_size=9),
    name=st.text(max_size=8),
    raw=st.binary(max_size=40),
)
def test_tensors_are_read_as_the_package_reads_them(
    dims: list[int], ints: list[int], floats: list[float], name: str, raw: bytes
) -> None:
    compare(dims, ints, floats, name, raw)


@given(INT64)
def test_single_numbers_are_read_as_the_package_reads_them(number: int) -> None:
    assert parsed(onnx.AttributeProto(i=number), "Attribute").i == number


def test_numbers_one_by_one_are_the_same_as_packed() -> None:
    assert parse_message(memoryview(b"\x08\x01\x08\xac\x02\x0a\x02\x03\x04"), "Tensor").dims.tolist() == [1, 300, 3, 4]


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"\x0a\x05ab", "Entry", "5 bytes in a message of 4"),
        (b"\x0a", "Entry", "cut off"),
        (b"\x0a" + b"\xff" * 11, "Entry", "cut off"),
        (b"\x0a\x01a\x0a\x01b", "Entry", "two of key"),
        (b"\x0a\x01\xff", "Entry", "not UTF-8"),
        (b"\x08\x01", "Entry", "key has wire type 0"),
        (b"\x0b\x01", "Entry", "wire type 3"),
        (b"\x10\x80", "OperatorSet", "cut off"),
        (b"\x22\x03abc", "Tensor", "float_data of 3 bytes"),
        (b"\x0a\x02\x80\x80", "Tensor", "cut off"),
        (b"\x0a\x0b" + b"\x80" * 10 + b"\x00", "Tensor", "more than 10 bytes"),
    ],
)
def test_broken_bytes_are_refused(data: bytes, kind: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_message(memoryview(data), kind)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="node has a field of number 8"):
        parsed(onnx.NodeProto(overload="x"), "Node")


def test_messages_beyond_the_limit_are_refused_before_they_exist() -> None:
    with pytest.raises(UnsupportedError, match="more than 65536 of node"):
        parse_message(memoryview(b"\x0a\x00" * (wire.MOST + 1)), "Graph")


def test_the_comparison_sees_a_lost_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: numbers read as their low 32 bits."""
    compare([], [1, -1], [], "", b"")
    whole = wire._varints
    monkeypatch.setattr(wire, "_varints", lambda piece: whole(piece) & 0xFFFFFFFF)
    with pytest.raises(AssertionError):
        compare([], [1, -1], [], "", b"")
