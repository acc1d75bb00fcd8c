"""Where training keeps what it has, and the key of everything that decides the weights, so that runs never mix."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_sections import CompressRecipe
from cactus_edge.train.build import own_start
from cactus_edge.train.data import Dataset
from cactus_edge.train.grids import input_grid
from cactus_edge.train.stages import Stage

_FORMAT = 1


def checkpoint(
    recipe: Recipe, dataset: Dataset, workdir: Path, method: str | None = None, seed: int | None = None
) -> Path:
    """Where `train` keeps what it has, in the form of torch.save for weights_only.

    `network` holds parameters and statistics by name, `stage` and `epoch` are the position, `history` one record an epoch.
    """
    method = recipe.train.method if method is None else method
    number = recipe.train.seed if seed is None else seed
    return workdir / f"train-{method}-{number}-{run_key(recipe, dataset, method, seed)[:12]}.pt"


def run_key(recipe: Recipe, dataset: Dataset, method: str | None = None, seed: int | None = None) -> str:
    """SHA-256 (hex) of everything that decides the trained weights besides the code and the number of threads."""
    content = [
        _FORMAT,
        recipe.digest("model", "train", "compress"),
        str(recipe.certify.eps),
        recipe.quantise.train_clip,
        dataset.digest(),
        recipe.train.method if method is None else method,
        recipe.train.seed if seed is None else seed,
    ]
    rounded = {"quantised", "joint"} & {*recipe.train.members, *recipe.compress.members}
    if recipe.quantise.symmetric and rounded:  # else nothing in training knows the number of levels
        content.append(recipe.quantise.levels)
    if recipe.quantise.weight_bits != (8,) and rounded | (
        {"perturbed"} & {*recipe.train.members, *recipe.compress.members}
    ):
        content.append(list(recipe.quantise.weight_bits))
    window = input_grid(recipe, dataset).window(dataset.domain)
    if window is not None:  # else nothing in training knows the steps of the input
        content.append(list(window))
    if recipe.quantise.weight_bytes:
        content.append([recipe.quantise.weight_bytes, recipe.quantise.levels])
    start = own_start(recipe.model, dataset.shape, len(dataset.labels), recipe.train.seed if seed is None else seed)
    return hashlib.sha256(json.dumps(content + start).encode()).hexdigest()


def kept(file: Path) -> bytes | None:
    """What lies there; None where nothing does. Raises InputError for a file that cannot be read."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}", hint="choose another folder") from error


def require_intact(content: bytes) -> None:
    """Raises ValueError where a part of what torch.save wrote has not its CRC-32, which torch.load does not look at."""
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged: its checksum is another")


def shared(recipe: Recipe, dataset: Dataset, workdir: Path, stage: Stage, seed: int) -> tuple[Path, str]:
    """Checkpoint of a first stage that several methods share, and its key: the same whatever comes after."""
    train, quantise = replace(recipe.train, method=stage.name), replace(recipe.quantise, weight_bytes=0)
    alone = replace(recipe, train=train, compress=CompressRecipe(), quantise=quantise)
    key = run_key(alone, dataset, seed=seed)
    return workdir / f"train-{stage.name}-{seed}-{key[:12]}.pt", key
