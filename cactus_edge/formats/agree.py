"""Does a real runtime compute from a file's bytes what the interpreter computes? Bit for bit, and if not, where first.

A runtime is a row of `RUNTIMES`: its name, the profile it should equal, its package, and how to open a file in it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError, InstallError, MismatchError, ModelError, UnsupportedError
from cactus_edge.formats.litert import Litert
from cactus_edge.formats.onnx.runtime import OrtSession, check_runnable
from cactus_edge.formats.read import AnyModel, graph_for, read_model
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.graph import Graph
from cactus_edge.verify.read import require_format
from cactus_edge.verify.tflite_read import Model

Array = npt.NDArray[Any]

ARENA_DOUBLINGS = 4
"""How often the first, generous arena is doubled before the runtime's refusal is believed."""

TFLM_PAD_RANK, TFLM_CONCAT_RANK, TFLM_CONCAT_INPUTS = 5, 6, 10
"""Axes (batch included) and inputs that TFLM's kernels take. Source: micro/kernels/{pad_common,concatenation}.cc, and the wheel."""

TFLM_SOFTMAX_ROW = 511
"""From 512 equal inputs on the sum reaches 2^28 and gemmlowp's RoundingDivideByPOT is asked for an exponent of 32: it aborts."""


class Session(Protocol):
    """A file opened in a runtime."""

    def run(self, sample: Array) -> Array:
        """The output [*output.shape] for one sample [*input.shape], in the dtypes of the file."""
        ...

    def tensor(self, index: int) -> Array | None:
        """The file's tensor `index` after the last run, batch axis included; needs a session that keeps all tensors.

        None where the file has no such tensor of its own.
        """
        ...


@dataclass(frozen=True)
class Runtime:
    """A runtime at hand. `check(graph)` refuses what it cannot run; `open(data, graph, keep)` gives a Session, in which
    intermediate tensors survive the run with `keep`."""

    profile: str
    package: str
    check: Callable[[Graph], None]
    open: Callable[[bytes, Graph, bool], Session]

    def version(self) -> str:
        """The installed version. Raises InstallError where the package is missing."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            raise InstallError(
                f"the package {self.package} is not installed", hint=f"pip install {self.package}"
            ) from None


@dataclass(frozen=True)
class LayerDifference:
    """The first layer whose output differs although all its inputs agree: its label in the graph, and what was seen there."""

    node: int
    label: str
    sample: int
    mismatches: int
    elements: int
    max_difference: int
    position: tuple[int, ...]
    expected: int
    got: int

    def __str__(self) -> str:
        return (
            f"{self.label}: {self.mismatches} of {self.elements} elements differ by at most {self.max_difference}; input "
            f"{self.sample}, element {list(self.position)}: expected {self.expected}, got {self.got}"
        )


@dataclass(frozen=True)
class Agreement:
    """What `agree` found. `elements` = inputs * output size; `argmax_flips` counts inputs whose first maximum moved."""

    runtime: str
    version: str
    profile: str
    model_sha256: str
    inputs: int
    elements: int
    mismatches: int
    differing_inputs: int
    max_difference: float
    argmax_flips: int
    first_layer: LayerDifference | None

    @property
    def exact(self) -> bool:
        """Whether every output element is equal."""
        return self.mismatches == 0

    def require(self) -> None:
        """Raises MismatchError, naming the first layer that differs, unless `exact`."""
        if not self.exact:
            where = f"; first layer: {self.first_layer}" if self.first_layer else ""
            raise MismatchError(
                f"{self.runtime} {self.version} differs from profile {self.profile!r} in {self.mismatches} of "
                f"{self.elements} output elements ({self.differing_inputs} of {self.inputs} inputs){where}",
                hint="this runtime version is not the profile's; please report the model and both versions",
            )


def agree(data: bytes, x: Array, runtime: str = "tflm") -> Agreement:
    """Runs the file `data` in `runtime` on x [N, *input.shape] and compares with `ir.evaluate`, bit for bit.

    x has the dtype of the file's input; float32 x for a file of codes is quantised as the profile says. Raises ModelError for
    a file that cannot be read, InputError for data that do not fit it, InstallError where the runtime is missing.
    """
    entry = _runtime(runtime)
    version = entry.version()
    rule = profile(entry.profile)
    require_format(data, rule)
    model = read_model(data)
    entry.check(graph_for(model, rule))
    expected = evaluate(model.graph, x, rule)
    samples = _as_file_input(model.graph, x, rule)
    session = open_session(entry, data, model)
    got = np.stack([session.run(sample) for sample in samples]) if len(samples) else expected
    differ = _bits(got) != _bits(expected)
    rows = differ.reshape(len(differ), model.graph.output.size)
    bad = np.flatnonzero(rows.any(1))
    flips = expected.reshape(rows.shape).argmax(1) != got.reshape(rows.shape).argmax(1)
    gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    first = _first_difference(data, model, entry, samples[bad[0]], int(bad[0])) if bad.size else None
    return Agreement(
        runtime,
        version,
        entry.profile,
        model.sha256,
        len(x),
        rows.size,
        int(rows.sum()),
        bad.size,
        float(gap.max(initial=0.0)),
        int(flips.sum()),
        first,
    )


def open_session(entry: Runtime, data: bytes, model: AnyModel, *, keep: bool = False) -> Session:
    """The file in the runtime, for int8 samples even where the file's own ends hold uint8 codes; `keep` as in `Runtime`."""
    session = entry.open(data, model.graph, keep)
    if isinstance(model, Model) and (model.unsigned_input or model.unsigned_output):
        return _Int8Ends(session, model.unsigned_input)
    return session


