"""Ranges of quantised values from what was seen of them: the usual criteria, each from one histogram of magnitudes.

Zero is on every grid, so a value that was exactly 0 says nothing about the range: it is counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InternalError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CELLS = 32_768
"""Cells of a histogram. A criterion's range is right to a cell, a 128th of a step of the widest range or finer."""

DIVERGENCE_BINS = 2048
"""Bins of the criterion `entropy`."""

ERROR_RANGES = 256
"""Ranges that the criterion `mse` tries, even parts of the largest magnitude."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Magnitudes that were seen: counts int64 [CELLS] over even cells ]k, k + 1] * peak / CELLS, and how many were 0."""

    counts: Int64
    zeros: int
    peak: float

    @property
    def centres(self) -> Float64:
        """Middle of each cell, [CELLS]."""
        return np.asarray((np.arange(len(self.counts)) + 0.5) * (self.peak / len(self.counts)), np.float64)

    def joined(self, other: Histogram) -> Histogram:
        """Both, which have the same peak and cells."""
        return Histogram(self.counts + other.counts, self.zeros + other.zeros, self.peak)


def histogram(parts: Iterable[npt.NDArray[np.float32]], peak: float, cells: int = CELLS) -> Histogram:
    """Of the magnitudes of all elements of `parts`, none above peak > 0."""
    counts, zeros = np.zeros(cells, np.int64), 0
    for part in parts:
        magnitude = np.abs(part[part != 0].astype(np.float64))
        if magnitude.max(initial=0) > peak:
            raise InternalError(f"a magnitude of {magnitude.max():.6g} above the peak {peak:.6g}")
        zeros += part.size - magnitude.size
        cell = np.ceil(magnitude * (cells / peak)).astype(np.int64) - 1
        counts += np.bincount(np.clip(cell, 0, cells - 1), minlength=cells)
    return Histogram(counts, zeros, peak)


Criterion = Callable[[Histogram, int], float]
"""(histogram, steps from 0 to the end of the range) -> the end of the range, in ]0, peak]."""


def largest(seen: Histogram, levels: int) -> float:
    """The largest magnitude."""
    return seen.peak


def percentile(percent: float) -> Criterion:
    """The least end of a cell up to which `percent` of all values lie, zeros included."""

    def of(seen: Histogram, levels: int) -> float:
        wanted = percent / 100 * (seen.zeros + int(seen.counts.sum()))
        cell = int(np.searchsorted(seen.zeros + np.cumsum(seen.counts), wanted))
        return seen.peak * (min(cell, len(seen.counts) - 1) + 1) / len(seen.counts)

    return of


def least_error(seen: Histogram, levels: int) -> float:
    """The range of least mean (v - q(v))^2, q(v) = min(rint(v / s), levels) s with s = range / levels; of equals the narrowest."""
    centres, best = seen.centres, (np.inf, seen.peak)
    for part in range(1, ERROR_RANGES + 1):
        end = seen.peak * part / ERROR_RANGES
        step = end / levels
        error = centres - np.minimum(np.rint(centres / step), levels) * step
        best = min(best, (float((error * error) @ seen.counts), end))
    return best[1]


def least_divergence(seen: Histogram, levels: int) -> float:
    """The range of least KL divergence between the clipped distribution and its quantisation; of equals the narrowest.

    For each i from levels + 1 to DIVERGENCE_BINS: P is bins 0..i-1 with everything beyond added to the last; Q merges the same
    bins, without what lies beyond, into levels + 1 groups and spreads each over its bins that are not empty;
    KL = sum P log(P / Q), both normalised. Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """
    bins = _coarse(seen.counts, DIVERGENCE_BINS).astype(np.float64)
    least = min(levels + 1, len(bins))
    divergences = [divergence(bins, i, levels + 1) for i in range(least, len(bins) + 1)]
    return seen.peak * (least + int(np.argmin(divergences))) / len(bins)


def divergence(bins: Float64, kept: int, groups: int) -> float:
    """KL(P || Q) of `least_divergence` for the first `kept` of the bins; infinite where Q misses a bin of P."""
    inside = bins[:kept]
    clipped = inside.copy()
    clipped[-1] += bins[kept:].sum()
    group = np.arange(kept) * groups // kept
    mass = np.bincount(group, inside, groups)
    members = np.bincount(group, inside > 0, groups)
    spread = np.where(inside > 0, mass[group] / np.maximum(members[group], 1), 0.0)
    seen = clipped > 0
    if (spread[seen] == 0).any() or not seen.any():
        return float("inf")
    p, q = clipped[seen] / clipped.sum(), spread[seen] / spread.sum()
    return float((p * np.log(p / q)).sum())


def _coarse(counts: Int64, bins: int) -> Int64:
    if len(counts) % bins:
        raise InternalError(f"{len(counts)} cells do not make {bins} bins")
    return np.asarray(counts.reshape(bins, -1).sum(1))
