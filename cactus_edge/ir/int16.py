"""The rules of int16 tensors with int8 weights, runtime by runtime, as rows of `arithmetic.py` take them.

Zero points are 0. Sums are of 64 bits, requantised by family W or, in LiteRT's dense kernels, in floats; where a bias is of 32 bits
(".bias32") the sum is too, and the families are those of int8. XNNPACK has no int16. Shown on x86-64, bit for bit
(tests/formats). Source: kernels/{conv,depthwise_conv,fully_connected,add}.cc, reference/integer_ops of LiteRT and TFLM.
"""

from __future__ import annotations

from collections.abc import Mapping

from cactus_edge.ir.profile import BLOCKS

Rules = Mapping[str, tuple[str, ...]]

INT16: Rules = {
    "MaxPool.int16": ("max",),
    **dict.fromkeys(
        (f"{k}.int16" for k in ("Pad", "Concat", "Reshape", "Transpose", "Slice", "ResizeNearest")), ("copy",)
    ),
    "Relu.int16": ("D", "float32_ratio"),
    "Relu6.int16": ("clamp",),
    "Conv2d.int16": ("W", "double"),
    "GroupedConv2d.int16": ("W", "double"),
    "DepthwiseConv2d.int16": ("W", "double"),
    "Add.int16": ("D_shift15",),
    "Sub.int16": ("D_shift15",),
    "Mul.int16": ("D", "double"),
    "AvgPool.int16": ("half_away",),
    "Mean.int16": ("D", "folded_count"),
    "Requantize.int16": ("D", "double"),
    "Dequantize.int16": ("float32",),
}
"""What TFLM and both sets of LiteRT's kernels share."""

INT16_TFLM: Rules = {
    **INT16,
    "Relu.int16": ("D", "double"),
    "Conv2d.int16.bias32": ("D", "double"),
    "GroupedConv2d.int16.bias32": ("D", "double"),
    "Dense.int16": ("W", "float32_product"),
    "DensePerChannel.int16": ("W", "double"),
    "Dense.int16.bias32": ("D", "float32_product"),
    "DensePerChannel.int16.bias32": ("D", "double"),
    "Sum.int16": ("D", "folded_count"),
    "Quantize.int16": ("half_away",),
}

INT16_LITERT: Rules = {
    **INT16,
    "Mul.int16": ("D", "float32"),
    "Dense.int16": ("E", "double"),
    "DensePerChannel.int16": ("E", "double"),
}
"""LiteRT's dense kernels scale 64-bit sums in floats, in both sets."""

INT16_REFERENCE: Rules = {
    **INT16_LITERT,
    "Conv2d.int16.bias32": ("D", "double"),
    "GroupedConv2d.int16.bias32": ("D", "double"),
    "Dense.int16.bias32": ("E", "double"),
    "DensePerChannel.int16.bias32": ("E", "double"),
    "Quantize.int16": ("half_away",),
}

INT16_OPTIMISED: Rules = {
    **INT16_LITERT,
    "Conv2d.int16.bias32": ("H", "double"),
    "Dense.int16.bias32": ("H", "float32_product"),
    "DensePerChannel.int16.bias32": ("H", "double"),
    "Add.int16": ("vector15", BLOCKS),
    "Quantize.int16": ("half_even_product", BLOCKS),
}
"""XNNPACK has no int16: LiteRT's default runs these files in its optimised kernels."""
