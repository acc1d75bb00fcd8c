"""`cactus-edge recipes`: the built-in recipes."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("recipes", help="list the built-in recipes", description=__doc__)
    p.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Prints the table."""
    from cactus_edge.recipe import load_recipe, names
    from cactus_edge.report.table import table

    recipes = [load_recipe(name) for name in names()]
    rows = [
        (r.name, str(r.certify.eps), " ".join(r.train.members), str(r.train.epochs), r.description) for r in recipes
    ]
    print(table(("name", "eps", "network set", "epochs", "what"), rows))
    return 0
