"""The networks whose bounds are measured: built files, dense ones trained for clean accuracy alone, and a float twin of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

# numpy's matrix products are small here; its own threads would only spin against ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from _common import ROOT

from cactus_edge.errors import InputError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import load_recipe
from cactus_edge.resources import sha256
from cactus_edge.verify.tflite_read import read_tflite

SUITES = ROOT / "bench" / "suites"
DENSE = ("dense-64", "dense-64-32")
"""Networks of SUITES, trained without any certified objective."""


@dataclass(frozen=True, eq=False)
class Network:
    """A .tflite and samples x [N, *input shape] in sensor units of [0, 1] with labels y [N]."""

    name: str
    model: bytes
    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]

    @cached_property
    def program(self) -> Program:
        """Under profile tflm."""
        return lower(read_tflite(self.model).graph, profile("tflm"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the file."""
        return sha256(self.model)

    def part(self, rows: Any) -> Network:
        """With the samples `rows`: a slice or indices."""
        return replace(self, x=self.x[rows], y=self.y[rows])


def built(name: str, folder: Path) -> Network:
    """The file that a recipe's build left in `folder`, for whichever board."""
    for place in sorted(folder.glob(f"{name}-*")):
        if (place / "model.tflite").is_file() and (place / "test.npz").is_file():
            return read(name, place / "model.tflite", place / "test.npz")
    raise InputError(f"no build of {name} in {folder}", hint=f"cactus-edge build --recipe {name} --target raspberry-pi")


def read(name: str, model: Path, data: Path) -> Network:
    """A file and its samples."""
    with np.load(data) as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int64)
    network = Network(name, model.read_bytes(), x, y)
    shape = network.program.values[network.program.input].shape
    return Network(name, network.model, x.reshape(-1, *shape), y)


def trained(name: str, workdir: Path) -> Network:
    """A network of a recipe in SUITES or of a built-in one, trained here (its checkpoint stays in `workdir`), with the whole test set."""
    from cactus_edge.formats.tflite import write_tflite
    from cactus_edge.train.calibrate import to_graph
    from cactus_edge.train.data import load_dataset
    from cactus_edge.train.loop import train

    own = SUITES / f"{name}.toml"
    recipe = load_recipe(own if own.is_file() else name)
    dataset = load_dataset(recipe.data)
    network = train(recipe, dataset, workdir, lambda e: print(f"{name}: {e.stage}, epoch {e.epoch} of {e.epochs}"))
    model = write_tflite(to_graph(network, dataset, recipe), metadata={})
    return Network(name, model, dataset.test.x, dataset.test.y)


class Twin(torch.nn.Module):
    """The same layers in float32, channels first: the file's weights and biases as reals. TypeError for an op it has no layer for."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for node in graph.nodes:
            x, out = graph.tensors[node.inputs[0]], graph.tensors[node.output]
            match node.op:
                case ops.Conv2d(weight=weight) as op if weight.shape[3] == x.shape[2]:
                    layers += [*_conv(op, weight.transpose(0, 3, 1, 2), x.scale, 1), _activation(op.activation)]
                case ops.DepthwiseConv2d(weight=weight) as op:
                    kernels = weight.transpose(2, 0, 1)[:, None]
                    layers += [*_conv(op, kernels, x.scale, x.shape[2]), _activation(op.activation)]
                case ops.Dense(weight=weight) as op:
                    linear = torch.nn.Linear(x.size, out.size)
                    if len(x.shape) == 3:
                        weight = weight.reshape(-1, *x.shape).transpose(0, 3, 1, 2).reshape(out.size, -1)
                    layers += [torch.nn.Flatten(), _filled(linear, op, weight, x.scale), _activation(op.activation)]
                case ops.AvgPool(kernel, stride, ops.Padding2d(0, 0, 0, 0)):
                    layers.append(torch.nn.AvgPool2d(kernel, stride))
                case ops.MaxPool(kernel, stride, ops.Padding2d(0, 0, 0, 0)):
                    layers.append(torch.nn.MaxPool2d(kernel, stride))
                case ops.Reshape() | ops.Quantize() | ops.Dequantize():
                    pass
                case _:
                    raise TypeError(f"no float layer for {type(node.op).__name__}")
        self.layers = torch.nn.Sequential(*layers).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


def _conv(op: ops.Conv2d | ops.DepthwiseConv2d, weight: Any, scale: float, groups: int) -> Iterator[torch.nn.Module]:
    p = op.padding
    even = (p.top, p.left) == (p.bottom, p.right)
    if not even:
        yield torch.nn.ZeroPad2d((p.left, p.right, p.top, p.bottom))
    yield _filled(
        torch.nn.Conv2d(
            weight.shape[1] * groups,
            len(weight),
            weight.shape[2:],
            op.stride,
            padding=(p.top, p.left) if even else 0,
            dilation=op.dilation,
            groups=groups,
        ),
        op,
        weight,
        scale,
    )


def _filled(layer: Any, op: ops.Conv2d | ops.DepthwiseConv2d | ops.Dense, weight: Any, scale: float) -> torch.nn.Module:
    """The layer with the real values of the op's integers; scale: of its input."""
    steps = np.broadcast_to(op.weight_scale.astype(np.float64), (len(weight),))
    reals = weight * steps.reshape(-1, *(1,) * (weight.ndim - 1))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(reals))
        layer.bias.copy_(torch.from_numpy(op.bias * steps * scale))
    return layer  # type: ignore[no-any-return]


def _activation(activation: ops.Activation) -> torch.nn.Module:
    return torch.nn.Identity() if activation is ops.Activation.NONE else torch.nn.ReLU()


def images(x: np.ndarray[Any, Any]) -> torch.Tensor:
    """Samples [N, H, W, C] as [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's own threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
