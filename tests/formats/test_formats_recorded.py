"""What runtimes without a wheel gave, recorded once and compared bit for bit.

tflm_single_rounding.npz: TFLM's interpreter and reference kernels (tensorflow/tflite-micro at 90b983c, g++ 12, x86-64) with
-DTFLITE_SINGLE_ROUNDING=1. tinyengine.npz: the code that TinyEngine's generator (mit-han-lab/tinyengine at 47bb283) writes for
each file, with its kernels (gcc 12, x86-64, -ffp-contract=off, the Cortex-M intrinsics in plain C), one buffer per tensor.
plumerai_kws.npz: the digits that a NUCLEO-L4R5ZI printed, the same on four more boards (mlcommons/tiny_results_v1.1 at c32ef94,
closed/plumerai/results/*/kws/accuracy/log.txt).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph
from cactus_edge.verify.tflite_read import read_tflite

VECTORS = Path(__file__).with_name("vectors")
FILES = {"tflm-single-rounding": "tflm_single_rounding.npz", "tinyengine": "tinyengine.npz"}

Recorded = list[tuple[Graph, Any, Any]]


def recorded(name: str) -> Recorded:
    """(graph, inputs, outputs) of each network that the profile's runtime ran."""

    def networks() -> Iterator[tuple[Graph, Any, Any]]:
        with np.load(VECTORS / FILES[name]) as stored:
            files, x, y = (
                np.split(stored[k], np.cumsum(stored["sizes"][:, c])) for c, k in enumerate(("files", "x", "y"))
            )
        for file, xs, ys in zip(files[:-1], x, y, strict=False):
            graph = read_tflite(file.tobytes()).graph
            yield graph, xs.reshape(-1, *graph.input.shape), ys.reshape(-1, *graph.output.shape)

    return list(networks())


def differing(networks: Recorded, name: str) -> int:
    """Networks that the profile computes otherwise."""
    return sum(evaluate(graph, x, profile(name)).tobytes() != y.tobytes() for graph, x, y in networks)


@pytest.mark.parametrize(("name", "least"), [("tflm-single-rounding", 60), ("tinyengine", 40)])
def test_the_profile_equals_the_recorded_outputs(name: str, least: int) -> None:
    networks = recorded(name)
    assert len(networks) >= least
    assert differing(networks, name) == 0


def test_the_default_rounding_is_told_from_the_single_one() -> None:
    assert differing(recorded("tflm-single-rounding"), "tflm") >= 20


SINGLE = (
    "Conv2d",
    "DepthwiseConv2d",
    "GroupedConv2d",
    "Dense",
    "DensePerChannel",
    "Mul",
    "Mean",
    "Sum",
    "Relu",
    "Requantize",
)
FAULTS = [
    *(("tflm-single-rounding", kind, ("D", *PROFILES["tflm-single-rounding"].rules[kind][1:])) for kind in SINGLE),
    ("tflm-single-rounding", "Add", ("D_shift20",)),
    *(
        ("tinyengine", kind, ("F", "double_to_float32"))
        for kind in ("Conv2d", "DepthwiseConv2d", "Dense", "DensePerChannel")
    ),
    ("tinyengine", "Add", ("D_shift20",)),
]


@pytest.mark.parametrize(("name", "kind", "rule"), FAULTS, ids=[f"{name}-{kind}" for name, kind, _ in FAULTS])
def test_each_rule_is_told_from_its_neighbour(
    name: str, kind: str, rule: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES[name].rules, kind, rule)  # type: ignore[index]
    assert differing(recorded(name), name) > 0


def printed_otherwise(models: Path, data: Path, name: str) -> int:
    """Keyword inputs for which the board printed other digits, which it cuts off after the third."""
    with np.load(data / "mlperf-tiny-kws" / "kws01_test.npz") as stored:
        x = stored["x"]
    with np.load(VECTORS / "plumerai_kws.npz") as stored:
        printed = stored["printed"]
    graph = read_tflite((models / "mlperf-tiny" / "kws_ref_model.tflite").read_bytes()).graph
    codes = evaluate(graph, x, profile(name)).astype(np.int64) + 128
    assert len(printed) == len(codes) == 1000
    return int((codes * 1000 // 256 != printed).any(1).sum())


def test_kws_equals_the_plumerai_boards_log(models_folder: Path, data_folder: Path) -> None:
    assert printed_otherwise(models_folder, data_folder, "plumerai") == 0
    assert printed_otherwise(models_folder, data_folder, "tflm") == 364


def test_single_rounding_is_not_what_the_plumerai_boards_compute(models_folder: Path, data_folder: Path) -> None:
    assert printed_otherwise(models_folder, data_folder, "tflm-single-rounding") == 1
