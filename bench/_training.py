"""Trains a recipe, writes its .tflite, and measures that file: what the benches named after a recipe print."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from _common import Results, Row, Target, arguments, median, percent, table, verdict

# isort: split
import numpy as np

from cactus_edge.assess import Bools
from cactus_edge.certify.attack import strict_win
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Float32, Int64
from cactus_edge.recipe import Recipe, load_recipe
from cactus_edge.train.data import Dataset, Split, load_dataset
from cactus_edge.verify.decide import certify
from cactus_edge.verify.regions import Region, points
from cactus_edge.verify.tflite_read import read_tflite

if TYPE_CHECKING:
    from cactus_edge.train.deck.cards import TrainedDeck
    from cactus_edge.train.trained import TrainedModel

PROFILE = "tflm"


@dataclass(frozen=True)
class Job:
    """One network to train and measure. split: "test" for figures, "validation" for choosing. device: that trains."""

    recipe: Recipe
    dataset: Dataset
    workdir: Path
    threads: int
    split: str = "test"
    device: str = "cpu"

    def row(self, results: Results, method: str, seed: int) -> Row:
        """The measured row of one training method and seed; stored under `method/seed`."""
        from cactus_edge.train.checkpoints import run_key

        key = run_key(self.recipe, self.dataset, method, seed)
        inputs = hashlib.sha256(f"{key}{self.recipe.digest('quantise', 'certify')}{self.split}".encode()).hexdigest()
        digests = {"data": self.dataset.digest(), "recipe": self.recipe.digest()}
        return results.row(f"{method}/{seed}", inputs, lambda: self.measure(method, seed), digests)

    def measure(self, method: str, seed: int) -> Row:
        """The same, measured now."""
        trained = self.trained(method, seed)
        data, made = self.file(trained)
        return self.judged(trained, data) | made

    def trained(self, method: str, seed: int) -> TrainedModel | TrainedDeck:
        """The trained network, or the cards of a deck, from checkpoints where training is finished. method: of no deck."""
        from cactus_edge.train.loop import EpochStats, train
        from cactus_edge.train.parallel import joined

        if self.recipe.deck.card:
            return self._deck(seed)

        def tell(s: EpochStats) -> None:
            line = f"{method} seed {seed}: {s.stage} {s.epoch}/{s.epochs}, validation {percent(s.val_clean)} / {percent(s.val_certified)}"
            print(f"\r{line} ", end="", file=sys.stderr, flush=True)

        with joined(self.device) as group:
            model = train(
                self.recipe, self.dataset, self.workdir, tell, self.threads, method=method, seed=seed, group=group
            )
        print(file=sys.stderr)
        return model

    def _deck(self, seed: int) -> TrainedDeck:
        from cactus_edge.train.deck.cards import train_deck
        from cactus_edge.train.loop import EpochStats

        def tell(card: int, done: int, total: int, s: EpochStats) -> None:
            line = f"card {card} seed {seed}: {done}/{total}, validation {percent(s.val_clean)}"
            print(f"\r{line} ", end="", file=sys.stderr, flush=True)

        recipe = replace(self.recipe, train=replace(self.recipe.train, seed=seed))
        deck = train_deck(recipe, self.dataset, self.workdir, tell, self.threads)
        print(file=sys.stderr)
        return deck

    def file(self, trained: TrainedModel | TrainedDeck) -> tuple[bytes, Row]:
        """The .tflite, and how it was calibrated; of a deck what it is instead."""
        from cactus_edge.formats.tflite import write_tflite
        from cactus_edge.train.calibrate import calibrate
        from cactus_edge.train.deck.cards import TrainedDeck, deck_graph
        from cactus_edge.train.deck.describe import described
        from cactus_edge.train.quantize import export

        start = time.monotonic()
        if isinstance(trained, TrainedDeck):
            graph = deck_graph(trained, self.dataset, self.recipe)
            made = {"deck": described(trained, graph, self.dataset, self.recipe)}
            return write_tflite(graph, metadata={}), made
        net = trained.narrowed(self.recipe)
        calibration = calibrate(net, self.dataset, self.recipe)
        made = {
            "clips": list(calibration.clips),
            "chosen": calibration.chosen,
            "validation_clean": calibration.correct / calibration.samples,
            "validation_certified": calibration.certified / calibration.samples,
            "calibrating_s": round(time.monotonic() - start, 1),
        }
        return write_tflite(export(net, calibration, self.dataset.shape), metadata={}), made

    def samples(self) -> Split:
        """What is measured on: the first of the split, as many as the recipe certifies."""
        split = self.dataset.test if self.split == "test" else self.dataset.validation
        count = min(self.recipe.certify.samples or len(split.y), len(split.y))
        return Split(split.x[:count], split.y[:count])

    def region(self) -> Region:
        """The recipe's balls, around any sample."""
        return Region(self.dataset.features(self.recipe.certify.eps), self.dataset.domain)

    def judged(self, trained: TrainedModel | TrainedDeck, data: bytes) -> Row:
        """The file's accuracies and its network's, and what they cost."""
        program = lower(read_tflite(data).graph, profile(PROFILE))
        return self.described(trained, data, program) | self.certified(trained, program)

    def described(self, trained: TrainedModel | TrainedDeck, data: bytes, program: Program) -> Row:
        """The clean accuracies of the file and of its network, sizes and times."""
        from cactus_edge.train.evaluate import float_predict

        x, y = self.samples().x, self.samples().y
        right = correct(program, x, y)
        return {
            "samples": len(y),
            "float_clean": float((float_predict(trained, x) == y).mean()),
            "clean": float(right.mean()),
            "clean_balanced": balanced(right, y),
            "bytes": len(data),
            "weights_before": list(trained.weights_before),
            "weights_after": list(trained.weights_after),
            "network": trained.digest(),
            "training_s": round(sum(s.seconds for s in trained.history), 1),
            "training_cpu_s": round(sum(s.cpu_seconds for s in trained.history), 1),
            "threads": self.threads or self.recipe.train.threads,
        }

    def certified(self, trained: TrainedModel | TrainedDeck, program: Program) -> Row:
        """What intervals certify of the file, exactly, and of its network."""
        from cactus_edge.train.evaluate import float_certified

        x, y = self.samples().x, self.samples().y
        eps, domain = self.dataset.radii(self.recipe.certify.eps), self.dataset.domain
        start = time.monotonic()
        decision = certify(program, self.region(), x, y, threads=self.threads or len(os.sched_getaffinity(0)))
        held = float_certified(trained, x, y, eps, domain)
        return {
            "float_certified": float(held.mean()),
            "float_certified_balanced": balanced(held, y),
            "certified": float(decision.certified.mean()),
            "certified_balanced": balanced(decision.certified, y),
            "certifying_s": round(time.monotonic() - start, 2),
        }


