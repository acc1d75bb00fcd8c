"""The network as ordinary torch modules, for tools that expect those: Conv2d, Linear, BatchNorm2d and ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cactus_edge.train.models import NORM_EPSILON, Layer, Layers, seen, walk


class Plain(nn.Module):
    """The same function as the layers in inference mode, on copies of their tensors. x [N, C, H, W] -> logits [N, classes].

    linears[i] is layer i's Conv2d or Linear; norms[i] its batch normalisation (1d after Linear), an Identity where it has none.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self._plan = layers
        self.linears = nn.ModuleList(_linear(layer) for layer in layers)
        self.norms = nn.ModuleList(_norm(layer) for layer in layers)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        def step(i: int, read: Tensor, other: Tensor | None) -> Tensor:
            layer, read = self._plan[i], seen(read, self._plan[i])
            z: Tensor = self.norms[i](self.linears[i](read.flatten(1) if layer.dense else _padded(read, layer)))
            z = z if other is None else z + other
            return F.relu(z) if layer.relu else z

        return walk(self._plan, x, step)


def _linear(layer: Layer) -> nn.Module:
    outputs, inputs, *kernel = layer.weight.shape
    made: nn.Conv2d | nn.Linear
    if layer.dense:
        made = nn.Linear(layer.weight[0].numel(), outputs)
    else:
        p = layer.padding
        padding = (p.top, p.left) if (p.top, p.left) == (p.bottom, p.right) else 0
        inputs = outputs if layer.depthwise else inputs
        made = nn.Conv2d(
            inputs, outputs, (kernel[0], kernel[1]), layer.stride, padding, groups=outputs if layer.depthwise else 1
        )
    with torch.no_grad():
        made.weight.copy_(layer.weight.reshape(made.weight.shape))
        assert made.bias is not None
        made.bias.copy_(layer.bias)
    return made


def _norm(layer: Layer) -> nn.Module:
    if layer.norm is None:
        return nn.Identity()
    made = (nn.BatchNorm1d if layer.dense else nn.BatchNorm2d)(layer.weight.shape[0], eps=NORM_EPSILON)
    with torch.no_grad():
        for tensor, value in zip((made.weight, made.bias), (layer.norm.gamma, layer.norm.beta), strict=True):
            tensor.copy_(value)
        assert made.running_mean is not None and made.running_var is not None
        made.running_mean.copy_(layer.norm.mean)
        made.running_var.copy_(layer.norm.var)
    return made


def _padded(x: Tensor, layer: Layer) -> Tensor:
    p = layer.padding
    if (p.top, p.left) == (p.bottom, p.right):
        return x
    return F.pad(x, (p.left, p.right, p.top, p.bottom))
