"""Nothing of the user's is overwritten by what a command makes of it: not an input, not a device, not the proof by its certificate."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from file_kit import Shown, refused

from cactus_edge.errors import InputError
from cactus_edge.resources import require_file, write_atomic


def bytes_of(*files: Path) -> list[bytes]:
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize(
    "command",
    [
        "run {model} --data {data} --out {data}",
        "run {model} --data {data} --out {model}",
        "certify {model} --data {data} --eps 0 --out {model}",
        "certify {model} --data {data} --eps 0 --out {data}",
        "certify {model} --data {data} --max-eps --out {model}",
        "certify {model} --data {data} --semantic brightness=0.1 --out {data}",
        "convert {model} --to tflite --out {folder}",
    ],
)
def test_an_input_is_never_the_output(command: str, model: Path, data: Path, capsys: Shown) -> None:
    before = bytes_of(model, data)
    refused(command.format(model=model, data=data, folder=model.parent).split(), capsys, "is an input of this command")
    assert bytes_of(model, data) == before


def test_another_name_of_an_input_is_the_input(model: Path, data: Path, tmp_path: Path, capsys: Shown) -> None:
    link = tmp_path / "link.npz"
    link.symlink_to(data)
    before = bytes_of(data)
    refused(["run", str(model), f"--data={data}", f"--out={link}"], capsys, "is an input of this command")
    assert bytes_of(data) == before


@pytest.mark.parametrize("flags", [["--eps=0", "--attack"], ["--max-eps", "--bounds=linear"]])
def test_a_certificate_is_not_its_own_proof(
    model: Path, data: Path, tmp_path: Path, capsys: Shown, flags: list[str]
) -> None:
    out = tmp_path / "cert.proof"
    refused(["certify", str(model), f"--data={data}", *flags, f"--out={out}"], capsys, "name of the proof", "cert.json")
    assert not out.exists()


def test_a_device_is_no_file(model: Path, data: Path, tmp_path: Path, capsys: Shown) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused(["run", str(model), f"--data={data}", f"--out={pipe}"], capsys, "is a device, expected a file")
    with pytest.raises(InputError, match="no regular file"):
        write_atomic(pipe, b"")
    assert pipe.is_fifo()


def test_paths_that_no_file_can_have_are_no_inputs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("")
    assert require_file(out, "--out", ("x" * 5000, b"bytes", None, "a\0b", tmp_path / "gone")) == out
