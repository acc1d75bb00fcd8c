"""Boards as data: what is shipped is complete, and every way to get a target.toml wrong has its line and hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from cactus_edge.device import targets as described
from cactus_edge.device.targets import JetsonTarget, SshTarget, Target, load_board, load_target, parse_target, targets
from cactus_edge.device.transport import parse_reset
from cactus_edge.errors import TargetError
from cactus_edge.formats.agree import RUNTIMES
from cactus_edge.ir.arithmetic import profile
from cactus_edge.resources import data_path

MCU = data_path("targets", "mcu", "target.toml").read_text()


BOARDS = [t for t in targets() if isinstance(t, Target)]


def test_the_emulated_board_and_three_real_ones():
    names = [t.name for t in targets()]
    assert names[:4] == ["mcu", "arduino-nano-33-ble", "esp32-s3-devkitc", "nucleo-l4r5zi"]
    assert "raspberry-pi" in names[4:]
    assert [t.name for t in targets() if t.emulated] == ["mcu"]
    for target in BOARDS:
        assert bool(target.flash.command) != target.emulated
        assert bool(target.flash.install) != target.emulated
        assert target.profile == "tflm"
        assert target.emulated or "not run on hardware" in target.evidence
        parse_reset(target.serial.reset)
        assert (target.firmware == "bare-metal") == data_path("targets", target.name).joinpath("port.c").exists()


def test_computers_name_profiles_and_runtimes_that_exist():
    for target in targets():
        for form, engine in target.engines.items() if isinstance(target, SshTarget) else ():
            assert profile(engine.profile).reads == form
            assert engine.host in RUNTIMES
            assert "not run on hardware" in target.evidence


def test_jetsons_name_the_conditional_profile():
    found = {t.name: t for t in targets() if isinstance(t, JetsonTarget)}
    assert {"jetson", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-xavier-nx"} == set(found)
    assert {profile(t.profile).name for t in found.values()} == {"tensorrt"}
    assert [name for name, t in found.items() if float(t.tensorrt) < 10] == ["jetson-xavier-nx"]
    with pytest.raises(TargetError, match="no firmware") as caught:
        load_board("jetson")
    assert caught.value.hint == "cactus-edge bench MODEL --target jetson --host user@host"


def test_a_jetsons_versions_are_numbers():
    text = data_path("targets", "jetson", "target.toml").read_text()
    with pytest.raises(TargetError, match=r"t:10: tensorrt = 'ten': expected major.minor"):
        parse_target(text.replace('tensorrt = "10.3"', 'tensorrt = "ten"'), "t")


def test_no_firmware_for_a_computer():
    with pytest.raises(TargetError, match="no firmware") as caught:
        load_board("raspberry-pi")
    assert "--target raspberry-pi --host user@host" in caught.value.hint


def test_every_ports_name_and_clock_are_its_targets():
    for target in BOARDS:
        if target.firmware == "bare-metal":
            source = target.port_source.read_text()
            assert f'{{"{target.name}", "{"instructions" if target.emulated else "us"}"' in source
            assert f"#define CORE_HZ {target.core_clock_hz}u" in source


def line_of(text: str, start: str) -> int:
    return next(i for i, line in enumerate(text.splitlines(), start=1) if line.startswith(start))


SINS = {
    "unknown_family": ('family = "mcu"', 'family = "mpu"', "family = 'mpu': expected one of mcu, linux-ssh", "mcu"),
    "misspelt_key": ("ram_bytes =", "ram_byte =", "unknown key 'ram_byte' in .memory.", "ram_bytes"),
    "misspelt_table": ("[memory]", "[memry]", "unknown key 'memry' in the top level", "memory"),
    "no_multiple": ("channel_multiple = 4", "channel_multiple = 0", "channel_multiple = 0: expected 1 to 256", "4"),
    "no_pattern": ('sparse = ""', 'sparse = "half"', "sparse = 'half': expected .n:m. or", "2:4"),
    "bits_of_nothing": ("weight_bits = [4, 8]", "weight_bits = []", "weight_bits = .*: expected 2 to 8", "[8]"),
    "bits_in_words": ("weight_bits = [4, 8]", 'weight_bits = ["8"]', "expected a list of integers", "change it"),
    "key_without_unit": (
        "core_clock_hz =",
        "core_clock =",
        "unknown key 'core_clock' in the top level",
        "core_clock_hz",
    ),
    "text_for_a_number": ("baud = 115_200", 'baud = "fast"', "baud = 'fast': expected an integer", "change it"),
    "negative_size": ("stack_bytes = 4096", "stack_bytes = -8", "expected an integer from 0", "change it"),
    "true_for_a_number": ("baud = 115_200", "baud = true", "expected an integer", "change it"),
    "stack_larger_than_the_ram": ("stack_bytes = 4096", "stack_bytes = 400000", "below ram_bytes", "4096"),
    "stack_as_large_as_the_ram": ("stack_bytes = 4096", "stack_bytes = 262_144", "below ram_bytes", "4096"),
    "bits_of_more_than_a_byte": (
        "weight_bits = [4, 8]",
        "weight_bits = [4, 16]",
        "weight_bits = .*: expected 2 to 8",
        "[8]",
    ),
    "stack_unaligned": ("stack_bytes = 4096", "stack_bytes = 4097", "multiple of 8", "4096"),
    "beyond_32_bits": ("ram_bytes = 262_144", "ram_bytes = 4_000_000_000", "end below 2.32", "change it"),
    "unknown_kind": ('kind = "emulated"', 'kind = "imaginary"', "expected one of emulated, board", "change it"),
    "usb_ids_in_decimal": ("usb = []", 'usb = ["1155:14155"]', "expected vid:pid in lower-case hex", "0483:374b"),
    "usb_not_a_list": ("usb = []", 'usb = "0483:374b"', "expected a list of strings", "change it"),
    "flash_command_as_one_string": (
        "command = []",
        'command = "openocd -f x"',
        "expected a list of strings",
        "change it",
    ),
    "unknown_placeholder": ("command = []", 'command = ["tool", "{prot}"]', "unknown placeholder .prot.", "port"),
    "brace_left_open": ("command = []", 'command = ["a{b"]', "expected .}. before end of string", "twice"),
    "no_reset_step": ('reset = ""', 'reset = "D0|X1"', "reset step 'X1': expected D0", "D0|R1"),
    "not_toml": ('kind = "emulated"', "kind = emulated", "not TOML", "compare"),
}


@pytest.mark.parametrize("sin", SINS)
def test_sins_are_named_with_their_line(sin):
    good, bad, words, hint = SINS[sin]
    assert good in MCU
    text = MCU.replace(good, bad, 1)
    with pytest.raises(TargetError, match=words) as caught:
        parse_target(text, "mine.toml")
    number = line_of(text, bad.split("\n")[0])
    assert str(caught.value).startswith(f"mine.toml:{number}: ")
    assert hint in caught.value.hint


def test_a_number_where_a_table_belongs():
    kernels, memory, serial = (MCU.index(f"[{name}]") for name in ("kernels", "memory", "serial"))
    text = MCU[:kernels] + "memory = 3\n" + MCU[kernels:memory] + MCU[serial:]
    with pytest.raises(TargetError, match="memory = 3: expected a table") as caught:
        parse_target(text, "mine.toml")
    assert str(caught.value).startswith(f"mine.toml:{line_of(text, 'memory = 3')}: ")


@pytest.mark.parametrize("line", [line for line in MCU.splitlines() if "=" in line and not line.startswith("#")])
def test_no_key_may_be_missing(line):
    with pytest.raises(TargetError, match=f"lacks '{line.split()[0]}'"):
        parse_target(MCU.replace(line + "\n", "", 1), "mine.toml")


def test_the_main_format_is_the_first():
    """What a build certifies under where it is not told."""
    found = load_target("raspberry-pi")
    assert isinstance(found, SshTarget) and list(found.engines) == ["tflite", "onnx"]
    assert found.tflite is not None and found.profile == found.tflite.profile == "litert-xnnpack-arm64"


def test_a_target_is_called_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "target.toml").write_text(MCU)
    monkeypatch.setattr(described, "data_path", lambda *parts: tmp_path.joinpath(*parts[1:]))
    with pytest.raises(TargetError, match="name = 'mcu' in the folder 'mine'"):
        load_target("mine")
    (tmp_path / "mine" / "target.toml").write_text(MCU.replace('name = "mcu"', 'name = "mine"', 1))
    assert load_target("mine").name == "mine"


def test_unknown_target_names_the_nearest():
    with pytest.raises(TargetError, match="no target is called 'nucleo'") as caught:
        load_target("nucleo")
    assert caught.value.hint == "nucleo-l4r5zi"


PI = """
name = "x"
title = "X"
family = "linux-ssh"
machine = "aarch64"
cpu = "any"
evidence = ""
note = ""
[kernels]
channel_multiple = 1
sparse = ""
weight_bits = [8]
source = ""
[ssh]
connect_s = 15.0
idle_s = 300.0
[onnx]
runtime = "onnxruntime"
profile = "ort-arm64"
host = "onnxruntime"
package = "onnxruntime"
"""


def test_a_computer_needs_an_engine() -> None:
    found = parse_target(PI, "x.toml")
    assert isinstance(found, SshTarget)
    assert list(found.engines) == ["onnx"] and found.profile == "ort-arm64"
    with pytest.raises(TargetError, match="nothing runs there"):
        parse_target(PI[: PI.index("[onnx]")], "x.toml")
    with pytest.raises(TargetError, match=r"runtime = .ort.: expected one of litert, onnxruntime"):
        parse_target(PI.replace('"onnxruntime"', '"ort"', 1), "x.toml")
