"""`train` leaves a run folder that goes on after Ctrl-C, is exported without training, and is refused where it is not whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from file_kit import Shown, build_command, refused

from cactus_edge.cli import main
from cactus_edge.progress import Seldom
from cactus_edge.recipe import load_recipe
from cactus_edge.runs import EpochReport, find_run, locked, read_run
from cactus_edge.train.history import EpochStats
from cactus_edge.train.loop import _Run


def train_command(out: Path, *options: str) -> list[str]:
    """`train` into that folder, on one thread."""
    return ["train", f"--out={out}", "--threads=1", "--device=cpu", *options]


@pytest.fixture(scope="session")
def run_folder(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for tests that only read it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(train_command(folder, f"--recipe={recipe}", "--quiet")) == 0
    return folder


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    """A finished run to spoil."""
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


@pytest.fixture
def no_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training anything is an error."""

    def fail(*_: object) -> None:
        raise AssertionError("an epoch was trained")

    monkeypatch.setattr(_Run, "_run_epoch", fail)


def test_what_a_run_leaves(run_folder: Path, recipe: Path) -> None:
    run = read_run(run_folder)
    assert {p.name for p in run_folder.iterdir()} == {"recipe.toml", "run.json", "curves.svg", run.record.network}
    assert run.recipe == load_recipe(recipe)
    assert [(e.stage, e.epoch) for e in run.record.epochs] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("compress", 1),
    ]
    state = torch.load(run_folder / run.record.network, weights_only=True)
    assert sum(t.numel() for name, t in state["network"].items() if "weight" in name) == sum(run.record.weights_after)
    assert (run_folder / "curves.svg").read_text().count("<svg") == 1
    assert run.record.device == "cpu" and run.record.processes == 1


def test_one_line_an_epoch_and_nothing_twice(run_folder: Path, recipe: Path, tmp_path: Path, capsys: Shown) -> None:
    folder = tmp_path / "again"
    assert main(train_command(folder, f"--recipe={recipe}")) == 0
    first = capsys.readouterr()
    lines = first.err.splitlines()
    assert len(lines) == 5
    for number, line in enumerate(lines[:4], start=1):
        figures = r"loss \d\.\d{4}  eps \S+  train \S+% clean \S+% certified  validation \S+% clean \S+% certified"
        assert re.search(rf"{number}/4 (train|compress)  {figures}(  \d+ s left)?$", line), line
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert main(train_command(folder)) == 0
    second = capsys.readouterr()
    assert second.err.count("\n") == 1 and "as before" in second.err and second.out == first.out
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    record, other = (read_run(f).record for f in (folder, run_folder))
    assert record.network_sha256 == other.network_sha256 and record.key == other.key


def test_ctrl_c_loses_nothing_finished(
    run_folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    folder, told = tmp_path / "cut", EpochReport.__call__

    def interrupted(report: EpochReport, e: EpochStats) -> None:
        told(report, e)
        if e.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochReport, "__call__", interrupted)
        assert main(train_command(folder, f"--recipe={recipe}")) == 130
    assert "run the same command again" in capsys.readouterr().err
    half = find_run(folder)
    assert half is not None and not half.finished
    refused(["build", f"--run={folder}", f"--out={tmp_path / 'b'}"], capsys, "is not finished", f"train --out {folder}")
    assert main(train_command(folder)) == 0
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()[:2]] == ["3/4", "4/4"]
    assert read_run(folder).record.network_sha256 == read_run(run_folder).record.network_sha256