def correct(program: Program, x: Float32, y: Int64, batch: int = 500) -> Bools:
    """Whether the label wins strictly at each sample."""
    parts = (run(program, points(program, x[i : i + batch])) for i in range(0, len(x), batch))
    return strict_win(np.concatenate([p.reshape(len(p), -1) for p in parts]), y.astype(np.int64))


def balanced(right: Bools, y: Int64) -> float:
    """Mean over the classes of the share that is right: where most samples are of one class, it alone says little."""
    return float(np.mean([right[y == label].mean() for label in np.unique(y)]))


Targets = Callable[[Recipe, list[Row], list[Row]], list[Target]]
"""What there is to reach, from the recipe, the rows of the compressed network and those of the small one."""


def bench(description: str, name: str, *, seeds: int, targets: Targets) -> int:
    """Measures the recipe `name` for each seed, compressed and small, prints the table and the verdict on `targets`."""
    options = arguments(description, seeds=seeds)
    recipe = load_recipe(name)
    dataset = load_dataset(recipe.data)
    stem = Path(sys.argv[0]).stem
    results = Results(stem if options.split == "test" else f"{stem}-validation", fresh=options.fresh)
    job = Job(recipe, dataset, options.workdir / name, options.threads, options.split)
    rows: dict[str, list[Row]] = {"cactus": [], "small": []}
    for seed in range(options.seeds):
        for method, measured in rows.items():
            measured.append(job.row(results, method, seed))
    samples = f"{rows['cactus'][0]['samples']} {options.split} samples"
    print(f"{name}, {samples}, eps = {recipe.certify.eps}, profile {PROFILE}, {options.seeds} seeds")
    print(table([_HEAD, *(_line(f"{m} {i}", row) for m in rows for i, row in enumerate(rows[m]))]))
    for method, group in rows.items():
        middle = [percent(median(group, k)) for k in ("float_clean", "float_certified", "clean", "certified")]
        print(f"median {method}: float {middle[0]} / {middle[1]}, int8 {middle[2]} / {middle[3]}")
    return verdict(targets(recipe, rows["cactus"], rows["small"]))


def ahead(ours: list[Row], small: list[Row], key: str, other: str) -> float:
    """Points by which the median of `key` over ours exceeds the median of `other` over small."""
    return 100 * (median(ours, key) - median(small, other))


def removed(rows: list[Row], layers: slice = slice(None)) -> float:
    """Smallest part, in per cent, of the weights of `layers` that is gone, over the rows."""
    return 100 * float(min(1 - sum(r["weights_after"][layers]) / sum(r["weights_before"][layers]) for r in rows))


_HEAD = ["network, seed", "float clean", "float cert.", "int8 clean", "int8 cert.", "bytes", "weights", "trained in s"]


def _line(label: str, row: Row) -> list[str]:
    accuracies = [percent(row[k]) for k in ("float_clean", "float_certified", "clean", "certified")]
    weights = f"{sum(row['weights_before'])} -> {sum(row['weights_after'])}"
    return [label, *accuracies, str(row["bytes"]), weights, f"{row['training_s']:.0f}"]
