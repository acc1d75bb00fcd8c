"""Options that mean nothing, or nothing beside another one, are refused before any work and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_kit import Shown, refused

import cactus_edge as ce
from cactus_edge.api_runs import train
from cactus_edge.cli import main
from cactus_edge.cli.arguments import percentage, reached
from cactus_edge.errors import InputError


@pytest.mark.parametrize("percent", ["nan", "inf", "-5", "-0.1", "100.1", "1e9", "1e-999999999", "1/0", "most", ""])
def test_a_share_that_is_none_is_refused_before_any_work(percent: str, tmp_path: Path, capsys: Shown) -> None:
    """Of files that are not there nothing is said: they are not looked at."""
    command = ["certify", str(tmp_path / "no.tflite"), f"--data={tmp_path / 'no.npz'}", "--eps=1"]
    for asked in ([f"--require={percent}"], ["--require", percent]):
        with pytest.raises(SystemExit) as ended:
            main([*command, f"--out={tmp_path / 'c.json'}", *asked])
        assert ended.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("cactus-edge certify: error: argument --require: ") and "no.tflite" not in said


@pytest.mark.parametrize(("percent", "code"), [("0", 0), ("100", 1)])
def test_the_ends_of_a_share_are_taken(
    percent: str, code: int, model: Path, data: Path, tmp_path: Path, capsys: Shown
) -> None:
    command = ["certify", str(model), f"--data={data}", "--eps=6", f"--out={tmp_path / 'c.json'}"]
    assert main([*command, "--require", percent]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_share_that_is_exactly_reached_is_enough() -> None:
    """Where 100 * (29 / 100) < 29 and 16.1 * 1000 > 16100 in floats."""
    for text, count, total in (("29", 29, 100), ("16.1", 161, 1000), ("64.4", 161, 250), ("33.3", 333, 1000)):
        assert reached(percentage(text), count, total), text
        assert not reached(percentage(text), count - 1, total), text
        assert not reached(percentage(text + "0001" if "." in text else text + ".0001"), count, total), text
    assert reached(None, 0, 10) and reached(percentage("0"), 0, 10)


@pytest.mark.parametrize(
    ("mode", "option"),
    [
        ("--vnnlib=p.vnnlib", "--unit=lsb"),
        ("--vnnlib=p.vnnlib", "--unit=data"),
        ("--vnnlib=p.vnnlib", "--bounds=linear"),
        ("--vnnlib=p.vnnlib", "--seed=0"),
        ("--vnnlib=p.vnnlib", "--samples=0"),
        ("--semantic=blur", "--unit=lsb"),
        ("--semantic=blur", "--bounds=linear"),
        ("--semantic=blur", "--bounds=interval"),
        ("--max-eps", "--unit=lsb"),
    ],
)
def test_options_that_a_mode_has_no_use_for(
    mode: str, option: str, model: Path, data: Path, tmp_path: Path, capsys: Shown
) -> None:
    given = [] if "vnnlib" in mode else [f"--data={data}"]
    command = ["certify", str(model), mode, option, *given, f"--out={tmp_path / 'c.json'}"]
    refused(command, capsys, f"{mode.split('=')[0]} has no use for {option.split('=')[0]}")
    assert not (tmp_path / "c.json").exists()


def test_bounds_are_intervals_and_radii_of_the_data_unless_the_user_says(
    model: Path, data: Path, tmp_path: Path
) -> None:
    said, silent = tmp_path / "said.json", tmp_path / "silent.json"
    command = ["certify", str(model), f"--data={data}", "--eps=1/16"]
    assert main([*command, f"--out={said}", "--unit=data", "--bounds=interval"]) == 0
    assert main([*command, f"--out={silent}"]) == 0
    one, other = (json.loads(path.read_text()) for path in (said, silent))
    for written in ("created", "sha256"):  # the second may have passed between them
        assert one.pop(written) and other.pop(written)
    assert one == other


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("build --recipe digits --target mcu --out=", "--out"),
        ("build --run= --target mcu", "--run"),
        ("convert MODEL --out=", "--out"),
        ("bench MODEL --target mcu --out=", "--out"),
        ("certify MODEL --data= --eps=1 --out=c.json", "--data"),
        ("sign --new-key=", "--new-key"),
        ("verify c.json --model=m.tflite --data=x.npz --proof=", "--proof"),
        ("inspect =", "MODEL"),
    ],
)
def test_a_name_that_is_empty_is_not_the_current_folder(
    command: str, name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    """As an unset variable of a shell leaves it."""
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([{"MODEL": str(model), "=": ""}.get(word, word) for word in command.split()])
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and f"argument {name}: an empty name" in said and set(tmp_path.iterdir()) == before


def test_train_into_a_folder_without_a_name(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.chdir(tmp_path)
    for asked in ([f"--recipe={recipe}"], []):
        refused(["train", *asked, "--out="], capsys, "--out is empty", ". is the current one")
        refused(["train", *asked, "--out", ""], capsys, "--out is empty")
    with pytest.raises(InputError, match="--out is empty"):
        train(recipe, "")
    with pytest.raises(InputError, match="--out is empty"):
        ce.compare([tmp_path], out="")
    assert not list(tmp_path.iterdir())
