"""A bundle built once by the command line itself, from a recipe small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from cactus_edge.cli import main

TINY = """
name = "tiny"
[data]
set = "digits"
test_samples = 100
validation_samples = 100
[model]
[[model.layer]]
kind = "conv"
channels = 8
kept = 4
kernel = 3
stride = 2
[[model.layer]]
kind = "dense"
channels = 16
kept = 8
[train]
eps = "1/16"
epochs = 3
warmup_epochs = 1
ramp_epochs = 1
batch = 64
learning_rate = 0.004
members = ["full", "pruned", "quantised"]
[compress]
finetune_epochs = 1
[certify]
eps = "1/32"
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's file."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def bundle(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bundle, for tests that only read it."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny-mcu"
    command = [
        "build",
        "--recipe",
        str(recipe),
        "--out",
        str(folder),
        "--threads",
        "1",
        "--device-inputs",
        "5",
        "--quiet",
    ]
    assert main(command) == 0
    return folder
