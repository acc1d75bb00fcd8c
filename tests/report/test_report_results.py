"""Results survive JSON exactly, and nothing else is taken for results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cactus_edge.errors import InputError, InternalError
from cactus_edge.report.results import BuildResults, Region, Score


def test_round_trip_is_exact(results: BuildResults) -> None:
    text = results.to_json()
    assert BuildResults.from_json(text) == results
    assert BuildResults.from_json(text).to_json() == text


def test_round_trip_without_device(results: BuildResults) -> None:
    bare = dataclasses.replace(results, device=None, curve=(), agreement=(), steps=())
    assert BuildResults.from_json(bare.to_json()) == bare


def test_a_whole_number_where_a_real_is_due_is_written_as_a_real(results: BuildResults) -> None:
    whole = dataclasses.replace(results, region=dataclasses.replace(results.region, low=0, high=1))
    assert whole.to_json() == results.to_json()


@pytest.mark.parametrize("value", [np.int64(3), np.float64(0.5), float("nan"), float("inf"), [1], "1"])
def test_only_plain_finite_values_can_be_written(results: BuildResults, value: Any) -> None:
    with pytest.raises(InternalError):
        dataclasses.replace(results, curve_inputs=value).to_json()


def _set(body: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        body = body[int(key)] if key.isdigit() else body[key]
    body[last] = value


SINS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing key": (lambda b: b["model"].pop("sha256"), "model.sha256: missing"),
    "unknown key": (lambda b: b["layers"][1].update(colour=1), r"layers\[1\].colour: unknown key"),
    "string for a count": (lambda b: _set(b, "model.bytes", "12"), "model.bytes: expected an integer, got a string"),
    "truth value for a count": (lambda b: _set(b, "model.bytes", True), "model.bytes: expected an integer"),
    "real for a count": (lambda b: _set(b, "model.bytes", 12.0), "model.bytes: expected an integer"),
    "null for a count": (lambda b: _set(b, "model.bytes", None), "model.bytes: expected an integer, got null"),
    "list for a record": (lambda b: _set(b, "model", []), "model: expected an object, got a list"),
    "record for a list": (lambda b: _set(b, "layers", {}), "layers: expected a list"),
    "other version": (lambda b: _set(b, "version", 2), "version: expected 1, got 2"),
    "other format": (lambda b: _set(b, "format", "x"), "format: expected"),
    "short digest": (lambda b: _set(b, "model.sha256", "ab"), "model.sha256: expected 64"),
    "lone surrogate": (lambda b: _set(b, "recipe", "\ud800"), "recipe: a lone surrogate"),
    "certified above attacked": (lambda b: _set(b, "accuracy.int8_certified.count", 330), "certified than survive"),
    "attacked above clean": (
        lambda b: _set(b, "accuracy.int8_attacked.count", 356),
        "survive the attack than are right",
    ),
    "latency of an emulator": (
        lambda b: _set(b, "device.latency_us", {"median": 1.0, "iqr": 0.0, "runs": 1}),
        "an emulator counts instructions",
    ),
    "curve that does not ascend": (lambda b: b["curve"].reverse(), "radii must ascend"),
    "eps that is no number": (lambda b: _set(b, "region.eps", "1/0"), "region.eps"),
    "eps below zero": (lambda b: _set(b, "region.eps", "-1/16"), "at least 0"),
}


@pytest.mark.parametrize("sin", SINS)
def test_other_text_is_refused(results: BuildResults, sin: str) -> None:
    commit, message = SINS[sin]
    body = json.loads(results.to_json())
    commit(body)
    with pytest.raises(InputError, match=message):
        BuildResults.from_json(json.dumps(body))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1"),
        ("[]", "expected an object, got a list"),
        ('{"format": 1, "format": 2}', "key 'format' appears twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ("[" * 100_000, "not readable"),
        ("1" * 5000, "not readable"),
    ],
)
def test_text_that_is_no_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildResults.from_json(text)


def test_a_real_beyond_double_precision_is_refused(results: BuildResults) -> None:
    with pytest.raises(InputError, match=r"region\.high: expected a finite number"):
        BuildResults.from_json(results.to_json().replace('"high": 1.0', '"high": 1e999'))


def test_every_truncation_is_refused(results: BuildResults) -> None:
    text = results.to_json().rstrip()
    for end in range(0, len(text), 101):
        with pytest.raises(InputError):
            BuildResults.from_json(text[:end])


@pytest.mark.parametrize(("count", "total"), [(-1, 2), (3, 2), (0, 0)])
def test_a_score_is_a_part_of_a_whole(count: int, total: int) -> None:
    with pytest.raises(InternalError):
        Score(count, total)


def test_headroom(results: BuildResults) -> None:
    layer = dataclasses.replace(results.layers[0], accumulator=2**30)
    assert layer.headroom_bits == pytest.approx(1.0, abs=1e-8)
    assert dataclasses.replace(layer, accumulator=2**33).headroom_bits == pytest.approx(-2.0, abs=1e-8)
    assert dataclasses.replace(layer, accumulator=None).headroom_bits is None


@pytest.mark.parametrize(
    ("eps", "unit", "words", "axis"),
    [
        ("1/16", "of the pixel range [0, 1]", "eps 1/16", "eps, in sensor units"),
        ("2/125", "of the sensor range [-1, 1], which is 4/125 g", "4/125 g", "eps, in sensor units"),
        ("1", "times 1/50 g (a) and 2 Pa (b)", "1/50 g (a) and 2 Pa (b)", "eps, in multiples of the certificate's"),
    ],
    ids=["pixels", "one_radius", "a_radius_each"],
)
def test_a_region_in_the_units_of_its_sensors(eps: str, unit: str, words: str, axis: str) -> None:
    region = Region(eps, -1, 1, unit, 1 / 125, 0)
    assert (region.words, region.axis) == (words, axis)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point", "reach"),
    [
        (0, 1, 1 / 255, -128, None),
        (-0.5, 0.5, 1 / 254, 0, None),
        (-1, 1, 1 / 125, 0, None),
        (-0.5, 0.5, 1 / 640, 0, (-0.2, 127 / 640)),
        (0, 1, 1 / 510, -128, (0, 0.5)),
    ],
)
def test_where_an_input_saturates(
    low: float, high: float, scale: float, zero_point: int, reach: tuple[float, float] | None
) -> None:
    assert Region("1/10", low, high, "of a range", scale, zero_point).reach == (reach and pytest.approx(reach))


def test_balanced_figures_are_means_over_classes(results: BuildResults) -> None:
    assert results.balanced("clean") == pytest.approx(355 / 360)
    first = dataclasses.replace(results.classes[0], clean=Score(35, 72), certified=Score(31, 72))
    with pytest.raises(InternalError, match="adds up"):
        dataclasses.replace(results, classes=(first, *results.classes[1:]))
    assert dataclasses.replace(results, classes=()).balanced("clean") is None
