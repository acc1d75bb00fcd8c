"""Shape arithmetic of a .tflite file: what converters write in front of RESHAPE where the batch size may vary. Part of `tflite_read`.

The graph speaks of one sample, so that SHAPE of an activation is a constant, and so is what SLICE, PACK and CONCATENATION
make of constants. Such operators become no nodes; their results are operands like those stored in the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify.tflite_operator import Operator
from cactus_edge.verify.tflite_tensors import MAX_RANK

Shape = npt.NDArray[Any]

NAMES = frozenset({"SHAPE", "STRIDED_SLICE", "PACK", "CONCATENATION"})
"""Operators that may be shape arithmetic."""


def fold(o: Operator) -> bool:
    """Whether `o` computes with shapes; then its result is a constant from here on. Raises ModelError where it contradicts itself."""
    if o.name == "SHAPE":
        o.operands(1, 1, 1)
        result = np.array([1, *o.x().shape], "<i4")
    elif any(i in o.tensors.folded for i in o.inputs):
        result = {"STRIDED_SLICE": _strided_slice, "PACK": _pack, "CONCATENATION": _concat}[o.name](o)
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
