"""`cactus-edge schema`: the JSON Schema (draft 2020-12) of a certificate, or of the statement that `sign` signs."""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.errors import GOOD
from cactus_edge.resources import SCHEMAS, schema


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("schema", help="print the JSON Schema of a certificate", description=__doc__)
    p.add_argument("of", nargs="?", choices=SCHEMAS, default=SCHEMAS[0])
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the schema."""
    print(schema(arguments.of), end="")
    return GOOD
