"""The verbs for any int8 file, as functions: inspect, run, agree, convert. Each imports what it needs when it is called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.errors import InputError, InternalError, UnsupportedError
from cactus_edge.resources import require_file, require_folder, sha256, write_atomic

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.comparison import Comparison
    from cactus_edge.formats.read import AnyModel
    from cactus_edge.inspection import Inspection
    from cactus_edge.ir.graph import Graph
    from cactus_edge.outputs import Outputs
    from cactus_edge.verify.runtimes import FileFormat

    Array = npt.NDArray[Any]

Source = bytes | str | Path
Pairs = list[tuple[str, str]]


def inspect(model: Source) -> Inspection:
    """What the file `model`, .tflite or .onnx, holds, and which profiles can run it; nothing is executed, numpy is enough.

    Raises InputError for a file that is not there, ModelError for one that is malformed, UnsupportedError, naming the
    operator and its index, for one that uses what the integer graph cannot express.
    """
    from cactus_edge.inspection import inspect_model

    return inspect_model(content(model, "model"))


def run(model: Source, x: Array, y: Array | None = None, *, profile: str = "") -> Outputs:
    """The exact outputs of the file `model`, .tflite or .onnx, by the interpreter: what the profile's runtime computes, bit for bit.

    profile: by default "tflm" for .tflite, "ort-x86" for .onnx. x [N, *input shape], images channel last whatever the file:
    codes of its type, or float32 in the units of the data, quantised as the profile does it. y: the label of
    each sample, an integer below the number of outputs. Raises InputError and DataError for data that do not fit,
    ModelError and UnsupportedError for a model that the profile cannot run.
    """
    from cactus_edge.outputs import outputs

    data = content(model, "model")
    return outputs(data, x, y, profile or default_profile(data))


def agree(model: Source, x: Array, *, runtime: str | Sequence[str] = "", inputs: int | None = None) -> Comparison:
    """Runs the file `model`, .tflite or .onnx, in real runtimes and compares every output with the interpreter's under their profiles.

    runtime: names of `formats.agree.RUNTIMES`, and "c" for the portable C compiled here; by default "tflm" for .tflite,
    "onnxruntime" for .onnx. x [N, *input shape] as `run` takes
    it; `inputs`: the first so many of them. Where the runtimes have several profiles, these are compared with the first one.
    Raises InputError for an unknown runtime, InstallError where its package is missing, and as `run` does.
    """
    from cactus_edge.comparison import compare
    from cactus_edge.outputs import require_samples
    from cactus_edge.verify.read import format_of

    data = content(model, "model")
    if runtime == "":
        runtime = DEFAULTS[format_of(data)][1]
    names = [runtime] if isinstance(runtime, str) else list(dict.fromkeys(runtime))
    if not names:
        raise InputError("no runtime is named", hint="for example tflm")
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
    """Writes the file `model`, .tflite or .onnx, into the folder `out` as "tflite" or "onnx" (one file) or "c" (C99 sources).

    name: of the written file, and what a board calls the C model; by default that of `model`. Through the integer graph: what
    is written is read back and its graph compared, and `Converted.kept` names the profiles under which it was shown exact.
    Another format is another arithmetic: weights, scales and zero points stay, roundings become those of the runtimes that
    read it. What no such profile computes is refused: UnsupportedError, naming the op. Raises InputError for an unknown
    form, InstallError where the writer's packages are missing.
    """
    from cactus_edge.formats.c.write import c_name
    from cactus_edge.formats.read import read_model

    if to not in FORMS:
        near = difflib.get_close_matches(to, FORMS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(FORMS)}"
        raise InputError(f"unknown form {to!r}", hint=hint)
    data = content(model, "model")
    folder = require_folder(Path(out), "--out")
    chosen = name or ("model" if isinstance(model, bytes) else c_name(Path(model).stem))
    if to != "c":
        require_file(_file(folder, chosen, to), "--out", (model,))
    return FORMS[to](read_model(data), sha256(data), folder, chosen)


def _to_tflite(model: AnyModel, source: str, folder: Path, name: str) -> Converted:
    from cactus_edge.formats.tflite import RUNTIME_METADATA, explicit_padding, write_tflite

    # The runtime that the source asked for says nothing about the operator versions that are written here.
    metadata = {key: value for key, value in model.metadata.items() if key != RUNTIME_METADATA}
    kept = _exact_under(model.graph, "tflite")
    data = write_tflite(model.graph, metadata=metadata)
    return _written(data, explicit_padding(model.graph), source, _file(folder, name, "tflite"), kept)


def _to_onnx(model: AnyModel, source: str, folder: Path, name: str) -> Converted:
    from cactus_edge.formats.onnx import onnx_form, write_onnx
    from cactus_edge.formats.tflite import CONVERSION_METADATA, RUNTIME_METADATA

    own = (RUNTIME_METADATA, CONVERSION_METADATA)
    metadata = {key: value for key, value in model.metadata.items() if key not in own}
    wanted = onnx_form(model.graph)
    kept = _exact_under(wanted, "onnx")
    return _written(write_onnx(model.graph, metadata=metadata), wanted, source, _file(folder, name, "onnx"), kept)


def _to_c(model: AnyModel, source: str, folder: Path, name: str) -> Converted:
    from cactus_edge.comparison import C_PROFILE
    from cactus_edge.formats.c.write import write_c
    from cactus_edge.ir.arithmetic import profile

    written = write_c(model.graph, profile(C_PROFILE), folder, name=name)
    kept = f"computes profile {C_PROFILE}; blob sha256 {written.digest}"
    return Converted((folder / "model.h", *written.sources), source, model.graph.digest(), kept)


FORMS = {"tflite": _to_tflite, "onnx": _to_onnx, "c": _to_c}
"""What a model can be converted to."""


def _file(folder: Path, name: str, form: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", name):
        raise InputError(f"model name {name!r}: expected 1 to 32 letters, digits, '.', '_' or '-'")
    return folder / f"{name}.{form}"


def _exact_under(graph: Graph, form: str) -> str:
    """Which profiles compute `graph` from a file of this form, in words. Raises UnsupportedError, with the first one's reason, for none."""
    from cactus_edge.ir.arithmetic import PROFILES
    from cactus_edge.ir.lowering import lower

    able, refusals = [], []
    for name, rules in PROFILES.items():
        if rules.reads == form:
            try:
                lower(graph, rules)
            except UnsupportedError as error:
                refusals.append(error)
            else:
                able.append(name)
    if not able:
        raise refusals[0]
    return (
        f"read back: the same integer graph; exact under the profiles {', '.join(able)}, each with roundings of its own"
    )


