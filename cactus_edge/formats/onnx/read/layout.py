"""How an ONNX file stores what the integer network holds: the order of images, the bounds of activations, the range of scales.

Images are stored channel first; a flattened image therefore has another order of elements, which the columns of the next
dense layer's weight absorb (`stored_columns`), so that no transpose is ever needed. The reader turns them back, the writer
(`formats.onnx.write`) forth.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.arith import round_half_away
from cactus_edge.ir.graph import Graph, Tensor

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-60, 2.0**60
"""Scales in this range keep f32(S * code) / S exact to a quarter of a code, and every product of two of them a normal float32."""

Image = tuple[int, int, int]
"""(height, width, channels) of an image that was flattened: its elements are stored as (channel, height, width)."""


def as_image(shape: tuple[int, ...]) -> Image | None:
    """The shape, if it is an image's."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else None


def keeps_order(image: Image | None) -> bool:
    """Whether a flattened tensor's elements are stored in our order: always, if it was no image of several channels and pixels."""
    return image is None or image[2] == 1 or image[0] * image[1] == 1


def stored_columns(weight: ops.Int8, image: Image | None) -> ops.Int8:
    """The columns of a dense weight [O, I] in the order in which the flattened `image` is stored."""
    if image is None:
        return weight
    h, w, c = image
    return weight.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(weight.shape)


def our_columns(weight: ops.Int8, image: Image | None) -> ops.Int8:
    """The inverse of `stored_columns`."""
    if image is None:
        return weight
    h, w, c = image
    return weight.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(weight.shape)


EACH = (
    *(ops.Relu, ops.Relu6, ops.LeakyRelu, ops.HardSwish, ops.Logistic, ops.Tanh, ops.Softmax, ops.Requantize),
    *(ops.Add, ops.Sub, ops.Mul, ops.Maximum, ops.Minimum),
)
"""Ops whose outputs stand where their inputs stood, in whatever order these are stored."""


def stored_image(graph: Graph, tensor: int) -> Image | None:
    """The image whose flattened elements `tensor` holds, or which it is; None where their order is ours anyway."""
    writer = {n.output: n for n in graph.nodes}
    while (node := writer.get(tensor)) is not None:
        shape = graph.tensors[tensor].shape
        if isinstance(node.op, ops.Reshape):
            tensor = node.inputs[0]
        elif isinstance(node.op, EACH) and len(shape) == 1:
            tensor = next((i for i in node.inputs if graph.tensors[i].shape == shape), node.inputs[0])
        else:
            break
    return as_image(graph.tensors[tensor].shape)


def clip_bounds(activation: ops.Activation) -> tuple[float, float] | None:
    """The real range that an activation other than NONE and RELU clips to; None for those."""
    match activation:
        case ops.Activation.RELU6:
            return 0.0, 6.0
        case ops.Activation.RELU_N1_TO_1:
            return -1.0, 1.0
        case ops.Activation.NONE | ops.Activation.RELU:
            return None


def check_activation(activation: ops.Activation, out: Tensor, where: str) -> None:
    """Raises UnsupportedError where a clipped bound lies half-way between two codes: ONNX Runtime rounds it to even, .tflite away."""
    for bound in clip_bounds(activation) or ():
        ratio = float(np.float32(bound) / np.float32(out.scale))
        if round_half_away(ratio) != round(ratio):
            raise UnsupportedError(
                f"{where}: {activation.value} with output scale {out.scale}: {bound} lies half-way between two codes, which "
                "ONNX Runtime rounds to the even one and the int8 network away from zero"
            )


def check_scales(scales: npt.ArrayLike, where: str) -> None:
    """Raises UnsupportedError for scales whose products leave the range in which ONNX Runtime's float32 steps are exact."""
    low, high = float(np.min(scales)), float(np.max(scales))
    if not (low >= SMALLEST_SCALE and high <= LARGEST_SCALE):
        raise UnsupportedError(f"{where}: scales from {low} to {high}, expected them in [2^-60, 2^60] for ONNX Runtime")
