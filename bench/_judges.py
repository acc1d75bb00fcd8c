"""What judges a file: each is a function by name, which a group of a suite lists, and adds figures to the row.

Judges that attack share one account of the samples that still stand: right on the file, and turned by no point of any judge so
far. A point found on the float network counts where the *file* errs on it, quantised as the file quantises, its codes inside the
integer box of the certificate's region. `robust` is what stands in the end of the samples that they judged: accuracy under the worst
of all attacks. One that judges fewer of them, as the dear one on the file's integers may, counts where it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property
from typing import TYPE_CHECKING

from _common import Row
from _deck import batches, board
from _training import PROFILE, Job

# isort: split
import numpy as np

from cactus_edge import assess
from cactus_edge.assess import Bools
from cactus_edge.certify.attack import attack, strict_win
from cactus_edge.certify.complete import Budget, Complete
from cactus_edge.certify.find import find_all
from cactus_edge.errors import InputError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Codes
from cactus_edge.resources import sha256
from cactus_edge.semantics import Real, Semantic, transforms
from cactus_edge.train.data import Float32
from cactus_edge.verify.check import decided
from cactus_edge.verify.regions import box, points
from cactus_edge.verify.tflite_read import read_tflite

if TYPE_CHECKING:
    import torch

    from cactus_edge.train.attacks import Attack
    from cactus_edge.train.deck.cards import TrainedDeck
    from cactus_edge.train.trained import TrainedModel

PAPER_STEP = Fraction(1, 200)
"""A step of AdverFine's attack: 0.01 of its inputs in [-1, 1], 0.005 of ours in [0, 1]."""

STEPS, STARTS, CHUNK = 20, 3, 250
"""Of the sign-step attacks; the random starts; samples attacked together."""

APGD_STEPS = 50

KEPT = 1 << 30
"""Bytes of draws of one transform that are kept for the other rows."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network and its file. budget: of `best`, a sample. transforms, draws: of `cc-cert`."""

    job: Job
    trained: TrainedModel | TrainedDeck
    data: bytes
    seed: int
    budget: str = "2s"
    transforms: str = ""
    draws: int = 100

    @cached_property
    def program(self) -> Program:
        """The file's integers."""
        return lower(read_tflite(self.data).graph, profile(PROFILE))

    @cached_property
    def ends(self) -> tuple[Codes, Codes]:
        """The boxes of codes around the samples."""
        return box(self.program, self.job.region(), self.job.samples().x)

    @property
    def threads(self) -> int:
        """For what certifies."""
        return max(self.job.threads, 1)

    def right(self, codes: Codes, rows: Sequence[int] | Bools | slice = slice(None)) -> Bools:
        """Whether the class of each of these samples wins at its codes."""
        out = run(self.program, codes).reshape(len(codes), -1)
        return strict_win(out, self.job.samples().y[rows].astype(np.int64))


Judge = Callable[[Subject, int, Bools], tuple[Row, Bools]]
"""(subject, samples to judge or 0 for all, which samples stand) -> figures, and which stand now."""


def judged(subject: Subject, names: Sequence[str]) -> Row:
    """The figures of these judges, in order; "NAME:COUNT" judges the first COUNT samples alone."""
    standing = subject.right(points(subject.program, subject.job.samples().x))
    before, found = standing, {}
    for text in names:
        name, count = parsed(text)
        figures, standing = JUDGES[name](subject, count, standing)
        found.update(figures)
    parts = [count or len(standing) for name, count in map(parsed, names) if name in ATTACKS]
    if not parts:
        return found
    part = max(parts)
    robust = {"robust": float(standing[:part].mean()), "robust_samples": part}
    return found | robust | {"clean_of_file": float(before.mean())}


def parsed(text: str) -> tuple[str, int]:
    """A judge's name and its number of samples, 0 for all. Raises InputError."""
    name, _, count = text.partition(":")
    if name not in JUDGES or (count and not count.isdecimal()):
        raise InputError(f"no judge is called {text!r}", hint=f"{', '.join(JUDGES)}, or NAME:SAMPLES")
    return name, int(count or 0)


def _certified(subject: Subject, _: int, standing: Bools) -> tuple[Row, Bools]:
    """By intervals, exactly."""
    return subject.job.certified(subject.trained, subject.program), standing


