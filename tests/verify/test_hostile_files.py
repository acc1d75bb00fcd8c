"""Hostile files, a few thousand of them: only our own refusals, and what is accepted can be worked with. `bench/fuzz.py` tries many."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_kit import (
    Attack,
    certificate_attack,
    data_attack,
    examine_tflite,
    firmware_attack,
    little_model,
    recipe_attack,
    tflite_attack,
    tflite_files,
)
from mutate import TfliteMutator, varint

from cactus_edge import samples
from cactus_edge.errors import InputError, ModelError, UnsupportedError
from cactus_edge.formats.onnx.read.wire import MOST_FIELDS, MOST_PACKED, parse_message
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops, spec
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.recipe import parse_recipe
from cactus_edge.samples import read_inputs
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify import tflite_tensors
from cactus_edge.verify.certificate import certify_file, seal
from cactus_edge.verify.elf import find_blob
from cactus_edge.verify.flatbuffer import Reader, Table
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.tflite_read import MAX_OPERATORS, read_tflite


def outcomes(attack: Attack, count: int) -> Counter[str]:
    """Any exception that is not an outcome ends the test."""
    return Counter(attack.examine(attack.mutant(number)) for number in range(count))


def test_tflite() -> None:
    found = outcomes(tflite_attack(tflite_files(20)), 2000)
    assert set(found) >= {"run", "ModelError", "UnsupportedError"}, "the mutations reach every outcome"


def test_onnx() -> None:
    pytest.importorskip("onnxruntime")
    from hostile_kit import onnx_attack, onnx_files

    found = outcomes(onnx_attack(onnx_files(6)), 900)
    assert set(found) >= {"run", "ModelError", "UnsupportedError"}


@pytest.mark.parametrize(
    ("make", "reached"),
    [
        (lambda: data_attack(little_model()), {"DataError", "certified"}),
        (lambda: certificate_attack(little_model()), {"accepted", "rejected", "CertificateError"}),
        (recipe_attack, {"read", "InputError"}),
    ],
    ids=["data", "certificate", "recipe"],
)
def test_what_else_is_read(make: Callable[[], Attack], reached: set[str]) -> None:
    assert set(outcomes(make(), 300)) >= reached


def elf(*segments: tuple[int, int, int], size: int = 4096) -> bytes:
    """An ARM executable of `size` bytes whose segments are (offset in the file, address, bytes)."""
    head = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 40, 1, 0, 52, 0, 0, 52, 32, len(segments), 0, 0, 0)
    table = b"".join(struct.pack("<8I", 1, at, where, where, n, n, 5, 4) for at, where, n in segments)
    return (head + table).ljust(size, b"\xab")


def test_firmware() -> None:
    good = elf((0, 0, 4096))
    found = outcomes(firmware_attack(good, b"\xab" * 32), 800)
    assert set(found) >= {"holds the blob", "ModelError"}


def test_a_mutant_is_the_same_everywhere() -> None:
    files = tflite_files(2)
    first, second = (tflite_attack(files) for _ in range(2))
    assert [first.mutant(n) for n in range(50)] == [second.mutant(n) for n in range(50)]
    assert len({first.mutant(n) for n in range(50)}) > 45


# The mutations see it when a check is taken away.


def _no_bounds(self: Reader, at: int, count: int, what: str) -> int:
    return at


def test_a_reader_without_its_bounds_check_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = tflite_attack(tflite_files(4))
    monkeypatch.setattr(Reader, "claim", _no_bounds)
    with pytest.raises((struct.error, ValueError, IndexError)):
        outcomes(attack, 400)


def unchecked(table: Table, above: int = 0) -> tflite_tensors.Quantization | None:
    """Scales and zero points as they stand in the file."""
    params = table.table(fb.Tensor.QUANTIZATION, fb.Quantization)
    scale = None if params is None else params.vector(fb.Quantization.SCALE, "<f4")
    zero_point = None if params is None else params.vector(fb.Quantization.ZERO_POINT, "<i8")
    return None if scale is None or zero_point is None else tflite_tensors.Quantization(scale, zero_point, 0)


def test_scales_that_nobody_checks_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = tflite_attack(tflite_files(10))
    monkeypatch.setattr(spec, "_check_tensor", lambda t: None)
    monkeypatch.setattr(tflite_tensors, "quantization", unchecked)
    with pytest.raises((ValueError, OverflowError, RuntimeWarning, ZeroDivisionError)):
        outcomes(attack, 3000)


# Bombs: small files that describe much.


def peak(action: Callable[[], object]) -> int:
    """Bytes allocated by Python and numpy at the most."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(error: type[Exception], words: str, action: Callable[[], object], limit: int) -> None:
    def attempt() -> None:
        with pytest.raises(error, match=words):
            action()

    assert peak(attempt) <= limit


def single(op: ops.Op, shape: tuple[int, ...], out: tuple[int, ...]) -> Graph:
    b = GraphBuilder()
    x = b.input(Tensor("x", shape, "int8", 0.5, 0))
    return b.finish(b.node(op, [x], Tensor("y", out, "int8", 0.5, 0)))


def test_more_operators_than_any_network() -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (1,), "int8", 0.5, 0))
    for _ in range(MAX_OPERATORS + 1):
        x = b.node(ops.Relu6(), [x], Tensor("t", (1,), "int8", 0.5, 0))
    data = write_tflite(b.finish(x))
    refused(UnsupportedError, f"{MAX_OPERATORS + 1} operators", lambda: read_tflite(data), 1 << 20)


