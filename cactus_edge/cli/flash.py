"""`cactus-edge flash`: put a firmware on a board with the board's own tool, then ask the board which model it carries."""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("flash", help="put a firmware on a board and check what it reports", description=__doc__)
    p.add_argument("firmware", type=path, metavar="FW.elf")
    p.add_argument("--target", required=True, help="board; see `cactus-edge targets`")
    p.add_argument(
        "--model", type=path, metavar="MODEL.tflite", help="what it was built from (default: model.tflite beside it)"
    )
    p.add_argument("--port", default="auto", help="serial port of the board: auto, /dev/..., id:SERIAL")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Flashes and prints what the board reports."""
    from cactus_edge import api_boards
    from cactus_edge.report.table import pairs

    print(
        pairs(api_boards.flash(arguments.firmware, target=arguments.target, model=arguments.model, port=arguments.port))
    )
    return 0
