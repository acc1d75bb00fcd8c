"""Firmware: fits or says by how much, carries the blob, is the same everywhere, and links for the real boards."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from cactus_edge.device.firmware import build_firmware, describe_firmware
from cactus_edge.device.targets import Target, load_target, targets
from cactus_edge.errors import InputError, TargetError
from cactus_edge.verify.elf import find_blob, read_elf

COMPILERS = [
    "zig",
    pytest.param(
        "gcc",
        marks=pytest.mark.skipif(
            shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
        ),
    ),
]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", [t.name for t in targets() if isinstance(t, Target) and t.firmware == "bare-metal"])
def test_every_bare_metal_board_links(built, name, compiler, tmp_path: Path):
    """Compiled and linked with every warning an error. For the real boards this is all that was tried: no hardware here."""
    target = load_target(name)
    report = build_firmware(built.sources.folder, target, tmp_path / "fw.elf", compiler)
    data = report.elf.read_bytes()
    elf = read_elf(data)
    memory = target.memory
    origin, image = elf.image()
    stack, reset = struct.unpack_from("<II", image)
    assert origin == memory.flash_origin
    assert stack == memory.ram_origin + memory.stack_bytes
    assert reset & 1
    assert reset == elf.entry | 1
    assert memory.flash_origin <= reset < memory.flash_origin + report.flash_bytes
    assert find_blob(data, built.sources.blob.data) is not None
    assert len(built.sources.blob.data) < report.flash_bytes < 40_000
    assert built.sources.blob.header["arena"] <= report.ram_bytes < 4_000
    assert report.compiler.startswith(f"{compiler} ")


def test_equal_sources_give_equal_firmware_in_any_folder(built, tmp_path: Path):
    elsewhere = tmp_path / "a folder with spaces"
    shutil.copytree(built.sources.folder, elsewhere / "c")
    report = build_firmware(elsewhere / "c", built.target, elsewhere / "out" / "other.elf")
    assert report.sha256 == built.firmware.sha256


def test_describing_a_file_gives_what_building_it_gave(built):
    again = describe_firmware(built.firmware.elf, built.target, built.firmware.compiler)
    assert again == built.firmware


@pytest.mark.parametrize("compiler", COMPILERS)
def test_too_large_says_by_how_much(built, compiler, tmp_path: Path):
    def built_for(**limits: int) -> TargetError:
        small = replace(built.target, memory=replace(built.target.memory, **limits))
        with pytest.raises(TargetError) as caught:
            build_firmware(built.sources.folder, small, tmp_path / "fw.elf", compiler)
        return caught.value

    whole = build_firmware(built.sources.folder, built.target, tmp_path / "fits.elf", compiler)
    limit = built.target.memory.stack_bytes + 256
    assert f"RAM by {whole.ram_bytes - 256} bytes (it has {limit})" in str(built_for(ram_bytes=limit))
    error = str(built_for(flash_bytes=4096))
    exceeded = int(error.partition("flash by ")[2].partition(" ")[0])
    assert abs(exceeded - (whole.flash_bytes - 4096)) <= 8  # the sections' alignment


def test_a_board_that_needs_its_sdk_is_refused(built, tmp_path: Path):
    with pytest.raises(TargetError, match="no firmware of ours: needs ESP-IDF"):
        build_firmware(built.sources.folder, load_target("esp32-s3-devkitc"), tmp_path / "fw.elf")


def test_a_folder_without_a_model(built, tmp_path: Path):
    with pytest.raises(InputError, match=r"no model\.c"):
        build_firmware(tmp_path, built.target, tmp_path / "fw.elf")


def test_firmware_of_another_board(built):
    with pytest.raises(TargetError, match="outside the flash of nucleo-l4r5zi"):
        describe_firmware(built.firmware.elf, load_target("nucleo-l4r5zi"))