def test_an_average_pool_over_a_giant_image_costs_nothing() -> None:
    with pytest.raises(ModelError, match="67108864 averages"):
        write_tflite(single(ops.AvgPool((1, 1), (1, 1)), (8192, 8192, 1), (8192, 8192, 1)))
    data = write_tflite(single(ops.AvgPool((256, 256), (32, 32)), (8192, 8192, 1), (249, 249, 1)))
    assert peak(lambda: examine_tflite(data)) < 1 << 24


@pytest.mark.parametrize("dtype", ["int8", "constant"])
def test_a_scale_without_a_zero_point_is_refused(dtype: str) -> None:
    """LiteRT refuses it, TFLM computes with what lies in memory."""
    from tflite_edit import edited, every_op_file, operand

    def without(model: object) -> None:
        operand(model, "CONV_2D", 0 if dtype == "int8" else 1).quantization.zeroPoint = None

    with pytest.raises(ModelError, match=r"expected \d zero points in \[-128, 127\], got 0"):
        read_tflite(edited(every_op_file(), without))


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (field(7, field(1, b"") * (MOST_FIELDS // 2) * 2 + field(1, b"")), "65536 of node"),
        (field(7, field(1, field(1, b"x") * 60_000) * 2), f"more than {MOST_FIELDS} fields"),
        (field(7, field(5, field(1, b"\1" * (MOST_PACKED + 1)))), f"{MOST_PACKED} bytes of integers"),
    ],
    ids=["nodes", "operands", "sizes"],
)
def test_more_messages_than_any_network(data: bytes, words: str) -> None:
    refused(UnsupportedError, words, lambda: parse_message(memoryview(data), "Model"), 64 << 20)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FREE_BYTES", 1 << 20)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.zeros((8 << 20,), np.int8))
    refused(InputError, "a zip bomb", lambda: read_inputs(path), 1 << 20)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        b"-" * 4000 + b"1",
    ],
    ids=["giant", "objects", "negative", "nested"],
)
def test_an_array_header_that_lies(header: bytes, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(
            "x.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + b"cos\nsystem\n(S'x'\ntR."
        )
    refused(InputError, "x.npy", lambda: read_inputs(path), 1 << 20)


@pytest.mark.parametrize("bare", ["x", "y"])
def test_an_archive_whose_member_is_no_npy(bare: str, tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "x.npz"
    np.savez(tmp_path / "good.npz", x=np.zeros((2, 3)), y=np.zeros(2))
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(path, "w") as out:
        for name in ("x", "y"):
            out.writestr(name if name == bare else f"{name}.npy", good.read(f"{name}.npy"))
    refused(InputError, f"has a member {bare}; expected {bare}.npy", lambda: read_inputs(path), 1 << 20)


def test_segments_that_share_their_bytes_are_refused() -> None:
    size = 1 << 20
    data = elf(*((size // 2, k << 24, size // 2) for k in range(200)), size=size)
    refused(ModelError, "they share bytes", lambda: find_blob(data, b"x"), 4 * size)


@pytest.mark.parametrize(
    "value", ['"1e999999999"', "1e999999999", "9" * 5000, "0x" + "f" * 5000, "[" * 5000], ids=str.__len__
)
@pytest.mark.parametrize("key", ["eps", "learning_rate", "epochs"])
def test_numbers_that_take_forever_in_a_recipe(key: str, value: str) -> None:
    with pytest.raises(InputError):
        parse_recipe(f'name = "x"\n[train]\n{key} = {value}\n', "x.toml")


@pytest.mark.parametrize("back", [1, 2], ids=["before_softmax", "before_dequantize"])
def test_a_dequantize_behind_the_output_is_refused(back: int) -> None:
    """The output of the file is an int8 tensor, and what is dequantised after it is nobody's."""
    from tflite_edit import edited, every_op_file

    def earlier(model: object) -> None:
        subgraph = model.subgraphs[0]  # type: ignore[attr-defined]
        subgraph.outputs = [subgraph.operators[-back].inputs[0]]

    with pytest.raises(ModelError, match="dequantises 'probabilities', which is not the model's output"):
        read_tflite(edited(every_op_file(), earlier))


def test_a_key_that_is_written_as_a_path_is_no_field() -> None:
    """{"model": {"sha256": wrong}, "model.sha256": right} must not be read as the right one."""
    model = little_model()
    x, y = np.zeros((2, *read_tflite(model).graph.input.shape), np.float32), np.zeros(2, np.int64)
    record = json.loads(certify_file(model, x, y, eps="1/8", domain=("-1", "1"), profile="tflm").to_bytes())
    digest = record["model"]["sha256"]
    for forged in (
        record | {"model": record["model"] | {"sha256": "0" * 64}, "model.sha256": digest},
        record | {"empty": {}},
    ):
        data = (json.dumps(seal(forged), sort_keys=True, indent=1) + "\n").encode()
        assert not recheck(data, model, x, y).accepted


def test_the_mutator_knows_what_the_reader_looks_at() -> None:
    kinds = Counter(spot.kind for spot in TfliteMutator(tflite_files(0)[0]).spots)
    assert {"reference", "vtable", "elements", "I", "b", "i"} <= set(kinds)
