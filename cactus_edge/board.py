"""A program on a board: what is sent, what must come back, and what a build keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run, trace
from cactus_edge.ir.ops import Int8
from cactus_edge.resources import sha256

if TYPE_CHECKING:
    from cactus_edge.device.live import LiveReport
    from cactus_edge.device.measure import DeviceReport
    from cactus_edge.device.targets import Target


@dataclass(frozen=True)
class Options:
    """How to build, beside the recipe. threads 0: all processors. port "": the emulator, or nothing on a real board. host "": no
    computer to run on, else user@host[:port]. live: firmware that bounds the decision around an input (`certify`). trained: the
    folder of a finished run, whose network is exported; None: the network is trained in the build's own folder."""

    target: str = "mcu"
    emulator: Literal["unicorn", "qemu"] = "unicorn"
    compiler: Literal["zig", "gcc"] = "zig"
    port: str = ""
    device_inputs: int = 100
    threads: int = 0
    command: str = ""
    host: str = ""
    live: bool = False
    trained: Path | None = None


def run_on_board(
    program: Program,
    inputs: Int8,
    folder: Path,
    target: Target,
    options: Options,
    elf: Path | None,
    on_input: Callable[[int, int], None],
) -> DeviceReport:
    """Runs int8 inputs [N, *shape] on the board and compares every output with the interpreter's, bit for bit.

    A difference is reported together with the first op that differs. Finished inputs stay in `folder`.
    """
    from cactus_edge.device.measure import bench
    from cactus_edge.formats.c.blob import blob_digest, op_nodes

    graph = program.graph

    def layers(index: int) -> list[tuple[str, bytes]]:
        tensors = trace(graph, inputs[index : index + 1], program.profile)
        outputs = [(node, tensors[graph.nodes[node].output]) for node in op_nodes(graph)]
        return [(graph.label(node), tensor.tobytes()) for node, tensor in outputs if tensor is not None]

    return bench(
        target,
        digest=blob_digest(graph, program.profile),
        inputs=inputs,
        expected=run(program, inputs),
        folder=folder,
        port=options.port,
        elf=elf,
        firmware_sha256=sha256(elf.read_bytes()) if elf else "",
        emulator=options.emulator,
        layers=layers,
        progress=on_input,
    )


def bound_on_board(
    program: Program,
    inputs: Int8,
    target: Target,
    options: Options,
    elf: Path | None,
    radius: int,
    on_input: Callable[[int, int], None],
) -> LiveReport:
    """Bounds the decision around int8 inputs [N, *shape] on the board, and compares each verdict with `verify`'s by intervals."""
    from cactus_edge.device.connect import connect, require_digest
    from cactus_edge.device.live import bench_live
    from cactus_edge.formats.c.blob import blob_digest
    from cactus_edge.formats.c.live import live_boxes, live_decider

    decider = live_decider(program)
    low, high = live_boxes(inputs, radius)
    with connect(target, port=options.port, elf=elf, emulator=options.emulator) as board:
        require_digest(board, blob_digest(program.graph, program.profile))
        return bench_live(board, inputs, radius, lambda labels: decider.decide(low, high, labels), progress=on_input)


def device_result(report: DeviceReport) -> dict[str, Any]:
    """The board's report as the JSON values of a step."""
    spread = report.instructions or report.latency_us
    cost = {"median": spread.median, "iqr": spread.iqr, "runs": spread.n} if spread else None
    return {
        "measured": True,
        "emulated": report.emulated,
        "reached_by": report.reached_by,
        "compared": report.compared,
        "equal": report.equal,
        "first_difference": report.first_difference,
        "blob": report.blob_sha256,
        "cost": cost,
    }