class _Int8Ends:
    """A session whose file holds uint8 codes at an end, in int8 codes 128 below."""

    def __init__(self, session: Session, unsigned_input: bool) -> None:
        self._session, self._unsigned_input = session, unsigned_input

    def run(self, sample: Array) -> Array:
        return self._lowered(self._session.run(sample.view(np.uint8) ^ 0x80 if self._unsigned_input else sample))

    def tensor(self, index: int) -> Array | None:
        found = self._session.tensor(index)
        return None if found is None else self._lowered(found)

    @staticmethod
    def _lowered(codes: Array) -> Array:
        return (codes ^ 0x80).view(np.int8) if codes.dtype == np.uint8 else codes


def layer_difference(graph: Graph, node: int, sample: int, want: Array, got: Array) -> LayerDifference | None:
    """How the codes `got` of one node [1, *shape] differ from `want`; None where they are equal."""
    differ = got != want
    if not differ.any():
        return None
    position = tuple(int(i) for i in np.argwhere(differ)[0])
    gap = np.abs(got.astype(np.int64) - want.astype(np.int64))
    return LayerDifference(
        node,
        graph.label(node),
        sample,
        int(differ.sum()),
        differ.size,
        int(gap.max()),
        position[1:],
        int(want[position]),
        int(got[position]),
    )


