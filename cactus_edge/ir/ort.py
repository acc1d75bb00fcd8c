"""The arithmetic of ONNX Runtime's CPU kernels, for files that it fuses to them (`formats.onnx.runtime` insists on that).

Convolutions and matrix products: v = RNE(f32(f32(acc) * M)) with M = f32(f32(S_in * S_w) / S_out), clamped, plus the zero
point. Fused activations are clamps on codes, max pools and reshapes copies. On x86-64 the activations are moved to uint8 (zero
point + 128) inside, which changes no accumulator and no result. Ops that are absent here have no form that was shown equal.
Source: onnxruntime/core/mlas/lib/{quantize,requantize}*, contrib_ops/cpu/quantization/quant_gemm.cc,
providers/cpu/quantization/qlinearconv.cc; compared with the wheel in tests/formats.
"""

from __future__ import annotations

from cactus_edge.ir.arithmetic import Profile

ORT_X86 = Profile(
    name="ort-x86",
    runtime="ONNX Runtime CPU provider, QDQ model at graph optimisation level EXTENDED, float input and output",
    versions="1.31",
    cpu="x86-64 with AVX-512 VNNI or AVX-VNNI; without them only where sums of two u8 * s8 products are proved to fit 16 bits",
    rules={
        "Conv2d": ("F", "float32"),
        "DepthwiseConv2d": ("F", "float32"),
        "Dense": ("F", "float32"),
        "DensePerChannel": ("F", "float32"),
        "MaxPool": ("max",),
        "Reshape": ("copy",),
        "Quantize": ("half_even",),
        "Dequantize": ("float32",),
    },
    source="onnxruntime/core/mlas/lib/quantize.cpp MlasRequantizeOutput; vectors in tests/formats",
)
"""The row for `arithmetic.PROFILES`."""
