"""Speed of one certified training step against the same step in plain PyTorch (bench/_plain_ibp.py).

    python bench/train_speed.py [--network mnist] [--batch 256] [--threads 1 2] [--precision float32] [--runs 15] [--fresh]

One step is the loss, its gradient, clipping and Adam, in the middle of the radius's growth, with the regulariser of the warm-up. Each
side is a process of its own, set up as it is run: ours as the command line does (`process.settle`: freed memory stays), plain code
as Python starts; `settled` is plain code set up as ours. They take turns on the same images, network and schedule, and medians of
wall-clock time count. Their losses are compared first. Plain code is told which channels stay; ours chooses them at each step. Plain
code multiplies in float32, ours as `[train] precision` says in float32 or in bfloat16, whose rows say so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import IO

from _common import Results, Row, Target, positive, run, table, verdict

# isort: split
import torch
import torch.nn.functional as F
from _plain_ibp import Plain, regulariser

from cactus_edge.errors import InternalError
from cactus_edge.process import settle
from cactus_edge.recipe import Recipe, load_recipe
from cactus_edge.train.bounds import ball
from cactus_edge.train.build import build
from cactus_edge.train.data import load_dataset
from cactus_edge.train.loop import PRECISIONS, to_torch
from cactus_edge.train.methods import stages
from cactus_edge.train.models import Network, products_in
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.prune import choose
from cactus_edge.train.updates import clipped

STEPS = {"ibp": ("full",), "cactus": ("full", "pruned", "quantised")}
"""What is timed, and the members of the network set."""

SIDES = ("ours", "plain", "settled")

APART = {"float32": 1e-4, "bfloat16": 1e-2}
"""How far the sides' losses may lie apart, relatively: rounding, of which bfloat16 has 2^-9 a product's factor."""

HALF = 0.5
"""Progress of the ramp."""

Loss = Callable[[], torch.Tensor]


def ours(network: Network, recipe: Recipe, batch: Batch, step: Step) -> Loss:
    """The loss of the first stage of the method `cactus`."""
    objective, precision = stages("cactus", recipe)[0].objective(recipe), PRECISIONS[recipe.train.precision]

    def loss() -> torch.Tensor:
        with products_in(precision):
            return objective(network, batch, step).loss

    return loss


def plain(net: Plain, recipe: Recipe, batch: Batch, step: Step, masks: list[torch.Tensor]) -> Loss:
    """The same in plain code."""
    train, box = recipe.train, (batch.region.centre, batch.region.radius)

    def loss() -> torch.Tensor:
        first, before = net.full(batch.x, batch.y, box, step.robust_weight)
        found = [first]
        if "quantised" in train.members:
            found.append(net.quantised(batch.x, batch.y, box, step.robust_weight, recipe.quantise.train_clip))
        if "pruned" in train.members:
            found.append(net.pruned(batch.x, batch.y, box, step.robust_weight, masks))
        total = torch.stack(found).mean()
        return total + train.warmup_regulariser * (1 - step.progress) * regulariser(before, box[1].mean())

    return loss


def stepping(module: torch.nn.Module, loss: Loss, clip_norm: float) -> Callable[[], float]:
    """One step of Adam, which returns the loss; at a rate of nearly nothing, so that every step is the same work."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer, update = torch.optim.Adam(parameters, 1e-9), clipped(clip_norm)

    def closure() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        return found.detach()

    return lambda: float(update(closure, optimizer))


def side(name: str, recipe: Recipe, count: int) -> Callable[[], float]:
    """A step of that side on the first `count` images."""
    dataset = load_dataset(recipe.data)
    x, y = (t[:count] for t in to_torch(dataset.train))
    eps = HALF * float(recipe.train.eps)
    step = Step(HALF, eps, HALF * recipe.train.robust_weight)
    batch = Batch(x, y, ball(x, eps, dataset.domain))
    network = build(recipe.model, dataset.shape, len(dataset.labels), 0)
    if name == "ours":
        return stepping(network, ours(network, recipe, batch, step), recipe.train.clip_norm)
    kept = choose(network.layers(), network.kept_widths())
    masks = [F.one_hot(rows, width).sum(0) for rows, width in zip(kept, network.widths(), strict=True)]
    net = Plain(network.layers())
    return stepping(net, plain(net, recipe, batch, step, masks), recipe.train.clip_norm)


