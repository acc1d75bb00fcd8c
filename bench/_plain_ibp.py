"""Certified training in plain PyTorch, as published code for it is written: what `train_speed.py` compares with.

Modules that carry a box beside the clean value: centre and radius through every layer, batch normalisation as a layer of its
own with the statistics of the clean pass, the last layer merged with each sample's matrix of margins. The pruned network is the
network under masks, the quantised one goes through PyTorch's own fake quantisation. The loss is that of `train.objectives`;
`train_speed.py` checks that it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cactus_edge.train.models import NORM_EPSILON, Layer, Layers

Pair = tuple[Tensor, Tensor]
"""Centre and radius."""


class BoundedAffine(nn.Module):
    """A convolution with its own padding before it, or a dense layer."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        weight = layer.weight.detach().clone()
        self.weight = nn.Parameter(weight.flatten(1) if layer.dense else weight)
        self.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.norm is None)
        p = layer.padding
        self.padding, self.stride, self.dense = (p.left, p.right, p.top, p.bottom), layer.stride, layer.dense

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        weight, bias = (self.weight, self.bias) if weight is None else (weight, bias)
        if self.dense:
            return F.linear(x.flatten(1), weight, bias)
        left, right, top, bottom = self.padding
        if (left, top) == (right, bottom):
            return F.conv2d(x, weight, bias, self.stride, (top, left))
        return F.conv2d(F.pad(x, self.padding), weight, bias, self.stride)

    def bound(self, box: Pair) -> Pair:
        return self(box[0]), self(box[1], self.weight.abs())


class BoundedNorm(nn.Module):
    """Batch normalisation; boxes take the statistics of the last clean pass. mask [C]: channels that are not asleep."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        assert layer.norm is not None
        self.weight = nn.Parameter(layer.norm.gamma.detach().clone())
        self.bias = nn.Parameter(layer.norm.beta.detach().clone())
        self.mask: Tensor | None = None
        self.mean = self.var = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.dim()) if d != 1]
        self.mean, self.var = x.mean(dims), x.var(dims, unbiased=False)
        scale, shift = self.affine()
        return x * _over(scale, x) + _over(shift, x)

    def affine(self) -> tuple[Tensor, Tensor]:
        gamma, beta = (p if self.mask is None else p * self.mask for p in (self.weight, self.bias))
        scale = gamma / torch.sqrt(self.var + NORM_EPSILON)
        return scale, beta - self.mean * scale

    def bound(self, box: Pair) -> Pair:
        scale, shift = self.affine()
        return box[0] * _over(scale, box[0]) + _over(shift, box[0]), box[1] * _over(scale.abs(), box[1])


class Block(nn.Module):
    """Affine, normalisation, ReLU. peak: the largest activation of the last clean pass."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.affine, self.norm, self.peak = BoundedAffine(layer), BoundedNorm(layer), torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.affine(x)))
        self.peak = y.detach().amax()
        return y

    def bound(self, box: Pair) -> tuple[Pair, Pair]:
        """The boxes before and after the ReLU."""
        centre, radius = before = self.norm.bound(self.affine.bound(box))
        return before, _box(F.relu(centre - radius), F.relu(centre + radius))

    def quantised(self, clean: Tensor, box: Pair, clip: float) -> tuple[Tensor, Pair]:
        """What leaves the block with normalisation folded, and weights and activations fake-quantised."""
        scale, shift = self.norm.affine()
        weight = _fake(self.affine.weight * _rows(scale, self.affine.weight), rows=not self.affine.dense)
        bias, step = self.affine.bias * scale + shift, clip * self.peak / 255
        z, centre, radius = (
            self.affine(clean, weight, bias),
            self.affine(box[0], weight, bias),
            self.affine(box[1], weight.abs()),
        )
        y, lower, upper = (
            torch.fake_quantize_per_tensor_affine(F.relu(v), step, _ZERO, 0, 255)
            for v in (z, centre - radius, centre + radius)
        )
        return y, _box(lower, upper)


