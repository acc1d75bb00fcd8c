"""Graph -> canonical blob: what is flashed is what was certified.

The blob's SHA-256 stands in the certificate, in the `.tflite`'s manifest and in the C sources, and a board hashes its own
blob to report it. It holds the op list, geometry, zero points, the profile's multipliers and shifts, weights, biases and
the memory plan (`blob_format.py` is the law). Equal graphs under equal profiles give equal bytes.

`to_blob` raises UnsupportedError where the portable runtime lacks the arithmetic, and ModelError where a partial sum, in
any order, could leave int32.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InternalError, ModelError, UnsupportedError
from cactus_edge.formats.c.blob_format import (
    ARITHMETIC_TFLM,
    COMMON,
    CONSTANTS,
    HEADER,
    HEADER_WORDS,
    MAGIC,
    MAX_BYTES,
    MAX_SOFTMAX_DEPTH,
    PACKED,
    RECORDS,
    VERSION,
    Blob,
    Kind,
    parse,
)
from cactus_edge.formats.c.plan import Plan, plan
from cactus_edge.formats.nibbles import pack_nibbles
from cactus_edge.ir import ops
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN, INT32_MAX
from cactus_edge.ir.atoms import Affine, Atom, Isotone, Monotone, Program, Softmax
from cactus_edge.ir.binary import AddRule
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.rules import Clamp, Requantise, RoundDivide, SoftmaxRule

Rule = TypeVar("Rule", Requantise, RoundDivide, Clamp)


@dataclass(frozen=True, eq=False)
class _Draft:
    """A record before its constants have an offset, and the graph node it comes from."""

    kind: Kind
    fields: dict[str, int]
    constants: tuple[npt.NDArray[Any], ...] = ()
    parts: tuple[tuple[int, int], ...] = ()


def to_blob(graph: Graph, profile: Profile) -> bytes:
    """The canonical blob of `graph` under `profile`."""
    return build(graph, profile).data


def blob_digest(graph: Graph, profile: Profile) -> str:
    """SHA-256 (hex) of the canonical blob."""
    return build(graph, profile).digest


def op_nodes(graph: Graph) -> tuple[int, ...]:
    """The graph node that each record of the blob comes from, in record order."""
    boundary = ops.Reshape | ops.Quantize | ops.Dequantize
    return tuple(i for i, node in enumerate(graph.nodes) if not isinstance(node.op, boundary))


def build(graph: Graph, profile: Profile) -> Blob:
    """The canonical blob with its parsed records."""
    program = lower(graph, profile)
    if program.input_tensor.dtype != "int8":
        raise UnsupportedError(
            f"the model's activations are {program.input_tensor.dtype}: the portable C and the firmware compute with int8",
            hint="quantise to int8 for a microcontroller, or run the .tflite itself in a runtime",
        )
    rounding = profile.quantize(program.input_tensor).rounding
    if rounding != "half_away":
        raise UnsupportedError(f"the C runtime quantises half away from zero, the profile {rounding}")
    layout = plan(graph)
    drafts = []
    for index in op_nodes(graph):
        try:
            drafts.append(_draft(program, layout, index))
        except ModelError as error:
            raise type(error)(f"{graph.label(index)}: {error.message}", hint=error.hint) from error
    records, constants = _link(drafts)
    source, target = (_tensor(program, value) for value in (program.input, program.output))
    start, end = layout.offsets[source[0]], layout.offsets[target[0]]
    words = HEADER_WORDS + len(records) // 4 + len(constants) // 4
    header = {
        "magic": MAGIC,
        "version": VERSION,
        "words": words,
        "ops": len(drafts),
        "arithmetic": ARITHMETIC_TFLM,
        "arena": layout.arena_bytes,
        "in": _offset(start),
        "in_bytes": source[1].size,
        "out": _offset(end),
        "out_bytes": target[1].size,
        "in_scale": _bits(source[1].scale),
        "in_zero": source[1].zero_point,
        "out_scale": _bits(target[1].scale),
        "out_zero": target[1].zero_point,
        "constants": HEADER_WORDS + len(records) // 4,
        "reserved": 0,
    }
    if max(4 * words, layout.arena_bytes) > MAX_BYTES:
        raise UnsupportedError(f"{4 * words} bytes of constants and {layout.arena_bytes} of arena, at most {MAX_BYTES}")
    return parse(_words([header[name] for name in HEADER]) + records + constants)


def _tensor(program: Program, value: int) -> tuple[int, Tensor]:
    index = program.values[value].tensor
    if index is None:
        raise InternalError("a program's input and output are tensors of its graph")
    return index, program.graph.tensors[index]


def _link(drafts: Sequence[_Draft]) -> tuple[bytes, bytes]:
    """(records, constants) with every constant's word offset filled in."""
    lengths = [len(COMMON) + len(RECORDS[d.kind]) + 2 * len(d.parts) for d in drafts]
    at = HEADER_WORDS + sum(lengths)
    records, constants = [], []
    for draft, length in zip(drafts, lengths, strict=True):
        fields = draft.fields | {"kind": int(draft.kind), "words": length}
        for name, array in zip(CONSTANTS.get(draft.kind, ()), draft.constants, strict=True):
            raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
            raw += bytes(-len(raw) % 4)
            constants.append(raw)
            fields[name] = at
            at += len(raw) // 4
        names = (*COMMON, *RECORDS[draft.kind])
        if set(fields) != set(names):
            raise InternalError(f"{draft.kind.name}: fields {sorted(set(fields) ^ set(names))} missing or unknown")
        records.append(_words([*(fields[n] for n in names), *(v for part in draft.parts for v in part)]))
    return b"".join(records), b"".join(constants)


