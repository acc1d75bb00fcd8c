"""The verbs about runs: train one, compare several. Each function imports what it needs when it is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cactus_edge.errors import InputError
from cactus_edge.progress import SILENT, Progress
from cactus_edge.resources import require_folder, write_atomic

if TYPE_CHECKING:
    from cactus_edge.recipe import Recipe
    from cactus_edge.report.compare import Comparison
    from cactus_edge.runs import Run


MOST_THREADS = 4096
"""As many as a recipe may ask for."""


def train(
    recipe: Recipe | str | Path | None = None,
    out: Path | str | None = None,
    *,
    seed: int | None = None,
    device: str = "auto",
    threads: int = 0,
    progress: Progress = SILENT,
) -> Run:
    """Trains `recipe` into the run folder `out` (default: runs/NAME-SEED), or goes on with the run that lies there.

    recipe None: the run's own. seed: instead of the recipe's. device: "cpu", "cuda", or "auto", CUDA where there is some. threads:
    torch's, the recipe's by default. In the processes of torchrun each batch is cut into as many parts as there are processes,
    unless the recipe says otherwise (`train.parallel`). Ctrl-C loses nothing that was finished. Raises InputError for what
    the user can fix; `cactus_edge.runs` says what the folder holds.
    """
    from cactus_edge.recipe import Recipe, load_recipe
    from cactus_edge.runs import RECIPE, command_line, find_run, train_run
    from cactus_edge.train.parallel import joined

    _require_within("seed", seed or 0, 2**31 - 1)
    _require_within("threads", threads, MOST_THREADS)
    _require_named(out)
    if recipe is None:
        if out is None or find_run(Path(out)) is None:
            where = "no folder is named" if out is None else f"{out} holds no run to go on with"
            raise InputError(f"no recipe is named, and {where}", hint="--recipe digits; see `cactus-edge recipes`")
        recipe = Path(out) / RECIPE
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if chosen.deck.card:
        raise InputError(
            f"{chosen.name} is a deck, and a run is one network", hint="`cactus-edge build` trains the cards"
        )
    if seed is not None:
        chosen = replace(chosen, train=replace(chosen.train, seed=seed))
    folder = Path(out) if out is not None else Path("runs") / f"{chosen.name}-{chosen.train.seed}"
    require_folder(folder, "--out")
    with joined(device) as group:
        if group.size > 1 and chosen.train.parts == 1:
            chosen = replace(chosen, train=replace(chosen.train, parts=group.size))
        told = progress if group.first else SILENT
        return train_run(
            chosen, folder, group, threads=threads, command=command_line("cactus_edge.train"), progress=told
        )


def compare(
    folders: Sequence[Path | str], *, out: Path | str | None = None, threads: int = 0, progress: Progress = SILENT
) -> Comparison:
    """The runs and builds in `folders` side by side, in groups of the same data, listed inputs and region.

    A run is first exported as an int8 file of no target, certified and attacked under profile `tflm`, into its own folder, once. out:
    where compare.html and compare.json are written. threads: all by default. Raises InputError for a folder that holds neither, or
    one that is not whole or another version's; MismatchError for a build that contradicts its certificate.
    """
    import datetime

    from cactus_edge.entries import opened
    from cactus_edge.report.compare import compared, render
    from cactus_edge.version import __version__

    _require_within("threads", threads, MOST_THREADS)
    _require_named(out)
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("nothing to compare", hint="cactus-edge compare runs/a runs/b")
    twice = [path for i, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:i]}]
    if twice:
        raise InputError(f"{twice[0]} is named twice", hint="name every folder once")
    where = None if out is None else require_folder(Path(out), "--out")
    whole = [opened(path) for path in paths]
    found = compared([measure(threads, progress) for measure in whole])
    if where is not None:
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_atomic(where / "compare.html", render(found, created=created, tool=f"cactus-edge {__version__}"))
        write_atomic(where / "compare.json", json.dumps(found.to_json(), indent=2, sort_keys=True) + "\n")
    return found


def _require_within(name: str, value: int, most: int) -> None:
    """Raises InputError for an option that is not in [0, most]."""
    if not 0 <= value <= most:
        raise InputError(f"{name} is {value}, expected an integer in [0, {most}]")


def _require_named(out: Path | str | None) -> None:
    """Raises InputError for an empty name, which `Path` takes for the current folder."""
    if out == "":
        raise InputError("--out is empty", hint="name a folder with --out; . is the current one")
