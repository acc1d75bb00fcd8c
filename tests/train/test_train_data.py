"""Data sets: fixed splits, digests, the three places looked at, and what is wrong with a file."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.error
import urllib.request
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cactus_edge.errors import DataError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data import Split, dataset, idx, load_dataset, sources

DIGITS = DataRecipe(set="digits", validation_samples=180, test_samples=360)


def test_digits_are_in_sensor_units_and_split_without_overlap() -> None:
    found = load_dataset(DIGITS)
    assert found.shape == (8, 8, 1)
    assert found.domain == (Fraction(0), Fraction(1))
    assert [len(s.y) for s in (found.train, found.validation, found.test)] == [1257, 180, 360]
    every = np.concatenate([s.x for s in (found.train, found.validation, found.test)])
    assert every.dtype == np.float32 and found.train.y.dtype == np.int64
    assert every.min() == 0 and every.max() == 1
    from sklearn.datasets import load_digits

    assert np.array_equal(np.sort(every.reshape(-1, 64).sum(1)), np.sort(load_digits().data.sum(1) / 16))


def test_the_split_is_fixed_for_ever() -> None:
    assert load_dataset(DIGITS).test.digest() == load_dataset(DIGITS).test.digest()
    assert dataset.in_fixed_order(6, 0).tolist() == FIRST_SIX
    other = DataRecipe(set="digits", validation_samples=180, test_samples=360, split_seed=1)
    assert load_dataset(other).digest() != load_dataset(DIGITS).digest()


FIRST_SIX = sorted(range(6), key=lambda i: hashlib.sha256(f"0:{i}".encode()).digest())


def test_digest_covers_dtype_shape_and_bytes() -> None:
    x, y = np.zeros((2, 2, 2, 1), np.float32), np.zeros(2, np.int64)
    seen = {
        Split(x, y).digest(),
        Split(x.reshape(2, 4, 1, 1), y).digest(),
        Split(x + 1, y).digest(),
        Split(x, y + 1).digest(),
    }
    assert len(seen) == 4


def _refuse(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("no network here")


def test_a_missing_set_names_the_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path / "env"))
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    with pytest.raises(DataError) as caught:
        load_dataset(DataRecipe(set="mnist", validation_samples=10))
    message = str(caught.value)
    file = "train-images-idx3-ubyte.gz"
    assert f"{tmp_path / 'env' / 'mnist' / file}: No such file" in message
    assert f"{tmp_path / 'cache' / 'mnist' / file}: No such file" in message
    assert "ossci-datasets" in message and "no network here" in message
    assert sources.ENVIRONMENT in caught.value.hint


def test_an_unset_variable_is_one_of_the_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sources.ENVIRONMENT, raising=False)
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    with pytest.raises(DataError, match=f"{sources.ENVIRONMENT}: not set"):
        load_dataset(DataRecipe(set="fashion-mnist", validation_samples=10))


def _idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture
def small_set(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small IDX files, registered as the set `mnist` with their checksums."""
    rng = np.random.default_rng(0)
    files = {
        name: _idx(
            rng.integers(0, 256 if "images" in name else 10, (20, 4, 4) if "images" in name else (20,), np.uint8)
        )
        for name in idx.FILES.values()
    }
    known = idx.Idx(
        "http://example.invalid/", {n: hashlib.sha256(b).hexdigest() for n, b in files.items()}, tuple("0123456789")
    )
    monkeypatch.setitem(idx.SETS, "mnist", known)
    return files


def test_a_download_is_checked_and_kept_in_the_cache(
    small_set: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path / "empty"))
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(small_set[url.rsplit("/", 1)[1]]))
    recipe = DataRecipe(set="mnist", validation_samples=5)
    first = load_dataset(recipe)
    assert {p.name: p.read_bytes() for p in (tmp_path / "cache" / "mnist").iterdir()} == small_set
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    assert load_dataset(recipe).digest() == first.digest()
    assert first.shape == (4, 4, 1) and len(first.test.y) == 20 and len(first.train.y) == 15


def test_a_damaged_file_is_not_used(
    small_set: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, content in small_set.items():
        (folder / name).write_bytes(content[:-1] + b"\x01" if "train-images" in name else content)
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", _refuse)
    with pytest.raises(DataError, match="wrong checksum"):
        load_dataset(DataRecipe(set="mnist", validation_samples=5))


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"\0\0\x08\x01", mtime=0), gzip.compress(b"\0\0\x08\x03" + b"\0" * 12 + b"x", mtime=0)],
    ids=["no_gzip", "short_header", "one_byte_too_many"],
)
def test_what_is_not_idx_is_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        idx.read(content, 3)


def _own(path: Path, **arrays: Any) -> DataRecipe:
    np.savez(path, **arrays)
    return DataRecipe(file=str(path), validation_samples=2, test_samples=3)


