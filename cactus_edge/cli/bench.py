"""`cactus-edge bench`: run a model on a board or, by ssh, on a computer or a Jetson, and check every output.

Boards and computers must give the interpreter's bits. TensorRT on a Jetson must stay in its envelope and in int8.
"""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path
from cactus_edge.errors import GOOD, NEGATIVE


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("bench", help="run a model on a device and compare its outputs", description=__doc__)
    p.add_argument("model", type=path, metavar="MODEL", help=".tflite, or .onnx for a computer or a Jetson")
    p.add_argument("--target", default="mcu", help="board (default: mcu); see `cactus-edge targets`")
    p.add_argument(
        "--port", default="", help="serial port of a board that runs the firmware already: auto, /dev/..., id:SERIAL"
    )
    p.add_argument("--host", default="", metavar="USER@HOST[:PORT]", help="computer or Jetson to run on, by ssh")
    p.add_argument(
        "--data", type=path, metavar="X.npz", help="inputs (default: test.npz beside the model, else random int8)"
    )
    p.add_argument("--inputs", type=int, default=100, metavar="N", help="how many of them (default: 100)")
    p.add_argument("--emulator", choices=("unicorn", "qemu"), default="unicorn", help="for emulated targets")
    p.add_argument("--compiler", choices=("zig", "gcc"), default="zig")
    p.add_argument(
        "--runtime",
        choices=("auto", "trtexec", "onnxruntime"),
        default="auto",
        help="what runs TensorRT on a Jetson (default: trtexec, or ONNX Runtime's TensorRT provider without it)",
    )
    p.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="session folder (default: MODEL's folder/bench-TARGET); a second run resumes",
    )
    p.add_argument(
        "--live",
        type=int,
        metavar="R",
        help="bound the decision around each input on a microcontroller too, R codes wide, and say what that costs",
    )
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the bench; exit 1 where an output differs or, on a Jetson, the condition is broken."""
    from cactus_edge import api_boards
    from cactus_edge.cli.progress import terminal_progress
    from cactus_edge.report.table import pairs

    result = api_boards.bench(
        arguments.model,
        target=arguments.target,
        port=arguments.port,
        host=arguments.host,
        data=arguments.data,
        inputs=arguments.inputs,
        emulator=arguments.emulator,
        compiler=arguments.compiler,
        runtime=arguments.runtime,
        out=arguments.out,
        live=arguments.live,
        progress=terminal_progress(quiet=False),
    )
    print(pairs(result.summary()))
    return GOOD if result.good else NEGATIVE
