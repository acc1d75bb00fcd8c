"""QDQ ONNX: write an integer network, read one back, run it in ONNX Runtime.

`form` says which networks and in which shape; `write` and `read.model` are each other's inverse on it; `read.proto` turns
untrusted bytes into checked tables; `runtime` opens a file in ONNX Runtime and insists on integer kernels.
"""

from __future__ import annotations

from cactus_edge.formats.onnx.form import onnx_form
from cactus_edge.formats.onnx.read.model import OnnxModel, read_onnx
from cactus_edge.formats.onnx.write import write_onnx

__all__ = ["OnnxModel", "onnx_form", "read_onnx", "write_onnx"]
