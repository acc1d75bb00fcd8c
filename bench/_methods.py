"""One row of a bench of methods: a method's network, its file, and all that is measured on it; or what it would take."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from _common import Results, Row, code
from _judges import Subject, judged, parsed
from _suite import Case, Group, judges
from _training import Job

from cactus_edge.errors import InputError
from cactus_edge.formats.onnx import read_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.inspection import total_macs
from cactus_edge.recipe_sections import CompressRecipe
from cactus_edge.train.data import load_dataset
from cactus_edge.verify.tflite_read import read_tflite

STEPS, STEP_SAMPLES = 2, 16
"""Optimiser steps behind an estimate, after one that is not counted, and samples in each: whole batches are no slower a sample."""


_dataset = cache(load_dataset)


@dataclass(frozen=True)
class Measurement:
    """One case of a group and seed. bench: whose row it is; checkpoints of a bench's recipes lie together."""

    bench: str
    group: Group
    case: Case
    seed: int
    workdir: Path
    threads: int

    @property
    def key(self) -> str:
        """Where the row is stored."""
        return f"{self.case.key}/{self.seed}"

    @cached_property
    def job(self) -> Job:
        """The shared part; checkpoints of one recipe's methods lie together, so that they find their common beginning."""
        recipe, device = self.case.recipe, "cuda" if self.group.gpu else "cpu"
        return Job(recipe, _dataset(recipe.data), self.workdir / self.bench, self.threads, device=device)

    @cached_property
    def inputs(self) -> str:
        """Digest of all that decides the figures."""
        from cactus_edge.train.checkpoints import run_key

        recipe, group = self.case.recipe, self.group
        key = run_key(recipe, self.job.dataset, seed=self.seed)
        count = next((parsed(text)[1] for text in group.judges if parsed(text)[0] == "best"), 0)
        deck = ["deck"] if recipe.deck.card else []
        rest = [recipe.digest("quantise", "certify", *deck), self.case.quantiser, str(count), group.budget]
        if group.judges != judges(count):
            rest += [*group.judges, group.transforms, *([str(group.draws)] if group.draws != 100 else [])]
        if {parsed(text)[0] for text in group.judges} & {"corrupted", "batches"}:
            rest.append(code("cactus_edge/corruptions", "cactus_edge/corrupted.py"))
        return hashlib.sha256(" ".join([key, *rest]).encode()).hexdigest()

    def stored(self, results: Results) -> bool:
        """Whether the row is there, of these very inputs."""
        return self.key in results.rows and results.rows[self.key].get("inputs") == self.inputs

    def row(self, results: Results, *, fresh: bool) -> Row:
        """The stored row, else measured now and stored."""
        if fresh:
            results.rows.pop(self.key, None)
        digests = {"data": self.job.dataset.digest(), "recipe": self.case.recipe.digest()}
        return results.row(self.key, self.inputs, self._measure, digests)

    def _measure(self) -> Row:
        recipe, job, group = self.case.recipe, self.job, self.group
        trained = job.trained(recipe.train.method, self.seed)
        data, made = job.file(trained) if self.case.quantiser == "ours" else self._by_nncf(trained)
        graph, history = read_tflite(data).graph, trained.history
        subject = Subject(job, trained, data, self.seed, group.budget, group.transforms, group.draws)
        return {
            **job.described(trained, data, subject.program),
            **made,
            **judged(subject, group.judges),
            "macs": total_macs(graph),
            "validation": [history[-1].val_clean, history[-1].val_certified] if history else [],
            "samples_seen": len(history) * len(job.dataset.train.y),
            "method": recipe.train.method,
            "objective": recipe.train.objective,
            "quantiser": self.case.quantiser,
            "role": self.case.role,
            "eps": str(recipe.certify.eps),
        }

    def _by_nncf(self, trained: Any) -> tuple[bytes, Row]:
        """NNCF's file, its integers in a .tflite: the same graph, judged under the same profile as every other row."""
        from cactus_edge.train.methods import nncf

        start, net, dataset = time.monotonic(), trained.folded(), self.job.dataset
        made = (
            nncf.quantised(net, dataset)
            if self.case.quantiser == "nncf"
            else nncf.trained_quantised(net, dataset, self.seed)
        )
        graph = read_onnx(made).graph
        return write_tflite(graph, metadata={}), {"calibrating_s": round(time.monotonic() - start, 1)}


