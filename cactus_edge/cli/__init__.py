"""The command line: one module per verb, which parses, calls a function of `cactus_edge` and prints. No logic lives here.

Nothing heavy is imported before a verb runs: `cactus-edge --help` and `verify` need numpy at most.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from cactus_edge.cli import (
    agree,
    bench,
    build,
    certify,
    compare,
    convert,
    doctor,
    flash,
    inspect,
    profiles,
    recipes,
    run,
    schema,
    sign,
    targets,
    train,
    verify,
)
from cactus_edge.errors import UNUSABLE, CactusError
from cactus_edge.process import settle
from cactus_edge.version import __version__

VERBS = (
    train,
    build,
    compare,
    certify,
    verify,
    sign,
    bench,
    flash,
    inspect,
    run,
    agree,
    convert,
    targets,
    recipes,
    profiles,
    schema,
    doctor,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it (128 + SIGINT)."""

EXIT_CODES = "exit codes: 0 good, 1 a negative verdict, 2 bad usage or input"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="cactus-edge",
        description="Train networks to be provably robust and compressible, ship them as int8 files, certify the very file that ships.",
        epilog=EXIT_CODES,
    )
    top.add_argument("--version", action="version", version=f"cactus-edge {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for module in VERBS:
        module.add_parser(verbs)
    return top


def attached(argv: Sequence[str]) -> list[str]:
    """`--option -1,1` as `--option=-1,1`: argparse takes -1,1 for another option. None of ours begins with a digit."""
    joined: list[str] = []
    for argument in argv:
        if joined and re.fullmatch(r"--[a-z-]+", joined[-1]) and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = parser().parse_args(attached(sys.argv[1:] if argv is None else argv))
    settle()
    try:
        code: int = arguments.run(arguments)
    except CactusError as error:
        print(f"cactus-edge {arguments.verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept, run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return UNUSABLE
    return code
