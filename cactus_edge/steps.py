"""Steps that are done once: a step is skipped when its inputs and its output files have the digests they had last time.

Each finished step leaves `<folder>/.steps/<name>.json` with the digest of its inputs, its result (JSON values), the SHA-256 of the
files it wrote and that of all this. An interrupted step leaves nothing there and runs again, and so does one whose record changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cactus_edge.progress import Progress
from cactus_edge.resources import sha256, write_atomic

Result = dict[str, Any]

Outputs = Callable[[Result], Sequence[str]]
"""The files that a step wrote, relative to the folder, by its result."""

Advance = Callable[[int, int, str], None]
"""Is told (how much is done, of how much, the last of it in words)."""


@dataclass(frozen=True)
class Done:
    """One finished step. `seconds` is how long it took when it ran, also where it was found `cached`."""

    name: str
    seconds: float
    cached: bool
    result: Result
    files: tuple[str, ...]


def writes(*names: str) -> Outputs:
    """Of a step that always writes the same files."""
    return lambda _: names


class Steps:
    """Runs the named steps of one build, in order, in one folder."""

    def __init__(self, folder: Path, count: int, progress: Progress) -> None:
        self.folder = folder
        self.finished: list[Done] = []
        self._count = count
        self._progress = progress

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Outputs,
        action: Callable[[Advance], Result],
        *,
        summary: Callable[[Result], str] = lambda _: "",
    ) -> Result:
        """`action(advance)`'s result, from the record where nothing changed.

        `inputs` are JSON values that determine the result; `outputs` names the files that the action writes. `summary` puts the
        result in words.
        """
        self._progress.begin(name, len(self.finished) + 1, self._count)
        key = _digest([name, inputs])
        record = self.folder / ".steps" / f"{name}.json"
        known = self._recall(record, key, outputs)
        if known is None:
            start = time.perf_counter()
            result = action(self._progress.advance)
            done = Done(name, time.perf_counter() - start, False, result, tuple(outputs(result)))
            files = {o: sha256((self.folder / o).read_bytes()) for o in done.files}
            content = {"key": key, "seconds": done.seconds, "files": files, "result": result}
            write_atomic(record, json.dumps(content | {"sha256": _digest(content)}, sort_keys=True, indent=1) + "\n")
        else:
            done = known
        self.finished.append(done)
        self._progress.end(done.seconds, cached=done.cached, text=summary(done.result))
        return done.result

    @property
    def files(self) -> tuple[str, ...]:
        """What the finished steps wrote; whatever else lies in the folder is none of this build's."""
        return tuple(sorted({name for done in self.finished for name in done.files}))

    def _recall(self, record: Path, key: str, outputs: Outputs) -> Done | None:
        """The recorded step, or None where it has to run: no record, other inputs, or a file that changed."""
        if not record.is_file():
            return None
        try:
            content = json.loads(record.read_text())
            whole = content.pop("sha256") == _digest(content)
            seconds, result, files = float(content["seconds"]), dict(content["result"]), dict(content["files"])
            same = whole and content["key"] == key and set(files) == set(outputs(result))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        if not same:
            return None
        for name, digest in files.items():
            path = self.folder / name
            if not path.is_file() or sha256(path.read_bytes()) != digest:
                return None
        return Done(record.stem, seconds, True, result, tuple(files))


def _digest(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())