def _written(data: bytes, wanted: Graph, source: str, path: Path, kept: str) -> Converted:
    """Writes `data` once it is read back as the graph `wanted`."""
    from cactus_edge.formats.read import read_model

    got = read_model(data).graph.digest()
    if got != wanted.digest():
        raise InternalError(
            f"the written {path.suffix} does not mean the graph it was written from", hint="please report it"
        )
    write_atomic(path, data)
    return Converted((path,), source, got, kept)


DEFAULTS = {"tflite": ("tflm", "tflm"), "onnx": ("ort-x86", "onnxruntime")}
"""By file format: the profile and the runtime that are meant where none is named."""


def default_profile(data: bytes) -> str:
    """The profile that is meant where none is named: by the format of the file `data`."""
    from cactus_edge.verify.read import format_of

    return DEFAULTS[format_of(data)][0]


def file_formats() -> dict[str, FileFormat]:
    """What can be certified, by the name that `verify.read.format_of` gives it."""
    from cactus_edge.formats.c.certified import TFLITE
    from cactus_edge.formats.onnx.certified import ONNX

    return {form.name: form for form in (TFLITE, ONNX)}


def content(source: Source, what: str) -> bytes:
    """The bytes themselves, or those of the file. Raises InputError where it cannot be read."""
    if isinstance(source, bytes):
        return source
    path = Path(source)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}", hint="check the path") from error
