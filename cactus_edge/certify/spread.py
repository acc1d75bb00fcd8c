"""A question about many samples, decided slice by slice in other processes or on other machines, and joined again.

Where the slices begin depends on the data alone, never on who decides them: the joined answer is the one of a serial run, bit
for bit. Each answer carries a digest of the question and of the very samples that it was computed from; one that does not
belong where it is put is refused. Finished slices are kept in a folder until the whole is written, so that nothing finished
is lost. Untrusted like every search: `cactus-edge verify` recomputes or checks what comes out.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cactus_edge.certify import interval
from cactus_edge.errors import DataError, InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.resources import write_atomic
from cactus_edge.samples import read_arrays
from cactus_edge.verify.decide import Decision
from cactus_edge.verify.regions import Region, data_digest
from cactus_edge.version import __version__

Array = npt.NDArray[Any]

SLICE = 512
"""Samples of a slice: some seconds of work, so that little is lost with a worker, and little is spent on sending."""

SLICE_BYTES = 1 << 22
"""Most bytes of samples in one slice, where a single sample is not more."""

FIELDS = ("correct", "certified", "margin")


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about every sample, for one program; it travels to the workers."""

    program: Program
    region: Region

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the question, in the code that answers it."""
        program = self.program.graph.digest(), self.program.profile.digest()
        asked = [code_digest(), *program, self.region.record()]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Slice:
    """Samples `start` up to `start + len(x)` of the data, and their labels."""

    start: int
    x: Array
    labels: Array

    def key(self, question: Question) -> str:
        """Which question about which samples at which place."""
        return hashlib.sha256(f"{question.digest} {self.start} {data_digest(self.x, self.labels)}".encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found for a slice: arrays with one entry a sample. key: `Slice.key` of what the worker was given."""

    start: int
    key: str
    found: Mapping[str, Array]


class Crew(Protocol):
    """Whoever decides slices: yields the answer to each, in any order."""

    def answers(self, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]: ...


def answer(question: Question, part: Slice) -> Answer:
    """Decides one slice. This runs in the workers."""
    d = interval.certify(question.program, question.region, part.x, part.labels)
    return Answer(part.start, part.key(question), dict(zip(FIELDS, (d.correct, d.certified, d.margin), strict=True)))


@dataclass(frozen=True)
class Spread:
    """`verify.decide.certify` by a crew. keep: the folder of finished slices, None to keep none; progress(n): samples decided."""

    crew: Crew
    keep: Path | None = None
    progress: Callable[[int], None] = field(default=lambda done: None)

    def __call__(self, program: Program, region: Region, x: Array, labels: Array) -> Decision:
        """The decision of a serial run. Raises as that does, InternalError for an answer that belongs elsewhere."""
        question = Question(program, region)
        slices = cut(x, labels, SLICE)
        store = Store(self.keep, question)
        found = [store.load(part) for part in slices]
        done = sum(len(part.x) for part, a in zip(slices, found, strict=True) if a is not None)
        todo = [part for part, a in zip(slices, found, strict=True) if a is None]
        index = {part.start: i for i, part in enumerate(slices)}
        for a in self.crew.answers(question, todo) if todo else ():
            i = index[a.start]
            _require(question, slices[i], a)
            store.save(a)
            found[i] = a
            done += len(slices[i].x)
            self.progress(done)
        return join(question, slices, [a for a in found if a is not None])


def cut(x: Array, labels: Array, most: int) -> list[Slice]:
    """The data in slices of at most `most` samples and SLICE_BYTES; a function of the data's shape and type alone."""
    size = max(1, min(most, SLICE_BYTES // max(x[:1].nbytes, 1)))
    return [Slice(i, x[i : i + size], labels[i : i + size]) for i in range(0, len(x), size)]


def join(question: Question, slices: Sequence[Slice], answers: Sequence[Answer]) -> Decision:
    """The answers in the order of the slices. Raises InternalError where one is missing or belongs elsewhere."""
    if len(slices) != len(answers):
        raise InternalError(f"{len(answers)} slices were decided, expected {len(slices)}")
    for part, a in zip(slices, answers, strict=True):
        _require(question, part, a)
    return Decision(*(np.concatenate([a.found[name] for a in answers]) for name in FIELDS))


def _require(question: Question, part: Slice, a: Answer) -> None:
    if a.key != part.key(question) or any(len(a.found[name]) != len(part.x) for name in FIELDS):
        raise InternalError(
            f"an answer for samples from {a.start} does not belong to samples {part.start} to "
            f"{part.start + len(part.x) - 1} of this question",
            hint="do all workers run this version of cactus-edge?",
        )


class Store:
    """Finished slices of one question in a folder: START.npz in a folder named by the question's digest."""

    def __init__(self, folder: Path | None, question: Question) -> None:
        self.question = question
        self.folder = None if folder is None else folder / question.digest[:16]

    def save(self, a: Answer) -> None:
        """Keeps an answer, whole or not at all."""
        if self.folder is not None:
            stream = io.BytesIO()
            arrays: dict[str, Any] = {"key": np.array(a.key), **a.found}
            np.savez(stream, **arrays)
            write_atomic(self.folder / f"{a.start}.npz", stream.getvalue())

    def load(self, part: Slice) -> Answer | None:
        """The answer kept for a slice; None where there is none, or one that is damaged or belongs elsewhere."""
        path = None if self.folder is None else self.folder / f"{part.start}.npz"
        if path is None or not path.is_file():
            return None
        try:
            held = read_arrays(path, ("key", *FIELDS), text=("key",))
            a = Answer(part.start, str(held["key"]), {name: held[name] for name in FIELDS})
            _require(self.question, part, a)
        except (DataError, KeyError, TypeError, InternalError):
            return None
        return a


@cache
def code_digest() -> str:
    """Version and SHA-256 of this package's Python files: two installations that agree in it decide alike."""
    package = Path(__file__).resolve().parents[1]
    h = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        h.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return f"{__version__} {h.hexdigest()}"
