"""A FlatBuffers reader that believes nothing: no byte is used before its position is checked against the buffer.

The format (flatbuffers.dev, "FlatBuffer Internals"), all little-endian. A table at `p` starts with an int32: its vtable
lies at `p` minus that. A vtable holds its own length, the table's length (uint16 each), then one uint16 a field: the
field's distance from `p`, 0 where absent. Strings, vectors and sub-tables are reached through a uint32 that is added to
its own position, so each reference leads strictly forward and no chain of them can loop.

Many references may share one target. A file of a few kilobytes could in that way describe gigabytes, so a `Reader`
also counts what it has handed out and stops at `SHARING` times the size of a small file, `LARGE_SHARING` times that of a
large one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError

SHARING = 8
"""How often, on average, a byte may be read. Files of converters need 1 to 3: few weights and many operators with shared vtables."""

LARGE_SHARING, SHARED_BYTES = 2, 1 << 26
"""A file that is large is so by its weights, which are read once: beyond SHARED_BYTES each byte may be read twice."""


class Reader:
    """The file's bytes and the number of bytes that may still be handed out."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = min(SHARING * len(data), LARGE_SHARING * len(data) + SHARED_BYTES)

    def claim(self, at: int, count: int, what: str) -> int:
        """`at`, once bytes [at, at + count) are known to lie in the file and within the budget. Raises ModelError."""
        if at < 0 or count < 0 or at + count > len(self.data):
            raise ModelError(
                f"malformed .tflite: {what} at byte {at}: expected {count} bytes inside the file, got a file of {len(self.data)}",
                hint="the file is truncated or damaged; export or download it again",
            )
        self._left -= count
        if self._left < 0:
            raise ModelError(
                f"malformed .tflite: {what} at byte {at}: expected at most {SHARING} readings of each byte on average, got more"
            )
        return at

    def number(self, code: str, at: int, what: str) -> Any:
        """The scalar of `struct` code `code` at byte `at`."""
        return struct.unpack_from("<" + code, self.data, self.claim(at, struct.calcsize("<" + code), what))[0]

    def follow(self, at: int, what: str) -> int:
        """Where the reference stored at byte `at` leads."""
        distance: int = self.number("I", at, f"{what} (reference)")
        if distance < 4:
            raise ModelError(
                f"malformed .tflite: {what}: expected a reference of at least 4 at byte {at}, got {distance}"
            )
        return at + distance


class Table:
    """One table. `fields` names its slots in schema order; `what` is how messages name it.

    Opening it raises ModelError where the vtable is malformed, and UnsupportedError where a field is set that `fields`
    does not know: a newer schema may have given it a meaning that must not be dropped.
    """

    def __init__(self, reader: Reader, at: int, fields: type[IntEnum], what: str) -> None:
        self.reader, self.at, self.fields, self.what = reader, at, fields, what
        vtable = at - reader.number("i", at, f"{what} (table)")
        length: int = reader.number("H", vtable, f"{what} (vtable)")
        self._size: int = reader.number("H", vtable + 2, f"{what} (vtable)")
        if length < 4 or length % 2 or self._size < 4:
            raise ModelError(
                f"malformed .tflite: {what}: expected at byte {vtable} a vtable of an even length >= 4 for a table of "
                f">= 4 bytes, got {length} and {self._size}"
            )
        reader.claim(vtable, length, f"{what} (vtable)")
        reader.claim(at, self._size, what)
        self._distances: tuple[int, ...] = struct.unpack_from(f"<{(length - 4) // 2}H", reader.data, vtable + 4)
        for slot in range(len(fields), len(self._distances)):
            if self._distances[slot]:
                raise UnsupportedError(
                    f"{what}: field {slot} is set, expected at most the {len(fields)} fields of {fields.__name__}: the "
                    "file uses a newer schema than this reader knows"
                )

    def has(self, field: IntEnum) -> bool:
        """Whether the field is stored (an absent one has its default value)."""
        return self._distance(field) != 0

    def number(self, field: IntEnum, code: str, default: float) -> Any:
        """A scalar field, read by `struct` code."""
        at = self._position(field, struct.calcsize("<" + code))
        return default if at is None else self.reader.number(code, at, self._name(field))

    def vector(self, field: IntEnum, dtype: str) -> npt.NDArray[Any] | None:
        """A vector of scalars as a read-only view of the file, None where absent."""
        at = self._position(field, 4)
        if at is None:
            return None
        start = self.reader.follow(at, self._name(field))
        count: int = self.reader.number("I", start, f"{self._name(field)} (length)")
        item = np.dtype(dtype)
        self.reader.claim(start + 4, count * item.itemsize, f"{self._name(field)} of {count} elements")
        return np.frombuffer(self.reader.data, item, count, start + 4)

    def text(self, field: IntEnum) -> str:
        """A string, empty where absent; what is not UTF-8 is replaced, since names carry no meaning."""
        raw = self.vector(field, "u1")
        return "" if raw is None else raw.tobytes().decode("utf-8", "replace")

    def table(self, field: IntEnum, fields: type[IntEnum]) -> Table | None:
        """A sub-table, None where absent."""
        at = self._position(field, 4)
        if at is None:
            return None
        return Table(self.reader, self.reader.follow(at, self._name(field)), fields, self._name(field))

    def tables(self, field: IntEnum, fields: type[IntEnum], what: str) -> Tables:
        """A vector of tables, empty where absent; each is opened when it is asked for."""
        at = self._position(field, 4)
        if at is None:
            return Tables(self.reader, 0, 0, fields, what)
        start = self.reader.follow(at, what)
        count: int = self.reader.number("I", start, f"{what} (length)")
        self.reader.claim(start + 4, 4 * count, f"{count} references to {what}s")
        return Tables(self.reader, start + 4, count, fields, what)

    def _name(self, field: IntEnum) -> str:
        return f"{self.what}, {field.name.lower()}"

    def _distance(self, field: IntEnum) -> int:
        return self._distances[field] if field < len(self._distances) else 0

    def _position(self, field: IntEnum, width: int) -> int | None:
        distance = self._distance(field)
        if not distance:
            return None
        if distance < 4 or distance + width > self._size:
            raise ModelError(
                f"malformed .tflite: {self._name(field)}: expected {width} bytes inside the table of {self._size} at "
                f"byte {self.at}, got them at distance {distance}"
            )
        return self.at + distance


@dataclass(frozen=True)
class Tables:
    """A vector of `count` references to tables, whose first lies at byte `at`."""

    reader: Reader
    at: int
    count: int
    fields: type[IntEnum]
    what: str

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Table:
        """Table `index`. Raises ModelError where there is none: indices come from the file."""
        if not 0 <= index < self.count:
            raise ModelError(
                f"malformed .tflite: {self.what} {index}: expected an index in 0..{self.count - 1}, got {index}"
            )
        what = f"{self.what} {index}"
        return Table(self.reader, self.reader.follow(self.at + 4 * index, what), self.fields, what)