def _attacked(subject: Subject, _: int, standing: Bools) -> tuple[Row, Bools]:
    """What is left of all samples after the attack on the integers, once certified ones are spared; of each class for itself
    where the recipe counts classes.
    """
    from cactus_edge.certify.interval import certify

    samples = subject.job.samples()
    decision = certify(subject.program, subject.job.region(), samples.x, samples.y, threads=subject.threads)
    columns = (*subject.ends, points(subject.program, samples.x), samples.y, decision.correct, decision.certified)
    if not subject.job.recipe.quantise.class_balance:
        return {"attacked": assess.survivors(subject.program, *columns, subject.seed) / len(samples.y)}, standing
    classes = [samples.y == label for label in np.unique(samples.y)]
    left = [assess.survivors(subject.program, *(c[rows] for c in columns), subject.seed) for rows in classes]
    shares = [count / int(rows.sum()) for count, rows in zip(left, classes, strict=True)]
    return {"attacked": sum(left) / len(samples.y), "attacked_balanced": float(np.mean(shares))}, standing


def _best(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """What intervals, lines, search and a solver certify of the first samples together; every proof checked."""
    from cactus_edge.certify.interval import certify

    program, region = subject.program, subject.job.region()
    x, y = (t[: count or len(t)] for t in (subject.job.samples().x, subject.job.samples().y))
    plain = certify(program, region, x, y, threads=subject.threads)
    rest = np.flatnonzero(plain.correct & ~plain.certified)
    start = time.monotonic()
    more, lost = 0, 0
    if len(rest):
        complete, key = Complete(program, Budget.parse(subject.budget)), bytes.fromhex(sha256(subject.data))
        proof, _ = find_all(complete, region, x[rest], y[rest], key)
        shown, refuted = decided(program, region, x[rest], y[rest], proof, key)
        more, lost = int(shown.certified.sum()), int(np.sum(refuted))
    sure = int(plain.certified.sum())
    best = {
        "samples": len(y),
        "budget": subject.budget,
        "intervals": sure / len(y),
        "certified": (sure + more) / len(y),
        "attacked": (int(plain.correct.sum()) - lost) / len(y),
        "searching_s": round(time.monotonic() - start, 1),
    }
    return {"best": best}, standing


def _paper(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """AdverFine's own attack: twenty steps of 0.005 from the sample itself, on the float network, past the ends of the sensor's range.

    No sensor reports such a point, and the file's input saturates there: the figure stands beside `robust`, not in it.
    """
    from cactus_edge.train.attacks import Attack

    step = float(PAPER_STEP / max(subject.job.dataset.radii(subject.job.recipe.certify.eps)))
    part = len(standing) if count == 0 else count
    found, float_right = _climbed(subject, Attack(STEPS, step=step, random_start=False), None, np.arange(part))
    right = subject.right(subject.program.quantize.apply(found), slice(part))
    return {"float_pgd": float(float_right.mean()), "pgd": float(right.mean())}, standing


def _starts(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """As many steps from random starts, inside the sensor's range."""
    from cactus_edge.train.attacks import Attack

    rows = np.flatnonzero(standing[: count or len(standing)])
    found, _ = _climbed(subject, Attack(STEPS, STARTS), subject.job.dataset.domain, rows)
    standing = _fallen(subject, found, rows, standing)
    return {"after_starts": float(standing[: count or None].mean())}, standing


def _apgd(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """APGD on the cross-entropy, then on the difference of logits ratio."""
    from cactus_edge.train.apgd import apgd, cross_entropy, margin_ratio

    job, figures = subject.job, {}
    net, radii, domain = subject.trained.folded(), job.dataset.radii(job.recipe.certify.eps), job.dataset.domain
    for name, score in (("ce", cross_entropy), ("dlr", margin_ratio)):
        rows = np.flatnonzero(standing[: count or len(standing)])
        parts = [
            apgd(net, x, y, radii, domain, score=score, steps=APGD_STEPS, seed=subject.seed).numpy()
            for x, y in _parts(subject, rows)
        ]
        standing = _fallen(subject, _images(parts, subject), rows, standing)
        figures[f"after_apgd_{name}"] = float(standing[: count or None].mean())
    return figures, standing


def _integer(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """The attack on the file's own integers, of those that the others left among the first samples."""
    part = count or len(standing)
    rows = np.flatnonzero(standing[:part])
    samples, (low, high) = subject.job.samples(), subject.ends
    standing = standing.copy()
    before = float(standing[:part].mean())
    if len(rows):
        start, y = points(subject.program, samples.x[rows]), samples.y[rows].astype(np.int64)
        fallen = attack(subject.program, low[rows], high[rows], y, start=start, seed=subject.seed).found
        standing[rows[fallen]] = False
    after = {"samples": part, "before": before, "robust": float(standing[:part].mean())}
    return {"integer": after}, standing


def _corrupted(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """Fifteen corruptions at five severities."""
    from cactus_edge.corrupted import corrupted

    samples = subject.job.samples()
    x, y = (t[: count or len(t)] for t in (samples.x, samples.y))
    found = corrupted(subject.data, x, y, seed=0, profile=PROFILE)
    each = {name: found.accuracy(name) for name in found.right}
    return {"corrupted": found.mean, "corrupted_samples": len(y), "corruptions": each}, standing


@dataclass(frozen=True)
class Kept(Semantic):
    """A transform that draws once for all rows that ask for the same draws: they cost more than the networks that see them.

    store: what it drew, as float32, in which networks see it; up to `KEPT` bytes.
    """

    store: dict[object, Float32] = field(default_factory=dict, compare=False)

    def draw(self, x: Real, count: int, domain: tuple[float, float], rng: np.random.Generator) -> Real:
        key = (x.tobytes(), x.shape, count, domain, str(rng.bit_generator.state))
        if key in self.store:
            return self.store[key].astype(np.float64)
        found = super().draw(x, count, domain, rng)
        if (len(self.store) + 1) * 4 * found.size <= KEPT:
            self.store[key] = found.astype(np.float32)
        return found


@cache
def _kept(text: str) -> tuple[Kept, ...]:
    return tuple(Kept(one.parts) for one in transforms(text))


def _cc_cert(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """The share that CC-Cert bounds below 1e-4 of losing a random transform, by transform: probabilistic, no proof."""
    from cactus_edge.semantic_report import estimated

    samples, job, start = subject.job.samples(), subject.job, time.process_time()
    x, y = (t[: count or len(t)] for t in (samples.x, samples.y))
    found = estimated(
        subject.data,
        subject.program,
        x,
        y,
        _kept(subject.transforms),
        profile=PROFILE,
        domain=job.dataset.domain,
        samples=subject.draws,
    )
    names = (estimate.transform.name for estimate in found.estimates)
    return {
        "pca": dict(zip(names, found.shares, strict=True)),
        "pca_cpu_s": round(time.process_time() - start, 1),
        "pca_samples": len(y),
        "pca_draws": found.estimates[0].drawn,
    }, standing


JUDGES: dict[str, Judge] = {
    "certified": _certified,
    "attacked": _attacked,
    "best": _best,
    "pgd": _paper,
    "pgd-starts": _starts,
    "apgd": _apgd,
    "integer": _integer,
    "corrupted": _corrupted,
    "batches": batches,
    "board": board,
    "cc-cert": _cc_cert,
}
"""By name in suites. The clean accuracies of network and file are in every row."""

ATTACKS = ("pgd-starts", "apgd", "integer")
"""Judges whose points count against `robust`."""


def _parts(subject: Subject, rows: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    samples = subject.job.samples()
    images = torch.from_numpy(np.ascontiguousarray(samples.x[rows].transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(samples.y[rows].astype(np.int64))
    return list(zip(torch.split(images, CHUNK), torch.split(labels, CHUNK), strict=True)) if len(rows) else []


def _images(parts: list[np.ndarray], subject: Subject) -> Float32:
    shape = subject.job.samples().x.shape[1:]
    return np.concatenate(parts).transpose(0, 2, 3, 1) if parts else np.zeros((0, *shape), np.float32)


def _climbed(
    subject: Subject, way: Attack, domain: tuple[Fraction, Fraction] | None, rows: np.ndarray
) -> tuple[Float32, Bools]:
    """Points [M, H, W, C] of high cross-entropy of the float network, and whether it is still right there."""
    from cactus_edge.train.attacks import climb
    from cactus_edge.train.bounds import ball
    from cactus_edge.train.folded import forward

    net, radii = subject.trained.folded(), subject.job.dataset.radii(subject.job.recipe.certify.eps)
    found, right = [], [np.zeros(0, np.bool_)]
    for x, y in _parts(subject, rows):
        point = climb(net, ball(x, radii, domain), y, way, seed=subject.seed, origin=x).detach()
        found.append(point.numpy())
        right.append((forward(net, point).detach().argmax(1) == y).numpy())
    return _images(found, subject), np.concatenate(right)


def _fallen(subject: Subject, found: Float32, rows: np.ndarray, standing: Bools) -> Bools:
    """The samples that stand once `found` is tried on the rows."""
    if not len(rows):
        return standing
    low, high = subject.ends
    codes = np.clip(subject.program.quantize.apply(found), low[rows], high[rows])
    left = standing.copy()
    left[rows] &= subject.right(codes, rows)
    return left
