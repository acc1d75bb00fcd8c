"""The training loop: deterministic by seed, resumable bit for bit, silent.

Whatever is random in an epoch comes from a generator seeded by (seed, stage, epoch), and the state after each epoch is
written atomically; so the position is all that a resumed run has to restore besides parameters and optimiser.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.resources import write_atomic
from cactus_edge.train.allocation import allocated, begun, keeping
from cactus_edge.train.augment import augmented, check, views
from cactus_edge.train.averaging import Average, nothing
from cactus_edge.train.bits import ChosenBits, chosen_bits, require_choice
from cactus_edge.train.bounds import Box, ball, cut, holds, propagate
from cactus_edge.train.checkpoints import checkpoint, kept, require_intact, run_key, shared
from cactus_edge.train.data import Dataset, Split
from cactus_edge.train.fakequant import Ceilings, clamp, layer_bits, usual_ceilings
from cactus_edge.train.folded import Folded, fold, forward, statistics
from cactus_edge.train.grids import input_grid
from cactus_edge.train.history import EpochStats as EpochStats
from cactus_edge.train.history import Underway
from cactus_edge.train.methods import stages
from cactus_edge.train.models import Network, products_in, windowed
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.parallel import ALONE, Group, in_parts, set_gradient, settled
from cactus_edge.train.projections import unconstrained
from cactus_edge.train.recovery import Guess, Recovery, right
from cactus_edge.train.sampling import batches, typical
from cactus_edge.train.sparsity import Sparsity, held, sparsified
from cactus_edge.train.stages import FINETUNING, Schedule, Stage, Terms
from cactus_edge.train.trained import TrainedModel
from cactus_edge.train.updates import optimiser

STATISTICS_SAMPLES = 4096
"""Training samples over which batch normalisation's running statistics are taken after each epoch."""


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What [train] precision names."""


def train(
    recipe: Recipe,
    dataset: Dataset,
    workdir: Path,
    on_epoch: Callable[[EpochStats], None] | None = None,
    threads: int | None = None,
    *,
    method: str | None = None,
    seed: int | None = None,
    group: Group = ALONE,
    on_step: Callable[[Underway], None] | None = None,
) -> TrainedModel:
    """Trains and compresses as the recipe says; continues where an interrupted run with the same inputs stopped.

    threads: torch's for the time of the call (default: the recipe's, else as set). method, seed: instead of the recipe's. The
    checkpoint lies in `workdir` under a name that hashes recipe, data, method and seed, so runs never mix. Ctrl-C leaves the
    last finished epoch there. on_epoch is called after each epoch that this call runs, on_step after each step but an epoch's
    last. Same inputs and threads give the same weights, bit for bit. group: the processes that share the work, each of which
    calls this (`parallel.joined`); the first writes and calls them. Raises InputError for an unknown method, an unwritable
    folder, or parts too small or too few.
    """
    method = recipe.train.method if method is None else method
    parts, batch = recipe.train.parts, recipe.train.batch
    if parts % group.size:
        raise InputError(f"[train] parts = {parts} for {group.size} processes", hint=f"a multiple of {group.size}")
    if parts > 1 and batch < 4 * parts:
        raise InputError(f"[train] batch = {batch} in {parts} parts", hint=f"a batch of at least {4 * parts}")
    with settled(threads or recipe.train.threads or None, group.device):
        run = _Run(recipe, dataset, workdir, method, recipe.train.seed if seed is None else seed, group)
        return run.finish(on_epoch, on_step)


def planned(recipe: Recipe, method: str | None = None) -> dict[str, int]:
    """The method's stages in order, with their epochs. Raises InputError for an unknown method."""
    chosen = stages(recipe.train.method if method is None else method, recipe)
    return {stage.name: stage.schedule(recipe).epochs for stage in chosen}


def to_torch(split: Split) -> tuple[Tensor, Tensor]:
    """x float32 [N, C, H, W] and y int64 [N]."""
    return torch.from_numpy(np.ascontiguousarray(split.x.transpose(0, 3, 1, 2))), torch.from_numpy(np.array(split.y))


