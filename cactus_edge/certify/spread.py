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

from cactus_edge.errors import DataError, InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.resources import write_atomic
from cactus_edge.samples import read_arrays
from cactus_edge.verify.decide import RULES
from cactus_edge.verify.regions import Region, data_digest
from cactus_edge.version import __version__

Array = npt.NDArray[Any]
Found = Mapping[str, Array]
Solve = Callable[[Region, Array, Array], Found]
"""(region of these samples, samples, labels) -> what was found for them."""

SLICE_BYTES = 1 << 22
"""Most bytes of samples in one slice, where a single sample is not more."""


class Work(Protocol):
    """What is done with a slice. A frozen dataclass of plain fields: it travels, and its repr is part of the question."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The arrays that `Solve` finds."""

    @property
    def size(self) -> int:
        """Samples of a slice at most: some seconds of work, so that little is lost with a worker, and little spent on sending."""

    def start(self, program: Program) -> Solve:
        """What solves one slice after the other."""

    def fits(self, found: Found, samples: int) -> bool:
        """Whether that may have been found for so many samples."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked about every sample, for one program; it travels to the workers."""

    program: Program
    region: Region
    work: Work

    def __reduce__(self) -> tuple[type[Question], tuple[Any, ...]]:
        """Nothing that was computed travels: a worker's digest is that of its own code."""
        return Question, (self.program, self.region, self.work)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the question, in the code that answers it."""
        program = self.program.graph.digest(), self.program.profile.digest()
        asked = [code_digest(), *program, RULES[self.program.first_maximum], self.region.record(), repr(self.work)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @cached_property
    def solve(self) -> Solve:
        """Begun once, for all slices that one worker gets."""
        return self.work.start(self.program)


@dataclass(frozen=True, eq=False)
class Slice:
    """Samples `start` up to `start + len(x)` of the data, and their labels."""

    start: int
    x: Array
    labels: Array

    @property
    def stop(self) -> int:
        """The sample behind the last."""
        return self.start + len(self.x)

    def key(self, question: Question) -> str:
        """Which question about which samples at which place."""
        return hashlib.sha256(f"{question.digest} {self.start} {data_digest(self.x, self.labels)}".encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found for a slice. key: `Slice.key` of what the worker was given."""

    start: int
    key: str
    found: Found


class Crew(Protocol):
    """Whoever decides slices: yields the answer to each, in any order."""

    def answers(self, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]: ...


class Alone:
    """The crew of nobody else: one slice after the other, here."""

    def answers(self, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]:
        """As `Crew`."""
        return (answer(question, part) for part in slices)


def answer(question: Question, part: Slice) -> Answer:
    """Decides one slice. This runs in the workers."""
    region = question.region.of(slice(part.start, part.stop))
    return Answer(part.start, part.key(question), question.solve(region, part.x, part.labels))


@dataclass(frozen=True)
class Spread:
    """Questions to a crew. keep: the folder of finished slices, None to keep none; progress(n): samples decided."""

    crew: Crew
    keep: Path | None = None
    progress: Callable[[int], None] = field(default=lambda done: None)

    def ask(self, question: Question, x: Array, labels: Array) -> list[Found]:
        """What was found for each of the data's slices, in their order: as one crew or another, or none, finds it.

        Raises what the work raises, InternalError for an answer that belongs elsewhere.
        """
        question.region.require_inside(question.program, x)
        slices = cut(x, labels, question.work.size)
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
        return in_order(question, slices, [a for a in found if a is not None])


def cut(x: Array, labels: Array, most: int) -> list[Slice]:
    """The data in slices of at most `most` samples and SLICE_BYTES; a function of the data's shape and type alone."""
    size = max(1, min(most, SLICE_BYTES // max(x[:1].nbytes, 1)))
    return [Slice(i, x[i : i + size], labels[i : i + size]) for i in range(0, len(x), size)]


def in_order(question: Question, slices: Sequence[Slice], answers: Sequence[Answer]) -> list[Found]:
    """What the answers found. Raises InternalError where one is missing, or is not that of the slice at its place."""
    if len(slices) != len(answers):
        raise InternalError(f"{len(answers)} slices were decided, expected {len(slices)}")
    for part, a in zip(slices, answers, strict=True):
        _require(question, part, a)
    return [a.found for a in answers]


def _require(question: Question, part: Slice, a: Answer) -> None:
    whole = set(a.found) == set(question.work.fields) and question.work.fits(a.found, len(part.x))
    if a.key != part.key(question) or not whole:
        raise InternalError(
            f"an answer for samples from {a.start} does not belong to samples {part.start} to {part.stop - 1} of this "
            "question",
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
            held = read_arrays(path, ("key", *self.question.work.fields), text=("key",))
            a = Answer(part.start, str(held.pop("key")), held)
            _require(self.question, part, a)
        except (DataError, InternalError):
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
