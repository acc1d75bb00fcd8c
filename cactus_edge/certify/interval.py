"""The interval engine with torch's kernels, for long runs: the numbers of `verify.interval`, two to three times sooner.

Untrusted by construction: `cactus-edge verify` recomputes every verdict with numpy alone. The proofs of exactness are the
numpy engine's (partial sums below 2^24, staircases at their thresholds) and hold for any IEEE single precision in any order
of summation. What they do not cover is an algorithm that is no sum of products (Winograd) or a narrower product (bfloat16,
TF32); so every call here has the same `TILE` samples, and on building the engine a random tile of that shape must come out bit
for bit as numpy computes it. Chains of layers have a quicker engine of their own, `interval_bytes`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.interval_bytes import ByteEngine, byte_layers
from cactus_edge.certify.tiles import TILE, random_boxes, require_equal, tiled
from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.linear import Array, Conv, Dense
from cactus_edge.ir.ops import Codes, Padding2d
from cactus_edge.verify import decide
from cactus_edge.verify.decide import Decision
from cactus_edge.verify.interval import Accumulate, Bounds, Ends, Engine, Staircase
from cactus_edge.verify.regions import Region

if TYPE_CHECKING:
    from torch import Tensor

WORTH = 30_000_000_000
"""Multiply-accumulates of plain inference over all samples from which loading torch costs less time than it saves."""


def certify(
    program: Program,
    region: Region,
    x: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    *,
    threads: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Decision:
    """`verify.decide.certify` with the quicker of the two engines: the same decision, bit for bit.

    torch's where torch is loaded already or the work is worth loading it; numpy's elsewhere, also where torch is not installed.
    """
    if not _worth(program, len(x) * region.count(x.shape[1:])):
        return decide.certify(program, region, x, labels, threads=threads, progress=progress)
    with one_torch_thread() as each_worker:
        return decide.certify(
            program,
            region,
            x,
            labels,
            threads=threads,
            batch=4 * TILE,
            progress=progress,
            engine=quickest,
            each_worker=each_worker,
        )


def outputs(program: Program, count: int) -> Callable[[Codes], Codes]:
    """`ir.evaluate.run` of the program, sooner where about `count` samples are to be run: bounds of a point are its values.

    Where an engine's two ends of a point differ, as for a step that it bounds more coarsely, the interpreter says what it is.
    """
    if not _worth(program, count):
        return partial(run, program)
    engine, dtype = quickest(program, [program.output]), program.output_tensor.dtype

    def values(codes: Codes) -> Codes:
        ((low, high),) = engine.run(codes, codes)
        found = low.astype(dtype)
        wide = (low != high).reshape(len(low), -1).any(1)
        if wide.any():
            found[wide] = run(program, codes[wide])
        return found

    return values


def _worth(program: Program, boxes: int) -> bool:
    """Whether torch is loaded already, or saves more time than loading it costs."""
    return "torch" in sys.modules or (_installed() and boxes * multiplications(program) >= WORTH)


def multiplications(program: Program) -> int:
    """Multiply-accumulates of one inference in convolutions and dense layers."""
    total = 0
    for step in program.steps:
        if isinstance(step.atom, Affine) and isinstance(step.atom.linear, Conv | Dense):
            weight = step.atom.linear.weight
            total += int(np.prod(step.atom.linear.out_shape)) * (weight.size // weight.shape[0])
    return total


def quickest(program: Program, targets: Iterable[int]) -> Engine:
    """The torch engine for this program."""
    targets = tuple(targets)
    layers = byte_layers(program, targets)
    return TorchEngine(program, targets) if layers is None else ByteEngine(program, targets, layers)


class TorchEngine(Engine):
    """`Engine` whose convolutions, dense layers and staircases run in torch. Raises InternalError where a bit differs."""

    def __init__(self, program: Program, targets: Iterable[int]) -> None:
        super().__init__(program, targets)
        boxes = random_boxes(program, program.values[program.input].shape)
        expected = super().run(*boxes)
        uses = [a for s in self._steps for a in s.args] + list(self.targets)
        for step in self._steps:
            form, (low, high) = self._affine.get(step.out), self._rules[step.out]
            if isinstance(form, Accumulate):
                self._affine[step.out] = self._checked(step.out, form, torch_accumulate(form))
            alone = uses.count(step.args[0]) == 1
            one = _in_torch(low, alone)
            self._rules[step.out] = one, one if low is high else _in_torch(high, alone)
        for target, got, want in zip(self.targets, self.run(*boxes), expected, strict=True):
            require_equal(program, target, got, want)

    def _checked(self, value: int, exact: Accumulate, form: Ends) -> Ends:
        """`form`, once it gives the very floats of `exact` on a random tile: a remainder behind the point would show."""
        p, linear = exact.padding, exact.centre
        shape = linear.in_shape
        if p != Padding2d():
            shape = (shape[0] - p.top - p.bottom, shape[1] - p.left - p.right, *shape[2:])
        lo, hi = (ends.astype(np.float32) for ends in random_boxes(self.program, shape))
        require_equal(self.program, value, form.ends(lo, hi), exact.ends(lo, hi))
        return form

    def run(self, lower: Codes, upper: Codes) -> list[Bounds]:
        """As `Engine.run`, in tiles of TILE samples."""
        return tiled(super().run, lower, upper)

    def _apply(
        self, low: Callable[..., Array], high: Callable[..., Array], signs: tuple[int, ...], args: list[Bounds]
    ) -> Bounds:
        """Both ends in one pass where they are one array, or the halves of one, as `TorchAccumulate.ends` leaves them."""
        lo, hi = args[0]
        if low is high and lo is hi and isinstance(low, TorchStaircase):
            return (point := low(lo)), point
        if low is high and isinstance(low, TorchStaircase) and isinstance(lo.base, np.ndarray) and lo.base is hi.base:
            under, over = low(lo.base)
            return under, over
        return super()._apply(low, high, signs, args)


def _in_torch(rule: Callable[..., Array] | None, in_place: bool) -> Callable[..., Array] | None:
    return TorchStaircase.of(rule, in_place=in_place) if isinstance(rule, Staircase) else rule


@dataclass(frozen=True, eq=False)
class TorchAccumulate:
    """`Accumulate` of a convolution or a dense layer in float32; product(x, absolute) multiplies by W and adds the bias, or by |W|."""

    exact: Accumulate
    product: Callable[[Tensor, bool], Tensor]

    @property
    def dtype(self) -> type[np.float32]:
        return np.float32

    def ends(self, lo: Array, hi: Array) -> Bounds:
        """As `Accumulate.ends`; of points both are one array."""
        import torch

        low, high = torch.from_numpy(lo), torch.from_numpy(hi)
        centre = self.product(self._sum(torch.add, low, high, 2.0 * self.exact.fill), False)
        if lo is hi or np.array_equal(lo, hi):
            return (point := centre.numpy()), point
        radius = self.product(self._sum(torch.sub, high, low, 0.0), True)
        both = centre.new_empty((2, *centre.shape))
        torch.sub(centre, radius, out=both[0])
        torch.add(centre, radius, out=both[1])
        under, over = both.numpy()
        return under, over

    def _sum(self, operation: Callable[..., Tensor], a: Tensor, b: Tensor, border: float) -> Tensor:
        p = self.exact.padding
        if p == Padding2d():
            return operation(a, b)
        n, h, w, c = a.shape
        image = a.new_full((n, h + p.top + p.bottom, w + p.left + p.right, c), border)
        operation(a, b, out=image[:, p.top : p.top + h, p.left : p.left + w])
        return image


def torch_accumulate(exact: Accumulate) -> Ends:
    """The torch form of a convolution or dense layer on float32; any other map as it is."""
    import torch

    signed, absolute = exact.centre, exact.radius
    if exact.dtype != np.float32:
        return exact
    if isinstance(signed, Dense) and isinstance(absolute, Dense):
        matrices = [torch.from_numpy(np.ascontiguousarray(m.weight)) for m in (signed, absolute)]
        bias = torch.from_numpy(np.broadcast_to(exact.bias2, signed.out_shape).copy())

        def dense(x: Tensor, of_absolute: bool) -> Tensor:
            flat = x.reshape(len(x), -1)
            return flat @ matrices[1].T if of_absolute else torch.addmm(bias, flat, matrices[0].T)

        return TorchAccumulate(exact, dense)
    if isinstance(signed, Conv) and isinstance(absolute, Conv):
        kernels = [
            torch.from_numpy(np.ascontiguousarray(m.weight.transpose(0, 3, 1, 2))).contiguous(
                memory_format=torch.channels_last
            )
            for m in (signed, absolute)
        ]
        # Without padding inside the map each position has the same row sums, and so the same bias.
        shift = torch.from_numpy(np.broadcast_to(exact.bias2, signed.out_shape)[0, 0].copy())
        stride, dilation, groups = signed.stride, signed.dilation, signed.groups

        def conv(x: Tensor, of_absolute: bool) -> Tensor:
            y = torch.conv2d(
                x.permute(0, 3, 1, 2),
                kernels[of_absolute],
                None if of_absolute else shift,
                stride=stride,
                dilation=dilation,
                groups=groups,
            )
            return y.permute(0, 2, 3, 1).contiguous()

        return TorchAccumulate(exact, conv)
    return exact


@dataclass(frozen=True, eq=False)
class TorchStaircase:
    """`Staircase` with the same constants and the same IEEE operations; in_place: it may overwrite its argument."""

    slope: Tensor
    above: Tensor
    under: Tensor | None
    knee: int
    lo: int
    hi: int
    in_place: bool

    @classmethod
    def of(cls, rule: Staircase, *, in_place: bool) -> TorchStaircase:
        import torch

        slope, above = torch.from_numpy(rule.slope), torch.from_numpy(rule.above)
        under = None if rule.under is None else torch.from_numpy(rule.under)
        return cls(slope, above, under, rule.knee, rule.lo, rule.hi, in_place and slope.dtype == torch.float32)

    def __call__(self, t2: Array) -> Array:
        import torch

        given = torch.from_numpy(t2)
        scaled = given.mul_(self.slope) if self.in_place and given.dtype == torch.float32 else given * self.slope
        if self.under is None:
            level = scaled.add_(self.above).floor_()
        else:
            level = (scaled + self.above).floor_().clamp_(min=self.knee)
            level += scaled.add_(self.under).floor_().clamp_(max=self.knee)
            level -= self.knee
        result: Array = level.float().clamp_(self.lo, self.hi).numpy()
        return result


def _installed() -> bool:
    from importlib.util import find_spec

    return find_spec("torch") is not None


@contextmanager
def one_torch_thread() -> Iterator[Callable[[], None]]:
    """One thread inside each torch call while the workers are ours; gives what a worker thread calls when it starts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(before)
