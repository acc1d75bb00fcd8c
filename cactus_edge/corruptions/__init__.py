"""The fifteen common corruptions of images, five severities each.

Source: Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261; parameters of CIFAR-10-C, which are for 32 x 32 pixels: whatever
is a length grows with the shorter side of the image, and shrinks with it but for what a blur reaches. These are not the images of
CIFAR-10-C: other libraries draw other noise, and frost has no photographs here, its texture is computed. So figures compare
networks with one another, on the same images, and not with published ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cactus_edge.corruptions import blur, digital, noise, weather
from cactus_edge.errors import DataError, InputError

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

Corruption = Callable[[Float64, int, np.random.Generator], Float64]
"""(x [N, H, W, C] in [0, 1], severity 0..4, where randomness comes from) -> the corrupted images, perhaps outside [0, 1]."""

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": noise.gaussian,
    "shot noise": noise.shot,
    "impulse noise": noise.impulse,
    "defocus blur": blur.defocus,
    "glass blur": blur.glass,
    "motion blur": blur.motion,
    "zoom blur": blur.zoom,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg": digital.jpeg,
}
"""By name, in the order of the paper."""

SEVERITIES = 5
LEAST_SIDE = 8
CHUNK = 500
"""Images corrupted together, with a generator of their own."""


def corrupt(x: Float32, name: str, severity: int, seed: int = 0) -> Float32:
    """x float32 [N, H, W, 1 or 3] in [0, 1] under the named corruption, severity 1..5, on the grid of bytes / 255.

    Equal x and seed give equal bytes (with one version of numpy, scipy and Pillow). Raises InputError for another name or
    severity, DataError for what are no such images.
    """
    if name not in CORRUPTIONS:
        raise InputError(f"no corruption is called {name!r}", hint=f"one of {', '.join(CORRUPTIONS)}")
    if not 1 <= severity <= SEVERITIES:
        raise InputError(f"severity {severity}, expected 1 to {SEVERITIES}")
    require_images(x)
    number = list(CORRUPTIONS).index(name)
    found = np.empty(x.shape, np.float32)
    for at in range(0, len(x), CHUNK):
        rng = np.random.default_rng([seed, number, severity, at])
        part = CORRUPTIONS[name](x[at : at + CHUNK].astype(np.float64), severity - 1, rng)
        # Averages of bytes fall on halves, where the last bit of a float would decide: the millionth decides instead.
        found[at : at + CHUNK] = np.floor(255 * part.clip(0, 1) + (0.5 + 1e-6)) / 255
    return found


def require_images(x: npt.NDArray[np.floating]) -> None:
    """Raises DataError unless x are images [N, H, W, 1 or 3] in [0, 1] of at least 8 pixels a side."""
    shape = x.shape
    if len(shape) != 4 or shape[3] not in (1, 3) or min(shape[1:3]) < LEAST_SIDE:
        raise DataError(
            f"samples of shape {shape[1:]} are no images of at least {LEAST_SIDE} x {LEAST_SIDE} in grey or colour",
            hint="common corruptions mean nothing for other data",
        )
    if not (np.isfinite(x).all() and x.min(initial=0) >= 0 and x.max(initial=0) <= 1):
        raise DataError("images leave [0, 1]", hint="divide pixels by their largest value")


__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "require_images"]
