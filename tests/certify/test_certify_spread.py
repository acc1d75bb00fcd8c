"""Slices decided elsewhere join to the very decision of a serial run; lost workers, Ctrl-C and mixed-up answers change nothing."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificate_kit import GRAPH, MODEL, TFLM, X, Y

import cactus_edge as ce
from cactus_edge.certify import cluster as cluster_module
from cactus_edge.certify import crew as crew_module
from cactus_edge.certify import processes, spread
from cactus_edge.certify.cluster import Cluster
from cactus_edge.certify.crew import Intervals, Proofs, crew, decider, finder, joined
from cactus_edge.certify.find import find
from cactus_edge.certify.processes import Processes
from cactus_edge.certify.spread import Alone, Answer, Crew, Question, Slice, Store, answer, cut, in_order
from cactus_edge.cli import main
from cactus_edge.errors import CertificateError, DataError, InputError, InstallError, InternalError
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import decide
from cactus_edge.verify.check import decided
from cactus_edge.verify.decide import Decision
from cactus_edge.verify.families import tone
from cactus_edge.verify.regions import region
from cactus_edge.verify.runtimes import TFLITE, runtimes

PROGRAM = lower(GRAPH, TFLM)
REGION = region(PROGRAM, "1/64", (0, 1))
MANY, LABELS = np.tile(X, (4, 1)), np.tile(Y, 4)
WORK, DIGEST = Intervals(37), b"m" * 32


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """More slices than workers, of unequal length."""
    monkeypatch.setattr(crew_module, "INTERVAL_SLICE", 37)
    monkeypatch.setattr(crew_module, "PROOF_SLICE", 37)


@dataclass
class Here:
    """A crew in this thread, in a given order; `spoil` changes an answer on its way."""

    order: Callable[[Sequence[Slice]], Sequence[Slice]] = list
    spoil: Callable[[Answer], Answer] = lambda a: a
    stop_after: int = 10**9
    seen: list[int] = field(default_factory=list)

    def answers(self, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]:
        for part in self.order(slices):
            if len(self.seen) == self.stop_after:
                raise KeyboardInterrupt
            self.seen.append(part.start)
            yield self.spoil(answer(question, part))


def equal(a: Decision, b: Decision) -> bool:
    pairs = ((a.correct, b.correct), (a.certified, b.certified), (a.margin, b.margin))
    return all(p.dtype == q.dtype and np.array_equal(p, q) for p, q in pairs)


def serial() -> Decision:
    return decide.certify(PROGRAM, REGION, MANY, LABELS)


def proof(by: Crew, keep: Path | None = None, progress: Callable[[int], None] = lambda done: None) -> bytes:
    return finder(by, keep, progress, falsify=True)(PROGRAM, REGION, MANY, LABELS, DIGEST)


def ask_for_two_arithmetics(by: Crew) -> None:
    """What only the search in the worker refuses."""
    mixture = runtimes(MODEL, "litert-ref,tflm", TFLITE).program
    with pytest.raises(InputError, match="one for one arithmetic"):
        finder(by, falsify=True)(mixture, REGION, MANY, LABELS, DIGEST)


ORDERS: dict[str, Callable[[Sequence[Slice]], Sequence[Slice]]] = {
    "forwards": list,
    "backwards": lambda s: s[::-1],
    "turned": lambda s: [*s[1:], s[0]],
}


@pytest.mark.parametrize("order", ORDERS)
def test_joined_slices_are_a_serial_run(order: str) -> None:
    assert equal(decider(1, Here(ORDERS[order]))(PROGRAM, REGION, MANY, LABELS), serial())
    assert proof(Here(ORDERS[order])) == proof(Alone())


def test_processes_are_a_serial_run() -> None:
    assert equal(decider(1, Processes(2))(PROGRAM, REGION, MANY, LABELS), serial())
    assert proof(Processes(2)) == proof(Alone())


def test_joined_proofs_are_one_proof_of_all() -> None:
    """Without an attack the slices make no difference: the bytes are those of one search over all samples."""
    together = find(PROGRAM, REGION, MANY, LABELS, DIGEST)
    assert finder(Alone())(PROGRAM, REGION, MANY, LABELS, DIGEST) == together
    shown, against = decided(PROGRAM, REGION, MANY, LABELS, proof(Alone()), DIGEST)
    assert shown.certified.sum() == decided(PROGRAM, REGION, MANY, LABELS, together, DIGEST)[0].certified.sum() > 0
    assert against.any()


def test_proofs_in_another_order_are_no_proof() -> None:
    """Two samples with different boxes: the checker refuses a join of swapped slices, whoever joined them."""
    halves = [find(PROGRAM, REGION, X[part], Y[part], DIGEST) for part in (slice(0, 20), slice(20, 40))]
    assert decided(PROGRAM, REGION, X, Y, joined(PROGRAM, halves), DIGEST)[0].certified.any()
    for wrong in (halves[::-1], [halves[0], halves[0]], halves[:1]):
        with pytest.raises(CertificateError):
            decided(PROGRAM, REGION, X, Y, joined(PROGRAM, wrong), DIGEST)
    with pytest.raises(InternalError, match="one question"):
        joined(PROGRAM, [halves[0], find(PROGRAM, REGION, X, Y, b"n" * 32)])


def test_every_program_and_region_travels() -> None:
    """Programs of every profile, of mixtures, and regions of several boxes mean the same behind the way to a worker."""
    toned = region(PROGRAM, "1/200", (0, 1), tone(("-1/50", "1/50"), ("9/10", "11/10"), "1/2", 2))
    named = [runtimes(MODEL, name, TFLITE) for name in ("tflm", "all")]
    for program in [p for r in named for p in (r.program, *r.programs)]:
        for around in (REGION, toned):
            sent = pickle.loads(pickle.dumps(Question(program, around, WORK)))
            assert sent.digest == Question(program, around, WORK).digest
            there = decider(1, Here())(sent.program, sent.region, X[:5], Y[:5])
            assert equal(there, decide.certify(program, around, X[:5], Y[:5]))
    assert len({Question(p, REGION, WORK).digest for r in named for p in r.programs}) == len(named[1].programs)


def test_slices_depend_on_the_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(s.x) for s in cut(MANY, LABELS, 37)] == [37, 37, 37, 37, 12]
    assert np.array_equal(np.concatenate([s.x for s in cut(MANY, LABELS, 37)]), MANY)
    monkeypatch.setattr(spread, "SLICE_BYTES", 5 * X[:1].nbytes)
    assert {len(s.x) for s in cut(MANY, LABELS, 37)} == {5}
    monkeypatch.setattr(spread, "SLICE_BYTES", 1)
    assert {len(s.x) for s in cut(MANY, LABELS, 37)} == {1}


def answered() -> tuple[Question, list[Slice], list[Answer]]:
    question = Question(PROGRAM, REGION, WORK)
    slices = cut(MANY, LABELS, 40)
    return question, slices, [answer(question, part) for part in slices]


def test_a_mixed_up_join_is_refused() -> None:
    question, slices, answers = answered()
    assert len(in_order(question, slices, answers)) == 4
    # All four slices hold the same samples at other places: only the place tells them apart.
    for wrong in (
        [answers[1], answers[0], *answers[2:]],
        answers[:-1],
        [*answers, answers[-1]],
        [*answers[:-1], answers[0]],
        [replace(answers[0], key="0" * 64), *answers[1:]],
        [replace(answers[0], found={k: v[:-1] for k, v in answers[0].found.items()}), *answers[1:]],
    ):
        with pytest.raises(InternalError):
            in_order(question, slices, wrong)
    for other in (
        replace(question, work=Proofs(DIGEST, True, False, 40)),
        replace(question, region=region(PROGRAM, "1/65", (0, 1))),
        replace(question, program=runtimes(MODEL, "litert-ref", TFLITE).program),
    ):
        with pytest.raises(InternalError):
            in_order(other, slices, answers)


def test_the_refusal_is_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keys not compared, swapped slices join to another decision without a word."""

    def swapped(a: Answer) -> Answer:
        return replace(a, start={0: 37, 37: 0}.get(a.start, a.start))

    with pytest.raises(InternalError, match="does not belong"):
        decider(1, Here(spoil=swapped))(PROGRAM, REGION, MANY, LABELS)
    monkeypatch.setattr(spread, "_require", lambda *_: None)
    assert not equal(decider(1, Here(spoil=swapped))(PROGRAM, REGION, MANY, LABELS), serial())


