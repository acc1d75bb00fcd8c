"""Which steps of a build are done again: those that what changed is an input of, and no others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cactus_edge import bundle
from cactus_edge.pipeline import build_chain
from cactus_edge.progress import SILENT
from cactus_edge.steps import Advance, Result

EPOCH = {"val_clean": 0.9, "val_certified": 0.5}
STEPS = ("train", "compress", "lower", "agree", "certify", "judge", "run")


class Planned:
    """A chain whose steps do nothing but say that they were done."""

    model_name, twins, certificates, semantics = "model.tflite", (), ("certificate.json",), ("probabilistic.json",)

    def __init__(self, folder: Path) -> None:
        self.folder, self.options = folder, SimpleNamespace(trained=folder)
        self.identity: Result = {"recipe": "a", "data": "b"}
        self.board: Result = {"target": "mcu"}
        self.results: dict[str, Result] = {
            "train": {"network": "n", "epochs": [EPOCH], "weights_before": [2], "weights_after": [1]},
            "compress": {"sha256": "m", "inputs": "i", "bytes": 3},
            "lower": {"blob": "c", "files": []},
            "agree": {"runtimes": []},
            "certify": {"correct": 3, "attacked": 2, "certified": 1, "total": 4},
            "judge": {"rows": [["blur", "said"]], "share": 0.5},
            "run": {"measured": False},
        }
        self.done: list[str] = []
        for name in ("model.tflite", "test.npz", "certificate.json", "probabilistic.json"):
            (folder / name).write_text(name)

    def __getattr__(self, name: str) -> Any:
        if name not in STEPS:
            raise AttributeError(name)

        def step(_: Advance) -> Result:
            self.done.append(name)
            return self.results[name]

        return step

    def lowered(self, result: Result) -> str:
        """In words."""
        return str(result["blob"])

    def built(self) -> list[str]:
        """The steps that a build does now."""
        self.done.clear()
        build_chain(self, SILENT)  # type: ignore[arg-type]
        return list(self.done)

    def found(self, step: str, **results: Any) -> None:
        """The next time `step` is done, which is now due, it finds something else."""
        self.results[step] = {**self.results[step], **results}
        (self.folder / ".steps" / f"{step}.json").unlink()


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    monkeypatch.setattr(bundle, "write_bundle", lambda chain, found, steps: None)
    return Planned(tmp_path)


def test_every_step_is_done_once_and_in_order(planned: Planned) -> None:
    assert planned.built() == list(STEPS)
    assert planned.built() == []


@pytest.mark.parametrize(
    ("step", "results", "again"),
    [
        ("train", {"network": "other"}, ["train", "compress"]),
        ("compress", {"sha256": "other"}, ["compress", "lower"]),
        ("compress", {"inputs": "other"}, ["compress", "lower", "agree", "run"]),
        ("lower", {"blob": "other"}, ["lower", "agree", "certify", "judge", "run"]),
        ("agree", {"runtimes": [{"name": "tflm", "mismatches": 0, "inputs": 1}]}, ["agree"]),
        ("certify", {"certified": 2}, ["certify"]),
    ],
    ids=["network", "file", "inputs", "blob", "agreement", "verdict"],
)
def test_what_rests_on_another_result_is_done_again(
    planned: Planned, step: str, results: dict[str, Any], again: list[str]
) -> None:
    planned.built()
    planned.found(step, **results)
    assert planned.built() == again
    assert planned.built() == []


def test_another_recipe_is_trained_and_judged_again(planned: Planned) -> None:
    """Though it may end in the same file: another radius, say."""
    planned.built()
    planned.identity = {**planned.identity, "recipe": "other"}
    assert planned.built() == ["train", "compress", "lower", "certify", "judge"]


def test_another_board_runs_it_again(planned: Planned) -> None:
    planned.built()
    planned.board = {"target": "mcu", "emulator": "qemu"}
    assert planned.built() == ["lower", "run"]
