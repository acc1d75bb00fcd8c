"""`cactus-edge build`: train, compress, lower, certify the file, run it on the board, bundle."""

from __future__ import annotations

import argparse
from typing import Any

from cactus_edge.cli.arguments import path


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    p = verbs.add_parser("build", help="train, export and certify a network for a target", description=__doc__)
    p.add_argument("--target", default="mcu", help="board to build for (default: mcu); see `cactus-edge targets`")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--recipe", default="digits", help="built-in name or TOML file (default: digits)")
    source.add_argument("--run", dest="trained", type=path, metavar="DIR", help="export what `train` left there")
    p.add_argument("--out", type=path, help="folder of the bundle (default: build/RECIPE-TARGET, build/RUN-TARGET)")
    p.add_argument("--seed", type=int, help="replaces the recipe's training seed")
    p.add_argument(
        "--port", default="", help="serial port of a real board: auto, /dev/..., id:SERIAL, rfc2217://HOST:PORT"
    )
    p.add_argument(
        "--host", default="", metavar="USER@HOST", help="computer to run on, by ssh (targets reached by ssh)"
    )
    p.add_argument("--emulator", choices=("unicorn", "qemu"), default="unicorn", help="for emulated targets")
    p.add_argument("--compiler", choices=("zig", "gcc"), default="zig", help="cross-compiler of the firmware")
    p.add_argument(
        "--device-inputs", type=int, default=100, metavar="N", help="test inputs to run on the board (default: 100)"
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    p.add_argument(
        "--live", action="store_true", help="firmware that can bound the decision around an input: command `certify`"
    )
    p.add_argument("--quiet", action="store_true", help="print the result only")
    p.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Builds, then prints the key figures and where the report is."""
    from cactus_edge import api
    from cactus_edge.cli.progress import terminal_progress
    from cactus_edge.report.table import pairs

    built = api.build(
        arguments.recipe,
        run=arguments.trained,
        target=arguments.target,
        out=arguments.out,
        seed=arguments.seed,
        port=arguments.port,
        host=arguments.host,
        emulator=arguments.emulator,
        compiler=arguments.compiler,
        device_inputs=arguments.device_inputs,
        threads=arguments.threads,
        live=arguments.live,
        progress=terminal_progress(quiet=arguments.quiet),
    )
    print(pairs(built.summary()))
    return 0
