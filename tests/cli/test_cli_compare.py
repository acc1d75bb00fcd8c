"""`compare` puts runs and builds side by side from what lies in their folders, and refuses folders that are not whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from file_kit import Shown, refused

import cactus_edge as ce
from cactus_edge.cli import main
from cactus_edge.entries import NeutralChain, entry
from cactus_edge.report.results import BuildResults
from cactus_edge.samples import read_samples


@pytest.fixture(scope="module")
def run_folder(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("compared") / "a-run"
    assert main(["train", f"--recipe={recipe}", f"--out={folder}", "--threads=1", "--device=cpu", "--quiet"]) == 0
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no cell is wrapped, whoever runs the tests."""
    monkeypatch.setenv("COLUMNS", "1000")


def compare_command(*folders: Path, options: tuple[str, ...] = ()) -> list[str]:
    """`compare`, on one thread."""
    return ["compare", *map(str, folders), "--threads=1", *options]


def test_a_run_and_the_build_of_its_recipe_say_the_same(
    run_folder: Path, bundle: Path, tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page"
    assert main(compare_command(run_folder, bundle, options=(f"--out={out}",))) == 0
    shown = capsys.readouterr()
    assert shown.out.count("intervals") == 2 and "13," in shown.out and f"page  {out / 'compare.html'}" in shown.out
    rows = {row["name"]: row for row in json.loads((out / "compare.json").read_text())["groups"][0]["entries"]}
    ours, built = rows[str(run_folder)], rows[str(bundle)]
    same = (
        "clean",
        "attacked",
        "certified",
        "float_certified",
        "float_clean",
        "bytes",
        "macs",
        "trained_by",
        "pareto",
        "corrupted",
    )
    assert {k: ours[k] for k in same} == {k: built[k] for k in same}
    accuracy = BuildResults.from_json((bundle / "results.json").read_text()).accuracy
    assert 0 < built["corrupted"] < built["clean"]["count"] / 100
    assert "corrupted: mean of 15 corruptions at 5 severities, on 100 of the listed inputs" in shown.out
    assert built["certified"]["count"] == accuracy.int8_certified.count
    assert built["latency_us"] is None and built["instructions"] > 1000 and ours["instructions"] is None
    assert (out / "compare.html").read_text().count("<svg") == 3
    # The export of the run is made once.
    monkeypatch.setattr(NeutralChain, "compress", lambda *_: pytest.fail("exported again"))
    assert main(compare_command(run_folder, options=("--json",))) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["groups"][0]["entries"][0]["certified"] == ours["certified"]
    assert again.err.count("as before") == 3


def test_other_regions_stand_in_another_group(run_folder: Path, recipe: Path, tmp_path: Path, capsys: Shown) -> None:
    text = recipe.read_text().replace('eps = "1/32"', 'eps = "1/64"\nsamples = 40')
    other = tmp_path / "other.toml"
    other.write_text(text)
    folder = tmp_path / "b-run"
    assert main(["train", f"--recipe={other}", f"--out={folder}", "--threads=1", "--device=cpu", "--quiet"]) == 0
    assert main(compare_command(run_folder, folder, options=("--quiet",))) == 0
    shown = capsys.readouterr().out
    assert "apart from the first group: eps 1/64" in shown
    assert "apart from the first group: 40 listed inputs, not 100" in shown


def test_the_best_certificate_in_the_folder_counts(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "searched"))
    before = entry(folder)
    x, y = read_samples(folder / "test.npz")
    model, eps = folder / "model.tflite", Fraction(1, 32)
    linear = ce.certify(model, x, y, eps=eps, profile="tflm", bounds="linear", threads=1)
    count = linear.record["verdict"]["certified"]
    (folder / "searched.json").write_bytes(linear.to_bytes())
    after = entry(folder)
    assert count > before.certified.count
    assert (after.certified.count, after.engine) == (count, "proofs in searched.json")
    assert replace(after, certified=before.certified, engine=before.engine) == before
    # A certificate of another region, by another rule for ties or under another profile is about something else.
    for options in ({"profile": "tflm", "ties": "first-maximum"}, {"profile": "litert-ref"}):
        another = ce.certify(model, x, y, eps=eps, bounds="linear", threads=1, **options)
        assert another.record["verdict"]["certified"] > before.certified.count
        (folder / "searched.json").write_bytes(another.to_bytes())
        assert entry(folder) == before
    other = ce.certify(model, x, y, eps=eps / 2, profile="tflm", bounds="linear", threads=1)
    (folder / "searched.json").write_bytes(other.to_bytes())
    assert entry(folder) == before


def test_folders_that_are_refused(bundle: Path, run_folder: Path, tmp_path: Path, capsys: Shown) -> None:
    refused(compare_command(tmp_path / "nowhere"), capsys, "there is no folder")
    refused(compare_command(tmp_path), capsys, "is neither a run nor a build")
    refused(compare_command(bundle, bundle), capsys, "is named twice")
    (tmp_path / "file").write_text("")
    refused(compare_command(bundle, options=(f"--out={tmp_path / 'file'}",)), capsys, "is not a folder")
    half = Path(shutil.copytree(bundle, tmp_path / "half"))
    text = (half / "results.json").read_text()
    (half / "results.json").unlink()
    refused(compare_command(half), capsys, "is a build that was not finished")
    (half / "results.json").write_text("{")
    refused(compare_command(half), capsys, "results.json: line 1")
    (half / "results.json").write_text(text.replace('"tool_version": "', '"tool_version": "9.'))
    refused(compare_command(half), capsys, "was built by cactus-edge 9.")
    (half / "results.json").write_text(text)
    model = (half / "model.tflite").read_bytes()
    (half / "model.tflite").write_bytes(model[:-1])
    refused(compare_command(half), capsys, "changed since it was built")
    (half / "model.tflite").unlink()
    refused(compare_command(half), capsys, "lacks model.tflite")
    (half / "model.tflite").write_bytes(model)
    (half / "test.npz").unlink()
    refused(compare_command(half), capsys, "lacks test.npz")
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "network_sha256": ""}))
    refused(compare_command(bundle, run), capsys, "is not finished")


@pytest.mark.parametrize("threads", ["-3", "-1", "4097", "99999999999"])
def test_threads_that_there_cannot_be_are_refused(tmp_path: Path, capsys: Shown, threads: str) -> None:
    """As `build` and `train` do, before any folder is opened."""
    for command in (["compare", str(tmp_path)], ["train", f"--out={tmp_path}"], ["build", f"--out={tmp_path}"]):
        refused([*command, "--threads", threads], capsys, f"threads is {threads}, expected an integer in [0, 4096]")
    assert not list(tmp_path.iterdir())


def test_a_build_that_contradicts_its_certificate_is_a_negative_verdict(
    bundle: Path, tmp_path: Path, capsys: Shown
) -> None:
    bad = Path(shutil.copytree(bundle, tmp_path / "bad"))
    record = json.loads((bad / "results.json").read_text())
    record["device"]["equal"] = record["device"]["compared"] - 1
    (bad / "results.json").write_text(json.dumps(record))
    assert main(compare_command(bad)) == 1
    assert "The device differs from the interpreter on 1 inputs" in capsys.readouterr().err
