"""Ranges of the activations, and the grid of the logits: by a usual criterion, or for the certificate.

A range that clips activations costs clean accuracy and buys certified accuracy, because the clamp also cuts the bounds; so
`certified` chooses for the most certified samples of the validation split and not for the reconstruction error. Its candidates
include those of every other criterion, and the file of each is decided by `verify`, on its own integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from cactus_edge.errors import ModelError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import Recipe
from cactus_edge.train.data import Dataset, Split
from cactus_edge.train.fakequant import Ceilings, ceilings_of, clamp, fake_quantise
from cactus_edge.train.folded import SIGNED_LEVELS, Folded
from cactus_edge.train.grids import Calibration, clip_weights, drop_weights, input_grid, shift_biases
from cactus_edge.train.loop import to_torch
from cactus_edge.train.observe import bias_shifts, observe
from cactus_edge.train.quantize import export
from cactus_edge.train.ranges import Criterion, largest, least_divergence, least_error, percentile
from cactus_edge.train.ranking import OutputGrid, Ranking, output_grid, range_grid
from cactus_edge.train.sampling import shares
from cactus_edge.train.trained import TrainedModel
from cactus_edge.verify.decide import certify
from cactus_edge.verify.regions import Region

CALIBRATION_SAMPLES, SEARCH_SAMPLES, CORRECTION_SAMPLES = 5000, 2000, 1000
"""Validation samples that decide, that the search ranks on, and that biases are corrected on, at most."""

PERCENTILES = (99.9, 99.99)
"""Percentiles whose ranges are always among the candidates."""

NEAR = (0.8, 0.9, 0.95, 1.05, 1.1, 1.2)
"""Factors of the search around the best ranges."""

WEIGHT_CLIPS = (0.9, 0.8, 0.7)
"""Parts of a layer's weight range that are tried."""

WEIGHT_FLOORS = (1, 2, 4)
"""Integer weights up to which a layer's weights are tried as 0."""

JUDGES = {False: "tflm", True: "ort-x86"}
"""The arithmetic in which candidates are decided, for networks with zero points and for symmetric ones.

Runtimes differ in the last bit of a rounding: which candidate wins hardly depends on it.
"""


def to_graph(trained: TrainedModel, dataset: Dataset, recipe: Recipe) -> Graph:
    """The integer network: calibrated on the validation split, int8 in and out, one scale for all logits."""
    net = trained.narrowed(recipe)
    return export(net, calibrate(net, dataset, recipe), dataset.shape)


def calibrate(net: Folded, dataset: Dataset, recipe: Recipe) -> Calibration:
    """The grids of `net` by the recipe's criterion, from the validation split alone; deterministic.

    "min-max", "percentile", "entropy" and "mse" take each range from the histogram of the values that the network has there, and
    the logits' from theirs. "certified" ranks ranges, clipped and dropped weights and corrected biases by floating-point margins, layer by
    layer, and then lets `verify` decide: among the candidates that certify at least as many samples as every other criterion
    does, the one with most certified and correct samples, counted together; with `class_balance` a sample counts as much as its
    class does. A network that was trained inside its ranges is
    observed inside them, and keeps them unless another criterion certifies more: a search over few samples only loses what it
    learned. Weights are rounded to the widths that `net` says. Raises ModelError where the network's integers leave their types
    whatever the candidate, with what the last one said.
    """
    with torch.no_grad():
        bench = _Bench(net, dataset, recipe)
        wanted = recipe.quantise.calibration
        if wanted != "certified":
            return bench.decided(
                bench.usual(f"percentile {recipe.quantise.percentile:g}" if wanted == "percentile" else wanted)
            )
        others = bench.possible(map(bench.usual, bench.criteria))
        candidates = [*bench.possible(bench.proposed()), *others]
    if not candidates:
        raise ModelError(
            f"no candidate of the calibration makes a network whose integers fit their types; the last: {bench.refusal}"
        )
    return chosen(candidates, others)


def chosen(candidates: Sequence[Calibration], others: Sequence[Calibration]) -> Calibration:
    """Of the candidates that certify at least as many as each of `others`, that with most certified and correct, then most certified."""
    floor = max((c.certified for c in others), default=0)
    enough = [c for c in candidates if c.certified >= floor]
    return max(enough, key=lambda c: (c.certified + c.correct, c.certified))


_T = TypeVar("_T")