def test_a_spoilt_answer_is_refused_when_it_comes(tmp_path: Path) -> None:
    by = Here(spoil=lambda a: replace(a, start=0) if a.start == 74 else a)
    with pytest.raises(InternalError, match="does not belong"):
        decider(1, by, tmp_path)(PROGRAM, REGION, MANY, LABELS)


def test_what_was_finished_is_not_done_again(tmp_path: Path) -> None:
    first = Here(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        decider(1, first, tmp_path)(PROGRAM, REGION, MANY, LABELS)
    told: list[int] = []
    second = Here()
    found = decider(1, second, tmp_path, told.append)(PROGRAM, REGION, MANY, LABELS)
    assert equal(found, serial())
    assert sorted(first.seen + second.seen) == [0, 37, 74, 111, 148] and len(second.seen) == 3
    assert told == [111, 148, 160]
    third = Here()
    assert equal(decider(1, third, tmp_path)(PROGRAM, REGION, MANY, LABELS), found)
    assert third.seen == []


def test_proofs_are_not_found_again_either(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        proof(Here(stop_after=2), tmp_path)
    by = Here()
    assert proof(by, tmp_path) == proof(Alone())
    assert by.seen == [74, 111, 148]
    by = Here()
    finder(by, tmp_path, falsify=False)(PROGRAM, REGION, MANY, LABELS, DIGEST)
    assert len(by.seen) == 5, "another search is another question"


@pytest.mark.parametrize("what", ["radius", "samples", "labels", "code"])
def test_another_question_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    decider(1, Here(), tmp_path)(PROGRAM, REGION, MANY, LABELS)
    around, x, labels = REGION, MANY, LABELS
    match what:
        case "radius":
            around = region(PROGRAM, "1/63", (0, 1))
        case "samples":
            x = np.nextafter(MANY, np.float32(0.5))
        case "labels":
            labels = (LABELS + 1) % 3
        case _:
            monkeypatch.setattr(spread, "code_digest", lambda: "another")
    by = Here()
    decider(1, by, tmp_path)(PROGRAM, around, x, labels)
    assert len(by.seen) == 5


def test_what_is_kept_may_be_damaged_or_moved(tmp_path: Path) -> None:
    decider(1, Here(), tmp_path)(PROGRAM, REGION, MANY, LABELS)
    (folder,) = tmp_path.iterdir()
    (folder / "0.npz").write_bytes((folder / "37.npz").read_bytes())
    (folder / "74.npz").write_bytes((folder / "74.npz").read_bytes()[:50])
    (folder / "111.npz").write_bytes(b"")
    by = Here()
    assert equal(decider(1, by, tmp_path)(PROGRAM, REGION, MANY, LABELS), serial())
    assert by.seen == [0, 74, 111]
    assert Store(None, Question(PROGRAM, REGION, WORK)).load(cut(MANY, LABELS, 37)[0]) is None


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


def files(folder: Path, copies: int) -> list[str]:
    (folder / "m.tflite").write_bytes(MODEL)
    np.savez(folder / "x.npz", x=np.tile(X, (copies, 1)), y=np.tile(Y, copies))
    return ["certify", f"{folder}/m.tflite", f"--data={folder}/x.npz", "--eps=1/64", "--domain=0,1", "--bounds=linear"]


def without_time(path: Path) -> list[str]:
    return [
        line for line in path.read_text().splitlines() if '"created"' not in line and not line.startswith(' "sha256"')
    ]


def test_ctrl_c_and_the_same_command_again(tmp_path: Path) -> None:
    """In a real process, by a real signal: code 130, no process left, slices kept; then the rest alone is decided."""
    command = files(tmp_path, 40)
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


dask = pytest.importorskip("distributed", reason="no distributed")


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """Two real worker processes and a scheduler."""
    with dask.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        yield cluster


def address(cluster: Any) -> str:
    return str(cluster.scheduler_address).replace("tcp://", "dask://")


def test_a_cluster_is_a_serial_run(local: Any) -> None:
    assert equal(decider(1, Cluster(address(local)))(PROGRAM, REGION, MANY, LABELS), serial())


def test_a_worker_of_the_cluster_dies(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "PROOF_SLICE", 4)
    victim = next(iter(local.workers.values())).pid

    def kill(done: int) -> None:
        if not killed:
            killed.append(done)
            os.kill(victim, signal.SIGKILL)

    killed: list[int] = []
    assert proof(Cluster(address(local)), progress=kill) == proof(Alone()) and killed


def test_the_users_mistake_comes_back_from_a_cluster(local: Any) -> None:
    ask_for_two_arithmetics(Cluster(address(local)))


def test_workers_with_another_code_are_refused(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "code_digest", lambda: "0.0.0 another")
    with pytest.raises(InstallError, match=r"of \d workers lack cactus-edge 0\.0\.0 another") as error:
        decider(1, Cluster(address(local)))(PROGRAM, REGION, MANY, LABELS)
    assert "same version" in error.value.hint


def test_through_the_command_line(local: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = files(tmp_path, 1)
    assert main([*command, f"--out={tmp_path / 'c.json'}", f"--cluster={address(local)}"]) == 0
    assert main([*command, f"--out={tmp_path / 's.json'}"]) == 0
    assert without_time(tmp_path / "c.json") == without_time(tmp_path / "s.json")
    capsys.readouterr()
    for wrong in ("localhost:8786", "dask://localhost", "tcp://localhost:8786", "dask://a b:1"):
        assert main([*command, f"--out={tmp_path / 'c.json'}", f"--cluster={wrong}"]) == 2
        assert "dask://HOST:PORT" in capsys.readouterr().err


def test_nobody_at_that_address() -> None:
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        decider(1, Cluster("dask://127.0.0.1:9", connect_s=0.5))(PROGRAM, REGION, MANY, LABELS)


def test_a_scheduler_that_is_gone_before_its_client_knows() -> None:
    class Deaf:
        status = "running"

        def nthreads(self) -> dict[str, int]:
            raise OSError("timed out trying to connect")

    with pytest.raises(InputError, match="is gone") as error:
        Cluster("dask://there:1")._still_there(Deaf(), 0.0)
    assert "run the same command again" in error.value.hint


def test_a_cluster_without_workers() -> None:
    with (
        dask.LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0", silence_logs=50
        ) as empty,
        pytest.raises(InputError, match="has no worker"),
    ):
        decider(1, Cluster(address(empty), connect_s=0.5))(PROGRAM, REGION, MANY, LABELS)


@pytest.mark.parametrize("what", ["workers", "scheduler"])
def test_a_cluster_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What came back is kept; the error says how to go on."""
    monkeypatch.setattr(crew_module, "PROOF_SLICE", 4)
    monkeypatch.setattr(cluster_module, "POLL_S", 0.2)
    with dask.LocalCluster(
        n_workers=1, processes=False, protocol="tcp://", dashboard_address=":0", silence_logs=50
    ) as leaving:

        def leave(done: int) -> None:
            if done == 4:
                leaving.scale(0) if what == "workers" else leaving.close()

        with pytest.raises(InputError, match="cluster at dask") as error:
            proof(Cluster(address(leaving), patience_s=0.5), tmp_path, leave)
    assert "run the same command again" in error.value.hint
    assert list(tmp_path.glob("*/*.npz"))