def test_a_long_epoch_says_how_far_it_is(
    recipe: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    """Here every step is long. The weights are the same."""
    monkeypatch.setattr(Seldom, "due", lambda _: True)
    assert main(train_command(tmp_path / "told", f"--recipe={recipe}")) == 0
    lines = capsys.readouterr().err.splitlines()
    first, second, *_ = (i for i, line in enumerate(lines) if "loss" in line)
    before, between = lines[:first], lines[first + 1 : second]
    steps = int(before[0].split(" of ")[1].split()[0])
    assert [line.split()[2] for line in before] == ["0/4"] * (steps - 1)
    assert [line.split()[2] for line in between] == ["1/4"] * (steps - 1)
    assert f"{steps - 1} of {steps} steps of the next epoch" in between[-1]
    assert read_run(tmp_path / "told").record.network_sha256 == read_run(run_folder).record.network_sha256


def test_it_is_told_seldom() -> None:
    now = [0.0]
    seldom = Seldom(20, lambda: now[0])
    said = []
    for now[0] in (10.0, 19.0, 20.0, 30.0, 41.0, 45.0):
        said.append(seldom.due())
    assert said == [False, False, True, False, True, False]
    seldom.told()
    now[0] = 64.0
    assert not seldom.due()
    now[0] = 65.0
    assert seldom.due()


def test_a_run_is_exported_as_its_recipe_is_built(
    run_folder: Path, bundle: Path, tmp_path: Path, no_epochs: None
) -> None:
    out = tmp_path / "out"
    command = build_command(Path("unused"), out, "--quiet")
    assert main([command[0], f"--run={run_folder}", *command[2:]]) == 0
    assert (out / "model.tflite").read_bytes() == (bundle / "model.tflite").read_bytes()
    assert not (out / ".train").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["name"] == "tiny"


def test_another_grid_takes_the_network_of_the_run(run_folder: Path, tmp_path: Path, no_epochs: None) -> None:
    """A Jetson's file is symmetric; the run's network, rounded to other levels while it trained, is still the one that ships."""
    out = tmp_path / "jetson"
    assert main(["build", f"--run={run_folder}", "--target=jetson", f"--out={out}", "--quiet"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["quantise"]["symmetric"] and not (out / ".train").exists()


def test_two_processes_give_the_bits_of_one(recipe: Path, tmp_path: Path) -> None:
    """Training that two processes of torchrun finished is taken up, finished, by one; and trained by one from the start."""
    short = recipe.read_text().replace("epochs = 3", "epochs = 2").replace("ramp_epochs = 1", "ramp_epochs = 0")
    own = tmp_path / "short.toml"
    own.write_text(short)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "cactus_edge",
    ]
    done = subprocess.run(
        [*command, *train_command(tmp_path / "two", f"--recipe={own}")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recipe ") == 1 and sum("loss" in line for line in done.stderr.splitlines()) == 3
    two = read_run(tmp_path / "two")
    assert two.record.processes == 2 and two.recipe.train.parts == 2
    assert main(train_command(tmp_path / "one", f"--recipe={tmp_path / 'two' / 'recipe.toml'}", "--quiet")) == 0
    one = read_run(tmp_path / "one").record
    assert one.network_sha256 == two.record.network_sha256 and one.processes == 1
    assert [e.loss for e in one.epochs] == [e.loss for e in two.record.epochs]


def test_own_data_is_found_from_the_run_folder(recipe: Path, tmp_path: Path, capsys: Shown) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = np.clip(rng.random((90, 6, 6)) * 0.3 + y[:, None, None] / 4, 0, 1).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    own = tmp_path / "own.toml"
    own.write_text(
        re.sub(r"\[data\].*?\[model\]", '[data]\nfile = "mine.npz"\ntest_samples = 20\nvalidation_samples = 20\n[model]',
               recipe.read_text(), flags=re.S).replace("batch = 64", "batch = 16")
    )  # fmt: skip
    folder = tmp_path / "deep" / "run"
    assert main(train_command(folder, f"--recipe={own}", "--quiet")) == 0
    assert main(train_command(folder, "--quiet")) == 0
    np.savez(tmp_path / "mine.npz", x=x[::-1], y=y)
    command = ["build", f"--run={folder}", f"--out={tmp_path / 'b'}"]
    refused(command, capsys, "the data of the run", "changed")
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace("robust_weight = 0.7", "robust_weight = 0.6"))
    refused(command, capsys, "the recipe of the run", "changed")


def test_own_code_is_found_from_the_run_folder(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\ndef make(shape, classes):\n"
        "    layers = nn.Linear(shape[0] * shape[1] * shape[2], 9), nn.ReLU(), nn.Linear(9, classes)\n"
        "    return nn.Sequential(nn.Flatten(), *layers)\n"
    )
    own = tmp_path / "own.toml"
    own.write_text(
        re.sub(r"\[model\].*?\[train\]", '[model]\nmodule = "my_nets:make"\n[train]', recipe.read_text(), flags=re.S)
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = tmp_path / "deep" / "run"
    assert main(train_command(folder, f"--recipe={own}", "--quiet")) == 0
    assert main(train_command(folder, "--quiet")) == 0
    assert read_run(folder).recipe.model.module == "my_nets:make"


@pytest.mark.parametrize("there", [False, True], ids=["no_folder", "a_folder_with_a_file"])
def test_a_recipe_that_training_refuses_leaves_no_run(recipe: Path, tmp_path: Path, capsys: Shown, there: bool) -> None:
    """So that the mended recipe finds the folder free; what else lies there stays."""
    folder, bad = tmp_path / "run", tmp_path / "bad.toml"
    if there:
        folder.mkdir()
        (folder / "mine.txt").write_text("")
    bad.write_text(recipe.read_text().replace("[train]\n", "[train]\nparts = 4096\n", 1))
    refused(train_command(folder, f"--recipe={bad}"), capsys, "parts")
    assert ([p.name for p in folder.iterdir()] == ["mine.txt"]) if there else not folder.exists()


def test_a_run_with_an_epoch_stays_whatever_refuses_it_later(copy: Path, recipe: Path, capsys: Shown) -> None:
    before = sorted(p.name for p in copy.iterdir())
    (copy / read_run(copy).record.network).write_bytes(b"no network")
    refused(train_command(copy, f"--recipe={recipe}"), capsys, "is not a checkpoint of this run")
    assert sorted(p.name for p in copy.iterdir()) == before


def flip(path: Path, at: int, by: int = 1) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= by
    path.write_bytes(bytes(data))


def weights_at(path: Path) -> int:
    """Where the bytes of the first weights lie in a checkpoint."""
    with zipfile.ZipFile(path) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    return path.read_bytes().index(largest.filename.encode()) + len(largest.filename) + 200


@pytest.mark.parametrize("by", [1, 0x40], ids=["mantissa", "exponent"])
def test_one_bit_of_a_network_is_seen(copy: Path, recipe: Path, capsys: Shown, no_epochs: None, by: int) -> None:
    network = copy / read_run(copy).record.network
    before = (copy / "run.json").read_bytes()
    flip(network, weights_at(network), by)
    refused(train_command(copy, f"--recipe={recipe}"), capsys, "is damaged: its checksum is another")
    refused(["build", f"--run={copy}", f"--out={copy.parent / 'b'}"], capsys, "is damaged")
    refused(["compare", str(copy)], capsys, "is damaged")
    assert (copy / "run.json").read_bytes() == before


def test_another_network_than_the_records_is_seen(copy: Path, recipe: Path, capsys: Shown, no_epochs: None) -> None:
    """A whole checkpoint, with right checksums, of other weights."""
    network = copy / read_run(copy).record.network
    state = torch.load(network, weights_only=True)
    next(t for t in state["network"].values() if t.dtype == torch.float32).view(-1)[0] += 1
    torch.save(state, network)
    refused(train_command(copy, f"--recipe={recipe}"), capsys, "holds network", "bring the file back")
    refused(["build", f"--run={copy}", f"--out={copy.parent / 'b'}"], capsys, "holds network")
    refused(["compare", str(copy)], capsys, "holds network")


def test_what_comes_after_training_may_change(copy: Path, recipe: Path, tmp_path: Path, no_epochs: None) -> None:
    """The network is the run's, the recipe the last that was given."""
    changed = tmp_path / "changed.toml"
    changed.write_text(recipe.read_text().replace("[certify]\n", "[certify]\nsamples = 5\n", 1))
    assert load_recipe(changed).certify.samples == 5
    before = read_run(copy)
    assert main(train_command(copy, f"--recipe={changed}", "--quiet")) == 0
    after = read_run(copy)
    assert after.recipe == load_recipe(changed) and after.record.recipe_sha256 == load_recipe(changed).digest()
    assert after.record == replace(before.record, recipe_sha256=after.record.recipe_sha256)


def test_one_training_at_a_time(copy: Path, recipe: Path, capsys: Shown) -> None:
    with locked(copy):
        refused(train_command(copy, f"--recipe={recipe}"), capsys, "another process trains in")
    assert main(train_command(copy, f"--recipe={recipe}", "--quiet")) == 0


def test_a_recipe_without_an_epoch_is_refused(recipe: Path, tmp_path: Path, capsys: Shown) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(recipe.read_text().replace("[train]\n", '[train]\nmethod = "adverfine-scratch"\n', 1))
    text = re.sub(r"finetune_epochs = \d+", "finetune_epochs = 0", bad.read_text())
    bad.write_text(text)
    refused(train_command(tmp_path / "run", f"--recipe={bad}"), capsys, "has no epoch to train")
    assert not (tmp_path / "run").exists()


def test_runs_that_are_refused(copy: Path, recipe: Path, tmp_path: Path, capsys: Shown, no_epochs: None) -> None:
    build = ["build", f"--run={copy}", f"--out={tmp_path / 'b'}"]
    refused(["build", "--run=nowhere"], capsys, "nowhere holds no run")
    refused([*build, "--seed=1"], capsys, "a run has its seed")
    refused(train_command(copy, f"--recipe={recipe}", "--seed=1"), capsys, "holds another run: tiny, seed 0")
    refused(train_command(tmp_path / "new"), capsys, "holds no run to go on with", "--recipe")
    refused(["train"], capsys, "no recipe is named")
    record = json.loads((copy / "run.json").read_text())

    def spoiled(**changes: object) -> None:
        (copy / "run.json").write_text(json.dumps({**record, **changes}))

    spoiled(tool_version="0.0.9")
    refused(build, capsys, "is a run of cactus-edge 0.0.9")
    spoiled(version=2)
    refused(build, capsys, "version: expected 1, got 2")
    (copy / "run.json").write_text("{")
    refused(build, capsys, "is no record that this version reads")
    refused(train_command(copy), capsys, "is no record")
    spoiled()
    (copy / record["network"]).write_bytes(b"no network")
    refused(build, capsys, "is not a checkpoint of this run")
    (copy / record["network"]).unlink()
    refused(build, capsys, f"lacks {record['network']}")
    (copy / "run.json").unlink()
    refused(train_command(copy, f"--recipe={recipe}"), capsys, "holds a recipe.toml and no run")


def test_options_that_are_refused(recipe: Path, tmp_path: Path, capsys: Shown, no_epochs: None) -> None:
    asked = f"--recipe={recipe}"
    (tmp_path / "file").write_text("")
    refused(["train", asked, f"--out={tmp_path / 'file' / 'run'}"], capsys, "--out", "is not a folder")
    refused(["train", asked, "--out=/proc/nowhere"], capsys, "cannot write")
    refused(train_command(tmp_path / "a", asked, "--seed=-1"), capsys, "seed is -1")
    refused(train_command(tmp_path / "a", "--recipe=mnits"), capsys, "mnist")
    if not torch.cuda.is_available():
        refused(["train", asked, f"--out={tmp_path / 'a'}", "--device=cuda"], capsys, "sees no CUDA device")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--device=tpu"])
    with pytest.raises(SystemExit, match="2"):
        main(["build", asked, "--run=a"])
    assert not (tmp_path / "a").exists()
