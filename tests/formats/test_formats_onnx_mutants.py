"""Damaged files of every operator: refused, or ONNX Runtime computes what is read, bit for bit."""

from __future__ import annotations

import platform
from collections import Counter

import numpy as np
import pytest
from onnx import AttributeProto, load_from_string, numpy_helper
from onnx_models import every_operator

from cactus_edge.errors import InputError, ModelError
from cactus_edge.formats.onnx import read_onnx
from cactus_edge.formats.onnx.runtime import OrtSession, has_vnni
from cactus_edge.ir import tables
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not has_vnni(), reason="the profile is that of x86-64 with VNNI"
)

GOOD = {"int8": every_operator(np.int8), "uint8": every_operator(np.uint8)}


def outcome(data: bytes, known: set[str]) -> str:
    """What becomes of a file; an output that ONNX Runtime computes otherwise is an AssertionError."""
    try:
        graph = read_onnx(data).graph
        x = np.random.default_rng(0).normal(0, 3, (12, *graph.input.shape)).astype(np.float32)
        want = evaluate(graph, x, profile("ort-x86"))
        got = OrtSession(data, graph, False).run_batch(x)
    except ModelError:
        return "refused"
    except InputError:
        return "input out of range"
    assert got.shape == want.shape and np.array_equal(got.view(np.uint32), want.view(np.uint32))
    return "as before" if graph.digest() in known else "another network"


@pytest.mark.parametrize("codes", GOOD)
def test_every_operator_agrees_undamaged(codes: str) -> None:
    data = GOOD[codes]
    kinds = {type(n.op).__name__ for n in read_onnx(data).graph.nodes}
    assert len(kinds) >= 14
    assert outcome(data, set()) == "another network"
    graph = read_onnx(data).graph
    x = np.random.default_rng(0).normal(0, 3, (500, *graph.input.shape)).astype(np.float32)
    assert np.array_equal(OrtSession(data, graph, False).run_batch(x), evaluate(graph, x, profile("ort-x86")))


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """One or two numbers of the file, in a constant or an attribute, changed a little."""
    model = load_from_string(data)
    attributes = [
        a for n in model.graph.node for a in n.attribute if a.type in (AttributeProto.INT, AttributeProto.INTS)
    ]
    for _ in range(rng.integers(1, 3)):
        if rng.random() < 0.25:
            a = attributes[rng.integers(len(attributes))]
            if a.type == AttributeProto.INT:
                a.i += int(rng.choice([-1, 1]))
            else:
                a.ints[int(rng.integers(len(a.ints)))] += int(rng.choice([-1, 1, 2]))
            continue
        t = model.graph.initializer[rng.integers(len(model.graph.initializer))]
        values = numpy_helper.to_array(t).copy()
        at = rng.integers(values.size)
        if values.dtype == np.float32:
            values.flat[at] *= np.float32(rng.choice([0.5, 0.93, 1.0001, 1.1, 3]))
        else:
            values.flat[at] += values.dtype.type(rng.choice([1, 2, 3]))
        t.CopyFrom(numpy_helper.from_array(values, t.name))
    changed: bytes = model.SerializeToString()
    return changed


@pytest.mark.parametrize("codes", GOOD)
def test_accepted_mutants_agree(codes: str) -> None:
    rng, known = np.random.default_rng(0), {read_onnx(GOOD[codes]).graph.digest()}
    seen = Counter(outcome(mutant(GOOD[codes], rng), known) for _ in range(150))
    assert seen["another network"] > 20 and seen["refused"] > 20, seen


def test_a_wrong_reading_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: one step of every table of a float function is a little wider."""
    right = tables._dequantised
    monkeypatch.setattr(tables, "_dequantised", lambda x: right(x) * np.float32(1.02))
    with pytest.raises(AssertionError):
        outcome(GOOD["uint8"], set())
