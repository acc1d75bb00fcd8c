"""The ELF reader against files that lie about themselves."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from cactus_edge.errors import ModelError
from cactus_edge.verify import elf as elf_module
from cactus_edge.verify.elf import find_blob, load_segments, read_elf

CODE, DATA, RAM = bytes(range(64)), b"initial!", 0x2000_0000


def make(**changes: object) -> bytes:
    """Two stored segments (code at 0x100, data stored behind it and run from RAM) and one that stores nothing."""
    h = {
        "identity": b"\x7fELF\x01\x01\x01".ljust(16, b"\0"), "kind": 2, "machine": 40, "entry": 0x101, "phoff": 52,
        "ehsize": 52, "phentsize": 32, "phnum": 3,
    }  # fmt: skip
    start = 52 + 3 * 32
    # type, offset, vaddr, paddr, filesz, memsz, flags, align
    s = {
        "code": [1, start, 0x100, 0x100, len(CODE), len(CODE), 5, 4],
        "data": [1, start + len(CODE), RAM, 0x100 + len(CODE), len(DATA), len(DATA), 6, 4],
        "bss": [1, 0, RAM + 0x100, RAM + 0x100, 0, 0x40, 6, 4],
    }
    for key, value in changes.items():
        name, _, field = key.partition("_")
        if name in s and field:
            s[name][int(field)] = value
        else:
            h[key] = value
    header = struct.pack(
        "<16sHHIIIIIHHHHHH", h["identity"], h["kind"], h["machine"], 1, h["entry"], h["phoff"], 0, 0, h["ehsize"],
        h["phentsize"], h["phnum"], 0, 0, 0,
    )  # fmt: skip
    return header + b"".join(struct.pack("<8I", *row) for row in s.values()) + CODE + DATA


def test_a_good_file():
    elf = read_elf(make())
    assert elf.entry == 0x101
    assert [(s.address, s.load_address, s.data, s.memory_bytes) for s in elf.segments] == [
        (0x100, 0x100, CODE, 64),
        (RAM, 0x140, DATA, 8),
        (RAM + 0x100, RAM + 0x100, b"", 64),
    ]
    assert elf.stored_in(0, 0x1000) == 72
    assert elf.used_in(RAM, 0x1000) == 72
    assert elf.image() == (0x100, CODE + DATA)
    assert load_segments(make()) == elf.segments


def test_gaps_read_as_erased_flash():
    origin, image = read_elf(make(data_3=0x150)).image()
    assert (origin, image) == (0x100, CODE + b"\xff" * 16 + DATA)


SINS = {
    "empty": (b"", "ELF header"),
    "short_header": (make()[:51], "ELF header"),
    "not_elf": (b"MZ" + make()[2:], "magic"),
    "64_bit": (make(identity=b"\x7fELF\x02\x01\x01".ljust(16, b"\0")), "class"),
    "big_endian": (make(identity=b"\x7fELF\x01\x02\x01".ljust(16, b"\0")), "class"),
    "relocatable": (make(kind=1), "type and machine"),
    "for_x86": (make(machine=3), "type and machine"),
    "header_of_another_size": (make(phentsize=56), "header sizes"),
    "no_program_headers": (make(phnum=0), "number of program headers"),
    "too_many_program_headers": (make(phnum=65535), "number of program headers"),
    "program_headers_beyond_the_end": (make(phoff=1 << 31), "program headers"),
    "program_headers_over_the_header": (make(phoff=4), "program headers"),
    "segment_beyond_the_end": (make(code_1=1 << 20), "segment 0"),
    "segment_longer_than_the_file": (make(data_4=1 << 16, data_5=1 << 16), "segment 1"),
    "file_size_above_memory_size": (make(code_5=8), "memory size"),
    "address_wraps": (make(bss_5=0xFFFF_FFFF), "addresses"),
    "load_address_wraps": (make(code_3=0xFFFF_FFF0), "addresses"),
    "run_addresses_overlap": (make(bss_2=RAM + 4), "run addresses of two segments overlap"),
    "load_addresses_overlap": (make(data_3=0x120), "load addresses of two segments overlap"),
    "nothing_to_load": (make(code_0=0, data_0=0, bss_0=0), "loadable segments"),
    "truncated_data": (make()[:-1], "segment 1"),
}


@pytest.mark.parametrize("sin", SINS)
def test_sins(sin):
    data, words = SINS[sin]
    with pytest.raises(ModelError, match=words):
        read_elf(data)


def test_an_image_too_wide_to_write_out():
    with pytest.raises(ModelError, match="span"):
        read_elf(make(data_3=0x0800_0000 * 4)).image()


def test_only_loaded_bytes_count_as_the_blob():
    assert find_blob(make(), CODE[8:40]) == 0x108
    assert find_blob(make(), DATA) == 0x140
    absent = b"not loaded by anything"
    assert find_blob(make() + absent, absent) is None
    # Two segments that happen to be neighbours do not hold a blob together.
    assert find_blob(make(), CODE[-4:] + DATA[:4]) is None
    assert find_blob(make(code_0=0), CODE) is None
    with pytest.raises(ModelError, match="empty blob"):
        find_blob(make(), b"")


def damaged() -> Iterator[bytes]:
    """Every byte set to what overflows, and every length."""
    good = make()
    for at in range(len(good)):
        yield good[:at]
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            yield good[:at] + bytes([value]) + good[at + 1 :]


def test_no_damage_raises_anything_else():
    for data in damaged():
        try:
            elf = read_elf(data)
        except ModelError:
            continue
        for segment in elf.segments:
            assert len(segment.data) <= segment.memory_bytes
            assert segment.address + segment.memory_bytes <= 1 << 32


def test_planted_fault_a_segment_that_ends_beyond_memory(monkeypatch):
    monkeypatch.setattr(elf_module, "_ADDRESSES", 1 << 40)
    with pytest.raises(AssertionError):
        test_no_damage_raises_anything_else()
