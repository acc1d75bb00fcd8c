"""Signals: people and patients stay on one side of every split, values and radii keep their unit."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cactus_edge.errors import DataError
from cactus_edge.recipe_sections import ChannelRecipe, DataRecipe
from cactus_edge.recipe_values import radius
from cactus_edge.train.data import load_dataset, mitdb, sources, uci_har
from cactus_edge.train.data.sources import Files

WINDOWS = 4
PERSONS = (1, 2, 3, 4)
"""2 and 4 are persons of the test set."""


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def har_file() -> bytes:
    """Every value is person + channel / 16 + window / 64, so that a sample says where it comes from; then one value too large."""
    person, window = np.repeat(PERSONS, WINDOWS), np.tile(np.arange(WINDOWS), len(PERSONS))
    x = np.empty((len(person), 9, 128), np.float32)
    x[:] = (person / 8 + window / 64)[:, None, None] + (np.arange(9) / 16)[None, :, None]
    x[0, 6, 5] = 5
    return npz(X=x, y=(window % 6).astype(np.uint8), subject=person.astype(np.uint8))


def ecg_files() -> dict[str, bytes]:
    """Three beats of each of five records, the last of them of a record in neither set; sample 96 is the peak."""
    record = np.repeat(np.array([101, 106, 108, 100, 102], np.uint8), 3)
    x = np.full((15, 256), 1024, np.int16)
    x[:, 96] = 1024 + 200
    x[0, 0] = 2047
    stream = io.BytesIO()
    np.save(stream, x)
    meta = npz(y=np.tile(np.array([0, 2, 4], np.uint8), 5), record=record)
    return {"mitdb_beats_X.npy.xz": lzma.compress(stream.getvalue()), "mitdb_beats_meta.npz": meta}


def put(folder: Path, name: str, contents: dict[str, bytes]) -> Files:
    (folder / name).mkdir(parents=True)
    for file, content in contents.items():
        (folder / name / file).write_bytes(content)
    return Files(name, {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()})


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a small har and a small ecg whose checksums are expected."""
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(mitdb, "RAW", Files("ecg", {"100.hea": ""}))
    monkeypatch.setattr(uci_har, "RAW", Files("har", {uci_har.ARCHIVE: ""}))
    monkeypatch.setattr(uci_har, "PREPARED", put(tmp_path, "har", {"uci_har.npz": har_file()}))
    monkeypatch.setattr(mitdb, "PREPARED", put(tmp_path, "ecg", ecg_files()))
    return tmp_path


def persons(x: np.ndarray[Any, Any]) -> set[int]:
    """Whose the windows are, from their first total_acc_x, which is half of (person / 8 + window / 64 + 6 / 16)."""
    return {int((2 * v - 6 / 16) * 8) for v in x[:, 0, 0, 0].tolist()}


def test_har_is_split_by_person(small: Path) -> None:
    found = load_dataset(DataRecipe(set="har", validation_groups=(3,)))
    assert found.shape == (128, 1, 6) and found.domain == (-1, 1)
    assert [persons(s.x) for s in (found.train, found.validation, found.test)] == [{1}, {3}, {2, 4}]
    assert [c.name for c in found.channels[2:4]] == ["total_acc_z", "body_gyro_x"]
    assert found.radii(radius({"g": "0.02", "rad/s": "0.08"})) == (*(Fraction(1, 100),) * 3, *(Fraction(1, 50),) * 3)
    assert found.train.x.max() == 1, "what leaves the range is cut off"
    gyro = load_dataset(DataRecipe(set="har", validation_groups=(3,), channels=("body_gyro",)))
    assert gyro.shape == (128, 1, 3)
    assert np.array_equal(4 * gyro.test.x, 4 * found.test.x[..., 3:])


