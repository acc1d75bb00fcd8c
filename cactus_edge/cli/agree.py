"""`cactus-edge agree`: run a model file (.tflite, .onnx) in real runtimes and compare every output with the interpreter's, bit for bit.

Each runtime is compared with its own profile. Several profiles are also compared among themselves: where those differ,
the same file means different things on different devices. "flips" counts inputs whose first maximum moves.
Exit code 1: a runtime differs from its profile.
"""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path
from cactus_edge.errors import GOOD, NEGATIVE


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("agree", help="compare an int8 file in real runtimes, bit for bit", description=__doc__)
    p.add_argument("model", type=path, metavar="MODEL")
    p.add_argument("--data", type=path, required=True, metavar="X.npz", help="array x [N, ...]")
    p.add_argument(
        "--runtime",
        default="",
        metavar="NAME[,NAME...]",
        help="runtimes that `inspect` lists, or c for the C sources, compiled here (default: tflm, for .onnx onnxruntime)",
    )
    p.add_argument("--inputs", type=int, metavar="N", help="the first N samples (default: all)")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compares and prints the counts, then what differs first and by how much."""
    from cactus_edge import api_files
    from cactus_edge.cli.terminal import columns
    from cactus_edge.comparison import histogram_table
    from cactus_edge.report.table import Column, pairs, table
    from cactus_edge.samples import read_inputs

    x, _ = read_inputs(arguments.data)
    names = [name.strip() for name in arguments.runtime.split(",")] if arguments.runtime else ""
    found, width = api_files.agree(arguments.model, x, runtime=names, inputs=arguments.inputs), columns()
    counts = [Column(title, right=True) for title in ("inputs", "elements", "flips")]
    print(f"{found.inputs:,} inputs, {found.elements:,} output elements; how many differ:", end="\n\n")
    head: list[str | Column] = ["runtime", "profile", "outputs", *counts, "version"]
    print(table(head, [r.cells() for r in found.runtimes], width=width))
    for r in found.runtimes:
        if not r.found.exact:
            print(f"\n{r.found.runtime} minus profile {r.found.profile}, in output steps")
            print(table(*histogram_table(r.histogram), width=width))
            print(pairs([("first", str(r.found.first_layer or "the output only"))], width=width))
    if found.profiles:
        print("\nthe profiles among themselves, by the interpreter", end="\n\n")
        print(table(["profiles", *counts], [p.cells() for p in found.profiles], width=width))
    for p in found.profiles:
        if p.mismatches:
            print(f"\n{p.other} minus {p.reference}, in output steps")
            print(table(*histogram_table(p.histogram), width=width))
            print(pairs([("first", str(p.first_layer or "the output only"))], width=width))
    return GOOD if found.exact else NEGATIVE
