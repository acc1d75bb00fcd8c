"""`cactus-edge run`: the exact outputs of a .tflite or .onnx file under a runtime profile, and how many are right."""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("run", help="exact outputs of an int8 file, and its accuracy", description=__doc__)
    p.add_argument("model", type=path, metavar="MODEL")
    p.add_argument(
        "--data", type=path, required=True, metavar="X.npz", help="array x [N, ...], and labels y [N] if known"
    )
    p.add_argument(
        "--profile",
        default="",
        help="whose arithmetic (default: tflm, for .onnx ort-x86); `cactus-edge inspect` lists them",
    )
    p.add_argument("--out", type=path, metavar="Y.npz", help="write the arrays output [N, ...] and prediction [N]")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs, writes, prints."""
    from cactus_edge import api_files
    from cactus_edge.cli.terminal import columns
    from cactus_edge.report.table import pairs
    from cactus_edge.resources import require_file
    from cactus_edge.samples import read_inputs

    if arguments.out:
        require_file(arguments.out, "--out", (arguments.model, arguments.data))
    x, y = read_inputs(arguments.data)
    outputs = api_files.run(arguments.model, x, y, profile=arguments.profile)
    rows = outputs.summary()
    if arguments.out:
        outputs.save(arguments.out)
        rows.append(("outputs", str(arguments.out)))
    print(pairs(rows, width=columns()))
    return 0
