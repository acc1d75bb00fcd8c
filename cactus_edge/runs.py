"""A run folder: what `train` leaves, `build --run` exports and `compare` reads.

    recipe.toml      the recipe as it ran: seed and parts included, the user's own data relative to this folder
    run.json         who, what, when: the record below, one entry an epoch; written when training begins, and whole when it ends
    train-*.pt       the network: torch.save's form for weights_only, parameters and statistics by name under `network`
    curves.svg       validation accuracy and loss by epoch

The network is also what an interrupted training continues from. Only the record of a finished run has the network's digest.
"""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cactus_edge.bundle import data_record, machine, versions
from cactus_edge.errors import InputError
from cactus_edge.progress import SILENT, Progress, Seldom
from cactus_edge.recipe import Recipe, load_recipe
from cactus_edge.report import results as r
from cactus_edge.report import strict_json
from cactus_edge.resources import require_folder, write_atomic
from cactus_edge.train.history import EpochStats, Underway
from cactus_edge.version import __version__

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from cactus_edge.train.parallel import Group
    from cactus_edge.train.trained import TrainedModel

FORMAT, VERSION = "cactus-edge run", 1
RECORD, RECIPE, CURVES = "run.json", "recipe.toml", "curves.svg"


@dataclass(frozen=True)
class Record:
    """run.json. key: digest of everything that decides the weights. network_sha256: of the trained weights, "" before the end.

    device: "cpu", or "cuda" with the GPU's name. processes: those that shared the work when the run ended.
    """

    tool_version: str
    created: str
    command: str
    recipe: str
    recipe_sha256: str
    seed: int
    key: str
    data: r.Data
    device: str
    processes: int
    machine: str
    versions: tuple[r.Version, ...]
    network: str
    network_sha256: str = ""
    weights_before: tuple[int, ...] = ()
    weights_after: tuple[int, ...] = ()
    epochs: tuple[EpochStats, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run folder and its record."""

    folder: Path
    record: Record

    @property
    def finished(self) -> bool:
        """Whether the network is trained."""
        return bool(self.record.network_sha256)

    @property
    def recipe(self) -> Recipe:
        """The recipe as it ran. Raises InputError where the file is gone or is another one."""
        return load_recipe(self.folder / RECIPE)

    def summary(self) -> list[tuple[str, str]]:
        """The run in words, for the terminal."""
        last, before, after = self.record.epochs[-1], sum(self.record.weights_before), sum(self.record.weights_after)
        return [
            ("recipe", f"{self.record.recipe}, seed {self.record.seed}, {len(self.record.epochs)} epochs"),
            ("validation", f"clean {last.val_clean:.2%}, certified {last.val_certified:.2%} (float network, no proof)"),
            ("weights", f"{before:,} -> {after:,}"),
            ("network", f"{self.folder / self.record.network}, sha256 {self.record.network_sha256[:16]}..."),
            ("next", shlex.join(["cactus-edge", "build", "--run", str(self.folder), "--target", "mcu"])),
        ]


def read_run(folder: Path) -> Run:
    """The finished run in `folder`. Raises InputError where there is none, where it is not finished or another version's."""
    run = find_run(folder)
    if run is None:
        raise InputError(f"{folder} holds no run: there is no {RECORD}", hint="`cactus-edge train --out` makes one")
    if run.record.tool_version != __version__:
        raise InputError(
            f"{folder} is a run of cactus-edge {run.record.tool_version}, this is {__version__}",
            hint="train it again in another folder, or use that version",
        )
    if not run.finished:
        raise InputError(f"the training in {folder} is not finished", hint=f"cactus-edge train --out {folder}")
    for name in (run.record.network, RECIPE):
        if not (folder / name).is_file():
            raise InputError(f"the run {folder} lacks {name}", hint=f"cactus-edge train --out {folder} makes it anew")
    return run


def find_run(folder: Path) -> Run | None:
    """The run in `folder`, finished or not; None where there is no record. Raises InputError for one that cannot be read."""
    path = folder / RECORD
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="choose another folder") from error
    try:
        record = strict_json.load(text, Record, FORMAT, VERSION)
    except strict_json.Malformed as error:
        raise InputError(
            f"{path} is no record that this version reads: {error}", hint="train it again in another folder"
        ) from error
    return Run(folder, record)


