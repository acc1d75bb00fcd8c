"""`cactus-edge certify`: bound a .tflite or .onnx file, read back from its bytes, around given inputs."""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path, percentage, reached
from cactus_edge.errors import GOOD, NEGATIVE, InputError


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "certify", help="prove the robustness of an int8 file around given inputs", description=__doc__
    )
    p.add_argument("model", type=path, metavar="MODEL")
    p.add_argument("--data", type=path, metavar="X.npz", help="arrays x [N, ...] and y [N]")
    p.add_argument(
        "--vnnlib",
        type=path,
        nargs="+",
        metavar="P.vnnlib",
        help="instead of --data properties of a classifier in VNN-LIB (.gz too): a box of inputs, and which outputs are unsafe; "
        "sat, unsat or unknown, within --budget (default 60s) for each; --out is then a report",
    )
    p.add_argument(
        "--eps",
        default="",
        metavar="EPS",
        help="radius of the l-inf ball, exact: 1/16 or 0.1; several joined by commas, or radii.npz with an array eps: "
        "one per channel or per feature",
    )
    p.add_argument(
        "--max-eps",
        action="store_true",
        help="instead of one radius the largest certified and the smallest refuted one of every sample",
    )
    p.add_argument(
        "--plot", type=path, metavar="FILE.png|svg", help="with --max-eps: the share of samples against the radius"
    )
    p.add_argument(
        "--unit",
        choices=("data", "lsb"),
        default="",
        help="unit of eps: the data's own (default), or steps of the model's input quantisation",
    )
    p.add_argument(
        "--noise",
        type=path,
        metavar="floors.toml",
        help="noise floors of the sensor's channels: [[channel]] tables with eps, or counts and count; added to eps",
    )
    p.add_argument("--patch", default="", metavar="K", help="K x K pixels anywhere take any value (also HxW)")
    p.add_argument("--brightness", default="", metavar="LO,HI", help="what is added to every feature of a sample alike")
    p.add_argument(
        "--contrast", default="", metavar="LO,HI", help="what every feature's distance to --pivot is multiplied by"
    )
    p.add_argument(
        "--pivot", default="", help='what contrast leaves as it is: a number (default 0), or "mean" of the sample'
    )
    p.add_argument(
        "--cells",
        type=int,
        default=0,
        help="cells each range is cut into (default: doubled until decided, or it is idle)",
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
        default="",
        help="interval (default), or linear: bound by lines what intervals leave open; slower, for networks not trained for "
        "intervals; writes a proof file beside the certificate",
    )
    p.add_argument(
        "--attack",
        action="store_true",
        help="look for counterexamples around what is not certified; they stand in the proof file, of a family in the certificate",
    )
    p.add_argument(
        "--budget",
        default="",
        metavar="60s|500n",
        help="search each region by all means (lines with optimised slopes, attacks, branch and bound, an integer solver) until it is "
        "decided or the seconds, or the nodes, are used; with nodes every run gives the same proof",
    )
    p.add_argument(
        "--ties",
        choices=("strict", "first-maximum"),
        default="",
        help="who wins where outputs are equal: nobody (strict, the default: whatever argmax the application takes, it agrees), "
        "or the first of them",
    )
    p.add_argument(
        "--universal",
        action="store_true",
        help="also look for one perturbation of the ball that undoes as many labels as possible at once",
    )
    p.add_argument(
        "--firmware",
        type=path,
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
    p.add_argument("--out", type=path, required=True, metavar="cert.json")
    p.add_argument(
        "--require",
        type=percentage,
        metavar="PERCENT",
        help="exit 1 where fewer of the inputs are certified; of several profiles, in any mixture",
    )
    p.add_argument(
        "--semantic",
        default="",
        metavar="TRANSFORMS",
        help="instead of proofs a *probabilistic* bound (CC-Cert) for random brightness, contrast, rotation, translation or blur, "
        "as rotation=10,blur+brightness=0.1; --out is then a report and no certificate",
    )
    p.add_argument("--samples", type=int, help="with --semantic: draws for each of the ten estimates (default 100)")
    p.add_argument(
        "--confidence",
        type=float,
        help="with --semantic: the chance of losing has to be bounded below this (default 1e-4)",
    )
    p.add_argument("--seed", type=int, help="with --semantic: of the draws (default 0)")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Certifies, writes the certificate, prints the verdict; or bounds chances, and writes and prints those."""
    if arguments.vnnlib:
        return _vnnlib(arguments)
    if arguments.data is None:
        raise InputError("nothing is asked: --data is missing", hint="--data X.npz, or --vnnlib P.vnnlib")
    if arguments.semantic:
        return _semantic(arguments)
    if given := next((name for name in DRAWS if _given(arguments, name)), None):
        raise InputError(f"--{given} is about random draws", hint="--semantic")
    if arguments.max_eps:
        return _max_eps(arguments)
    if arguments.plot is not None:
        raise InputError("--plot is about radii", hint="--max-eps")
    from cactus_edge import api
    from cactus_edge.api_regions import Flags
    from cactus_edge.report.table import pairs

    result = api.certify_files(
        arguments.model,
        arguments.data,
        region=Flags(
            arguments.eps,
            arguments.unit or "data",
            arguments.noise,
            arguments.patch,
            arguments.brightness,
            arguments.contrast,
            arguments.pivot,
            arguments.cells,
        ),
        domain=arguments.domain,
        profile=arguments.profile,
        firmware=arguments.firmware,
        bounds=arguments.bounds or "interval",
        attack=arguments.attack,
        budget=arguments.budget,
        universal=arguments.universal,
        ties=arguments.ties or "strict",
        workers=arguments.workers,
        cluster=arguments.cluster,
        out=arguments.out,
    )
    print(pairs(result.summary()))
    return GOOD if reached(arguments.require, result.certified, result.total) else NEGATIVE


REGION = ("eps", "unit", "noise", "patch", "brightness", "contrast", "pivot", "cells")
"""The flags that say what may change."""

DRAWS = ("samples", "confidence", "seed")
"""The flags of --semantic."""


def _given(arguments: argparse.Namespace, name: str) -> bool:
    value = getattr(arguments, name)
    return value is not None if name in DRAWS else bool(value)  # 0 is a seed


def _alone(arguments: argparse.Namespace, flag: str, *others: str) -> None:
    """Raises InputError where one of `others` is given beside --flag, which has no use for it."""
    if given := next((name.replace("_", "-") for name in others if _given(arguments, name)), None):
        raise InputError(f"--{flag} has no use for --{given}", hint="one command for each")


def _max_eps(arguments: argparse.Namespace) -> int:
    """--require asks for the samples that are certified at any radius."""
    from cactus_edge import api_radius
    from cactus_edge.report.table import pairs

    _alone(arguments, "max-eps", *REGION, "firmware", "attack", "universal", "ties")
    found = api_radius.max_eps_files(
        arguments.model,
        arguments.data,
        out=arguments.out,
        plot=arguments.plot,
        domain=arguments.domain,
        profile=arguments.profile,
        bounds=arguments.bounds or "interval",
        budget=arguments.budget,
        workers=arguments.workers,
        cluster=arguments.cluster,
    )
    print(pairs(found.summary()))
    certified = found.radii.certificate.decision.certified
    return GOOD if reached(arguments.require, int(certified.sum()), len(certified)) else NEGATIVE


def _vnnlib(arguments: argparse.Namespace) -> int:
    """--require asks for the properties that hold."""
    from cactus_edge import api_vnnlib
    from cactus_edge.report.table import pairs

    proofs = ("firmware", "bounds", "attack", "universal", "ties", "max_eps", "plot", "workers", "cluster")
    _alone(arguments, "vnnlib", *REGION, "data", "domain", *proofs, "semantic", *DRAWS)
    found = api_vnnlib.decide_files(
        arguments.model,
        arguments.vnnlib,
        out=arguments.out,
        profile=arguments.profile,
        budget=arguments.budget,
    )
    print(pairs(found.summary()))
    return GOOD if reached(arguments.require, found.robust, len(found.answers)) else NEGATIVE


def _semantic(arguments: argparse.Namespace) -> int:
    """--require asks for each transform, of the samples certified *probabilistically*."""
    from cactus_edge import api_semantic
    from cactus_edge.report.table import pairs

    proofs = ("firmware", "bounds", "attack", "budget", "universal", "max_eps", "plot", "workers", "cluster", "ties")
    _alone(arguments, "semantic", *REGION, *proofs)
    report = api_semantic.semantic_files(
        arguments.model,
        arguments.data,
        arguments.semantic,
        domain=arguments.domain,
        profile=arguments.profile,
        out=arguments.out,
        **{name: getattr(arguments, name) for name in DRAWS if _given(arguments, name)},
    )
    print(pairs([*report.summary(), ("report", str(arguments.out))]))
    return GOOD if reached(arguments.require, min(report.counts), report.samples) else NEGATIVE
