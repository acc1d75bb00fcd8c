"""C compilers: zig's (a plain pip package) for this machine, and how any compiler is called and fails."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cactus_edge.errors import InstallError, InternalError

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
"""Flags under which everything in export/c compiles without a word."""

_MOST_SECONDS = 600


@dataclass(frozen=True)
class Compiler:
    """`command`: how it is started. `name`, `version`: as reports say it."""

    name: str
    command: tuple[str, ...]
    version: str


def zig() -> Compiler:
    """The C compiler in the ziglang wheel. Raises InstallError where it is missing."""
    if importlib.util.find_spec("ziglang") is None:
        raise InstallError("the C compiler ziglang is not installed", hint=f"{sys.executable} -m pip install ziglang")
    command = (sys.executable, "-m", "ziglang")
    return Compiler("zig", (*command, "cc"), first_line([*command, "version"]))


def first_line(command: Sequence[str]) -> str:
    """What a tool says first about its version. Raises InstallError where it does not start."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise InstallError(f"{Path(command[0]).name} does not start: {error}", hint="reinstall it") from error
    return result.stdout.strip().splitlines()[0] if result.stdout.strip() else "unknown"


def compile_c(compiler: Compiler, arguments: Sequence[str | Path]) -> None:
    """Runs the compiler. Raises InternalError with its own words: what it compiles here is ours."""
    result = run(compiler, arguments)
    if result.returncode:
        raise InternalError(f"{compiler.name} {compiler.version} failed:\n{excerpt(result.stderr)}")


def run(compiler: Compiler, arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """The finished compiler process; a caller that knows what failures mean looks at `returncode` and `stderr`."""
    command = [*compiler.command, *map(str, arguments)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False)
    except OSError as error:
        raise InstallError(f"{compiler.name} does not start: {error}", hint="reinstall it") from error
    except subprocess.TimeoutExpired as error:
        raise InternalError(f"{compiler.name} did not finish within {_MOST_SECONDS} s") from error


def excerpt(stderr: str) -> str:
    """The lines of a compiler's output that say what is wrong, at most 20."""
    lines = stderr.strip().splitlines()
    errors = [line for line in lines if re.search(r"\b(error|undefined|overflow|warning)", line)]
    return "\n".join((errors or lines)[:20])


def overlaid(sources: Sequence[Path], overlay: Path | None) -> list[Path]:
    """The sources, those in `overlay` instead of those of the same name: for planted faults."""
    if overlay is None:
        return list(sources)
    return [overlay / path.name if (overlay / path.name).exists() else path for path in sources]
