"""The folded network as a float ONNX model, for other tools' quantisers: Conv, Relu, Reshape, Gemm, and an Identity at the end.

The Identity is an edge on which the output can be quantised, and Reshape stands for Flatten, which ONNX Runtime leaves in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cactus_edge.errors import InstallError
from cactus_edge.train.folded import Affine, Folded, plan
from cactus_edge.train.models import walk

INPUT, OUTPUT = "x", "logits"
OPSET, IR = 17, 8


def float_onnx(net: Folded, shape: tuple[int, int, int]) -> Any:
    """An onnx.ModelProto of samples float32 [N, C, H, W] of `shape` (height, width, channels) -> logits [N, classes].

    Samples of a network with a window are cut at it before: no node does.
    Raises InstallError without the onnx package.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise InstallError("writing ONNX needs the onnx package", hint="pip install 'cactus-edge[build]'") from error
    height, width, channels = shape
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(kind: str, reads: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, reads, [name], f"{kind} {name}", **attributes))
        return name

    def layer(i: int, at: str, other: str | None) -> str:
        affine = net[i]
        weight, bias = affine.weight.detach().numpy(), constant(f"bias{i}", affine.bias.detach().numpy())
        if affine.layer.pool is not None:
            pool = list(affine.layer.pool)
            at = node("AveragePool", [at], f"p{i}", kernel_shape=pool, strides=pool)
        if affine.layer.dense:
            if at not in vectors:
                flat = constant(f"flat{i}", np.array([-1, weight[0].size], np.int64))
                at = node("Reshape", [at, flat], f"r{i}")
            rows = constant(f"weight{i}", weight.reshape(len(weight), -1))
            at = node("Gemm", [at, rows, bias], f"z{i}", transB=1)
        else:
            at = node("Conv", [at, constant(f"weight{i}", weight), bias], f"z{i}", **_geometry(affine))
        at = at if other is None else node("Add", [at, other], f"s{i}")
        at = node("Relu", [at], f"y{i}") if affine.layer.relu else at
        if affine.layer.dense:
            vectors.add(at)
        return at

    vectors: set[str] = set()
    node("Identity", [walk(plan(net), INPUT, layer)], OUTPUT)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", channels, height, width])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", len(net[-1].bias)])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _geometry(affine: Affine) -> dict[str, Any]:
    p = affine.layer.padding
    groups = len(affine.weight) if affine.layer.depthwise else 1
    return {"pads": [p.top, p.left, p.bottom, p.right], "strides": list(affine.layer.stride), "group": groups}
