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
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from cactus_edge.certify.spread import Answer, Question, Slice, answer
from cactus_edge.errors import CactusError, InputError

TRIES = 3
"""Workers that may die over one slice."""

COMMAND = "from cactus_edge.certify.processes import serve; serve()"

Worker: TypeAlias = "subprocess.Popen[bytes]"

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Processes:
    """A crew of `workers` processes, which are there from the first question until nobody holds this object."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._idle: list[Worker] = []
        weakref.finalize(self, _bury_all, self._idle)

    def answers(self, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]:
        """As `Crew`. Raises InputError where TRIES workers died over one slice."""
        shift = _Shift(pickle.dumps(question, protocol=5), slices, self._idle)
        threads = [threading.Thread(target=shift.drive, daemon=True) for _ in range(min(self.workers, len(slices)))]
        for thread in threads:
            thread.start()
        left = len(slices)
        try:
            while left:
                reply = shift.replies.get()
                if isinstance(reply, CactusError):
                    raise reply
                left -= 1
                yield reply
        finally:
            if left:
                shift.end()
            for thread in threads:
                thread.join()


class _Shift:
    """The work on one question: what is left, what came back, who is at it."""

    def __init__(self, question: bytes, slices: Sequence[Slice], idle: list[Worker]) -> None:
        self.replies: SimpleQueue[Answer | CactusError] = SimpleQueue()
        self._question = question
        self._left = deque(slices)
        self._lock = threading.Lock()
        self._idle = idle
        self._live: set[Worker] = set()
        self._over = False

    def drive(self) -> None:
        """Takes slices until none is left, with one worker at a time. Runs in a thread of its own."""
        worker: Worker | None = None
        while (part := self._next()) is not None:
            for _ in range(TRIES):
                worker = worker or self._start()
                reply = None if worker is None else _ask(worker, part)
                if reply is not None:
                    break
                self._release(worker, dead=True)
                worker = None
            last = part.start + len(part.x) - 1
            lost = InputError(
                f"{TRIES} workers ended over samples {part.start} to {last}",
                hint="fewer --workers: each needs memory of its own; what was finished is kept",
            )
            self.replies.put(reply or lost)
        self._release(worker)

    def end(self) -> None:
        """Stops everybody at once: a dead worker's thread finds no next slice, and ends as well."""
        with self._lock:
            self._over = True
            for worker in self._live:
                worker.kill()

    def _next(self) -> Slice | None:
        with self._lock:
            return self._left.popleft() if self._left and not self._over else None

    def _start(self) -> Worker | None:
        with self._lock:
            if self._over:
                return None
            worker = self._idle.pop() if self._idle else _hired()
            self._live.add(worker)
        _send(worker, self._question)
        return worker

    def _release(self, worker: Worker | None, *, dead: bool = False) -> None:
        if worker is None:
            return
        with self._lock:
            self._live.discard(worker)
            if not (dead or self._over):
                self._idle.append(worker)
                return
        _bury(worker)


def _hired() -> Worker:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONPATH": path},
        start_new_session=True,
    )


def _bury_all(workers: list[Worker]) -> None:
    while workers:
        _bury(workers.pop())


def _bury(worker: Worker) -> None:
    """Ends a worker by the end of its input."""
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()
    worker.wait()


def _send(worker: Worker, message: bytes) -> bool:
    assert worker.stdin is not None
    try:
        worker.stdin.write(message)
        worker.stdin.flush()
    except (BrokenPipeError, ValueError):
        return False
    return True


def _ask(worker: Worker, part: Slice) -> Answer | CactusError | None:
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
    """A worker's life: a question, its slices, and so on until the input ends. Its output is for answers alone: print goes to stderr."""
    source: Any = sys.stdin.buffer
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    question: Question | None = None
    while True:
        try:
            message = pickle.load(source)
        except EOFError:
            return
        if question is None or isinstance(message, Question):
            question = message
            continue
        try:
            reply: Answer | CactusError = answer(question, message)
        except CactusError as error:
            reply = error
        pickle.dump(reply, sink, protocol=5)
        sink.flush()
