"""`cactus-edge inspect`: what a .tflite or .onnx file holds and which runtime profiles can run it. Needs numpy alone.

Per op: shape, scale and zero point of its output, bytes of its constants, multiply-accumulates, and a proven bound on
every int32 quantity. Exit code 0: at least one profile can run it, 1: none can, 2: the file cannot be read.
"""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path
from cactus_edge.errors import GOOD, NEGATIVE

WIDE = 100
"""Columns from which the op table shows everything."""


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "inspect", help="what an int8 file holds and which profiles can run it (numpy alone)", description=__doc__
    )
    p.add_argument("model", type=path, metavar="MODEL")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the summary, the ops and the profiles."""
    from cactus_edge import api_files
    from cactus_edge.cli.terminal import columns
    from cactus_edge.report.table import pairs, table

    found, width = api_files.inspect(arguments.model), columns()
    print(pairs(found.summary(), width=width), end="\n\n")
    print(table(*found.op_table(wide=width is None or width >= WIDE), width=width), end="\n\n")
    print(table(*found.profile_table(), width=width))
    return GOOD if found.runnable else NEGATIVE
