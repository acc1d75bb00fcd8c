"""The 6-bit networks of Henzinger et al. 2021 as .tflite files that compute the same integers under profile tflm.

Layer by layer, on inputs v in 0 .. 255 and activations in 0 .. 63, the published network is
    out = clip(floor((sum w v + b 2^k) / 2^r + 1/2), least, least + 63)
with codes w in -32 .. 31 (steps of 1/32) and b (steps of 1/16); r = 9, k = 9 and least = 0 in the first layer, r = 5, k = 5 and
least = -32 in the second, which is the last. `published` computes just that. In the file
  * weights and biases are twice the codes, so that the double rounding of tflm halves a whole number first and rounds once;
  * a zero point of 64 and a ReLU make the int8 clamp to 64 .. 127 the clip to 64 values;
  * the last layer's bias is 32 higher, which moves all outputs alike and makes its clip one at zero, too.
Halves round upwards here and away from zero there: the same where the ReLU lets anything through.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from cactus_edge.errors import InstallError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor

Array = np.ndarray[Any, Any]
Codes = list[tuple[Array, Array]]
"""Weights [O, I] and biases [O] of the two layers, as the codes above."""

LEVELS = 64
INPUT, ACTIVATION, WEIGHT = 2.0**-8, 2.0**-4, 2.0**-5
"""Steps in the reals."""

SHIFTS = ((9, 9, 0), (5, 5, -32))
"""(r, k, least) of each layer."""


def codes(stored: bytes) -> Codes:
    """From a Keras weights file. Raises InstallError without h5py."""
    try:
        import h5py
    except ImportError as error:
        raise InstallError("the published weights need h5py to be read", hint="pip install h5py") from error
    found: dict[str, Array] = {}
    with h5py.File(io.BytesIO(stored)) as file:

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        file.visititems(note)
    layers = [name.removesuffix("kernel:0") for name in sorted(found, key=len) if name.endswith("kernel:0")]
    return [(_code(found[f"{n}kernel:0"], 32).T, _code(found[f"{n}bias:0"], 16)) for n in layers]


def _code(values: Array, steps: int) -> Array:
    """floor(v * steps + 1/2) clipped to -32 .. 31: TensorFlow's fake quantisation, in its float32."""
    return np.clip(np.floor(values * np.float32(steps) + np.float32(0.5)), -32, 31).astype(np.int64)


def published(layers: Codes, pixels: Array) -> Array:
    """Outputs int64 [N, K] for pixels [N, 784] in 0 .. 255: the published integers, in plain integer arithmetic."""
    x = pixels.astype(np.int64)
    for (weight, bias), (r, k, least) in zip(layers, SHIFTS, strict=True):
        x = np.clip((x @ weight.T + (bias << k) + (1 << (r - 1))) >> r, least, least + LEVELS - 1)
    return x


def tflite(layers: Codes) -> bytes:
    """The file. Its outputs are 96 above the published ones."""
    b = GraphBuilder()
    at = b.input(Tensor("pixels", (784,), scale=INPUT, zero_point=-128))
    for i, ((weight, bias), (r, k, least)) in enumerate(zip(layers, SHIFTS, strict=True)):
        op = ops.Dense(
            ops.freeze(2 * weight, np.int8),
            ops.freeze(2 * ((bias << k) - (least << r)), np.int32),
            ops.freeze([WEIGHT / 2], np.float32),
            ops.Activation.RELU,
        )
        at = b.node(op, [at], Tensor(f"layer{i}", (len(bias),), scale=ACTIVATION, zero_point=LEVELS))
    return write_tflite(b.finish(at), metadata={})