class Plain(nn.Module):
    """A chain of blocks and the layer of the logits, with the parameters of `layers`."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(layer) for layer in layers[:-1])
        self.last = BoundedAffine(layers[-1])

    def full(self, x: Tensor, y: Tensor, box: Pair, weight: float) -> tuple[Tensor, list[Pair]]:
        """(1 - weight) * CE(clean) + weight * CE(worst case), and the boxes before each ReLU."""
        before = []
        for block in self.blocks:
            x = block(x)
        for block in self.blocks:
            pre, box = block.bound(box)
            before.append(pre)
        return self._loss(x, box, y, self.last.weight, weight), before

    def pruned(self, x: Tensor, y: Tensor, box: Pair, weight: float, masks: Sequence[Tensor]) -> Tensor:
        """The same loss with the channels outside the masks asleep."""
        for block, mask in zip(self.blocks, masks, strict=True):
            block.norm.mask = mask
        loss, _ = self.full(x, y, box, weight)
        for block in self.blocks:
            block.norm.mask = None
        return loss

    def quantised(self, x: Tensor, y: Tensor, box: Pair, weight: float, clip: float) -> Tensor:
        """The same loss of the folded and quantised network, by the statistics and peaks of the last clean pass."""
        for block in self.blocks:
            x, box = block.quantised(x, box, clip)
        return self._loss(x, box, y, _fake(self.last.weight, rows=False), weight)

    def _loss(self, x: Tensor, box: Pair, y: Tensor, last: Tensor, weight: float) -> Tensor:
        matrix = margin_matrix(y, len(last))
        merged = matrix @ last
        centre = torch.bmm(merged, box[0].flatten(1)[:, :, None]) + (matrix @ self.last.bias)[:, :, None]
        margin = (centre - torch.bmm(merged.abs(), box[1].flatten(1)[:, :, None])).squeeze(2)
        worst = F.cross_entropy(torch.cat([torch.zeros(len(y), 1), -margin], 1), torch.zeros_like(y))
        return (1 - weight) * F.cross_entropy(F.linear(x.flatten(1), last, self.last.bias), y) + weight * worst


def margin_matrix(y: Tensor, classes: int) -> Tensor:
    """[N, classes - 1, classes]: row j of sample n is e_y - e_j, over the classes j other than y."""
    eye = torch.eye(classes)
    return (eye[y][:, None] - eye[None])[eye[y] == 0].view(len(y), classes - 1, classes)


def regulariser(before: Sequence[Pair], start: Tensor, tolerance: float = 0.5) -> Tensor:
    """Shi et al. 2021: tightness of the boxes and balance of the ReLUs before each activation, mean over the layers."""
    total = torch.zeros(())
    for centre, radius in before:
        total = total + F.relu(tolerance - start / radius.mean()) / tolerance
        active, inactive = (centre - radius > 0).float(), (centre + radius < 0).float()
        spread = (centre - centre.mean()) ** 2
        for a, b in (
            ((centre * active).mean(), -(centre * inactive).mean()),
            ((spread * active).mean(), (spread * inactive).mean()),
        ):
            total = total + F.relu(tolerance - torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-9)) / tolerance
    return total / len(before)


_ZERO = torch.zeros((), dtype=torch.int32)


def _fake(weight: Tensor, *, rows: bool) -> Tensor:
    """PyTorch's fake quantisation to [-127, 127], a scale for each row or one."""
    if not rows:
        return torch.fake_quantize_per_tensor_affine(weight, weight.detach().abs().amax() / 127, _ZERO, -127, 127)
    scales = weight.detach().abs().flatten(1).amax(1) / 127
    return torch.fake_quantize_per_channel_affine(
        weight, scales, torch.zeros(len(scales), dtype=torch.int32), 0, -127, 127
    )


def _box(lower: Tensor, upper: Tensor) -> Pair:
    return (lower + upper) / 2, (upper - lower) / 2


def _over(v: Tensor, x: Tensor) -> Tensor:
    return v.view([1, -1] + [1] * (x.dim() - 2))


def _rows(v: Tensor, weight: Tensor) -> Tensor:
    return v.view([-1] + [1] * (weight.dim() - 1))
