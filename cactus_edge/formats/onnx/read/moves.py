"""Operators of an ONNX file that move or choose codes: pools of maxima, reshapes, transposes, slices, padding, repetition.

Each is read alike on dequantised values and on codes. Images are channel last in the graph and channel first in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cactus_edge.formats.onnx.read.affine import padding_of, positive
from cactus_edge.formats.onnx.read.layout import as_image, keeps_order
from cactus_edge.formats.onnx.read.proto import Array
from cactus_edge.formats.onnx.read.values import Codes, Operator, Pending
from cactus_edge.ir import ops
from cactus_edge.ir.arith import INT8_MIN
from cactus_edge.ir.linear import output_size
from cactus_edge.ir.spec import MAX_ELEMENTS

OUR_AXIS = {3: {1: 2, 2: 0, 3: 1}, 1: {1: 0}}
"""Per rank of a sample: the file's axis, which counts the batch, -> ours."""


def _stored(o: Operator, source: int) -> tuple[int, ...]:
    """The sample's shape in the file."""
    shape = o.net.tensors[source].shape
    return (shape[2], shape[0], shape[1]) if len(shape) == 3 else shape


def image_of(o: Operator, source: int) -> tuple[int, int, int]:
    """The shape of an image."""
    image = as_image(o.net.tensors[source].shape)
    if image is None:
        raise o.unsupported(f"a pool over {o.net.tensors[source].shape}: only images [N, channels, height, width] are")
    return image


def our_axis(o: Operator, source: int, axis: int) -> int:
    """Our axis of a sample for the file's, which may count from the end. Raises UnsupportedError for the batch."""
    axes = OUR_AXIS[len(o.net.tensors[source].shape)]
    found = axes.get(axis + len(axes) + 1 if axis < 0 else axis)
    if found is None:
        raise o.unsupported(f"axis {axis} of {len(axes) + 1}, other than one of a sample,")
    return found


def _max_pool(o: Operator, source: int) -> Pending:
    o.operands(1, 1)
    kernel, stride, padding = window(o, source)
    if positive(o, "dilations") != (1, 1):
        raise o.unsupported("a dilated pool")
    o.attributes.expect("storage_order", 0)
    return _pool(o, source, ops.MaxPool(kernel, stride, padding))


def window(o: Operator, source: int) -> tuple[tuple[int, int], tuple[int, int], ops.Padding2d]:
    """(kernel, stride, padding) of a pool; one that rounds its output's size up must not need to."""
    h, w, _ = image_of(o, source)
    kernel, stride = positive(o, "kernel_shape", 0), positive(o, "strides")
    p = padding_of(o, (h, w), kernel, stride)
    rest = (h + p.top + p.bottom - kernel[0]) % stride[0], (w + p.left + p.right - kernel[1]) % stride[1]
    if o.attributes.integer("ceil_mode", 0) not in ((0, 1) if rest == (0, 0) else (0,)):
        raise o.unsupported("ceil_mode = 1 where it adds a window")
    return kernel, stride, p


def _pool(o: Operator, source: int, op: ops.MaxPool) -> Pending:
    h, w, c = image_of(o, source)
    out = (*output_size((h, w), op.kernel, op.stride, op.padding), c)
    return Pending(op, (source,), out, out)


def _global_max(o: Operator, source: int) -> Pending:
    o.operands(1, 1)
    h, w, _ = image_of(o, source)
    return _pool(o, source, ops.MaxPool((h, w), (1, 1)))


def _reordered(o: Operator, source: int, target: Sequence[int]) -> Pending:
    """The elements in the order in which they are stored, under the sample's shape `target` of the file."""
    image = o.net.images[source]
    if len(target) == 1:
        return Pending(ops.Reshape(), (source,), (target[0],), image)
    ours = (target[1], target[2], target[0]) if len(target) == 3 else None
    if ours is None or not (image == ours or (keeps_order(image) and keeps_order(ours))):
        raise o.unsupported(f"a reshape from [N, *{_stored(o, source)}] to [N, *{tuple(target)}]")
    return Pending(ops.Reshape(), (source,), ours, ours)


def _flatten(o: Operator, source: int) -> Pending:
    o.operands(1, 1)
    rank = len(o.net.tensors[source].shape) + 1
    o.attributes.expect("axis", 1, 1 - rank)
    return _reordered(o, source, (o.net.tensors[source].size,))


