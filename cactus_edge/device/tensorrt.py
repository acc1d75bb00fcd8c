"""TensorRT on a device through its own tool, trtexec: the command lines, and what its answers say.

One engine is built, from the file alone and strongly typed, with batch 1 as the shape it is tuned for; that engine then runs
all inputs as one batch, and single inputs for their times. Every command is a list of words; a name from a file goes into one
only if no shell and no option of trtexec can read it otherwise.

What a run can show of the profile `tensorrt`'s assumption: the precision of each layer, from the engine's own report, and that
no output lies outside its envelope. Formats: NVIDIA/TensorRT samples/common/{sampleReporting,sampleEngines}.cpp (8.5 to 10),
layer reports in NVIDIA/TensorRT issues 3737 and 4020, summaries in 4177 (10) and 3083 (8.6).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DeviceError, DeviceLacksError, InputError

Array = npt.NDArray[Any]

TRTEXEC = ("/usr/src/tensorrt/bin/trtexec", "/usr/bin/trtexec", "/usr/local/bin/trtexec")
"""Where JetPack and the packages put it."""

OLDEST = (10, 0)
"""Before it, NVIDIA documents weights of quantised files as float32 behind a QuantizeLinear; ours are int8."""

WARMUP_MS, DURATION_S = 500, 10

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_BANNER = re.compile(r"\[TensorRT v(\d{4,6})\]")
_METRIC = re.compile(
    r"\[I\] (Latency|Enqueue Time|H2D Latency|GPU Compute Time|D2H Latency|End-to-End Host Latency): (min = .*)$"
)
_SPARSE = (
    re.compile(r"\(Sparsity\) Layers eligible for sparse math:(.*)"),
    re.compile(r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)"),
)
_FIGURE = re.compile(r"(min|max|mean|median|percentile\((\d+(?:\.\d+)?)%\)) = ([0-9.eE+-]+) ms")
_TYPES = {
    "int8": "int8",
    "fp32": "float32",
    "float": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp8": "fp8",
    "int4": "int4",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}
"""Words for types in an engine's report, in lower case."""

ADMITTED = frozenset({"int8", "float32", "int32", "int64", "bool"})
"""Types of values that the assumption leaves room for; the last three carry shapes, never activations."""


@dataclass(frozen=True)
class Model:
    """A file on the device and its one input: name, shape of a sample as the file stores it (channel first)."""

    path: str
    input: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.input):
            raise InputError(
                f"the model's input is called {self.input!r}, which trtexec's options cannot carry",
                hint="give it a name of letters, digits, '_', '-' and '.'",
            )

    def shaped(self, batch: int) -> str:
        """The input's shape as trtexec's options take it."""
        return f"{self.input}:{'x'.join(map(str, (batch, *self.shape)))}"


def build_command(trtexec: str, model: Model, engine: str, largest_batch: int, sparse: bool = False) -> list[str]:
    """Builds the engine `engine`, tuned for batch 1, for batches of 1 to largest_batch. No TF32, no other precision than the file's.

    sparse: kernels that skip zeros are tried as well, on layers whose weights have them where they must be.
    """
    return [
        trtexec,
        f"--onnx={model.path}",
        f"--saveEngine={engine}",
        "--stronglyTyped",
        "--noTF32",
        "--profilingVerbosity=detailed",
        f"--minShapes={model.shaped(1)}",
        f"--optShapes={model.shaped(1)}",
        f"--maxShapes={model.shaped(largest_batch)}",
        *(["--sparsity=enable"] if sparse else []),
        "--skipInference",
    ]


def outputs_command(trtexec: str, model: Model, engine: str, inputs: str, batch: int, outputs: str) -> list[str]:
    """Runs the raw float32 file `inputs` [batch, *shape] once and writes its outputs as JSON to `outputs`."""
    return [
        trtexec,
        f"--loadEngine={engine}",
        f"--shapes={model.shaped(batch)}",
        f"--loadInputs={model.input}:{inputs}",
        f"--exportOutput={outputs}",
        "--iterations=1",
        "--warmUp=0",
        "--duration=0",
    ]


def times_command(trtexec: str, model: Model, engine: str, times: str, layers: str) -> list[str]:
    """Times single inferences after a warm-up, and writes the report of the layers: only with shapes set it is complete."""
    return [
        trtexec,
        f"--loadEngine={engine}",
        f"--shapes={model.shaped(1)}",
        f"--warmUp={WARMUP_MS}",
        f"--duration={DURATION_S}",
        "--percentile=90,99",
        "--useSpinWait",
        f"--exportTimes={times}",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={layers}",
    ]


def parse_version(log: str) -> tuple[int, int, int]:
    """TensorRT's version from trtexec's first line, "[TensorRT v100300]" for 10.3.0, "v8502" for 8.5.2. DeviceError without one."""
    match = _BANNER.search(log)
    if match is None:
        raise DeviceError("trtexec names no version of TensorRT", hint="is it NVIDIA's trtexec?")
    number = int(match[1])
    if len(match[1]) == 4:
        return number // 1000, number // 100 % 10, number % 100
    return number // 10_000, number // 100 % 100, number % 100


