"""Mutated and truncated .tflite files: refused as ModelError or read, never another exception, never slowly."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from strategies import random_graph
from tflite_edit import every_op_file

from cactus_edge.errors import ModelError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.verify.flatbuffer import Reader
from cactus_edge.verify.tflite_read import read_tflite

Rng = np.random.Generator


def _byte(a: bytearray, rng: Rng) -> None:
    a[rng.integers(len(a))] = rng.integers(256)


def _bit(a: bytearray, rng: Rng) -> None:
    a[rng.integers(len(a))] ^= 1 << int(rng.integers(8))


def _word(a: bytearray, rng: Rng) -> None:
    at = int(rng.integers(len(a) // 4)) * 4
    values = [0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(a), len(a) - at, int(rng.integers(1 << 32))]
    a[at : at + 4] = int(values[rng.integers(len(values))]).to_bytes(4, "little")


def _half(a: bytearray, rng: Rng) -> None:
    at = int(rng.integers(len(a) // 2)) * 2
    values = [0, 1, 4, 6, 0x7FFF, 0xFFFF, int(rng.integers(1 << 16))]
    a[at : at + 2] = int(values[rng.integers(len(values))]).to_bytes(2, "little")


def _copy(a: bytearray, rng: Rng) -> None:
    to, source, count = int(rng.integers(len(a))), int(rng.integers(len(a))), int(rng.integers(1, 64))
    count = min(count, len(a) - to, len(a) - source)
    a[to : to + count] = a[source : source + count]


def _truncate(a: bytearray, rng: Rng) -> None:
    del a[rng.integers(len(a)) :]


MUTATIONS: list[Callable[[bytearray, Rng], None]] = [_byte, _bit, _word, _half, _copy]


def _files(rng: Rng, count: int) -> list[bytes]:
    return [every_op_file()] + [write_tflite(random_graph(rng, 8), metadata={"m": b"x"}) for _ in range(count)]


def _mutants(rng: Rng, files: list[bytes], count: int) -> list[bytes]:
    made = []
    for number in range(count):
        mutant = bytearray(files[number % len(files)])
        for _ in range(rng.integers(1, 5)):
            MUTATIONS[rng.integers(len(MUTATIONS))](mutant, rng)
        if number % 16 == 0:
            _truncate(mutant, rng)
        made.append(bytes(mutant))
    return made


def _outcomes(mutants: list[bytes]) -> Counter[str]:
    found: Counter[str] = Counter()
    for mutant in mutants:
        try:
            read_tflite(mutant)
            found["read"] += 1
        except ModelError as error:
            found[type(error).__name__] += 1
    return found


def test_mutated_files_raise_nothing_but_model_errors() -> None:
    rng = np.random.default_rng(20260101)
    found = _outcomes(_mutants(rng, _files(rng, 30), 6000))
    assert sum(found.values()) == 6000
    assert set(found) == {"read", "ModelError", "UnsupportedError"}, "the mutations reach every outcome"


def test_every_truncation_is_refused() -> None:
    whole = every_op_file()
    for length in range(0, len(whole), 7):
        with pytest.raises(ModelError):
            read_tflite(whole[:length])


def test_a_reader_that_skips_the_bounds_check_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "claim", lambda self, at, count, what: at)
    rng = np.random.default_rng(1)
    with pytest.raises((struct.error, ValueError, IndexError)):
        _outcomes(_mutants(rng, _files(rng, 2), 300))
