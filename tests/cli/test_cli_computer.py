"""`build` and `bench` for a computer: both files, both certificates, and a run by ssh on the loopback device."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("asyncssh", reason="pip install 'cactus-edge[device]'")

from ssh_kit import Behaviour, Server

from cactus_edge.cli import main
from cactus_edge.formats.onnx.runtime import has_vnni
from cactus_edge.report.results import BuildResults
from cactus_edge.resources import data_path

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not has_vnni(), reason="the runtimes here are those of x86-64 with VNNI"
)


@pytest.fixture(scope="module")
def pi(bundle: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for a Raspberry Pi that nobody has, from the other bundle's training."""
    folder = tmp_path_factory.mktemp("pi") / "tiny-raspberry-pi"
    shutil.copytree(bundle / ".train", folder / ".train")
    command = ["build", "--target", "raspberry-pi", "--recipe", str(recipe), "--out", str(folder), "--threads", "1"]
    assert main([*command, "--quiet"]) == 0
    return folder


def test_both_files_agree_and_are_certified(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = BuildResults.from_json((pi / "results.json").read_text())
    assert [a.runtime.split()[0] for a in results.agreement] == ["model.tflite", "model.onnx"]
    assert all(a.mismatches == 0 and a.inputs >= 100 for a in results.agreement)
    assert results.certificate.profile == "litert-xnnpack-arm64"
    assert (results.device, results.remote, results.model.blob_sha256) == (None, (), "")
    first, second = (json.loads((pi / n).read_text()) for n in ("certificate.json", "certificate-ort-arm64.json"))
    assert first["profile"]["name"] == "litert-xnnpack-arm64"
    assert second["profile"]["name"] == "ort-arm64"
    for certificate, model in (("certificate.json", "model.tflite"), ("certificate-ort-arm64.json", "model.onnx")):
        words = ["verify", str(pi / certificate), "--model", str(pi / model), "--data", str(pi / "test.npz")]
        assert main(words) == 0, capsys.readouterr()
    files = json.loads((pi / "manifest.json").read_text())["files"]
    assert {"model.tflite", "model.onnx", "certificate.json", "certificate-ort-arm64.json", "test.npz"} <= set(files)
    assert not [name for name in files if name.startswith("c/") or name.endswith(".elf")]


def test_without_a_host_the_report_says_how_to_measure(pi: Path) -> None:
    page = (pi / "report.html").read_text()
    assert "not measured" in page
    assert "cactus-edge bench model.tflite --target raspberry-pi --host user@host" in page
    assert "model.onnx" in page and "ort-arm64" in page


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """This machine behind ssh, and a target `raspberry-pi` that is like it."""
    for name in ("raspberry-pi", "mcu"):
        shutil.copytree(data_path("targets", name), tmp_path / "targets" / name)
    path = tmp_path / "targets" / "raspberry-pi" / "target.toml"
    text = path.read_text().replace('"aarch64"', f'"{platform.machine()}"').replace("xnnpack-arm64", "xnnpack")
    path.write_text(text.replace("ort-arm64", "ort-x86"))
    monkeypatch.setattr("cactus_edge.device.targets.data_path", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr("cactus_edge.computer.MEASURE_S", (0.01, 0.05))
    with Server(tmp_path / "server", Behaviour()) as found:
        found.install(f"exec {shlex.quote(sys.executable)}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        monkeypatch.setenv("HOME", str(found.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield found


def test_build_runs_both_files_on_the_computer(
    server: Server, bundle: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(bundle / ".train", folder / ".train")
    command = ["build", "--target", "raspberry-pi", "--recipe", str(recipe), "--out", str(folder), "--threads", "1"]
    host = f"pi@127.0.0.1:{server.port}"
    assert main([*command, "--quiet", "--device-inputs", "20", "--host", host]) == 0
    shown = capsys.readouterr().out
    assert shown.count("20 of 20 equal to profile") == 2
    assert "µs median" in shown and "p99" in shown
    results = BuildResults.from_json((folder / "results.json").read_text())
    lines = {row.name: row.value for row in results.remote}
    assert "single inferences on one thread" in lines["model.onnx, latency"]
    assert "MiB" in lines["model.tflite, peak memory"]
    assert "µs median" in (folder / "report.html").read_text()
    for text in (
        p.read_text(errors="replace") for p in folder.rglob("*") if p.suffix in (".json", ".html", ".csv", ".log")
    ):
        assert "127.0.0.1" not in text or "--host" in text


def test_bench_names_the_computer_and_its_figures(server: Server, pi: Path, tmp_path: Path, capsys: Any) -> None:
    host = f"pi@127.0.0.1:{server.port}"
    for name in ("model.tflite", "model.onnx"):
        words = ["bench", str(pi / name), "--target", "raspberry-pi", "--host", host, "--inputs", "7"]
        assert main([*words, "--out", str(tmp_path / "bench")]) == 0
        shown = capsys.readouterr().out
        assert "7 of 7 equal" in shown and "µs median" in shown


def test_what_does_not_go_together_is_refused_before_anything_is_trained(
    pi: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err

    out = ["--recipe", str(recipe), "--out", str(tmp_path / "x")]
    assert "not reached by ssh" in refused("build", "--target", "mcu", "--host", "pi@board", *out)
    assert "no address" in refused("build", "--target", "raspberry-pi", "--host", "pi@board;reboot", *out)
    assert "not by a serial port" in refused("build", "--target", "jetson", "--port", "auto", *out)
    assert not (tmp_path / "x").exists()
    assert "no address was given" in refused("bench", str(pi / "model.tflite"), "--target", "raspberry-pi")
    assert "has no firmware" in refused("flash", str(pi / "model.tflite"), "--target", "raspberry-pi")
