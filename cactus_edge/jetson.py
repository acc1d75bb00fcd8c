"""The chain for a Jetson: a symmetric QDQ ONNX file under TensorRT's rules, certified under its conditional profile.

Two files hold one integer network. `model.onnx` is TensorRT's: float32 biases, ReLU on the sum, where TensorRT fuses it.
`model-ort.onnx` says the same as ONNX Runtime's integer kernels take it; it is run here, bit for bit against the interpreter, and,
where the processor allows, has a certificate of its own that assumes nothing. What TensorRT computes is measured on the device.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.board import Options
from cactus_edge.chain import METADATA, Chain
from cactus_edge.computer import Host, channel_first
from cactus_edge.errors import InputError, TargetError, UnsupportedError
from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.formats.onnx.certified import ONNX
from cactus_edge.formats.onnx.runtime import PROFILE as HOST_PROFILE
from cactus_edge.formats.onnx.runtime import OrtSession, check_runnable
from cactus_edge.formats.onnx.tensorrt import RULES, WEIGHTED, require_tensorrt
from cactus_edge.formats.zeros import zeros
from cactus_edge.gains import require_rows
from cactus_edge.ir.arithmetic import profile as named_profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.lowering import lower
from cactus_edge.pipeline import build_chain
from cactus_edge.progress import SILENT, Progress
from cactus_edge.recipe import Recipe
from cactus_edge.resources import sha256, write_atomic
from cactus_edge.steps import Advance, Result
from cactus_edge.verify.interval import propagate
from cactus_edge.verify.read import format_of
from cactus_edge.verify.regions import point_boxes

if TYPE_CHECKING:
    from cactus_edge.bundle import Built
    from cactus_edge.device.jetson_work import JetsonReport, Way, Work
    from cactus_edge.device.targets import JetsonTarget
    from cactus_edge.verify.runtimes import FileFormat

Array = npt.NDArray[Any]

TWIN, TWIN_CERTIFICATE = "model-ort.onnx", f"certificate-{HOST_PROFILE}.json"

REPORT = "device.json"
"""What a run on the device leaves."""


def build(
    recipe: Recipe, folder: Path, options: Options, progress: Progress = SILENT, host: Host | None = None
) -> Built:
    """Builds `recipe`, quantised symmetrically, for the Jetson `options.target`; runs it at `host`, where there is one.

    Raises TargetError where the Jetson's TensorRT is too old.
    """
    symmetric = replace(recipe, quantise=replace(recipe.quantise, symmetric=True))
    return build_chain(JetsonChain(symmetric, folder, options, host), progress)


class JetsonChain(Chain):
    """`Chain` for a Jetson."""

    model_name = "model.onnx"
    form = ONNX
    twins = (TWIN,)
    images: tuple[str, ...] = ()

    def __init__(self, recipe: Recipe, folder: Path, options: Options, host: Host | None = None) -> None:
        super().__init__(recipe, folder, options)
        self.host = host
        require_recent(self.target)

    @cached_property
    def target(self) -> JetsonTarget:  # type: ignore[override]
        """The Jetson."""
        from cactus_edge.device.targets import JetsonTarget, load_target

        target = load_target(self.options.target)
        assert isinstance(target, JetsonTarget)
        return target

    @cached_property
    def program(self) -> Program:
        """The integer program of model.onnx, read back from its bytes; its requantisations are envelopes."""
        return lower(ONNX.read(self.model_bytes, self.profile), self.profile)

    @cached_property
    def runs_here(self) -> str:
        """Why the twin cannot be run on this processor, or ""."""
        try:
            check_runnable(read_onnx(self.twin).graph)
        except UnsupportedError as error:
            return error.message
        return ""

    @property
    def twin(self) -> bytes:
        """model-ort.onnx."""
        return (self.folder / TWIN).read_bytes()

    @property
    def certificates(self) -> tuple[str, ...]:  # type: ignore[override]
        """The certificates that this processor can make."""
        return ("certificate.json",) if self.runs_here else ("certificate.json", TWIN_CERTIFICATE)

    @cached_property
    def board(self) -> Result:
        """What a run depends on besides the model; who and where the device is stays out of the bundle."""
        address = self.host.address if self.host else ""
        return {"target": self.target.name, "host": sha256(address.encode()), "n": self.options.device_inputs}

    def compress(self, advance: Advance) -> Result:
        """Calibrates and quantises symmetrically; writes both files and the samples that they are certified for."""
        graph = self.quantised()
        require_rows(self.recipe, graph)
        metadata = {METADATA: self._metadata()}
        data = write_onnx(graph, metadata=metadata, bias="float32", relu="sum")
        write_atomic(self.folder / self.model_name, data)
        write_atomic(self.folder / TWIN, write_onnx(graph, metadata=metadata))
        return self.compressed(data, graph)

    def lower(self, advance: Advance) -> Result:
        """Checks TensorRT's rules on the file's bytes, and that its twin is the same network."""
        require_tensorrt(self.model_bytes)
        graph, twin = self.program.graph.digest(), read_onnx(self.twin).graph.digest()
        if graph != twin:
            raise UnsupportedError(f"{self.model_name} holds the network {graph}, {TWIN} another one: {twin}")
        return {"blob": "", "model": sha256(self.model_bytes), "graph": graph, "rules": len(RULES)}

    def lowered(self, result: Result) -> str:
        """The result of `lower` in words."""
        return f"obeys TensorRT's {result['rules']} rules; network {result['graph'][:16]}..., the same in {TWIN}"

    def agree(self, advance: Advance) -> Result:
        """Compares the twin in ONNX Runtime with the interpreter, bit for bit; nothing where this processor is not the profile's."""
        if self.runs_here:
            return {"runtimes": [], "why": self.runs_here}
        from importlib import metadata

        graph, rule = read_onnx(self.twin).graph, named_profile(HOST_PROFILE)
        x = self.real_inputs
        expected = evaluate(graph, x, rule)
        got = OrtSession(self.twin, graph, False).run_batch(x)
        differ = (got.view(np.uint32) != expected.view(np.uint32)).reshape(len(x), -1).any(1)
        name = f"onnxruntime {metadata.version('onnxruntime')} ({TWIN})"
        if differ.any():
            raise UnsupportedError(
                f"{name} differs from profile {HOST_PROFILE!r} on {int(differ.sum())} of {len(x)} inputs"
            )
        return {"runtimes": [{"name": name, "inputs": len(x), "mismatches": 0}]}

    def certify(self, advance: Advance) -> Result:
        """As `Chain.certify`, under the condition; and the twin, without one, where this processor runs it."""
        result = super().certify(advance)
        if not self.runs_here:
            certificate = self.certificate(self.twin, HOST_PROFILE, ONNX)
            write_atomic(self.folder / TWIN_CERTIFICATE, certificate.to_bytes())
            count = f"{int(certificate.decision.certified.sum()):,} of {len(self.test.y):,} certified"
            result["twins"] = [(TWIN, f"{count} under profile {HOST_PROFILE}, unconditionally: {TWIN_CERTIFICATE}")]
        return result

    @property
    def judged_file(self) -> tuple[str, FileFormat, str]:
        """The twin: TensorRT's own requantisation is an envelope, which gives no probabilities."""
        return TWIN, ONNX, HOST_PROFILE

    def run(self, advance: Advance) -> Result:
        """Runs the file in TensorRT on the device at `host`; nothing without one."""
        if self.host is None:
            return {"measured": False}
        x = self.test.x[: min(self.options.device_inputs, len(self.test.y))]
        report = run_on_jetson(self.model_bytes, x, self.target, self.host, self.folder, advance)
        return device_rows(report) | {"files": [REPORT]}


