"""The second checker of proofs, export/c/verify in C99 and integers only, compiled for this machine and run on files.

It shares no code with `verify`: each checks the other. It knows profile `tflm` and the operators of the portable C runtime.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cactus_edge.errors import InternalError
from cactus_edge.formats.c.compiler import STRICT, Compiler, compile_c, overlaid, zig
from cactus_edge.ir.ops import Int8, Int32
from cactus_edge.resources import data_path
from cactus_edge.verify.recheck import Check
from cactus_edge.verify.recheck import State as CheckState

State = Literal["accepted", "rejected", "not checked"]

PROFILE = "tflm"
"""The profile that it knows."""

STATES: tuple[State, ...] = ("accepted", "rejected", "not checked")
"""By exit code."""


_CHECKED: Mapping[State, CheckState] = {"accepted": "ok", "rejected": "failed", "not checked": "not checked"}


@dataclass(frozen=True)
class Answer:
    """What the checker says of a proof, and in which words."""

    state: State
    words: str


class CChecker:
    """The compiled program; `folder` takes it and the files that it is to read."""

    def __init__(
        self,
        folder: Path,
        flags: Sequence[str] = (),
        compiler: Compiler | None = None,
        overlay: Path | None = None,
    ) -> None:
        """Sources in `overlay` stand in for those of the same name: for planted faults. Raises InstallError without a compiler."""
        self._folder = folder
        self._executable = folder / "ce-verify"
        here = data_path("export", "c", "verify")
        sources = [*sorted(here.glob("*.c")), data_path("export", "c", "src", "ce_sha256.c")]
        sources = overlaid(sources, overlay)
        includes = [f"-I{path}" for path in (here, data_path("export", "c", "include"))]
        compile_c(compiler or zig(), [*STRICT, "-O2", *flags, *includes, *sources, "-o", self._executable])

    def check(self, model: bytes, proof: bytes, profile: str | None = None, first_maximum: bool = False) -> Answer:
        """The answer on a proof file; profile: only the proof for that one. Raises InternalError where the program crashes."""
        ties = ("--ties", "first-maximum") if first_maximum else ()
        done = self._run((*(("--profile", profile) if profile else ()), *ties), model, proof)
        said = (done.stderr or done.stdout).decode(errors="replace").splitlines()
        return Answer(STATES[done.returncode], "; ".join(said))

    def margins(self, model: bytes, proof: bytes) -> tuple[State, list[tuple[int, ...]]]:
        """The answer on a proof file, and by how much each leaf that a point can be in separates the label from each class.

        Up to the first leaf that does not separate all; a margin below 1 and the label's own are given as 0.
        """
        done = self._run(("--margins",), model, proof)
        lines = done.stdout.decode(errors="replace").splitlines()
        return STATES[done.returncode], [tuple(map(int, line.split())) for line in lines if ":" not in line]

    def bounds(self, model: bytes, lower: Int8, upper: Int8) -> tuple[Int32, Int32]:
        """(lo, hi) int32 [N, S], all values' elements in their order, over boxes lower <= x <= upper, codes [N, ...]."""
        count = len(lower)
        boxes = np.stack([lower.reshape(count, -1), upper.reshape(count, -1)], 1)
        done = self._run(("--bounds",), model, boxes.tobytes())
        if done.returncode:
            raise InternalError(f"the C checker gives no bounds: {done.stderr.decode(errors='replace').strip()}")
        ends = np.frombuffer(done.stdout, "<i4").reshape(count, 2, -1)
        return ends[:, 0], ends[:, 1]

    def _run(self, options: Sequence[str], model: bytes, other: bytes) -> subprocess.CompletedProcess[bytes]:
        files = (self._folder / "model", self._folder / "proof")
        for path, data in zip(files, (model, other), strict=True):
            path.write_bytes(data)
        done = subprocess.run([self._executable, *options, *files], capture_output=True, check=False)
        if not 0 <= done.returncode < len(STATES):
            words = done.stderr.decode(errors="replace").strip() or "no message"
            raise InternalError(f"the C checker ended with code {done.returncode}: {words}")
        return done


@contextmanager
def c_checker() -> Iterator[CChecker]:
    """The checker, compiled here in a temporary folder. Raises InstallError without a compiler."""
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as folder:
        yield CChecker(Path(folder))


def second_check(model: bytes, proof: bytes | None, first_maximum: bool = False) -> Check:
    """The answer of the checker in C, compiled here, as one more line of a report. first_maximum: as in `Program`.

    Raises InstallError without a compiler.
    """
    name, expected = "the proof, by the checker in C", f"a proof for profile {PROFILE}, right in every record"
    if proof is None:
        return Check(name, "not checked", expected, "no proof file: intervals are recomputed")
    with c_checker() as checker:
        answer = checker.check(model, proof, PROFILE, first_maximum)
    return Check(name, _CHECKED[answer.state], expected, answer.words)