def _words(values: Sequence[int]) -> bytes:
    try:
        return struct.pack(f"<{len(values)}i", *values)
    except struct.error as error:
        raise UnsupportedError(f"a parameter does not fit 32 bits: {max(values, key=abs)}") from error


def _bits(scale: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", scale))[0])


def _offset(value: int | None) -> int:
    if value is None:
        raise InternalError("a tensor of the integer core has no place in the arena")
    return value


def _draft(program: Program, layout: Plan, index: int) -> _Draft:
    """The record of graph node `index`."""
    graph = program.graph
    node = graph.nodes[index]
    steps = [step.atom for step in program.steps if step.node == index]
    x, out = graph.tensors[node.inputs[0]], graph.tensors[node.output]
    if any(i in graph.constants for i in node.inputs):
        raise UnsupportedError("the C runtime has no constant operands besides weights and biases")
    places = [_offset(layout.offsets[i]) for i in node.inputs]
    common = {"out": _offset(layout.offsets[node.output]), "out_bytes": out.size, "in": places[0]}
    match node.op:
        case ops.Conv2d() | ops.DepthwiseConv2d() as op:
            return _affine(op, steps, x, out, common | {"scratch": layout.scratch[index]})
        case ops.Dense() as op:
            if op.weight.shape[1] != x.size:
                raise UnsupportedError("the C runtime's dense layers have one row")
            return _affine(op, steps, x, out, common)
        case ops.Add():
            if any(graph.tensors[i].shape != out.shape for i in node.inputs):
                raise UnsupportedError("the C runtime adds tensors of one shape only")
            return _Draft(Kind.ADD, common | {"in2": places[1]} | _add(steps))
        case ops.AvgPool() | ops.MaxPool() as op:
            return _pool(op, steps, x, out, common)
        case ops.Mean(axes) | ops.Sum(axes):
            return _Draft(Kind.MEAN, common | _mean(steps, x, axes))
        case ops.Pad(pads):
            return _Draft(Kind.PAD, common | _pad(x.shape, pads) | {"value": out.zero_point})
        case ops.Concat(axis):
            chunks = [int(np.prod(graph.tensors[i].shape[axis:], dtype=np.int64)) for i in node.inputs]
            parts = tuple(zip(places, chunks, strict=True))
            outer = int(np.prod(x.shape[:axis], dtype=np.int64))
            return _Draft(Kind.CONCAT, common | {"outer": outer, "inputs": len(parts)}, parts=parts)
        case ops.Relu() | ops.Relu6() | ops.Requantize():
            return _Draft(Kind.REQUANTIZE, common | _requantize(steps))
        case ops.Softmax():
            return _softmax(steps, x, common)
        case ops.Sub() | ops.Mul() | ops.LeakyRelu() | ops.HardSwish() | ops.Logistic() | ops.Tanh():
            raise UnsupportedError("the C runtime has no kernel for it")
        case ops.Maximum() | ops.Minimum():
            raise UnsupportedError("the C runtime has no kernel for it")
        case ops.Transpose() | ops.Slice() | ops.ResizeNearest() | ops.ResizeBilinear() | ops.TransposeConv2d():
            raise UnsupportedError("the C runtime has no kernel for it")
        case ops.Reshape() | ops.Quantize() | ops.Dequantize():
            raise InternalError(f"{graph.label(index)} has no record")
        case _:
            assert_never(node.op)


def _monotone(atom: Atom, rule: type[Rule]) -> Rule:
    """The rule of a Monotone atom, which must be of the class that the runtime has."""
    if not isinstance(atom, Monotone) or not isinstance(atom.rule, rule):
        raise UnsupportedError(f"the C runtime has no rule {type(getattr(atom, 'rule', atom)).__name__} here")
    return atom.rule


def _family_d(rule: Requantise, reach: npt.ArrayLike) -> Requantise:
    """`rule` if the runtime can execute it on every |x - input_zero_point| <= reach (int64, per output or one in all).

    The condition |x| * 2^max(s, 0) + 128 < 2^31 also covers the added zero point, since SRDHM never grows its argument.
    """
    if rule.family != "D":
        raise UnsupportedError(f"the C runtime requantises by double rounding, the profile by family {rule.family!r}")
    if not ((rule.multiplier >= 0).all() and (rule.multiplier <= INT32_MAX).all()):
        raise InternalError("a multiplier outside [0, 2^31)")
    if not ((rule.shift >= -31).all() and (rule.shift <= 30).all()):
        raise InternalError("a shift outside [-31, 30]")
    _no_overflow(np.asarray(reach, np.int64).astype(object) * 2 ** np.maximum(rule.shift, 0).astype(object))
    return rule


def _no_overflow(reach: npt.ArrayLike) -> None:
    worst = int(np.max(np.asarray(reach, object)))
    if worst + 128 > INT32_MAX:
        raise ModelError(f"an accumulator can reach {worst}, beyond int32", hint="smaller weights or biases")


def _affine(
    op: ops.Conv2d | ops.DepthwiseConv2d | ops.Dense,
    steps: Sequence[Atom],
    x: Tensor,
    out: Tensor,
    common: dict[str, int],
) -> _Draft:
    affine, last = steps
    if not isinstance(affine, Affine) or affine.input_offset != -x.zero_point:
        raise UnsupportedError("the C runtime accumulates w * (x - z_in) + b")
    axes = (0, 1) if isinstance(op, ops.DepthwiseConv2d) else tuple(range(1, op.weight.ndim))
    weight = op.weight.astype(np.int64)
    bias = affine.bias - x.zero_point * weight.sum(axes)
    rule = _family_d(_monotone(last, Requantise), np.abs(bias) + 128 * np.abs(weight).sum(axes))
    clamp = {"zero_out": rule.zero_point, "lo": rule.lo, "hi": rule.hi}
    constants = (_stored(op), bias.astype(np.int32), rule.multiplier.astype(np.int32), rule.shift.astype(np.int8))
    if isinstance(op, ops.Dense):
        sizes = {"in_n": op.weight.shape[1], "out_n": op.weight.shape[0], "per_channel": int(rule.multiplier.size > 1)}
        return _Draft(_kind(Kind.DENSE, op), common | sizes | clamp, constants)
    depthwise = isinstance(op, ops.DepthwiseConv2d)
    kernel = op.weight.shape[0:2] if depthwise else op.weight.shape[1:3]
    group_in = 1 if depthwise else op.weight.shape[3]
    groups = x.shape[2] // group_in
    fields = {
        **_sizes(x, out),
        "in_c": x.shape[2],
        "out_c": out.shape[2],
        **_window(kernel, op.stride, op.padding),
        # A kernel of one tap has no dilation: one meaning, one spelling.
        "dilation_h": op.dilation[0] if kernel[0] > 1 else 1,
        "dilation_w": op.dilation[1] if kernel[1] > 1 else 1,
        "group_in": group_in,
        "group_out": out.shape[2] // groups,
        "zero_in": x.zero_point,
    }
    kind = Kind.DEPTHWISE_CONV2D if depthwise else Kind.CONV2D
    return _Draft(_kind(kind, op), common | fields | clamp, constants)


def _kind(kind: Kind, op: ops.Conv2d | ops.DepthwiseConv2d | ops.Dense) -> Kind:
    return PACKED[kind] if op.weight_bits == 4 else kind


def _stored(op: ops.Conv2d | ops.DepthwiseConv2d | ops.Dense) -> npt.NDArray[Any]:
    """The weight as the blob has it."""
    if op.weight_bits == 8:
        return op.weight
    row = op.weight.shape[-1] if isinstance(op, ops.DepthwiseConv2d) else op.weight[0].size
    return pack_nibbles(op.weight.reshape(-1, row))


def _sizes(x: Tensor, out: Tensor) -> dict[str, int]:
    return {"in_h": x.shape[0], "in_w": x.shape[1], "out_h": out.shape[0], "out_w": out.shape[1]}


def _window(kernel: Sequence[int], stride: tuple[int, int], padding: ops.Padding2d) -> dict[str, int]:
    fields = {
        "kernel_h": kernel[0],
        "kernel_w": kernel[1],
        "stride_h": stride[0],
        "stride_w": stride[1],
        "pad_top": padding.top,
        "pad_left": padding.left,
    }
    if max(fields.values()) > MAX_BYTES:
        raise UnsupportedError(f"kernel {tuple(kernel)}, stride {stride}, padding {padding}: too large for 32 bits")
    return fields


def _add(steps: Sequence[Atom]) -> dict[str, int]:
    (atom,) = steps
    if not isinstance(atom, Isotone) or not isinstance(atom.rule, AddRule) or atom.rule.family != "D":
        raise UnsupportedError("the C runtime has no such ADD")
    rule = atom.rule
    if not (0 <= rule.left_shift <= 20 and max(*rule.shifts, rule.output_shift) <= 0):
        raise UnsupportedError(f"ADD with shifts {rule.shifts}, {rule.output_shift}: expected none above 0")
    return {
        "left": rule.left_shift,
        "zero1": rule.zero_points[0],
        "multiplier1": rule.multipliers[0],
        "shift1": rule.shifts[0],
        "zero2": rule.zero_points[1],
        "multiplier2": rule.multipliers[1],
        "shift2": rule.shifts[1],
        "multiplier": rule.output_multiplier,
        "shift": rule.output_shift,
        "zero_out": rule.zero_point,
        "lo": rule.lo,
        "hi": rule.hi,
    }


def _pool(
    op: ops.AvgPool | ops.MaxPool, steps: Sequence[Atom], x: Tensor, out: Tensor, common: dict[str, int]
) -> _Draft:
    lo, hi = INT8_MIN, INT8_MAX
    if isinstance(op, ops.AvgPool):
        divide = _monotone(steps[-1], RoundDivide)
        lo, hi = divide.lo, divide.hi
        _no_overflow(129 * op.kernel[0] * op.kernel[1])
    elif len(steps) == 2:
        clamp = _monotone(steps[-1], Clamp)
        lo, hi = clamp.lo, clamp.hi
    fields = {**_sizes(x, out), "channels": x.shape[2], **_window(op.kernel, op.stride, op.padding), "lo": lo, "hi": hi}
    return _Draft(Kind.AVG_POOL if isinstance(op, ops.AvgPool) else Kind.MAX_POOL, common | fields)


def _mean(steps: Sequence[Atom], x: Tensor, axes: tuple[int, ...]) -> dict[str, int]:
    """Neighbouring kept and neighbouring summed axes merge; the runtime has kept, summed, kept, summed, kept."""
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    rule = _family_d(_monotone(steps[-1], Requantise), 256 * count)
    if rule.input_zero_point != x.zero_point * count or (rule.lo, rule.hi) != (INT8_MIN, INT8_MAX):
        raise UnsupportedError("the C runtime has no such MEAN")
    merged = [1]
    for axis, size in enumerate(x.shape):
        # merged[k] holds kept axes for even k, summed ones for odd k.
        if (axis in axes) != (len(merged) % 2 == 0):
            merged.append(1)
        merged[-1] *= size
    if len(merged) > 5:
        raise UnsupportedError(f"MEAN over axes {axes} of a sample of shape {x.shape}: more than two groups of axes")
    merged += [1] * (5 - len(merged))
    sizes = dict(zip(("kept0", "summed0", "kept1", "summed1", "kept2"), merged, strict=True))
    return sizes | {
        "zero_in": x.zero_point,
        "multiplier": int(rule.multiplier[0]),
        "shift": int(rule.shift[0]),
        "zero_out": rule.zero_point,
    }


def _pad(shape: tuple[int, ...], pads: tuple[tuple[int, int], ...]) -> dict[str, int]:
    """Axes without padding merge into the axis before them; the runtime has three."""
    axes: list[tuple[int, tuple[int, int]]] = []
    for size, pad in zip(shape, pads, strict=True):
        if axes and pad == (0, 0):
            last, (before, after) = axes[-1]
            axes[-1] = last * size, (before * size, after * size)
        else:
            axes.append((size, pad))
    if len(axes) > 3:
        raise UnsupportedError(f"PAD along more than three axes: {pads}")
    axes = [(1, (0, 0))] * (3 - len(axes)) + axes
    fields = {f"in_{k}": size for k, (size, _) in enumerate(axes)}
    return fields | {
        f"{side}_{k}": pad[i] for k, (_, pad) in enumerate(axes) for i, side in enumerate(("before", "after"))
    }


def _requantize(steps: Sequence[Atom]) -> dict[str, int]:
    (atom,) = steps
    if isinstance(atom, Monotone) and isinstance(atom.rule, Clamp):
        # D(x; 2^30, 1) = floor((2x * 2^30 + 2^30) / 2^31) = x: a clamp alone is a requantisation by one.
        rule = Requantise("D", np.array([1 << 30]), np.array([1]), 0, atom.rule.lo, atom.rule.hi)
    else:
        rule = _monotone(atom, Requantise)
    _family_d(rule, 255)
    return {
        "zero_in": rule.input_zero_point,
        "multiplier": int(rule.multiplier[0]),
        "shift": int(rule.shift[0]),
        "zero_out": rule.zero_point,
        "lo": rule.lo,
        "hi": rule.hi,
    }


def _softmax(steps: Sequence[Atom], x: Tensor, common: dict[str, int]) -> _Draft:
    (atom,) = steps
    if not isinstance(atom, Softmax) or not isinstance(atom.rule, SoftmaxRule):
        raise UnsupportedError("the C runtime has no such SOFTMAX")
    depth = x.shape[-1]
    if depth > MAX_SOFTMAX_DEPTH:
        raise UnsupportedError(f"SOFTMAX over {depth} elements, at most {MAX_SOFTMAX_DEPTH}")
    # exponentials[255 - k] is exp of the difference -k; what is left out at the end contributes nothing.
    table = atom.rule.exponentials[::-1]
    table = table[: int(np.flatnonzero(table)[-1]) + 1]
    fields = {"rows": x.size // depth, "depth": depth, "entries": len(table)}
    return _Draft(Kind.SOFTMAX, common | fields, (table.astype(np.int32),))
