"""`cactus-edge compare`: runs and builds side by side, each by its int8 file, in groups of the same data, inputs and region."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cactus_edge.cli.arguments import path


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "compare", help="runs and builds side by side: accuracy, proofs, bytes, MACs", description=__doc__
    )
    p.add_argument("folders", nargs="+", type=path, metavar="RUN_OR_BUILD", help="folders of `train` and `build`")
    p.add_argument("--out", type=path, help="folder for compare.html (tables and plots) and compare.json")
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    p.add_argument("--quiet", action="store_true", help="print the result only")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables, and where the page is."""
    from cactus_edge.api_runs import compare
    from cactus_edge.cli.progress import terminal_progress
    from cactus_edge.cli.terminal import columns

    found = compare(
        arguments.folders,
        out=arguments.out,
        threads=arguments.threads,
        progress=terminal_progress(quiet=arguments.quiet),
    )
    if arguments.json:
        print(json.dumps(found.to_json(), indent=2, sort_keys=True))
        return 0
    print(found.text(width=columns()))
    if arguments.out is not None:
        print(f"\npage  {arguments.out / 'compare.html'}")
    return 0
