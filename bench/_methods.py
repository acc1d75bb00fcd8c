"""One row of `train_methods`: a method's network, its file, and all that is measured on it; or what it would take."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from _common import Results, Row
from _suite import Case, Group
from _training import PROFILE, Job

# isort: split
import numpy as np

from cactus_edge import assess
from cactus_edge.certify.complete import Budget, Complete
from cactus_edge.certify.find import find_all
from cactus_edge.errors import InputError
from cactus_edge.formats.onnx import read_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.inspection import macs
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.resources import sha256
from cactus_edge.train.data import load_dataset
from cactus_edge.verify.check import decided
from cactus_edge.verify.regions import box, points
from cactus_edge.verify.tflite_read import read_tflite

STEPS, STEP_SAMPLES = 2, 16
"""Optimiser steps behind an estimate, after one that is not counted, and samples in each: whole batches are no slower a sample."""


_dataset = cache(load_dataset)


@dataclass(frozen=True)
class Measurement:
    """One case and seed. budget: of each of the first `best_samples` samples, for all engines together."""

    case: Case
    seed: int
    workdir: Path
    threads: int
    best_samples: int
    budget: str
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Where the row is stored."""
        return f"{self.case.key}/{self.seed}"

    @cached_property
    def job(self) -> Job:
        """The shared part; checkpoints of one recipe's methods lie together, so that they find their common beginning."""
        recipe = self.case.recipe
        return Job(recipe, _dataset(recipe.data), self.workdir / "train-methods", self.threads, device=self.device)

    @cached_property
    def inputs(self) -> str:
        """Digest of all that decides the figures."""
        from cactus_edge.train.loop import run_key

        recipe = self.case.recipe
        key = run_key(recipe, self.job.dataset, seed=self.seed)
        rest = [recipe.digest("quantise", "certify"), self.case.quantiser, str(self.best_samples), self.budget]
        return hashlib.sha256(" ".join([key, *rest]).encode()).hexdigest()

    def stored(self, results: Results) -> bool:
        """Whether the row is there, of these very inputs."""
        return results.rows.get(self.key, {}).get("inputs") == self.inputs

    def row(self, results: Results, *, fresh: bool) -> Row:
        """The stored row, else measured now and stored."""
        if fresh:
            results.rows.pop(self.key, None)
        digests = {"data": self.job.dataset.digest(), "recipe": self.case.recipe.digest()}
        return results.row(self.key, self.inputs, self._measure, digests)

    def _measure(self) -> Row:
        recipe, job = self.case.recipe, self.job
        trained = job.trained(recipe.train.method, self.seed)
        data, made = job.file(trained) if self.case.quantiser == "ours" else self._by_nncf(trained)
        last, graph = trained.history[-1], read_tflite(data).graph
        return {
            **job.judged(trained, data),
            **made,
            **self._attacked(data),
            **self._best(data),
            "macs": sum(macs(node, graph.tensors[node.output]) for node in graph.nodes),
            "validation": [last.val_clean, last.val_certified],
            "samples_seen": len(trained.history) * len(job.dataset.train.y),
            "method": recipe.train.method,
            "objective": recipe.train.objective,
            "quantiser": self.case.quantiser,
            "role": self.case.role,
            "eps": str(recipe.certify.eps),
        }

    def _by_nncf(self, trained: Any) -> tuple[bytes, Row]:
        """NNCF's file, its integers in a .tflite: the same graph, judged under the same profile as every other row."""
        from cactus_edge.train.methods import nncf

        start = time.monotonic()
        graph = read_onnx(nncf.quantised(trained.folded(), self.job.dataset)).graph
        return write_tflite(graph, metadata={}), {"calibrating_s": round(time.monotonic() - start, 1)}

    def _attacked(self, data: bytes) -> Row:
        from cactus_edge.certify.interval import certify

        program = lower(read_tflite(data).graph, profile(PROFILE))
        samples, region = self.job.samples(), self.job.region()
        decision = certify(program, region, samples.x, samples.y, threads=max(self.threads, 1))
        around = box(program, region, samples.x)
        start = points(program, samples.x)
        standing = assess.survivors(program, *around, start, samples.y, decision.correct, decision.certified, self.seed)
        return {"attacked": standing / len(samples.y)}

    def _best(self, data: bytes) -> Row:
        """What intervals, lines, search and a solver certify of the first samples together; every proof checked."""
        if not self.best_samples:
            return {}
        from cactus_edge.certify.interval import certify

        program, region = lower(read_tflite(data).graph, profile(PROFILE)), self.job.region()
        x, y = (t[: self.best_samples] for t in (self.job.samples().x, self.job.samples().y))
        plain = certify(program, region, x, y, threads=max(self.threads, 1))
        rest = np.flatnonzero(plain.correct & ~plain.certified)
        start = time.monotonic()
        more, lost = 0, 0
        if len(rest):
            complete, key = Complete(program, Budget.parse(self.budget)), bytes.fromhex(sha256(data))
            proof, _ = find_all(complete, region, x[rest], y[rest], key)
            shown, refuted = decided(program, region, x[rest], y[rest], proof, key)
            more, lost = int(shown.certified.sum()), int(np.sum(refuted))
        sure = int(plain.certified.sum())
        return {
            "best": {
                "samples": len(y),
                "budget": self.budget,
                "intervals": sure / len(y),
                "certified": (sure + more) / len(y),
                "attacked": (int(plain.correct.sum()) - lost) / len(y),
                "searching_s": round(time.monotonic() - start, 1),
            }
        }


