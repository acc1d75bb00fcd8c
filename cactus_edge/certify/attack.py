"""Falsification on the integer network: looks for an input inside the region whose output is no win of the label.

Untrusted search: it may miss a witness, but every witness it returns was executed by the interpreter. Two searches:

* Gradient steps on the difference of the label's and another class's last accumulators, for every other class (a targeted
  attack; the logits themselves saturate). Points are real numbers, evaluated where they round to; the steps are Adam's, which
  shrink like a cosine (in the spirit of APGD: Croce & Hein, ICML 2020). The network is the smooth one of `gradient`, whose rules
  turn from straight lines into steps, in the first half the inner ones and then the last: what the best point for lines leaves
  is found in the roundings, many of which move at little cost.
* Random squares, for images, or random features, set to a corner of the box, kept where the difference does not grow (square
  attack: Andriushchenko et al., ECCV 2020), from the best point of the first search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.gradient import Real, gradient
from cactus_edge.ir import atoms
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import values
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.goal import wins
from cactus_edge.verify.tail import find_tail

Bools = npt.NDArray[np.bool_]

TOGETHER = 1 << 21
"""Elements of all values together, about, that are computed at a time: bounds the memory."""

TARGETS = 3
"""Classes per sample that are searched for after the first restart: those that came closest."""

COPIES = 16
"""Squares tried at once for a sample, at most."""

STEPS, RESTARTS = 40, 2
"""How long an attack searches, unless it is told: steps by gradients for each class and as many of squares, and starts."""

WORDS = f"gradient steps (Adam) and random squares on the integer file, {STEPS} steps each, {RESTARTS} starts"
"""That, in words."""

RATE, SLOWER, SLOWEST = 0.15, 0.9, 0.99
"""Adam: the first step as a part of the box's width; the decays of the mean and of the mean square."""

SHARP = 1.5
"""How much steeper a rule's smooth twin is where it rises, in the end."""


@dataclass(frozen=True)
class Attack:
    """`found[n]`: whether the label does not win at `witness[n]`, codes inside the region; otherwise the witness is the start."""

    found: Bools
    witness: Codes


def strict_win(output: npt.NDArray[np.generic], labels: npt.NDArray[np.int64]) -> Bools:
    """Whether output[n, labels[n]] > output[n, j] for every other j; output [N, K]."""
    return wins(output, labels)


