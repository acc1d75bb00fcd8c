"""UCI HAR from the archive that UCI publishes: the prepared windows, in their order."""

from __future__ import annotations

import hashlib
import io
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from train_kit import Server

from cactus_edge.errors import DataError, InternalError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data import load_dataset, sources, uci_har
from cactus_edge.train.data.sources import Files
from cactus_edge.train.data.uci_har import HALF, SENSORS, STEPS, Windows, in_order, read_archive

LENGTHS = {(1, 0): (3, 1, 2), (1, 5): (2,), (2, 0): (1, 1), (3, 4): (2, 3)}
"""Windows of each run, by person and activity; person 2 is one of the test set."""

RANKS = "201 0 10 01"
RECIPE = DataRecipe(set="har", validation_groups=(3,), channels=SENSORS)


def drawn() -> Windows:
    """Random runs in the order of RANKS."""
    rng, parts, labels = np.random.default_rng(0), [], []
    for ((person, activity), lengths), line in zip(LENGTHS.items(), RANKS.split(), strict=True):
        runs = [rng.normal(0, 0.3, (9, HALF * (n + 1))).astype(np.float32) for n in lengths]
        runs.sort(key=lambda run: tuple(run[:, 0]))
        for i in line:
            run = runs[int(i)]
            parts += [run[:, at : at + STEPS] for at in range(0, run.shape[1] - HALF, HALF)]
            labels += [(activity, person)] * (run.shape[1] // HALF - 1)
    y, person_of = np.array(labels, np.uint8).T
    return Windows(np.stack(parts), y, person_of)


def number(value: float) -> str:
    """As the archive writes it, with three digits of exponent."""
    mantissa, exponent = f"{value:.8e}".split("e")
    return f"{mantissa}e{exponent[0]}{int(exponent[1:]):03d}"


def files(found: Windows, order: list[int]) -> dict[str, str]:
    """The archive's text files with the windows in another order."""
    made = {}
    for part in ("train", "test"):
        rows = [i for i in order if (found.person[i] == 2) == (part == "test")]
        for k, name in enumerate(f"{sensor}_{axis}" for sensor in SENSORS for axis in "xyz"):
            lines = ["  " + "  ".join(number(float(v)) for v in found.x[i, k]) for i in rows]
            made[f"{part}/Inertial Signals/{name}_{part}.txt"] = "\n".join(lines) + "\n"
        made[f"{part}/y_{part}.txt"] = "".join(f"{found.y[i] + 1}\n" for i in rows)
        made[f"{part}/subject_{part}.txt"] = "".join(f"{found.person[i]}\n" for i in rows)
    return made


def packed(texts: dict[str, str]) -> bytes:
    """A zip in a zip, as UCI has it."""
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(f"UCI HAR Dataset/{name}", text)
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("UCI HAR Dataset.names", "")
        archive.writestr("UCI HAR Dataset.zip", inner.getvalue())
    return outer.getvalue()


SHUFFLED = [7, 2, 9, 0, 11, 4, 14, 1, 8, 3, 13, 6, 10, 5, 12]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A user who has nothing, and a small archive whose checksum and windows are expected."""
    whole = drawn()
    content = packed(files(whole, SHUFFLED))
    found = Server({uci_har.ARCHIVE: content})
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path / "env"))
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    sums = {uci_har.ARCHIVE: hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(uci_har, "RAW", Files("har", sums, "http://example.invalid/240/"))
    monkeypatch.setattr(uci_har, "RUNS", RANKS)
    monkeypatch.setattr(uci_har, "DIGEST", whole.digest())
    monkeypatch.setattr(urllib.request, "urlopen", found.open)
    return found


def test_the_archive_gives_the_prepared_windows_and_both_stay_in_the_cache(server: Server, tmp_path: Path) -> None:
    assert len(drawn().y) == len(SHUFFLED) and read_archive(server.files[uci_har.ARCHIVE]).digest() != drawn().digest()
    first = load_dataset(RECIPE)
    assert [len(s.y) for s in (first.train, first.validation, first.test)] == [8, 5, 2]
    cache = tmp_path / "cache" / "har"
    assert {path.name for path in cache.iterdir()} == {uci_har.ARCHIVE, uci_har.READ}
    server.files.clear()
    (cache / uci_har.ARCHIVE).unlink()
    assert load_dataset(RECIPE).digest() == first.digest() and server.asked == [uci_har.ARCHIVE]


def test_the_prepared_windows_come_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stream = drawn(), io.BytesIO()
    digest = load_dataset(RECIPE).digest()
    np.savez(stream, X=whole.x, y=whole.y, subject=whole.person)
    (tmp_path / "env" / "har").mkdir(parents=True)
    (tmp_path / "env" / "har" / "uci_har.npz").write_bytes(stream.getvalue())
    sums = {"uci_har.npz": hashlib.sha256(stream.getvalue()).hexdigest()}
    monkeypatch.setattr(uci_har, "PREPARED", Files("har", sums))
    monkeypatch.setattr(uci_har, "read_archive", None)
    assert load_dataset(RECIPE).digest() == digest


def test_without_a_network_the_error_lists_every_place(server: Server, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(DataError, match="lacks human") as found:
        load_dataset(RECIPE)
    for text in ("env/har/uci_har.npz", f"cache/har/{uci_har.READ}", f"240/{uci_har.ARCHIVE}: no network here"):
        assert text in found.value.message


def test_a_damaged_file_in_the_cache_is_read_again(server: Server, tmp_path: Path) -> None:
    first = load_dataset(RECIPE).digest()
    kept = tmp_path / "cache" / "har" / uci_har.READ
    kept.write_bytes(kept.read_bytes()[:-100])
    assert load_dataset(RECIPE).digest() == first


def _other_label(texts: dict[str, str]) -> None:
    texts["train/y_train.txt"] = texts["train/y_train.txt"][2:]


def _short_row(texts: dict[str, str]) -> None:
    texts["test/Inertial Signals/body_acc_x_test.txt"] = "1 2 3"


def _word(texts: dict[str, str]) -> None:
    texts["test/Inertial Signals/body_acc_x_test.txt"] += "one"


def _missing(texts: dict[str, str]) -> None:
    del texts["train/subject_train.txt"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_other_label, "13 persons for 12 labels"),
        (_short_row, "reshape"),
        (_word, "one"),
        (_missing, "no item named"),
    ],
)
def test_another_archive_is_refused(spoil: Callable[[dict[str, str]], None], words: str) -> None:
    texts = files(drawn(), SHUFFLED)
    spoil(texts)
    with pytest.raises(DataError, match="not UCI's archive of HAR") as found:
        read_archive(packed(texts))
    assert words in found.value.message


@pytest.mark.parametrize("content", [b"", b"no zip", packed({})[:-30]])
def test_no_archive_at_all_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="not UCI's archive of HAR"):
        read_archive(content)


@pytest.mark.parametrize("ranks", ["021 0 10 01", "201 0 01 01"])
def test_runs_in_another_order_are_other_windows(server: Server, monkeypatch: pytest.MonkeyPatch, ranks: str) -> None:
    """The planted fault: it is the digest that tells."""
    monkeypatch.setattr(uci_har, "RUNS", ranks)
    assert in_order(drawn(), RANKS).digest() == drawn().digest() != in_order(drawn(), ranks).digest()
    with pytest.raises(InternalError, match="are not those of the data set"):
        load_dataset(RECIPE)


def test_a_value_that_changed_is_seen(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = drawn()
    changed.x[0, 0, 0] += 1
    monkeypatch.setattr(uci_har, "read_archive", lambda _: changed)
    with pytest.raises(InternalError, match="are not those of the data set"):
        load_dataset(RECIPE)
