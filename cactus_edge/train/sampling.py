"""Which training samples an epoch sees, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def batches(y: Tensor, size: int, balance: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Index tensors of one epoch in random order; a remainder too small for batch statistics (under size / 2) is left out.

    y int64 [N]. With a balance of 0 every sample comes once. Else N samples are drawn with replacement, class c with a
    probability in proportion to n_c^(1 - balance) of its n_c samples.
    """
    count = len(y)
    if balance == 0:
        order = torch.randperm(count, generator=generator)
    else:
        order = torch.multinomial(_weights(y, balance), count, replacement=True, generator=generator)
    for index in torch.split(order, size):
        if len(index) >= min(count, (size + 1) // 2):
            yield index


def typical(y: Tensor, most: int, balance: float) -> Tensor:
    """Indices of up to `most` samples, the same in every run, with the classes' shares that `batches` gives them."""
    count = min(most, len(y))
    if balance == 0:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(0)
    return torch.multinomial(_weights(y, balance), count, replacement=True, generator=generator)


def shares(y: Tensor, balance: float) -> Tensor:
    """What each sample counts where classes count by `balance`: double [N], mean 1; all ones for 0, each class alike for 1."""
    weights = _weights(y, balance)
    return weights / weights.mean()


def _weights(y: Tensor, balance: float) -> Tensor:
    """n_c^-balance for a sample of class c: double [N]."""
    y = y.cpu()
    return torch.bincount(y).double().clamp(min=1)[y] ** -balance
