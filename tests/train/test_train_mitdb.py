"""MIT-BIH's records: the formats there and back, the download that loses nothing, and every kind of damage refused."""

from __future__ import annotations

import hashlib
import http.server
import io
import lzma
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_kit import Server

from cactus_edge.errors import DataError, InternalError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data import load_dataset, mitdb, sources
from cactus_edge.train.data.sources import Files

SAMPLES = 1200
RECIPE = DataRecipe(set="ecg", validation_groups=(106,))


def packed(values: list[int]) -> bytes:
    """Format 212, bit by bit: 12-bit codes, whose nibbles are sent as 1 0 | 5 2 | 4 3 for a pair 210 543."""
    content = bytearray()
    for first, *second in (values[i : i + 2] for i in range(0, len(values), 2)):
        a, b = first & 0xFFF, (second[0] if second else 0) & 0xFFF
        content += bytes([a & 0xFF, (a >> 8) + (b >> 8) * 16, b & 0xFF][: 3 if second else 2])
    return bytes(content)


def word(code: int, low: int) -> bytes:
    return (code * 1024 + low).to_bytes(2, "little")


def annotated(marks: list[tuple[int, int]], texts: dict[int, bytes] | None = None) -> bytes:
    """An .atr of (sample, code): a SKIP where 10 bits do not reach, SUB, CHN and NUM here and there, texts by the mark's index."""
    content, before = b"", 0
    for i, (sample, code) in enumerate(marks):
        step = sample - before
        if not 0 <= step < 1024:
            far = (step - 7) % 2**32
            content += word(59, 0) + (far >> 16).to_bytes(2, "little") + (far % 2**16).to_bytes(2, "little")
            step = 7
        content += word(code, step) + b"".join(word(other, 1023 - i) for other in (60, 61, 62)[: i % 4])
        if text := (texts or {}).get(i):
            content += word(63, len(text)) + text + bytes(len(text) % 2)
        before = sample
    return content + word(0, 0)


@given(st.lists(st.integers(-2048, 2047), max_size=9))
def test_format_212_there_and_back(values: list[int]) -> None:
    found = mitdb.unpack_212("x.dat", packed(values), len(values))
    assert found.dtype == np.int16 and found.tolist() == values


def test_format_212_is_that_of_the_specification() -> None:
    """The first sample's high bits are the lower nibble: a reader that swaps them is wrong on real records only now and then."""
    assert mitdb.unpack_212("x.dat", bytes.fromhex("0154f3"), 2).tolist() == [0x401, 0x5F3]
    assert mitdb.unpack_212("x.dat", bytes.fromhex("e3f3ff"), 2).tolist() == [0x3E3, -1]


@given(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 49)), max_size=9),
    st.dictionaries(st.integers(0, 8), st.binary(max_size=5)),
)
def test_annotations_there_and_back(marks: list[tuple[int, int]], texts: dict[int, bytes]) -> None:
    """In any order of time: steps beyond 10 bits, and backwards, are SKIPs."""
    assert mitdb.read_annotations("x.atr", annotated(marks, texts)) == marks


def test_a_skip_has_its_high_word_first_and_adds_to_the_next_step() -> None:
    content = bytes.fromhex("00ec 0100 0200 0504 0000".replace(" ", ""))
    assert mitdb.read_annotations("x.atr", content) == [(65536 + 2 + 5, 1)]


MARKS = [(10, 1), (95, 5), (96, 5), (400, 28), (410, 8), (700, 6), (1039, 38), (1040, 1), (1041, 1)]
"""Peaks at both edges of what has a whole window, one rhythm change that is no beat, four classes."""


def record(name: str, lead: int = 0, marks: list[tuple[int, int]] = MARKS) -> dict[str, bytes]:
    """One record of two signals as it lies at PhysioNet; sample t of MLII is 1000 + t % 300."""
    time = np.arange(SAMPLES)
    signals = [1000 + time % 300, 2000 - time % 500]
    leads = [("MLII", signals[0]), ("V5", signals[1])]
    both = leads[::-1] if lead else leads
    lines = [f"{name} 2 360 {SAMPLES}"]
    for title, values in both:
        total = (int(values.sum()) + 2**15) % 2**16 - 2**15
        lines.append(f"{name}.dat 212 200 11 1024 {values[0]} {total} 0 {title}")
    lines += ["# 69 M 1085 1629 x1", "# none, of course"]
    multiplexed = np.stack([values for _, values in both], 1).ravel().tolist()
    contents = ("\r\n".join(lines) + "\r\n").encode(), packed(multiplexed), annotated(marks, {3: b"(AFIB"})
    return {f"{name}.{kind}": content for kind, content in zip(("hea", "dat", "atr"), contents, strict=True)}


