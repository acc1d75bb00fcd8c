"""Worker processes decide what a serial run decides; workers that die and Ctrl-C change nothing, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from certificate_kit import MODEL, X, Y
from spread_kit import (
    LABELS,
    MANY,
    PROGRAM,
    REGION,
    WORK,
    ask_for_two_arithmetics,
    equal,
    files,
    proof,
    serial,
    without_time,
)

import cactus_edge as ce
from cactus_edge.certify import processes
from cactus_edge.certify.cluster import Cluster
from cactus_edge.certify.crew import crew, decider
from cactus_edge.certify.processes import Processes
from cactus_edge.certify.spread import Alone, Question, Slice, cut
from cactus_edge.cli import main
from cactus_edge.errors import DataError, InputError

pytestmark = pytest.mark.usefixtures("short_slices")


def test_processes_are_a_serial_run() -> None:
    assert equal(decider(1, Processes(2))(PROGRAM, REGION, MANY, LABELS), serial())
    assert proof(Processes(2)) == proof(Alone())


def test_a_worker_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, died = processes._ask, []

    def dying(worker: subprocess.Popen[bytes], part: Slice) -> Any:
        if part.start in (37, 111) and died.count(part.start) < 2:
            died.append(part.start)
            worker.kill()
        return ask(worker, part)

    monkeypatch.setattr(processes, "_ask", dying)
    assert equal(decider(1, Processes(2))(PROGRAM, REGION, MANY, LABELS), serial())
    assert sorted(died) == [37, 37, 111, 111]


def test_a_slice_that_kills_every_worker_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "COMMAND", "import sys; sys.stdin.buffer.read(10)")
    with pytest.raises(InputError, match=r"3 workers ended over samples \d+ to \d+") as error:
        decider(1, Processes(2), tmp_path)(PROGRAM, REGION, MANY, LABELS)
    assert "--workers" in error.value.hint


def test_a_users_mistake_comes_back_as_one() -> None:
    ask_for_two_arithmetics(Processes(1))
    outside = MANY.copy()
    outside[123, 4] = 2
    with pytest.raises(DataError, match=r"sample 123 holds 2\.0"):
        decider(1, Processes(1))(PROGRAM, REGION, outside, LABELS)


def test_workers_stay_for_the_next_question_and_no_longer() -> None:
    by = Processes(2)
    assert proof(by) == proof(Alone())
    first = children()
    assert 1 <= len(first) <= 2, "one may have done all the work before the other was there"
    assert equal(decider(1, by)(PROGRAM, REGION, MANY, LABELS), serial())
    assert set(first) <= set(children())
    os.kill(first[0], signal.SIGKILL)
    assert equal(decider(1, by)(PROGRAM, REGION, MANY, LABELS), serial())
    assert first[0] not in children()
    del by
    assert children() == []


def test_no_worker_outlives_work_that_is_given_up() -> None:
    answers = Processes(2).answers(Question(PROGRAM, REGION, WORK), cut(MANY, LABELS, 1))
    next(answers)
    assert children()
    answers.close()  # type: ignore[attr-defined]
    del answers
    assert children() == []


def children() -> list[int]:
    own = os.getpid()
    lists = list(Path(f"/proc/{own}/task").glob("*/children"))
    if not lists:
        pytest.skip("no list of child processes here")
    found = [int(p) for one in lists for p in one.read_text().split()]
    return sorted(p for p in found if b"serve()" in Path(f"/proc/{p}/cmdline").read_bytes())


@pytest.mark.parametrize("workers", [-1, 100_000])
def test_a_number_of_workers_that_is_none(workers: int) -> None:
    with pytest.raises(InputError, match="workers"):
        crew(workers)


def test_workers_or_a_cluster() -> None:
    with pytest.raises(InputError, match="exclude"):
        crew(2, "dask://localhost:8786")
    assert isinstance(crew(), Alone) and crew(0, "dask://h:1") == Cluster("dask://h:1")
    three = crew(3)
    assert isinstance(three, Processes) and three.workers == 3


def test_ctrl_c_and_the_same_command_again(tmp_path: Path) -> None:
    """In a real process, by a real signal: code 130, no process left, slices kept; then the rest alone is decided."""
    command = files(tmp_path, 100)  # enough to be in the midst of on a busy machine
    out, parts = tmp_path / "c.json", tmp_path / "c.json.parts"
    running = subprocess.Popen(
        [sys.executable, "-m", "cactus_edge", *command, f"--out={out}", "--workers=2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 60
    while not list(parts.glob("*/*.npz")):
        assert running.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, message = running.communicate(timeout=60)
    assert running.returncode == 130 and "run the same command again" in message and "Traceback" not in message
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*/*.npz")}
    assert kept and not out.exists()
    marked = next(iter(kept))
    assert main([*command, f"--out={out}", "--workers=2"]) == 0
    assert not parts.exists() and marked
    assert main([*command, f"--out={tmp_path / 'serial.json'}"]) == 0
    assert without_time(out) == without_time(tmp_path / "serial.json")
    assert out.with_suffix(".proof").read_bytes() == (tmp_path / "serial.proof").read_bytes()


def test_the_certificate_is_the_serial_one_for_a_mixture_too() -> None:
    options: dict[str, Any] = {"eps": "1/64", "domain": (0, 1), "profile": "litert-ref,tflm", "bounds": "linear"}
    alone, spreaded = (ce.certify(MODEL, X[:9], Y[:9], **options, workers=n) for n in (0, 2))
    rest = [{k: v for k, v in c.record.items() if k not in ("created", "sha256")} for c in (alone, spreaded)]
    assert rest[0] == rest[1] and alone.proof == spreaded.proof is not None
