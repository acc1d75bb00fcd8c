"""The user's own arrays in an .npz file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.recipe_sections import ChannelRecipe, DataRecipe
from cactus_edge.samples import read_arrays
from cactus_edge.train.data.dataset import UNIT, About, Channel, Dataset, Float32, Raw, Split, divide

ARRAYS = ("x", "y", "x_test", "y_test", "labels", "group")

MOST_CLASSES = 1 << 16
"""More classes than any network here has: what is beyond is no class number."""


def load(path: Path, recipe: DataRecipe) -> Dataset:
    """An .npz with x float [N, H, W, C] or [N, H, W] in [0, 1], y integer [N]; optionally x_test, y_test, labels, group.

    Class numbers are below the number of labels, or of x's samples where labels is not there: each class has a sample.
    With [[data.channel]] tables x is in their units, one table a channel, and is divided by the larger end of each range.
    group integer [N]: whose each sample of x is, for validation_groups. Raises DataError for anything else.
    """
    arrays = read_arrays(path, ARRAYS, text=("labels",))
    split = _checked(path, arrays, "x", "y", recipe.channel)
    test = None
    if "x_test" in arrays or "y_test" in arrays:
        test = _checked(path, arrays, "x_test", "y_test", recipe.channel, samples=len(split.y))
    if test is not None and test.x.shape[1:] != split.x.shape[1:]:
        raise DataError(
            f"{path}: x_test has samples of shape {test.x.shape[1:]}, x of {split.x.shape[1:]}",
            hint="one shape for both",
        )
    classes = int(max(split.y.max(), -1 if test is None else test.y.max())) + 1
    labels = _labels(path, arrays["labels"]) if "labels" in arrays else tuple(str(i) for i in range(classes))
    if len(labels) < max(classes, 2):
        raise DataError(f"{path}: {len(labels)} labels for {classes} classes (at least 2)", hint="one label per class")
    group = arrays.get("group")
    if group is not None and (
        group.shape != split.y.shape or group.dtype.kind not in "iu" or int(group.max()) > np.iinfo(np.int64).max
    ):
        raise DataError(
            f"{path}: group is {group.dtype} of shape {group.shape}; expected {len(split.y)} integers below 2^63",
            hint="one number for each sample of x: whose it is",
        )
    raw = Raw(split.x, split.y, None if group is None else group.astype(np.int64))
    return divide(about(path.stem, labels, recipe), raw, test, recipe)


def about(name: str, labels: tuple[str, ...], recipe: DataRecipe) -> About:
    """The words: what the recipe's channels say, or values as they are."""
    if not recipe.channel:
        return About(name, labels, "values in [0, 1] as given")
    channels = tuple(Channel(c.name, c.unit, scale(c)) for c in recipe.channel)
    words = ", ".join(f"{c.name} / {c.scale} {c.unit}" for c in channels)
    return About(name, labels, words, (Fraction(-1), Fraction(1)) if signed(recipe) else UNIT, channels)


def scale(channel: ChannelRecipe) -> Fraction:
    """The larger magnitude among the ends of the channel's range."""
    return max(abs(channel.low), abs(channel.high))


def signed(recipe: DataRecipe) -> bool:
    """Whether a channel can be below zero."""
    return any(channel.low < 0 for channel in recipe.channel)


def _labels(path: Path, names: npt.NDArray[Any]) -> tuple[str, ...]:
    if names.ndim != 1 or len(names) > MOST_CLASSES:
        raise DataError(
            f"{path}: labels have shape {names.shape}; expected [classes], at most {MOST_CLASSES}",
            hint="one label per class",
        )
    return tuple(str(name) for name in names)


def _checked(
    path: Path,
    arrays: dict[str, npt.NDArray[Any]],
    x_key: str,
    y_key: str,
    channels: tuple[ChannelRecipe, ...],
    samples: int | None = None,
) -> Split:
    """The arrays x_key and y_key; samples: how many there are of x, None for as many as of x_key. Raises DataError."""
    if x_key not in arrays or y_key not in arrays:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected {x_key} and {y_key}",
            hint="np.savez(path, x=x, y=y)",
        )
    x, y = arrays[x_key], arrays[y_key]
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or not np.issubdtype(x.dtype, np.floating):
        raise DataError(
            f"{path}: {x_key} is {x.dtype} of shape {x.shape}; expected floating point [N, H, W, C]",
            hint="scale to [0, 1]",
        )
    if x.size == 0:
        raise DataError(f"{path}: {x_key} of shape {x.shape} holds no number", hint="no size of 0 in [N, H, W, C]")
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or len(y) == 0 or y.min() < 0:
        raise DataError(
            f"{path}: {y_key} is {y.dtype} of shape {y.shape}; expected {len(x)} class numbers from 0",
            hint="integer labels",
        )
    most = MOST_CLASSES if "labels" in arrays else min(len(x) if samples is None else samples, MOST_CLASSES)
    if int(y.max()) >= most:
        raise DataError(
            f"{path}: {y_key} holds {y.max()}; expected class numbers from 0 to {most - 1}, "
            + ("the most that are read" if most == MOST_CLASSES else f"as x has {most} samples"),
            hint="number the classes 0, 1, 2, ... without gaps; the array labels names classes that have no sample",
        )
    if channels:
        return Split(_divided(path, x_key, x, channels), y.astype(np.int64))
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise DataError(
            f"{path}: {x_key} leaves [0, 1] or is not finite",
            hint="scale the sensor's range to [0, 1], or name it: [[data.channel]] with name, unit, low and high",
        )
    return Split(x.astype(np.float32), y.astype(np.int64))


def _divided(path: Path, key: str, x: npt.NDArray[Any], channels: tuple[ChannelRecipe, ...]) -> Float32:
    """x by its channels' scales; the quotients of the ends are ends of [-1, 1] or inside."""
    if x.shape[-1] != len(channels):
        raise DataError(
            f"{path}: {key} has {x.shape[-1]} channels, the recipe names {len(channels)}",
            hint="one [[data.channel]] table for each, in order",
        )
    for i, channel in enumerate(channels):
        low, high = x[..., i].min(), x[..., i].max()
        if not (np.isfinite(low) and np.isfinite(high) and channel.low <= low.item() and high.item() <= channel.high):
            raise DataError(
                f"{path}: {key} holds {low} to {high} {channel.unit} in the channel {channel.name}, "
                f"whose range is [{channel.low}, {channel.high}]",
                hint="a wider range, or clip the data to what the sensor can deliver",
            )
    scales = np.array([float(scale(c)) for c in channels])
    quotient: Float32 = (x.astype(np.float64) / scales).astype(np.float32)
    return quotient
