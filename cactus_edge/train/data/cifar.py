"""CIFAR-10, from the original binary archive, an .npz, or a packed form without the images that its source lacks.

The binary archive is what is downloaded: unlike the Python one it holds no pickles.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.samples import read_arrays
from cactus_edge.train.data.dataset import About, Dataset, Raw, Split, divide
from cactus_edge.train.data.sources import Files, find, keep, missing, places

UInt8 = npt.NDArray[np.uint8]

ARCHIVE = "cifar-10-binary.tar.gz"
FILES = Files(
    "cifar10",
    {ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    "https://www.cs.toronto.edu/~kriz/",
)
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WHOLE = {"train": 50000, "test": 10000}
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Known:
    """A version of the set by what it holds: SHA-256 over the pixels, as [N, 3, 32, 32], and over the labels, of both parts."""

    train: tuple[str, str]
    test: tuple[str, str]


KNOWN = (
    # 49,923 and 9,980 images, all that public partitions of the set hold.
    Known(
        (
            "3d14299e7f91017e981310746f5b9f436ec52b8598aa4619dc1843a587551a21",
            "2173b88eaa7c8e2c2252fcd38a6bd65b8aeefcdd125d8e5c2508d7e19ef4a250",
        ),
        (
            "80cb0f7648d95b2ac7756ff4706defcab927c786b939433e5d187d76f38fc831",
            "ab65b238c81e4a69f393a6171c6b9ec7cf525ec5b6a17a895729ca01f9b5625d",
        ),
    ),
)
"""Versions without the original archive."""

Arrays = dict[str, UInt8]
"""x_train, x_test uint8 [N, 32, 32, 3] and y_train, y_test uint8 [N]."""


def load(recipe: DataRecipe) -> Dataset:
    """Pixels / 255, [N, 32, 32, 3]; the name says how many test images there are where some are missing."""
    arrays = _arrays()
    parts = {}
    for part in WHOLE:
        x = arrays[f"x_{part}"].astype(np.float32)
        x /= np.float32(255)
        parts[part] = Raw(x, arrays[f"y_{part}"].astype(np.int64))
    count = len(parts["test"].y)
    name = "cifar10" if count == WHOLE["test"] else f"cifar10 ({count:,} of {WHOLE['test']:,} test images)"
    test = Split(parts["test"].x, parts["test"].y)
    return divide(About(name, LABELS, "pixel / 255"), parts["train"], test, recipe)


def _arrays() -> Arrays:
    """From the first place that has it: the archive, `cifar10.npz`, the packed form; last the download of the archive."""
    failures: list[str] = []
    forms: tuple[tuple[str, Callable[[Path], Arrays]], ...] = (("cifar10.npz", read_npz), ("meta.json", unpack))
    for name, read in forms:
        for path in places("cifar10", name):
            if not path.is_file():
                failures.append(f"{path}: No such file")
                continue
            try:
                found = read(path)
            except (DataError, OSError, ValueError, KeyError, EOFError, lzma.LZMAError) as error:
                failures.append(f"{path}: {error}")
                continue
            if _version(found) in KNOWN:
                if read is unpack:
                    keep("cifar10", "cifar10.npz", found)  # unpacking takes a while
                return found
            failures.append(f"{path}: wrong checksum (damaged, or another version)")
    content, more = find(FILES, ARCHIVE)
    if content is None:
        raise missing("cifar10", ARCHIVE, more + failures)
    return read_archive(content)


def read_npz(path: Path) -> Arrays:
    """x_train, y_train, x_test, y_test of an .npz; labels are bytes. Raises DataError."""
    arrays = read_arrays(path, ARRAYS)
    for name in ARRAYS:
        if name not in arrays or arrays[name].dtype != np.uint8:
            raise DataError(f"{path}: {name} is missing or no uint8", hint="x_train, y_train, x_test, y_test of bytes")
    return {name: arrays[name] for name in ARRAYS}


def unpack(meta: Path) -> Arrays:
    """The packed form beside its meta.json: per part an xz file of uint8 [3, N, 32, 32], planes G, R - G, B - G, each differenced
    along x, then along y, all modulo 256; labels in PART_labels.npz.
    """
    about, found = json.loads(meta.read_text()), {}
    for part in WHOLE:
        images = []
        for name, count, _ in about[part]["parts"]:
            planes = np.frombuffer(lzma.decompress((meta.parent / Path(name).name).read_bytes()), np.uint8)
            planes = planes.reshape(3, count, 32, 32).cumsum(3, dtype=np.uint8).cumsum(2, dtype=np.uint8)
            images.append(np.stack([planes[0] + planes[1], planes[0], planes[0] + planes[2]], -1))
        found[f"x_{part}"] = np.concatenate(images)
        found[f"y_{part}"] = read_arrays(meta.parent / f"{part}_labels.npz", ("label",))["label"]
    return found


def read_archive(content: bytes) -> Arrays:
    """The original binary archive: files of records of one label and 3 x 32 x 32 bytes. Raises DataError."""
    batches: dict[str, list[UInt8]] = {"train": [], "test": []}
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                stream = archive.extractfile(member) if member.name.endswith(".bin") else None
                if stream is not None:
                    part = "test" if "test" in member.name else "train"
                    batches[part].append(np.frombuffer(stream.read(), np.uint8).reshape(-1, 3073))
        rows = {part: np.concatenate(found) for part, found in batches.items()}
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"not CIFAR-10's binary archive: {error}", hint="download it again") from error
    return {f"y_{part}": found[:, 0] for part, found in rows.items()} | {
        f"x_{part}": found[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for part, found in rows.items()
    }


def _version(arrays: Arrays) -> Known:
    return Known(*((_sha(arrays[f"x_{p}"].transpose(0, 3, 1, 2)), _sha(arrays[f"y_{p}"])) for p in WHOLE))


def _sha(array: UInt8) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
