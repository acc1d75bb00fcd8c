"""The named arithmetics: which rule each runtime takes for each op.

A *profile* is (runtime, version range, CPU class) -> rule ids per op kind; the rules themselves stand in `rules.py`. Adding a
runtime adds a row to `PROFILES` and, at most, an entry to the tables of `profile.py`. An op that was not shown equal to the
real runtime has no entry in that runtime's row, so that `lower` refuses it by name.

Facts: the runtimes' sources named at each row, confirmed by running them (tests/formats).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping

from cactus_edge.errors import InputError
from cactus_edge.ir.int4 import CONVOLUTIONS, packed
from cactus_edge.ir.int16 import INT16_OPTIMISED, INT16_REFERENCE, INT16_TFLM
from cactus_edge.ir.profile import (
    BLOCKS,
    DELEGATE,
    DISTINCT,
    EVEN,
    NARROW,
    OVERLAPPING,
    SIXTEEN_BITS,
    STORED,
    UINT8,
    Profile,
)
from cactus_edge.ir.tensorrt import TENSORRT

Rules = Mapping[str, tuple[str, ...]]

COPIES: Rules = {
    "MaxPool": ("max",),
    "Pad": ("copy",),
    "Concat": ("copy",),
    "Reshape": ("copy",),
}
"""Ops that move or choose codes; most runtimes agree on them."""

MOVES: Rules = {
    "Transpose": ("copy",),
    "Slice": ("copy",),
    "ResizeNearest": ("copy",),
}
"""More of them, which fewer runtimes were shown to run."""

EXTREMES: Rules = {"Maximum": ("max",), "Minimum": ("max",)}
"""Choices between two codes, which TFLM and LiteRT were shown to run."""

GEMMLOWP: Rules = {
    **COPIES,
    **MOVES,
    **EXTREMES,
    "Conv2d": ("D", "double"),
    "GroupedConv2d": ("D", "double"),
    "DepthwiseConv2d": ("D", "double"),
    "TransposeConv2d": ("D", "double"),
    "ResizeBilinear": ("fixed10",),
    # A dense layer on each row of its input.
    "DenseRows": ("rows",),
    "Dense": ("D", "float32_product"),
    "DensePerChannel": ("D", "double"),
    "Add": ("D_shift20",),
    "Sub": ("D_shift20",),
    "Mul": ("D", "double"),
    "AvgPool": ("half_away",),
    "Mean": ("D", "folded_count"),
    "Relu": ("D", "float32_ratio"),
    "Relu6": ("clamp",),
    "LeakyRelu": ("D", "double"),
    "HardSwish": ("int16",),
    "Logistic": ("gemmlowp_q4_27",),
    "Tanh": ("gemmlowp_q4_27",),
    "Requantize": ("D", "double"),
    "Quantize": ("half_away",),
    "Dequantize": ("float32",),
    "Softmax": ("gemmlowp_q5_26",),
}
"""The reference kernels' rules: gemmlowp's double rounding and its fixed-point softmax."""

SINGLE: Rules = {
    **GEMMLOWP,
    **{kind: ("S", *rule[1:]) for kind, rule in GEMMLOWP.items() if rule[0] == "D"},
    "Add": ("S_shift20",),
    "Logistic": ("gemmlowp_q4_27", "S"),
    "Tanh": ("gemmlowp_q4_27", "S"),
}
"""The same kernels built with TFLITE_SINGLE_ROUNDING: family S wherever a multiplier is applied. SOFTMAX comes out the same: its
shifts are to the left, and the smaller cap of its multiplier changes only what is 0 either way."""

LITERT: Rules = {
    "Sub": ("D_shift20",),
    "Mul": ("D", "float32"),
    "Relu": ("D", "float32_ratio"),
    "Relu6": ("D", "float32_ratio"),
    "LeakyRelu": ("D", "float32"),
    "HardSwish": ("int16",),
    "Logistic": ("float32_table",),
    "Tanh": ("float32_table",),
}
"""What LiteRT's reference and optimised kernels share. Its SUM is left out: the reference kernel reads int8 as uint8, the
optimised one computes in floats whose contraction is the compiler's choice (reduce.cc, optimized/reduce.h)."""

