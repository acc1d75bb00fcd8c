"""Data sets in sensor units: what a recipe's [data] names, split once and for all training seeds."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError, InstallError
from cactus_edge.recipe import DataRecipe
from cactus_edge.resources import cache_folder, write_atomic
from cactus_edge.samples import read_arrays

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

ENVIRONMENT = "CACTUS_EDGE_DATA"
"""Environment variable with the folder that holds one folder per data set."""


@dataclass(frozen=True, eq=False)
class Split:
    """x float32 [N, H, W, C] in sensor units, y int64 [N]."""

    x: Float32
    y: Int64

    def digest(self) -> str:
        """SHA-256 (hex) over dtype, shape and little-endian bytes of x, then y."""
        h = hashlib.sha256()
        for array in (self.x, self.y):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            h.update(f"{little.dtype.str}{little.shape}".encode())
            h.update(little.tobytes())
        return h.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; `test` is looked at once, `validation` decides. domain: the sensor's range, exact.

    labels: name per class. preprocessing: how sensor units come from the raw values, for the manifest.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    preprocessing: str
    domain: tuple[Fraction, Fraction] = (Fraction(0), Fraction(1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a sample."""
        h, w, c = self.train.x.shape[1:]
        return int(h), int(w), int(c)

    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the three splits in the order train, validation, test."""
        return hashlib.sha256(
            "".join(s.digest() for s in (self.train, self.validation, self.test)).encode()
        ).hexdigest()


@dataclass(frozen=True)
class _Idx:
    """A set in the original IDX files: where from, SHA-256 per file, class names."""

    url: str
    sha256: dict[str, str]
    labels: tuple[str, ...]


_FILES = {
    ("train", "x"): "train-images-idx3-ubyte.gz",
    ("train", "y"): "train-labels-idx1-ubyte.gz",
    ("test", "x"): "t10k-images-idx3-ubyte.gz",
    ("test", "y"): "t10k-labels-idx1-ubyte.gz",
}

_IDX_SETS = {
    "mnist": _Idx(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        tuple(str(i) for i in range(10)),
    ),
    "fashion-mnist": _Idx(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def load_dataset(recipe: DataRecipe) -> Dataset:
    """The data set that the recipe names. Raises DataError where it is missing, damaged or too small for the split."""
    if recipe.file:
        return _own(Path(recipe.file), recipe)
    if recipe.set == "digits":
        return _digits(recipe)
    if recipe.set in _IDX_SETS:
        return _idx(recipe.set, recipe)
    raise DataError(
        f"no data set is called {recipe.set!r}; there are {', '.join(('digits', *_IDX_SETS))}",
        hint='[data] file = "mine.npz" for your own',
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
    return _divide("digits", Split(x, y), None, tuple(str(i) for i in range(10)), "pixel / 16", recipe)


def _idx(name: str, recipe: DataRecipe) -> Dataset:
    source = _IDX_SETS[name]
    raw = {key: _read_idx(_locate(name, source, file), 3 if key[1] == "x" else 1) for key, file in _FILES.items()}

    def split(part: str) -> Split:
        x = raw[part, "x"].astype(np.float32)
        x /= np.float32(255)
        return Split(x[..., None], raw[part, "y"].astype(np.int64))

    return _divide(name, split("train"), split("test"), source.labels, "pixel / 255", recipe)


def _locate(name: str, source: _Idx, file: str) -> bytes:
    """The file's bytes with the right checksum, from CACTUS_EDGE_DATA, the user's cache or the canonical download, in this order."""
    failures: list[str] = []
    folder = os.environ.get(ENVIRONMENT)
    cached = cache_folder() / name / file
    if not folder:
        failures.append(f"{ENVIRONMENT}: not set")
    for path in ([Path(folder) / name / file] if folder else []) + [cached]:
        try:
            content = path.read_bytes()
        except OSError as error:
            failures.append(f"{path}: {error.strerror or error}")
            continue
        if hashlib.sha256(content).hexdigest() == source.sha256[file]:
            return content
        failures.append(f"{path}: wrong checksum (damaged, or another version)")
    url = source.url + file
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            content = reply.read()
    except (OSError, urllib.error.URLError, ValueError) as error:
        failures.append(f"{url}: {getattr(error, 'reason', error)}")
    else:
        if hashlib.sha256(content).hexdigest() == source.sha256[file]:
            write_atomic(cached, content)
            return bytes(content)
        failures.append(f"{url}: wrong checksum")
    raise DataError(
        f"the data set {name!r} lacks {file}; looked at\n  " + "\n  ".join(failures),
        hint=f"put it at {cached}, or set {ENVIRONMENT} to a folder that holds {name}/{file}",
    )


def _read_idx(content: bytes, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes: magic 0, 0, 8, dimensions; big-endian uint32 sizes; the bytes."""
    try:
        data = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"not a gzip file: {error}", hint="download it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"not an IDX file of {dimensions}-d unsigned bytes: begins with {data[:4].hex()}", hint="download it again"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, 4))
    if len(data) != header + int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"an IDX file of shape {shape} needs {int(np.prod(shape)) + header} bytes, got {len(data)}",
            hint="download it again",
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _own(path: Path, recipe: DataRecipe) -> Dataset:
    """An .npz with x float [N, H, W, C] or [N, H, W] in [0, 1], y integer [N]; optionally x_test, y_test, labels."""
    arrays = read_arrays(path, ("x", "y", "x_test", "y_test", "labels"), text=("labels",))
    split = _checked(path, arrays, "x", "y")
    test = _checked(path, arrays, "x_test", "y_test") if "x_test" in arrays or "y_test" in arrays else None
    if test is not None and test.x.shape[1:] != split.x.shape[1:]:
        raise DataError(
            f"{path}: x_test has samples of shape {test.x.shape[1:]}, x of {split.x.shape[1:]}",
            hint="one shape for both",
        )
    classes = int(max(split.y.max(), -1 if test is None else test.y.max())) + 1
    labels = _labels(path, arrays["labels"]) if "labels" in arrays else tuple(str(i) for i in range(classes))
    if len(labels) < max(classes, 2):
        raise DataError(f"{path}: {len(labels)} labels for {classes} classes (at least 2)", hint="one label per class")
    return _divide(path.stem, split, test, labels, "values in [0, 1] as given", recipe)