def _reshape(o: Operator, source: int) -> Pending:
    """To a constant shape whose first size stands for the batch: 0, -1, or 1 where the file's batch is 1."""
    o.operands(2, 2)
    stored, size = _stored(o, source), o.net.tensors[source].size
    wanted = _listed(o, 1)
    o.attributes.expect("allowzero", 0, *(() if 0 in wanted else (1,)))
    shape = [stored[i - 1] if n == 0 and 0 < i <= len(stored) else n for i, n in enumerate(wanted)]
    if len(shape) < 2 or shape.count(-1) > 1 or shape[0] not in ((0, -1, 1) if o.net.single else (0, -1)):
        raise o.unsupported(f"a reshape to {wanted}, which does not keep the batch in front,")
    known = math.prod(n for n in shape[1:] if n != -1)
    sample = [size // known if n == -1 and known > 0 else n for n in shape[1:]]
    if min(sample) < 1 or math.prod(sample) != size:
        raise o.malformed(f"a shape for {size} elements per sample", wanted)
    return _reordered(o, source, sample)


def _listed(o: Operator, index: int) -> list[int]:
    """The constant integers that are operand `index`, at most eight of them: one per axis."""
    found: Array = o.plain(index, np.int64, np.int32)
    if found.ndim != 1 or found.size > 8:
        raise o.malformed("a list of at most 8 integers", found.shape)
    return [int(n) for n in found]


def _axes(o: Operator, rank: int) -> set[int]:
    """The axes that operand 1 names among `rank`; neither the batch nor one twice."""
    o.operands(2, 2)
    listed = _listed(o, 1)
    found = {a + rank if a < 0 else a for a in listed}
    if len(found) != len(listed) or not found <= set(range(1, rank)):
        raise o.unsupported(f"axes {listed} of {rank}, other than different ones of a sample,")
    return found


def _squeeze(o: Operator, source: int) -> Pending:
    stored = _stored(o, source)
    gone = _axes(o, len(stored) + 1)
    if any(stored[a - 1] != 1 for a in gone):
        raise o.malformed(f"axes of size 1 of {stored}", sorted(gone))
    return _reordered(o, source, [n for i, n in enumerate(stored, 1) if i not in gone])


def _unsqueeze(o: Operator, source: int) -> Pending:
    stored = list(_stored(o, source))
    for axis in sorted(_axes(o, len(stored) + 1 + o.plain(1, np.int64, np.int32).size)):
        stored.insert(axis - 1, 1)
    return _reordered(o, source, stored)


def _transpose(o: Operator, source: int) -> Pending:
    o.operands(1, 1)
    shape = o.net.tensors[source].shape
    axes = OUR_AXIS[len(shape)]
    perm = o.attributes.integers("perm", tuple(range(len(shape), -1, -1)))
    if sorted(perm) != list(range(len(shape) + 1)):
        raise o.malformed(f"a permutation of {len(shape) + 1} axes", perm)
    if perm[0] != 0:
        raise o.unsupported(f"a transpose {perm} that moves the batch")
    ours = {mine: axes[perm[theirs]] for theirs, mine in axes.items()}
    moved = tuple(ours[k] for k in range(len(shape)))
    out = tuple(shape[a] for a in moved)
    return Pending(ops.Transpose(moved), (source,), out, as_image(out))


def _slice(o: Operator, source: int) -> Pending:
    """Like Python's slices: bounds count from the end where negative, and are clamped. Steps above zero only."""
    o.operands(3, 5)
    shape = o.net.tensors[source].shape
    if not keeps_order(o.net.images[source]) and len(shape) == 1:
        raise o.unsupported("slicing a flattened image, whose elements are stored channel first,")
    starts, ends = _listed(o, 1), _listed(o, 2)
    listed = _listed(o, 3) if o.has(3) else list(range(len(starts)))
    steps = _listed(o, 4) if o.has(4) else [1] * len(starts)
    axes = [our_axis(o, source, a) for a in listed]
    if not len(starts) == len(ends) == len(axes) == len(steps) == len(set(axes)):
        raise o.malformed("a start, an end and a step per axis", (starts, ends, listed, steps))
    begin, size, stride = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(*slice(start, end, step).indices(shape[axis])) if step > 0 else range(0)
        if not taken:
            raise o.unsupported(f"a slice from {start} to {end} in steps of {step}: backwards or empty, it")
        begin[axis], size[axis], stride[axis] = taken.start, len(taken), step
    return Pending(ops.Slice(tuple(begin), tuple(size), tuple(stride)), (source,), tuple(size), as_image(tuple(size)))


def _pad(o: Operator, source: int) -> Pending:
    """Padding by real 0, whose code is the zero point."""
    o.operands(2, 4)
    shape = o.net.tensors[source].shape
    if o.attributes.text("mode", b"constant") != b"constant" or o.has(3):
        raise o.unsupported("padding other than by a constant on all axes")
    value, like = o.value(0), o.net.tensors[source]
    if isinstance(value, Codes):
        zero = like.zero_point - (INT8_MIN if value.unsigned else 0)
        by, real_zero = float(o.scalar(2, np.int8, np.uint8)) if o.has(2) else 0.0, zero
    else:
        by, real_zero = float(o.scalar(2, np.float32)) if o.has(2) else 0.0, 0
    if by != real_zero:
        raise o.unsupported(f"padding by {by}, other than by real zero ({real_zero}),")
    pads, rank = _listed(o, 1), len(shape) + 1
    if len(pads) != 2 * rank or min(pads) < 0 or pads[0] or pads[rank]:
        raise o.unsupported(f"pads {pads} of {rank} axes, below zero or of the batch,")
    if len(shape) == 1 and not keeps_order(o.net.images[source]):
        raise o.unsupported("padding a flattened image")
    around = [(0, 0)] * len(shape)
    for theirs, ours in OUR_AXIS[len(shape)].items():
        around[ours] = pads[theirs], pads[theirs + rank]
    out = tuple(n + a + b for n, (a, b) in zip(shape, around, strict=True))
    if math.prod(out) > MAX_ELEMENTS:
        raise o.malformed(f"at most {MAX_ELEMENTS} elements", out)
    return Pending(ops.Pad(tuple(around)), (source,), out, as_image(out))


NEAREST = {
    (b"asymmetric", b"floor"),
    (b"half_pixel", b"round_prefer_floor"),
    (b"half_pixel", b"round_prefer_ceil"),
}
"""Ways to choose the nearest pixel that copy each one s times where an image grows s times: floor(i / s), which is also
(i + 1/2) / s - 1/2 rounded, as its fraction stays off the half."""


def _resize(o: Operator, source: int) -> Pending:
    o.operands(3, 4)
    h, w, c = image_of(o, source)
    how = o.attributes.text("coordinate_transformation_mode", b"half_pixel")
    rounding = o.attributes.text("nearest_mode", b"round_prefer_floor")
    if o.attributes.text("mode", b"nearest") != b"nearest" or (how, rounding) not in NEAREST:
        raise o.unsupported(f"resizing other than to the nearest pixel by {sorted(NEAREST)}, here {(how, rounding)},")
    for name, default in (("cubic_coeff_a", -0.75), ("extrapolation_value", 0.0)):
        o.attributes.number(name, default)  # of other modes
    o.attributes.expect("antialias", 0)
    o.attributes.expect("exclude_outside", 0)
    if not o.has(2) or o.has(3):
        raise o.unsupported("resizing to sizes rather than by factors")
    scales: Array = o.plain(2, np.float32)
    factors = [int(s) if np.isfinite(s) and 1 <= s <= 64 else 0 for s in scales[:5]] if scales.ndim == 1 else []
    if len(factors) != 4 or factors[:2] != [1, 1] or any(f < 1 or f != s for f, s in zip(factors, scales, strict=True)):
        raise o.unsupported(f"resizing by {scales.tolist()[:8]}, other than by whole factors of height and width,")
    out = (h * factors[2], w * factors[3], c)
    if math.prod(out) > MAX_ELEMENTS:
        raise o.malformed(f"at most {MAX_ELEMENTS} elements", out)
    centred = ops.ResizeNearest(half_pixel_centers=True)
    return Pending(centred, (source,), out, out)


MOVES: dict[str, Callable[[Operator, int], Pending]] = {
    "MaxPool": _max_pool,
    "GlobalMaxPool": _global_max,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
}
"""Operator -> (node, the tensor that is its first operand) -> the move; scale and zero point stay."""
