"""Speed of bounds on the integer file against the same layers in float32: plain, and bounded by auto_LiRPA.

    python bench/engine_speed.py [--lirpa DIR] [--build build] [--batch 128 1000] [--threads 1 2] [--runs 7] [--fresh]

All sides run in this process, in turns, over the same images and radii, with the same threads; medians count, and each side has
its network built. Ours begins at float32 pixels: exact ends of the regions, quantisation, bounds, fused margins, verdicts.

intervals: `certify`'s engine, a batch at a time, against a float32 forward pass of torch and auto_LiRPA's IBP. Beside it
stand `certify` as a whole (engine and proofs built, its own batches, clean verdicts) and numpy alone, as `verify` computes.
lines: linear bounds without any search for slopes, on samples that intervals leave open, against auto_LiRPA's CROWN;
and how many samples each certifies, intervals included. Finding is timed, in exact integers throughout: its verdicts hold by
themselves, and what it takes to check their proofs is in checking.py.

The float network is the file's: its weights and biases as reals, and ReLU. auto_LiRPA is no dependency: DIR (or AUTO_LIRPA) holds a
copy of its sources, for instance from `git clone https://github.com/Verified-Intelligence/auto_LiRPA DIR` and
`pip install --target DIR --no-deps appdirs graphviz`. Without it those figures stay as they were recorded, or missing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from _common import ROOT, Results, Row, Target, existing, positive, run, table, verdict
from _networks import DENSE, Network, Twin, built, images, threads, trained

# isort: split
import numpy as np
import torch

from cactus_edge.certify.interval import certify, quickest
from cactus_edge.certify.linear import Linear
from cactus_edge.certify.tiles import TILE
from cactus_edge.process import settle
from cactus_edge.verify import decide
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.proof import Record, Robust
from cactus_edge.verify.regions import Boxes, Index, region

INTERVALS = {"mnist": "1/10"}
"""Network -> radius, where intervals are timed."""

LINES = {"mnist": ("1/10", 400), "dense-64": ("4/255", 500), "dense-64-32": ("2/255", 500)}
"""Network -> radius and samples, where linear bounds are timed."""

BATCH = 64
"""Samples of one call of CROWN: more take longer each on these networks."""

Side = Callable[[], object]


class Lirpa:
    """auto_LiRPA's bounds on a float network; margins of the label against each class."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(folder))
        warnings.simplefilter("ignore")
        self.package: Any = importlib.import_module("auto_LiRPA")
        self.perturbations: Any = importlib.import_module("auto_LiRPA.perturbations")
        self.version = str(self.package.__version__)

    def margins(self, twin: Twin, x: torch.Tensor, y: torch.Tensor, eps: float, method: str, batch: int) -> Side:
        """A pass over x [N, C, H, W]: lower bounds [N, classes - 1] of the label's logit less every other."""
        networks: dict[int, Any] = {}
        classes = int(twin(x[:1]).shape[1])

        def work() -> torch.Tensor:
            found = []
            with torch.no_grad():
                for start in range(0, len(x), batch):
                    part, label = x[start : start + batch], y[start : start + batch]
                    if len(part) not in networks:
                        networks[len(part)] = self.package.BoundedModule(twin, part, device="cpu")
                    ends = {"x_L": (part - eps).clamp(0, 1), "x_U": (part + eps).clamp(0, 1)}
                    ball = self.perturbations.PerturbationLpNorm(norm=np.inf, **ends)
                    differences = torch.eye(classes)[label][:, None] - torch.eye(classes)[None]
                    others = differences[differences.abs().sum(2) > 0].reshape(len(part), classes - 1, classes)
                    box = self.package.BoundedTensor(part, ball)
                    low, _ = networks[len(part)].compute_bounds(x=(box,), method=method, C=others, bound_upper=False)
                    found.append(low)
            return torch.cat(found)

        return work


