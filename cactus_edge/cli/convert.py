"""`cactus-edge convert`: a .tflite or .onnx file as .tflite, .onnx or C99 sources, through the integer graph.

What cannot be kept exact is refused, and the message names the op. Another format means another runtime: weights and scales
stay as they are, roundings become those of the profiles that are printed.
"""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("convert", help="write an int8 file in another form, exactly", description=__doc__)
    p.add_argument("model", type=path, metavar="MODEL")
    p.add_argument("--to", required=True, metavar="FORM", help="tflite, onnx or c")
    p.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write into")
    p.add_argument("--name", default="", help="name of the model (default: that of the file)")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Converts and prints what was written."""
    from cactus_edge import api_files
    from cactus_edge.cli.terminal import columns
    from cactus_edge.report.table import pairs

    converted = api_files.convert(arguments.model, to=arguments.to, out=arguments.out, name=arguments.name)
    print(pairs(converted.summary(), width=columns()))
    return 0
