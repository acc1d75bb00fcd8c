"""CIFAR-10 in its three forms, and folders of images: small files in the originals' formats, and what is wrong with a folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import struct
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cactus_edge.errors import DataError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data import cifar, load_dataset, sources
from cactus_edge.train.data.sources import Files

CIFAR = DataRecipe(set="cifar10", validation_samples=4)


@pytest.fixture
def arrays() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    counts = {"train": 20, "test": 6}
    x = {f"x_{p}": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for p, n in counts.items()}
    return x | {f"y_{p}": rng.integers(0, 10, n).astype(np.uint8) for p, n in counts.items()}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder and a cache with nothing in them, and no network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    (tmp_path / "cifar10").mkdir()
    return tmp_path


def archive(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """The binary archive: two batches of training records and one of test records."""
    rows = {
        p: np.concatenate([arrays[f"y_{p}"][:, None], arrays[f"x_{p}"].transpose(0, 3, 1, 2).reshape(-1, 3072)], 1)
        for p in cifar.WHOLE
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        batches = {"data_batch_1": rows["train"][:12], "data_batch_2": rows["train"][12:], "test_batch": rows["test"]}
        for name, batch in reversed(batches.items()):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = batch.size
            tar.addfile(entry, io.BytesIO(batch.tobytes()))
    return gzip.compress(stream.getvalue(), mtime=0)


def packed(folder: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """The packed form: planes G, R - G, B - G, differenced along x, then y."""
    meta = {}
    for part in cifar.WHOLE:
        x = arrays[f"x_{part}"]
        planes = np.stack([x[..., 1], x[..., 0] - x[..., 1], x[..., 2] - x[..., 1]])
        for axis in (3, 2):
            planes = np.diff(planes, axis=axis, prepend=np.uint8(0))
        (folder / f"{part}_1.res.xz").write_bytes(lzma.compress(planes.tobytes()))
        np.savez(folder / f"{part}_labels.npz", label=arrays[f"y_{part}"])
        meta[part] = {"parts": [[f"{part}_1.res.xz", len(x), 0]]}
    (folder / "meta.json").write_text(json.dumps(meta))


def test_cifar_from_the_archive_and_from_the_packed_form_are_one(
    empty: Path, arrays: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(arrays)
    files = Files("cifar10", {cifar.ARCHIVE: hashlib.sha256(content).hexdigest()}, "http://example.invalid/")
    monkeypatch.setattr(cifar, "FILES", files)
    monkeypatch.setattr(cifar, "KNOWN", (cifar._version(arrays),))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))
    first = load_dataset(CIFAR)
    assert first.shape == (32, 32, 3) and first.name == "cifar10 (6 of 10,000 test images)"
    assert np.array_equal(first.test.x, arrays["x_test"].astype(np.float32) / 255)
    assert np.array_equal(first.test.y, arrays["y_test"])
    packed(empty / "cifar10", arrays)
    assert load_dataset(CIFAR).digest() == first.digest()
    assert (empty / "cache" / "cifar10" / "cifar10.npz").is_file(), "unpacked once"
    (empty / "cifar10" / "meta.json").unlink()
    assert load_dataset(CIFAR).digest() == first.digest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda f: None, "cifar10.npz: No such file", id="nothing_there"),
        pytest.param(lambda f: (f / "cifar10.npz").write_bytes(b"no zip"), "it is no zip file", id="no_npz"),
        pytest.param(lambda f: np.savez(f / "cifar10.npz", x_train=np.zeros(3)), "x_train is missing or no uint8", id="floats"),
        pytest.param(lambda f: (f / "meta.json").write_text("{}"), "meta.json: 'train'", id="empty_meta"),
        pytest.param(lambda f: (f / cifar.ARCHIVE).write_bytes(b"x"), "wrong checksum", id="another_archive"),
    ],
)  # fmt: skip
def test_what_is_not_cifar_is_named_with_its_place(empty: Path, change: Any, words: str) -> None:
    change(empty / "cifar10")
    with pytest.raises(DataError) as caught:
        load_dataset(CIFAR)
    assert words in str(caught.value) and "no network here" in str(caught.value)


def test_another_npz_is_not_taken_for_cifar(empty: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    np.savez(empty / "cifar10" / "cifar10.npz", **arrays)
    with pytest.raises(DataError, match=r"cifar10\.npz: wrong checksum"):
        load_dataset(CIFAR)


def test_a_damaged_archive_is_refused() -> None:
    for content in (b"no gzip", gzip.compress(b"no tar"), gzip.compress(b"")):
        with pytest.raises(DataError, match="not CIFAR-10"):
            cifar.read_archive(content)


def png(colour: int, samples: int) -> bytes:
    """A PNG of 4 rows and 6 columns with that many samples of 16 bits a pixel."""
    rows = (b"\0" + b"\x12\x34" * 6 * samples) * 4
    header = struct.pack(">IIBBBBB", 6, 4, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks
    )


def spider(path: Path) -> None:
    """A SPIDER image, saved beside and renamed: Pillow would save all later files of the suffix so."""
    Image.new("F", (6, 4)).save(path.with_suffix(".spi"), "SPIDER")
    path.with_suffix(".spi").rename(path)


def image(path: Path, value: int, size: tuple[int, int] = (6, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of three grey pictures of 4 rows and 6 columns, in three formats."""
    for i, suffix in enumerate(("png", "bmp", "pgm")):
        image(tmp_path / "set" / "cat" / f"{i}.{suffix}", 51 * i)
        image(tmp_path / "set" / "dog" / f"{i}.{suffix}", 255)
    return tmp_path / "set"


