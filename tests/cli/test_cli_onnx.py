"""The verbs on .onnx files: read by content, run, compared, certified, verified with numpy alone, converted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from file_kit import Shown, refused, write_model
from onnx_kit import classifier, vnni

import cactus_edge as ce
from cactus_edge.cli import main
from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx import onnx_form, read_onnx, write_onnx
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate

X = np.random.default_rng(0).normal(0, 1, (40, 4, 4, 2)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Named against its content: only the bytes count."""
    path = tmp_path / "net.tflite"
    path.write_bytes(write_onnx(classifier()))
    return path


@pytest.fixture
def data(tmp_path: Path, model: Path) -> Path:
    y = evaluate(read_onnx(model.read_bytes()).graph, X, profile("ort-x86")).argmax(1)
    np.savez(tmp_path / "x.npz", x=X, y=y)
    return tmp_path / "x.npz"


def test_inspect_tells_the_format_by_the_bytes(model: Path, capsys: Shown) -> None:
    assert main(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "ort-x86" in shown and "tflm" not in shown.split("profile")[-1]
    assert {p.profile.reads for p in ce.inspect(model).profiles} == {"onnx"}


def test_run_takes_the_format_s_profile(model: Path, data: Path, capsys: Shown) -> None:
    assert main(["run", str(model), "--data", str(data)]) == 0
    assert "ort-x86" in capsys.readouterr().out
    want = evaluate(onnx_form(classifier()), X, profile("ort-x86"))
    assert np.array_equal(ce.run(model, X).values, want)


@vnni
def test_agree_runs_onnx_runtime(model: Path, data: Path, capsys: Shown) -> None:
    assert main(["agree", str(model), "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime" in shown and "equal" in shown
    assert ce.agree(model, X, runtime="onnxruntime").exact


@vnni
def test_a_difference_is_named_by_its_first_layer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from cactus_edge.ir.arithmetic import PROFILES

    row = PROFILES["ort-x86"]
    wrong = replace(row, rules={**row.rules, "Conv2d": ("D", "double")})
    monkeypatch.setitem(PROFILES, "ort-x86", wrong)  # type: ignore[index]
    (found,) = ce.agree(model, X, runtime="onnxruntime").runtimes
    assert not found.found.exact and found.found.first_layer is not None
    assert "Conv2d" in found.found.first_layer.label


def test_a_profile_of_another_format_is_refused(model: Path, data: Path, tmp_path: Path, capsys: Shown) -> None:
    asked = ["--data", str(data), "--eps", "1/64", "--out", str(tmp_path / "c.json")]
    refused(["run", str(model), "--data", str(data), "--profile", "tflm"], capsys, "reads .tflite", "convert")
    refused(["certify", str(model), *asked, "--profile", "tflm"], capsys, "reads .tflite files; this one is .onnx")
    refused(["run", str(write_model(tmp_path)), "--data", str(data), "--profile", "ort-x86"], capsys, "reads .onnx")


@vnni
def test_certify_and_verify_with_numpy_alone(model: Path, data: Path, tmp_path: Path) -> None:
    """The checker reads the bytes itself: neither onnx nor protobuf nor the runtime is importable."""
    certificate = tmp_path / "c.json"
    command = ["certify", str(model), "--data", str(data), "--eps", "1/2", "--unit", "lsb", "--out", str(certificate)]
    assert main(command) == 0
    code = f"""
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "cactus_edge"):
            raise ModuleNotFoundError(f"{{name}} is not numpy")
sys.meta_path.insert(0, Only())
from cactus_edge.cli import main
sys.exit(main(["verify", {str(certificate)!r}, "--model", {str(model)!r}, "--data", {str(data)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accepted" in done.stdout
    assert "not checked" in next(r for r in done.stdout.splitlines() if "what the runtime makes" in r)
    again = ce.verify(certificate, model, data)
    assert again.accepted and {c.name: c.state for c in again.checks}["what the runtime makes of the file"] == "ok"
    other = bytearray(model.read_bytes())
    other[other.index(b"cactus-edge")] ^= 1
    model.write_bytes(bytes(other))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "model.sha256" in done.stdout


@pytest.mark.parametrize("to", ["tflite", "onnx"])
def test_convert_keeps_the_integer_graph(model: Path, tmp_path: Path, to: str) -> None:
    converted = ce.convert(model, to=to, out=tmp_path / "out")
    (path,) = converted.files
    read = (read_tflite if to == "tflite" else read_onnx)(path.read_bytes()).graph
    assert path.suffix == f".{to}" and onnx_form(read).digest() == onnx_form(classifier()).digest()
    assert ("tflm" in converted.kept) == (to == "tflite") and ("ort-x86" in converted.kept) == (to == "onnx")


def test_convert_from_tflite_to_onnx_and_to_c(tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(write_tflite(classifier()))
    assert main(["convert", str(path), "--to", "onnx", "--out", str(tmp_path / "o")]) == 0
    # Without white space: where lines are broken depends on the length of the temporary path.
    shown = "".join(capsys.readouterr().out.split())
    assert "exactundertheprofilesort-" in shown and "ort-x86," in shown
    written = tmp_path / "o" / "m.onnx"
    assert main(["convert", str(written), "--to", "c", "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "model.h").is_file()


def test_convert_refuses_what_onnx_cannot_keep(tmp_path: Path, capsys: Shown) -> None:
    refused(["convert", str(write_model(tmp_path)), "--to", "onnx", "--out", str(tmp_path / "o")], capsys, "op ")
    assert not (tmp_path / "o").exists()


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not an ONNX file"):
        ce.inspect(b"PK\x03\x04" + bytes(100))
