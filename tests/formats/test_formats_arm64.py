"""What the aarch64 wheel of LiteRT gave on an emulated Cortex-A72 and A76 (bench/pi_emulator.py --record), bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.verify.tflite_read import read_tflite

VECTORS = Path(__file__).with_name("vectors") / "xnnpack_arm64.npz"


@pytest.fixture(scope="module")
def recorded() -> list[tuple[bytes, Any, Any]]:
    """(file, inputs, outputs) of each network."""
    with np.load(VECTORS) as stored:
        count = len(stored.files) // 3
        return [tuple(stored[f"{k:02d}_{part}"] for part in ("file", "x", "y")) for k in range(count)]  # type: ignore[misc]


def differing(recorded: list[tuple[bytes, Any, Any]], name: str) -> int:
    """Networks that the profile computes otherwise."""
    graphs = [(read_tflite(bytes(file)).graph, x, y) for file, x, y in recorded]
    return sum(evaluate(graph, x, profile(name)).tobytes() != y.tobytes() for graph, x, y in graphs)


def test_the_profile_equals_the_recorded_outputs(recorded: list[tuple[bytes, Any, Any]]) -> None:
    assert len(recorded) >= 50
    assert differing(recorded, "litert-xnnpack-arm64") == 0


def test_x86_64_computes_something_else(recorded: list[tuple[bytes, Any, Any]]) -> None:
    assert differing(recorded, "litert-xnnpack") >= 10


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("Mean", ("F", "float32_reciprocal")), ("Sum", ("F", "float32_reciprocal")), ("Softmax", ("float32_table",))],
    ids=["mean", "sum", "softmax"],
)
def test_each_rule_of_its_own_is_told_from_x86_64s(
    recorded: list[tuple[bytes, Any, Any]], kind: str, rule: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES["litert-xnnpack-arm64"].rules, kind, rule)  # type: ignore[index]
    assert differing(recorded, "litert-xnnpack-arm64") > 0