@dataclass(frozen=True)
class SparseMath:
    """Layers whose weights let sparse kernels run them, and those for which TensorRT took one: it takes what is faster."""

    eligible: tuple[str, ...]
    taken: tuple[str, ...]

    def words(self) -> str:
        """For people."""
        return f"taken for {len(self.taken)} of {len(self.eligible)} eligible layers: {', '.join(self.taken) or 'none'}"


def parse_sparse(log: str) -> SparseMath | None:
    """What the log of a build with --sparsity=enable says of it (TensorRT developer guide, "Structured Sparsity"); None for nothing."""
    found = [
        match and tuple(filter(None, re.split(r",\s*", match[1].strip()))) for match in (p.search(log) for p in _SPARSE)
    ]
    return SparseMath(*(names or () for names in found)) if any(names is not None for names in found) else None


def require_version(version: tuple[int, int, int]) -> None:
    """Raises DeviceLacksError for a TensorRT that does not take files with int8 weights."""
    if version[:2] < OLDEST:
        raise DeviceLacksError(
            f"TensorRT {'.'.join(map(str, version))} takes no quantised file with int8 weights, expected {OLDEST[0]} or newer",
            hint="JetPack 6.1 or newer has it",
        )


@dataclass(frozen=True)
class Figures:
    """One line of trtexec's performance summary, in ms; percentiles by number: 90.0 -> ms."""

    min_ms: float
    max_ms: float
    mean_ms: float
    median_ms: float
    percentiles: Mapping[float, float]


def parse_summary(log: str) -> dict[str, Figures]:
    """The performance summary of a log, by name ("GPU Compute Time" ...). DeviceError where a line is not of the known form."""
    found: dict[str, Figures] = {}
    for line in log.splitlines():
        match = _METRIC.search(line)
        if match is None:
            continue
        figures = {key: float(value) for key, _, value in _FIGURE.findall(match[2])}
        percentiles = {float(p): float(value) for _, p, value in _FIGURE.findall(match[2]) if p}
        missing = {"min", "max", "mean", "median"} - set(figures)
        if missing:
            raise DeviceError(f"trtexec's summary has no {', '.join(sorted(missing))}: {line.strip()}")
        least, most, mean, median = (figures[key] for key in ("min", "max", "mean", "median"))
        found[match[1]] = Figures(least, most, mean, median, percentiles)
    if "GPU Compute Time" not in found:
        raise DeviceError("trtexec printed no performance summary", hint="see its log: the engine did not run")
    return found


@dataclass(frozen=True)
class Times:
    """Times of single inferences [N] in ms: of the kernels, and from the start of the input's copy to the end of the output's."""

    compute_ms: Array
    latency_ms: Array

    def percentile(self, kind: str, q: float) -> float:
        """The q-th percentile of "compute" or "latency"."""
        return float(np.percentile(self.compute_ms if kind == "compute" else self.latency_ms, q))


def parse_times(text: str) -> Times:
    """What --exportTimes wrote. DeviceError where it is not that."""
    rows = _json(text, "times")
    try:
        columns = [[float(row[key]) for row in rows] for key in ("computeMs", "latencyMs")]
    except (TypeError, KeyError, ValueError):
        raise DeviceError("trtexec's times have another form than expected", hint="is it another version?") from None
    if not rows or not all(math.isfinite(t) and t >= 0 for column in columns for t in column):
        raise DeviceError("trtexec's times are empty, negative or not finite")
    return Times(*(np.array(column) for column in columns))


def parse_output(text: str, name: str, batch: int, shape: Sequence[int]) -> Array:
    """The values of output `name` in what --exportOutput wrote, float64 [batch, *shape]. DeviceError where they are not there.

    They are decimals of six digits: enough for `codes_of`, not for comparing floats.
    """
    entries = _json(text, "outputs")
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"name": str() as found, "dimensions": str() as dims, "values": list() as values} if found == name:
                want = (batch, *shape)
                got = tuple(int(d) for d in dims.split("x")) if re.fullmatch(r"\d+(x\d+)*", dims) else ()
                if got != want or len(values) != math.prod(want):
                    raise DeviceError(f"output {name!r} has shape {dims} and {len(values)} values, expected {want}")
                if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                    raise DeviceError(f"output {name!r} holds values that are no finite numbers")
                return np.array(values, np.float64).reshape(want)
    raise DeviceError(f"trtexec wrote no output {name!r}")


def codes_of(values: Array, scale: float) -> Array:
    """The int8 codes whose dequantised values `values` are, int64. DeviceError where one lies between codes: not quantised there."""
    steps = values / scale
    codes = np.rint(steps)
    # Six digits of a code up to 128.
    off = np.abs(steps - codes) > 1e-3
    if off.any() or (np.abs(codes) > 128).any():
        at = tuple(int(i) for i in np.argwhere(off | (np.abs(codes) > 128))[0])
        raise DeviceError(
            f"output {list(at)} is {values[at]:g}, no multiple of the output's scale {scale:g} in int8",
            hint="the engine dropped the last QuantizeLinear: this is not the network of the file",
        )
    found: Array = codes.astype(np.int64)
    return found


