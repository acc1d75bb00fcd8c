"""Heartbeats of the MIT-BIH Arrhythmia Database: prepared arrays, or cut from the records as PhysioNet publishes them.

A record is three files: NAME.hea, text about the signals; NAME.dat, their samples; NAME.atr, what cardiologists said of each beat.
Formats: header(5), signal(5) and annot(5) of the WFDB Applications Guide. Data: Moody and Mark, IEEE Engineering in Medicine
and Biology 20(3), 2001; Goldberger et al., Circulation 101(23), 2000.
"""

from __future__ import annotations

import io
import lzma
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError, InternalError
from cactus_edge.train.data.dataset import digest
from cactus_edge.train.data.mitdb_files import RAW
from cactus_edge.train.data.sources import Files, arrays_of, cached, find, keep, kept, missing

Int16 = npt.NDArray[np.int16]
UInt8 = npt.NDArray[np.uint8]

COUNTS, META = "mitdb_beats_X.npy.xz", "mitdb_beats_meta.npz"
PREPARED = Files(
    "ecg",
    {
        COUNTS: "277e5ad93094dc8fea593030fd8e48f1c35ebd7be1fd6900e1e32769e1a3f0bc",
        META: "7c3ad122f0a6deb7311a38328e9adfa568524b8f749376edc423ac82e5d312ce",
    },
)
CUT = "mitdb_beats.npz"
"""What was cut from the records, kept in the cache, so that the next time one file is read instead of 138."""

DIGEST = "a14355d5853e17d89e0d755370aa149b0c278571c72e06909b78bce127a1a0ea"
"""`Beats.digest` of the whole set, whichever way it was loaded."""

HERTZ, COUNTS_PER_MV, ZERO_COUNT = 360, 200, 1024
BEFORE, AFTER = 96, 160
"""Samples of a beat before its R peak, and from the peak on."""

CODES = {"N": 1, "L": 2, "R": 3, "a": 4, "V": 5, "F": 6, "J": 7, "A": 8, "S": 9, "E": 10, "j": 11, "/": 12, "Q": 13}
CODES |= {"e": 34, "f": 38}
"""The annotation codes of beats (ecgcodes.h) by their symbols."""

AAMI = {CODES[symbol]: y for y, symbols in enumerate(("NLRej", "AaJS", "VE", "F", "/fQ")) for symbol in symbols}
"""The class of ANSI/AAMI EC57 by the code: 0..4 = N S V F Q."""

LARGEST_CODE, SKIP, NUM, SUB, CHN, AUX = 49, 59, 60, 61, 62, 63
AGAIN = "fetch it again"


@dataclass(frozen=True, eq=False)
class Beats:
    """counts int16 [N, 256] of lead MLII, R peak at 96; y uint8 [N], 0..4 = N S V F Q; record uint8 [N], 100..234."""

    counts: Int16
    y: UInt8
    record: UInt8

    def digest(self) -> str:
        """SHA-256 (hex) over the three arrays."""
        return digest(self.counts, self.y, self.record)


FIELDS = tuple(field.name for field in fields(Beats))


def beats() -> Beats:
    """All beats with a whole window, by record and time: int16 [105036, 256].

    From the first that is there: the prepared files, what was cut before, the records; a record file that is nowhere is downloaded
    and stays in the cache. Raises DataError that lists where it looked.
    """
    found, failures = _prepared()
    if found is not None:
        return found
    held, more = kept("ecg", CUT, FIELDS, DIGEST)
    if held is not None:
        return Beats(**held)
    found = cut(RAW, failures + more)
    if found.digest() != DIGEST:
        raise InternalError("the beats cut from MIT-BIH's records are not those of the data set", hint="report it")
    keep("ecg", CUT, vars(found))
    return found


def _prepared() -> tuple[Beats | None, list[str]]:
    """From the prepared files, or what was wrong with them."""
    contents, failures = {}, []
    for name in PREPARED.sha256:
        contents[name], more = find(PREPARED, name)
        failures += more
    packed, meta = contents[COUNTS], contents[META]
    if packed is None or meta is None:
        return None, failures
    counts = np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False)
    labels = arrays_of(meta, META)
    return Beats(counts, labels["y"], labels["record"]), []


def cut(files: Files, failures: list[str]) -> Beats:
    """The beats of all records of `files`; what is missing is downloaded. Raises DataError, with `failures` before its own."""
    parts = []
    for name in dict.fromkeys(file.partition(".")[0] for file in files.sha256):
        contents = {}
        for kind in ("hea", "dat", "atr"):
            content, more = find(files, f"{name}.{kind}")
            if content is None:
                raise missing(
                    files.name,
                    f"{name}.{kind}",
                    failures + more,
                    hint=f"again with access to the internet: what arrived stays. Or put PhysioNet's mitdb 1.0.0 (*.hea, *.dat, "
                    f"*.atr) into {cached(files.name, '')}",
                )
            contents[kind] = content
        parts.append(read_record(name, contents["hea"], contents["dat"], contents["atr"]))
    return Beats(*(np.concatenate([getattr(p, field) for p in parts]) for field in FIELDS))


