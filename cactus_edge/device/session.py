"""One bench run on disk, complete at every moment: what is finished survives Ctrl-C, a cable and a power cut.

    session.json    what was measured: model, data, target, firmware, host; and the summary once it is complete
    results.csv     one line per finished inference, written and synced before the next begins
    discarded.csv   what did not count, and why: bytes that were not protocol, inputs that had to be sent again
    device.log      every line that was exchanged, with the host's monotonic seconds since the link was opened

A folder is named after the digest of what decides the results, the device among it. A second run of the same continues what was
broken off; where everything was finished it measures all of it again, so that no report is of a device that did nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError
from cactus_edge.resources import write_atomic
from cactus_edge.version import __version__


@dataclass(frozen=True)
class Row:
    """One finished inference. ticks: its cost in the board's clock; units: the same in `unit`s (instructions or us)."""

    index: int
    input_crc32: int
    output: bytes
    ticks: int
    units: float
    unit: str

    def to_csv(self) -> str:
        """The line in results.csv, checksum last."""
        text = f"{self.index},{self.input_crc32:08x},{self.output.hex()},{self.ticks},{self.units!r},{self.unit}"
        return f"{text},{zlib.crc32(text.encode()):08x}\n"

    @classmethod
    def from_csv(cls, line: str) -> Row | None:
        """The row, or None for a line that was cut off or damaged."""
        text, _, check = line.rstrip("\n").rpartition(",")
        if not line.endswith("\n") or check != f"{zlib.crc32(text.encode()):08x}":
            return None
        index, crc, output, ticks, units, unit = text.split(",")
        return cls(int(index), int(crc, 16), bytes.fromhex(output), int(ticks), float(units), unit)


HEADER = ",".join([*(f.name for f in fields(Row)), "row_crc32"]) + "\n"


class Session:
    """An open session folder. Use it as a context; `rows` holds what is finished, by index of the input."""

    def __init__(
        self, root: Path, *, target: str, inputs: npt.NDArray[np.int8] | npt.NDArray[np.float32], **about: str
    ) -> None:
        """inputs [N, *input] as they are sent. about: what else decides the results, digests of the model above all."""
        self._about: dict[str, Any] = {
            "data_sha256": hashlib.sha256(np.ascontiguousarray(inputs).tobytes()).hexdigest(),
            "inputs": [int(n) for n in inputs.shape],
            "target": target,
            **about,
        }
        self.key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self.folder = root / f"{target}-{self.key[:12]}"
        self.rows: dict[int, Row] = {}
        self.resumed = 0
        self._inputs = inputs
        self._results: IO[str] | None = None
        self._discarded: IO[str] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> Session:
        path = self.folder / "results.csv"
        if path.exists():
            self._read(path)
        # Written anew: a line that was cut off must not be glued to the next.
        write_atomic(path, HEADER + "".join(self.rows[i].to_csv() for i in sorted(self.rows)))
        if len(self.rows) == len(self._inputs):
            self.rows = {}  # measured again; in the file a later line of an index replaces the earlier one
        self.resumed = len(self.rows)
        self.describe({})
        try:
            self._results = path.open("a", encoding="utf-8")
            self._log = (self.folder / "device.log").open("a", encoding="utf-8")
            self._discarded = (self.folder / "discarded.csv").open("a", encoding="utf-8")
        except OSError as error:
            self.__exit__()
            raise _unwritable(self.folder, error) from error
        if self._discarded.tell() == 0:
            self._discarded.write("seconds,reason,text\n")
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._results, self._discarded, self._log):
            if stream is not None:
                stream.close()

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for line in lines[1:] if lines and lines[0] == HEADER else []:
            row = Row.from_csv(line)
            if (
                row is not None
                and 0 <= row.index < len(self._inputs)
                and row.input_crc32 == self.input_crc32(row.index)
            ):
                self.rows[row.index] = row

    def input_crc32(self, index: int) -> int:
        """CRC-32 of input `index`, as the board computes it."""
        return zlib.crc32(self._inputs[index].tobytes())

    def describe(self, more: Mapping[str, Any]) -> None:
        """Writes session.json: what is measured, the host, and `more`."""
        content = {
            "format": 1,
            "key": self.key,
            **self._about,
            "cactus_edge": __version__,
            "python": platform.python_version(),
            "host": f"{platform.system()} {platform.machine()}",
            **more,
        }
        write_atomic(self.folder / "session.json", json.dumps(content, indent=1) + "\n")

    def add(self, *rows: Row) -> None:
        """Keeps finished inferences, on disk before this returns. InputError when the disk is full."""
        assert self._results is not None
        try:
            self._results.write("".join(row.to_csv() for row in rows))
            self._results.flush()
            os.fsync(self._results.fileno())
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        self.rows |= {row.index: row for row in rows}

    def discard(self, seconds: float, reason: str, text: str) -> None:
        """Keeps what did not count, and why."""
        assert self._discarded is not None
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([f"{seconds:.3f}", reason, text])
        self._append(self._discarded, line.getvalue())

    def log(self, seconds: float, direction: str, text: str) -> None:
        """A `protocol.Log`: appends to device.log, and discarded lines to discarded.csv as well."""
        assert self._log is not None
        self._append(self._log, f"{seconds:10.3f} {direction} {text}\n")
        if direction == "!":
            self.discard(seconds, "not the protocol", text)

    def _append(self, stream: IO[str], text: str) -> None:
        try:
            stream.write(text)
        except OSError as error:
            raise _unwritable(self.folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write into {folder}: {error.strerror or error}", hint="free space or choose another folder"
    )
