"""What the tests of the verbs share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tflite_edit import every_op_file

from cactus_edge.cli import main
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor

Shown = pytest.CaptureFixture[str]


def write_model(folder: Path) -> Path:
    """A file in which every op occurs, float32 at both ends."""
    path = folder / "every.tflite"
    path.write_bytes(every_op_file())
    return path


def write_data(folder: Path) -> Path:
    """Twelve samples for it, with labels."""
    rng = np.random.default_rng(3)
    path = folder / "x.npz"
    np.savez(path, x=rng.uniform(-6, 6, (12, 6, 7, 2)).astype(np.float32), y=rng.integers(0, 5, 12))
    return path


def wide_softmax() -> bytes:
    """A file whose last op TFLM's kernel cannot run."""
    b = GraphBuilder()
    source = b.input(Tensor("x", (512,), "int8", 0.0625, 0))
    return write_tflite(b.finish(b.node(ops.Softmax(), [source], Tensor("y", (512,), "int8", 1 / 256, -128))))


def build_command(recipe: Path, folder: Path, *options: str) -> list[str]:
    """`build` of a recipe into a folder, as quick as it gets."""
    return ["build", f"--recipe={recipe}", f"--out={folder}", "--threads=1", "--device-inputs=5", *options]


def refused(command: list[str], shown: Shown, *words: str) -> None:
    """Exit code 2, one message with these words, no traceback."""
    assert main(command) == 2
    message = shown.readouterr().err
    assert message.startswith("cactus-edge ")
    assert "Traceback" not in message
    for word in words:
        assert word in message
