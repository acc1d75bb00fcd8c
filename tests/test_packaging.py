"""The wheel holds what a user needs, the imports point one way, and the trusted base runs on numpy alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_carries_targets_and_export(wheel_names: list[str]) -> None:
    shipped = {
        p.relative_to(ROOT).as_posix() for top in ("targets", "export") for p in (ROOT / top).rglob("*") if p.is_file()
    }
    shipped = {p for p in shipped if "__pycache__" not in p}
    assert shipped
    assert shipped <= {n.removeprefix("cactus_edge/_data/") for n in wheel_names}


def test_wheel_carries_package_data_and_nothing_else(wheel_names: list[str]) -> None:
    assert "cactus_edge/recipes/digits.toml" in wheel_names
    assert "cactus_edge/py.typed" in wheel_names
    tops = {n.split("/")[0] for n in wheel_names}
    assert tops == {"cactus_edge", next(t for t in tops if t.endswith(".dist-info"))}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["cactus_edge", "cactus_edge.cli", "cactus_edge.api", "cactus_edge.verify.recheck"])
def test_import_is_light(module: str) -> None:
    """Importing it pulls in numpy and the standard library only."""
    code = f"""
import sys, {module}
heavy = {{"torch", "tensorflow", "sklearn", "scipy", "matplotlib", "jinja2", "rich", "serial", "unicorn", "flatbuffers",
          "ai_edge_litert", "tflite_micro", "onnx", "onnxruntime", "pandas"}} & set(sys.modules)
sys.exit(" ".join(sorted(heavy)) or None)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_python_code_that_ships_names_no_machine() -> None:
    """No absolute path of a machine in what is committed."""
    marks = ["/" + "work/", "/" + "root/", "/" + "home/"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".toml", ".c", ".h", ".md", ".json", ".ld", ".j2", ""}:
            text = path.read_text(errors="ignore")
            assert not any(mark in text for mark in marks), name
