"""A bundle built once by the command line itself, from a recipe small enough for a test; models and data for the verbs."""

from __future__ import annotations

from pathlib import Path

import pytest
from file_kit import build_command, write_data, write_model

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
    assert main(build_command(recipe, folder, "--quiet")) == 0
    return folder


@pytest.fixture(scope="session")
def kws(models_folder: Path) -> Path:
    """The DS-CNN for keyword spotting of MLPerf Tiny."""
    return models_folder / "mlperf-tiny" / "kws_ref_model.tflite"


@pytest.fixture(scope="session")
def kws_data(data_folder: Path) -> Path:
    """Its 1,000 real inputs."""
    return data_folder / "mlperf-tiny-kws" / "kws01_test.npz"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file in which every op occurs."""
    return write_model(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve samples for `model`."""
    return write_data(tmp_path)
