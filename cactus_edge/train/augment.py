"""Random small changes of training samples."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.errors import InputError
from cactus_edge.recipe_sections import TrainRecipe
from cactus_edge.train.augmix import augmix

NOISE = 0.1
"""Standard deviation of Gaussian augmentation, in widths of the domain."""


def augmented(
    x: Tensor,
    train: TrainRecipe,
    domain: tuple[Fraction, Fraction],
    generator: torch.Generator,
    zero: float = 0.0,
) -> Tensor:
    """x [N, C, H, W] as the recipe changes training samples: moved, cropped, mirrored, amplified, augmented; inside the domain.

    What the recipe leaves at 0 draws no number from the generator. With a consistency the samples stay clean: `views` has the rest.
    zero: the sensor's 0 in the unit of x, which lies outside of what is moved, and around which a gain amplifies.
    """
    shift, angle = train.shift_pixels, train.rotate_degrees
    x = moved(x, generator, shift_pixels=shift, rotate_degrees=angle, zoom=train.zoom, zero=zero)
    x = cropped(x, generator, train.crop)
    x = mirrored(x, generator) if train.mirror else x
    x = amplified(x, generator, train.gain, domain, zero)
    return x if train.consistency > 0 else _varied(x, train, domain, generator)


def check(train: TrainRecipe, shape: tuple[int, int, int]) -> None:
    """Raises InputError where samples of `shape` (height, width, channels) are nothing that the recipe's augmentation is for."""
    if train.augment == "augmix" and min(shape[:2]) == 1:
        raise InputError(
            f"[train] augmix mixes pictures, and samples are of {shape[0]} x {shape[1]}", hint='augment = "gaussian"'
        )


def views(
    x: Tensor, train: TrainRecipe, domain: tuple[Fraction, Fraction], generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Two augmented versions of x [N, C, H, W] to be told as x is, where the recipe has a consistency; else none."""
    return tuple(_varied(x, train, domain, generator) for _ in range(2 if train.consistency > 0 else 0))


def _varied(x: Tensor, train: TrainRecipe, domain: tuple[Fraction, Fraction], generator: torch.Generator) -> Tensor:
    match train.augment:
        case "augmix":
            return augmix(x, domain, generator)
        case "gaussian":
            return noisy(x, domain, generator)
        case _:
            return x


def noisy(x: Tensor, domain: tuple[Fraction, Fraction], generator: torch.Generator) -> Tensor:
    """Each sample with probability 1/2 + N(0, 0.1^2) of the domain's width, cut off at its ends.

    Source: the Gaussian cards of Diffenderfer et al. 2021, arXiv 2106.09129 (standard deviation and probability).
    """
    low, high = float(domain[0]), float(domain[1])
    chosen = torch.rand(len(x), generator=generator) < 0.5
    noise = torch.randn(x.shape, generator=generator) * (NOISE * (high - low))
    return (x + (noise * chosen[:, None, None, None]).to(x.device)).clamp(low, high)


def cropped(x: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """Each sample shifted by up to `most` whole rows and columns, the edge repeated; an axis of length 1 stays.

    For images the crop after padding by `most` that CIFAR-10 is trained with; for signals [N, C, T, 1] a shift in time.
    """
    if most == 0:
        return x
    n, _, h, w = x.shape
    draw = torch.randint(-most, most + 1, (2, n), generator=generator).to(x.device)
    rows, columns = (
        (torch.arange(size, device=x.device) + (shift[:, None] if size > 1 else 0)).clamp(0, size - 1).expand(n, size)
        for size, shift in zip((h, w), draw, strict=True)
    )
    x = x.gather(2, rows[:, None, :, None].expand_as(x))
    return x.gather(3, columns[:, None, None, :].expand_as(x))


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample left to right with probability 1/2."""
    flip = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return torch.where(flip[:, None, None, None], x.flip(3), x)


def amplified(
    x: Tensor, generator: torch.Generator, gain: float, domain: tuple[Fraction, Fraction], zero: float = 0.0
) -> Tensor:
    """Each sample, as it stands above `zero`, times 1 +- gain, uniformly at random, cut off at the domain's ends."""
    if gain == 0:
        return x
    factor = 1 + gain * (2 * torch.rand(len(x), generator=generator).to(x.device) - 1)
    return (zero + (x - zero) * factor[:, None, None, None]).clamp(float(domain[0]), float(domain[1]))


def moved(
    x: Tensor,
    generator: torch.Generator,
    *,
    shift_pixels: float = 0.0,
    rotate_degrees: float = 0.0,
    zoom: float = 0.0,
    zero: float = 0.0,
) -> Tensor:
    """Each sample of x [N, C, H, W] rotated, scaled by 1 +- zoom and shifted, each uniformly at random; `zero` outside.

    Bilinear, so that values stay inside the range of the sample and `zero`. Without any movement x itself, and no number is
    drawn from the generator.
    """
    if shift_pixels == 0 and rotate_degrees == 0 and zoom == 0:
        return x
    n, _, h, w = x.shape
    draw = (2 * torch.rand((n, 4), generator=generator) - 1).to(x.device)
    angle, factor = draw[:, 0] * math.radians(rotate_degrees), 1 + zoom * draw[:, 1]
    cos, sin = torch.cos(angle) * factor, torch.sin(angle) * factor
    # affine_grid measures in half maps: one pixel is 2 / size.
    right, down = draw[:, 2] * shift_pixels * 2 / w, draw[:, 3] * shift_pixels * 2 / h
    matrix = torch.stack([cos, -sin * h / w, right, sin * w / h, cos, down], 1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return zero + F.grid_sample(x - zero, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