def measurements(group: Group, case: Case, seeds: int, workdir: Path, threads: int, budget: str) -> list[Measurement]:
    """The case's rows, a seed each."""
    count, limit = seeds or group.seeds, budget or group.budget
    device = "cuda" if group.gpu else "cpu"
    return [Measurement(case, seed, workdir, threads, group.best_samples, limit, device) for seed in range(count)]


def estimate(group: Group, case: Case, threads: int) -> str:
    """What the case would take here, from a few measured steps of each of its stages on random samples of the right shape."""
    import torch

    from cactus_edge.train.bounds import ball
    from cactus_edge.train.build import build
    from cactus_edge.train.methods import stages
    from cactus_edge.train.objectives.loss import Batch, Step

    if group.shape is None:
        raise InputError(f"group {group.key} is marked gpu and has no shape", hint="shape = [32, 32, 3, 50000, 10]")
    recipe, (height, width, channels, samples, classes) = case.recipe, group.shape
    before = torch.get_num_threads()
    torch.set_num_threads(threads or recipe.train.threads or before)
    try:
        t = recipe.train
        count = min(t.batch, STEP_SAMPLES)
        x = torch.rand((count, channels, height, width), generator=torch.Generator().manual_seed(0))
        batch = Batch(x, torch.arange(count) % classes, ball(x, float(t.eps), (0, 1)))
        chain = stages(t.method, recipe)
        network = build(recipe.model, (height, width, channels), classes, 0, compressed=chain[0].compressed)
        total, told = 0.0, []
        for stage in chain:
            network = stage.enter(network, recipe, batch)
            schedule, objective = stage.schedule(recipe), stage.objective(recipe)
            optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad])
            seconds = []
            for _ in range(STEPS + 1 if schedule.epochs else 0):
                start = time.monotonic()
                optimizer.zero_grad(set_to_none=True)
                objective(network, batch, Step(1.0, float(t.eps), t.robust_weight)).loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                seconds.append(time.monotonic() - start)
            if seconds:
                step = min(seconds[1:])
                total += step / count * schedule.epochs * samples
                told.append(f"{stage.name} {schedule.epochs} epochs at {count / step:.0f} samples/s")
    finally:
        torch.set_num_threads(before)
    return f"{case.key}: about {total / 3600:.1f} h a seed on this machine ({'; '.join(told)}); --gpu trains it"
