"""What every bench script needs: provenance, atomic results that a second run continues, tables, medians, targets.

A script prints its table from the results file it wrote, never from memory; the file says with which versions, on which
machine, when and by which command each number came about.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from cactus_edge.errors import CactusError
from cactus_edge.resources import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "cactus-edge",
    "numpy",
    "torch",
    "scikit-learn",
    "tflite-micro",
    "ai-edge-litert",
    "onnxruntime",
    "nncf",
    "torch-pruning",
    "unicorn",
    "ziglang",
)

Row = dict[str, Any]


def provenance(digests: Mapping[str, str] | None = None) -> Row:
    """Versions, git commit at which this process began ("+" where the tree differs from it, or changed since), processor, cores,
    time and command.

    digests: SHA-256 by name of what was measured on, data sets above all.
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "commit": BEGUN if _commit() == BEGUN else BEGUN.rstrip("+") + "+",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "digests": dict(digests or {}),
    }


def _commit() -> str:
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no", "--", "cactus_edge"]
        changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


BEGUN = _commit()
"""What this process runs, though other commits follow before a row is measured."""


def code(*places: str) -> str:
    """SHA-256 over the sources at these places under the root, files or folders: what a row depends on besides its inputs."""
    h = hashlib.sha256()
    for place in map(ROOT.joinpath, places):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in (".py", ".c", ".h", ".ld", ".toml"):
                raw = path.read_bytes()
                h.update(len(raw).to_bytes(8, "little") + raw)
    return h.hexdigest()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Results:
    """bench/results/NAME.json: rows by key, each with its own provenance. A row whose `inputs` are unchanged is kept.

    Processes may measure rows of one file side by side: each adds its own to what the file holds by then. fresh: a row that this
    process did not measure itself is not looked up; all others stay in the file.
    """

    def __init__(self, name: str, *, fresh: bool = False) -> None:
        self.path = RESULTS / f"{name}.json"
        self._fresh = fresh
        self._measured: set[str] = set()
        self.rows = self._stored()

    def _stored(self) -> dict[str, Row]:
        rows: dict[str, Row] = json.loads(self.path.read_text())["rows"] if self.path.exists() else {}
        return rows

    def _store(self, key: str, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.rows = self._stored() | {key: row}
            write_atomic(self.path, json.dumps({"rows": self.rows}, indent=1, sort_keys=True) + "\n")
        finally:
            os.close(folder)
        self._measured.add(key)

    def row(self, key: str, inputs: str, measure: Callable[[], Row], digests: Mapping[str, str] | None = None) -> Row:
        """The stored row `key` if it was measured with the same `inputs` (a digest), else measured now and stored."""
        known = None if self._fresh and key not in self._measured else self.rows.get(key)
        if known is None or known["inputs"] != inputs:
            start = time.monotonic()
            values = measure()
            seconds = round(time.monotonic() - start, 1)
            known = {"inputs": inputs, "values": values, "seconds": seconds, "provenance": provenance(digests)}
            self._store(key, known)
        values = known["values"]
        assert isinstance(values, dict)
        return values


@dataclass(frozen=True)
class Target:
    """A figure to reach: `value` at least (or at most) `limit`."""

    what: str
    value: float
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def median(rows: Sequence[Row], key: str) -> float:
    """The median of one column."""
    return float(statistics.median(row[key] for row in rows))


def mean_pca(rows: Sequence[Row]) -> tuple[float, str]:
    """Of rows with shares by transform under `pca`, the mean over transforms and rows; the same in words, with the spread of rows."""
    of = [statistics.fmean(row["pca"].values()) for row in rows]
    mean = statistics.fmean(of)
    return mean, f"{100 * mean:.2f}" + (f" ({100 * min(of):.2f} to {100 * max(of):.2f})" if len(of) > 1 else "")


def percent(value: float) -> str:
    """0.9753 -> 97.53 %."""
    return f"{100 * value:.2f} %"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A plain text table; the first row is the head, the first column is aligned left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def verdict(targets: Sequence[Target]) -> int:
    """Prints each target with what was reached; 0 when all are met, else 1."""
    rows = [["target", "limit", "reached", "met"]]
    for t in targets:
        rows.append([t.what, f"{'<=' if t.at_most else '>='} {t.limit:g}", f"{t.value:.6g}", "yes" if t.met else "NO"])
    print("\n" + table(rows))
    return 0 if all(t.met for t in targets) else 1


def agreed(rows: Mapping[str, Row], columns: Sequence[str], differing: str, first: str, what: str) -> int:
    """Prints rows of comparisons by name, and of each with a difference where it begins; the verdict is that none differs.

    differing, first: the columns with the count of what differs and with the first difference in words. what: is counted.
    """
    lines = [["source", *(c.replace("_", " ") for c in columns)]]
    lines += [[key, *(f"{row[c]:,}" if c in row else "" for c in columns)] for key, row in rows.items()]
    print(table(lines))
    for key, row in rows.items():
        if row[first]:
            print(f"{key}: {row[first]}")
    return verdict([Target(f"{what} that differ", sum(row[differing] for row in rows.values()), 0, at_most=True)])


def run(main: Callable[[], int]) -> NoReturn:
    """Exits with main's result; an error that somebody can fix is one line, and Ctrl-C keeps what was measured."""
    try:
        raise SystemExit(main())
    except CactusError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted; run it again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # who reads, head say, reads no further
        sys.stderr.close()
        raise SystemExit(2) from None


def positive(text: str) -> int:
    """A count on the command line, at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def natural(text: str) -> int:
    """A count that may be none, or the number of a network or a mutant, on the command line: at least 0."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{value}: expected 0 or more")
    return value


def existing(text: str) -> Path:
    """A folder on the command line, which is there."""
    if not (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return path


def arguments(description: str, *, seeds: int) -> argparse.Namespace:
    """The options that training benches share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--seeds", type=positive, default=seeds, help=f"how many training seeds, from 0 (default {seeds})"
    )
    parser.add_argument(
        "--threads",
        type=natural,
        default=0,
        help="threads for training and certification (default: the recipe's, else all)",
    )
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="validation: for choosing a recipe"
    )
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "bench", help="checkpoints of training")
    return parser.parse_args()
