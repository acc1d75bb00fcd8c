"""The benches start, refuse arguments that mean nothing in one line before any work, and keep each other's rows."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
BENCHES = sorted(path.stem for path in BENCH.glob("[!_]*.py"))

Ended = Callable[..., tuple[int, str]]


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """bench/_common.py, with a folder of results of its own."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # a bench sets it where nobody did
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("_common")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "provenance", lambda digests=None: {})
    return module


@pytest.fixture
def ended(common: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ended:
    """A bench as its command line runs it, from an empty folder -> (exit code, what it said)."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(SystemExit) as found:
            runpy.run_path(str(BENCH / f"{name}.py"), run_name="__main__")
        shown = capsys.readouterr()
        assert isinstance(found.value.code, int)
        return found.value.code, shown.out + shown.err

    return call


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_starts(name: str, ended: Ended) -> None:
    assert ended(name, "--help")[0] == 0


@pytest.mark.parametrize(
    "command",
    [
        "agreement --graphs 0",
        "agreement --inputs 0",
        "agreement --onnx-inputs 0",
        "agreement --graphs 0 --inputs 0 --build nodir",
        "agreement --build nodir",
        "checking --samples 0",
        "completeness --processes 0",
        "completeness --samples 0",
        "completeness --eps -1",
        "device_agree --graphs 0 --inputs 0",
        "device_agree --build nodir",
        "digits --threads -1",
        "engine_speed --runs 0",
        "engine_speed --build nodir",
        "fuzz --tflite -1",
        "fuzz --reproduce x y",
        "fuzz --reproduce x 1",
        "fuzz --reproduce tflite y",
        "fuzz --reproduce tflite -1",
        "gap --processes 0",
        "live_inputs --build nodir",
        "live_inputs --inputs 0",
        "live_inputs --radius -1",
        "pi_emulator --graphs 0",
        "pi_emulator --build nodir",
        "proof_mutants --cases 0",
        "proof_mutants --mutants 0",
        "proof_mutants --reproduce -1",
        "qnn_robustness --published nodir",
        "run_speed --rounds 0",
        "soundness --processes 0",
        "soundness --graphs -1",
        "soundness --reproduce -1",
        "startup --runs 0",
        "train_speed --runs 0",
        "train_speed --batch 0",
        "train_speed --threads 0",
        "train_speed --threads 1 -1",
    ],
)
def test_arguments_that_are_refused(command: str, ended: Ended, tmp_path: Path) -> None:
    name, option, *_ = words = command.split()
    code, said = ended(*words)
    assert code == 2 and f"\n{name}.py: error: argument {option}: " in said
    assert not list(tmp_path.iterdir())


def test_a_mistaken_name_is_told_what_there_is(ended: Ended) -> None:
    assert "choose from tflite, onnx, runtimes" in ended("fuzz", "--reproduce", "x", "1")[1]
    assert "y: expected the number of a mutant" in ended("fuzz", "--reproduce", "tflite", "y")[1]
    assert "there is no folder 'nodir'" in ended("live_inputs", "--build", "nodir")[1]


def test_live_inputs_of_no_build_are_no_verdict(ended: Ended, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    code, said = ended("live_inputs", "--build", "build")
    assert code == 2 and "error: no build in build runs as portable C" in said and "yes" not in said
    assert not (tmp_path / "results").exists()


# Rows of a results file


def stored(common: Any, name: str) -> dict[str, Any]:
    """The rows of a results file: key -> values."""
    rows = json.loads((common.RESULTS / f"{name}.json").read_text())["rows"]
    return {key: row["values"] for key, row in rows.items()}


def measured(results: Any, key: str, value: int) -> int:
    """The row of that key, of the same inputs every time, which is `value` if it is measured now."""
    found: int = results.row(key, "inputs", lambda: {"value": value})["value"]
    return found


def test_a_row_is_measured_once_and_again_by_a_fresh_process(common: Any) -> None:
    assert measured(common.Results("bench"), "a", 1) == 1
    assert measured(common.Results("bench"), "a", 2) == 1
    fresh = common.Results("bench", fresh=True)
    assert [measured(fresh, "a", value) for value in (3, 4)] == [3, 3]
    assert stored(common, "bench") == {"a": {"value": 3}}


def test_a_fresh_row_leaves_the_others(common: Any) -> None:
    before = common.Results("bench")
    for key in ("a", "b"):
        measured(before, key, 1)
    measured(common.Results("bench", fresh=True), "a", 2)
    assert stored(common, "bench") == {"a": {"value": 2}, "b": {"value": 1}}


def test_two_fresh_processes_keep_each_others_rows(common: Any) -> None:
    first, second = (common.Results("bench", fresh=True) for _ in range(2))
    for key, results in {"a": first, "b": second, "c": first}.items():
        measured(results, key, 1)
    assert list(stored(common, "bench")) == ["a", "b", "c"]
    assert measured(second, "a", 2) == 2  # another process's row is none that this one measured
