"""Published verdicts on quantised networks against ours: the 700 regions of Henzinger, Lechner and Zikelic, AAAI 2021.

    git clone https://github.com/mlech26l/qnn_robustness_benchmarks DIR      # the weights; h5py reads them
    python bench/qnn_robustness.py --published DIR [--budget 10s] [--processes 2] [--fresh]

Two 6-bit networks, MNIST and Fashion-MNIST, radii of 1 to 4 steps of an 8-bit input. The published verdicts
(bench/suites/qnn-robustness.toml) come from bit-vector SMT, some of which ran out of time; there the first of equal maxima wins, and so
it does here. Each network becomes a .tflite that computes the published integers under profile tflm (bench/_qnn.py), which is
checked on the whole test set. Every proof is checked, and every counterexample replayed by the published formula.

A contradiction is a robust region here that was vulnerable there, or the reverse, or another list of misclassified samples.
"""

from __future__ import annotations

import argparse
import os
import time
import tomllib
from collections import Counter
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from _common import Results, Row, Target, existing, positive, run, table, verdict
from _networks import SUITES, Network

# isort: split
import numpy as np
from _qnn import Array, Codes, codes, published, tflite
from _search import searched

from cactus_edge.errors import InputError, InternalError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run as evaluate
from cactus_edge.ir.lowering import lower
from cactus_edge.process import settle
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.resources import sha256
from cactus_edge.train.data import load_dataset
from cactus_edge.verify.check import decided
from cactus_edge.verify.proof import parse
from cactus_edge.verify.regions import region
from cactus_edge.verify.tflite_read import read_tflite

COLUMNS = ("samples", "misclassified", "robust", "vulnerable", "open", "timeouts", "timeouts_decided", "contradictions")


class Published(Network):
    """A network of which the first of equal maxima wins."""

    @cached_property
    def program(self) -> Program:
        return replace(lower(read_tflite(self.model).graph, profile("tflm")), first_maximum=True)


class Subject:
    """One network: its published integers, its file, and the test images as codes with their labels."""

    def __init__(self, name: str, folder: Path) -> None:
        path = folder / "weights" / f"{name}_mlp.h5"
        try:
            stored = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", hint="--published DIR, a clone of it") from error
        self.layers: Codes = codes(stored)
        dataset = load_dataset(DataRecipe(set=name, validation_samples=5000))
        self.pixels = np.rint(dataset.test.x * 255).astype(np.int64).reshape(len(dataset.test.y), -1)
        self.network = Published(name, tflite(self.layers), (self.pixels - 128).astype(np.int8), dataset.test.y)
        outputs = published(self.layers, self.pixels)
        if not np.array_equal(evaluate(self.network.program, self.network.x) - 96, outputs):
            raise InternalError(f"the file does not compute the published integers of {name}")
        self.right = outputs.argmax(1) == dataset.test.y


def measure(subject: Subject, block: Row, budget: str, processes: int) -> Row:
    """One block: what was decided here, and how that compares."""
    first, count, eps = block["first"], block["samples"], block["eps"]
    listed = np.arange(first, first + count)
    wrong = [int(i) for i in listed if not subject.right[i]]
    asked = listed[subject.right[listed]]
    network = subject.network.part(asked)
    around = region(network.program, f"{eps}/256", (0, "255/256"))
    shares, found, searching = searched(network, around, budget, processes)
    start = time.monotonic()
    robust, refuted = np.zeros((2, len(asked)), np.bool_)
    for k, (share, (proof, _)) in enumerate(zip(shares, found, strict=True)):
        shown, lost = decided(network.program, around, share.x, share.y, proof, bytes.fromhex(network.digest))
        robust[k::processes], refuted[k::processes] = shown.certified, lost
        replay(subject, share, eps, proof)
    checking = time.monotonic() - start
    held, lost_here = ({int(i) for i in asked[which]} for which in (robust, refuted))
    vulnerable, timeouts = set(block["vulnerable"]), set(block["timeout"])
    robust_there = {int(i) for i in asked} - vulnerable - timeouts
    contradictions = (held & vulnerable) | (lost_here & robust_there) | (set(wrong) ^ set(block["misclassified"]))
    efforts = [effort for _, told in found for effort in told]
    return {
        "samples": count,
        "eps": eps,
        "misclassified": len(wrong),
        "robust": len(held),
        "vulnerable": len(lost_here),
        "open": len(asked) - len(held) - len(lost_here),
        "left_open": sorted({int(i) for i in asked} - held - lost_here),
        "timeouts": len(timeouts),
        "timeouts_decided": len(timeouts & (held | lost_here)),
        "contradictions": len(contradictions),
        "contradicted": sorted(contradictions),
        "by": dict(sorted(Counter(effort.by for effort in efforts).items())),
        "slowest_s": round(max(effort.seconds for effort in efforts), 2),
        "searching_s": round(searching, 1),
        "checking_s": round(checking, 1),
        "budget": budget,
        "processes": processes,
    }


def replay(subject: Subject, share: Network, eps: int, proof: bytes) -> None:
    """Raises InternalError unless every counterexample is one by the published formula, too."""
    for record in parse(proof, share.program).records:
        if isinstance(record.verdict, np.ndarray):
            pixels: Array = record.verdict.astype(np.int64).reshape(1, -1) + 128
            sample = share.x[record.sample].astype(np.int64) + 128
            away = np.abs(pixels[0] - sample).max()
            if away > eps or published(subject.layers, pixels).argmax() == record.label:
                raise InternalError(f"a counterexample to {share.name} is none by the published formula")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=existing, required=True, metavar="DIR", help="clone with the weights")
    parser.add_argument("--budget", default="10s", help="of each sample")
    parser.add_argument("--processes", type=positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    given = parser.parse_args()
    settle()
    results, rows = Results("qnn_robustness", fresh=given.fresh), dict[str, Row]()
    subjects: dict[str, Subject] = {}
    blocks: list[dict[str, Any]] = tomllib.loads((SUITES / "qnn-robustness.toml").read_text())["block"]
    for block in blocks:
        name = block["set"]
        subject = subjects.get(name) or subjects.setdefault(name, Subject(name, given.published))
        digest = subject.network.digest
        inputs = sha256(f"{digest} {block} {given.budget} {given.processes}".encode())
        work = partial(measure, subject, block, given.budget, given.processes)
        key = f"{name} {block['first']} to {block['first'] + block['samples'] - 1}, eps {block['eps']}"
        rows[key] = results.row(key, inputs, work, {"model": digest})
    print(table([["block", *COLUMNS], *([key, *(str(row[c]) for c in COLUMNS)] for key, row in rows.items())]))
    for key, row in rows.items():
        if row["contradicted"]:
            print(f"{key}: published otherwise: {row['contradicted']}")
    left, asked = sum(row["open"] for row in rows.values()), sum(row["samples"] for row in rows.values())
    total = sum(row["contradictions"] for row in rows.values())
    return verdict(
        [Target("contradictions", total, 0, at_most=True), Target("decided, %", 100 * (1 - left / asked), 95)]
    )


if __name__ == "__main__":
    run(main)
