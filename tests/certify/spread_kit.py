"""What the tests of spread work share: a question of a few slices, the serial answer to it, a crew in this thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from certificate_kit import GRAPH, MODEL, TFLM, X, Y

from cactus_edge.certify.crew import Intervals, finder
from cactus_edge.certify.spread import Answer, Crew, Question, Slice, answer
from cactus_edge.errors import InputError
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import decide
from cactus_edge.verify.decide import Decision
from cactus_edge.verify.regions import region
from cactus_edge.verify.runtimes import TFLITE, runtimes

PROGRAM = lower(GRAPH, TFLM)
REGION = region(PROGRAM, "1/64", (0, 1))
MANY, LABELS = np.tile(X, (4, 1)), np.tile(Y, 4)
WORK, DIGEST = Intervals(37), b"m" * 32


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


def files(folder: Path, copies: int) -> list[str]:
    (folder / "m.tflite").write_bytes(MODEL)
    np.savez(folder / "x.npz", x=np.tile(X, (copies, 1)), y=np.tile(Y, copies))
    return ["certify", f"{folder}/m.tflite", f"--data={folder}/x.npz", "--eps=1/64", "--domain=0,1", "--bounds=linear"]


def without_time(path: Path) -> list[str]:
    return [
        line for line in path.read_text().splitlines() if '"created"' not in line and not line.startswith(' "sha256"')
    ]
