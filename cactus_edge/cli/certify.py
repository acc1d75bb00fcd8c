"""`cactus-edge certify`: bound a .tflite or .onnx file, read back from its bytes, around given inputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cactus_edge.errors import GOOD, NEGATIVE


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "certify", help="prove the robustness of an int8 file around given inputs", description=__doc__
    )
    p.add_argument("model", type=Path, metavar="MODEL")
    p.add_argument("--data", type=Path, required=True, metavar="X.npz", help="arrays x [N, ...] and y [N]")
    p.add_argument("--eps", required=True, help="radius of the l-inf ball, exact: 1/16 or 0.1")
    p.add_argument(
        "--unit",
        choices=("data", "lsb"),
        default="data",
        help="unit of eps: the data's own (default), or steps of the model's input quantisation",
    )
    p.add_argument(
        "--domain",
        default="",
        metavar="LO,HI",
        help="what the sensor can deliver (default: the model's own, else unbounded)",
    )
    p.add_argument(
        "--profile",
        default="",
        help="runtime arithmetic for which the certificate holds (default: tflm, for .onnx ort-x86); "
        "several joined by commas, or all: any mixture of those that can run the file",
    )
    p.add_argument(
        "--bounds",
        choices=("interval", "linear"),
        default="interval",
        help="linear: bound by lines what intervals leave open; slower, for networks not trained for intervals; "
        "writes a proof file beside the certificate",
    )
    p.add_argument(
        "--attack",
        action="store_true",
        help="look for counterexamples around what is not certified; they stand in the proof file",
    )
    p.add_argument(
        "--firmware",
        type=Path,
        action="append",
        default=[],
        metavar="FW.elf",
        help="firmware to bind to the certificate",
    )
    p.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="decide by N processes, which Ctrl-C may interrupt: the same command goes on (default: threads of one process)",
    )
    p.add_argument(
        "--cluster", default="", metavar="dask://HOST:PORT", help="decide by the workers of an existing Dask cluster"
    )
    p.add_argument("--out", type=Path, required=True, metavar="cert.json")
    p.add_argument(
        "--require",
        type=float,
        metavar="PERCENT",
        help="exit 1 where fewer of the inputs are certified; of several profiles, in any mixture",
    )
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Certifies, writes the certificate, prints the verdict."""
    from cactus_edge import api
    from cactus_edge.report.table import pairs

    result = api.certify_files(
        arguments.model,
        arguments.data,
        eps=arguments.eps,
        unit=arguments.unit,
        domain=arguments.domain,
        profile=arguments.profile,
        firmware=arguments.firmware,
        bounds=arguments.bounds,
        attack=arguments.attack,
        workers=arguments.workers,
        cluster=arguments.cluster,
        out=arguments.out,
    )
    print(pairs(result.summary()))
    enough = arguments.require is None or 100 * result.certified >= arguments.require * result.total
    return GOOD if enough else NEGATIVE