def _runtime(name: str) -> Runtime:
    if name not in RUNTIMES:
        raise InputError(f"unknown runtime {name!r}", hint=f"one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def _as_file_input(graph: Graph, x: Array, rule: Any) -> Array:
    if graph.input.dtype == "float32" and x.dtype != np.float32:
        raise InputError(f"the model takes float32 values, the data are {x.dtype}")
    if graph.input.dtype != "float32" and x.dtype == np.float32:
        quantised: Array = rule.quantize(graph.input).apply(x)
        return quantised
    return x


def _bits(a: Array) -> Array:
    """The array so that `==` compares bits."""
    return a.view(np.uint32) if a.dtype == np.float32 else a


def _first_difference(
    data: bytes, model: AnyModel, entry: Runtime, sample: Array, number: int
) -> LayerDifference | None:
    """Runs one sample keeping every tensor and compares them in execution order; float32 tensors are left out."""
    graph = model.graph
    session = open_session(entry, data, model, keep=True)
    session.run(sample)
    expected = trace(graph, sample[np.newaxis], profile(entry.profile))
    for index, node in enumerate(graph.nodes):
        want = expected[node.output]
        if want is None or model.file_tensors[node.output] < 0:
            continue
        got = session.tensor(model.file_tensors[node.output])
        if got is None:
            continue
        found = layer_difference(graph, index, number, want, got.reshape(want.shape))
        if found is not None:
            return found
    return None


class _Tflm:
    """A file in the tflite-micro wheel, one sample at a time.

    The arena starts from the sizes of all tensors, since an arena far too small crashes the wheel, and doubles while the
    wheel says that it is short.
    """

    def __init__(self, data: bytes, graph: Graph, keep: bool) -> None:
        try:
            from tflite_micro.python.tflite_micro import runtime
        except ImportError as error:
            raise InstallError(
                f"the tflite-micro wheel cannot be imported: {error}", hint="pip install tflite-micro"
            ) from error
        config = (
            runtime.InterpreterConfig.kPreserveAllTensors if keep else runtime.InterpreterConfig.kAllocationRecording
        )
        self._output = graph.output
        arena = _arena(graph, len(data))
        for attempt in range(ARENA_DOUBLINGS + 1):
            try:
                self._interpreter = runtime.Interpreter.from_bytes(
                    data, arena_size=arena << attempt, intrepreter_config=config
                )
                return
            except RuntimeError as error:
                refusal = error
            except (struct.error, TypeError, ValueError, IndexError) as error:
                # The wheel's Python half reads names and descriptions too, and looks wherever they point.
                raise ModelError(f"the tflite-micro wheel cannot parse the model: {error}") from error
        raise ModelError(
            f"the tflite-micro wheel does not accept the model, even with {arena << ARENA_DOUBLINGS} bytes of arena: {refusal}",
            hint="its reason stands on stderr, above",
        ) from refusal

    def run(self, sample: Array) -> Array:
        self._interpreter.set_input(np.ascontiguousarray(sample)[np.newaxis], 0)
        self._interpreter.invoke()
        output: Array = self._interpreter.get_output(0)
        return output.reshape(self._output.shape)

    def tensor(self, index: int) -> Array:
        found: Array = self._interpreter.GetTensor(index, 0)["tensor_data"]
        return found


def _arena(graph: Graph, file_bytes: int) -> int:
    """A generous first arena: all activations at once, scratch of the largest again, and the runtime's own structures."""
    sizes = [t.bytes for t in graph.tensors]
    return (1 << 18) + 2 * sum(sizes) + 8 * max(sizes) + 2048 * len(graph.nodes) + file_bytes // 4


def check_tflm(graph: Graph) -> None:
    """Raises UnsupportedError, naming the op, where TFLM's kernels refuse or abort although the profile defines the result.

    Shown by running the wheel: everything else that `spec.check` and the profile admit is accepted, among it int8
    FULLY_CONNECTED per channel, grouped CONV_2D, dilation, and 5 or more axes in the remaining ops.
    """
    for index, node in enumerate(graph.nodes):
        shape = graph.tensors[node.output].shape
        rank, reason = len(shape) + 1, ""
        match node.op:
            case ops.Pad() if rank > TFLM_PAD_RANK:
                reason = f"pads {rank} axes, at most {TFLM_PAD_RANK}"
            case ops.Concat() if rank > TFLM_CONCAT_RANK:
                reason = f"joins tensors of {rank} axes, at most {TFLM_CONCAT_RANK}"
            case ops.Concat() if len(node.inputs) > TFLM_CONCAT_INPUTS:
                reason = f"joins {len(node.inputs)} tensors, at most {TFLM_CONCAT_INPUTS}"
            case ops.Softmax() if max(shape[-1:], default=1) > TFLM_SOFTMAX_ROW:
                reason = f"normalises rows of {shape[-1]}, at most {TFLM_SOFTMAX_ROW}"
        if reason:
            raise UnsupportedError(f"{graph.label(index)}: TFLM cannot run it: it {reason} are possible")


def _litert(resolver: str) -> Runtime:
    name = {"BUILTIN": "xnnpack", "BUILTIN_WITHOUT_DEFAULT_DELEGATES": "builtin", "BUILTIN_REF": "ref"}[resolver]
    # LiteRT checks a file itself; no limit beyond the profile's own was met.
    return Runtime(f"litert-{name}", "ai-edge-litert", lambda graph: None, partial(Litert, resolver=resolver))


RUNTIMES: dict[str, Runtime] = {
    "tflm": Runtime("tflm", "tflite-micro", check_tflm, _Tflm),
    "litert": _litert("BUILTIN"),
    "litert-xnnpack": _litert("BUILTIN"),
    "litert-builtin": _litert("BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
    "litert-ref": _litert("BUILTIN_REF"),
    "onnxruntime": Runtime("ort-x86", "onnxruntime", check_runnable, OrtSession),
}
"""Every runtime that a file can be compared with. `litert` is what LiteRT does by default, which is `litert-xnnpack`."""
