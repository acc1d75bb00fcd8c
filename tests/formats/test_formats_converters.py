"""Files of TensorFlow's converter and of the ai-edge-quantizer: read, and equal to the real runtimes bit for bit."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cactus_edge.api_files import convert
from cactus_edge.errors import MismatchError, ModelError, UnsupportedError
from cactus_edge.formats import agree as agree_module
from cactus_edge.formats.agree import agree
from cactus_edge.formats.c.certified import TFLITE
from cactus_edge.formats.read import read_model
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.binary import Extreme
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.ops import Padding2d
from cactus_edge.verify import tflite_dilated, tflite_moves, tflite_ops
from cactus_edge.verify.certificate import certify_file, encode
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.runtimes import runtimes

RUNTIMES = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")
STORED = "does not look for"
NO_REGISTRATION = "does not accept the model"

READ: dict[str, dict[str, str]] = {
    "autoencoder": {},
    "autoencoder-float-ends": {"litert-builtin": "Dequantize"},
    "autoencoder-int16": {},
    "autoencoder-quantizer": {},
    "regression": {},
    "regression-uint8-ends": {},
    "resnet": {},
    "resnet-uint8-ends": {},
    "resnet-quantizer": {},
    "separable": {},
    "separable-quantizer": {},
    "logits": {},
    "logits-int16": {},
    "inverted": {"litert-builtin": "Add of shapes"},
    "inverted-float-ends": {"litert-builtin": "Add of shapes"},
    "stream": {"tflm": STORED},
    "stream-fixed": {},
    "dilated": {"tflm": STORED},
    "dilated-fixed": {},
    "rows": {"tflm": STORED},
    "rows-fixed": {},
    "rows-quantizer": {"tflm": STORED},
    "extremes": {},
    "moved": {},
    "depth": {"litert-ref": NO_REGISTRATION},
    "unet": {"litert-xnnpack": "computes the shape of its output"},
    "unet-fixed": {},
    "unet-quantizer": {"litert-xnnpack": "computes the shape of its output"},
    "upsampled": {"tflm": STORED, "litert-ref": NO_REGISTRATION},
    "upsampled-fixed": {"tflm": NO_REGISTRATION, "litert-ref": NO_REGISTRATION},
}
"""File -> the runtimes that do not run it, and what the refusal says; all others agree bit for bit."""

REFUSED = {
    "island": "CUMSUM computes on FLOAT32: a float island",
    "extremes-quantizer": "MINIMUM computes on FLOAT32: a float island",
    "separable-float": "operator 0 CONV_2D computes on FLOAT32",
    "separable-hybrid": "operator 0 CONV_2D computes on FLOAT32",
    "separable-float16": "operator 0 DEQUANTIZE computes on FLOAT16, the weights of a model that is not quantised",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of `converter_models`, written once for all workers."""
    for package in ("tensorflow", "ai_edge_quantizer"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    base = tmp_path_factory.getbasetemp()
    found = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "converter-models"
    found.mkdir(exist_ok=True)
    with (found / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (found / "done").exists():
            script = Path(__file__).with_name("converter_models.py")
            made = subprocess.run([sys.executable, script, found], capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stderr[-2000:]
            (found / "done").touch()
    return found


def inputs(data: bytes, count: int = 6) -> Any:
    x = read_tflite(data).graph.input
    rng = np.random.default_rng(0)
    if x.dtype == "float32":
        return rng.normal(size=(count, *x.shape)).astype(np.float32)
    return rng.integers(-128, 128, (count, *x.shape)).astype(np.int8)


def test_every_file_is_accounted_for(folder: Path) -> None:
    assert {path.stem for path in folder.glob("*.tflite")} == READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_equal_to_the_real_runtimes(folder: Path, name: str) -> None:
    data = (folder / f"{name}.tflite").read_bytes()
    for runtime in RUNTIMES:
        if runtime in READ[name]:
            with pytest.raises(ModelError, match=READ[name][runtime]):
                agree(data, inputs(data), runtime)
        else:
            agree(data, inputs(data), runtime).require()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(folder: Path, name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read_tflite((folder / f"{name}.tflite").read_bytes())
    assert REFUSED[name] in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", READ)
def test_written_again_it_computes_the_same(folder: Path, name: str) -> None:
    """What a file is read as is written with tensors of its own, which every runtime finds as they are stored."""
    data = (folder / f"{name}.tflite").read_bytes()
    again = write_tflite(read_tflite(data).graph)
    x = inputs(data, 3)
    rules = profile("litert-xnnpack")
    assert np.array_equal(evaluate(read_tflite(again).graph, x, rules), evaluate(read_tflite(data).graph, x, rules))
    for runtime in RUNTIMES:
        if not READ[name].get(runtime, "").startswith(("Dequantize", "Add")):
            agree(again, x, runtime).require()


def test_a_shape_that_is_computed_is_not_certified_where_it_is_not(folder: Path) -> None:
    """TFLM would run the first of four images, and fill the rest with what lies in memory."""
    data = (folder / "dilated.tflite").read_bytes()
    with pytest.raises(UnsupportedError, match=STORED):
        runtimes(data, "tflm", TFLITE)
    found = runtimes(data, "all", TFLITE)
    assert STORED in found.excluded["tflm"]
    assert found.under("litert-xnnpack") is not None


def test_converted_to_onnx(folder: Path, tmp_path: Path) -> None:
    """What the converter says of itself stays behind; the graph does not."""
    path = folder / "dilated-fixed.tflite"
    assert "CONVERSION_METADATA" in read_tflite(path.read_bytes()).metadata
    made = convert(path, to="onnx", out=tmp_path)
    written = read_model((tmp_path / "dilated-fixed.onnx").read_bytes())
    assert made.files and "CONVERSION_METADATA" not in written.metadata


@pytest.mark.parametrize("name", ["inverted", "unet-fixed", "rows-fixed", "moved", "logits-int16"])
@pytest.mark.parametrize("asked", ["tflm", "all"])
def test_certified_and_checked_again(folder: Path, name: str, asked: str) -> None:
    """Also what the C runtime has no kernel for: such a certificate names no blob."""
    data = (folder / f"{name}.tflite").read_bytes()
    x = inputs(data, 3)
    labels = evaluate(read_tflite(data).graph, x, profile("tflm")).reshape(3, -1).argmax(1)
    if name == "unet-fixed":
        with pytest.raises(
            UnsupportedError, match="not one row of classes" if asked == "tflm" else "different weights"
        ):
            certify_file(data, x, labels, eps="1", domain=None, profile=asked, unit="lsb", form=TFLITE)
        return
    made = certify_file(data, x, labels, eps="1", domain=None, profile=asked, unit="lsb", form=TFLITE)
    assert b"blob_sha256" not in encode(made.record)
    assert recheck(encode(made.record), data, x, labels, formats=(TFLITE,)).accepted


def shifted(leave: Any) -> Any:
    def planted(o: Any, phases: Any) -> Any:
        b = phases.border
        moved = Padding2d(b.top + 1, b.bottom - 1, b.left, b.right)
        return leave(o, replace(phases, border=moved))

    return planted


def rotated(take: Any) -> Any:
    return lambda o, x, axis, wanted: take(o, x, axis, np.roll(wanted, 1).tolist())


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "dilation": ("dilated", lambda m: m.setattr(tflite_ops.dilated, "leave", shifted(tflite_dilated.leave))),
    "moves": ("moved", lambda m: m.setattr(tflite_moves, "_take", rotated(tflite_moves._take))),
    "maximum": ("extremes", lambda m: m.setattr(Extreme, "apply", lambda rule, a, b: np.minimum(a, b))),
    "uint8": (
        "resnet-uint8-ends",
        lambda m: m.setattr(agree_module._Int8Ends, "_lowered", staticmethod(lambda c: c.view(np.int8))),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    name, plant = FAULTS[fault]
    data = (folder / f"{name}.tflite").read_bytes()
    plant(monkeypatch)
    with pytest.raises(MismatchError):
        agree(data, inputs(data), "litert-xnnpack").require()