def test_ecg_is_split_by_patient_and_in_millivolts(small: Path) -> None:
    found = load_dataset(DataRecipe(set="ecg", validation_groups=(106,)))
    assert found.shape == (256, 1, 1) and found.labels == ("normal", "supraventricular", "ventricular", "fusion")
    assert [len(s.y) for s in (found.train, found.validation, found.test)] == [4, 2, 2], "Q and record 102 are left out"
    assert set(found.test.x[:, 96].ravel().tolist()) == {1.0} and found.test.x[:, 95].max() == 0
    assert found.train.x.max() == np.float32(3.175)
    assert found.radii(Fraction(1, 20)) == (Fraction(1, 20),) and found.said(Fraction(1, 20)) == "1/20 mV"
    joined = load_dataset(DataRecipe(set="ecg", validation_groups=(106,), classes=("NQ", "V")))
    assert joined.labels == ("normal/unknown", "ventricular")
    assert sorted(joined.test.y.tolist()) == [0, 0, 1]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        pytest.param({"set": "har", "validation_samples": 3}, "random split would divide", id="random_split"),
        pytest.param({"set": "har", "validation_groups": (2,)}, "names 2; the training groups of 'har' are 1, 3", id="a_test_person"),
        pytest.param({"set": "har", "validation_groups": (1, 3)}, "no samples to train on", id="everybody_validates"),
        pytest.param({"set": "har", "validation_groups": (3,), "channels": ("baro",)}, "no sensor 'baro'", id="unknown_sensor"),
        pytest.param({"set": "ecg", "validation_groups": (106,), "classes": ("N", "X")}, "no AAMI class is 'X'", id="unknown_class"),
        pytest.param({"set": "ecg", "validation_groups": (106,), "classes": ("N", "VN")}, "letter twice", id="class_twice"),
        pytest.param({"set": "digits", "validation_groups": (1,), "test_samples": 9}, "not split by group", id="digits_have_no_groups"),
    ],
)  # fmt: skip
def test_splits_that_would_mislead_are_refused(small: Path, recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(DataRecipe(**recipe))


@pytest.mark.parametrize("file", ["har/uci_har.npz", "ecg/mitdb_beats_X.npy.xz"])
def test_a_damaged_file_is_not_used(small: Path, file: str) -> None:
    (small / file).write_bytes((small / file).read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="wrong checksum"):
        load_dataset(DataRecipe(set=file[:3], validation_groups=(3, 106)))


def own(path: Path, **more: Any) -> DataRecipe:
    x = np.zeros((8, 5, 1, 2), np.float64)
    x[..., 0], x[..., 1] = 1.5, -40
    np.savez(path, x=x, y=np.arange(8) % 2, **more)
    channels = (
        ChannelRecipe(name="acc", unit="g", low=Fraction(-2), high=Fraction(2)),
        ChannelRecipe(name="temperature", unit="C", low=Fraction(-40), high=Fraction(80)),
    )
    return DataRecipe(file=str(path), channel=channels, validation_samples=2, test_samples=2)


def test_own_signals_come_in_the_units_of_their_channels(tmp_path: Path) -> None:
    found = load_dataset(own(tmp_path / "mine.npz"))
    assert found.domain == (-1, 1) and found.train.x[0, 0, 0].tolist() == [0.75, -0.5]
    assert found.radii(radius({"acc": "0.1", "C": "2"})) == (Fraction(1, 20), Fraction(1, 40))


def test_own_groups_are_held_out_whole(tmp_path: Path) -> None:
    x, y = np.linspace(0, 1, 40).reshape(8, 5, 1, 1), np.arange(8) % 2
    arrays = {"x": x, "y": y, "x_test": x[:2], "y_test": y[:2], "group": np.arange(8) // 2}
    np.savez(tmp_path / "mine.npz", **arrays)
    found = load_dataset(DataRecipe(file=str(tmp_path / "mine.npz"), validation_groups=(1, 3)))
    assert sorted(found.validation.x[:, 0, 0, 0].tolist()) == x[[2, 3, 6, 7], 0, 0, 0].astype(np.float32).tolist()
    with pytest.raises(DataError, match="group is"):
        np.savez(tmp_path / "bad.npz", **{**arrays, "group": np.arange(3)})
        load_dataset(DataRecipe(file=str(tmp_path / "bad.npz"), validation_groups=(1,)))


def test_own_signals_that_leave_their_range_are_refused(tmp_path: Path) -> None:
    recipe = own(tmp_path / "mine.npz")
    narrow = ChannelRecipe(name="temperature", unit="C", low=Fraction(-20), high=Fraction(80))
    with pytest.raises(DataError, match=r"temperature, whose range is \[-20, 80\]"):
        load_dataset(
            DataRecipe(file=recipe.file, channel=(recipe.channel[0], narrow), validation_samples=2, test_samples=2)
        )
    with pytest.raises(DataError, match="has 2 channels, the recipe names 1"):
        load_dataset(DataRecipe(file=recipe.file, channel=(narrow,), validation_samples=2, test_samples=2))


@pytest.mark.skipif(
    not (Path(os.environ.get(sources.ENVIRONMENT, "/nowhere")) / "har").is_dir(),
    reason="needs the real data in CACTUS_EDGE_DATA",
)
def test_the_real_har_has_the_counts_of_the_original() -> None:
    found = load_dataset(DataRecipe(set="har", validation_groups=(28, 29, 30)))
    both = np.bincount(found.train.y) + np.bincount(found.validation.y)
    assert both.tolist() == [1226, 1073, 986, 1286, 1374, 1407]
    assert np.bincount(found.test.y).tolist() == [496, 471, 420, 491, 532, 537]
