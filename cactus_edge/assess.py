"""What a build measures beside the certificate: the attack, the float network, the curve over the radius, the ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Float32, Int8, Int64

if TYPE_CHECKING:
    from cactus_edge.train.deck.cards import TrainedDeck
    from cactus_edge.train.trained import TrainedModel

Bools = npt.NDArray[np.bool_]
Domain = tuple[Fraction, Fraction]
Radii = Sequence[Fraction]

CURVE_FACTORS = tuple(Fraction(k, 4) for k in (0, 1, 2, 3, 4, 5, 6, 8))
"""Radii of the curve, in multiples of the certified one."""

CURVE_SAMPLES = 500
"""Test inputs behind the curve, at most."""

CHUNK = 128
"""Samples bounded together. It changes no result."""

ATTACKED = 128
"""Samples attacked together, between two words of progress."""


def survivors(
    program: Program,
    lower: Int8,
    upper: Int8,
    start: Int8,
    labels: Int64,
    correct: Bools,
    certified: Bools,
    seed: int,
    advance: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> int:
    """How many samples survive the attack on the integer program.

    Boxes lower, upper around start, int8 [N, *shape]. Attacked are all that are right and not certified, and, as a check on
    the verifier itself, up to a tenth of the samples among the certified: InternalError where one of those falls.
    """
    from cactus_edge.certify.attack import attack

    checked = np.flatnonzero(certified)[: len(certified) // 10]
    chosen = np.concatenate([checked, np.flatnonzero(correct & ~certified)])
    survived = int(correct.sum())
    for at in range(0, len(chosen), ATTACKED):
        part = chosen[at : at + ATTACKED]
        found = attack(program, lower[part], upper[part], labels[part], start=start[part], seed=seed).found
        if (fallen := part[found & certified[part]]).size:
            raise InternalError(
                f"sample {fallen[0]} was certified, and an attack turned it", hint="please report this model"
            )
        survived -= int(found.sum())
        advance(at + len(part), len(chosen), "attacked")
    return survived


def float_scores(
    network: TrainedModel | TrainedDeck, x: Float32, y: Int64, eps: Radii, domain: Domain
) -> dict[str, int]:
    """How many samples the float network gets right, and how many it holds over the region by float intervals (no proof)."""
    from cactus_edge.train.evaluate import float_certified, float_predict

    certified = float_certified(network, x, y, eps, domain)
    return {"correct": int((float_predict(network, x) == y).sum()), "certified": int(certified.sum())}


def curve(
    program: Program,
    network: TrainedModel | TrainedDeck,
    x: Float32,
    y: Int64,
    eps: Radii,
    domain: Domain,
    threads: int,
    advance: Callable[[int, int, str], None],
) -> list[dict[str, float]]:
    """Certified shares of x, y over radii around eps: the file's and the float network's, as {eps, int8, float} by radius.

    eps: one radius for all channels, or one for each of them; then the radii of the curve are multiples of it.
    """
    from cactus_edge.certify.interval import certify
    from cactus_edge.train.evaluate import float_certified
    from cactus_edge.verify.regions import region

    most, features = domain[1] - domain[0], math.prod(x.shape[1:-1])
    rows: dict[Fraction, dict[str, float]] = {}
    for done, factor in enumerate(CURVE_FACTORS, start=1):
        radii = [min(factor * e, most) for e in eps]
        at = factor if len(eps) > 1 else radii[0]
        if at not in rows:
            around = region(program, radii if len(radii) == 1 else radii * features, domain)
            certified = certify(program, around, x, y, threads=threads).certified
            float_ = float_certified(network, x, y, radii, domain)
            rows[at] = {"eps": float(at), "int8": float(certified.mean()), "float": float(float_.mean())}
        advance(done, len(CURVE_FACTORS), "curve")
    return [rows[at] for at in sorted(rows)]


def by_class(y: Int64, correct: Bools, certified: Bools) -> list[list[int]]:
    """[class, samples, right, certified] for each class among the labels."""
    classes, counts = np.unique(y, return_counts=True)
    return [
        [int(c), int(n), int(correct[y == c].sum()), int(certified[y == c].sum())]
        for c, n in zip(classes, counts, strict=True)
    ]


def ranges(program: Program, lower: Int8, upper: Int8) -> dict[str, list[int]]:
    """Per tensor index, as text, the least and the largest int8 value over all boxes [N, *shape]."""
    from cactus_edge.verify.interval import Engine

    values: list[Any] = [i for i, v in enumerate(program.values) if v.tensor is not None]
    engine = Engine(program, values)
    low, high = np.full(len(values), 127), np.full(len(values), -128)
    for at in range(0, len(lower), CHUNK):
        for i, (lo, hi) in enumerate(engine.run(lower[at : at + CHUNK], upper[at : at + CHUNK])):
            low[i], high[i] = min(low[i], int(lo.min())), max(high[i], int(hi.max()))
    return {str(program.values[v].tensor): [int(a), int(b)] for v, a, b in zip(values, low, high, strict=True)}
