"""A folder of images of the user's own: one subfolder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError, InstallError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data.dataset import About, Dataset, Raw, divide, in_fixed_order

UInt8 = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm")
DEPTHS = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "P": "RGB",
    "PA": "RGB",
    "RGB": "RGB",
    "RGBA": "RGB",
    "YCbCr": "RGB",
    "CMYK": "RGB",
}
"""Pillow's modes of 8 bits and less -> what they are read as. Transparency is dropped."""

FORMATS = ("PNG", "JPEG", "BMP", "PPM")
"""Pillow's names of what the suffixes stand for, PGM among PPM: the only decoders that a file reaches."""


def load(path: Path, recipe: DataRecipe) -> Dataset:
    """Pixels / 255 of path/CLASS/*.png (JPEG, BMP, PGM, PPM); or of path/train/CLASS and path/test/CLASS. Names order the classes.

    Images stand upright, as their EXIF orientation says. Grey if all images are, else colour. All have one size, or are brought
    to recipe.size by area (Pillow's BOX filter when smaller, else bilinear). Hidden files are passed over. Raises DataError
    for anything else, more than 8 bits a channel included, naming the file.
    """
    below = _folders(path)
    if {"train", "test"} <= {p.name for p in below}:
        if extra := [p.name for p in below if p.name not in ("train", "test")]:
            raise DataError(f"{path} holds train, test and {extra[0]}", hint="train and test alone, or classes alone")
        labels = tuple(p.name for p in _folders(path / "train"))
        tested = tuple(p.name for p in _folders(path / "test"))
        if labels != tested:
            odd = sorted(set(labels) ^ set(tested))[0]
            raise DataError(
                f"{path}: only one of train and test has the class {odd}", hint="a folder for each class in both"
            )
        parts = [path / "train", path / "test"]
    else:
        labels, parts = tuple(p.name for p in below), [path]
    if len(labels) < 2:
        raise DataError(
            f"{parts[0]} has the classes {', '.join(labels) or 'none'}; expected at least two",
            hint="a subfolder a class",
        )
    found = [_read(part, labels, recipe.size) for part in parts]
    images = [image for part, _ in found for image in part]
    channels = max(image.shape[2] for image in images)
    raws = [Raw(_stacked(part, channels), np.array(y, np.int64)) for part, y in found]
    about = About(path.name, labels, "pixel / 255")
    test = None
    if len(raws) == 2:
        # The first n are judged where a recipe says so: in the order of the folders these would all be of one class.
        test = raws[1].pick(in_fixed_order(len(raws[1].y), recipe.split_seed))
    return divide(about, raws[0], test, recipe)


def _folders(path: Path) -> list[Path]:
    """The folders in `path`, by name. Raises DataError where there is no such folder, or files stand beside them."""
    try:
        entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}", hint="[data] folder") from error
    if files := [p for p in entries if not p.is_dir()]:
        raise DataError(f"{files[0]} stands beside the classes", hint="images belong into the folder of their class")
    return entries


def _read(path: Path, labels: Sequence[str], size: Sequence[int]) -> tuple[list[UInt8], list[int]]:
    """The images [H, W, 1 or 3] below path/CLASS, by name, and their classes."""
    images: list[UInt8] = []
    y: list[int] = []
    first: Path | None = None
    for number, label in enumerate(labels):
        files = sorted(p for p in (path / label).iterdir() if not p.name.startswith("."))
        if not files:
            raise DataError(f"the class {path / label} holds no image", hint="remove it, or put images there")
        for file in files:
            image = _image(file, size)
            if first is not None and image.shape[:2] != images[0].shape[:2]:
                (h, w), (h0, w0) = image.shape[:2], images[0].shape[:2]
                raise DataError(
                    f"{file} has {h} x {w} pixels, {first} has {h0} x {w0}", hint=f"[data] size = [{h0}, {w0}]"
                )
            first = first or file
            images.append(image)
            y.append(number)
    return images, y


def _image(path: Path, size: Sequence[int]) -> UInt8:
    """The image uint8 [H, W, 1] or [H, W, 3], turned and mirrored as its EXIF orientation says."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InstallError("images are read with Pillow", hint="pip install 'cactus-edge[build]'") from error
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is no image that is read here", hint=f"one of {', '.join(SUFFIXES)}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode not in DEPTHS:
                raise DataError(f"{path} has Pillow's mode {image.mode}; expected 8 bits a channel", hint="convert it")
            if any(_deep(tile[3]) for tile in getattr(image, "tile", ())):
                raise DataError(f"{path} has more than 8 bits a channel; expected 8 at most", hint="convert it")
            whole = ImageOps.exif_transpose(image).convert(DEPTHS[image.mode])
    except DataError:
        raise
    except Exception as error:  # what Pillow's decoders raise for damaged files is of many types
        raise DataError(f"{path} cannot be read as an image: {error}", hint="remove it, or save it again") from error
    if size and (whole.height, whole.width) != tuple(size):
        smaller = size[0] <= whole.height and size[1] <= whole.width
        method = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
        whole = whole.resize((size[1], size[0]), method)
    pixels = np.asarray(whole, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _deep(arguments: Any) -> bool:
    """Whether Pillow's decoder cuts samples to 8 bits, by its arguments: PNG's raw mode, or PPM's mode and largest value."""
    if isinstance(arguments, tuple):
        return len(arguments) == 2 and isinstance(arguments[1], int) and arguments[1] > 255
    return isinstance(arguments, str) and arguments.endswith(";16B")


def _stacked(images: list[UInt8], channels: int) -> npt.NDArray[np.float32]:
    """float32 [N, H, W, channels] in [0, 1]; grey images among coloured ones have three equal channels."""
    wide = [np.broadcast_to(image, (*image.shape[:2], channels)) for image in images]
    return np.stack(wide).astype(np.float32) / np.float32(255)
