"""ONNX files as something to certify: read by us alone; whether ONNX Runtime computes them in integers it is asked itself."""

from __future__ import annotations

from cactus_edge.formats.onnx.runtime import optimise, require_fused
from cactus_edge.formats.onnx.tensorrt import read_tensorrt
from cactus_edge.formats.read import read_for
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.profile import Profile
from cactus_edge.verify.runtimes import FileFormat


def _read(data: bytes, profile: Profile) -> Graph:
    return read_tensorrt(data).graph if profile.name == "tensorrt" else read_for(data, profile)


def _confirm(data: bytes, profile: Profile) -> None:
    if profile.name != "tensorrt":
        require_fused(optimise(data), read_for(data, profile))


ONNX = FileFormat(
    "onnx", _read, _confirm, "under ONNX Runtime's profiles: onnxruntime, whose optimised graph is inspected"
)
"""Under profile `tensorrt` the file must obey TensorRT's rules, under ONNX Runtime's it must become integer kernels there."""