def _labels(path: Path, names: npt.NDArray[Any]) -> tuple[str, ...]:
    if names.ndim != 1:
        raise DataError(f"{path}: labels have shape {names.shape}; expected [classes]", hint="one label per class")
    return tuple(str(name) for name in names)


def _checked(path: Path, arrays: dict[str, npt.NDArray[Any]], x_key: str, y_key: str) -> Split:
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
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or len(y) == 0 or y.min() < 0:
        raise DataError(
            f"{path}: {y_key} is {y.dtype} of shape {y.shape}; expected {len(x)} class numbers from 0",
            hint="integer labels",
        )
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise DataError(f"{path}: {x_key} leaves [0, 1] or is not finite", hint="scale the sensor's range to [0, 1]")
    return Split(x.astype(np.float32), y.astype(np.int64))


def _divide(
    name: str, rest: Split, test: Split | None, labels: tuple[str, ...], preprocessing: str, recipe: DataRecipe
) -> Dataset:
    """Test samples first (where the set has none of its own), then validation samples, in the order drawn by split_seed."""
    order = _shuffled(len(rest.y), recipe.split_seed)
    tests = 0 if test is not None else recipe.test_samples
    if test is None and tests == 0:
        raise DataError(
            f"the data set {name!r} brings no test samples and [data] test_samples is 0", hint="test_samples = 360"
        )
    if tests + recipe.validation_samples >= len(order):
        raise DataError(
            f"{tests} test and {recipe.validation_samples} validation samples leave none of {len(order)} to train on",
            hint="smaller splits",
        )

    def pick(index: Int64) -> Split:
        return Split(np.ascontiguousarray(rest.x[index]), np.ascontiguousarray(rest.y[index]))

    stop = tests + recipe.validation_samples
    chosen = test if test is not None else pick(order[:tests])
    return Dataset(name, pick(order[stop:]), pick(order[tests:stop]), chosen, labels, preprocessing)


def _shuffled(count: int, seed: int) -> Int64:
    """0 .. count - 1 in the order of SHA-256("seed:index"): fixed for ever, whatever the version of numpy."""
    keys = [hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(count)]
    return np.asarray(sorted(range(count), key=keys.__getitem__), np.int64)
