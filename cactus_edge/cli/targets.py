"""`cactus-edge targets`: the boards there are, what they compute and whether they can be reached now."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("targets", help="list the boards", description=__doc__)
    p.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Prints the table."""
    from cactus_edge import api_boards
    from cactus_edge.report.table import table

    head = ("name", "core", "flash", "RAM", "profile", "reached by", "reachable now")
    print(table(head, [row.cells() for row in api_boards.targets()]))
    return 0
