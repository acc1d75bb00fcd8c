"""Data sets in sensor units: what a recipe's [data] names, split once and for all training seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from cactus_edge.errors import DataError, InstallError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data import cifar, folder, idx, own, signals
from cactus_edge.train.data.dataset import About, Channel, Dataset, Float32, Int64, Raw, Split, divide
from cactus_edge.train.data.sources import ENVIRONMENT

SETS: dict[str, Callable[[DataRecipe], Dataset]] = {
    "digits": lambda recipe: _digits(recipe),
    **{name: partial(idx.load, name) for name in idx.SETS},
    "cifar10": cifar.load,
    "har": signals.har,
    "ecg": signals.ecg,
}
"""The built-in data sets."""


def load_dataset(recipe: DataRecipe) -> Dataset:
    """The data set that the recipe names. Raises DataError where it is missing, damaged or too small for the split."""
    whole, count = _whole(recipe), recipe.train_samples
    whole = whole.centred(recipe.centre) if recipe.centre else whole
    if count > len(whole.train.y):
        raise DataError(
            f"[data] train_samples = {count}, and {whole.name!r} leaves {len(whole.train.y)} to train on",
            hint="0 for all of them",
        )
    return replace(whole, train=Split(whole.train.x[:count], whole.train.y[:count])) if count else whole


def _whole(recipe: DataRecipe) -> Dataset:
    if recipe.file:
        return own.load(Path(recipe.file), recipe)
    if recipe.folder:
        return folder.load(Path(recipe.folder), recipe)
    if recipe.set in SETS:
        return SETS[recipe.set](recipe)
    raise DataError(
        f"no data set is called {recipe.set!r}; there are {', '.join(SETS)}",
        hint='[data] file = "mine.npz" or folder = "images" for your own',
    )


def _digits(recipe: DataRecipe) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InstallError(
            "the digits come with scikit-learn, which is not installed", hint="pip install 'cactus-edge[build]'"
        ) from error
    raw = load_digits()
    x = (np.asarray(raw.images, np.float32) / np.float32(16))[..., None]
    y = np.asarray(raw.target, np.int64)
    return divide(About("digits", tuple(str(i) for i in range(10)), "pixel / 16"), Raw(x, y), None, recipe)


__all__ = ["ENVIRONMENT", "SETS", "Channel", "Dataset", "Float32", "Int64", "Split", "load_dataset"]
