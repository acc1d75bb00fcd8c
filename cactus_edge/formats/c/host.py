"""The C, compiled for this machine and compared with the interpreter, bit for bit.

The comparison runs a separate process: a crash or a trap of the sanitizer ends that process and is reported, not ours.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InternalError, MismatchError
from cactus_edge.formats.agree import Agreement, LayerDifference
from cactus_edge.formats.c.blob import build, op_nodes
from cactus_edge.formats.c.blob_format import Blob
from cactus_edge.formats.c.compiler import STRICT, Compiler, compile_c, overlaid, zig
from cactus_edge.formats.c.write import CSources
from cactus_edge.ir.evaluate import quantised, run, trace
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Int8
from cactus_edge.ir.profile import Profile
from cactus_edge.resources import data_path

CHECKED = ("-fsanitize=undefined", "-fsanitize-trap=undefined")
"""Flags that end the program at the first signed overflow, bad shift or misaligned access."""

_BATCH_BYTES = 1 << 24
"""Bytes of output asked from one process at a time."""


@dataclass(frozen=True)
class HostProgram:
    """A compiled model on this machine. `argument` is handed to the program: a blob's path, or anything."""

    executable: Path
    argument: str
    compiler: Compiler
    blob: Blob

    def run(self, x: Int8) -> Int8:
        """int8 [N, out_bytes] for int8 x [N, ...]. Raises MismatchError where the program traps or gives up."""
        return self._run(x, "run", self.blob.header["out_bytes"])

    def taps(self, x: Int8) -> list[Int8]:
        """The output of every op, int8 [N, out_bytes of the op], in the blob's order."""
        sizes = [record.fields["out_bytes"] for record in self.blob.records]
        rows = self._run(x, "taps", sum(sizes) + self.blob.header["out_bytes"])
        ends = np.cumsum(sizes)
        return [rows[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def certify(
        self, x: Int8, radius: npt.NDArray[np.uint8], ends: tuple[int, int], labels: npt.NDArray[Any]
    ) -> npt.NDArray[np.int32]:
        """What ce_certify makes of each input: int32 [N, 3], its status, whether certified, the margin.

        radius uint8 [N, *input]; ends: the least and the most code of the sensor; labels [N].
        """
        n = len(x)
        columns = (
            self._flat(x),
            radius.reshape(n, -1).view(np.int8),
            np.tile(np.array(ends, np.int8), (n, 1)),
            np.asarray(labels, "<i4").reshape(n, 1).view(np.int8),
        )
        return self._batches(np.hstack(columns), "certify", 12).view("<i4")

    def _flat(self, x: Int8) -> Int8:
        flat = np.ascontiguousarray(x, np.int8).reshape(len(x), math.prod(x.shape[1:]))
        if flat.shape[1] != self.blob.header["in_bytes"]:
            raise InternalError(f"{flat.shape[1]} bytes an input, the model takes {self.blob.header['in_bytes']}")
        return flat

    def _run(self, x: Int8, mode: str, width: int) -> Int8:
        return self._batches(self._flat(x), mode, width)

    def _batches(self, flat: Int8, mode: str, width: int) -> Int8:
        step = max(1, _BATCH_BYTES // width)
        parts = [self._batch(flat[i : i + step], mode, width) for i in range(0, len(flat), step)]
        return np.concatenate(parts) if parts else np.zeros((0, width), np.int8)

    def _batch(self, x: Int8, mode: str, width: int) -> Int8:
        command = [str(self.executable), self.argument, mode]
        done = subprocess.run(command, input=x.tobytes(), capture_output=True, check=False)
        if done.returncode or len(done.stdout) != len(x) * width:
            raise MismatchError(
                f"the compiled model ended with code {done.returncode} after {len(done.stdout)} of {len(x) * width} bytes: "
                f"{done.stderr.decode(errors='replace').strip() or 'no message'}",
                hint="a negative code is a signal; with the sanitizer's flags it means undefined behaviour in the C",
            )
        return np.frombuffer(done.stdout, np.int8).reshape(len(x), width)


@contextmanager
def compiled(sources: CSources, flags: Sequence[str] = (), compiler: Compiler | None = None) -> Iterator[HostProgram]:
    """The written model, compiled here in a temporary folder. Raises InstallError without a compiler."""
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as temporary:
        executable = Path(temporary) / "model"
        files = [*sources.sources, *_host("ce_host.c", "ce_host_model.c")]
        used = _compile(files, [sources.folder, data_path("export", "c", "host")], executable, flags, compiler)
        yield HostProgram(executable, "model", used, sources.blob)


class HostRuntime:
    """The runtime with every kernel, compiled once; runs any blob."""

    def __init__(
        self,
        folder: Path,
        flags: Sequence[str] = (),
        compiler: Compiler | None = None,
        overlay: Path | None = None,
    ) -> None:
        """Compiles into `folder`. Files in `overlay` stand in for those of the same name in export/c: for planted faults."""
        self._folder = folder
        self._executable = folder / "runtime"
        sources = sorted(data_path("export", "c", "src").glob("*.c"))
        sources = overlaid(sources, overlay)
        files = [*sources, *_host("ce_host.c", "ce_host_blob.c")]
        includes = [data_path("export", "c", "include"), data_path("export", "c", "host")]
        if overlay:
            includes.insert(0, overlay)
        self._compiler = _compile(files, includes, self._executable, flags, compiler)

    def open(self, blob: Blob) -> HostProgram:
        """The program that runs `blob`."""
        path = self._folder / f"{blob.digest}.blob"
        path.write_bytes(blob.data)
        return HostProgram(self._executable, str(path), self._compiler, blob)


def agree_c(graph: Graph, x: npt.NDArray[Any], profile: Profile, sources: CSources) -> Agreement:
    """Compiles `sources` for this machine, runs x [N, *input.shape] through it and compares with the interpreter's int8 core."""
    with compiled(sources) as program:
        return compare(graph, x, profile, program)


def compare(graph: Graph, x: npt.NDArray[Any], profile: Profile, program: HostProgram) -> Agreement:
    """The program's int8 outputs for x against the interpreter's; names the first layer that differs."""
    lowered = lower(graph, profile)
    codes = quantised(lowered, x)
    expected = run(lowered, codes).reshape(len(x), program.blob.header["out_bytes"])
    got = program.run(codes)
    differ = got != expected
    bad = np.flatnonzero(differ.any(1))
    gap = np.abs(got.astype(np.int64) - expected)
    flips = got.argmax(1) != expected.argmax(1)
    return Agreement(
        runtime="portable C on this machine",
        version=f"{program.compiler.name} {program.compiler.version}",
        profile=profile.name,
        model_sha256=program.blob.digest,
        inputs=len(x),
        elements=differ.size,
        mismatches=int(differ.sum()),
        differing_inputs=bad.size,
        max_difference=float(gap.max(initial=0)),
        argmax_flips=int(flips.sum()),
        first_layer=_first_layer(graph, codes[bad[0]], int(bad[0]), profile, program) if bad.size else None,
    )


def _first_layer(
    graph: Graph, sample: Int8, number: int, profile: Profile, program: HostProgram
) -> LayerDifference | None:
    expected = trace(graph, sample[np.newaxis], profile)
    for node, got in zip(op_nodes(graph), program.taps(sample[np.newaxis]), strict=True):
        want = expected[graph.nodes[node].output]
        if want is None:
            raise InternalError(f"{graph.label(node)}: an op of the blob has no int8 output")
        tap = got.reshape(want.shape)
        differ = tap != want
        if differ.any():
            position = tuple(int(i) for i in np.argwhere(differ)[0])
            gap = np.abs(tap.astype(np.int64) - want)
            return LayerDifference(
                node,
                graph.label(node),
                number,
                int(differ.sum()),
                differ.size,
                int(gap.max()),
                position[1:],
                int(want[position]),
                int(tap[position]),
            )
    return None


def blob_program(runtime: HostRuntime, graph: Graph, profile: Profile) -> HostProgram:
    """The graph's blob in the runtime with every kernel."""
    return runtime.open(build(graph, profile))


def _host(*names: str) -> list[Path]:
    return [data_path("export", "c", "host", name) for name in names]


def _compile(
    files: Sequence[Path], includes: Sequence[Path], out: Path, flags: Sequence[str], compiler: Compiler | None
) -> Compiler:
    used = compiler or zig()
    compile_c(used, [*STRICT, "-O2", *flags, *(f"-I{path}" for path in includes), *files, "-o", out])
    return used
