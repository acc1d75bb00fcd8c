"""The folded network as a float ONNX model, for other tools' quantisers: Conv, Relu, Reshape, Gemm, and an Identity at the end.

The Identity is an edge on which the output can be quantised, and Reshape stands for Flatten, which ONNX Runtime leaves in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cactus_edge.errors import InstallError
from cactus_edge.train.folded import Affine, Folded

INPUT, OUTPUT = "x", "logits"
OPSET, IR = 17, 8


def float_onnx(net: Folded, shape: tuple[int, int, int]) -> Any:
    """An onnx.ModelProto of samples float32 [N, C, H, W] of `shape` (height, width, channels) -> logits [N, classes].

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

    at = INPUT
    for i, affine in enumerate(net):
        weight, bias = affine.weight.detach().numpy(), constant(f"bias{i}", affine.bias.detach().numpy())
        if affine.layer.dense:
            if weight[0].size > weight.shape[1] or at == INPUT:
                to = constant(f"flat{i}", np.array([-1, weight[0].size], np.int64))
                nodes.append(helper.make_node("Reshape", [at, to], [f"r{i}"], f"reshape{i}"))
                at = f"r{i}"
            rows = constant(f"weight{i}", weight.reshape(len(weight), -1))
            nodes.append(helper.make_node("Gemm", [at, rows, bias], [f"z{i}"], f"dense{i}", transB=1))
        else:
            kernel = constant(f"weight{i}", weight)
            nodes.append(helper.make_node("Conv", [at, kernel, bias], [f"z{i}"], f"conv{i}", **_geometry(affine)))
        at = f"z{i}"
        if affine.layer.relu:
            nodes.append(helper.make_node("Relu", [at], [f"y{i}"], f"relu{i}"))
            at = f"y{i}"
    nodes.append(helper.make_node("Identity", [at], [OUTPUT], "end"))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", channels, height, width])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", len(net[-1].bias)])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _geometry(affine: Affine) -> dict[str, Any]:
    p, stride = affine.layer.padding, affine.layer.stride
    return {"pads": [p.top, p.left, p.bottom, p.right], "strides": [stride, stride]}
