"""A model file on a computer reached by ssh: what is sent, what must come back, and what a build or a bench says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError, UnsupportedError
from cactus_edge.formats.onnx.read.layout import stored_columns, stored_image
from cactus_edge.formats.read import AnyModel, graph_for, read_model
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import dequantize, evaluate, quantised, trace
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.profile import Profile
from cactus_edge.verify.read import format_of
from cactus_edge.verify.tflite_read import Model

if TYPE_CHECKING:
    from cactus_edge.device.remote import Layer, RemoteReport, Work
    from cactus_edge.device.ssh import Password
    from cactus_edge.device.targets import SshTarget

Array = npt.NDArray[Any]

MEASURE_S = (1.0, 10.0)
"""Seconds for which a file's single inferences are repeated: without counting, then counting."""


@dataclass(frozen=True)
class Host:
    """Where to run, and how to get in. password: asked for where keys are refused; None: keys only."""

    address: str
    password: Password | None = None


def run_on_computer(
    data: bytes,
    x: Array,
    target: SshTarget,
    host: Host,
    folder: Path,
    progress: Callable[[int, int], None],
) -> RemoteReport:
    """Runs the file on x [N, *input] (float32 values or int8 codes) there and compares every output, bit for bit.

    A difference is reported together with the first op that differs. For ONNX, the graph that ONNX Runtime made of the file on
    that computer must compute in integers: UnsupportedError where it does not. Finished outputs stay in `folder`.
    """
    from cactus_edge.device.agent_run import Measure
    from cactus_edge.device.remote import bench
    from cactus_edge.device.ssh import SshAddress

    report = bench(
        target,
        SshAddress.parse(host.address),
        work_for(data, x, target),
        folder,
        measure=Measure(*MEASURE_S),
        password=host.password,
        progress=progress,
    )
    if report.optimised is not None:
        from cactus_edge.formats.onnx.runtime import require_fused

        require_fused(report.optimised, read_model(data).graph)
    return report


def work_for(data: bytes, x: Array, target: SshTarget) -> Work:
    """What is sent for the file, and what must come back under the profile of what runs such files on `target`."""
    from cactus_edge.device.remote import Work

    form = format_of(data)
    if form not in target.engines:
        raise UnsupportedError(
            f"nothing on {target.title} is known to run .{form} files",
            hint=f"cactus-edge convert --to {next(iter(target.engines))}",
        )
    engine = target.engines[form]
    rules, model = profile(engine.profile), read_model(data)
    program = lower(graph_for(model, rules), rules)
    if isinstance(model, Model) and (model.unsigned_input or model.unsigned_output):
        raise UnsupportedError(
            "uint8 input or output on another computer", hint="cactus-edge convert --to tflite gives int8 ends"
        )
    values = quantised(program, x) if model.graph.input.dtype == "int8" else x
    if values.dtype != model.graph.input.dtype:
        raise InputError(f"the model takes {model.graph.input.dtype} values, the data are {x.dtype}")
    expected = evaluate(model.graph, values, rules)
    layers = _Layers(data, model, rules, values)
    if form == "onnx":
        return Work(data, form, engine, channel_first(values), channel_first(expected), layers.onnx)
    return Work(data, form, engine, values, expected, layers.tflite)


def channel_first(x: Array) -> Array:
    """[N, height, width, channel] as [N, channel, height, width]; other shapes as they are."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)


@dataclass(frozen=True)
class _Layers:
    """The file cut off behind each op, and what it must give there for one of the inputs."""

    data: bytes
    model: AnyModel
    rules: Profile
    inputs: Array

    def _codes(self, index: int) -> list[tuple[str, int, Array]]:
        """(label, graph tensor, int8 codes [*shape]) of each op whose output is int8, in the order of execution."""
        graph: Graph = self.model.graph
        tensors = trace(graph, self.inputs[index : index + 1], self.rules)
        found = ((graph.label(i), node.output, tensors[node.output]) for i, node in enumerate(graph.nodes))
        return [(label, tensor, codes[0]) for label, tensor, codes in found if codes is not None]

    def tflite(self, index: int) -> Sequence[Layer]:
        """For .tflite: pieces whose output is the int8 tensor itself."""
        from cactus_edge.device.remote import Layer
        from cactus_edge.formats.litert import with_output

        file = self.model.file_tensors
        # A tensor of the graph alone is nothing that the file could be made to output.
        return [
            Layer(label, with_output(self.data, file[t]), codes)
            for label, t, codes in self._codes(index)
            if file[t] >= 0
        ]

    def onnx(self, index: int) -> Sequence[Layer]:
        """For ONNX: pieces whose output is the dequantised tensor, channel first."""
        from cactus_edge.device.remote import Layer
        from cactus_edge.formats.onnx.runtime import cut

        pieces = []
        for label, t, codes in self._codes(index):
            tensor = self.model.graph.tensors[t]
            image = stored_image(self.model.graph, t) if codes.ndim == 1 else None
            stored = stored_columns(codes[np.newaxis], image)[0] if image else channel_first(codes[np.newaxis])[0]
            pieces.append(Layer(label, cut(self.data, t), dequantize(stored, tensor.scale, tensor.zero_point)))
        return pieces


def rows(name: str, report: RemoteReport) -> list[tuple[str, str]]:
    """What the computer did with the file `name`, in words: outputs, latency, memory."""
    found = [
        (
            f"{name}, outputs",
            f"{report.equal:,} of {report.compared:,} equal to profile {report.profile} in {report.runtime}",
        )
    ]
    if report.first_difference:
        found.append((f"{name}, first difference", report.first_difference))
    if latency := report.latency:
        spread = f"{latency.median_us:,.1f} µs median, {latency.p90_us:,.1f} p90, {latency.p99_us:,.1f} p99"
        found.append(
            (
                f"{name}, latency",
                f"{spread} of {latency.runs:,} single inferences on one thread after warm-up; the very first {latency.first_us:,.1f} µs",
            )
        )
    else:
        found.append((f"{name}, latency", f"not measured: {report.emulated}" if report.emulated else "not measured"))
    if report.peak_bytes is not None:
        found.append((f"{name}, peak memory", f"{report.peak_bytes / 2**20:,.1f} MiB, Python and runtime included"))
    return found


def computer_rows(report: RemoteReport) -> list[tuple[str, str]]:
    """What the computer is, in words."""
    d, after = report.device, report.after
    heat = "" if after["temperature_c"] is None else f", {after['temperature_c']:.0f} °C after the run"
    found = [
        ("Computer", f"{d['model']}; processor {d['cpu']}, {d['cores']} cores; {d['system']}, Python {d['python']}"),
        ("Clock", f"governor {d['governor']}; throttled: {d['throttled']} before, {after['throttled']} after{heat}"),
    ]
    return [("Emulated", f"{report.emulated}: no figure of time or memory"), *found] if report.emulated else found