def attack(
    program: Program,
    lower: Codes,
    upper: Codes,
    labels: npt.NDArray[np.int64],
    *,
    start: Codes,
    steps: int = STEPS,
    restarts: int = RESTARTS,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Attack:
    """Searches the box [lower, upper] (codes [N, *shape]) around `start` for inputs that `labels` do not win.

    Restart 0 begins at `start`, the others at random points; each makes `steps` steps for each class it looks for, and `steps`
    of random squares. Samples that fall are not searched further. Deterministic by `seed`, but for `stop`, asked between steps.
    """
    search = Search(program, lower, upper, labels.astype(np.int64), start, seed)
    for restart in range(restarts):
        search.gradients(restart, steps, stop)
        search.squares(steps, stop)
    return Attack(search.found, search.witness)


class Search:
    """A search and where it stands. found, witness as in `Attack`; best [N, K, *shape] has by class the least value `least` [N, K]
    so far of what is minimised."""

    def __init__(self, program: Program, lower: Codes, upper: Codes, labels: Int64, start: Codes, seed: int) -> None:
        self.program, self.labels, self.rng = program, labels, np.random.default_rng(seed)
        self.lower, self.upper = lower.astype(np.float64), upper.astype(np.float64)
        self.dtype = program.input_tensor.dtype
        self.start = np.clip(start, lower, upper)
        last = next((s for s in program.steps if s.out == program.output), None)
        soft = last is not None and isinstance(atoms.example(last.atom), atoms.Softmax)
        logits = last.args[0] if soft and last is not None else program.output
        classes = program.output_tensor.size
        tail = find_tail(program, logits, classes)
        self.logits, self.value = logits, logits if tail is None else tail.value
        self.factors = np.ones(classes, np.int64) if tail is None else tail.factors
        rules = [] if tail is None else [atoms.example(a) for a in tail.atoms]
        slopes = [rule.rule.slope() for rule in rules if isinstance(rule, atoms.Monotone)]
        self.pitch = np.broadcast_to(slopes[0] if slopes else 0.0, program.values[self.value].shape).reshape(classes)
        self.witness = self.start.copy()
        self.found = np.zeros(len(labels), np.bool_)
        self.best = np.repeat(self.start[:, None], classes, 1)
        self.least = np.full((len(labels), classes), np.inf)
        self.size = max(1, TOGETHER // sum(int(np.prod(v.shape)) for v in program.values))
        everyone = np.arange(len(labels))
        for part in (everyone[i : i + self.size] for i in range(0, len(everyone), self.size)):
            known = self._run(part, self.start[part])
            self.least[part] = self._differences(known, labels[part])

    def _run(self, sample: Int64, x: Codes) -> list[Int64]:
        """Every value at x; a sample that its label does not win there has fallen."""
        known = values(self.program, x)
        lost = ~wins(known[self.program.output].reshape(len(x), -1), self.labels[sample], self.program.first_maximum)
        new = lost & ~self.found[sample]
        self.witness[sample[new]], self.found[sample[new]] = x[new], True
        return known

    def _differences(self, known: list[Int64], labels: Int64) -> Real:
        """What is minimised, [M, K]: out_y - out_j, and the same before the last rule, in its steps; inf for the label's own class."""
        acc, out = (known[v].reshape(len(labels), -1) for v in (self.value, self.logits))
        both = acc * self.pitch + out
        rows = np.arange(len(labels))
        apart: Real = both[rows, labels][:, None] - both
        apart[rows, labels] = np.inf
        return apart

    def _targets(self, restart: int) -> tuple[Int64, Int64]:
        """(sample, class) of all searches to make: every other class at first, then those that came closest."""
        left = np.flatnonzero(~self.found)
        count = self.least.shape[1] - 1
        nearest = np.argsort(self.least[left], 1, kind="stable")[:, : count if restart == 0 else min(TARGETS, count)]
        return np.repeat(left, nearest.shape[1]), nearest.ravel()

    def gradients(self, restart: int, steps: int, stop: Callable[[], bool] = lambda: False) -> None:
        """The first search."""
        sample, target = self._targets(restart)
        for i in range(0, len(sample), self.size):
            self._descend(sample[i : i + self.size], target[i : i + self.size], restart, steps, stop)

    def _descend(self, sample: Int64, target: Int64, restart: int, steps: int, stop: Callable[[], bool]) -> None:
        low, high = self.lower[sample], self.upper[sample]
        x = self.start[sample].astype(np.float64)
        if restart:
            x = low + (high - low) * self.rng.random(low.shape)
        mean, square = np.zeros_like(x), np.zeros_like(x)
        for step in range(steps):
            codes = np.rint(x).astype(self.dtype)
            known = self._run(sample, codes)
            self._keep(sample, target, codes, known)
            rest = ~self.found[sample]
            if not rest.all():
                sample, target = sample[rest], target[rest]
                low, high, x, mean, square = (a[rest] for a in (low, high, x, mean, square))
                known = [v[rest] for v in known]
            if not len(sample) or stop():
                return
            sharp = SHARP * min(1.0, 2 * step / steps)
            last = SHARP * max(0.0, 2 * step / steps - 1)
            slope = gradient(self.program, known, self.value, self._rows(sample, target, known, last), sharp)
            mean = SLOWER * mean + (1 - SLOWER) * slope
            square = SLOWEST * square + (1 - SLOWEST) * slope**2
            unit = np.sqrt(square / (1 - SLOWEST ** (step + 1))) * (1 - SLOWER ** (step + 1))
            rate = RATE * (1 + np.cos(np.pi * step / steps))
            move = np.divide(mean, unit, out=np.zeros_like(mean), where=unit > 0)
            x = np.clip(x - rate * np.maximum(high - low, 2.0) * move, low, high)

    def _rows(self, sample: Int64, target: Int64, known: list[Int64], sharp: float) -> Real:
        rows, seed = np.arange(len(sample)), np.zeros((len(sample), len(self.factors)))
        label, acc = self.labels[sample], known[self.value].reshape(seed.shape)
        for of, sign in ((label, 1), (target, -1)):
            seed[rows, of] = sign * self.factors[of] * (1 - sharp * np.cos(2 * np.pi * self.pitch[of] * acc[rows, of]))
        return seed.reshape(known[self.value].shape).astype(np.float32)  # half the work, for a direction

    def _keep(self, sample: Int64, target: Int64, codes: Codes, known: list[Int64]) -> None:
        now = self._differences(known, self.labels[sample])[np.arange(len(sample)), target]
        closer = now < self.least[sample, target]
        self.least[sample[closer], target[closer]] = now[closer]
        self.best[sample[closer], target[closer]] = codes[closer]

    def squares(self, steps: int, stop: Callable[[], bool] = lambda: False) -> None:
        """The second search, for the class that came closest; the fewer samples are left, the more squares are tried at once."""
        for step in range(steps):
            left = np.flatnonzero(~self.found)
            if not len(left) or stop():
                return
            copies = min(max(self.size // len(left), 1), COPIES)
            part = 0.2 * (1 - step / steps) ** 2
            for i in range(0, len(left), max(self.size // copies, 1)):
                own = left[i : i + max(self.size // copies, 1)]
                aim = self.least[own].argmin(1)
                sample, target = np.repeat(own, copies), np.repeat(aim, copies)
                codes = self._patched(self.best[sample, target], sample, part)
                known = self._run(sample, codes)
                now = self._differences(known, self.labels[sample])[np.arange(len(sample)), target].reshape(-1, copies)
                first, rows = now.argmin(1), np.arange(len(own))
                closer = now[rows, first] <= self.least[own, aim]
                self.least[own[closer], aim[closer]] = now[rows, first][closer]
                chosen = codes.reshape(len(own), copies, *codes.shape[1:])[rows, first]
                self.best[own[closer], aim[closer]] = chosen[closer]

    def _patched(self, x: Codes, sample: Int64, part: float) -> Codes:
        """x with about `part` of its features at one random corner each: a square of an image, else any."""
        shape = x.shape[1:]
        if len(shape) == 3:
            side = max(1, round(float(np.sqrt(part * shape[0] * shape[1]))))
            top, left = (self.rng.integers(0, max(n - side, 0) + 1, (len(x), 1, 1)) for n in shape[:2])
            rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])
            inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
            inside = inside[..., None]
            up = self.rng.integers(0, 2, (len(x), 1, 1, shape[2])) > 0
        else:
            inside = self.rng.random(x.shape) < max(part, 2 / x[0].size)
            up = self.rng.integers(0, 2, x.shape) > 0
        corner = np.where(up, self.upper[sample], self.lower[sample])
        patched: Codes = np.where(inside, corner, x).astype(self.dtype)
        return patched
