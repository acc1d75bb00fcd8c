"""The verbs about runs: train one, compare several. Each function imports what it needs when it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cactus_edge.errors import InputError
from cactus_edge.progress import SILENT, Progress
from cactus_edge.resources import require_folder

if TYPE_CHECKING:
    from cactus_edge.recipe import Recipe
    from cactus_edge.runs import Run


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

    for name, value, most in (("seed", seed or 0, 2**31 - 1), ("threads", threads, 4096)):
        if not 0 <= value <= most:
            raise InputError(f"{name} is {value}, expected an integer in [0, {most}]")
    if recipe is None:
        if out is None or find_run(Path(out)) is None:
            where = "no folder is named" if out is None else f"{out} holds no run to go on with"
            raise InputError(f"no recipe is named, and {where}", hint="--recipe digits; see `cactus-edge recipes`")
        recipe = Path(out) / RECIPE
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
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
