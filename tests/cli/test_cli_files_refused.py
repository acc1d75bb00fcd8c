"""Certificates whose radius is given in steps of the model's input, and what the verbs for any file refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from file_kit import Shown, refused, wide_softmax
from tflite_edit import edited, operator

import cactus_edge as ce
from cactus_edge.cli import main
from cactus_edge.errors import InputError, InstallError, UnsupportedError
from cactus_edge.formats.agree import RUNTIMES
from cactus_edge.formats.tflite import read_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.samples import read_inputs
from cactus_edge.verify.regions import box, region

# certify --unit lsb


def certified(kws: Path, x: Any, y: Any, folder: Path, *options: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "x.npz", x=x, y=y)
    out = folder / "cert.json"
    assert main(["certify", str(kws), "--data", str(folder / "x.npz"), "--out", str(out), *options]) == 0
    assert main(["verify", str(out), "--model", str(kws), "--data", str(folder / "x.npz")]) == 0
    record: dict[str, Any] = json.loads(out.read_text())
    return record


def test_certify_in_steps_of_the_input(kws: Path, kws_data: Path, tmp_path: Path, capsys: Shown) -> None:
    """eps = 2 steps is 2 * S exactly; from codes, from the same values as floats, and from the equal eps in data units."""
    x, y = read_inputs(kws_data)
    assert y is not None
    x, y = x[:20], y[:20]
    source = read_tflite(kws.read_bytes()).graph.input
    eps = 2 * Fraction(source.scale)
    codes = certified(kws, x, y, tmp_path / "codes", "--eps", "2", "--unit", "lsb")
    assert "2 lsb" in capsys.readouterr().out
    assert codes["region"]["eps"] == str(eps)
    assert "2 lsb" in codes["notes"]["eps"]
    real = (np.float32(source.scale) * (x.astype(np.float32) - source.zero_point)).astype(np.float32)
    floats = certified(kws, real, y, tmp_path / "floats", "--eps", "2", "--unit", "lsb")
    assert floats["region"]["eps"] == str(eps)
    data_units = certified(kws, x, y, tmp_path / "units", "--eps", str(eps))
    assert codes["verdict"] == data_units["verdict"]
    assert "notes" in data_units and data_units["notes"] == {}


def test_steps_of_a_file_that_takes_floats(model: Path, data: Path) -> None:
    x, y = read_inputs(data)
    assert y is not None
    quantised = read_tflite(model.read_bytes()).graph.tensors[1]
    certificate = ce.certify(model, x, y, eps="1/2", unit="lsb")
    assert certificate.record["region"]["eps"] == str(Fraction(quantised.scale) / 2)


def test_steps_are_boxes_of_codes(kws: Path) -> None:
    program = lower(read_tflite(kws.read_bytes()).graph, profile("tflm"))
    codes = np.resize(np.arange(-128, 128), (2, 49, 10, 1)).astype(np.int8)
    for n in (0, 1, 2, 17, 255):
        lower_, upper = box(program, region(program, n * Fraction(program.quantize.scale)), codes)
        assert np.array_equal(lower_, np.maximum(codes.astype(int) - n, -128))
        assert np.array_equal(upper, np.minimum(codes.astype(int) + n, 127))


@pytest.mark.parametrize("eps", ["-1", "256", "nan", "two"])
def test_certify_refuses_bad_steps(model: Path, data: Path, tmp_path: Path, capsys: Shown, eps: str) -> None:
    command = ["certify", str(model), "--data", str(data), f"--eps={eps}", "--unit", "lsb"]
    refused([*command, "--out", str(tmp_path / "c.json")], capsys, "eps")


@pytest.mark.parametrize("flag", ["samples", "confidence", "seed"])
def test_draws_mean_nothing_without_semantic(model: Path, data: Path, tmp_path: Path, capsys: Shown, flag: str) -> None:
    command = ["certify", str(model), "--data", str(data), "--eps", "1/16", f"--{flag}", "1"]
    refused([*command, "--out", str(tmp_path / "c.json")], capsys, f"--{flag} is about random draws")


def test_certify_as_a_function_takes_the_unit(kws: Path, kws_data: Path) -> None:
    x, y = read_inputs(kws_data)
    assert y is not None
    scale = Fraction(read_tflite(kws.read_bytes()).graph.input.scale)
    per_feature = ce.certify(kws, x[:2], y[:2], eps=[1] * 490, unit="lsb")
    assert per_feature.record["region"]["eps"] == [str(scale)] * 490
    with pytest.raises(InputError, match="unknown unit 'step'"):
        ce.certify(kws, x[:2], y[:2], eps=1, unit="step")  # type: ignore[arg-type]


# What is refused


def missing(folder: Path, good: bytes) -> Path:
    return folder / "missing.tflite"


def folder_instead(folder: Path, good: bytes) -> Path:
    return folder


def truncated(folder: Path, good: bytes) -> Path:
    (folder / "bad.tflite").write_bytes(good[: len(good) // 2])
    return folder / "bad.tflite"


def empty(folder: Path, good: bytes) -> Path:
    (folder / "bad.tflite").write_bytes(b"")
    return folder / "bad.tflite"


def a_zip_archive(folder: Path, good: bytes) -> Path:
    (folder / "bad.tflite").write_bytes(b"PK\x03\x04" + bytes(200))
    return folder / "bad.tflite"


def an_unknown_operator(folder: Path, good: bytes) -> Path:
    def change(m: Any) -> None:
        code = m.operatorCodes[operator(m, "RELU6").opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ELU

    (folder / "bad.tflite").write_bytes(edited(good, change))
    return folder / "bad.tflite"


SINS: dict[Callable[[Path, bytes], Path], tuple[str, ...]] = {
    missing: ("cannot read the model", "missing.tflite"),
    folder_instead: ("cannot read the model",),
    truncated: ("malformed .tflite",),
    empty: ("not an ONNX file (nor .tflite, which has TFL3 at byte 4)",),
    a_zip_archive: ("not an ONNX file (nor .tflite",),
    an_unknown_operator: ("operator 9 ELU is not supported",),
}


@pytest.mark.parametrize("sin", SINS, ids=lambda sin: sin.__name__)
def test_every_verb_refuses_a_bad_file(
    sin: Callable[[Path, bytes], Path], model: Path, data: Path, tmp_path: Path, capsys: Shown
) -> None:
    bad = str(sin(tmp_path, model.read_bytes()))
    for command in (
        ["inspect", bad],
        ["run", bad, "--data", str(data)],
        ["agree", bad, "--data", str(data)],
        ["convert", bad, "--to", "c", "--out", str(tmp_path / "out")],
    ):
        refused(command, capsys, *SINS[sin])


def save(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def save_single(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def save_flipped(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).random(1000))
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(bytes(content))


GOOD_X = np.zeros((2, 6, 7, 2), np.float32)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: None, ("there is no file",)),
        (save_single, ("single array",)),
        (save_flipped, ("cannot be read as .npz",)),
        (lambda p: p.write_text("x"), ("cannot be read as .npz",)),
        (lambda p: p.mkdir(), ("cannot read", "directory")),
        (lambda p: save(p, images=GOOD_X), ("images", "expected x")),
        (lambda p: save(p, x=GOOD_X[:, :5]), ("(5, 7, 2)", "(6, 7, 2)")),
        (lambda p: save(p, x=GOOD_X[:0]), ("at least one sample",)),
        (lambda p: save(p, x=np.float32(1), y=np.int64(1)), ("at least one sample",)),
        (lambda p: save(p, x=GOOD_X.astype(np.uint8)), ("uint8",)),
        (lambda p: save(p, x=GOOD_X * np.float32(np.nan)), ("NaN",)),
    ],
    ids=["missing", "single", "flipped", "text", "folder", "no-x", "shape", "empty", "scalar", "dtype", "nan"],
)
def test_run_and_agree_refuse_bad_data(
    write: Callable[[Path], Any], words: tuple[str, ...], model: Path, tmp_path: Path, capsys: Shown
) -> None:
    path = tmp_path / "bad.npz"
    write(path)
    for verb in ("run", "agree"):
        refused([verb, str(model), "--data", str(path)], capsys, *words)


@pytest.mark.parametrize(
    ("y", "word"),
    [
        (np.zeros(3, np.int64), "2 samples"),
        (np.zeros(2), "float64"),
        (np.array([0, 5]), "0..4"),
        (np.array([-1, 0]), "0..4"),
    ],
)
def test_run_refuses_bad_labels(model: Path, tmp_path: Path, capsys: Shown, y: Any, word: str) -> None:
    np.savez(tmp_path / "x.npz", x=GOOD_X, y=y)
    refused(["run", str(model), "--data", str(tmp_path / "x.npz")], capsys, "labels", word)


def test_unknown_names_name_the_nearest(model: Path, data: Path, capsys: Shown) -> None:
    refused(["run", str(model), "--data", str(data), "--profile", "tflmm"], capsys, "tflmm", "did you mean 'tflm'")
    refused(["agree", str(model), "--data", str(data), "--runtime", "tflm,tfml"], capsys, "tfml", "did you mean 'tflm'")


def test_agree_on_no_inputs(model: Path, data: Path, capsys: Shown) -> None:
    refused(["agree", str(model), "--data", str(data), "--inputs", "0"], capsys, "expected at least 1")


def test_agree_names_a_missing_wheel(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setitem(RUNTIMES, "tflm", replace(RUNTIMES["tflm"], package="no-such-wheel"))
    refused(["agree", str(model), "--data", str(data)], capsys, "no-such-wheel", "pip install")
    with pytest.raises(InstallError):
        ce.agree(model, GOOD_X)
    assert any(r.version == "" for p in ce.inspect(model).profiles for r in p.runtimes)


def test_a_model_that_the_profile_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="op 0 Softmax"):
        ce.run(wide_softmax(), np.zeros((1, 512), np.int8))
