"""Witnesses of the attack lose in the real runtime as well; what the label wins is won there."""

from __future__ import annotations

import numpy as np
import pytest

from cactus_edge.certify.attack import attack
from cactus_edge.errors import InputError
from cactus_edge.formats.replay import lost
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower


def dense_file(seed: int) -> bytes:
    """Four inputs, eight hidden units, three classes."""
    rng = np.random.default_rng(seed)
    b, width = GraphBuilder(), 4
    value = b.input(Tensor("x", (4,), scale=0.0625))
    for name, size, scale, zero in (("h", 8, 0.125, -128), ("y", 3, 0.5, 0)):
        weight = ops.freeze(rng.integers(-127, 128, (size, width)), np.int8)
        bias = ops.freeze(rng.integers(-500, 500, size), np.int32)
        activation = ops.Activation.RELU if name == "h" else ops.Activation.NONE
        op = ops.Dense(weight, bias, ops.freeze([np.float32(0.02)], np.float32), activation)
        value, width = b.node(op, [value], Tensor(name, (size,), scale=scale, zero_point=zero)), size
    return write_tflite(b.finish(value))


@pytest.mark.parametrize(("runtime", "package"), [("tflm", "tflite_micro"), ("litert-ref", "ai_edge_litert")])
def test_witnesses_lose_in_the_runtime(runtime: str, package: str) -> None:
    pytest.importorskip(package)
    data = dense_file(0)
    rule = "tflm" if runtime == "tflm" else runtime
    program = lower(read_tflite(data).graph, profile(rule))
    centre = np.random.default_rng(1).integers(-100, 100, (30, 4)).astype(np.int8)
    labels = run(program, centre).argmax(1).astype(np.int64)
    found = attack(program, centre - 12, centre + 12, labels, start=centre)
    assert 0 < found.found.sum() < 30
    assert np.array_equal(lost(data, found.witness, labels, runtime), found.found)


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(InputError, match="unknown runtime"):
        lost(dense_file(0), np.zeros((1, 4), np.int8), np.zeros(1, np.int64), "nobody")
