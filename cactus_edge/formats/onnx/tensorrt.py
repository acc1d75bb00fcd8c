"""TensorRT's rules for explicitly quantised ONNX files, checked on a file's bytes.

Activations and weights are symmetric: every zero point is 0. DequantizeLinear takes no int32, so that biases are float32
(`write_onnx(graph, bias="float32")`). Scales are constants, per tensor for activations, and per tensor or per output channel
for weights. The parser of TensorRT for RTX 1.7 gives the same verdicts (tests/formats). Obeying the rules says that
TensorRT accepts the file, not which layers it then runs in int8, nor that its results are those of the integer network.
Source: NVIDIA TensorRT documentation, "Working with Quantized Types".
"""

from __future__ import annotations

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx.proto import INT32, parse
from cactus_edge.formats.onnx.read import read_onnx


def violations(data: bytes) -> tuple[str, ...]:
    """What in the ONNX file `data` breaks TensorRT's rules, by name; empty where nothing does.

    Raises ModelError where `read_onnx` refuses the file: constant scales, zero points of weights and the int8 type are its rules too.
    """
    graph = read_onnx(data).graph
    found = [
        f"activation {t.name!r} has zero point {t.zero_point}, expected 0"
        for t in graph.tensors
        if t.dtype == "int8" and t.zero_point
    ]
    model = parse(data)
    int32 = {t.name for t in model.graph.initializer if t.data_type == INT32}
    for index, node in enumerate(model.graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in int32:
            found.append(f"node {index} DequantizeLinear {node.name!r} takes int32, expected a float32 bias instead")
    return tuple(found)


def require_tensorrt(data: bytes) -> None:
    """Raises UnsupportedError, naming what breaks TensorRT's rules."""
    found = violations(data)
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise UnsupportedError(
            f"TensorRT does not take this file: {'; '.join(found[:3])}{more}",
            hint="quantise activations symmetrically and write biases as float32",
        )