def test_own_data(tmp_path: Path) -> None:
    x, y = np.linspace(0, 1, 10 * 9, dtype=np.float64).reshape(10, 3, 3), np.arange(10) % 3
    found = load_dataset(_own(tmp_path / "mine.npz", x=x, y=y, labels=np.array(["a", "b", "c"])))
    assert found.name == "mine" and found.labels == ("a", "b", "c") and found.shape == (3, 3, 1)
    assert len(found.train.y) == 5 and found.train.x.dtype == np.float32


def test_labels_may_name_classes_that_have_no_sample(tmp_path: Path) -> None:
    x, y = np.zeros((10, 3, 3, 1), np.float32), np.arange(10) + 20
    found = load_dataset(_own(tmp_path / "mine.npz", x=x, y=y.astype(np.uint64), labels=np.arange(30)))
    assert len(found.labels) == 30 and found.train.y.dtype == np.int64 and found.train.y.min() >= 20


X, Y = np.zeros((10, 3, 3, 1), np.float32), np.arange(10) % 2
BROKEN = np.full(2, 0x7FFFFFFF, np.uint32).view("<U1")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        pytest.param({"x": X}, "expected x and y", id="no_labels"),
        pytest.param({"x": X + 2, "y": Y}, r"leaves \[0, 1\]", id="not_in_unit_range"),
        pytest.param({"x": X * np.nan, "y": Y}, "not finite", id="nan"),
        pytest.param({"x": X.astype(np.uint8), "y": Y}, "floating point", id="bytes"),
        pytest.param({"x": X[0], "y": Y}, r"expected (floating|10)|class numbers", id="one_sample_without_axis"),
        pytest.param({"x": X, "y": Y[:5]}, "class numbers", id="fewer_labels"),
        pytest.param({"x": X, "y": Y - 1}, "class numbers", id="negative_label"),
        pytest.param({"x": X, "y": (Y - 1).astype(np.uint32)}, "y holds 4294967295; expected .* 0 to 9", id="wrapped_label"),
        pytest.param({"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63 + 5)}, "y holds 9223372036854775814", id="label_beyond_int64"),
        pytest.param({"x": X, "y": Y + 9}, "y holds 10; expected class numbers from 0 to 9, as x has 10", id="label_as_large_as_samples"),
        pytest.param({"x": X, "y": Y, "x_test": X, "y_test": Y * 20_000}, "y_test holds 20000", id="large_test_label"),
        pytest.param(
            {"x": X, "y": (Y - 1).astype(np.uint32), "labels": np.array(["a", "b"])}, "0 to 65535", id="wrapped_label_with_names"
        ),
        pytest.param({"x": X, "y": Y, "labels": np.zeros(1 << 17, np.int8)}, "at most 65536", id="names_without_end"),
        pytest.param({"x": X, "y": Y, "group": Y.astype(np.uint64) + np.uint64(2**63)}, "integers below", id="group_beyond_int64"),
        pytest.param({"x": np.zeros((10, 0, 8, 1)), "y": Y}, "holds no number", id="no_rows"),
        pytest.param({"x": np.zeros((10, 8, 8, 0)), "y": Y}, "holds no number", id="no_channels"),
        pytest.param({"x": X, "y": Y, "x_test": X[:0], "y_test": Y[:0]}, "x_test .* holds no number", id="no_test_sample"),
        pytest.param({"x": X, "y": Y, "labels": np.array(["one"])}, "1 labels for 2", id="names_missing"),
        pytest.param({"x": X, "y": Y, "labels": np.array("ab")}, r"labels have shape \(\)", id="one_name"),
        pytest.param({"x": X, "y": Y, "labels": BROKEN}, "codec can't decode", id="names_no_text"),
        pytest.param(
            {"x": X, "y": Y, "labels": np.array(["a", None])}, "expected strings or plain numbers", id="objects"
        ),
        pytest.param({"x": X, "y": Y.astype("U1")}, "expected plain numbers", id="text_as_numbers"),
        pytest.param({"x": X[:4], "y": Y[:4]}, "leave none", id="too_few"),
        pytest.param({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, "x_test has samples", id="other_test_shape"),
    ],
)  # fmt: skip
def test_bad_own_data_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(_own(tmp_path / "bad.npz", **arrays))


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(DataRecipe(file=str(tmp_path / "bad.npz"), validation_samples=2))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00__import__('os')\n")
    with pytest.raises(DataError, match="has the header"):
        load_dataset(DataRecipe(file=str(tmp_path / "bad.npz"), validation_samples=2))


def test_an_unknown_set() -> None:
    with pytest.raises(DataError, match="no data set is called 'emnist'"):
        load_dataset(DataRecipe(set="emnist", validation_samples=2))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_original_files_have_the_registered_checksums(data_folder: Path, name: str) -> None:
    folder = data_folder / name
    if not folder.is_dir():
        pytest.skip(f"no {name} there")
    for file, digest in idx.SETS[name].sha256.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
