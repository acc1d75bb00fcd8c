"""Trains a recipe, writes its .tflite, and measures that file: what bench/digits.py and bench/mnist.py print."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _common import Results, Row, percent

from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import lower
from cactus_edge.recipe import Recipe
from cactus_edge.train.data import Dataset

PROFILE = "tflm"


@dataclass(frozen=True)
class Job:
    """One network to train and measure. split: "test" for figures, "validation" for choosing."""

    recipe: Recipe
    dataset: Dataset
    workdir: Path
    threads: int
    split: str = "test"

    def row(self, results: Results, method: str, seed: int) -> Row:
        """The measured row of one training method and seed; stored under `method/seed`."""
        from cactus_edge.train.loop import run_key

        key = run_key(self.recipe, self.dataset, method, seed)
        inputs = hashlib.sha256(f"{key}{self.recipe.digest('quantise', 'certify')}{self.split}".encode()).hexdigest()
        digests = {"data": self.dataset.digest(), "recipe": self.recipe.digest()}
        return results.row(f"{method}/{seed}", inputs, lambda: self._measure(method, seed), digests)

    def _measure(self, method: str, seed: int) -> Row:
        from cactus_edge.formats.tflite import read_tflite, write_tflite
        from cactus_edge.train.evaluate import float_certified, float_predict
        from cactus_edge.train.loop import EpochStats, train
        from cactus_edge.train.quantize import calibrate, export
        from cactus_edge.verify.decide import certify
        from cactus_edge.verify.regions import Region

        def tell(s: EpochStats) -> None:
            line = f"{method} seed {seed}: {s.stage} {s.epoch}/{s.epochs}, validation {percent(s.val_clean)} / {percent(s.val_certified)}"
            print(f"\r{line} ", end="", file=sys.stderr, flush=True)

        trained = train(self.recipe, self.dataset, self.workdir, tell, self.threads, method=method, seed=seed)
        print(file=sys.stderr)
        start = time.monotonic()
        net = trained.folded()
        calibration = calibrate(net, self.dataset, self.recipe)
        calibrating = time.monotonic() - start
        data = write_tflite(export(net, calibration, self.dataset.shape), metadata={})
        program = lower(read_tflite(data).graph, profile(PROFILE))
        split = self.dataset.test if self.split == "test" else self.dataset.validation
        count = min(self.recipe.certify.samples or len(split.y), len(split.y))
        x, y, eps = split.x[:count], split.y[:count], self.recipe.certify.eps
        start = time.monotonic()
        decision = certify(program, Region((eps,), self.dataset.domain), x, y, threads=self.threads)
        certifying = time.monotonic() - start
        return {
            "samples": count,
            "float_clean": float((float_predict(trained, x) == y).mean()),
            "float_certified": float(float_certified(trained, x, y, eps, self.dataset.domain).mean()),
            "clean": float(decision.correct.mean()),
            "certified": float(decision.certified.mean()),
            "bytes": len(data),
            "clips": list(calibration.clips),
            "weights_before": list(trained.weights_before),
            "weights_after": list(trained.weights_after),
            "network": trained.digest(),
            "training_s": round(sum(s.seconds for s in trained.history), 1),
            "calibrating_s": round(calibrating, 1),
            "certifying_s": round(certifying, 2),
            "threads": self.threads,
        }


HEAD = ["network, seed", "float clean", "float cert.", "int8 clean", "int8 cert.", "bytes", "weights", "trained in s"]


def line(label: str, row: Row) -> list[str]:
    """One table row under HEAD."""
    accuracies = [percent(row[k]) for k in ("float_clean", "float_certified", "clean", "certified")]
    weights = f"{sum(row['weights_before'])} -> {sum(row['weights_after'])}"
    return [label, *accuracies, str(row["bytes"]), weights, f"{row['training_s']:.0f}"]
