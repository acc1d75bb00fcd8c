"""A Jetson's words about itself, in the forms that public logs of Jetson Linux 35 and 36 show. None was measured by us."""

from __future__ import annotations

import pytest

from cactus_edge.device.jetson import (
    GpuClock,
    load_of,
    parse_clocks,
    parse_power_mode,
    parse_release,
    parse_tegrastats,
)
from cactus_edge.errors import DeviceError


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64", "JetPack 6.2 (L4T 36.4.3)"),
        ("# R36 (release), REVISION: 4.4, GCID: 1, BOARD: generic", "JetPack 6.2.1 (L4T 36.4.4)"),
        ("# R36 (release), REVISION: 4.0, GCID: 1, BOARD: generic", "JetPack 6.1 (L4T 36.4.0)"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "JetPack 6.0 (L4T 36.3.0)"),
        ("# R35 (release), REVISION: 4.1, GCID: 1", "JetPack 5.1.2 (L4T 35.4.1)"),
        ("# R36 (release), REVISION: 4.7, GCID: 1", "L4T 36.4.7"),
        ("# R99 (release), REVISION: 1", "L4T 99.1"),
    ],
)
def test_releases(line: str, expected: str) -> None:
    assert str(parse_release(line + "\n# KERNEL_VARIANT: oot\n")) == expected


def test_another_computer_is_no_jetson() -> None:
    with pytest.raises(DeviceError, match="no Jetson"):
        parse_release("")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER (2)"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n", "15W (0)"),
        ("NV Power Mode:MAXN\n", "MAXN"),
        ("", "unknown"),
    ],
)
def test_power_modes(text: str, mode: str) -> None:
    assert parse_power_mode(text) == mode


def test_clocks() -> None:
    locked = (
        "cpu0:  Online=1 Governor=schedutil MinFreq=1728000 MaxFreq=1728000 CurrentFreq=1728000 IdleStates: WFI=0 c7=0\n"
        "GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000\n"
        "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1\n"
    )
    assert parse_clocks(locked) == GpuClock(1_020_000_000, 1_020_000_000, 1_020_000_000)
    assert parse_clocks(locked).locked  # type: ignore[union-attr]
    free = parse_clocks("GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000\n")
    assert free is not None and not free.locked
    assert parse_clocks("Error: Please run with sudo\n") is None


def test_tegrastats() -> None:
    orin = parse_tegrastats(
        "11-22-2026 08:00:00 RAM 3308/7607MB (lfb 32x4MB) SWAP 11/3804MB (cached 0MB) CPU [0%@1510,1%@1510] GR3D_FREQ 99% "
        "cpu@61.5C soc2@60.2C gpu@62.3C tj@62.4C VDD_IN 12517mW/10898mW VDD_CPU_GPU_CV 4959mW/3943mW VDD_SOC 2562mW/2282mW"
    )
    assert (orin.gpu_percent, orin.gpu_mhz, orin.ram_mb) == (99, (), (3308, 7607))
    assert orin.temperatures_c["tj"] == 62.4
    assert orin.power_mw == {"VDD_IN": 12517, "VDD_CPU_GPU_CV": 4959, "VDD_SOC": 2562}
    older = parse_tegrastats("RAM 1234/3964MB CPU [10%@1479,off] GR3D_FREQ 7%@921 PLL@31.5C GPU@46.5C")
    assert (older.gpu_percent, older.gpu_mhz, older.temperatures_c) == (7, (921,), {"pll": 31.5, "gpu": 46.5})
    assert parse_tegrastats("GR3D_FREQ @[1098,1098]").gpu_mhz == (1098, 1098)
    nothing = parse_tegrastats("")
    assert (nothing.gpu_percent, nothing.ram_mb, nothing.power_mw) == (None, None, {})


# The form of JetPack 5 and 6 on an Orin Nano (public logs, among them henrygd/beszel issue 286), and of JetPack 7 on an AGX Orin
# (rbonghi/jetson_stats tests): each sensor and rail with more figures behind it. The figures here are invented.
ORIN_NANO = (
    "11-14-2024 22:50:33 RAM {ram}/7620MB (lfb 2x4MB) SWAP 22/3810MB (cached 0MB) CPU [1%@1420,2%@1420,0%@1420,2%@729,1%@729,1%@729] "
    "GR3D_FREQ {gpu}% cv0@-256C cpu@50.281C soc2@49.312C soc0@50.531C gpu@{degrees}C tj@50.968C soc1@50.093C "
    "VDD_IN {power}mW/4585mW VDD_CPU_GPU_CV 520mW/1024mW VDD_SOC 1403mW/1410mW\n"
)
AGX_ORIN = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1290] "
    "NVENC0 off APE 174 cpu@52.968C/52.968C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)


def test_a_load_is_the_worst_of_its_samples_and_the_mean_power() -> None:
    lines = [
        ORIN_NANO.format(ram=3100, gpu=0, degrees="49.5", power=4000),
        "tegrastats: a warning\n",
        ORIN_NANO.format(ram=3300, gpu=99, degrees="61.25", power=12000),
    ]
    found = load_of(lines)
    assert found is not None
    assert (found.samples, found.gpu_percent, found.ram_mb, found.hottest) == (2, 99, (3300, 7620), ("gpu", 61.25))
    assert found.power_mw["VDD_IN"] == (8000, 12000)
    assert found.words() == (
        "GPU at most 99 %; RAM at most 3,300 of 7,620 MB; hottest gpu with 61.2 °C; VDD_IN 8.00 W mean, 12.00 W at most; "
        "VDD_CPU_GPU_CV 0.52 W mean, 0.52 W at most; VDD_SOC 1.40 W mean, 1.40 W at most (2 samples)"
    )
    newer = load_of([AGX_ORIN])
    assert newer is not None and (newer.gpu_least_mhz, newer.gpu_mhz, newer.gpu_percent) == (1290, 1300, 12)
    assert newer.hottest == ("cpu", 52.968) and newer.power_mw["VIN_SYS_5V0"] == (5500, 5500)
    assert "its clock 1290 to 1300 MHz" in newer.words()
    assert load_of(["", "no such tool"]) is None
