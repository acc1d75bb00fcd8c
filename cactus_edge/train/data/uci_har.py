"""UCI HAR's raw windows: prepared arrays, or read from the archive that the UCI repository publishes.

The archive is a zip in a zip with a text file a channel. Its windows overlap by half, so runs of them are what was recorded at a
stretch. Data: Anguita, Ghio, Oneto, Parra and Reyes-Ortiz, ESANN 2013, doi 10.24432/C54S4K.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError, InternalError
from cactus_edge.train.data.dataset import Float32, digest
from cactus_edge.train.data.sources import Files, arrays_of, find, keep, kept, missing

UInt8 = npt.NDArray[np.uint8]

PREPARED = Files("har", {"uci_har.npz": "11a1f3d9da3f1794769895a7cea0246d6e55be2fa9ccd3ab7fde33507e744e01"})
"""x, y and person as X, y and subject."""

ARCHIVE = "human+activity+recognition+using+smartphones.zip"
RAW = Files(
    "har",
    {ARCHIVE: "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"},
    "https://archive.ics.uci.edu/static/public/240/",
)

READ = "uci_har_windows.npz"
"""What was read from the archive, kept in the cache: parsing 11.9 million numbers takes a while."""

DIGEST = "3a59a7c39cb150de3a9619118c3da6b2c3cef514470c706bb93a51577d5948a1"
"""`Windows.digest` of the whole set, whichever way it was loaded."""

SENSORS = ("body_acc", "body_gyro", "total_acc")
"""Three axes each, in the order of x. body_acc is total_acc less its slow part: computed, not measured."""

STEPS, HALF = 128, 64

RUNS = (
    "75361240 035241 5630142 2130 1032 0123 1032 105342 213540 2031 2301 2013 2103 5206341 402513 3012 1320 0132 "
    "3120 213450 4623051 0321 0312 2130 3120 540132 450213 3012 2130 3102 3021 204135 521340 2310 1320 1302 "
    "1023 541203 451320 1023 0231 0123 14320 231450 304215 2130 2031 0213 0312 5310462 02154637 2130 0123 3102 "
    "0123 205314 320514 3210 3021 3120 32410 035241 540312 0123 2103 2103 1203 510324 150234 2130 0213 1302 "
    "2031 501423 143502 1302 0132 2301 0321 350124 532140 0231 2031 3210 0231 205431 150423 1203 1302 2031 "
    "2013 324150 234051 1320 1032 0123 2130 134502 6415032 1302 1203 2103 0132 425103 310542 3120 1230 2013 "
    "0321 051243 513402 1032 1023 1203 2310 032451 521304 3012 0321 2031 3210 321504 405231 1302 3210 2301 "
    "3201 450213 541230 3210 0123 3021 2013 540213 301452 1032 1320 1203 3120 215043 2514306 3102 3102 3210 "
    "2103 341205 521043 2301 0123 2013 0132 502413 235104 3120 3210 0312 0123 231450 2431065 1320 0132 1320 "
    "40123 504312 215340 3210 0132 3012 1302 2350614 254103 0312 0312 3120 2310 251340 432051 3012 1203 2013"
)
"""The order of runs in the prepared arrays, which no rule gives: for each person, and of each person for each activity, where every
run stands among them by the values that it begins with."""


@dataclass(frozen=True, eq=False)
class Windows:
    """x float32 [N, 9, 128] in g and rad/s, y uint8 [N], 0..5, person uint8 [N], 1..30; by person, activity, run and time."""

    x: Float32
    y: UInt8
    person: UInt8

    def digest(self) -> str:
        """SHA-256 (hex) over the three arrays."""
        return digest(self.x, self.y, self.person)


FIELDS = tuple(field.name for field in fields(Windows))


def windows() -> Windows:
    """All 10,299 windows, from the first that is there: the prepared arrays, what was read before, the archive.

    The archive is downloaded where it is nowhere, and stays in the cache. Raises DataError that lists where it looked.
    """
    prepared, failures = find(PREPARED, "uci_har.npz")
    if prepared is not None:
        arrays = arrays_of(prepared, "uci_har.npz")
        return Windows(arrays["X"], arrays["y"], arrays["subject"])
    held, more = kept("har", READ, FIELDS, DIGEST)
    if held is not None:
        return Windows(**held)
    archive, last = find(RAW, ARCHIVE)
    if archive is None:
        raise missing("har", ARCHIVE, failures + more + last)
    found = in_order(read_archive(archive), RUNS)
    if found.digest() != DIGEST:
        raise InternalError("the windows of UCI's archive are not those of the data set", hint="report it")
    keep("har", READ, vars(found))
    return found


def read_archive(content: bytes) -> Windows:
    """The windows of UCI's archive in its order, training persons first. Raises DataError."""
    folder, parts = "UCI HAR Dataset", []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as outer, zipfile.ZipFile(outer.open(f"{folder}.zip")) as archive:
            for part in ("train", "test"):
                signals = [
                    _numbers(archive.read(f"{folder}/{part}/Inertial Signals/{sensor}_{axis}_{part}.txt"))
                    for sensor in SENSORS
                    for axis in "xyz"
                ]
                label, person = (_numbers(archive.read(f"{folder}/{part}/{n}_{part}.txt")) for n in ("y", "subject"))
                if len(person) != len(label):
                    raise ValueError(f"{len(person)} persons for {len(label)} labels")
                x = np.stack([signal.reshape(len(label), STEPS) for signal in signals], 1)
                parts.append((x.astype(np.float32), (label - 1).astype(np.uint8), person.astype(np.uint8)))
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"not UCI's archive of HAR: {error}", hint="download it again") from error
    return Windows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _numbers(content: bytes) -> npt.NDArray[np.float64]:
    return np.array(content.split(), np.float64)


def in_order(found: Windows, ranks: str) -> Windows:
    """The same windows by person, activity, run and time, runs in the order of `ranks`, which is as `RUNS`.

    In a run each window begins with the second half of the one before.
    """
    order: list[int] = []
    groups = np.unique(np.stack([found.person, found.y], 1), axis=0)
    for (person, activity), line in zip(groups, ranks.split(), strict=True):
        members = np.flatnonzero((found.person == person) & (found.y == activity))
        begins = {found.x[i, :, :HALF].tobytes(): int(i) for i in members}
        after = {int(i): begins.get(found.x[i, :, HALF:].tobytes()) for i in members}
        starts = sorted({*after} - {*after.values()}, key=lambda i: tuple(found.x[i, :, 0]))
        for place in line:
            window: int | None = starts[int(place)]
            while window is not None:
                order.append(window)
                window = after[window]
    return Windows(*(getattr(found, name)[order] for name in FIELDS))
