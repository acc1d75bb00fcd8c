"""Interval certification of 10,000 images against a plain float32 torch forward pass of the same network.

    python bench/interval_speed.py [--model MODEL.tflite --data X.npz] [--eps 1/10] [--batch 128 1000] [--threads 2] [--runs 7]

All sides run in this process, in turns, over the same images; the medians count. Certification is timed whole: building the
engine and its proofs, exact region ends from float32 pixels, input quantisation, bounds, fused margins, clean verdicts. It is
what `ce.certify` does in a process that has torch; `numpy` is what `cactus-edge verify` does, with numpy alone.
`--batch` is torch's batch; certification gets all images and works in batches that suit the cache.
Without --model: 28x28x1, conv 3x3x16 /2, conv 3x3x32 /2, dense 100, dense 10, with random weights and labels that the
network gives itself, at a radius that it certifies, and at one where no sample is decided, which costs most: every
sample is tried by the fused margin and run a second time for its clean verdict. Target for a trained network: at most 5.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# numpy's matrix products are small here; its own threads would only spin against ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from _common import Results

from cactus_edge.certify.interval import certify
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.process import settle
from cactus_edge.verify import decide
from cactus_edge.verify.regions import region
from cactus_edge.verify.tflite_read import read_tflite


def small_mnist_network(rng: np.random.Generator) -> Graph:
    """0.4 million multiply-accumulates with random weights and scales that use the activations' range."""
    build = GraphBuilder()
    scale = float(np.float32(1 / 255))
    last = build.input(Tensor("image", (28, 28, 1), "int8", scale, -128))

    def weights(shape: tuple[int, ...], taps: tuple[int, ...]) -> dict[str, Any]:
        w = np.clip(np.rint(rng.normal(0, 40, shape)), -127, 127)
        spread = np.sqrt((w**2).sum(taps)) * 70
        return {
            "weight": ops.freeze(w, np.int8),
            "bias": ops.freeze(np.rint(rng.normal(0, 1, len(spread)) * spread / 4), np.int32),
            "weight_scale": ops.freeze((40 / spread).astype(np.float32), np.float32),
        }

    for name, size, channels, out in (("conv1", 28, 1, 16), ("conv2", 14, 16, 32)):
        padding = ops.same_padding((size, size), (3, 3), (2, 2))
        op = ops.Conv2d(
            **weights((out, 3, 3, channels), (1, 2, 3)), stride=(2, 2), padding=padding, activation=ops.Activation.RELU
        )
        last = build.node(op, [last], Tensor(name, (size // 2, size // 2, out), "int8", build.tensor(last).scale, -128))
    for name, inputs, out, activation in (
        ("dense", 1568, 100, ops.Activation.RELU),
        ("logits", 100, 10, ops.Activation.NONE),
    ):
        given = weights((out, inputs), (1,))
        given["weight_scale"] = ops.freeze(given["weight_scale"][:1], np.float32)
        zero_point = -128 if activation is ops.Activation.RELU else 0
        last = build.node(
            ops.Dense(**given, activation=activation),
            [last],
            Tensor(name, (out,), "int8", build.tensor(last).scale, zero_point),
        )
    return build.finish(last)


class Twin(torch.nn.Module):
    """The same layers in float32, channels first. Raises TypeError for an op it has no layer for."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for node in graph.nodes:
            x, out = graph.tensors[node.inputs[0]], graph.tensors[node.output]
            match node.op:
                case ops.Conv2d() | ops.DepthwiseConv2d() as op:
                    depthwise = isinstance(op, ops.DepthwiseConv2d)
                    kernel = op.weight.shape[:2] if depthwise else op.weight.shape[1:3]
                    groups = x.shape[2] if depthwise else x.shape[2] // op.weight.shape[3]
                    p = op.padding
                    layers += [
                        torch.nn.ZeroPad2d((p.left, p.right, p.top, p.bottom)),
                        torch.nn.Conv2d(
                            x.shape[2], out.shape[2], kernel, op.stride, dilation=op.dilation, groups=groups
                        ),
                        _activation(op.activation),
                    ]
                case ops.Dense() as op:
                    layers += [torch.nn.Flatten(), torch.nn.Linear(x.size, out.size), _activation(op.activation)]
                case ops.AvgPool(kernel, stride, ops.Padding2d(0, 0, 0, 0)):
                    layers.append(torch.nn.AvgPool2d(kernel, stride))
                case ops.MaxPool(kernel, stride, ops.Padding2d(0, 0, 0, 0)):
                    layers.append(torch.nn.MaxPool2d(kernel, stride))
                case ops.Reshape():
                    layers.append(torch.nn.Flatten())
                case ops.Quantize() | ops.Dequantize():
                    pass
                case _:
                    raise TypeError(f"no float layer for {type(node.op).__name__}")
        self.layers = torch.nn.Sequential(*layers).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


def _activation(activation: ops.Activation) -> torch.nn.Module:
    return torch.nn.Identity() if activation is ops.Activation.NONE else torch.nn.ReLU()


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--data", type=Path, help="npz with x [N, ...] and y [N]")
    parser.add_argument("--eps", nargs="+", default=["1/1000", "1/100"])
    a = parser.parse_args()
    settle()

    rng = np.random.default_rng(0)
    graph = read_tflite(a.model.read_bytes()).graph if a.model else small_mnist_network(rng)
    program = lower(graph, profile("tflm"))
    shape = program.values[program.input].shape
    if a.data:
        with np.load(a.data) as arrays:
            x, y = arrays["x"][: a.samples].reshape(-1, *shape), arrays["y"][: a.samples]
    else:
        x = (rng.integers(0, 256, (a.samples, *shape)) / 255).astype(np.float32)
        y = evaluate(graph, x if program.float_input else program.quantize.apply(x), program.profile)
        y = y.reshape(len(x), -1).argmax(1)
    torch.set_num_threads(a.threads)
    twin, images = Twin(graph), torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    def forward(batch: int) -> None:
        with torch.inference_mode():
            for i in range(0, len(images), batch):
                twin(images[i : i + batch])

    print(f"{len(x)} images {shape}, {graph.weights()} weights, {a.threads} threads, median of {a.runs} runs")
    for eps in a.eps:
        ball = region(program, eps, (0, 1))
        certified = certify(program, ball, x, y, threads=a.threads).certified.mean()
        for batch in a.batch:
            sides = (
                lambda b=batch: forward(b),
                lambda r=ball: certify(program, r, x, y, threads=a.threads),
                lambda r=ball: decide.certify(program, r, x, y, threads=a.threads),
            )
            runs = [[seconds(side) for side in sides] for _ in range(a.runs + 1)][1:]
            plain, ours, numpys = (statistics.median(times) for times in zip(*runs, strict=True))
            ratios = sorted(certifying / forward_ for forward_, certifying, _ in runs)
            row = {"eps": eps, "batch": batch, "certified": float(certified), "torch_s": plain, "certify_s": ours}
            row |= {"numpy_s": numpys, "numpy_ratio": numpys / plain}
            row |= {"ratio": ours / plain, "least": ratios[0], "most": ratios[-1], "runs": a.runs, "threads": a.threads}
            name = a.model.parent.name if a.model else "random weights"
            Results("interval_speed").row(f"{name}, eps {eps}, batch {batch}", str(time.time()), lambda r=row: r)
            print(
                f"eps {eps} ({certified:.1%} certified), torch batch {batch}: torch {plain:.3f} s, "
                f"certification {ours:.3f} s, ratio {ours / plain:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} run by run); "
                f"numpy alone {numpys:.3f} s, ratio {numpys / plain:.2f}"
            )


if __name__ == "__main__":
    main()
