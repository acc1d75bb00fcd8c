"""Steps are done once: a record is taken where inputs, files and the record itself are what they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cactus_edge.progress import SILENT
from cactus_edge.steps import Result, Steps, writes


class Work:
    """A step that counts how often it runs, and writes a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def __call__(self, _: Any) -> Result:
        self.runs += 1
        (self.folder / "made").write_text("x")
        return {"certified": 10, "of": 20}

    def result(self, **inputs: Any) -> Result:
        return Steps(self.folder, 1, SILENT).run("certify", inputs, writes("made"), self)


def test_a_step_is_done_once(tmp_path: Path) -> None:
    work = Work(tmp_path)
    assert [work.result(eps="1/8") for _ in range(3)] == [{"certified": 10, "of": 20}] * 3
    assert work.runs == 1
    work.result(eps="1/4")
    assert work.runs == 2


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def edit(record: Path) -> None:
        content = json.loads(record.read_text())
        change(content)
        record.write_text(json.dumps(content))

    return edit


SINS: dict[str, Callable[[Path], Any]] = {
    "a verdict": edited(lambda c: c["result"].update(certified=18)),
    "no result": edited(lambda c: c.update(result={})),
    "no digest": edited(lambda c: c.pop("sha256")),
    "a list": lambda record: record.write_text("[]"),
    "no text": lambda record: record.write_bytes(b"\xff\xfe"),
    "half": lambda record: record.write_text(record.read_text()[:40]),
    "another file": lambda record: (record.parents[1] / "made").write_text("y"),
    "no file": lambda record: (record.parents[1] / "made").unlink(),
}


@pytest.mark.parametrize("sin", SINS)
def test_what_was_changed_since_is_done_again(sin: str, tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.result(eps="1/8")
    SINS[sin](tmp_path / ".steps" / "certify.json")
    assert work.result(eps="1/8") == {"certified": 10, "of": 20}
    assert work.runs == 2


def test_files_that_only_the_result_names(tmp_path: Path) -> None:
    """A step that wrote one more file last time, or whose record lists another, is done again."""

    def work(_: Any) -> Result:
        for name in ("a", "b"):
            (tmp_path / name).write_text(name)
        return {"files": ["a", "b"]}

    def run() -> Steps:
        steps = Steps(tmp_path, 1, SILENT)
        steps.run("lower", {}, lambda result: result["files"], work)
        return steps

    assert [run().finished[0].cached for _ in range(2)] == [False, True]
    assert run().files == ("a", "b")
    (tmp_path / "b").write_text("c")
    again = run()
    assert not again.finished[0].cached and again.files == ("a", "b") and (tmp_path / "b").read_text() == "b"


def test_a_step_that_now_writes_more_is_done_again(tmp_path: Path) -> None:
    """Its record speaks of one file, and is what it was: the other one is not there."""
    steps = Steps(tmp_path, 3, SILENT)
    work = Work(tmp_path)
    for names in (["made"], ["made", "other"], ["made", "other"]):
        (tmp_path / "other").write_text("by an earlier version")
        steps.run("certify", {}, writes(*names), work)
    assert work.runs == 2 and [done.cached for done in steps.finished] == [False, False, True]
    assert steps.files == ("made", "other")


def test_one_steps_record_is_not_anothers(tmp_path: Path) -> None:
    work, steps = Work(tmp_path), Steps(tmp_path, 3, SILENT)
    steps.run("lower", {}, writes("made"), work)
    (tmp_path / ".steps" / "certify.json").write_bytes((tmp_path / ".steps" / "lower.json").read_bytes())
    steps.run("certify", {}, writes("made"), work)
    assert work.runs == 2


def test_the_files_are_those_of_every_step(tmp_path: Path) -> None:
    steps = Steps(tmp_path, 2, SILENT)
    (tmp_path / "first").write_text("x")
    steps.run("compress", {}, writes("first"), lambda _: {})
    steps.run("certify", {}, writes("made"), Work(tmp_path))
    steps.run("run", {}, writes(), lambda _: {})
    assert steps.files == ("first", "made")
