"""`cactus-edge profiles [NAME]`: the runtimes whose arithmetic is known, with versions and processors; of NAME, every rule."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("profiles", help="list the runtimes whose arithmetic is known", description=__doc__)
    p.add_argument("name", nargs="?", metavar="NAME", help="one of them, in full")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table of all, or everything about one."""
    from cactus_edge.cli.terminal import columns
    from cactus_edge.ir.arithmetic import PROFILES, profile
    from cactus_edge.report.table import pairs, table

    if arguments.name is None:
        rows = [(p.name, f".{p.reads}", p.runtime, p.versions, p.cpu) for p in PROFILES.values()]
        print(table(("profile", "file", "runtime", "versions", "processor"), rows, width=columns()))
        return 0
    row = profile(arguments.name)
    facts = [
        ("profile", row.name),
        ("runtime", row.runtime),
        ("versions", row.versions),
        ("processor", row.cpu),
        ("file", f".{row.reads}"),
        ("source", row.source),
        ("condition", row.assumption or "none"),
        ("sha256", row.digest()),
    ]
    print(pairs(facts, width=columns()), end="\n\n")
    print(table(("op", "rule"), [(kind, " ".join(rule)) for kind, rule in row.rules.items()], width=columns()))
    return 0