RECORDS = {
    file: content for i, name in enumerate(("101", "106", "100")) for file, content in record(name, i % 2).items()
}


def read(files: dict[str, bytes], name: str = "101") -> mitdb.Beats:
    return mitdb.read_record(name, files[f"{name}.hea"], files[f"{name}.dat"], files[f"{name}.atr"])


@pytest.mark.parametrize("lead", [0, 1], ids=["first", "second"])
def test_beats_are_cut_from_mlii_where_the_window_is_whole(lead: int) -> None:
    found = read(record("101", lead))
    assert found.y.tolist() == [2, 1, 3, 4, 0] and set(found.record.tolist()) == {101}
    assert found.counts.dtype == np.int16 and found.y.dtype == found.record.dtype == np.uint8
    peaks = np.array([96, 410, 700, 1039, 1040])
    assert np.array_equal(found.counts, 1000 + (peaks[:, None] + np.arange(-96, 160)) % 300)


def test_a_record_without_beats_is_empty() -> None:
    assert read(record("101", marks=[])).counts.shape == (0, 256)


Damage = Callable[[dict[str, bytes]], dict[str, bytes]]


def header(old: str, new: str) -> Damage:
    return lambda files: {"101.hea": files["101.hea"].replace(old.encode(), new.encode())}


def labels(content: bytes) -> Damage:
    return lambda files: {"101.atr": files["101.atr"][:-2] + content}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda f: {"101.hea": b""}, "101.hea is not a record's header", id="header_empty"),
        pytest.param(lambda f: {"101.hea": b"\xff\x00" * 9}, "101.hea is not a record's header", id="header_binary"),
        pytest.param(lambda f: {"101.hea": f["101.hea"][:30]}, "101.hea is not a record's header", id="header_truncated"),
        pytest.param(lambda f: {"101.hea": f["101.hea"].split(b"\n")[0]}, "and 0 signals", id="header_without_signals"),
        pytest.param(header(" 360 1200", " 360 many"), "is not a record's header", id="samples_no_number"),
        pytest.param(header(" 360 1200", " 360 0"), "101 2 360 0", id="no_samples"),
        pytest.param(header(" 360 1200", " 250 1200"), "360 Hz", id="other_rate"),
        pytest.param(header("101 2 ", "102 2 "), "expected 101", id="other_record"),
        pytest.param(header("101.dat 212", "101.dat 16"), "expected 101.dat in format 212", id="other_format"),
        pytest.param(header("101.dat", "../x.dat"), "expected 101.dat", id="other_file"),
        pytest.param(header("212 200 ", "212 400 "), "200 counts a mV", id="other_gain"),
        pytest.param(header(" 1024 ", " 0 "), "zero at 1024", id="other_zero"),
        pytest.param(header("MLII", "V1"), "the leads are V1, V5; expected one MLII", id="no_mlii"),
        pytest.param(header("V5", "MLII"), "the leads are MLII, MLII", id="two_mlii"),
        pytest.param(header(" 1000 ", " 1001 "), "begins with 1000", id="other_first_sample"),
        pytest.param(lambda f: {"101.dat": f["101.dat"][:-1]}, r"3599 bytes; 2400 samples .* need 3600", id="signals_truncated"),
        pytest.param(lambda f: {"101.dat": f["101.dat"] + b"\0"}, "3601 bytes", id="signals_longer"),
        pytest.param(lambda f: {"101.dat": f["101.dat"][:99] + b"\x01" + f["101.dat"][100:]}, "sums to", id="a_sample_differs"),
        pytest.param(lambda f: {"101.atr": b""}, "no end mark", id="labels_empty"),
        pytest.param(lambda f: {"101.atr": f["101.atr"][:-1]}, "no end mark", id="labels_odd"),
        pytest.param(labels(b""), "no end mark", id="labels_truncated"),
        pytest.param(labels(word(59, 0) + b"\1"), "no end mark", id="skip_truncated"),
        pytest.param(labels(word(59, 0) + b"\1\0\0\0"), "no end mark", id="end_within_a_skip"),
        pytest.param(labels(word(63, 900) + b"text\0\0"), "no end mark", id="text_truncated"),
        pytest.param(labels(bytes(4)), "more after it", id="labels_go_on"),
        pytest.param(labels(word(50, 3) + bytes(2)), "50 at byte", id="no_such_code"),
        pytest.param(labels(word(0, 3) + bytes(2)), "0 at byte", id="code_zero_with_a_step"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(damage: Damage, words: str) -> None:
    whole = record("101")
    with pytest.raises(DataError, match=words) as caught:
        read(whole | damage(whole))
    assert caught.value.hint


@given(st.sampled_from(("hea", "dat", "atr")), st.binary(max_size=40), st.integers(0, 4000))
def test_no_damage_ends_in_a_traceback(kind: str, patch: bytes, at: int) -> None:
    whole = record("101")
    content = whole[f"101.{kind}"]
    try:
        found = read(whole | {f"101.{kind}": content[:at] + patch + content[at + len(patch) :]})
    except DataError:
        return
    assert found.counts.shape == (len(found.y), 256)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A user who has nothing, and a small database of three records whose checksums are expected."""
    found = Server(dict(RECORDS))
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in RECORDS.items()}
    parts = [read(RECORDS, name) for name in ("101", "106", "100")]
    whole = mitdb.Beats(*(np.concatenate([getattr(p, field) for p in parts]) for field in mitdb.FIELDS))
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path / "env"))
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(mitdb, "RAW", Files("ecg", sums, "http://example.invalid/mitdb/"))
    monkeypatch.setattr(mitdb, "DIGEST", whole.digest())
    monkeypatch.setattr(urllib.request, "urlopen", found.open)
    return found


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def test_a_download_is_kept_and_so_is_what_was_cut(server: Server, tmp_path: Path) -> None:
    first = load_dataset(RECIPE)
    assert server.asked == list(RECORDS)
    assert [len(s.y) for s in (first.train, first.validation, first.test)] == [4, 4, 4], "Q is left out"
    kept = held(tmp_path / "cache" / "ecg")
    assert {name: kept[name] for name in RECORDS} == RECORDS and set(kept) == {*RECORDS, mitdb.CUT}
    server.files.clear()
    for file in RECORDS:
        (tmp_path / "cache" / "ecg" / file).unlink()
    assert load_dataset(RECIPE).digest() == first.digest(), "from what was cut"
    assert len(server.asked) == len(RECORDS)


def test_the_digest_is_the_same_whichever_way(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, stream, meta = mitdb.beats(), io.BytesIO(), io.BytesIO()
    digest = load_dataset(RECIPE).digest()
    np.save(stream, found.counts)
    np.savez(meta, y=found.y, record=found.record)
    prepared = {mitdb.COUNTS: lzma.compress(stream.getvalue()), mitdb.META: meta.getvalue()}
    for files, folder in ((RECORDS, "records"), (prepared, "prepared")):
        (tmp_path / folder / "ecg").mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / folder / "ecg" / file).write_bytes(content)
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in prepared.items()}
    monkeypatch.setattr(mitdb, "PREPARED", Files("ecg", sums))
    server.asked.clear()
    for folder in ("records", "prepared"):
        monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "fresh")
        monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path / folder))
        (tmp_path / "fresh" / "ecg" / mitdb.CUT).unlink(missing_ok=True)
        assert load_dataset(RECIPE).digest() == digest
    assert server.asked == []


def test_ctrl_c_loses_nothing_that_arrived(server: Server, tmp_path: Path) -> None:
    server.stopped = "106.dat"
    with pytest.raises(KeyboardInterrupt):
        load_dataset(RECIPE)
    assert set(held(tmp_path / "cache" / "ecg")) == set(list(RECORDS)[:4])
    server.stopped, server.asked = "", []
    load_dataset(RECIPE)
    assert server.asked == list(RECORDS)[4:]


def test_what_is_nowhere_is_told_with_the_places(server: Server, tmp_path: Path) -> None:
    del server.files["106.atr"]
    with pytest.raises(DataError, match=r"the data set 'ecg' lacks 106\.atr") as caught:
        load_dataset(RECIPE)
    lines = caught.value.message.split("\n  ")
    for name in (mitdb.COUNTS, mitdb.META, mitdb.CUT, "106.atr"):
        for place in ("env", "cache"):
            assert f"{tmp_path / place / 'ecg' / name}: No such file" in "\n".join(lines)
    assert "http://example.invalid/mitdb/106.atr: no network here" in lines
    assert len(lines) == len(set(lines)) and str(tmp_path / "cache" / "ecg") in caught.value.hint
    assert "100.hea" not in server.asked, "one that is missing is enough"


def test_a_download_with_another_checksum_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.files["101.dat"] = server.files["101.dat"][:-1] + b"\x01"
    with pytest.raises(DataError, match=r"101\.dat: wrong checksum"):
        load_dataset(RECIPE)
    assert set(held(tmp_path / "cache" / "ecg")) == {"101.hea"}


@pytest.mark.parametrize("name", ["101.dat", mitdb.CUT], ids=["a_record", "what_was_cut"])
@pytest.mark.parametrize("content", [b"", b"x", None], ids=["empty", "no_such_format", "one_bit"])
def test_what_is_damaged_in_the_cache_is_replaced(
    server: Server, tmp_path: Path, name: str, content: bytes | None
) -> None:
    digest = load_dataset(RECIPE).digest()
    before = held(tmp_path / "cache" / "ecg")
    if name != mitdb.CUT:
        (tmp_path / "cache" / "ecg" / mitdb.CUT).unlink()
    if content is None:
        flipped = bytearray(before[name])
        flipped[len(flipped) // 2] ^= 1
        content = bytes(flipped)
    (tmp_path / "cache" / "ecg" / name).write_bytes(content)
    assert load_dataset(RECIPE).digest() == digest
    assert held(tmp_path / "cache" / "ecg") == before


@pytest.mark.parametrize("fields", [("counts",), ("counts", "y", "record")], ids=["fewer_arrays", "other_values"])
def test_what_was_cut_is_checked_by_its_values(server: Server, tmp_path: Path, fields: tuple[str, ...]) -> None:
    digest = load_dataset(RECIPE).digest()
    path = tmp_path / "cache" / "ecg" / mitdb.CUT
    whole, found = path.read_bytes(), vars(mitdb.beats())
    np.savez(path, **{field: found[field] ^ (field == "y") for field in fields})
    assert load_dataset(RECIPE).digest() == digest and path.read_bytes() == whole


def test_beats_that_are_not_those_of_the_set_are_never_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: a window that is one sample off."""
    monkeypatch.setattr(mitdb, "BEFORE", mitdb.BEFORE - 1)
    with pytest.raises(InternalError, match="are not those of the data set"):
        load_dataset(RECIPE)
    assert not (tmp_path / "cache" / "ecg" / mitdb.CUT).exists()


@pytest.fixture
def broken_line() -> Iterator[str]:
    """The address of a server on this computer that promises a megabyte, sends ten bytes and hangs up."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(10**6))
            self.end_headers()
            self.wfile.write(b"ten bytes.")

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}/"
        found.shutdown()
        thread.join()


def test_a_line_that_breaks_is_told(broken_line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sources.ENVIRONMENT, raising=False)
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(mitdb, "RAW", replace(mitdb.RAW, url=broken_line))
    with pytest.raises(DataError, match=r"100\.hea: IncompleteRead\(10 bytes read") as caught:
        load_dataset(RECIPE)
    assert caught.value.message.count(f"{sources.ENVIRONMENT}: not set") == 1
    assert held(tmp_path) == {}


def test_the_table_names_the_records_with_mlii() -> None:
    names = [file.partition(".")[0] for file in mitdb.RAW.sha256]
    assert names == [name for name in sorted(set(names)) for _ in range(3)]
    assert len(names) == 3 * 46 and not {"102", "104"} & set(names)
    assert len(set(mitdb.RAW.sha256.values())) == 3 * 46
    assert all(len(bytes.fromhex(value)) == 32 for value in mitdb.RAW.sha256.values())


def test_the_real_records_give_the_prepared_arrays(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 46 records where they are at hand, against the prepared files where those are, and the digest otherwise."""
    if not (data_folder / "ecg" / "100.dat").is_file():
        pytest.skip("no records of MIT-BIH there: ecg/100.dat and the other files of PhysioNet's mitdb 1.0.0")
    monkeypatch.setenv(sources.ENVIRONMENT, str(data_folder))
    monkeypatch.setattr(mitdb, "RAW", replace(mitdb.RAW, url=""))
    found = mitdb.cut(mitdb.RAW, [])
    assert found.counts.shape == (105036, 256) and np.bincount(found.y).tolist() == [90330, 2781, 7229, 802, 3894]
    assert found.digest() == mitdb.DIGEST


def test_the_prepared_files_have_the_digest_of_the_records(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (data_folder / "ecg" / mitdb.COUNTS).is_file():
        pytest.skip(f"no ecg/{mitdb.COUNTS} there")
    monkeypatch.setenv(sources.ENVIRONMENT, str(data_folder))
    assert mitdb.beats().digest() == mitdb.DIGEST