def measurements(bench: str, group: Group, case: Case, seeds: int, workdir: Path, threads: int) -> list[Measurement]:
    """The case's rows, a seed each."""
    return [
        Measurement(bench, group, case, seed, workdir, threads) for seed in range(seeds or case.seeds or group.seeds)
    ]


@dataclass(frozen=True)
class Estimate:
    """Processor hours of a seed by what is trained: a first stage that several rows share has one name in all of them."""

    case: Case
    hours: dict[str, float]
    told: str

    def __str__(self) -> str:
        total = sum(self.hours.values())
        return f"{self.case.key}: about {total:.1f} processor hours a seed on this machine{self.told}; --gpu or --cpu trains it"


def estimate(group: Group, case: Case, threads: int) -> Estimate:
    """What the case would take here, from a few measured steps of each of its stages on random samples of the right shape."""
    import torch

    from cactus_edge.train.bounds import ball
    from cactus_edge.train.build import build
    from cactus_edge.train.methods import stages
    from cactus_edge.train.objectives.loss import Batch, Step
    from cactus_edge.train.updates import optimiser

    if group.shape is None:
        raise InputError(f"group {group.key} is marked gpu and has no shape", hint="shape = [32, 32, 3, 50000, 10]")
    recipe, (height, width, channels, samples, classes) = case.recipe, group.shape
    before = torch.get_num_threads()
    torch.set_num_threads(threads or recipe.train.threads or before)
    try:
        t = recipe.train
        count = min(t.batch, STEP_SAMPLES)
        x = torch.rand((count, channels, height, width), generator=torch.Generator().manual_seed(0))
        shown = (x, x) if t.consistency > 0 else ()
        batch = Batch(x, torch.arange(count) % classes, ball(x, float(t.eps), (0, 1)), views=shown)
        chain = stages(t.method, recipe)
        network = build(recipe.model, (height, width, channels), classes, 0, compressed=chain[0].compressed)
        hours: dict[str, float] = {}
        steps: dict[Any, float] = {}
        taken: dict[Any, list[tuple[str, int]]] = {}
        for stage in chain:
            network = stage.enter(network, recipe, batch)
            staged = recipe if stage is chain[0] else recipe.finetuning()
            schedule, objective = stage.schedule(recipe), stage.objective(staged)
            optimizer = optimiser(network, staged.train)
            # Rounds that differ in their zeros alone take as long: dozens of them are measured once.
            alike, seconds = (stage.objective, type(network), network.weights(), staged.train), []
            for _ in range(STEPS + 1 if schedule.epochs and alike not in steps else 0):
                start = time.process_time()
                optimizer.zero_grad(set_to_none=True)
                objective(network, batch, Step(1.0, float(t.eps), t.robust_weight)).loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                seconds.append(time.process_time() - start)
            if seconds:
                steps[alike] = min(seconds[1:])
            if schedule.epochs:
                alone = replace(recipe, train=replace(t, method=stage.name), compress=CompressRecipe())
                whose = alone.digest("model", "train", "compress") if stage.shared else case.key
                hours[f"{stage.name} of {whose}"] = steps[alike] / count * schedule.epochs * samples / 3600
                taken.setdefault(alike, []).append((stage.name, schedule.epochs))
    finally:
        torch.set_num_threads(before)
    told = []
    for alike, found in taken.items():
        names, epochs = dict.fromkeys((found[0][0], found[-1][0])), sum(n for _, n in found)
        told.append(f"{' to '.join(names)} {epochs} epochs at {count / steps[alike]:.0f} samples/s")
    return Estimate(case, hours, f" ({'; '.join(told)})" if told else "")
