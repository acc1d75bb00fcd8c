"""What an ELF32 file puts into a board's memory: its loadable segments, with every offset checked.

Reads little-endian ARM executables only (Tool Interface Standard ELF 1.2; Arm IHI 0044). Section headers and symbols
are not looked at: a loader does not look at them either.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from cactus_edge.errors import ModelError

_HEADER = struct.Struct("<16sHHIIIIIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<8I")
_EXECUTABLE, _ARM, _LOAD = 2, 40, 1
_ADDRESSES = 1 << 32
_MOST_SEGMENTS = 256


@dataclass(frozen=True)
class Segment:
    """One range of memory that the file fills.

    address: where it is when the program runs. load_address: where its bytes are stored (flash, for initialised data).
    data: the bytes in the file. memory_bytes >= len(data): the rest is zeroed, or left alone, at start.
    """

    address: int
    load_address: int
    data: bytes
    memory_bytes: int
    executable: bool
    writable: bool


@dataclass(frozen=True)
class Elf:
    """entry: address of the first instruction (bit 0 set: Thumb). segments: by load address."""

    entry: int
    segments: tuple[Segment, ...]

    def stored_in(self, origin: int, size: int) -> int:
        """Bytes of the file that are stored within [origin, origin + size)."""
        return sum(len(s.data) for s in self.segments if s.data and origin <= s.load_address < origin + size)

    def used_in(self, origin: int, size: int) -> int:
        """Bytes of memory that running segments occupy within [origin, origin + size)."""
        return sum(s.memory_bytes for s in self.segments if origin <= s.address < origin + size)

    def image(self) -> tuple[int, bytes]:
        """(first load address, bytes from there on, gaps filled with 0xFF as erased flash). ModelError for gaps > 16 MiB."""
        stored = [s for s in self.segments if s.data]
        if not stored:
            raise ModelError("the ELF file stores no bytes", hint="build the firmware again")
        origin = stored[0].load_address
        end = max(s.load_address + len(s.data) for s in stored)
        if end - origin > 1 << 24:
            raise ModelError(
                f"the ELF file's bytes span {end - origin} bytes of addresses, expected at most {1 << 24}",
                hint="flash the ELF file itself",
            )
        image = bytearray(b"\xff" * (end - origin))
        for s in stored:
            image[s.load_address - origin : s.load_address - origin + len(s.data)] = s.data
        return origin, bytes(image)


def read_elf(data: bytes, source: str = "the firmware") -> Elf:
    """The loadable segments of an ARM executable. ModelError for anything that is not one, names the field."""

    def refuse(what: str, expected: object, got: object) -> ModelError:
        return ModelError(f"{source}: {what}: expected {expected}, got {got}", hint="build the firmware again")

    if len(data) < _HEADER.size:
        raise refuse("ELF header", f"{_HEADER.size} bytes", f"{len(data)} bytes")
    identity, kind, machine, _, entry, offset, _, _, header_bytes, entry_bytes, count, _, _, _ = _HEADER.unpack_from(
        data
    )
    if identity[:4] != b"\x7fELF":
        raise refuse("magic", "7f 45 4c 46", identity[:4].hex(" "))
    if identity[4:7] != b"\x01\x01\x01":
        raise refuse("class, byte order and version", "01 01 01 (32 bits, little-endian, 1)", identity[4:7].hex(" "))
    if (kind, machine) != (_EXECUTABLE, _ARM):
        raise refuse("type and machine", (_EXECUTABLE, _ARM), (kind, machine))
    if header_bytes != _HEADER.size or entry_bytes != _PROGRAM_HEADER.size:
        raise refuse("header sizes", (_HEADER.size, _PROGRAM_HEADER.size), (header_bytes, entry_bytes))
    if not 1 <= count <= _MOST_SEGMENTS:
        raise refuse("number of program headers", f"1 to {_MOST_SEGMENTS}", count)
    if offset < _HEADER.size or offset + count * entry_bytes > len(data):
        raise refuse("program headers", f"inside the {len(data)} bytes", f"{count} at offset {offset}")

    segments = []
    unread = len(data)  # 256 segments that share one range of the file would be 256 copies of it
    for i in range(count):
        kind, start, address, load, file_bytes, memory_bytes, flags, _ = _PROGRAM_HEADER.unpack_from(
            data, offset + i * entry_bytes
        )
        if kind != _LOAD or memory_bytes == 0 == file_bytes:
            continue
        if start + file_bytes > len(data):
            raise refuse(f"segment {i}", f"inside the {len(data)} bytes", f"{file_bytes} bytes at offset {start}")
        unread -= file_bytes
        if unread < 0:
            raise refuse("segments", f"at most the {len(data)} bytes of the file together", "more: they share bytes")
        if file_bytes > memory_bytes:
            raise refuse(f"segment {i} memory size", f"at least its {file_bytes} bytes in the file", memory_bytes)
        if address + memory_bytes > _ADDRESSES or load + file_bytes > _ADDRESSES:
            raise refuse(f"segment {i} addresses", "below 2^32", f"{address:#x}, {load:#x} + {memory_bytes}")
        segments.append(
            Segment(address, load, data[start : start + file_bytes], memory_bytes, bool(flags & 1), bool(flags & 2))
        )
    if not segments:
        raise refuse("loadable segments", "at least one", "none")
    segments.sort(key=lambda s: s.load_address)
    _refuse_overlap([(s.address, s.memory_bytes) for s in segments], "run", source)
    _refuse_overlap([(s.load_address, len(s.data)) for s in segments], "load", source)
    return Elf(entry, tuple(segments))


def _refuse_overlap(ranges: list[tuple[int, int]], kind: str, source: str) -> None:
    occupied = sorted((start, start + size) for start, size in ranges if size)
    for (_, end), (start, _) in itertools.pairwise(occupied):
        if start < end:
            raise ModelError(
                f"{source}: {kind} addresses of two segments overlap: one ends at {end:#x}, the next begins at {start:#x}",
                hint="build the firmware again",
            )


def load_segments(data: bytes, source: str = "the firmware") -> tuple[Segment, ...]:
    """`read_elf(data).segments`."""
    return read_elf(data, source).segments


def find_blob(data: bytes, blob: bytes, source: str = "the firmware") -> int | None:
    """The load address of the first place where `blob` lies whole inside one loadable segment; None if nowhere.

    Bytes of the file that no segment loads (debug information, a trailing copy) do not count.
    """
    if not blob:
        raise ModelError("an empty blob is found everywhere", hint="pass the model's blob")
    for segment in read_elf(data, source).segments:
        at = segment.data.find(blob)
        if at >= 0:
            return segment.load_address + at
    return None
