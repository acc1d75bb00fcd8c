"""ONNX files as something to certify: their reader, for `verify.certificate`, whose own trusted base reads .tflite only."""

from __future__ import annotations

from cactus_edge.formats.onnx.read import read_onnx
from cactus_edge.formats.onnx.runtime import optimise, require_fused
from cactus_edge.formats.onnx.tensorrt import read_tensorrt
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.profile import Profile
from cactus_edge.verify.certificate import FileFormat


def _read(data: bytes, profile: Profile) -> Graph:
    if profile.name == "tensorrt":
        return read_tensorrt(data).graph
    graph = read_onnx(data).graph
    require_fused(optimise(data), graph)
    return graph


ONNX = FileFormat(
    "onnx",
    _read,
    "cactus_edge.formats.onnx and the package onnx; for ONNX Runtime's profiles onnxruntime, whose graph is inspected",
)
"""Under profile `tensorrt` the file must obey TensorRT's rules, under ONNX Runtime's it must become integer kernels there."""