def require_recent(target: JetsonTarget) -> None:
    """Raises TargetError where the newest TensorRT for the Jetson is too old."""
    from cactus_edge.device.tensorrt import OLDEST

    if tuple(map(int, target.tensorrt.split("."))) < OLDEST:
        raise TargetError(
            f"{target.title}: JetPack {target.jetpack} is its last, whose TensorRT {target.tensorrt} takes no "
            "quantised file with int8 weights",
            hint="--target jetson for an Orin",
        )


def run_on_jetson(
    data: bytes, x: Array, target: JetsonTarget, host: Host, folder: Path, advance: Advance, way: Way = "auto"
) -> JetsonReport:
    """Runs the file on float32 x [N, *input], images channel last, in TensorRT at `host`; its report stays in `folder`, as `REPORT`."""
    from cactus_edge.device.jetson_run import measure
    from cactus_edge.device.ssh import SshAddress

    require_recent(target)
    work = work_for(data, x, target)
    address = SshAddress.parse(host.address)
    report = measure(target, address, work, way=way, password=host.password, progress=advance)
    write_atomic(folder / REPORT, json.dumps(report.to_json(), sort_keys=True, indent=1) + "\n")
    return report


def work_for(data: bytes, x: Array, target: JetsonTarget) -> Work:
    """The file, the inputs as it takes them, and the envelope of each of their outputs.

    Raises UnsupportedError for a file that breaks TensorRT's rules, InputError for inputs of another type or shape.
    """
    from cactus_edge.device.jetson_work import Work
    from cactus_edge.formats.onnx.read.proto import parse

    if format_of(data) != "onnx":
        raise UnsupportedError("TensorRT runs .onnx files", hint="cactus-edge build --target jetson writes one")
    require_tensorrt(data)
    rules = named_profile(target.profile)
    program, file = lower(ONNX.read(data, rules), rules), parse(data).graph
    if x.dtype != np.float32 or x.shape[1:] != program.graph.input.shape:
        wanted = f"{program.graph.input.dtype} {program.graph.input.shape}"
        raise InputError(
            f"the model takes {wanted}, the data are {x.dtype} {x.shape[1:]}", hint="pass this model's data"
        )
    low, high = propagate(program, *point_boxes(program, x))[program.output]
    sparse = any(z.two_of_four for z in zeros(program.graph)) and bool(target.kernels.sparse)
    nodes = tuple(n.name for n in file.node if n.op_type in WEIGHTED)
    scale = program.output_tensor.scale
    return Work(
        data,
        file.input[0].name,
        file.output[0].name,
        channel_first(x),
        scale,
        channel_first(low),
        channel_first(high),
        nodes,
        sparse,
    )