def load(folder: Path, **more: Any) -> Any:
    return load_dataset(DataRecipe(folder=str(folder), validation_samples=1, **more))


def test_a_folder_of_images(pictures: Path) -> None:
    (pictures / ".hidden").write_text("passed over")
    found = load(pictures, test_samples=2)
    assert found.shape == (4, 6, 1) and found.labels == ("cat", "dog") and found.name == "set"
    x = np.concatenate([s.x for s in (found.train, found.validation, found.test)])
    y = np.concatenate([s.y for s in (found.train, found.validation, found.test)])
    assert sorted(x[y == 0, 0, 0, 0].tolist()) == [0, np.float32(0.2), np.float32(0.4)]
    assert set(x[y == 1].ravel().tolist()) == {1.0}


def test_a_folder_with_its_own_test_images_and_sizes(pictures: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            image(tmp_path / "two" / part / name / "0.png", 255, (8, 8), "RGB")
            image(tmp_path / "two" / part / name / "1.png", 100, (4, 4))
    found = load(tmp_path / "two", size=(4, 4))
    assert found.shape == (4, 4, 3) and len(found.test.y) == 4 and len(found.train.y) == 3
    red = found.test.x[:, 0, 0].tolist().index([1, 0, 0])
    assert np.ptp(found.test.x, (1, 2, 3)).tolist().count(0) == 2, "a grey image among coloured ones has equal channels"
    assert found.test.x[red, ..., 0].min() == 1


def test_the_first_test_images_are_of_all_classes(tmp_path: Path) -> None:
    """A recipe may judge the first n: which these are must not hang on the folders' names."""
    for part, count in (("train", 3), ("test", 20)):
        for name in ("a", "b", "c"):
            for i in range(count):
                image(tmp_path / "two" / part / name / f"{i}.png", i, (4, 4))
    labels = load(tmp_path / "two").test.y
    assert np.bincount(labels).tolist() == [20] * 3 and len(set(labels[:15].tolist())) == 3
    assert load(tmp_path / "two").test.y.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda f: (f / "readme.txt").write_text("x"), "readme.txt stands beside the classes", id="stray_file"),
        pytest.param(lambda f: (f / "emu").mkdir(), "emu holds no image", id="empty_class"),
        pytest.param(lambda f: (f / "cat" / "x.png").write_bytes(b"\x89PNG"), "x.png cannot be read", id="unreadable"),
        pytest.param(lambda f: (f / "cat" / "x.csv").write_text("1"), "x.csv is no image", id="other_suffix"),
        pytest.param(lambda f: image(f / "dog" / "z.png", 1, (9, 9)), r"9 x 9 pixels, .* has 4 x 6", id="mixed_sizes"),
        pytest.param(lambda f: Image.new("I;16", (6, 4)).save(f / "cat" / "x.png"), "mode I;16", id="sixteen_bits"),
        pytest.param(lambda f: (f / "cat" / "x.png").write_bytes(png(2, 3)), "more than 8 bits", id="sixteen_bits_of_colour"),
        pytest.param(lambda f: (f / "cat" / "x.png").write_bytes(png(4, 2)), "more than 8 bits", id="sixteen_bits_of_alpha"),
        pytest.param(lambda f: (f / "cat" / "x.ppm").write_bytes(b"P6 6 4 1023 " + b"\1\2" * 72), "more than 8 bits", id="ten_bits"),
        pytest.param(lambda f: (f / "cat" / "x.pgm").write_bytes(b"P5 0 4 255 "), "x.pgm cannot be read", id="no_pixel"),
        pytest.param(lambda f: spider(f / "cat" / "x.png"), "x.png cannot be read", id="spider"),
        pytest.param(lambda f: Image.new("RGB", (6, 4)).save(f / "cat" / "x.png", "DDS"), "x.png cannot be read", id="dds"),
        pytest.param(lambda f: f.rename(f.parent / "gone"), "cannot read the folder", id="no_folder"),
        pytest.param(
            lambda f: [p.unlink() for p in (f / "dog").iterdir()] + [(f / "dog").rmdir()], "at least two", id="one_class"
        ),
        pytest.param(lambda f: image(f / "train" / "cat" / "0.png", 1) or image(f / "test" / "cat" / "0.png", 1),
                     "train, test and cat", id="classes_beside_train"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_named(pictures: Path, spoil: Any, words: str) -> None:
    spoil(pictures)
    with pytest.raises(DataError, match=words):
        load(pictures, test_samples=1)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, struct.error, IndexError])
def test_whatever_a_decoder_raises_names_the_file(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("inside Pillow")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image: inside Pillow"):
        load(pictures, test_samples=1)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_stand_as_their_exif_orientation_says(pictures: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise brings it upright
    upright = np.zeros((4, 6), np.uint8)
    upright[:2] = 255
    for name in ("cat", "dog"):
        for old in (pictures / name).iterdir():
            old.unlink()
        for i in range(3):
            Image.fromarray(np.rot90(upright)).save(pictures / name / f"{i}.{suffix}", exif=exif, quality=100)
    found = load(pictures, test_samples=1)
    assert found.shape == (4, 6, 1) and np.abs(found.test.x[0, ..., 0] - upright / 255).max() < 0.05


def test_an_image_of_another_of_the_formats_is_read_as_what_it_is(pictures: Path) -> None:
    before = load(pictures, test_samples=1)
    (pictures / "dog" / "0.png").write_bytes((pictures / "dog" / "1.bmp").read_bytes())
    assert load(pictures, test_samples=1).digest() == before.digest()


def test_a_class_in_one_part_only_is_refused(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a"):
        image(tmp_path / name / "0.png", 1)
    with pytest.raises(DataError, match="has the class b"):
        load(tmp_path)