MLAS: Rules = {
    "Conv2d": ("F", "float32"),
    "GroupedConv2d": ("F", "float32"),
    "DepthwiseConv2d": ("F", "float32"),
    "Dense": ("F", "float32"),
    "DensePerChannel": ("F", "float32"),
    "MaxPool": ("max",),
    "Reshape": ("copy",),
    "Quantize": ("half_even",),
    "Dequantize": ("float32",),
}
"""The arithmetic of ONNX Runtime's CPU kernels, for files that it fuses to them (`formats.onnx.runtime` insists on that).

Convolutions and matrix products: v = RNE(f32(f32(acc) * M)) with M = f32(f32(S_in * S_w) / S_out), clamped, plus the zero
point. Fused activations are clamps on codes. On x86-64 the activations are moved to uint8 (zero point + 128) inside, which
changes no accumulator and no result. Source: onnxruntime/core/mlas/lib/{quantize,requantize}*,
contrib_ops/cpu/quantization/quant_gemm.cc, providers/cpu/quantization/qlinearconv.cc.
"""

XNNPACK: Rules = {
    DELEGATE: ("constants",),
    **COPIES,
    **MOVES,
    **EXTREMES,
    "Conv2d": ("F", "float32"),
    "Conv2d.activation": ("half_even_sum",),
    "GroupedConv2d": ("F", "float32"),
    "GroupedConv2d.activation": ("half_even_sum",),
    "DepthwiseConv2d": ("F", "float32"),
    "DepthwiseConv2d.activation": ("half_even_sum",),
    "Dense": ("F", "float32"),
    "Dense.activation": ("half_even_sum",),
    "DensePerChannel": ("F", "float32"),
    "DensePerChannel.activation": ("half_even_sum",),
    "Add": ("xnnpack",),
    "Add.activation": ("half_even_sum",),
    # Not in XNNPACK for int8: average pool, RELU, RELU6, softmax. LiteRT's optimised kernels run there.
    "AvgPool": ("half_away",),
    "MaxPool.activation": ("half_even_sum",),
    "Sub": ("xnnpack",),
    "Sub.activation": ("half_even_sum",),
    "Mean": ("F", "float32_reciprocal"),
    "Sum": ("F", "float32_reciprocal"),
    "LeakyRelu": ("fraction8",),
    "Logistic": ("xnnpack",),
    "Tanh": ("xnnpack",),
    "Relu": ("D", "float32_ratio"),
    "Relu6": ("D", "float32_ratio"),
    "Requantize": ("S", "fraction8"),
    "Quantize": ("half_even_product",),
    "Dequantize": ("float32",),
    "Softmax": ("float32_table",),
}
"""LiteRT behind the XNNPACK delegate, its default; what XNNPACK leaves runs in the optimised kernels."""

XNNPACK_X86: Rules = {
    **XNNPACK,
    # XNNPACK src/subgraph.c replaces x * x by a square computed in floats.
    "Mul": ("F", "float32", DISTINCT),
    "Mul.activation": ("half_even_sum",),
    "HardSwish": ("int16",),
    "TransposeConv2d": ("F", "float32", OVERLAPPING),
    "TransposeConv2d.activation": ("half_even_sum",),
    "ResizeBilinear": ("float11",),
    "DenseRows": ("rows",),
}
"""What was shown on x86-64 only as well. On aarch64 XNNPACK's MUL and LiteRT's HARD_SWISH are other kernels, seen to differ."""

_WRAPPING = ("Conv2d", "GroupedConv2d", "DepthwiseConv2d", "Dense", "DensePerChannel")

XNNPACK_ARM64: Rules = {
    **XNNPACK,
    **{kind: (*XNNPACK[kind], NARROW) for kind in _WRAPPING},
    "Mean": ("F", "float32_fused"),
    "Sum": ("F", "float32_fused"),
    "Softmax": ("uint16_table",),
}
"""The same on aarch64: MEAN and SUM are fused, LiteRT's softmax is in integers, and a weight of -128 wraps in the kernels for
processors without dot products and in the depthwise ones."""