class _Run:
    """One method on one recipe and seed: position, network, optimiser and history."""

    def __init__(
        self, recipe: Recipe, dataset: Dataset, workdir: Path, method: str, seed: int, group: Group = ALONE
    ) -> None:
        self._recipe = replace(recipe, train=replace(recipe.train, method=method, seed=seed))
        self._domain, self._method, self._seed = dataset.domain, method, seed
        self._eps, whole = dataset.radii(recipe.certify.eps), float(recipe.train.eps)
        self._reach = [float(r) / whole if whole else 0.0 for r in dataset.radii(recipe.train.eps)]
        self._group, device = group, group.device
        self._window, self._zero = input_grid(recipe, dataset).window(dataset.domain), float(dataset.zero)
        check(recipe.train, dataset.shape)
        self._x, self._y = (t.to(device) for t in to_torch(dataset.train))
        rows = typical(self._y, STATISTICS_SAMPLES, recipe.train.class_balance)
        self._typical, self._typical_y = self._x[rows], self._y[rows]
        self._validation = tuple(t.to(device) for t in to_torch(dataset.validation))
        self._key = run_key(recipe, dataset, method, seed)
        self._file = checkpoint(recipe, dataset, workdir, method, seed)
        self._stages = stages(method, self._recipe)
        self._shared = shared(recipe, dataset, workdir, self._stages[0], seed) if self._stages[0].shared else None
        shape, classes, compressed = dataset.shape, len(dataset.labels), self._stages[0].compressed
        # Drawn on the CPU wherever it trains, as everything random here: equal seeds begin with equal weights.
        start = begun(recipe, shape, classes, seed, compressed=compressed)
        self._network = Network(windowed(start.layers(), self._window)).to(device)
        layer_bits(recipe.quantise.weight_bits, len(self._network.layers()))
        if recipe.quantise.weight_bytes:
            require_choice(self._recipe, self._stages, shape, classes)
        self._widths_before, self._weights_before = self._network.widths(), self._network.weights()
        self._history: list[EpochStats] = []
        self._stage, self._epoch = 0, 0
        self._optimizer: torch.optim.Optimizer | None = None
        self._average: Average | None = None
        self._recovery = Recovery()
        self._chosen: ChosenBits | None = None
        self._on_step: Callable[[Underway], None] | None = None
        self._restore()

    def finish(
        self, on_epoch: Callable[[EpochStats], None] | None, on_step: Callable[[Underway], None] | None
    ) -> TrainedModel:
        """Runs the epochs that are still to do."""
        self._on_step = on_step if self._group.first else None
        while self._stage < len(self._stages):
            stage = self._stages[self._stage]
            if self._optimizer is None:
                self._network = self._entered(stage)
                self._optimizer, self._recovery = self._new_optimizer(), Recovery()
                self._set_statistics(self._network)
                if stage.name == FINETUNING and self._recipe.quantise.weight_bytes:
                    self._narrow(self._choice())
            schedule = stage.schedule(self._recipe)
            while self._epoch < schedule.epochs:
                stats = self._run_epoch(stage, schedule, self._optimizer)
                self._epoch += 1
                self._history.append(self._recovered(stats, stage, self._optimizer))
                if self._epoch < schedule.epochs:
                    self._save()
                    self._tell(on_epoch)
            self._network = self._handed_on()
            self._stage, self._epoch, self._optimizer, self._average = self._stage + 1, 0, None, None
            self._recovery = Recovery()
            self._save()
            if self._shared and self._stage == 1:
                self._write(*self._shared)
            if schedule.epochs > 0 and self._history[-1].epoch == schedule.epochs:
                self._tell(on_epoch)
        ceilings = self._ceilings(self._network, self._stages[-1])
        return TrainedModel(
            self._network.requires_grad_(False).eval().cpu(),
            self._method,
            self._seed,
            self._weights_before,
            self._network.weights(),
            self._widths_before,
            self._network.widths(),
            tuple(self._history),
            None if ceilings is None else tuple(c.cpu() for c in ceilings),
            self._chosen,
        )

    def _entered(self, stage: Stage) -> Network:
        """The network that `stage` trains. How much of each layer stays is decided once, when the first stage is over."""
        network, recipe, sample = self._network, self._recipe, self._sample()
        if self._stage == 1:
            network = allocated(network, recipe, sample, self._held_out())
        network = stage.enter(network, recipe, sample)
        return sparsified(network, Sparsity.of(recipe.compress)) if stage.compressed and self._stage > 0 else network

    def _choice(self) -> ChosenBits:
        with torch.no_grad():
            net = fold(self._network.layers())
            return chosen_bits(net, self._usual(net), self._recipe, self._held_out())

    def _narrow(self, chosen: ChosenBits) -> None:
        """From now on the recipe's widths are those that were chosen."""
        quantise = replace(self._recipe.quantise, weight_bits=chosen.weight_bits)
        self._chosen, self._recipe = chosen, replace(self._recipe, quantise=quantise)

    def _tell(self, on_epoch: Callable[[EpochStats], None] | None) -> None:
        if on_epoch and self._group.first:
            on_epoch(self._history[-1])

    @property
    def _staged(self) -> Recipe:
        """The recipe by which the present stage trains: every stage but the first fine-tunes, if it does not say otherwise."""
        tunes = self._stage and not self._stages[self._stage].training
        return self._recipe.finetuning() if tunes else self._recipe

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return optimiser(self._network, self._staged.train)

    def _run_epoch(self, stage: Stage, schedule: Schedule, optimizer: torch.optim.Optimizer) -> EpochStats:
        start, cpu_start, staged = time.monotonic(), time.process_time(), self._staged
        recipe, objective, update = staged.train, stage.objective(staged), stage.update(staged)
        domain = self._domain if recipe.attack_in_domain else None
        sparse = stage.compressed and self._recipe.compress.sparsity != "none"
        zeros = held(self._network) if sparse else unconstrained
        ends = float(self._domain[0]), float(self._domain[1])
        seed = _epoch_seed(self._seed, self._stage, self._epoch)
        generator = torch.Generator().manual_seed(seed)
        epoch = list(batches(self._y, recipe.batch, recipe.class_balance, generator))
        total, correct, certified, seen, step = 0.0, 0, 0, 0, Step(0.0, 0.0, 0.0)
        for i, index in enumerate(epoch):
            at = self._epoch + i / len(epoch)
            progress = schedule.progress(at)
            eps, weight = progress * schedule.eps, progress * schedule.robust_weight
            step = Step(progress, eps, weight, at / schedule.epochs)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(at) * self._recovery.slower
            x = augmented(self._x[index], recipe, self._domain, generator, self._zero)
            region = self._seen(ball(x, [step.eps * part for part in self._reach], domain))
            shown = views(x, recipe, self._domain, generator)
            batch = Batch(x, self._y[index], region, seed=seed + 1 + i, domain=ends, views=shown)
            parts = self._group.share(in_parts(batch, recipe.parts))
            found: list[Terms] = []

            def closure(parts: Sequence[Batch] = parts, step: Step = step, found: list[Terms] = found) -> Tensor:
                counted: list[Terms] = []

                def losses() -> Iterator[tuple[Tensor, int]]:
                    for part in parts:
                        with products_in(PRECISIONS[recipe.precision]):
                            counted.append(objective(self._network, part, step))
                        yield counted[-1].loss, len(part.y)

                loss = set_gradient(self._network, losses(), recipe.parts, self._group)
                found[:] = found or counted  # the record is of the first point, as the loss is
                return loss

            total += float(update(closure, optimizer)) * len(index)
            stage.projection(self._network)
            zeros(self._network)
            correct, certified = correct + sum(t.correct for t in found), certified + sum(t.certified for t in found)
            seen += len(index)
            if self._on_step and i + 1 < len(epoch):
                self._on_step(Underway(stage.name, self._epoch + 1, i + 1, len(epoch)))
        correct, certified = self._group.totals(correct, certified)
        self._set_statistics(self._network)
        if self._epoch >= schedule.epochs - schedule.average_epochs:
            self._average = (self._average or nothing(self._network)).include(self._network)
        clean, robust = self._validate(self._handed_on(), stage)
        return EpochStats(
            stage.name,
            self._epoch + 1,
            schedule.epochs,
            total / seen,
            step.eps,
            float(optimizer.param_groups[0]["lr"]),
            correct / seen,
            certified / seen,
            clean,
            robust,
            time.monotonic() - start,
            time.process_time() - cpu_start,
        )

    def _recovered(self, stats: EpochStats, stage: Stage, optimizer: torch.optim.Optimizer) -> EpochStats:
        """The epoch's record; undone where the network died in it."""
        recovery, y = self._recovery, self._typical_y
        found = right(self._real(self._network, stage), self._typical, y)
        if recovery.best is not None and recovery.dies(found, stats.loss, Guess.of(y)):
            self._average, self._recovery = recovery.best.restore(self._network, optimizer), recovery.returned()
            return recovery.best.undoes(stats)
        self._recovery = recovery.holding(stats, found, self._network, optimizer, self._average)
        return stats

    def _held_out(self) -> Batch:
        """What layers are measured on: validation samples, their regions those to be certified."""
        x, y = (t[:STATISTICS_SAMPLES] for t in self._validation)
        return Batch(x, y, self._seen(ball(x, self._eps, self._domain)))

    def _seen(self, region: Box) -> Box:
        """What the network tells apart of a region of inputs."""
        return cut(region, self._window)

    def _handed_on(self) -> Network:
        """The network that the next stage gets: the average where one has begun, with its own statistics."""
        if self._average is None:
            return self._network
        network = self._average.network(self._network)
        self._set_statistics(network)
        return network

    def _set_statistics(self, network: Network) -> None:
        with torch.no_grad():
            layers = network.layers()
            for layer, found in zip(layers, statistics(layers, self._typical), strict=True):
                if layer.norm is not None and found is not None:
                    layer.norm.mean.copy_(found[0])
                    layer.norm.var.copy_(found[1])

    def _ceilings(self, network: Network, stage: Stage) -> Ceilings | None:
        """Where the network's float form is clamped after `stage`: a network trained inside its ranges means nothing outside."""
        if not stage.clamped(self._recipe):
            return None
        with torch.no_grad():
            return self._usual(fold(network.layers()))

    def _usual(self, net: Folded) -> Ceilings:
        recipe = self._recipe
        part = -(-recipe.train.batch // recipe.train.parts)
        return usual_ceilings(net, self._typical, clip=recipe.quantise.train_clip, batch=part)

    def _real(self, network: Network, stage: Stage) -> Folded:
        """The network's float form after `stage`, clamped where it is to be."""
        ceilings = self._ceilings(network, stage)
        with torch.no_grad():
            net = fold(network.layers())
            return net if ceilings is None else clamp(net, ceilings)

    def _validate(self, network: Network, stage: Stage) -> tuple[float, float]:
        x, y = self._validation
        correct, certified = 0, 0
        rank, size = self._group.rank, self._group.size
        with torch.no_grad():
            net = self._real(network, stage)
            for a, b in [*zip(torch.split(x, 1024), torch.split(y, 1024), strict=True)][rank::size]:
                correct += int((forward(net, a).argmax(1) == b).sum())
                margin = propagate(net, ball(a, self._eps, self._domain), b).margin
                certified += int(holds(margin, b).sum())
        correct, certified = self._group.totals(correct, certified)
        return correct / len(y), certified / len(y)

    def _sample(self) -> Batch:
        """What a stage may look at on its way in: typical training samples, their regions of the whole radius."""
        x = self._typical
        region = self._seen(ball(x, [float(self._recipe.train.eps) * part for part in self._reach], self._domain))
        ends = float(self._domain[0]), float(self._domain[1])
        return Batch(x, self._typical_y, region, seed=_epoch_seed(self._seed, self._stage, -1), domain=ends)

    def _save(self) -> None:
        self._write(self._file, self._key)

    def _write(self, file: Path, key: str) -> None:
        if not self._group.first:
            return
        state = {
            "key": key,
            "stage": self._stage,
            "epoch": self._epoch,
            "kept": list(self._network.kept_widths()),
            "network": self._network.state_dict(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "average": None if self._average is None else [self._average.count, self._average.total],
            "recovery": self._recovery.to_state(),
            "history": [asdict(s) for s in self._history],
            "chosen": None if self._chosen is None else asdict(self._chosen),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(file, buffer.getvalue())

    def _restore(self) -> None:
        """Goes on from this run's own checkpoint, else from what another method left of the same first stage."""
        for file, key in [(self._file, self._key), *([self._shared] if self._shared else [])]:
            found = self._group.told(kept(file) if self._group.first else None)
            if found is not None:
                self._load(file, key, found)
                return

    def _load(self, file: Path, key: str, content: bytes) -> None:
        try:
            require_intact(content)
            state = torch.load(io.BytesIO(content), map_location=self._group.device, weights_only=True)
            if state["key"] != key:
                raise ValueError("it belongs to another run")
            entered = state["stage"] + (state["optimizer"] is not None)
            if entered > len(self._stages):
                raise ValueError(f"it is in stage {entered}, and {self._method} has {len(self._stages)} here")
            if entered > 1 and state.get("kept"):  # absent in older files
                self._network = keeping(self._network, tuple(state["kept"]))
            for stage in self._stages[:entered]:
                self._network = stage.enter(self._network, self._recipe, self._sample())
            self._network.load_state_dict(state["network"])
            if state["optimizer"] is not None:
                self._optimizer = self._new_optimizer()
                self._optimizer.load_state_dict(state["optimizer"])
            self._average = Average(*state["average"]) if state.get("average") else None  # absent in older files
            self._recovery = Recovery.of(state.get("recovery"))  # absent in older files
            self._history = [EpochStats(**s) for s in state["history"]]
            if state.get("chosen"):  # absent in older files
                self._narrow(ChosenBits(**state["chosen"]))
            self._stage, self._epoch = state["stage"], state["epoch"]
        except Exception as error:  # torch.load raises whatever its unpickler meets in a damaged file
            raise InputError(
                f"{file} is not a checkpoint of this run: {error}", hint="delete it to train anew"
            ) from error


def _epoch_seed(seed: int, stage: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{epoch}".encode()).digest()[:7], "little")
