"""`cactus-edge doctor`: what is installed, what is missing, the exact command that fixes it."""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.errors import GOOD, NEGATIVE


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("doctor", help="what is installed, what is missing, how to fix it", description=__doc__)
    p.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Prints the checks; exit 1 where something that is needed is missing."""
    from cactus_edge.report.doctor import examine, text

    checks = examine()
    print(text(checks))
    return GOOD if all(c.ok or c.optional for c in checks) else NEGATIVE
