"""What a file computes for given data under a profile, and how often it is right."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.formats.read import read_for
from cactus_edge.ir.arithmetic import profile as profile_by_name
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.ops import Int64
from cactus_edge.report.table import counted
from cactus_edge.resources import write_atomic

Array = npt.NDArray[Any]
Pairs = list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Outputs:
    """What `run` computed: `values` [N, *output shape], codes or, where the file ends in DEQUANTIZE, float32.

    `labels` int64 [N], or None. The figures about labels are None without them.
    """

    values: Array
    labels: Int64 | None
    profile: str

    @property
    def predictions(self) -> Int64:
        """The first maximum of each row-major output, int64 [N]."""
        first: Int64 = self._rows.argmax(1).astype(np.int64)
        return first

    @property
    def right(self) -> int | None:
        """Samples whose first maximum is the label."""
        return None if self.labels is None else int((self.predictions == self.labels).sum())

    @property
    def strict(self) -> int | None:
        """Samples whose label is above every other output, so that no rule for ties matters."""
        if self.labels is None:
            return None
        rows = self._rows
        own = rows[np.arange(len(rows)), self.labels]
        return int(((rows >= own[:, np.newaxis]).sum(1) == 1).sum())

    def save(self, path: Path) -> None:
        """Writes `output` (the values) and `prediction` int64 [N] to `path`, an .npz; equal results give equal bytes."""
        stream = io.BytesIO()
        np.savez_compressed(stream, output=self.values, prediction=self.predictions)
        write_atomic(path, stream.getvalue())

    def summary(self) -> Pairs:
        """In words."""
        shape = ", ".join(map(str, self.values.shape[1:]))
        rows = [
            ("ran", f"{len(self.values):,} inputs, outputs {self.values.dtype} [{shape}]"),
            ("profile", self.profile),
        ]
        if profile_by_name(self.profile).assumption:
            rows.append(
                ("", "conditional: these are one of the results that it allows, ONNX Runtime's, and not the only one")
            )
        if self.labels is not None and self.right is not None and self.strict is not None:
            n = len(self.labels)
            ties = self.right - self.strict
            rows.append(("right", f"{self.right:,} of {n:,} ({counted(self.right, n)}), first maximum"))
            rows.append(
                ("", f"{self.strict:,} of {n:,} ({counted(self.strict, n)}), strictly above every other; {ties} tie")
            )
        return rows

    @property
    def _rows(self) -> Array:
        return self.values.reshape(len(self.values), -1)


def outputs(model: bytes, x: Array, y: Array | None, profile: str) -> Outputs:
    """The exact outputs of the file `model` for x [N, *input shape] under `profile`; y: labels [N], or None.

    Raises as `api_files.run` says.
    """
    rules = profile_by_name(profile)
    graph = read_for(model, rules)
    require_samples(x)
    labels = None if y is None else _labels(y, len(x), graph.output.size)
    return Outputs(evaluate(graph, x, rules), labels, profile)


def require_samples(x: Array) -> None:
    """Raises DataError where x [N, ...] holds no sample."""
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"the data have shape {x.shape}, expected at least one sample")


def _labels(y: Array, count: int, classes: int) -> Int64:
    """y as int64 [count]. Raises DataError where it is not one label below `classes` for each sample."""
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise DataError(
            f"the labels are {y.dtype} {y.shape}, expected one integer for each of {count} samples",
            hint="leave y out to get the outputs alone",
        )
    if count and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise DataError(f"the labels run from {y.min()} to {y.max()}, expected 0..{classes - 1}")
    return y.astype(np.int64)
