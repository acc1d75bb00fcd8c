"""Adjoints of the linear maps as differentiable torch functions on rows [N, R, *out_shape], in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cactus_edge.ir.linear import Conv, Dense, Linear, Transposed, WindowSum

if TYPE_CHECKING:
    from torch import Tensor

    Map = Callable[[Tensor], Tensor]


def adjoint(linear: Linear, device: str = "cpu") -> Map:
    """a -> W^T a, [N, R, *in_shape]."""
    match linear:
        case Dense(weight, in_shape):
            matrix = _float32(weight, device)
            return lambda a: (a @ matrix).reshape(*a.shape[:2], *in_shape)
        case Conv():
            return _images(_conv_adjoint(linear, device))
        case WindowSum(in_shape, kernel, stride, padding):
            ones = np.ones((in_shape[2], *kernel, 1), np.int64)
            return _images(_conv_adjoint(Conv(ones, in_shape, stride, padding), device))
        case Transposed(convolution):
            return _images(_conv(convolution, device))
        case _:
            return _through_numpy(linear)


def _float32(array: Any, device: str) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)


def _conv_adjoint(conv: Conv, device: str) -> Map:
    from torch.nn import functional

    weight, p, (h, w, _) = _float32(conv.weight.transpose(0, 3, 1, 2), device), conv.padding, conv.in_shape

    def back(a: Tensor) -> Tensor:
        full = functional.conv_transpose2d(a, weight, stride=conv.stride, groups=conv.groups, dilation=conv.dilation)
        # Rows and columns that no window reaches are missing at the end.
        right, down = max(p.left + w - full.shape[3], 0), max(p.top + h - full.shape[2], 0)
        return functional.pad(full, (0, right, 0, down))[:, :, p.top : p.top + h, p.left : p.left + w]

    return back


def _conv(conv: Conv, device: str) -> Map:
    from torch.nn import functional

    weight, p = _float32(conv.weight.transpose(0, 3, 1, 2), device), conv.padding

    def forth(a: Tensor) -> Tensor:
        image = functional.pad(a, (p.left, p.right, p.top, p.bottom))
        return functional.conv2d(image, weight, stride=conv.stride, groups=conv.groups, dilation=conv.dilation)

    return forth


def _images(function: Map) -> Map:
    """A map of images [M, C, H, W] as one of rows [N, R, H, W, C]."""

    def mapped(a: Tensor) -> Tensor:
        result = function(a.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return result.reshape(*a.shape[:2], *result.shape[1:])

    return mapped


def _through_numpy(linear: Linear) -> Map:
    """The adjoint of a map that torch has no function for; its derivative is the map."""
    import torch

    class Adjoint(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, a: Tensor) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(linear.adjoint(a.detach().cpu().numpy()))).to(a.device)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(linear.apply(gradient.cpu().numpy()))).to(gradient.device)

    def mapped(a: Tensor) -> Tensor:
        flat: Tensor = Adjoint.apply(a.flatten(0, 1))  # type: ignore[no-untyped-call]
        return flat.reshape(*a.shape[:2], *flat.shape[1:])

    return mapped
