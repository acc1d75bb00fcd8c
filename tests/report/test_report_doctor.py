"""The doctor judges what is there without importing it, and every finding carries its cure."""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
from pathlib import Path

import pytest

from cactus_edge.report import doctor

NAMES = [
    *("python", "cactus-edge", "numpy", "torch", "scikit-learn", "tflite-micro", "ai-edge-litert"),
    *("onnx", "onnxruntime", "ortools", "scipy", "pillow", "flatbuffers"),
    *("matplotlib", "jinja2", "rich", "platformdirs", "pyserial", "ziglang", "asyncssh", "unicorn"),
    *("qemu-system-arm", "arm-none-eabi-gcc", "CACTUS_EDGE_DATA", "cache folder"),
]


def by_name(name: str) -> doctor.Check:
    return {check.name: check for check in doctor.examine()}[name]


def test_everything_is_looked_at_and_every_fault_has_a_fix() -> None:
    checks = doctor.examine()
    assert [check.name for check in checks] == NAMES
    assert all(check.found and check.needed_for for check in checks)
    assert all(bool(check.fix) != check.ok for check in checks)


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from cactus_edge.report.doctor import examine; examine();"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'jinja2', 'serial', 'unicorn', 'ai_edge_litert'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def gone(name: str) -> str:
        if name == "tflite-micro":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", gone)
    check = by_name("tflite-micro")
    assert not check.ok and not check.optional and check.found == "not installed"
    assert " -m pip install" in check.fix and "[build]" in check.fix
    text = doctor.text(doctor.examine(), width=100)
    (line,) = [line for line in text.splitlines() if " tflite-micro " in line]
    assert line.startswith("MISSING ") and check.fix in text and "Ready:" not in text


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.0" if name == "pyserial" else version(name))
    check = by_name("pyserial")
    assert not check.ok and check.found == "2.0, needs >=3.5" and "[device]" in check.fix


def test_a_package_whose_files_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "serial" else find(name))
    assert "its files are gone" in by_name("pyserial").found


def test_run_from_a_folder_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = metadata.distribution

    def gone(name: str) -> metadata.Distribution:
        if name == "cactus-edge":
            raise metadata.PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(metadata, "distribution", gone)
    checks = {check.name: check for check in doctor.examine()}
    assert not checks["cactus-edge"].ok and "pip install 'cactus-edge[build]'" in checks["cactus-edge"].fix
    assert checks["numpy"].ok and "requirement unknown" in checks["numpy"].found


def test_the_torch_build_is_named() -> None:
    assert by_name("torch").found.endswith(" build")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("cuda: Optional[str] = None\n", "CPU build"),
        ("cuda: Optional[str] = '12.8'\n", "CUDA 12.8 build"),
        ("cuda = None\nhip = '6.4'\n", "ROCm 6.4 build"),
        ("cuda = (\n", "build unknown"),
    ],
)
def test_torch_version_files(content: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "version.py").write_text(content)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._torch_build() == expected


@pytest.mark.parametrize(
    ("version", "specifier", "verdict"),
    [
        ("2.13.0+cpu", ">=2.9", True),
        ("2.9", ">=2.9.0", True),
        ("2.9.0rc1", ">=2.9", False),
        ("2.9.post1", ">=2.9", True),
        ("0.dev20261023182759", ">=0.dev20250101", True),
        ("0.dev20240101", ">=0.dev20250101", False),
        ("2.1.4", "<3,>=2.1", True),
        ("3.0", "<3,>=2.1", False),
        ("1.10", ">=1.9", True),
        ("1.0", "==1.0.0", True),
        ("1.0", "!=1.0", False),
        ("1.0", "", True),
        ("unknown", ">=1", None),
        ("1.0", "~=1.0", None),
    ],
)
def test_versions_are_compared_as_numbers(version: str, specifier: str, verdict: bool | None) -> None:
    assert doctor.satisfies(version, specifier) is verdict


def _script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_tool_is_asked_for_its_version(tmp_path: Path) -> None:
    good = _script(tmp_path / "good", "echo 'tool 7.2'; echo more")
    bad = _script(tmp_path / "bad", "exit 3")
    assert doctor._tool("tool", "x", ("tool",), which=lambda _: good).found == "tool 7.2"
    assert "does not run" in doctor._tool("tool", "x", ("tool",), which=lambda _: bad).found
    absent = doctor._tool("tool", "x", ("tool",), which=lambda _: None)
    assert absent.optional and not absent.ok and absent.fix


def test_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    assert doctor._data_folder({"CACTUS_EDGE_DATA": str(tmp_path)}).found.endswith(": mnist")
    assert doctor._data_folder({}).optional
    wrong = doctor._data_folder({"CACTUS_EDGE_DATA": str(tmp_path / "none")})
    assert not wrong.ok and not wrong.optional and wrong.fix.startswith("mkdir -p ")


def test_a_file_in_the_way_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    check = doctor._cache_folder()
    assert not check.ok and "in the way" in check.found and check.fix.startswith("mv ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert doctor._cache_folder().ok and not (tmp_path / "new").exists()
