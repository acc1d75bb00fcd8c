"""The verbs for any int8 file, as functions: inspect, run, agree, convert. Each imports what it needs when it is called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.errors import InputError, InternalError
from cactus_edge.resources import require_folder, sha256, write_atomic

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.comparison import Comparison
    from cactus_edge.inspection import Inspection
    from cactus_edge.outputs import Outputs
    from cactus_edge.verify.tflite_read import Model

    Array = npt.NDArray[Any]

Source = bytes | str | Path
Pairs = list[tuple[str, str]]


def inspect(model: Source) -> Inspection:
    """What the .tflite `model` holds, and which profiles can run it; nothing is executed, numpy is enough.

    Raises InputError for a file that is not there, ModelError for one that is malformed, UnsupportedError, naming the
    operator and its index, for one that uses what the integer graph cannot express.
    """
    from cactus_edge.inspection import inspect_model

    return inspect_model(content(model, "model"))


def run(model: Source, x: Array, y: Array | None = None, *, profile: str = "tflm") -> Outputs:
    """The exact outputs of the .tflite `model` under `profile`, by the interpreter: what that runtime computes, bit for bit.

    x [N, *input shape]: int8 codes, or float32 in the units of the data, quantised as the profile does it. y: the label of
    each sample, an integer below the number of outputs. Raises InputError and DataError for data that do not fit,
    ModelError and UnsupportedError for a model that the profile cannot run.
    """
    from cactus_edge.outputs import outputs

    return outputs(content(model, "model"), x, y, profile)


def agree(model: Source, x: Array, *, runtime: str | Sequence[str] = "tflm", inputs: int | None = None) -> Comparison:
    """Runs the .tflite `model` in real runtimes and compares every output with the interpreter's under the runtime's profile.

    runtime: names of `formats.agree.RUNTIMES`, and "c" for the portable C compiled here. x [N, *input shape] as `run` takes
    it; `inputs`: the first so many of them. Where the runtimes have several profiles, these are compared with the first one.
    Raises InputError for an unknown runtime, InstallError where its package is missing, and as `run` does.
    """
    from cactus_edge.comparison import compare
    from cactus_edge.outputs import require_samples

    names = [runtime] if isinstance(runtime, str) else list(dict.fromkeys(runtime))
    if not names:
        raise InputError("no runtime is named", hint="for example tflm")
    data = content(model, "model")
    require_samples(x)
    if inputs is not None and inputs < 1:
        raise InputError(f"{inputs} inputs, expected at least 1")
    return compare(data, x[:inputs], names)


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote: the .tflite, or the header to include and the sources to compile. `kept`: why it computes the same."""

    files: tuple[Path, ...]
    source_sha256: str
    graph_sha256: str
    kept: str

    def summary(self) -> Pairs:
        """In words."""
        folder = self.files[0].parent
        return [
            ("source", f"sha256 {self.source_sha256}"),
            ("graph", f"sha256 {self.graph_sha256}"),
            ("exact", self.kept),
            ("folder", str(folder)),
            ("wrote", ", ".join(str(path.relative_to(folder)) for path in self.files)),
        ]


def convert(model: Source, *, to: str, out: str | Path, name: str = "") -> Converted:
    """Writes the .tflite `model` into the folder `out` as "tflite" (one file) or "c" (C99 sources), through the integer graph.

    name: of model.tflite, and what a board calls the C model; by default that of the file. What cannot be kept exact is
    refused: UnsupportedError, naming the op. A .tflite is read back and its graph compared; the C computes profile
    "tflm". Raises InputError for an unknown form, InstallError where the .tflite writer's packages are missing.
    """
    from cactus_edge.verify.tflite_read import read_tflite

    if to not in FORMS:
        near = difflib.get_close_matches(to, FORMS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(FORMS)}"
        raise InputError(f"unknown form {to!r}", hint=hint)
    data = content(model, "model")
    stem = "model" if isinstance(model, bytes) else re.sub(r"[^A-Za-z0-9._-]", "-", Path(model).stem)[:32]
    folder = require_folder(Path(out), "--out")
    return FORMS[to](read_tflite(data), sha256(data), folder, name or stem or "model")


def _to_tflite(model: Model, source: str, folder: Path, name: str) -> Converted:
    from cactus_edge.formats.tflite import RUNTIME_METADATA, explicit_padding, write_tflite
    from cactus_edge.verify.tflite_read import read_tflite

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", name):
        raise InputError(f"model name {name!r}: expected 1 to 32 letters, digits, '.', '_' or '-'")
    # The runtime that the source asked for says nothing about the operator versions that are written here.
    metadata = {key: value for key, value in model.metadata.items() if key != RUNTIME_METADATA}
    data = write_tflite(model.graph, metadata=metadata)
    wanted, got = explicit_padding(model.graph).digest(), read_tflite(data).graph.digest()
    if wanted != got:
        raise InternalError("the written .tflite does not mean the graph it was written from", hint="please report it")
    path = folder / f"{name}.tflite"
    write_atomic(path, data)
    return Converted((path,), source, got, "read back: the same integer graph, so the same outputs under every profile")


def _to_c(model: Model, source: str, folder: Path, name: str) -> Converted:
    from cactus_edge.comparison import C_PROFILE
    from cactus_edge.formats.c.write import write_c
    from cactus_edge.ir.arithmetic import profile

    written = write_c(model.graph, profile(C_PROFILE), folder, name=name)
    kept = f"computes profile {C_PROFILE}; blob sha256 {written.digest}"
    return Converted((folder / "model.h", *written.sources), source, model.graph.digest(), kept)


FORMS = {"tflite": _to_tflite, "c": _to_c}
"""What a model can be converted to."""


def content(source: Source, what: str) -> bytes:
    """The bytes themselves, or those of the file. Raises InputError where it cannot be read."""
    if isinstance(source, bytes):
        return source
    path = Path(source)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}", hint="check the path") from error