def read_record(name: str, hea: bytes, dat: bytes, atr: bytes) -> Beats:
    """The beats of one record in the order of time, but for those nearer to one of its ends than the window. Raises DataError."""
    header = read_header(name, hea)
    signal = unpack_212(f"{name}.dat", dat, header.signals * header.samples)
    lead = signal.reshape(-1, header.signals)[:, header.lead]
    got = (int(lead[0]), int(lead.sum(dtype=np.int64)) % 2**16)
    if got != (header.first, header.checksum % 2**16):
        raise DataError(
            f"{name}.dat: MLII begins with {got[0]} and sums to {got[1]} modulo 2^16; its header says {header.first} and "
            f"{header.checksum % 2**16}",
            hint=AGAIN,
        )
    marks = read_annotations(f"{name}.atr", atr)
    whole = [(t, AAMI[code]) for t, code in marks if code in AAMI and BEFORE <= t <= header.samples - AFTER]
    peaks = np.array([t for t, _ in whole], np.int64)
    y = np.array([y for _, y in whole], np.uint8)
    return Beats(lead[peaks[:, None] + np.arange(-BEFORE, AFTER)], y, np.full(len(y), int(name), np.uint8))


@dataclass(frozen=True)
class Header:
    """samples: of each of the signals. lead: which is MLII. first, checksum: its first sample, and the sum of all modulo 2^16."""

    samples: int
    signals: int
    lead: int
    first: int
    checksum: int


def read_header(name: str, content: bytes) -> Header:
    """A .hea: `name signals hertz samples`, then a line a signal: file, format, gain, bits, zero, first, checksum, block, description.

    Raises DataError for anything but signals in format 212 at 360 Hz, 200 counts a mV and 0 mV at 1024, one of which is MLII.
    """
    text = content.decode("latin-1")
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        (record, signals, hertz, samples), *leads = lines
        sizes = int(signals), int(samples)
        numbers = [(int(first), int(total)) for _, _, _, _, _, first, total, _, *_ in leads]
    except ValueError as error:
        raise DataError(f"{name}.hea is not a record's header: {error}", hint=AGAIN) from error
    if (record, hertz, sizes[0]) != (name, str(HERTZ), len(leads)) or min(sizes) < 1:
        raise DataError(
            f"{name}.hea: {' '.join(lines[0])!r} and {len(leads)} signals; expected {name}, all its signals, {HERTZ} Hz",
            hint=AGAIN,
        )
    for lead in leads:
        if (*lead[:3], lead[4]) != (f"{name}.dat", "212", str(COUNTS_PER_MV), str(ZERO_COUNT)):
            raise DataError(
                f"{name}.hea: {' '.join(lead)!r}; expected {name}.dat in format 212, {COUNTS_PER_MV} counts a mV, zero at "
                f"{ZERO_COUNT}",
                hint=AGAIN,
            )
    which = [i for i, lead in enumerate(leads) if lead[8:] == ["MLII"]]
    if len(which) != 1:
        there = ", ".join(" ".join(lead[8:]) for lead in leads)
        raise DataError(f"{name}.hea: the leads are {there}; expected one MLII", hint="a record that has it")
    return Header(sizes[1], sizes[0], which[0], *numbers[which[0]])


def unpack_212(name: str, content: bytes, count: int) -> Int16:
    """int16 [count] in -2048..2047: two samples in three bytes, of which the middle one holds the high four bits of both.

    The first sample's are the lower four; the last of an odd number takes two bytes. Raises DataError for another length.
    """
    expected = (3 * count + 1) // 2
    if len(content) != expected:
        raise DataError(f"{name} has {len(content)} bytes; {count} samples in format 212 need {expected}", hint=AGAIN)
    rows = np.frombuffer(content + bytes(-len(content) % 3), np.uint8).astype(np.int16).reshape(-1, 3)
    low, high, other = rows.T
    pairs = np.stack([low | (high & 15) << 8, other | (high >> 4) << 8], 1)
    return (pairs.ravel()[:count] ^ 2048) - 2048


def read_annotations(name: str, content: bytes) -> list[tuple[int, int]]:
    """(sample, code) of each annotation of an .atr, in the order of the file.

    Little-endian words: the code in the high 6 bits, the samples since the one before in the low 10. SKIP adds the two words
    after it, the high one first; AUX is followed by that many bytes of text, made even; NUM, SUB and CHN tell no time; 0 ends.
    Raises DataError for any other code, and for a file that does not end there.
    """
    words = np.frombuffer(content[: len(content) // 2 * 2] + bytes(4), "<u2").tolist()  # a SKIP at the end reads zeros
    found, time, at = [], 0, 0
    while at < len(words) - 2 and words[at]:
        code, low = divmod(words[at], 1024)
        at += 1
        if code == SKIP:
            interval = words[at] * 2**16 + words[at + 1]
            time += interval - 2**32 * (interval >= 2**31)
            at += 2
        elif code == AUX:
            at += (low + 1) // 2
        elif 0 < code <= LARGEST_CODE:
            time += low
            found.append((time, code))
        elif code not in (NUM, SUB, CHN):
            raise DataError(f"{name}: {code} at byte {2 * at - 2} is no annotation code", hint=AGAIN)
    if 2 * at + 2 != len(content):
        raise DataError(
            f"{name} has {len(content)} bytes, and its annotations do not end there: no end mark, or more after it",
            hint=AGAIN,
        )
    return found
