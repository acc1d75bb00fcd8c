"""`build` leaves everything it promises, does nothing twice, and survives being interrupted anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_kit import build_command, refused

from cactus_edge.bundle import data_record
from cactus_edge.chain import Chain
from cactus_edge.cli import main
from cactus_edge.report.results import BuildResults
from cactus_edge.resources import sha256


def test_bundle_is_complete_and_its_manifest_is_true(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    names = set(manifest["files"])
    assert {"model.tflite", "certificate.json", "firmware.elf", "report.html", "results.json", "test.npz"} <= names
    assert {"c/model.c", "c/model.h", "c/example/main.c"} <= names
    for name, digest in manifest["files"].items():
        assert sha256((bundle / name).read_bytes()) == digest, name
    assert not any(name.startswith(".") for name in names)
    assert manifest["gains"]["Channels"].endswith("every width is a multiple of 4, what the kernels compute together")


def test_one_digest_in_certificate_sources_and_results(bundle: Path) -> None:
    certificate = json.loads((bundle / "certificate.json").read_text())
    blob = certificate["model"]["blob_sha256"]
    results = BuildResults.from_json((bundle / "results.json").read_text())
    assert blob in (bundle / "c" / "model.h").read_text()
    assert results.model.blob_sha256 == blob
    assert results.device is not None
    assert results.device.blob_sha256 == blob
    assert results.device.equal == results.device.compared == 5
    assert all(a.mismatches == 0 for a in results.agreement)


def test_certified_at_most_attacked_at_most_clean(bundle: Path) -> None:
    accuracy = BuildResults.from_json((bundle / "results.json").read_text()).accuracy
    assert accuracy.int8_attacked is not None
    assert accuracy.int8_certified.count <= accuracy.int8_attacked.count <= accuracy.int8_clean.count


def test_what_a_layers_sums_may_reach_is_the_largest_of_its_facts(bundle: Path) -> None:
    facts = json.loads((bundle / ".steps" / "certify.json").read_text())["result"]["overflow"]
    of_nodes = [
        [fact["bound"] for fact in facts if fact["node"] == n] for n in sorted({fact["node"] for fact in facts})
    ]
    assert any(min(bounds) < max(bounds) for bounds in of_nodes)
    layers = BuildResults.from_json((bundle / "results.json").read_text()).layers
    assert [layer.accumulator for layer in layers if layer.accumulator is not None] == [max(b) for b in of_nodes]


def test_each_part_of_the_data_has_its_own_count() -> None:
    parts = {name: SimpleNamespace(y=[0] * count) for name, count in (("train", 5), ("validation", 3), ("test", 2))}
    about = {"name": "few", "digest": lambda: "ab" * 32, "shape": (4,), "labels": ("a", "b"), "preprocessing": "none"}
    found = data_record(SimpleNamespace(**parts, **about))  # type: ignore[arg-type]
    assert (found.train, found.validation, found.test) == (5, 3, 2)


def test_second_build_does_nothing_again(bundle: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle.rglob("*.tflite")}
    assert main(build_command(recipe, bundle)) == 0
    shown = capsys.readouterr().err
    assert shown.count("as before") == 6
    assert {p: p.stat().st_mtime_ns for p in bundle.rglob("*.tflite")} == before


def test_changed_file_is_made_again(
    bundle: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    good = (folder / "model.tflite").read_bytes()
    (folder / "model.tflite").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert main(build_command(recipe, folder)) == 0
    assert (folder / "model.tflite").read_bytes() == good
    assert "compress  model.tflite" in capsys.readouterr().err


def test_a_changed_or_missing_kernel_is_written_again(bundle: Path, recipe: Path, tmp_path: Path) -> None:
    """The sources are what `agree` compiles: one that was changed since must not pass for one that agreed."""
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    changed, missing = folder / "c" / "ce_dense_s8.c", folder / "c" / "live.h"
    good = changed.read_text(), missing.read_text()
    changed.write_text(good[0] + "#error changed\n")
    missing.unlink()
    assert main(build_command(recipe, folder, "--quiet")) == 0
    assert (changed.read_text(), missing.read_text()) == good


def test_the_manifest_lists_what_this_build_wrote(bundle: Path, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle, folder)
    (folder / "certificate-brightness-0.1.json").write_text("of another model")
    (folder / "c" / "notes.txt").write_text("mine")
    assert main(build_command(recipe, folder, "--quiet")) == 0
    manifests = [json.loads((f / "manifest.json").read_text())["files"] for f in (bundle, folder)]
    assert set(manifests[0]) == set(manifests[1])
    assert any(name.startswith("device/") for name in manifests[0])


def test_other_inputs_are_compared_again(recipe: Path, bundle: Path, tmp_path: Path) -> None:
    folder, fewer = tmp_path / "copy", tmp_path / "tiny.toml"
    shutil.copytree(bundle, folder)
    fewer.write_text(recipe.read_text() + "samples = 3\n")
    assert main(build_command(fewer, folder, "--quiet")) == 0
    results = BuildResults.from_json((folder / "results.json").read_text())
    assert results.device is not None and results.device.compared == 3
    assert {a.inputs for a in results.agreement} == {3 + Chain.compared // 4}, "and random ones"


def test_interrupted_training_continues_and_ends_the_same(bundle: Path, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "interrupted"
    command = [sys.executable, "-m", "cactus_edge", *build_command(recipe, folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(folder.glob(".train/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=120)
    assert process.returncode in (0, 130), shown
    if process.returncode == 130:
        assert "run the same command again" in shown
        assert "Traceback" not in shown
    assert main([*command[3:], "--quiet"]) == 0
    assert (folder / "model.tflite").read_bytes() == (bundle / "model.tflite").read_bytes()


def test_full_disk_is_one_line_and_leaves_nothing_half_written(
    bundle: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "full"
    shutil.copytree(bundle, folder)
    for name in ("report.html", "results.json"):
        (folder / name).unlink()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cactus_edge.resources.os.fsync", no_space)
    assert main(build_command(recipe, folder, "--quiet")) == 2
    shown = capsys.readouterr().err
    assert "No space left on device" in shown
    assert "Traceback" not in shown
    assert not (folder / "results.json").exists()
    assert not [p for p in folder.iterdir() if p.name.startswith(".results")]


def test_a_build_that_contradicts_its_certificate_is_a_negative_verdict(
    bundle: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its report says so: it is written all the same."""
    folder = tmp_path / "bad"
    shutil.copytree(bundle, folder)
    monkeypatch.setattr("cactus_edge.report.html.problems", lambda results: ["An output lies outside."])
    assert main(build_command(recipe, folder, "--quiet")) == 1
    assert "An output lies outside." in capsys.readouterr().err
    assert "An output lies outside." in (folder / "report.html").read_text()


