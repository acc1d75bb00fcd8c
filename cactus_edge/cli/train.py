"""`cactus-edge train`: train a recipe into a run folder, which `build --run` exports and `compare` compares."""

from __future__ import annotations

import argparse
import os
from typing import Any

EPILOG = """\
Several processes or GPUs:  torchrun --nproc-per-node 2 -m cactus_edge train --recipe digits --out runs/a
Each batch is cut into one part a process, with batch statistics of its own; the same weights come from one process with
[train] parts = 2 in the recipe."""


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser(
        "train",
        help="train a network into a run folder; several processes by torchrun",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--recipe", help="built-in name or TOML file (default: that of the run in --out)")
    p.add_argument("--out", help="the run folder (default: runs/RECIPE-SEED); a run found there goes on")
    p.add_argument("--seed", type=int, help="replaces the recipe's training seed")
    p.add_argument(
        "--device", choices=("cpu", "cuda", "auto"), default="auto", help="default: CUDA where there is some"
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: the recipe's, else all)")
    p.add_argument("--quiet", action="store_true", help="print the result only")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trains, then prints the key figures and what to do next."""
    from cactus_edge.api_runs import train
    from cactus_edge.cli.progress import terminal_progress
    from cactus_edge.report.table import pairs

    done = train(
        arguments.recipe,
        arguments.out,
        seed=arguments.seed,
        device=arguments.device,
        threads=arguments.threads,
        progress=terminal_progress(quiet=arguments.quiet, each=True),
    )
    if os.environ.get("RANK", "0") == "0":
        print(pairs(done.summary()))
    return 0
