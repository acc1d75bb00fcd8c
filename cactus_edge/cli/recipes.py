"""`cactus-edge recipes`: the built-in recipes, what they train by and for how long; or one of them as TOML."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("recipes", help="list the built-in recipes, or print one", description=__doc__)
    p.add_argument("name", nargs="?", metavar="NAME", help="print this one, to start your own from")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table, or one recipe."""
    from cactus_edge import catalogue
    from cactus_edge.cli.terminal import columns
    from cactus_edge.recipe import load_recipe
    from cactus_edge.report.table import pairs, table

    if arguments.name is not None:
        if arguments.json:
            print(json.dumps(load_recipe(arguments.name).to_json(), indent=2))
        else:
            print(catalogue.text(arguments.name), end="")
        return 0
    found = catalogue.rows()
    if arguments.json:
        print(json.dumps(catalogue.to_json(found), indent=2))
    else:
        print(table(catalogue.HEADS, [row.cells() for row in found], width=columns()))
        print("\n" + pairs(catalogue.legend(found), width=columns()))
    return 0
