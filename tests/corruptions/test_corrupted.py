"""Corrupted accuracy of a file, against counting by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cactus_edge import corrupted as module
from cactus_edge.certify.attack import strict_win
from cactus_edge.corrupted import corrupted
from cactus_edge.corruptions import CORRUPTIONS, corrupt
from cactus_edge.errors import DataError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.ops import Activation, Dense, freeze


def halves() -> Graph:
    """Grey images of 8 x 8: class 0 where the upper half is brighter, class 1 where the lower is."""
    sign = np.repeat([1, -1], 32)
    builder = GraphBuilder()
    at = builder.input(Tensor("input", (8, 8, 1), "int8", float(np.float32(1 / 255)), -128))
    weight = freeze(np.stack([sign, -sign]), np.int8)
    op = Dense(weight, freeze(np.zeros(2), np.int32), freeze(np.ones(1), np.float32), Activation.NONE)
    return builder.finish(builder.node(op, [at], Tensor("out", (2,), "int8", 0.5, 0)))


@pytest.fixture
def images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 8, 8, 1)).astype(np.float32) / np.float32(255)
    return x, (x[:, :4].sum((1, 2, 3)) < x[:, 4:].sum((1, 2, 3))).astype(np.int64)


def test_the_table_counts_what_the_file_answers(images: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images
    some = {name: CORRUPTIONS[name] for name in ("gaussian noise", "contrast")}
    monkeypatch.setattr(module, "CORRUPTIONS", some)
    seen: list[tuple[int, int, str]] = []
    found = corrupted(write_tflite(halves(), metadata={}), x, y, 7, advance=lambda *at: seen.append(at))
    for name in some:
        for severity, count in enumerate(found.right[name], start=1):
            out = evaluate(halves(), corrupt(x, name, severity, 7), profile("tflm"))
            assert count == strict_win(out, y.astype(np.int64)).sum()
    assert found.clean > 25 and found.samples == 30
    both = [sum(found.right[name]) / 150 for name in some]
    assert [found.accuracy(name) for name in some] == pytest.approx(both) and found.mean == pytest.approx(np.mean(both))
    assert seen[-1] == (10, 10, "contrast") and found.rows()[-1][-1] == f"{100 * found.mean:.1f}"


def test_labels_and_signals_that_do_not_fit_are_refused(images: tuple[Any, Any]) -> None:
    x, y = images
    for bad_x, bad_y in ((x, y[:-1]), (x, y + 1), (x * 2, y), (x[:, :, :1], y)):
        with pytest.raises(DataError):
            corrupted(write_tflite(halves(), metadata={}), bad_x, bad_y)