def device_rows(report: JetsonReport) -> dict[str, Any]:
    """A run as the JSON values of a step: lines for people, and what contradicts the certificate's condition."""
    e = report.envelope
    inside = (
        f"{e.outputs - e.outside} of {e.outputs} inputs in their envelopes; {e.open} of these leave TensorRT a choice"
    )
    layers = (
        f"{report.int8_layers} of {report.weighted_layers} convolutions and dense layers in int8, as the engine reports"
    )
    unknown = "; ".join(report.unknown)
    sparse = [] if report.sparse is None else [("Sparse kernels", report.sparse.words())]
    rows = [
        ("Device", ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in report.device.items())),
        ("Runtime", report.runtime),
        ("Outputs", inside),
        ("Layers", f"{layers}; not told: {unknown}" if unknown else layers),
        *sparse,
        ("Latency", f"{_spread(report.latency_ms)}, {report.runs} runs"),
        ("Kernels", _spread(report.compute_ms)),
        ("Meanwhile", "unknown: tegrastats said nothing" if report.load is None else report.load.words()),
    ]
    findings = [f"The run on the device breaks the certificate's condition: {problem}." for problem in report.problems]
    result = {"measured": True, "rows": rows, "findings": findings, "text": f"{inside}; {layers}"}
    return result | ({"latency_us": 1000 * report.latency_ms["median"]} if report.latency_ms else {})


def _spread(ms: dict[str, float]) -> str:
    return f"{ms['median']:.4g} ms median, {ms['p90']:.4g} p90, {ms['p99']:.4g} p99" if ms else "not told"
