"""Random changes of an image that leave its meaning: what training mutates samples by, and what CC-Cert judges a file by.

One definition serves both, so that a network meets in training the very changes it is judged by. numpy and, for rotation,
translation and blur, scipy.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError, InstallError
from cactus_edge.recipe_values import BadValueError, rational

Real = npt.NDArray[np.float64]

AMOUNTS = {"brightness": "0.1", "contrast": "0.2", "rotation": "10", "translation": "2", "blur": "1"}
"""Every transform with its usual amount: a share of the domain, a share, degrees, pixels, pixels."""

LONGEST = 24
"""Characters of an amount, which names of files hold."""

_MOST = {"brightness": 1, "contrast": 1, "rotation": 180, "translation": 64, "blur": 64}


@dataclass(frozen=True)
class Semantic:
    """Transforms applied one after the other, each with its largest amount a; every draw is uniform and independent.

    brightness: + u of the domain's width, |u| <= a. contrast: times 1 + u around the sample's mean, |u| <= a. rotation: by
    |u| <= a degrees around the centre. translation: by |u|, |v| <= a pixels down and right. blur: Gaussian, 0 <= sigma <= a
    pixels. Between pixels linearly, beyond the border its nearest pixel; at the end clamped to the domain.
    """

    parts: tuple[tuple[str, Fraction], ...]

    @property
    def name(self) -> str:
        """Such as "rotation=10+brightness=0.1": exact, so that others have other names."""
        return "+".join(f"{part}={_decimal(amount)}" for part, amount in self.parts)

    def draw(self, x: Real, count: int, domain: tuple[float, float], rng: np.random.Generator) -> Real:
        """`count` transforms of one sample x [*shape] in units of the data: [count, *shape]. Raises as `changed` does."""
        return self.changed(np.repeat(x[None], count, 0), domain, rng)

    def changed(self, x: Real, domain: tuple[float, float], rng: np.random.Generator) -> Real:
        """One transform of each of the samples x [N, *shape], drawn for each. Raises InputError for what are no images."""
        for part, amount in self.parts:
            u = rng.uniform(-float(amount), float(amount), (len(x), 2))
            x = _apply(part, x, u, domain)
        return np.clip(x, *domain)


def transforms(text: str) -> tuple[Semantic, ...]:
    """From "rotation=10,blur,rotation+brightness=0.2": several joined by commas; joined by + they are applied together.

    Raises InputError for another form.
    """
    found = []
    for item in text.split(","):
        parts = []
        for part in item.split("+"):
            name, _, amount = part.strip().partition("=")
            if name not in AMOUNTS:
                raise InputError(
                    f"{part.strip()[:40]!r} is no transform", hint=" or ".join(AMOUNTS) + ", such as rotation=10"
                )
            most = _MOST[name]
            try:
                value = rational(0, most)(amount or AMOUNTS[name])
            except BadValueError:
                value = Fraction(0)
            if not float(value) > 0 or len(_decimal(value)) > LONGEST:
                raise InputError(
                    f"{name}={amount[:40]}, expected more than 0 and at most {most}, in {LONGEST} characters"
                )
            parts.append((name, value))
        found.append(Semantic(tuple(parts)))
    return tuple(found)


def _decimal(value: Fraction) -> str:
    """Exactly: 0.125, or 1/3 where no decimal ends."""
    rest, digits = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        digits = max(digits, count)
    if rest > 1 or digits == 0:
        return str(value)
    whole, part = divmod(value.numerator * 10**digits // value.denominator, 10**digits)
    return f"{whole}.{part:0{digits}d}"


def _apply(part: str, x: Real, u: Real, domain: tuple[float, float]) -> Real:
    """One transform of each of x [M, *shape], with its draws u [M, 2]."""
    first = u[:, 0].reshape(-1, *(1,) * (x.ndim - 1))
    match part:
        case "brightness":
            return x + first * (domain[1] - domain[0])
        case "contrast":
            mean = x.mean(tuple(range(1, x.ndim)), keepdims=True)
            changed: Real = (1 + first) * (x - mean) + mean
            return changed
        case _:
            pass
    if x.ndim not in (3, 4):
        raise InputError(
            f"{part} of samples of shape {x.shape[1:]}, expected images: rows, columns and perhaps channels"
        )
    try:
        from scipy import ndimage
    except ImportError as error:
        raise InstallError(f"{part} needs scipy", hint="see `cactus-edge doctor`") from error
    changed = np.empty_like(x)
    for i, image in enumerate(x):
        match part:
            case "rotation":
                ndimage.rotate(image, u[i, 0], (1, 0), reshape=False, order=1, mode="nearest", output=changed[i])
            case "translation":
                offset = (*u[i], 0.0)[: image.ndim]
                ndimage.shift(image, offset, order=1, mode="nearest", output=changed[i])
            case _:
                sigma = (*np.abs(u[i, [0, 0]]), 0.0)[: image.ndim]
                ndimage.gaussian_filter(image, sigma, mode="nearest", output=changed[i])
    return changed