def require_unchanged(run: Run, recipe: Recipe) -> None:
    """Raises InputError where the run's recipe or data are not what its network was trained with."""
    from cactus_edge.train.checkpoints import run_key
    from cactus_edge.train.data import load_dataset

    dataset = load_dataset(recipe.data)
    if run_key(recipe, dataset) != run.record.key:
        what = "recipe" if dataset.digest() == run.record.data.sha256 else "data"
        raise InputError(
            f"the {what} of the run {run.folder} changed since its network was trained",
            hint="bring them back, or train again in another folder",
        )


def require_network(run: Run, digest: str) -> None:
    """Raises InputError where `digest` is not that of the network that the finished run names."""
    if digest != run.record.network_sha256:
        raise InputError(
            f"{run.folder / run.record.network} holds network {digest[:16]}..., the run's is {run.record.network_sha256[:16]}...",
            hint="bring the file back, or train again in another folder",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One training at a time in `folder`, which is made. InputError where another process trains there; Windows has no such lock."""
    require_folder(folder, "--out").mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process trains in {folder}", hint="wait for it, or another --out") from None
        yield
    finally:
        os.close(descriptor)


def train_run(
    recipe: Recipe, folder: Path, group: Group, *, threads: int = 0, command: str = "", progress: Progress = SILENT
) -> Run:
    """Trains `recipe` into `folder`, from where an earlier call stopped; the first process of `group` writes and reports.

    Raises InputError where the folder holds another run, or a recipe of the user's.
    """
    from cactus_edge.train.checkpoints import checkpoint, run_key
    from cactus_edge.train.data import load_dataset
    from cactus_edge.train.loop import planned, train

    plan = planned(recipe)
    if not sum(plan.values()):
        raise InputError(
            f"method {recipe.train.method!r} has no epoch to train",
            hint="[compress] finetune_epochs = 3, say, or `build`",
        )
    dataset = load_dataset(recipe.data)
    record = Record(
        __version__,
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command,
        recipe.name,
        recipe.digest(),
        recipe.train.seed,
        run_key(recipe, dataset),
        data_record(dataset),
        device_name(group),
        group.size,
        machine(),
        versions(),
        checkpoint(recipe, dataset, folder).name,
    )
    run = Run(folder, record)
    with locked(folder) if group.first else nullcontext():
        new = group.first and _begin(run, recipe)
        report = EpochReport(plan, progress)
        progress.begin("train", 1, 1)
        try:
            trained = train(recipe, dataset, folder, report, threads or None, group=group, on_step=report.underway)
        except InputError:
            if new:
                _take_back(run)
            raise
        run = replace(run, record=_whole(record, trained))
        if group.first:
            _finish(run)
    last = trained.history[-1]
    progress.end(
        sum(e.seconds for e in trained.history),
        cached=report.silent,
        text=f"{len(trained.history)} epochs, {validated(last)}",
    )
    return run


def _begin(run: Run, recipe: Recipe) -> bool:
    """Writes the recipe and the record; whether there was no run before."""
    folder = run.folder
    known = find_run(folder)
    if known is not None and known.record.key != run.record.key:
        raise InputError(
            f"{folder} holds another run: {known.record.recipe}, seed {known.record.seed}",
            hint=f"another --out; or, to continue that one, `cactus-edge train --out {folder}`",
        )
    if known is None and (folder / RECIPE).exists():
        raise InputError(f"{folder} holds a {RECIPE} and no run", hint="another --out: that file would be overwritten")
    text = portable(recipe, folder).to_toml()
    if known is None or not known.finished:
        write_atomic(folder / RECIPE, text)
        write_atomic(folder / RECORD, strict_json.dump(run.record, FORMAT, VERSION))
    elif _text(folder / RECIPE) != text:  # what comes after training may change: the key is of what decides the weights
        write_atomic(folder / RECIPE, text)
        changed = replace(known.record, recipe_sha256=run.record.recipe_sha256)
        write_atomic(folder / RECORD, strict_json.dump(changed, FORMAT, VERSION))
    return known is None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _take_back(run: Run) -> None:
    """Leaves no run where training was refused before its first epoch was over: the folder is free for a better recipe."""
    if not (run.folder / run.record.network).exists():
        for name in (RECIPE, RECORD):
            (run.folder / name).unlink(missing_ok=True)
        if not any(run.folder.iterdir()):
            run.folder.rmdir()


def _whole(record: Record, trained: TrainedModel) -> Record:
    return replace(
        record,
        network_sha256=trained.digest(),
        weights_before=trained.weights_before,
        weights_after=trained.weights_after,
        epochs=trained.history,
    )


def _finish(run: Run) -> None:
    """Leaves the record of a run that was finished already as it is: it names the command and the machine that made it.

    Raises InputError where that names another network: what lies there is not what was trained.
    """
    from cactus_edge.report.plots import training_image

    known = find_run(run.folder)
    curves = run.folder / CURVES
    if known is not None and known.finished:
        require_network(known, run.record.network_sha256)
    if known is None or not known.finished or not curves.is_file():
        write_atomic(curves, training_image(epochs(run.record.epochs), "svg"))
        write_atomic(run.folder / RECORD, strict_json.dump(run.record, FORMAT, VERSION))


def portable(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the user's own data and code named from `folder`, where the recipe will stand."""
    data, model = recipe.data, recipe.model
    file, images, code = (os.path.relpath(p, folder) if p else "" for p in (data.file, data.folder, model.folder))
    return replace(recipe, data=replace(data, file=file, folder=images), model=replace(model, folder=code))


def epochs(history: tuple[EpochStats, ...]) -> tuple[r.Epoch, ...]:
    """The history as a report's epochs, numbered through all stages."""
    rows = enumerate(history, start=1)
    return tuple(r.Epoch(i, e.seconds, float(e.eps), e.loss, e.val_clean, e.val_certified) for i, e in rows)


def device_name(group: Group) -> str:
    """What the process computes on, in words."""
    import torch

    kind = group.device.type
    return f"{kind}: {torch.cuda.get_device_name(group.device)}" if kind == "cuda" else kind


class EpochReport:
    """Tells a `Progress` about each epoch: how far it is of all stages, its figures, and about how long the rest takes."""

    RECENT = 5
    """Epochs whose mean time is taken for that of those to come."""

    def __init__(self, plan: dict[str, int], progress: Progress) -> None:
        self._plan, self._progress, self._seldom = plan, progress, Seldom()
        self._seconds: list[float] = []

    @property
    def silent(self) -> bool:
        """Whether there was nothing to tell."""
        return not self._seconds

    def __call__(self, e: EpochStats) -> None:
        """Tells."""
        self._seconds.append(e.seconds)
        done, total = e.number(self._plan), sum(self._plan.values())
        recent = self._seconds[-self.RECENT :]
        left = (total - done) * sum(recent) / len(recent)
        self._seldom.told()
        self._progress.advance(done, total, f"{figures(e)}{f'  {duration(left)} left' if done < total else ''}")

    def underway(self, u: Underway) -> None:
        """Tells how far an epoch is, if nothing was told for long."""
        if self._seldom.due():
            self._progress.advance(u.finished(self._plan), sum(self._plan.values()), u.words)


def figures(e: EpochStats) -> str:
    """An epoch in one line."""
    trained = f"train {e.train_clean:.1%} clean {e.train_certified:.1%} certified"
    return (
        f"{e.stage}  loss {e.loss:.4f}  eps {e.eps:.4g}  {trained}  {validated(e)}{f'  {e.undone}' if e.undone else ''}"
    )


def validated(e: EpochStats) -> str:
    """The validation figures of an epoch."""
    return f"validation {e.val_clean:.1%} clean {e.val_certified:.1%} certified"


def duration(seconds: float) -> str:
    """About so long: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def command_line(otherwise: str) -> str:
    """The command as it was typed, but for who and where a computer is; or `otherwise`."""
    if Path(sys.argv[0]).stem not in TYPED:
        return otherwise
    words = ["--host=user@host" if word.startswith("--host=") else word for word in sys.argv[1:]]
    words = ["user@host" if before == "--host" else word for before, word in zip(["", *words], words, strict=False)]
    return shlex.join(["cactus-edge", *words])


TYPED = ("cactus-edge", "__main__")
"""What runs when a command was typed: the script, or the package under `python -m`."""
