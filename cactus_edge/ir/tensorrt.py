"""TensorRT's int8 arithmetic as far as it can be known: an envelope, and what a verdict under it assumes.

NVIDIA states the meaning of a quantised network (x_q = clip(x / S) rounded to nearest even, x = S x_q, zero points 0) and that
the placement of its Q/DQ nodes is kept; not in which order a kernel multiplies, adds the float32 bias and rounds. So each
requantisation and the input's quantisation are bounded (`envelope`), every choice of kernel, fusion and tie among them.

Proved: that a verdict holds for each computation that the assumption allows, and that a file obeys TensorRT's rules for it
(`formats.onnx.tensorrt`). Measured on a device only: that the assumption is true of an engine (`device.tensorrt`: the precision of
every layer as the engine reports it, and every output against its envelope). A result outside refutes the assumption;
results inside never prove it.
A join of tensors on one grid is a copy, also where it is computed on real values: a code times its scale, divided by it again, is
less than 2^-15 away from that code.
Source: NVIDIA TensorRT documentation, "Working with Quantized Types" and "Explicit Quantization"; layer reports of engines (weights
Int8, bias Float, tactics "int8int8 ... scalebias_relu"), NVIDIA/TensorRT issues 3737 and 4020.
"""

from __future__ import annotations

from cactus_edge.ir.profile import ENVELOPE, Profile

ASSUMPTION = (
    "every convolution and dense layer runs on the GPU from int8 codes and the file's int8 weights and sums their products "
    "exactly; scales and bias are applied in float32 or better, in any order, with at most 12 roundings to nearest on the way to "
    "a code; every QuantizeLinear of the file takes effect and rounds to a nearest integer, ties to either side; no half "
    "precision, no TF32, no DLA"
)

TENSORRT = Profile(
    name="tensorrt",
    runtime="TensorRT, explicitly quantised ONNX with symmetric Q/DQ",
    versions="10",
    cpu="NVIDIA GPU with int8 arithmetic (Jetson Orin and later)",
    reads="onnx",
    rules={
        "Tensor": ("symmetric",),
        "Conv2d": ("F", "float32", ENVELOPE),
        "Conv2d.activation": ("relu",),
        "DepthwiseConv2d": ("F", "float32", ENVELOPE),
        "DepthwiseConv2d.activation": ("relu",),
        "Dense": ("F", "float32", ENVELOPE),
        "Dense.activation": ("relu",),
        "DensePerChannel": ("F", "float32", ENVELOPE),
        "DensePerChannel.activation": ("relu",),
        "MaxPool": ("max",),
        "MaxPool.activation": ("relu",),
        "Reshape": ("copy",),
        "Concat": ("copy",),
        "Quantize": (ENVELOPE,),
        "Dequantize": ("float32",),
    },
    source="NVIDIA's documentation; no log of a device (see `assumption`)",
    assumption=ASSUMPTION,
)
"""The row for the table of profiles. Conditional."""