def test_a_folder_holds_the_build_for_one_target(
    recipe: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the firmware of the first would stand in the second's manifest."""
    before = (bundle / "manifest.json").read_bytes()
    assert main(build_command(recipe, bundle, "--quiet", "--target=esp32-s3-devkitc")) == 2
    assert f"{bundle} holds a build for mcu" in capsys.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before


def test_board_without_firmware_of_ours_is_reported_as_not_measured(
    recipe: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "esp"
    shutil.copytree(bundle / ".train", folder / ".train")
    assert main(build_command(recipe, folder, "--quiet", "--target=esp32-s3-devkitc")) == 0
    assert "not measured" in capsys.readouterr().out
    assert "not measured" in (folder / "report.html").read_text()
    assert not (folder / "firmware.elf").exists()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("seed", "-5", "seed"),
        ("threads", "-2", "threads"),
        ("device-inputs", "0", "device_inputs"),
        ("target", "no", "no"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, word: str
) -> None:
    folder = tmp_path / "out"
    refused(build_command(recipe, folder, f"--{option}", value), capsys, word)
    assert not folder.exists()


IN_THE_WAY = ["a_file", "below_a_file", "below_a_dangling_link", "too_long", "unwritable"]


def in_the_way(kind: str, folder: Path) -> Path:
    """A path that no folder can be made at."""
    (folder / "file").write_text("kept")
    (folder / "link").symlink_to(folder / "nothing" / "here")
    paths = {
        "a_file": folder / "file",
        "below_a_file": folder / "file" / "a" / "b",
        "below_a_dangling_link": folder / "link" / "a",
        "too_long": folder / ("a" * 300),
        "unwritable": Path("/proc/cactus-edge"),
    }
    if kind == "unwritable" and not Path("/proc").is_dir():
        pytest.skip("no folder here that even root cannot write to")
    return paths[kind]


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_an_out_that_cannot_be_written_is_refused_before_anything_is_trained(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = in_the_way(kind, tmp_path)
    monkeypatch.setattr("cactus_edge.pipeline.build", None)  # not even called
    before = sorted(tmp_path.iterdir())
    refused(build_command(recipe, out), capsys, "--out", str(out))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("kind", IN_THE_WAY)
@pytest.mark.parametrize("verb", ["bench", "certify", "convert", "run"])
def test_an_out_that_cannot_be_written_is_refused_by_every_verb(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, kind: str
) -> None:
    folder = in_the_way(kind, tmp_path)
    given = [] if verb in ("bench", "convert") else [f"--data={data}"]
    given += {"certify": ["--eps=1"], "convert": ["--to=c"]}.get(verb, [])
    out = folder if verb in ("bench", "convert") else folder / "file.out"
    refused([verb, str(model), *given, f"--out={out}"], capsys, "--out", str(out))


@pytest.mark.parametrize("verb", ["certify", "run"])
def test_a_folder_where_a_file_is_to_be_written_is_refused(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    command = [verb, str(model), f"--data={data}", f"--out={tmp_path}", *(["--eps=1"] if verb == "certify" else [])]
    refused(command, capsys, "--out", "is a folder, expected a file")


def test_live_inputs_need_firmware_of_ours(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained."""
    command = ["build", "--recipe", str(recipe), "--live", "--out", str(tmp_path / "none")]
    for target in ("raspberry-pi", "esp32-s3-devkitc"):
        refused([*command, "--target", target], capsys, "no firmware of ours, which live inputs need")
    assert not (tmp_path / "none").exists()