@dataclass(frozen=True)
class Layer:
    """A layer of an engine. Types are of `_TYPES`, "" where the report does not say; weights: None where there are none."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: str | None
    nodes: tuple[str, ...]


def parse_layers(text: str) -> tuple[Layer, ...]:
    """What --exportLayerInfo wrote with detailed verbosity. DeviceError where it holds names only, or is something else."""
    report = _json(text, "layers")
    rows = report.get("Layers") if isinstance(report, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DeviceError("trtexec's report lists no layers")
    if any(isinstance(row, str) for row in rows):
        raise DeviceError(
            "trtexec's report holds names of layers only", hint="build with --profilingVerbosity=detailed"
        )
    return tuple(_layer(row) for row in rows)


def _layer(row: Any) -> Layer:
    if not isinstance(row, dict) or not isinstance(row.get("Name"), str):
        raise DeviceError("trtexec's report has a layer without a name")
    inputs, outputs = (
        tuple(_type(t) for t in ports if isinstance(t, dict)) if isinstance(ports := row.get(key), list) else ()
        for key in ("Inputs", "Outputs")
    )
    stored = row.get("Weights")
    weights = _word(str(stored.get("Type", ""))) if isinstance(stored, dict) else None
    metadata = str(row.get("Metadata", ""))
    nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata))
    kind, tactic = (str(row.get(key, "")) for key in ("LayerType", "TacticName"))
    return Layer(row["Name"], kind, tactic, inputs, outputs, weights, nodes)


def _type(tensor: Mapping[str, Any]) -> str:
    """The type of a tensor: "Datatype" alone, or the one word for a type in "Format/Datatype"."""
    return _word(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""))


def _word(text: str) -> str:
    found = {_TYPES[word] for word in re.findall(r"[a-z0-9]+", text.lower()) if word in _TYPES}
    return found.pop() if len(found) == 1 else ""


@dataclass(frozen=True)
class Precision:
    """Whether an engine's report agrees with the assumption. layers: a line for each that does not, or does not say."""

    int8: int
    weighted: int
    contradictions: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every weighted node was found in int8 and nothing speaks against the assumption."""
        return not self.contradictions and not self.unknown


def precision(layers: Sequence[Layer], nodes: Sequence[str]) -> Precision:
    """Looks each weighted ONNX node of the file, by name, up in the engine's layers, and every type in the engine."""
    against, unknown, int8 = [], [], 0
    for layer in layers:
        odd = sorted({t for t in (*layer.inputs, *layer.outputs) if t and t not in ADMITTED})
        if odd:
            against.append(f"{layer.name}: holds {', '.join(odd)}")
    for node in nodes:
        if not node:
            unknown.append("a layer without a name in the file cannot be looked up in the engine")
            continue
        runs = [x for x in layers if node in x.nodes or node in re.split(r" [+|]+ ", x.name)]
        runs = [x for x in runs if x.weights is not None] or runs
        if len(runs) != 1:
            unknown.append(f"{node}: {len(runs)} layers of the engine name it")
            continue
        layer = runs[0]
        first = layer.inputs[0] if layer.inputs else ""
        if first == "int8" and layer.weights in ("int8", None):
            if layer.weights is None:
                unknown.append(f"{node}: the report does not say which weights {layer.name} has")
            else:
                int8 += 1
        elif not first or layer.weights == "":
            unknown.append(f"{node}: the report does not say which types {layer.name} has")
        else:
            against.append(f"{node}: runs on {first} inputs with {layer.weights or 'other'} weights")
    return Precision(int8, len(nodes), tuple(against), tuple(unknown))


@dataclass(frozen=True)
class EnvelopeCheck:
    """Device codes against their envelopes: outputs with a code outside, and those with a choice inside."""

    outputs: int
    outside: int
    open: int
    first: str

    @property
    def holds(self) -> bool:
        """Whether no code lies outside."""
        return self.outside == 0


def check_envelope(codes: Array, low: Array, high: Array) -> EnvelopeCheck:
    """codes, low, high integers [N, *shape]: which outputs lie between their ends. InputError where the shapes differ."""
    if not codes.shape == low.shape == high.shape:
        raise InputError(f"codes of shape {codes.shape} against envelopes of {low.shape} and {high.shape}")
    flat = [a.reshape(len(a), -1) for a in (codes, low, high)]
    bad = (flat[0] < flat[1]) | (flat[0] > flat[2])
    first = ""
    if bad.any():
        i, j = (int(k) for k in np.argwhere(bad)[0])
        first = f"input {i}, output {j}: code {flat[0][i, j]}, the envelope is {flat[1][i, j]} to {flat[2][i, j]}"
    return EnvelopeCheck(len(codes), int(bad.any(1).sum()), int((flat[1] < flat[2]).any(1).sum()), first)


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"trtexec's {what} are no JSON: {error}", hint="was it interrupted?") from None