def serve(name: str, recipe: Recipe, count: int, threads: int) -> int:
    """Answers each line of stdin with a step's loss and its seconds, wall-clock and processor."""
    if name != "plain":
        settle()
    torch.set_num_threads(threads)
    step = side(name, recipe, count)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = step()
        print(json.dumps([loss, time.perf_counter() - start, time.process_time() - cpu_start]), flush=True)
    return 0


def measure(options: argparse.Namespace, name: str, precision: str, threads: int) -> Row:
    """Milliseconds of a step on each side, and how many times faster ours is."""
    command = [sys.executable, __file__, "--network", options.network, "--batch", str(options.batch), "--step", name]
    command += ["--precision", precision]
    servers = {
        s: subprocess.Popen(
            [*command, "--threads", str(threads), "--side", s],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        for s in SIDES
    }
    found: dict[str, list[list[float]]] = {s: [] for s in SIDES}
    try:
        for turn in range(options.runs + 2):
            for s, server in servers.items():
                answer = _asked(server.stdin, server.stdout)
                if turn > 1:
                    found[s].append(answer)
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    losses = {s: answers[0][0] for s, answers in found.items()}
    if max(losses.values()) - min(losses.values()) > APART[precision] * max(losses.values()):
        raise InternalError(f"the sides do not compute the same loss: {losses}")
    row: Row = {"loss": losses["ours"], "batch": options.batch, "threads": threads, "runs": options.runs}
    for column, what in ((1, "ms"), (2, "cpu_ms")):
        middle = {s: 1e3 * statistics.median(a[column] for a in answers) for s, answers in found.items()}
        row |= {f"{s}_{what}": round(value, 2) for s, value in middle.items()}
        row |= {f"of_{s}_{what}": middle[s] / middle["ours"] for s in SIDES[1:]}
    return row


def _asked(stdin: IO[str] | None, stdout: IO[str] | None) -> list[float]:
    assert stdin is not None and stdout is not None
    stdin.write("\n")
    stdin.flush()
    line = stdout.readline()
    if not line:
        raise InternalError("a side ended early")
    return [float(v) for v in json.loads(line)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network", default="mnist", help="the recipe whose network and data are taken (default mnist)"
    )
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=[*PRECISIONS], help="of ours (both)")
    parser.add_argument("--runs", type=positive, default=15)
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    recipe = load_recipe(options.network)
    certified = replace(recipe.train, objective="ibp", box_ratio=1.0)
    wanted = {
        (name, precision): replace(recipe, train=replace(certified, members=members, precision=precision))
        for precision in options.precision
        for name, members in STEPS.items()
    }
    if options.side:
        return serve(options.side, wanted[options.step, options.precision[0]], options.batch, options.threads[0])
    results = Results("train_speed", fresh=options.fresh)
    lines = [["step", "plain in ms", "ours in ms", "times faster", "than plain settled", "by processor time"]]
    targets = []
    for threads in options.threads:
        for (name, precision), taken in wanted.items():
            label = name if precision == recipe.train.precision else f"{name} in {precision}"
            key = f"{options.network}/{label}/threads {threads}"
            inputs = hashlib.sha256(f"{taken.digest()}{options.batch}{threads}{options.runs}".encode()).hexdigest()
            row = results.row(
                key, inputs, partial(measure, options, name, precision, threads), {"recipe": taken.digest()}
            )
            ratios = [row[f"of_{s}_{what}"] for s, what in (("plain", "ms"), ("settled", "ms"), ("plain", "cpu_ms"))]
            lines.append([key, f"{row['plain_ms']:.1f}", f"{row['ours_ms']:.1f}", *(f"{r:.2f}" for r in ratios)])
            targets.append(Target(f"{key}, times faster", ratios[0], 1.5))
    print(table(lines))
    return verdict(targets)


if __name__ == "__main__":
    run(main)
