"""`bench --target jetson` behind a real ssh server on the loopback device, and what a user gets wrong before there is one.

No Jetson takes part. This machine's ONNX Runtime stands in for the one there: its CPU kernels compute the file in float32, one of the
results that TensorRT's envelope allows, under the name of the provider. What refuses another provider is the agent's own
code, against the wheel's own profile.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("asyncssh", reason="pip install 'cactus-edge[device]'")
pytest.importorskip("onnxruntime", reason="pip install 'cactus-edge[build]'")

from file_kit import refused
from onnx_kit import classifier, symmetric
from ssh_kit import Behaviour, Server

from cactus_edge.cli import main
from cactus_edge.device.agent import PROVIDER, Failure, require_provider
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.resources import data_path

STAND_IN = f"""
import os
import numpy as np
import onnxruntime as ort
from pathlib import Path

fault = os.environ["FAULT"]
ort.get_available_providers = lambda: ["{PROVIDER}", "CPUExecutionProvider"]

class Session(ort.InferenceSession):
    def __init__(self, data, options, providers, enable_fallback):
        assert providers[0][0] == "{PROVIDER}" and enable_fallback == 0
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        mine = ort.SessionOptions()
        mine.graph_optimization_level = options.graph_optimization_level
        mine.enable_profiling, mine.profile_file_prefix = True, options.profile_file_prefix
        super().__init__(data, mine, providers=["CPUExecutionProvider"])
    def get_providers(self):
        return ["CPUExecutionProvider"] if fault == "unloaded" else ["{PROVIDER}", "CPUExecutionProvider"]
    def run(self, names, feed):
        y = super().run(names, feed)
        return [y[0] - 4 * np.sign(y[0])] if fault == "outside" else y
    def end_profiling(self):
        path = super().end_profiling()
        if fault != "fallback":
            Path(path).write_text(Path(path).read_text().replace("CPUExecutionProvider", "{PROVIDER}"))
        return path

ort.InferenceSession = Session
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that obeys TensorRT's rules."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(write_onnx(symmetric(classifier(0)), bias="float32"))
    return path


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """This machine behind ssh as `user@127.0.0.1`, and a target `jetson` that is like it; the behaviour's env can be changed."""
    for name in ("jetson", "jetson-xavier-nx", "mcu"):
        shutil.copytree(data_path("targets", name), tmp_path / "targets" / name)
    path = tmp_path / "targets" / "jetson" / "target.toml"
    path.write_text(path.read_text().replace('"aarch64"', f'"{platform.machine()}"'))
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1\n")
    monkeypatch.setattr("cactus_edge.device.targets.data_path", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr("cactus_edge.device.jetson_work.RELEASE_FILE", str(tmp_path / "nv_tegra_release"))
    monkeypatch.setattr("cactus_edge.device.jetson_run.MEASURE_S", (0.01, 0.05))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "sitecustomize.py").write_text(STAND_IN)
    behaviour = Behaviour(env={"PYTHONPATH": str(tmp_path / "there"), "FAULT": ""})
    with Server(tmp_path / "server", behaviour) as found:
        found.install(f"exec {shlex.quote(sys.executable)}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        monkeypatch.setenv("HOME", str(found.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.setenv("AT", f"pi@127.0.0.1:{found.port}")
        yield behaviour


def bench(model: Path, out: Path, *more: str) -> list[str]:
    import os

    words = ["bench", str(model), "--target", "jetson", "--host", os.environ["AT"], "--inputs", "9"]
    return [*words, "--out", str(out), *more]


def test_the_provider_runs_where_trtexec_is_not(
    serve: Behaviour, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(bench(model, tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "9 of 9 inputs in their envelopes" in shown and f"with {PROVIDER}" in shown
    assert "not told: ONNX Runtime does not report the types" in shown
    assert "ms median" in shown and "JetPack 6.2 (L4T 36.4.3)" in shown and "tegrastats said nothing" in shown
    assert "verdicts hold" in shown and "on the condition that" in shown
    report = json.loads((tmp_path / "out" / "device.json").read_text())
    assert report["envelope"]["outside"] == 0 and report["runs"] >= 1 and report["compute_ms"] == {}
    assert "127.0.0.1" not in json.dumps(report)
    folders = {Path(w).parent for c in serve.commands for w in c.split() if w.startswith("/tmp/cactus-edge-")}
    assert folders and not [f for f in folders if f.exists()]


def test_an_output_outside_its_envelope_is_a_negative_verdict(
    serve: Behaviour, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.env = {**serve.env, "FAULT": "outside"}
    assert main(bench(model, tmp_path / "out", "--runtime", "onnxruntime")) == 1
    shown = capsys.readouterr().out
    assert "lie outside their envelopes" in shown and "breaks the certificate's condition" in shown


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fallback", f"{PROVIDER} did not run all of it"),
        ("unloaded", f"{PROVIDER} did not load"),
        ("absent", f"has no {PROVIDER}"),
    ],
)
def test_no_other_provider_takes_over_in_silence(
    fault: str, message: str, serve: Behaviour, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.env = {"FAULT": fault} if fault == "absent" else {**serve.env, "FAULT": fault}
    refused(bench(model, tmp_path / "out"), capsys, message, "sudo apt-get install nvidia-jetpack")


def test_trtexec_can_be_insisted_on(
    serve: Behaviour, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(bench(model, tmp_path / "out", "--runtime", "trtexec"), capsys, "no trtexec on the device")


def test_a_profile_names_who_ran_each_node() -> None:
    def event(provider: str) -> dict[str, object]:
        return {"cat": "Node", "name": "n_kernel_time", "args": {"op_name": "Conv", "provider": provider}}

    session = {"cat": "Session", "name": "model_run", "args": {}}
    require_provider([session, event(PROVIDER)])
    for events in ([session], [event(PROVIDER), event("CUDAExecutionProvider")]):
        with pytest.raises(Failure, match="did not run all of it"):
            require_provider(events)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "jetson"], "no address was given"),
        (["--target", "jetson", "--host", "user@host", "--port", "auto"], "not by a serial port"),
        (["--target", "jetson-xavier-nx", "--host", "user@host"], "TensorRT 8.5 takes no quantised file"),
        (["--target", "mcu", "--runtime", "trtexec"], "a choice for a Jetson"),
    ],
    ids=["no host", "port", "old TensorRT", "runtime elsewhere"],
)
def test_what_does_not_go_together(
    words: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["bench", str(model), *words, "--out", str(tmp_path / "out")], capsys, message)


def test_files_that_tensorrt_does_not_take(
    serve: Behaviour, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cactus_edge.formats.tflite import write_tflite

    graph = symmetric(classifier(0))
    flat, odd = tmp_path / "m.tflite", tmp_path / "m.onnx"
    flat.write_bytes(write_tflite(graph))
    odd.write_bytes(write_onnx(graph))
    refused(bench(flat, tmp_path / "out"), capsys, "TensorRT runs .onnx files")
    refused(bench(odd, tmp_path / "out"), capsys, "breaks TensorRT's rules")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2), np.float32))
    good = tmp_path / "good.onnx"
    good.write_bytes(write_onnx(graph, bias="float32"))
    refused(bench(good, tmp_path / "out", "--data", str(tmp_path / "x.npz")), capsys, "pass this model's data")