@dataclass(frozen=True)
class _Choice:
    """A candidate before its output grid: ranges, the part of each layer's weight range that is kept, and what of it becomes 0."""

    ceilings: tuple[float, ...]
    weight_clips: tuple[float, ...]
    weight_floors: tuple[int, ...]

    def ending(self, index: int, ceiling: float) -> _Choice:
        """With another end of one range."""
        return replace(self, ceilings=_put(self.ceilings, index, ceiling))

    def clipping(self, layer: int, part: float) -> _Choice:
        """With another part of one layer's weight range."""
        return replace(self, weight_clips=_put(self.weight_clips, layer, part))

    def dropping(self, layer: int, floor: int) -> _Choice:
        """With another floor of one layer's weights."""
        return replace(self, weight_floors=_put(self.weight_floors, layer, floor))


def _put(row: tuple[_T, ...], index: int, value: _T) -> tuple[_T, ...]:
    return (*row[:index], value, *row[index + 1 :])


class _Bench:
    """What the candidates of one network share: the samples, what was seen of each value, the scores so far."""

    def __init__(self, net: Folded, dataset: Dataset, recipe: Recipe) -> None:
        self.net, self.dataset, self.recipe, self.quantise = net, dataset, recipe, recipe.quantise
        self.whole = _first(dataset.validation, CALIBRATION_SAMPLES)
        self.weight = shares(torch.from_numpy(self.whole.y).long(), self.quantise.class_balance).numpy()
        self.few = Ranking(_first(self.whole, SEARCH_SAMPLES), dataset, recipe)
        self.seen = observe(net, to_torch(self.whole)[0])
        self.peaks = tuple(h.peak for h in self.seen.hidden)
        percents = dict.fromkeys((*PERCENTILES, self.quantise.percentile))
        self.criteria: dict[str, Criterion] = {
            "min-max": largest,
            "entropy": least_divergence,
            "mse": least_error,
            **{f"percentile {p:g}": percentile(p) for p in percents},
        }
        self.scores: dict[_Choice, float] = {}
        self.refusal = "none"
        self.ranges: dict[str, tuple[float, ...]] = {}

    @cached_property
    def temperature(self) -> float:
        """Of every score: that of the widest ranges."""
        return self.few.margins(self._rounded(self._whole(self.peaks), self.net)).temperature

    def ends(self, name: str) -> tuple[float, ...]:
        """The ranges of the hidden tensors by one of the usual criteria."""
        if name not in self.ranges:
            criterion, signed = self.criteria[name], self.seen.signed
            levels = [SIGNED_LEVELS if s else self.quantise.levels for s in signed]
            self.ranges[name] = tuple(criterion(h, n) for h, n in zip(self.seen.hidden, levels, strict=True))
        return self.ranges[name]

    def usual(self, name: str) -> Calibration:
        """By one of the usual criteria, nothing else changed."""
        end, seen = self.criteria[name](self.seen.logits, SIGNED_LEVELS), self.seen
        grid = range_grid(max(seen.least, -end), min(seen.most, end), symmetric=self.quantise.symmetric)
        return self._calibration(name, self.ends(name), grid)

    def proposed(self) -> Iterator[Calibration]:
        """Candidates for the certificate: the ranges that the network was trained in, if any, else all that a search finds."""
        learned = ceilings_of(self.net)
        if learned is not None:
            kept = self._whole(tuple(map(float, learned)))
            yield self._proposed("learned ranges", kept, correct=False)
            yield self._proposed("learned ranges, biases corrected", kept, correct=True)
            yield from self._sparser("learned ranges", kept)
            return
        starts = {self.ends(name): name for name in reversed(self.criteria)}
        for ends, name in starts.items():
            yield self._proposed(f"{name}, biases corrected", self._whole(ends), correct=True)
        best = max(map(self._whole, starts), key=self.score)
        for index in reversed(range(len(self.peaks))):
            tops = {part * self.peaks[index] for part in self.quantise.clips} | {start[index] for start in starts}
            best = self._better(best, [best.ending(index, top) for top in sorted(tops, reverse=True)])
        for index in reversed(range(len(self.peaks))):
            near = [factor * best.ceilings[index] for factor in NEAR]
            best = self._better(best, [best.ending(index, end) for end in near])
        yield self._proposed("searched ranges", best, correct=False)
        yield self._proposed("searched ranges, biases corrected", best, correct=True)
        for layer in reversed(range(len(self.net))):
            best = self._better(best, [best.clipping(layer, part) for part in WEIGHT_CLIPS])
        yield self._proposed("searched ranges, weights clipped, biases corrected", best, correct=True)
        yield from self._sparser("searched ranges, weights clipped", best)

    def _sparser(self, name: str, best: _Choice) -> Iterator[Calibration]:
        """The candidate with zeros for the small weights of the layers that are better without them."""
        for layer in reversed(range(len(self.net))):
            best = self._better(best, [best.dropping(layer, floor) for floor in WEIGHT_FLOORS])
        if any(best.weight_floors):
            yield self._proposed(f"{name}, small weights dropped, biases corrected", best, correct=True)

    def score(self, choice: _Choice) -> float:
        """How good a candidate looks."""
        if choice not in self.scores:
            self.scores[choice] = self.few.margins(self._net(choice, self._shifts(choice))).score(self.temperature)
        return self.scores[choice]

    def _better(self, best: _Choice, options: Iterable[_Choice]) -> _Choice:
        return max([best, *options], key=self.score)

    def _whole(self, ends: tuple[float, ...]) -> _Choice:
        return _Choice(ends, (1.0,) * len(self.net), (0,) * len(self.net))

    def _net(self, choice: _Choice, shifts: tuple[Tensor, ...]) -> Folded:
        """The candidate, fake-quantised."""
        net = drop_weights(clip_weights(self.net, choice.weight_clips), choice.weight_floors)
        return self._rounded(choice, shift_biases(net, shifts))

    def _rounded(self, choice: _Choice, net: Folded) -> Folded:
        return fake_quantise(net, _tensors(choice.ceilings), self.quantise.levels)

    def _shifts(self, choice: _Choice) -> tuple[Tensor, ...]:
        x = self.few.x[:CORRECTION_SAMPLES]
        return bias_shifts(clamp(self.net, _tensors(choice.ceilings)), self._net(choice, ()), x)

    def _proposed(self, name: str, choice: _Choice, *, correct: bool) -> Calibration:
        shifts = self._shifts(choice) if correct else ()
        found = self.few.margins(self._net(choice, shifts))
        made = self._calibration(name, choice.ceilings, output_grid(found, symmetric=self.quantise.symmetric))
        clips = choice.weight_clips if min(choice.weight_clips) < 1 else ()
        floors = choice.weight_floors if any(choice.weight_floors) else ()
        return replace(
            made, weight_clips=clips, weight_floors=floors, bias_shifts=tuple(tuple(s.tolist()) for s in shifts)
        )

    def _calibration(self, name: str, ends: tuple[float, ...], grid: OutputGrid) -> Calibration:
        clips = tuple(end / peak for end, peak in zip(ends, self.peaks, strict=True))
        return Calibration(
            ends,
            clips,
            input_grid(self.recipe, self.dataset).scale,
            grid.scale,
            grid.zero_point,
            certified=0,
            correct=0,
            samples=0,
            symmetric=self.quantise.symmetric,
            signed_input=self.dataset.domain[0] < 0,
            chosen=name,
        )

    def possible(self, candidates: Iterable[Calibration]) -> list[Calibration]:
        """Those whose integers fit their types, decided."""
        found = []
        for candidate in candidates:
            try:
                found.append(self.decided(candidate))
            except ModelError as error:  # a bias or a sum leaves int32: another candidate's may not
                self.refusal = error.message
        return found

    def decided(self, candidate: Calibration) -> Calibration:
        """With what `verify` counts of its file. Raises ModelError where its integers leave their types."""
        graph = export(self.net, candidate, self.dataset.shape)
        program = lower(graph, profile(JUDGES[candidate.symmetric]))
        region = Region(self.dataset.features(self.recipe.certify.eps), self.dataset.domain)
        found = certify(program, region, self.whole.x, self.whole.y, threads=torch.get_num_threads())
        certified, correct = (float(self.weight[right].sum()) for right in (found.certified, found.correct))
        return replace(candidate, certified=certified, correct=correct, samples=len(self.whole.y))


def _tensors(ends: tuple[float, ...]) -> Ceilings:
    return tuple(torch.tensor(end, dtype=torch.float32) for end in ends)


def _first(split: Split, count: int) -> Split:
    return Split(split.x[:count], split.y[:count])
