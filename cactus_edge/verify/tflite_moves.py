"""Operators of a .tflite file that move or choose elements -> ops of the graph. Part of the trusted reader (`tflite_read`).

What the graph has no op for is written in those that it has: parts of a tensor, joined, transposed, reshaped. The steps in between are
tensors of the graph alone; every one of them copies codes, so that no arithmetic is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from cactus_edge.ir import graph as ir
from cactus_edge.ir import ops
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify.tflite_operator import Operator
from cactus_edge.verify.tflite_tensors import indices, quantization

MAX_COPIES = 64
"""Of one tensor in TILE: each becomes an input of a node, and a file must not grow much by being read."""

MAX_FILL = 1 << 20
"""Elements of a constant border in PADV2."""


def pad(o: Operator) -> ops.Op:
    return ops.Pad(_paddings(o))


def _paddings(o: Operator) -> tuple[tuple[int, int], ...]:
    pads, _ = o.constant(1, "INT32")
    if pads.shape != (len(o.x().shape) + 1, 2) or pads.min() < 0:
        raise o.malformed(f"paddings >= 0 of shape {(len(o.x().shape) + 1, 2)}", f"{pads.shape}, least {pads.min()}")
    if pads[0].any():
        raise o.unsupported("padding the batch axis")
    return tuple((int(a), int(b)) for a, b in pads[1:])


def pad_with(o: Operator) -> ops.Op:
    """PADV2: a border of one code, which is PAD where it is the zero point, and else constants joined to the tensor."""
    pads, x = _paddings(o), o.x()
    code, table = o.constant(2, "INT8")
    q = quantization(table)
    if (
        code.size != 1
        or q is None
        or (q.scale.size, float(q.scale[0]), int(q.zero_point[0])) != (1, x.scale, x.zero_point)
    ):
        raise o.unsupported("a border that is not one number in the input's scale and zero point")
    if int(code.ravel()[0]) == x.zero_point:
        return ops.Pad(pads)
    shape, op = list(x.shape), None
    for axis, sides in enumerate(pads):
        if any(sides):
            if op is not None:
                o.sources = (o.step(op, o.sources, tuple(shape)),)
            before, after = (_border(o, x, shape, axis, n, code) for n in sides)
            o.sources, op = (*before, *o.sources, *after), ops.Concat(axis)
            shape[axis] += sum(sides)
    return op or ops.Reshape()


def _border(o: Operator, x: ir.Tensor, shape: list[int], axis: int, n: int, code: ops.Int8) -> tuple[int, ...]:
    """A constant of n codes along `axis`, none for n = 0."""
    border = (*shape[:axis], n, *shape[axis + 1 :])
    if math.prod(border) > MAX_FILL:
        raise o.unsupported(f"a border of {math.prod(border)} elements, more than {MAX_FILL},")
    tensor = ir.Tensor(f"{o.output().name}/border", border, "int8", x.scale, x.zero_point)
    return (o.tensors.add(tensor, np.full(border, code.ravel()[0], np.int8)),) if n else ()


def concat(o: Operator) -> ops.Op:
    if o.activation(fb.ConcatenationOptions.ACTIVATION) is not ops.Activation.NONE:
        raise o.unsupported("a fused activation")
    return ops.Concat(o.axis(o.option(fb.ConcatenationOptions.AXIS)))


def reshape(o: Operator) -> ops.Op:
    """The shape asked for counts, with -1 for what is left over; where there is none, the output tensor's."""
    field = fb.ReshapeOptions.NEW_SHAPE
    stored = indices(o.options, field) if o.options is not None and o.options.has(field) else None
    target = o.vector(1) if len(o.inputs) == 2 else stored
    size, shape = o.x().size, list(o.tensors.stored_shape(o.outputs[0]))
    if target is not None:
        known = math.prod(n for n in target if n != -1)
        shape = [size // max(known, 1) if n == -1 else n for n in target]
        if target.count(-1) > 1 or min(target, default=1) < -1 or math.prod(shape) != size:
            raise o.malformed(f"a target for {size} elements", target[:9])
    # Files repeat the target in the options; runtimes look at one of them only.
    if stored is not None and (
        len(stored) != len(shape) or any(a not in (-1, b) for a, b in zip(stored, shape, strict=True))
    ):
        raise o.malformed(f"options that fit the shape asked for, {shape}", stored[: len(shape) + 1])
    o.shape = tuple(shape)
    return ops.Reshape()


def squeeze(o: Operator) -> ops.Op:
    shape = [1, *o.x().shape]
    stored = None if o.options is None else o.options.vector(fb.SqueezeOptions.SQUEEZE_DIMS, "<i4")
    dropped = {a + len(shape) if a < 0 else a for a in ([] if stored is None else stored.tolist())}
    if any(not 0 <= a < len(shape) or shape[a] != 1 for a in dropped):
        raise o.malformed("axes of size 1", sorted(dropped))
    kept = [n for a, n in enumerate(shape) if a not in dropped and (dropped or n > 1)]
    return _same_elements(o, kept)


def expand_dims(o: Operator) -> ops.Op:
    shape = [1, *o.x().shape]
    target = o.vector(1)
    if len(target) != 1 or not -len(shape) - 1 <= target[0] <= len(shape):
        raise o.malformed(f"one axis of {len(shape) + 1}", target)
    shape.insert(target[0] + len(shape) + 1 if target[0] < 0 else target[0], 1)
    return _same_elements(o, shape)


def _same_elements(o: Operator, shape: list[int]) -> ops.Op:
    if shape != [1, *o.output().shape]:
        raise o.malformed(f"an output of shape {shape}", [1, *o.output().shape])
    return ops.Reshape()


def transpose(o: Operator) -> ops.Op:
    perm = o.vector(1)
    rank = len(o.x().shape) + 1
    perm = [a + rank if a < 0 else a for a in perm]
    if sorted(perm) != list(range(rank)):
        raise o.malformed(f"a permutation of {rank} axes", perm)
    if perm[0] != 0:
        raise o.unsupported(f"permutation {perm}, which moves the batch axis,")
    return ops.Transpose(tuple(a - 1 for a in perm[1:]))


def _whole(o: Operator) -> tuple[list[int], list[int], list[int]]:
    """begin, size and stride of the slice that is the first activation itself."""
    shape = o.x(o.first).shape
    return [0] * len(shape), list(shape), [1] * len(shape)


def _pieces(o: Operator, axis: int, sizes: list[int]) -> list[ops.Op]:
    """Slices of the given sizes, one after the other along `axis` of the sample."""
    found: list[ops.Op] = []
    begin, size, stride = _whole(o)
    if sum(sizes) != size[axis] or min(sizes) < 1:
        raise o.malformed(f"positive sizes of sum {size[axis]}", sizes[:8])
    for n in sizes:
        size[axis] = n
        found.append(ops.Slice(tuple(begin), tuple(size), tuple(stride)))
        begin[axis] += n
    return found


def split(o: Operator) -> list[ops.Op]:
    axes, count = o.vector(0), len(o.outputs)
    if len(axes) != 1 or count != o.option(fb.SplitOptions.NUM_SPLITS):
        raise o.malformed(f"one axis and {count} parts", f"{axes[:2]} and {o.option(fb.SplitOptions.NUM_SPLITS)}")
    axis = o.axis(axes[0])
    n = o.x(o.first).shape[axis]
    return _pieces(o, axis, [n // count] * count)


def split_v(o: Operator) -> list[ops.Op]:
    sizes, axes = o.vector(1), o.vector(2)
    if len(axes) != 1 or len(sizes) != len(o.outputs) or sizes.count(-1) > 1:
        raise o.malformed(f"one axis and {len(o.outputs)} sizes", f"{axes[:2]} and {sizes[:8]}")
    axis = o.axis(axes[0])
    rest = o.x().shape[axis] - sum(n for n in sizes if n != -1)
    return _pieces(o, axis, [rest if n == -1 else n for n in sizes])


def unpack(o: Operator) -> list[ops.Op]:
    axis = o.axis(o.option(fb.UnpackOptions.AXIS))
    return _pieces(o, axis, [1] * len(o.outputs))


def cut(o: Operator) -> ops.Op:
    _, size, stride = _whole(o)
    first, extent = o.vector(1), o.vector(2)
    if len(first) != len(extent) or len(first) != len(size) + 1:
        raise o.malformed(f"begin and size for {len(size) + 1} axes", f"{first[:8]} and {extent[:8]}")
    if first[0] != 0 or extent[0] not in (-1, 1):
        raise o.unsupported("slicing the batch axis")
    size = [n - a if e == -1 else e for n, a, e in zip(size, first[1:], extent[1:], strict=True)]
    return ops.Slice(tuple(first[1:]), tuple(size), tuple(stride))


def strided_slice(o: Operator) -> ops.Op:
    f = fb.StridedSliceOptions
    if o.option(f.ELLIPSIS_MASK) or o.option(f.NEW_AXIS_MASK) or o.option(f.OFFSET, "B"):
        raise o.unsupported("an ellipsis, a new axis or an offset")
    spec = [o.vector(i) for i in (1, 2, 3)]
    _, shape, _ = _whole(o)
    if len({len(v) for v in spec}) != 1 or len(spec[0]) > len(shape) + 1:
        raise o.malformed(f"begin, end and strides for up to {len(shape) + 1} axes", [v[:8] for v in spec])
    begin, size, stride = [0] * (len(shape) + 1), [1, *shape], [1] * (len(shape) + 1)
    for axis, (b, e, s) in enumerate(zip(*spec, strict=True)):
        if s < 1:
            raise o.unsupported(f"a stride of {s}")
        n = size[axis]
        shrinks = bool(o.option(f.SHRINK_AXIS_MASK) >> axis & 1)
        first = 0 if o.option(f.BEGIN_MASK) >> axis & 1 else min(max(b + n if b < 0 else b, 0), n)
        last = n if o.option(f.END_MASK) >> axis & 1 else min(max(e + n if e < 0 else e, 0), n)
        begin[axis], size[axis], stride[axis] = first, 1 if shrinks else max(-((first - last) // s), 0), s
    kept = [n for axis, n in enumerate(size) if not o.option(f.SHRINK_AXIS_MASK) >> axis & 1]
    if (begin[0], size[0], kept) != (0, 1, [1, *o.output().shape]):
        raise o.malformed(f"an output of shape {kept} that keeps the batch axis", [1, *o.output().shape])
    return ops.Slice(tuple(begin[1:]), tuple(size[1:]), tuple(stride[1:]))


def tile(o: Operator) -> ops.Op:
    times = o.vector(1)
    if len(times) != len(o.x().shape) + 1 or min(times) < 1:
        raise o.malformed(f"{len(o.x().shape) + 1} positive multiples", times[:8])
    return _repeat(o, o.sources[0], times)


def broadcast_to(o: Operator) -> ops.Op:
    target, shape = o.vector(1), (1, *o.x().shape)
    if len(target) < len(shape) or min(target) < 1:
        raise o.malformed(f"at least {len(shape)} positive sizes", target[:8])
    padded = (1,) * (len(target) - len(shape)) + shape
    if any(n not in (1, m) for n, m in zip(padded, target, strict=True)):
        raise o.malformed(f"a shape to which {shape} broadcasts", target[:8])
    x = o.sources[0] if padded == shape else o.step(ops.Reshape(), o.sources, padded[1:])
    return _repeat(o, x, [m if n == 1 else 1 for n, m in zip(padded, target, strict=True)])


def _repeat(o: Operator, x: int, times: list[int]) -> ops.Op:
    """Copies of x along each axis, batch included: a tensor joined with itself, axis by axis."""
    if times[0] != 1 or max(times) > MAX_COPIES:
        raise o.unsupported(f"repeating the batch axis or more than {MAX_COPIES} times, {times[:8]},")
    repeated = [axis for axis, n in enumerate(times[1:]) if n != 1] or [len(times) - 2]
    shape = list(o.tensors.activations[x].shape)
    for axis in repeated[:-1]:
        shape[axis] *= times[axis + 1]
        x = o.step(ops.Concat(axis), (x,) * times[axis + 1], tuple(shape))
    o.sources = (x,) * times[repeated[-1] + 1]
    return ops.Concat(repeated[-1])


def pack(o: Operator) -> ops.Op:
    """Tensors side by side along a new axis: each reshaped to have it, then joined."""
    shape = o.x().shape
    axis = o.option(fb.PackOptions.AXIS)
    axis += (axis < 0) * (len(shape) + 2)
    if not 1 <= axis <= len(shape) + 1 or any(o.tensors.activations[i].shape != shape for i in o.sources):
        raise o.unsupported("a new first (batch) axis, or tensors of several shapes,")
    column = (*shape[: axis - 1], 1, *shape[axis - 1 :])
    o.sources = tuple(o.step(ops.Reshape(), (i,), column) for i in o.sources)
    return ops.Concat(axis - 1)


def _take(o: Operator, x: int, axis: int, wanted: Sequence[int]) -> ops.Op:
    """The elements `wanted` of x along an axis of the sample: runs of neighbours as slices, joined."""
    shape = list(o.tensors.activations[x].shape)
    ends = [k + 1 for k, (a, b) in enumerate(pairwise(wanted)) if b != a + 1]
    runs = list(pairwise([0, *ends, len(wanted)]))
    if len(runs) > MAX_COPIES:
        raise o.unsupported(f"{len(runs)} parts, more than {MAX_COPIES},")
    parts = []
    for first, last in runs:
        begin, size = [0] * len(shape), [*shape]
        begin[axis], size[axis] = wanted[first], last - first
        op = ops.Slice(tuple(begin), tuple(size), (1,) * len(shape))
        parts.append(o.step(op, (x,), tuple(size)))
    o.sources = tuple(parts)
    return ops.Concat(axis)


def gather(o: Operator) -> ops.Op:
    if o.option(fb.GatherOptions.BATCH_DIMS):
        raise o.unsupported("a gather with batch dimensions")
    axis = o.axis(o.option(fb.GatherOptions.AXIS))
    n, found = o.x().shape[axis], o.constant(1, "INT32")[0]
    wanted = o.vector(1)
    if found.ndim > 1 or not wanted or min(wanted) < 0 or max(wanted) >= n:
        raise o.malformed(f"a list of indices below {n}", wanted[:8])
    op = _take(o, o.sources[0], axis, wanted)
    if found.ndim:
        return op
    o.sources = (o.step(op, o.sources, (*o.x().shape[:axis], 1, *o.x().shape[axis + 1 :])),)
    return ops.Reshape()


def reverse(o: Operator) -> ops.Op:
    axes = o.vector(1)
    if len(axes) != 1:
        raise o.unsupported(f"reversing {len(axes)} axes")
    axis = o.axis(axes[0])
    return _take(o, o.sources[0], axis, range(o.x().shape[axis])[::-1])


def mirror_pad(o: Operator) -> ops.Op:
    """REFLECT (mode 0) leaves out the border itself, SYMMETRIC (1) repeats it."""
    pads, mode = _paddings(o), o.option(fb.MirrorPadOptions.MODE, "b")
    if mode not in (0, 1):
        raise o.unsupported(f"mode {mode}")
    shape, x, op = list(o.x().shape), o.sources[0], None
    for axis, (before, after) in enumerate(pads):
        n = shape[axis]
        if max(before, after) > n - 1 + mode:
            raise o.malformed(f"mirrored borders of at most {n - 1 + mode}", (before, after))
        if before or after:
            if op is not None:
                x = o.step(op, o.sources, tuple(shape))
            first, last = range(1 - mode, n)[:before][::-1], range(n - 1 + mode)[::-1][:after]
            op = _take(o, x, axis, [*first, *range(n), *last])
            shape[axis] += before + after
    return op or ops.Reshape()


def depth_to_space(o: Operator) -> ops.Op:
    """y[h b + i, w b + j, c] = x[h, w, (i b + j) C + c]."""
    b, (h, w, c) = _block(o, fb.DepthToSpaceOptions), _image(o)
    if c % (b * b):
        raise o.malformed(f"a number of channels that {b * b} divides", c)
    x = o.step(ops.Reshape(), o.sources, (h, w, b, c // b))
    o.sources = (o.step(ops.Transpose((0, 2, 1, 3)), (x,), (h, b, w, c // b)),)
    return ops.Reshape()


def space_to_depth(o: Operator) -> ops.Op:
    """y[h, w, (i b + j) C + c] = x[h b + i, w b + j, c]."""
    b, (h, w, c) = _block(o, fb.SpaceToDepthOptions), _image(o)
    if h % b or w % b:
        raise o.malformed(f"a height and a width that {b} divides", (h, w))
    x = o.step(ops.Reshape(), o.sources, (h // b, b, w // b, b * c))
    o.sources = (o.step(ops.Transpose((0, 2, 1, 3)), (x,), (h // b, w // b, b, b * c)),)
    return ops.Reshape()


def _block(o: Operator, options: type[fb.DepthToSpaceOptions] | type[fb.SpaceToDepthOptions]) -> int:
    found: int = o.option(options.BLOCK_SIZE)
    if found < 1:
        raise o.malformed("a block of at least 1", found)
    return found


def _image(o: Operator) -> tuple[int, int, int]:
    shape = o.x().shape
    if len(shape) != 3:
        raise o.malformed("an input [1, height, width, channels]", [1, *shape])
    return shape[0], shape[1], shape[2]


def reduce_max(o: Operator) -> ops.Op:
    """The maximum over one window that holds all elements of the reduced axes, moved to the front."""
    shape = o.x().shape
    axes = sorted({o.axis(a) for a in o.vector(1)})
    kept = [a for a in range(len(shape)) if a not in axes]
    if not axes or not o.x().quantised_like(o.output()):
        raise o.unsupported("a maximum over no axis, or one that is requantised,")
    if [*axes, *kept] != list(range(len(shape))):
        o.sources = (o.step(ops.Transpose((*axes, *kept)), o.sources, tuple(shape[a] for a in (*axes, *kept))),)
    taps, rest = math.prod(shape[a] for a in axes), math.prod(shape[a] for a in kept)
    column = o.step(ops.Reshape(), o.sources, (taps, 1, rest))
    o.sources = (o.step(ops.MaxPool((taps, 1), (1, 1)), (column,), (1, 1, rest)),)
    keep = o.option(fb.ReducerOptions.KEEP_DIMS, "B")
    return _same_elements(
        o, [1, *([1 if a in axes else n for a, n in enumerate(shape)] if keep else [shape[a] for a in kept])]
    )


def resize_nearest(o: Operator) -> ops.Op:
    f = fb.ResizeNearestNeighborOptions
    check_size(o)
    return ops.ResizeNearest(bool(o.option(f.ALIGN_CORNERS, "B")), bool(o.option(f.HALF_PIXEL_CENTERS, "B")))


def check_size(o: Operator) -> None:
    """Raises ModelError where a resize asks for another size than its output has."""
    if o.vector(1) != list(o.output().shape[:2]):
        raise o.malformed(f"the output's size {o.output().shape[:2]}", o.vector(1)[:8])
