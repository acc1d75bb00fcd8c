"""A crew of processes on this machine, one thread of arithmetic each: for work that holds Python's lock.

Each worker is a fresh interpreter that reads slices from its standard input and writes answers to its standard output. They
are in sessions of their own: Ctrl-C reaches the parent alone, which ends them; and where the parent is gone, their input ends.
A worker that dies (the machine runs out of memory, somebody kills it) is replaced, and its slice is decided again.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cactus_edge.certify.spread import Answer, Question, Slice, answer
from cactus_edge.errors import CactusError, InputError

TRIES = 3
"""Workers that may die over one slice."""

COMMAND = "from cactus_edge.certify.processes import serve; serve()"

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Processes:
    """A crew of `workers` processes."""

    workers: int

    def answers(self, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]:
        """As `Crew`. Raises InputError where TRIES workers died over one slice."""
        shift = _Shift(pickle.dumps(question, protocol=5), slices)
        threads = [threading.Thread(target=shift.drive, daemon=True) for _ in range(min(self.workers, len(slices)))]
        for thread in threads:
            thread.start()
        try:
            for _ in slices:
                reply = shift.replies.get()
                if isinstance(reply, CactusError):
                    raise reply
                yield reply
        finally:
            shift.end()
            for thread in threads:
                thread.join()


class _Shift:
    """The work on one question: what is left, what came back, who is at it."""

    def __init__(self, question: bytes, slices: Sequence[Slice]) -> None:
        self.replies: SimpleQueue[Answer | CactusError] = SimpleQueue()
        self._question = question
        self._left = deque(slices)
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[bytes]] = set()
        self._over = False

    def drive(self) -> None:
        """Takes slices until none is left, with one worker at a time. Runs in a thread of its own."""
        worker: subprocess.Popen[bytes] | None = None
        while (part := self._next()) is not None:
            for _ in range(TRIES):
                worker = worker or self._start()
                reply = None if worker is None else _ask(worker, part)
                if reply is not None:
                    break
                self._bury(worker)
                worker = None
            last = part.start + len(part.x) - 1
            lost = InputError(
                f"{TRIES} workers ended over samples {part.start} to {last}",
                hint="fewer --workers: each needs memory of its own; what was finished is kept",
            )
            self.replies.put(reply or lost)
        self._bury(worker)

    def end(self) -> None:
        """Stops everybody at once: a dead worker's thread finds no next slice, and ends as well."""
        with self._lock:
            self._over = True
            for worker in self._live:
                worker.kill()

    def _next(self) -> Slice | None:
        with self._lock:
            return self._left.popleft() if self._left and not self._over else None

    def _start(self) -> subprocess.Popen[bytes] | None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": path}
        with self._lock:
            if self._over:
                return None
            worker = subprocess.Popen(
                [sys.executable, "-c", COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
            self._live.add(worker)
        _send(worker, self._question)
        return worker

    def _bury(self, worker: subprocess.Popen[bytes] | None) -> None:
        if worker is not None:
            with self._lock:
                self._live.discard(worker)
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
            worker.wait()


def _send(worker: subprocess.Popen[bytes], message: bytes) -> bool:
    assert worker.stdin is not None
    try:
        worker.stdin.write(message)
        worker.stdin.flush()
    except (BrokenPipeError, ValueError):
        return False
    return True


def _ask(worker: subprocess.Popen[bytes], part: Slice) -> Answer | CactusError | None:
    """The worker's reply; None where it died."""
    assert worker.stdout is not None
    if not _send(worker, pickle.dumps(part, protocol=5)):
        return None
    try:
        reply: Answer | CactusError = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError, ValueError):
        return None
    return reply


def serve() -> None:
    """A worker's life: a question, then slices until the input ends. Its output is for answers alone: print goes to stderr."""
    source: Any = sys.stdin.buffer
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    question = pickle.load(source)
    while True:
        try:
            part = pickle.load(source)
        except EOFError:
            return
        try:
            reply: Answer | CactusError = answer(question, part)
        except CactusError as error:
            reply = error
        pickle.dump(reply, sink, protocol=5)
        sink.flush()