OPTIMISED: Rules = {
    **COPIES,
    **MOVES,
    **EXTREMES,
    **LITERT,
    **INT16_OPTIMISED,
    "Conv2d": ("H", "double"),
    "GroupedConv2d": ("D", "double"),
    "TransposeConv2d": ("HD8", "double"),
    "ResizeBilinear": ("fixed10",),
    "DenseRows": ("rows",),
    "DepthwiseConv2d": ("HD8", "double"),
    "Dense": ("H", "float32_product"),
    "DensePerChannel": ("H", "double"),
    "Add": ("vector20", BLOCKS),
    "Mul": ("D", "float32", SIXTEEN_BITS),
    "AvgPool": ("half_away",),
    "Mean": ("D", "float32_image"),
    "Requantize": ("H", "double", BLOCKS),
    "Quantize": ("half_even_product", BLOCKS),
    "Softmax": ("float32_table",),
}
"""LiteRT's optimised kernels on x86-64."""

REFERENCE: Rules = {
    **GEMMLOWP,
    **LITERT,
    **INT16_REFERENCE,
    "Dense": ("E", "double"),
    "DensePerChannel": ("E", "double"),
}
"""LiteRT's reference kernels."""

PROFILES: Mapping[str, Profile] = {
    "tflm": Profile(
        name="tflm",
        runtime="TensorFlow Lite for Microcontrollers, reference and CMSIS-NN kernels (and the C that cactus-edge writes)",
        # Before 2024-09 dense layers with a scale per channel had one multiplier, before 2023-04 means another division.
        versions="sources of 2024-10 to 2026-10 (wheel 0.dev20261023182759); SUB, RELU and LEAKY_RELU as in the wheel, whose "
        "multipliers are formed in double (sources up to 2026-08: float32); weights of 4 bits as in the wheel and in CMSIS-NN "
        "99f736a (2026-07)",
        cpu="any; integer only, built without TFLITE_SINGLE_ROUNDING",
        reads="tflite",
        rules={
            **GEMMLOWP,
            **INT16_TFLM,
            "Relu": ("D", "double"),
            "Sum": ("D", "folded_count"),
            # FULLY_CONNECTED takes 4 bits with one scale only. CMSIS-NN takes no groups, and goes wrong on odd channels.
            **packed(GEMMLOWP, "Conv2d", "Dense"),
            **packed(GEMMLOWP, "DepthwiseConv2d", mark=EVEN),
            STORED: ("copy",),
        },
        source="tensorflow/lite/micro/kernels, tensorflow/lite/kernels/internal/reference; vectors in tests/formats and tests/ir",
    ),
    "tflm-single-rounding": Profile(
        name="tflm-single-rounding",
        runtime="TensorFlow Lite for Microcontrollers, reference kernels, built with TFLITE_SINGLE_ROUNDING=1",
        versions="sources of 2026-08-20 (commit 90b983c)",
        cpu="any; reference kernels in C++ (of CMSIS-NN the same rounding in C, another one in Helium code)",
        reads="tflite",
        rules={k: v for k, v in SINGLE.items() if k not in ("Sub", "LeakyRelu", "TransposeConv2d")}
        | {"Sum": ("S", "folded_count"), STORED: ("copy",)},
        source="the kernels of tflm, and tensorflow/lite/kernels/internal/common.cc with the macro; vectors in tests/ir",
    ),
    "litert-ref": Profile(
        name="litert-ref",
        runtime="LiteRT (TensorFlow Lite) with its reference kernels (BUILTIN_REF)",
        versions="2.3 (wheel ai-edge-litert 2.3.0)",
        cpu="x86-64",
        reads="tflite",
        # DEPTHWISE_CONV_2D is not registered in the version for 4 bits.
        rules={**REFERENCE, **packed(REFERENCE, "Conv2d", "GroupedConv2d", "Dense", "DensePerChannel")},
        source="tflite/kernels and tflite/kernels/internal/reference of LiteRT; vectors in tests/formats",
    ),
    "litert-builtin": Profile(
        name="litert-builtin",
        runtime="LiteRT (TensorFlow Lite) with its optimised kernels, without delegate",
        versions="2.3 (wheel ai-edge-litert 2.3.0)",
        cpu="x86-64, one thread; on aarch64 softmax, depthwise convolution, HARD_SWISH and scalar tails differ",
        reads="tflite",
        rules={**OPTIMISED, **packed(OPTIMISED, *CONVOLUTIONS, "Dense", "DensePerChannel")},
        source="tflite/kernels/internal/optimized of LiteRT, ruy; vectors in tests/formats",
    ),
    "litert-xnnpack": Profile(
        name="litert-xnnpack",
        runtime="LiteRT (TensorFlow Lite) as it is by default: XNNPACK, and optimised kernels for what that leaves",
        versions="2.3 (wheel ai-edge-litert 2.3.0)",
        cpu="x86-64",
        reads="tflite",
        rules={
            **XNNPACK_X86,
            **INT16_OPTIMISED,
            # XNNPACK leaves convolutions of 4 bits, and dense layers of odd rows.
            **packed(OPTIMISED, *CONVOLUTIONS),
            **packed(XNNPACK_X86, "Dense", "DensePerChannel", mark=EVEN),
        },
        source="XNNPACK src/{operators,microparams-init.c,qs8-*}, LiteRT tflite/delegates/xnnpack; vectors in tests/formats",
    ),
    "litert-xnnpack-arm64": Profile(
        name="litert-xnnpack-arm64",
        runtime="LiteRT (TensorFlow Lite) as it is by default on aarch64: XNNPACK, and optimised kernels for what that leaves",
        versions="2.3 (wheel ai-edge-litert 2.3.0)",
        cpu="aarch64 Linux, with and without dot products (Cortex-A72 and A76, emulated)",
        reads="tflite",
        rules=XNNPACK_ARM64,
        source="the aarch64 wheel under emulation of both processors, bit for bit (tests/device, bench/pi_emulator.py)",
    ),
    "x-cube-ai": Profile(
        name="x-cube-ai",
        runtime="ST X-CUBE-AI",
        versions="7.3 and 8.0 (MLPerf Tiny v1.1, 2023)",
        cpu="Cortex-M4F, M7 and M33 (Nucleo-L4R5ZI, H7A3ZI and U575ZI, all with the same log)",
        reads="tflite",
        rules={
            "Conv2d": ("F", "float32"),
            "Conv2d.activation": ("relu",),
            "DepthwiseConv2d": ("F", "float32"),
            "DepthwiseConv2d.activation": ("relu",),
            "Dense": ("F", "float32"),
            "Dense.activation": ("relu",),
            "AvgPool": ("half_away",),
            "AvgPool.activation": ("relu",),
            "Reshape": ("copy",),
            "Input": ("half_away",),
            "Softmax": ("gemmlowp_q5_26",),
            STORED: ("copy",),
        },
        source="closed; the boards' log of 1,000 keyword inputs, equal to three digits of every output (tests/formats)",
    ),
    "plumerai": Profile(
        name="plumerai",
        runtime="Plumerai Inference Engine",
        versions="of MLPerf Tiny v1.1 (2023)",
        cpu="Cortex-M4, M7 and M33 (five boards, all with the same log)",
        reads="tflite",
        rules={
            "Conv2d": ("F", "float32"),
            "Conv2d.activation": ("relu_only",),
            "DepthwiseConv2d": ("F", "float32"),
            "DepthwiseConv2d.activation": ("relu_only",),
            "Dense": ("F", "float32"),
            "Dense.activation": ("none_only",),
            "AvgPool": ("half_away",),
            "AvgPool.activation": ("none_only",),
            "Reshape": ("copy",),
            "Input": ("half_away",),
            "Softmax": ("gemmlowp_q5_26",),
            STORED: ("copy",),
        },
        source="closed; the boards' logs of 1,000 keyword inputs, equal to three digits of every output (tests/formats). Its log of a "
        "residual network is none of the known sums, so that ADD is left out",
    ),
    "tinyengine": Profile(
        name="tinyengine",
        runtime="TinyEngine with its float requantisation, the default for .tflite files",
        versions="sources of 2024-11-27 (commit 47bb283)",
        cpu="Cortex-M4F and M7; ADD only where it is compiled with -ffp-contract=off and without -ffast-math or -Ofast, which round "
        "it otherwise",
        reads="tflite",
        rules={
            "Graph": ("tinyengine",),
            "Conv2d": ("T", "double_to_float32"),
            "Conv2d.activation": ("ignored",),
            "DepthwiseConv2d": ("T", "double_to_float32"),
            "DepthwiseConv2d.activation": ("ignored",),
            "Dense": ("T", "double_to_float32"),
            "Dense.activation": ("ignored",),
            "DensePerChannel": ("T", "double_to_float32"),
            "DensePerChannel.activation": ("ignored",),
            "Add": ("float32",),
            "Add.activation": ("ignored",),
            "AvgPool": ("half_away",),
            "AvgPool.activation": ("ignored",),
            "Pad": ("copy",),
            "Input": ("half_away",),
            STORED: ("copy",),
        },
        source="TinyEngine's generator and kernels, run end to end on x86-64 with the Cortex-M intrinsics in plain C; vectors in "
        "tests/formats",
    ),
    "ort-x86": Profile(
        name="ort-x86",
        runtime="ONNX Runtime CPU provider, QDQ model at graph optimisation level EXTENDED, float input and output",
        versions="1.31 (wheel onnxruntime 1.31.1)",
        cpu="x86-64 with AVX-512 VNNI or AVX-VNNI; without them only where sums of two u8 * s8 products are proved to fit 16 bits",
        reads="onnx",
        rules={
            **MLAS,
            "Add": ("fused_u8",),
            "Mul": ("unsigned", DISTINCT),
            "AvgPool": ("float32_sum",),
            "Softmax": ("float32_scaled",),
            "Concat": ("copy",),
            "Pad": ("copy",),
            **MOVES,
            "LeakyRelu": ("dequantised",),
            "HardSwish": ("dequantised",),
            "Logistic": ("mlas",),
            "Tanh": ("mlas",),
            "Mean": ("F", "float32_image_count"),
            "Relu": ("F", "dequantised"),
            "Requantize": ("F", "dequantised"),
            UINT8: ("copy",),
        },
        source="onnxruntime/core/mlas/lib/quantize.cpp MlasRequantizeOutput; vectors in tests/formats",
    ),
    "ort-arm64": Profile(
        name="ort-arm64",
        runtime="ONNX Runtime CPU provider on aarch64, QDQ model at graph optimisation level EXTENDED, float input and output",
        versions="1.31 (wheel onnxruntime 1.31.1)",
        cpu="aarch64 Linux, with and without dot products (Cortex-A72 and A76, emulated)",
        reads="onnx",
        rules={
            **MLAS,
            **{kind: (*MLAS[kind], NARROW) for kind in _WRAPPING if kind in MLAS},
            "AvgPool": ("float32_sum",),
            "Concat": ("copy",),
            "Mean": ("F", "float32_image_count"),
            UINT8: ("alone", "AvgPool", "Concat", "Mean"),
        },
        source="the aarch64 wheel under emulation of both processors, bit for bit (tests/device, bench/pi_emulator.py); its ADD of uint8 "
        "codes is another than on x86-64, seen to differ",
    ),
    "tensorrt": TENSORRT,
}
"""Every profile by name. A profile enters this table only with vectors from the real runtime, or with what it assumes."""


def profile(name: str) -> Profile:
    """The profile `name`. Raises InputError with the nearest name."""
    if name in PROFILES:
        return PROFILES[name]
    near = difflib.get_close_matches(name, PROFILES, 1)
    raise InputError(
        f"unknown profile {name!r}", hint=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(PROFILES)}"
    )


def profile_table_digest() -> str:
    """SHA-256 (hex) of the whole table: the digests of its rows by name. A certificate names the table that it was made with."""
    rows = {name: row.digest() for name, row in PROFILES.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
