"""Signals, [N, T, 1, C]: UCI HAR split by person, MIT-BIH heartbeats split by patient.

Both are full of near-copies (windows that overlap by half, beats of one heart), so no random split of them means anything:
test samples are those of other people, and validation samples too ([data] validation_groups).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from cactus_edge.errors import DataError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data import mitdb, uci_har
from cactus_edge.train.data.dataset import About, Channel, Dataset, Float32, Int64, Raw, divide, in_fixed_order
from cactus_edge.train.data.mitdb import COUNTS_PER_MV, ZERO_COUNT
from cactus_edge.train.data.uci_har import SENSORS

HAR_LABELS = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
HAR_TEST = (2, 4, 9, 10, 12, 13, 18, 20, 24)
"""The persons of the original's test set."""

HAR_SCALES = {"g": Fraction(2), "rad/s": Fraction(4)}
"""The range that a channel's int8 input spans. Powers of two: the division is exact in float32. The data's 0.9999 quantile
is 2.05 g and 3.5 rad/s; what lies beyond the range is cut off, as a sensor of that range does."""

ECG_CLASSES = {"N": "normal", "S": "supraventricular", "V": "ventricular", "F": "fusion", "Q": "unknown"}
"""The classes of ANSI/AAMI EC57, in the order of y."""

DS1 = (101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230)
DS2 = (100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234)
"""Training and test records of de Chazal, O'Dwyer and Reilly, IEEE TBME 51(7), 2004, without the paced ones. Records 201 and 202
are one person, on both sides."""

ECG_RANGE = Fraction(127, 40)
"""mV. Beats leave it in 0.03 % of their samples, which are cut off there."""


def har(recipe: DataRecipe) -> Dataset:
    """Windows of 128 samples at 50 Hz; each channel divided by its range. Raises DataError for a sensor that there is not."""
    sensors = recipe.channels or ("total_acc", "body_gyro")
    for sensor in sensors:
        if sensor not in SENSORS:
            raise DataError(f"har has no sensor {sensor!r}", hint=f"channels from {', '.join(SENSORS)}")
    found = uci_har.windows()
    rows = [3 * SENSORS.index(sensor) + axis for sensor in sensors for axis in range(3)]
    channels = tuple(Channel(f"{s}_{a}", u, HAR_SCALES[u]) for s in sensors for u in (_unit(s),) for a in "xyz")
    scales = np.array([float(c.scale) for c in channels], np.float32)
    x = np.clip(found.x[:, rows].transpose(0, 2, 1)[:, :, None] / scales, -1, 1).astype(np.float32)
    words = ", ".join(f"{s} / {HAR_SCALES[_unit(s)]} {_unit(s)}" for s in sensors)
    about = About(
        "har", HAR_LABELS, f"{words}; cut off at -1 and 1; 128 samples at 50 Hz", (Fraction(-1), Fraction(1)), channels
    )
    return _by_person(about, x, found.y.astype(np.int64), found.person.astype(np.int64), HAR_TEST, recipe)


def _unit(sensor: str) -> str:
    return "rad/s" if sensor == "body_gyro" else "g"


def ecg(recipe: DataRecipe) -> Dataset:
    """Beats in mV: DS1 trains, DS2 tests. recipe.classes: each the AAMI letters that it joins; letters in none are left out.

    By default N, S, V and F: without the paced records Q has 8 beats to learn from and 7 to test with.
    """
    classes = recipe.classes or ("N", "S", "V", "F")
    letters = [letter for group in classes for letter in group]
    if unknown := [letter for letter in letters if letter not in ECG_CLASSES]:
        raise DataError(
            f"classes = {list(classes)}: no AAMI class is {unknown[0]!r}", hint='classes = ["N", "S", "VF"]'
        )
    if len(set(letters)) != len(letters):
        raise DataError(f"classes = {list(classes)} name a letter twice", hint="each beat has one class")
    beats = mitdb.beats()
    joined = np.array([next((i for i, g in enumerate(classes) if c in g), -1) for c in ECG_CLASSES], np.int64)
    y, record = joined[beats.y], beats.record.astype(np.int64)
    kept = (y >= 0) & np.isin(record, DS1 + DS2)
    bound = float(ECG_RANGE)
    millivolts = (beats.counts[kept].astype(np.float64) - ZERO_COUNT) / COUNTS_PER_MV
    x = np.clip(millivolts, -bound, bound).astype(np.float32)[:, :, None, None]
    labels = tuple("/".join(ECG_CLASSES[letter] for letter in group) for group in classes)
    words = f"(count - {ZERO_COUNT}) / {COUNTS_PER_MV}, mV; cut off at {-bound} and {bound}; 256 samples at 360 Hz, R peak at 96"
    about = About("ecg", labels, words, (-ECG_RANGE, ECG_RANGE), (Channel("MLII", "mV"),))
    return _by_person(about, x, y[kept], record[kept], DS2, recipe)


def _by_person(
    about: About, x: Float32, y: Int64, whose: Int64, tested: tuple[int, ...], recipe: DataRecipe
) -> Dataset:
    held = np.isin(whose, tested)
    test = Raw(x[held], y[held])
    rest = Raw(x[~held], y[~held], whose[~held])
    return divide(about, rest, test.pick(in_fixed_order(len(test.y), recipe.split_seed)), recipe)
