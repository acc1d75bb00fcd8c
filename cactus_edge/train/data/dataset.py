"""What every data set becomes: three disjoint splits of samples in one unit, and what that unit is for each channel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError, InputError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.recipe_values import Eps

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

UNIT = (Fraction(0), Fraction(1))
"""The domain of pixels."""


def digest(*arrays: npt.NDArray[Any]) -> str:
    """SHA-256 (hex) over dtype, shape and little-endian bytes of each."""
    h = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        h.update(f"{little.dtype.str}{little.shape}".encode())
        h.update(little.tobytes())
    return h.hexdigest()


@dataclass(frozen=True, eq=False)
class Split:
    """x float32 [N, H, W, C] in the unit of the data set, y int64 [N]."""

    x: Float32
    y: Int64

    def changed(self, f: Callable[[Float32], Float32]) -> Split:
        """The same samples with f of x."""
        return replace(self, x=f(self.x))

    def digest(self) -> str:
        """SHA-256 (hex) over dtype, shape and little-endian bytes of x, then y."""
        return digest(self.x, self.y)


@dataclass(frozen=True)
class Channel:
    """One channel: where a sample holds x, its sensor read `scale` * x in `unit`."""

    name: str
    unit: str
    scale: Fraction = Fraction(1)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; `test` is looked at once, `validation` decides. domain: the sensor's range, exact.

    zero: what the sensor's 0 is in the unit of the data, other than 0 where they are centred.
    labels: name per class. preprocessing: how samples come from the raw values, for the manifest. channels: what the sensors
    measure, one record a channel; none where the data have a single unit of their own, such as a part of the pixel range.
    The int8 input has one scale for all channels, so channels of different sensors are brought to one unit, and the
    domain is the same for all of them: [domain * scale] in the unit of each.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]
    preprocessing: str
    domain: tuple[Fraction, Fraction] = UNIT
    channels: tuple[Channel, ...] = ()
    zero: Fraction = Fraction(0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a sample; a signal of T steps is T x 1."""
        h, w, c = self.train.x.shape[1:]
        return int(h), int(w), int(c)

    def centred(self, centre: Fraction) -> Dataset:
        """The same samples less `centre`, x' = x - centre in float32. Raises DataError for sensors with units of their own."""
        if self.channels:
            raise DataError(
                f"[data] centre = {centre} of what? The channels of {self.name!r} have units of their own",
                hint="leave it out: a sensor whose range is centred needs none",
            )
        least, most = self.domain
        return replace(
            self._changed(lambda x: x - np.float32(centre)),
            preprocessing=f"{self.preprocessing} - {centre}",
            domain=(least - centre, most - centre),
            zero=self.zero - centre,
        )

    def clipped(self, least: float, most: float) -> Dataset:
        """The same samples, cut at both ends."""
        return self._changed(lambda x: x.clip(np.float32(least), np.float32(most)))

    def _changed(self, f: Callable[[Float32], Float32]) -> Dataset:
        train, validation, test = (split.changed(f) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the three splits in the order train, validation, test."""
        return hashlib.sha256(
            "".join(s.digest() for s in (self.train, self.validation, self.test)).encode()
        ).hexdigest()

    def radii(self, eps: Eps) -> tuple[Fraction, ...]:
        """A recipe's eps in the unit of the data: one radius for all channels, or one for each.

        A number in the unit of a sensor is divided by the channel's scale, exactly. Raises InputError where eps does not say
        what it is for every channel, or exceeds the domain.
        """
        each = self._each(eps)
        width = self.domain[1] - self.domain[0]
        if max(each) > width:
            raise InputError(
                f"eps = {eps} of the data set {self.name!r} exceeds the sensor's range", hint="a smaller eps"
            )
        return each[:1] if len(set(each)) == 1 else each

    def features(self, eps: Eps) -> tuple[Fraction, ...]:
        """As `radii`, but one for all features or one for each, row-major: what `verify.regions` takes."""
        each = self.radii(eps)
        h, w, _ = self.shape
        return each if len(each) == 1 else each * (h * w)

    def said(self, eps: Eps) -> str:
        """eps in the units of the sensors: "4/125 g (acc_x, acc_y) and 1/16 rad/s (gyro)"; "" where the data have none."""
        if not self.channels:
            return "" if isinstance(eps, Fraction) else f"{eps} for the channels in order"
        told: dict[str, list[str]] = {}
        for channel, radius in zip(self.channels, self._each(eps), strict=True):
            told.setdefault(f"{radius * channel.scale} {channel.unit}", []).append(channel.name)
        return " and ".join(
            words if len(told) == 1 else f"{words} ({', '.join(names)})" for words, names in told.items()
        )

    def _each(self, eps: Eps) -> tuple[Fraction, ...]:
        """One radius in the unit of the data for each channel."""
        count = self.shape[2]
        if isinstance(eps, Fraction):
            units = sorted({c.unit for c in self.channels})
            if len(units) > 1 and eps:  # 0 is 0 in every unit
                raise InputError(
                    f"eps = {eps} of what? The channels of {self.name!r} have the units {', '.join(units)}",
                    hint="eps = { " + ", ".join(f'"{unit}" = "{eps}"' for unit in units) + " }",
                )
            return tuple(eps / c.scale for c in self.channels) or (eps,) * count
        if not eps.names:
            if len(eps.radii) != count:
                raise InputError(f"eps lists {len(eps.radii)} radii; {self.name!r} has {count} channels")
            scales = [c.scale for c in self.channels] or [Fraction(1)] * count
            return tuple(radius / scale for radius, scale in zip(eps.radii, scales, strict=True))
        return self._named(dict(zip(eps.names, eps.radii, strict=True)))

    def _named(self, radii: dict[str, Fraction]) -> tuple[Fraction, ...]:
        known = {c.name for c in self.channels} | {c.unit for c in self.channels}
        if unknown := [name for name in radii if name not in known]:
            there = ", ".join(f"{c.name} in {c.unit}" for c in self.channels) or "none with a name"
            raise InputError(
                f"eps names {unknown[0]!r}; the channels of {self.name!r} are {there}",
                hint="a channel's name or unit for each radius",
            )
        if missing := [c.name for c in self.channels if not {c.name, c.unit} & set(radii)]:
            raise InputError(f"eps says nothing about {', '.join(missing)}", hint="0 for a channel that stays as it is")
        return tuple(radii.get(c.name, radii.get(c.unit, Fraction(0))) / c.scale for c in self.channels)


@dataclass(frozen=True, eq=False)
class Raw:
    """Samples before they are split: x float32 [N, H, W, C], y int64 [N]; group int64 [N]: whose each is, None if all are alike."""

    x: Float32
    y: Int64
    group: Int64 | None = None

    def pick(self, index: Int64) -> Split:
        """Those samples."""
        return Split(np.ascontiguousarray(self.x[index]), np.ascontiguousarray(self.y[index]))


@dataclass(frozen=True)
class About:
    """The words and numbers of a `Dataset`."""

    name: str
    labels: tuple[str, ...]
    preprocessing: str
    domain: tuple[Fraction, Fraction] = UNIT
    channels: tuple[Channel, ...] = ()

    def dataset(self, train: Split, validation: Split, test: Split) -> Dataset:
        """The data set of these splits. Raises DataError where one is empty."""
        for part, split in (("train on", train), ("validate with", validation), ("test with", test)):
            if len(split.y) == 0:
                raise DataError(f"the data set {self.name!r} leaves no samples to {part}", hint="smaller splits")
        return Dataset(self.name, train, validation, test, self.labels, self.preprocessing, self.domain, self.channels)


def divide(about: About, rest: Raw, test: Split | None, recipe: DataRecipe) -> Dataset:
    """Test samples first (where the set has none of its own), then validation samples, in the order drawn by split_seed.

    With [data] validation_groups the samples of those groups of `rest` validate instead, and no others. Both parts are in a
    fixed random order: whoever takes the first thousand gets some of everybody's.
    """
    if recipe.validation_groups:
        if test is None:
            raise DataError(
                f"the data set {about.name!r} brings no test samples: it is not split by group",
                hint="x_test and y_test",
            )
        held = _in_groups(about.name, rest, recipe.validation_groups)
        order = in_fixed_order(len(rest.y), recipe.split_seed)
        return about.dataset(rest.pick(order[~held[order]]), rest.pick(order[held[order]]), test)
    if rest.group is not None:
        raise DataError(
            f"the samples of {about.name!r} belong together in groups, which a random split would divide",
            hint=f"validation_groups = [{int(rest.group[0])}, ...] instead of validation_samples",
        )
    order = in_fixed_order(len(rest.y), recipe.split_seed)
    tests = 0 if test is not None else recipe.test_samples
    if test is None and tests == 0:
        raise DataError(
            f"the data set {about.name!r} brings no test samples and [data] test_samples is 0",
            hint="test_samples = 360",
        )
    if tests + recipe.validation_samples >= len(order):
        raise DataError(
            f"{tests} test and {recipe.validation_samples} validation samples leave none of {len(order)} to train on",
            hint="smaller splits",
        )
    stop = tests + recipe.validation_samples
    chosen = test if test is not None else rest.pick(order[:tests])
    return about.dataset(rest.pick(order[stop:]), rest.pick(order[tests:stop]), chosen)


def _in_groups(name: str, raw: Raw, groups: Sequence[int]) -> npt.NDArray[np.bool_]:
    whose = np.full(len(raw.y), -1) if raw.group is None else raw.group
    there: Iterable[int] = [g for g in np.unique(whose).tolist() if g >= 0]
    if missing := sorted(set(groups) - set(there)):
        listed = ", ".join(map(str, there)) or "none: its samples are not grouped"
        raise DataError(
            f"[data] validation_groups names {missing[0]}; the training groups of {name!r} are {listed}",
            hint="validation_samples for data without groups",
        )
    return np.isin(whose, list(groups))


def in_fixed_order(count: int, seed: int) -> Int64:
    """0 .. count - 1 in the order of SHA-256("seed:index"): fixed for ever, whatever the version of numpy."""
    keys = [hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(count)]
    return np.asarray(sorted(range(count), key=keys.__getitem__), np.int64)