def seconds(sides: dict[str, Side], runs: int) -> dict[str, list[float]]:
    """Wall-clock seconds of each side, in turns, after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(runs + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def parts(first: int, end: int, size: int) -> Iterator[slice]:
    """first..end in slices of `size`."""
    return (slice(i, min(i + size, end)) for i in range(first, end, size))


def intervals(network: Network, eps: str, batch: int, lirpa: Lirpa | None, workers: int, runs: int) -> Row:
    """One row: microseconds an image of each side."""
    program, x, y = network.program, network.x, network.y
    ball = region(program, eps, (0, 1))
    twin, floats = Twin(program.graph), images(x)
    decider, boxes = Decider(program, quickest), Boxes(program, ball, x)

    def forward() -> None:
        with torch.inference_mode():
            for part in parts(0, len(x), batch):
                twin(floats[part])

    def decide_part(part: slice) -> None:
        lower, upper, owner = boxes(part)
        decider.decide(lower, upper, y[owner])

    def ours() -> None:
        share = -(-batch // workers // TILE) * TILE
        with threads(1), ThreadPoolExecutor(workers, initializer=partial(torch.set_num_threads, 1)) as pool:
            for part in parts(0, len(x), batch):
                list(pool.map(decide_part, parts(part.start, part.stop, share)))

    sides: dict[str, Side] = {
        "torch": forward,
        "ours": ours,
        "certify": lambda: certify(program, ball, x, y, threads=workers),
        "numpy": lambda: decide.certify(program, ball, x, y, threads=workers),
    }
    if lirpa is not None:
        sides["ibp"] = lirpa.margins(twin, floats, torch.from_numpy(y), float(Fraction(eps)), "IBP", batch)
    with threads(workers):
        times = seconds(sides, runs)
    row: Row = {f"{name}_us": round(1e6 * statistics.median(t) / len(x), 2) for name, t in times.items()}
    row |= {"images": len(x), "eps": eps, "batch": batch, "threads": workers, "runs": runs}
    row["of_forward"] = statistics.median(times["ours"]) / statistics.median(times["torch"])
    row["whole_of_forward"] = statistics.median(times["certify"]) / statistics.median(times["torch"])
    if lirpa is not None:
        row |= {
            "of_lirpa": statistics.median(times["ibp"]) / statistics.median(times["ours"]),
            "auto_LiRPA": lirpa.version,
        }
    return row


def lines(network: Network, eps: str, lirpa: Lirpa | None, workers: int, runs: int) -> Row:
    """One row: milliseconds a sample that intervals leave open, and how many of all samples each certifies."""
    program, x, y = network.program, network.x, network.y
    lower, upper, _ = region(program, eps, (0, 1)).boxes(program, x)
    search, twin, floats = Linear(program), Twin(program.graph), images(x)
    labels, radius = torch.from_numpy(y), float(Fraction(eps))

    def records(rows: Index) -> list[Record]:
        """By each worker a share."""
        shares = [share for share in np.array_split(rows, workers) if len(share)]
        with ThreadPoolExecutor(workers) as pool:
            found = pool.map(lambda i: search.records(lower[i], upper[i], i, y[i]), shares)
            return [record for share in found for record in share]

    def robust(found: list[Record]) -> int:
        return sum(isinstance(r.verdict, Robust) for r in found)

    certified, _ = Decider(program).decide(lower, upper, y)
    left = np.flatnonzero(~certified)
    sides: dict[str, Side] = {"ours": lambda: records(left)}
    row: Row = {"samples": len(x), "eps": eps, "open": len(left), "threads": workers, "runs": runs}
    row |= {"certified": robust(records(np.arange(len(x)))), "intervals": int(certified.sum())}
    with threads(workers):
        if lirpa is not None:
            every = lirpa.margins(twin, floats, labels, radius, "CROWN", BATCH)
            row["crown"] = int((every() > 0).all(1).sum())
            sides["crown"] = lirpa.margins(twin, floats[left], labels[left], radius, "CROWN", BATCH)
        times = {name: statistics.median(t) for name, t in seconds(sides, runs).items()}
    row |= {f"{name}_ms": round(1e3 * t / len(left), 3) for name, t in times.items()}
    if lirpa is not None:
        row |= {"of_lirpa": times["crown"] / times["ours"], "auto_LiRPA": lirpa.version}
        row["share_of_crown"] = row["certified"] / max(row["crown"], 1)
    return row


def networks(folder: Path, workdir: Path) -> Iterator[Network]:
    """What the radii above name."""
    for name in {**INTERVALS, **LINES}:
        yield trained(name, workdir) if name in DENSE else built(name, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lirpa", type=Path, default=os.environ.get("AUTO_LIRPA"), help="folder with auto_LiRPA's sources"
    )
    parser.add_argument("--build", type=existing, default=ROOT / "build", help="folder of finished builds")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "bench", help="checkpoints of training")
    parser.add_argument("--batch", type=positive, nargs="+", default=[128, 1000])
    parser.add_argument("--threads", type=positive, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--runs", type=positive, default=7)
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    given = parser.parse_args()
    settle()
    lirpa = None if given.lirpa is None else Lirpa(Path(given.lirpa))
    results = Results("engine_speed", fresh=given.fresh)
    found: dict[str, Row] = {}
    for network in networks(given.build, given.workdir):
        digests = {"model": network.digest}
        for count in given.threads:
            inputs = f"{network.digest} {count} {given.runs} {lirpa.version if lirpa else ''}"
            for batch in given.batch if network.name in INTERVALS else ():
                eps = INTERVALS[network.name]
                measure = partial(intervals, network, eps, batch, lirpa, count, given.runs)
                key = f"intervals, {network.name}, batch {batch}, threads {count}"
                found[key] = results.row(key, inputs, measure, digests)
            if network.name in LINES:
                eps, samples = LINES[network.name]
                part = network.part(slice(samples))
                measure = partial(lines, part, eps, lirpa, count, max(given.runs // 2, 1))
                key = f"lines, {network.name}, eps {eps}, threads {count}"
                found[key] = results.row(key, inputs, measure, digests)
    return report(found)


def report(found: dict[str, Row]) -> int:
    """Prints what was measured, and the verdict on the figures to reach."""
    targets: list[Target] = []
    for kind, columns in (
        ("intervals", ("torch_us", "ibp_us", "ours_us", "certify_us", "numpy_us")),
        ("lines", ("samples", "open", "intervals", "certified", "crown", "crown_ms", "ours_ms")),
    ):
        rows = {key: row for key, row in found.items() if key.startswith(kind)}
        print(table([[kind, *columns], *([key, *(str(r.get(c, "-")) for c in columns)] for key, r in rows.items())]))
        for key, row in rows.items():
            if kind == "intervals":
                targets.append(Target(f"{key}: times of a float32 forward pass", row["of_forward"], 3, at_most=True))
            least = 1.3 if kind == "intervals" else 1.0
            targets.append(Target(f"{key}: throughput of auto_LiRPA's", row.get("of_lirpa", 0.0), least))
            if kind == "lines":
                targets.append(Target(f"{key}: certified, of CROWN's", row.get("share_of_crown", 0.0), 0.95))
    return verdict(targets)


if __name__ == "__main__":
    run(main)
