"""Shape arithmetic of a .tflite file: what converters write in front of RESHAPE where the batch size may vary. Part of `tflite_read`.

The graph speaks of one sample, so that SHAPE of an activation is a constant, and so is what SLICE, PACK and CONCATENATION
GATHER and REDUCE_PROD make of constants. Such operators become no nodes; their results are operands like those stored in the file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify.tflite_operator import Operator
from cactus_edge.verify.tflite_tensors import MAX_RANK

Shape = npt.NDArray[Any]

NAMES = frozenset({"SHAPE", "STRIDED_SLICE", "PACK", "CONCATENATION", "GATHER", "REDUCE_PROD"})
"""Operators that may be shape arithmetic."""


def fold(o: Operator) -> bool:
    """Whether `o` computes with shapes; then its result is a constant from here on. Raises ModelError where it contradicts itself."""
    if o.name == "SHAPE":
        o.operands(1, 1, 1)
        measured = o.tensors.use(o.inputs[0], f"input 0 of {o.what}")
        whole = measured in o.tensors.whole
        if o.x().dtype == "float32":
            o.tensors.measured.add(measured)
        result = np.array([*(1,) * (not whole), *o.x().shape], "<i4")
    elif any(i in o.tensors.folded for i in o.inputs):
        result = FOLDED[o.name](o)
    else:
        return False
    if result.size > MAX_RANK or result.ndim > 1:
        raise o.unsupported(f"shape arithmetic on {result.shape}")
    o.tensors.fold(o.outputs[0], result, f"the output of {o.what}")
    return True


def _strided_slice(o: Operator) -> Shape:
    f = fb.StridedSliceOptions
    o.operands(4, 4, 1)
    values = o.constant(0, "INT32")[0]
    spec = [o.vector(i) for i in (1, 2, 3)]
    if any(len(v) != 1 for v in spec) or values.ndim != 1 or spec[2][0] < 1:
        raise o.malformed("one begin, end and positive stride of a list", [v[:3] for v in spec])
    if o.option(f.ELLIPSIS_MASK) or o.option(f.NEW_AXIS_MASK) or o.option(f.OFFSET, "B"):
        raise o.unsupported("an ellipsis, a new axis or an offset")
    (begin,), (end,), (stride,) = spec
    if o.option(f.SHRINK_AXIS_MASK) & 1:
        if not -values.size <= begin < values.size:
            raise o.malformed(f"an index into {values.size} elements", begin)
        return np.asarray(values[begin])
    first, last = (None if o.option(m) & 1 else v for m, v in ((f.BEGIN_MASK, begin), (f.END_MASK, end)))
    return values[first:last:stride]


def _pack(o: Operator) -> Shape:
    o.operands(1, MAX_RANK, 1)
    parts = [o.constant(i, "INT32")[0] for i in range(len(o.inputs))]
    if o.option(fb.PackOptions.AXIS) != 0 or any(p.ndim for p in parts):
        raise o.unsupported("packing along another axis than the first, or tensors that are no numbers,")
    return np.array(parts, "<i4")


def _concat(o: Operator) -> Shape:
    o.operands(1, MAX_RANK, 1)
    parts = [o.constant(i, "INT32")[0] for i in range(len(o.inputs))]
    if any(p.ndim != 1 for p in parts) or sum(p.size for p in parts) > MAX_RANK:
        raise o.unsupported("joining shapes of other than one axis")
    return np.concatenate(parts)


def _gather(o: Operator) -> Shape:
    o.operands(2, 2, 1)
    values, index = (o.constant(i, "INT32")[0] for i in range(2))
    if o.option(fb.GatherOptions.AXIS) or o.option(fb.GatherOptions.BATCH_DIMS) or values.ndim != 1:
        raise o.unsupported("gathering along another axis than that of a list")
    if index.size > MAX_RANK or (index.size and not 0 <= index.min() <= index.max() < values.size):
        raise o.malformed(f"up to {MAX_RANK} indices below {values.size}", index.ravel()[:9].tolist())
    return np.asarray(values[index])


def _product(o: Operator) -> Shape:
    o.operands(2, 2, 1)
    values = o.constant(0, "INT32")[0]
    found = math.prod(values.ravel().tolist())
    if o.vector(1) != [0] or values.ndim != 1 or o.option(fb.ReducerOptions.KEEP_DIMS, "B") or not 0 <= found < 1 << 31:
        raise o.unsupported("a product over other than the axis of a list, or beyond 2^31")
    return np.asarray(found, "<i4")


FOLDED = {
    "STRIDED_SLICE": _strided_slice,
    "PACK": _pack,
    "CONCATENATION": _concat,
    "GATHER": _gather,
    "REDUCE_PROD": _product,
}
"""What each operator makes of constants."""
