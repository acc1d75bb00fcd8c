"""Dilated convolutions as TensorFlow writes them: SPACE_TO_BATCH_ND, convolution, BATCH_TO_SPACE_ND. Part of the trusted reader.

With blocks of b every b-th pixel becomes an image of its own, all of them in the batch; a convolution without padding and with
stride 1 sees in each what one of dilation b sees in the whole. Runtimes compute the same sums, pixel by pixel: the border that
SPACE_TO_BATCH_ND adds reads the zero point, as a skipped tap does. So the three are one op, and what lies between is no tensor
of the graph. Source: tensorflow/lite/kernels/internal/reference/{space_to_batch_nd,batch_to_space_nd}.h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cactus_edge.ir import graph as ir
from cactus_edge.ir import ops
from cactus_edge.verify.tflite_operator import Operator

NAMES = frozenset({"SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"})

RENAMING = frozenset({"RESHAPE", "EXPAND_DIMS", "SQUEEZE"})
"""Operators that may stand between, where they only add or drop an axis of size 1 in front of the width."""


@dataclass(frozen=True)
class Phases:
    """The images in the batch: the tensor `source` (h, w, c) cut by `block` behind a border, each of shape `image`.

    `lines`: (w, c) only is in the file. op: the convolution that they went through, with its own output tensor.
    """

    source: int
    block: tuple[int, int]
    border: ops.Padding2d
    image: tuple[int, int, int]
    lines: bool
    op: ops.Conv2d | ops.DepthwiseConv2d | None = None
    output: ir.Tensor | None = None


def enter(o: Operator) -> Phases:
    """SPACE_TO_BATCH_ND of an image, or of a line as an image of height 1."""
    shape, block, pads = o.x().shape, o.vector(1), o.constant(2, "INT32")[0]
    spatial = len(shape) - 1
    if spatial not in (1, 2) or len(block) != spatial or pads.shape != (spatial, 2) or min(block) < 1 or pads.min() < 0:
        raise o.unsupported(f"blocks {block[:4]} and borders {pads.shape} for a sample of shape {shape}")
    sides = [(0, 0)] * (2 - spatial) + [(int(a), int(b)) for a, b in pads]
    blocks = [1] * (2 - spatial) + block
    height, width, channels = (1,) * (2 - spatial) + shape
    source = o.sources[0] if spatial == 2 else o.step(ops.Reshape(), o.sources, (1, *shape))
    padded = (height + sum(sides[0]), width + sum(sides[1]))
    if any(n % b for n, b in zip(padded, blocks, strict=True)):
        raise o.malformed(f"a size that {blocks} divides", padded)
    image = (padded[0] // blocks[0], padded[1] // blocks[1], channels)
    return _stored(o, Phases(source, (blocks[0], blocks[1]), ops.Padding2d(*sides[0], *sides[1]), image, spatial == 1))


def rename(o: Operator, phases: Phases) -> Phases:
    """RESHAPE and the like, which make lines of images of height 1, or the other way round."""
    rest = o.tensors.stored_shape(o.outputs[0])[1:]
    if rest not in (phases.image, phases.image[1:]) or phases.image[0] != 1:
        raise o.unsupported(f"another shape {rest} inside a dilated convolution, of images {phases.image},")
    return _stored(o, replace(phases, lines=len(rest) == 2))


def convolve(o: Operator, phases: Phases, op: ops.Op) -> Phases:
    """The convolution of each image, `op` being what it is for one of them."""
    if not isinstance(op, ops.Conv2d | ops.DepthwiseConv2d) or phases.op is not None or phases.lines:
        raise o.unsupported("another operator than one convolution between SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND")
    if (op.stride, op.dilation, op.padding) != ((1, 1), (1, 1), ops.NO_PADDING):
        raise o.unsupported(f"a stride {op.stride}, dilation {op.dilation} or padding inside a dilated convolution")
    kernel = op.weight.shape[1:3] if isinstance(op, ops.Conv2d) else op.weight.shape[:2]
    h, w = (n - k + 1 for n, k in zip(phases.image[:2], kernel, strict=True))
    output = o.tensors.peek(o.outputs[0], (o.tensors.stored_shape(o.outputs[0])[0], h, w, len(op.bias)))
    return _stored(o, replace(phases, image=(h, w, len(op.bias)), op=op, output=output))


def leave(o: Operator, phases: Phases) -> ops.Op:
    """BATCH_TO_SPACE_ND: the images as one again, less the crops, which the convolution's border is made smaller by."""
    block, crops = o.vector(1), o.constant(2, "INT32")[0]
    spatial = 1 if phases.lines else 2
    output = phases.output
    if phases.op is None or output is None or not output.quantised_like(o.output()):
        raise o.unsupported("a BATCH_TO_SPACE_ND without a convolution before it, or one that requantises,")
    if [1] * (2 - spatial) + block != list(phases.block) or crops.shape != (spatial, 2) or crops.min() < 0:
        raise o.unsupported(f"blocks {block[:4]} and crops {crops.shape} behind blocks {phases.block}")
    top, bottom = (0, 0) if spatial == 1 else (int(n) for n in crops[0])
    left, right = (int(n) for n in crops[-1])
    border = phases.border
    # What is cropped at the end was computed and is not: fewer rows and columns of border give the same rest.
    padding = ops.Padding2d(border.top - top, border.bottom - bottom, border.left - left, border.right - right)
    op = replace(phases.op, dilation=phases.block, padding=padding)
    if min(padding.top, padding.bottom, padding.left, padding.right) < 0:
        raise o.unsupported("crops beyond the border of a dilated convolution")
    o.sources = (phases.source,)
    if spatial == 1:
        w = phases.image[1] * phases.block[1] - left - right
        result = replace(output, name=f"{o.output().name}/line", shape=(1, w, phases.image[2]))
        o.steps.append(ir.Node(op, o.sources, o.tensors.add(result)))
        o.sources = (o.steps[-1].output,)
        return ops.Reshape()
    return op


def _stored(o: Operator, phases: Phases) -> Phases:
    """Notes where the file stores another batch than the number of images."""
    stored = o.tensors.stored_shape(o.outputs[0])
    images = phases.block[0] * phases.block[1]
    shape = (images, *(phases.image[1:] if phases.lines else phases.image))
    o.tensors.between(o.outputs[0], shape, f"the output of {o.what}")
    like = phases.output or o.tensors.activations[phases.source]
    if stored[1:] != shape[1:] or not o.output().quantised_like(like):
        raise o.malformed(
            f"images of shape {shape[1:]}, scale {like.scale} and zero point {like.zero_point}", o.output()
        )
    return phases


def image(o: Operator, phases: Phases) -> ir.Tensor:
    """One of the images, as an input of the convolution."""
    return replace(o.tensors.activations[phases.source], shape=phases.image)
