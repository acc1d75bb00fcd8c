"""Graph -> bytes of a .tflite file, and the way back (the trusted reader, re-exported).

What the format cannot say is first rewritten (`explicit_padding`); then reading the written bytes gives a graph with the
same digest. The bytes are a function of graph and metadata alone. Operator versions are the oldest that mean what is
written, so that an older runtime refuses a file instead of computing something else.
Source: tensorflow/lite/schema/schema.fbs; versions from tensorflow/lite/tools/versioning/{op,runtime}_version.cc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InstallError, UnsupportedError
from cactus_edge.formats.nibbles import pack_nibbles
from cactus_edge.formats.tflite_form import Builtin, explicit_padding, operator_for, padding_name, transposed_padding
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.spec import check
from cactus_edge.verify.tflite_read import Model, read_tflite
from cactus_edge.version import __version__

__all__ = ["Model", "explicit_padding", "read_tflite", "write_tflite"]

ALIGNMENT = 16
"""schema.fbs: `data:[ubyte] (force_align: 16)`. Runtimes read weights in place, with vector loads."""

FUSING = (
    ops.Conv2d
    | ops.DepthwiseConv2d
    | ops.TransposeConv2d
    | ops.AvgPool
    | ops.MaxPool
    | ops.Dense
    | ops.Add
    | ops.Sub
    | ops.Mul
)
"""Ops with a fused activation."""

RUNTIME_METADATA = "min_runtime_version"
"""The metadata entry in which runtimes look for the oldest version that can run the file; 16 bytes, NUL-padded."""

CONVERSION_METADATA = "CONVERSION_METADATA"
"""The entry in which TensorFlow's converter says, in a FlatBuffer of its own, how it made the file."""


def write_tflite(graph: Graph, *, metadata: Mapping[str, bytes] | None = None) -> bytes:
    """The .tflite file that means `graph`, carrying `metadata` (name -> bytes); `read_tflite` gives both back.

    read_tflite(write_tflite(g)).graph.digest() == explicit_padding(g).digest(). Deterministic. Raises ModelError for an
    illegal graph, UnsupportedError for what .tflite cannot say, InstallError without flatbuffers and the schema.
    """
    check(graph)
    return _Writer(explicit_padding(graph)).file(dict(metadata or {}))


class _Writer:
    """Tables of one file in the schema's Object API, filled in file order."""

    def __init__(self, graph: Graph) -> None:
        try:
            import flatbuffers
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise InstallError(
                f"writing .tflite needs the packages flatbuffers and ai-edge-litert: {error}",
                hint="pip install 'cactus-edge[build]'",
            ) from error
        self.flatbuffers, self.fb = flatbuffers, schema
        self.graph = graph
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [self._buffer_type()()]
        self.codes: list[Builtin] = []

    def file(self, metadata: dict[str, bytes]) -> bytes:
        fb = self.fb
        for index, tensor in enumerate(self.graph.tensors):
            codes = self.graph.constants.get(index)
            self._activation(tensor, b"" if codes is None else codes.tobytes())
        sub = fb.SubGraphT()
        sub.name, sub.tensors = "main", self.tensors
        sub.operators = [self._operator(node) for node in self.graph.nodes]
        sub.inputs, sub.outputs = _vector(self.graph.inputs), _vector(self.graph.outputs)
        oldest = max(code.runtime for code in self.codes)
        metadata.setdefault(RUNTIME_METADATA, ".".join(map(str, oldest)).encode().ljust(16, b"\0"))
        model = fb.ModelT()
        model.version = 3
        model.description = f"cactus-edge {__version__}"
        model.metadata = [self._metadata(name, metadata[name]) for name in sorted(metadata)]
        model.operatorCodes = [self._code(code) for code in self.codes]
        model.subgraphs, model.buffers = [sub], self.buffers
        builder = self.flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _buffer_type(self) -> type[Any]:
        """The schema's BufferT, but with the alignment the schema asks for: the generated Python leaves it out."""
        schema = self.fb

        class AlignedBuffer(schema.BufferT):  # type: ignore[misc, name-defined]
            def Pack(self, builder: Any) -> Any:
                if self.data is None:
                    return super().Pack(builder)
                raw = bytes(self.data)
                builder.StartVector(1, len(raw), ALIGNMENT)
                builder.head -= len(raw)
                builder.Bytes[builder.head : builder.head + len(raw)] = raw
                data = builder.EndVector()
                schema.BufferStart(builder)
                schema.BufferAddData(builder, data)
                return schema.BufferEnd(builder)

        return AlignedBuffer

    def _buffer(self, raw: bytes) -> int:
        """The index of a new buffer with these bytes; 0, the empty buffer, for none."""
        if not raw:
            return 0
        self.buffers.append(self._buffer_type()())
        self.buffers[-1].data = raw
        return len(self.buffers) - 1

    def _tensor(self, name: str, shape: Sequence[int], type_name: str, raw: bytes = b"") -> Any:
        t = self.fb.TensorT()
        t.name, t.shape, t.type = name, _vector(shape), getattr(self.fb.TensorType, type_name)
        t.buffer, t.hasRank = self._buffer(raw), True
        self.tensors.append(t)
        return t

    def _activation(self, tensor: Tensor, raw: bytes) -> None:
        t = self._tensor(tensor.name, (1, *tensor.shape), tensor.dtype.upper(), raw)
        if tensor.dtype != "float32":
            t.quantization = self._quantization([tensor.scale], tensor.zero_point, 0)

    def _quantization(self, scale: npt.ArrayLike, zero_point: int, axis: int) -> Any:
        q = self.fb.QuantizationParametersT()
        q.scale = np.asarray(scale, np.float32)
        q.zeroPoint = np.full(q.scale.size, zero_point, np.int64)
        q.quantizedDimension = axis
        return q

    def _constant(self, name: str, values: npt.NDArray[Any]) -> int:
        type_name = values.dtype.name.upper()
        self._tensor(name, values.shape, type_name, values.astype(values.dtype.newbyteorder("<")).tobytes())
        return len(self.tensors) - 1

    def _weights(self, op: ops.Conv2d | ops.DepthwiseConv2d | ops.TransposeConv2d | ops.Dense, node: Node) -> list[int]:
        """The tensors of weight and bias; S_bias = float32(S_in * S_w)."""
        x, out = self.graph.tensors[node.inputs[0]], self.graph.tensors[node.output]
        depthwise = isinstance(op, ops.DepthwiseConv2d)
        name, codes = f"{out.name}/weight", op.weight[np.newaxis] if depthwise else op.weight
        if not isinstance(op, ops.TransposeConv2d) and op.weight_bits == 4:
            self._tensor(name, codes.shape, "INT4", pack_nibbles(codes.reshape(-1)).tobytes())
            weight = len(self.tensors) - 1
        else:
            weight = self._constant(name, codes)
        self.tensors[weight].quantization = self._quantization(op.weight_scale, 0, 3 if depthwise else 0)
        bias = self._constant(f"{out.name}/bias", op.bias)
        product, limits = x.scale * op.weight_scale.astype(np.float64), np.finfo(np.float32)
        # No runtime computes with the bias's scale; where float32 cannot hold it, none is better than a wrong one.
        if limits.tiny <= product.min() and product.max() <= limits.max:
            self.tensors[bias].quantization = self._quantization(product, 0, 0)
        return [weight, bias]

    def _operator(self, node: Node) -> Any:
        fb, builtin = self.fb, operator_for(self.graph, node)
        if builtin not in self.codes:
            self.codes.append(builtin)
        o = fb.OperatorT()
        o.opcodeIndex = self.codes.index(builtin)
        options = None
        if builtin.options is not None:
            options = getattr(fb, builtin.options + "T")()
            o.builtinOptionsType = getattr(fb.BuiltinOptions, builtin.options)
            o.builtinOptions = options
        own = self._fill(node, options)
        if isinstance(node.op, ops.TransposeConv2d):
            weight, bias, shape = own
            o.inputs = _vector([shape, weight, *node.inputs, bias])
        else:
            o.inputs = _vector([*node.inputs, *own])
        o.outputs = _vector([node.output])
        return o

    def _fill(self, node: Node, options: Any) -> list[int]:
        """Sets the operator's options; the tensors of its constant operands."""
        x, out = self.graph.tensors[node.inputs[0]], self.graph.tensors[node.output]
        op = node.op
        if isinstance(op, ops.Conv2d | ops.DepthwiseConv2d | ops.AvgPool | ops.MaxPool):
            options.padding = getattr(self.fb.Padding, str(padding_name(op, x)))
            options.strideH, options.strideW = op.stride
        if isinstance(op, ops.Conv2d | ops.DepthwiseConv2d):
            options.dilationHFactor, options.dilationWFactor = op.dilation
        if isinstance(op, FUSING):
            options.fusedActivationFunction = getattr(self.fb.ActivationFunctionType, op.activation.name)
        if isinstance(op, ops.Add | ops.Sub) and x.dtype == "int16":
            options.potScaleInt16 = False
        if isinstance(op, ops.Conv2d | ops.Dense) and x.dtype == "int16" and op.bias.dtype == np.int32:
            options.quantizedBiasType = self.fb.TensorType.INT32
        match op:
            case ops.Conv2d():
                return self._weights(op, node)
            case ops.TransposeConv2d():
                options.strideH, options.strideW = op.stride
                # Read back, the same padding follows from the output's shape.
                options.padding = getattr(self.fb.Padding, transposed_padding(op, out))
                return [
                    *self._weights(op, node),
                    self._constant(f"{out.name}/shape", np.array((1, *out.shape), np.int32)),
                ]
            case ops.Dense(weight):
                options.keepNumDims = weight.shape[1] != x.size
                return self._weights(op, node)
            case ops.DepthwiseConv2d():
                options.depthMultiplier = out.shape[2] // x.shape[2]
                return self._weights(op, node)
            case ops.AvgPool(kernel) | ops.MaxPool(kernel):
                options.filterHeight, options.filterWidth = kernel
            case ops.Mean(axes, keep_dims) | ops.Sum(axes, keep_dims):
                options.keepDims = keep_dims
                return [self._constant(f"{out.name}/axes", np.array([a + 1 for a in axes], np.int32))]
            case ops.Pad(pads):
                return [self._constant(f"{out.name}/paddings", np.array([(0, 0), *pads], np.int32))]
            case ops.Concat(axis):
                options.axis = axis + 1
            case ops.Reshape():
                # -1 lets a runtime run several samples at once.
                options.newShape = _vector((-1, *out.shape))
                return [self._constant(f"{out.name}/shape", np.array((-1, *out.shape), np.int32))]
            case ops.Transpose(perm):
                return [self._constant(f"{out.name}/perm", np.array([0, *(a + 1 for a in perm)], np.int32))]
            case ops.Slice() as cut:
                options.shrinkAxisMask = _dropped_axes(cut.size, out.shape) << 1
                last = [b + (n - 1) * s + 1 for b, n, s in zip(cut.begin, cut.size, cut.stride, strict=True)]
                parts = {"begin": (0, *cut.begin), "end": (1, *last), "strides": (1, *cut.stride)}
                return [self._constant(f"{out.name}/{name}", np.array(v, np.int32)) for name, v in parts.items()]
            case ops.ResizeNearest(aligned, centred) | ops.ResizeBilinear(aligned, centred):
                options.alignCorners, options.halfPixelCenters = aligned, centred
                return [self._constant(f"{out.name}/size", np.array(out.shape[:2], np.int32))]
            case ops.LeakyRelu(alpha):
                options.alpha = alpha
            case ops.Softmax(beta):
                if float(np.float32(beta)) != beta:
                    raise UnsupportedError(
                        f"softmax with beta {beta!r}: .tflite stores a float32, which would change it"
                    )
                options.beta = beta
            case ops.Add() | ops.Sub() | ops.Mul() | ops.Relu() | ops.Relu6() | ops.HardSwish() | ops.Logistic():
                pass
            case ops.Tanh() | ops.Maximum() | ops.Minimum() | ops.Requantize() | ops.Quantize() | ops.Dequantize():
                pass
            case _:
                assert_never(op)
        return []

    def _code(self, builtin: Builtin) -> Any:
        code = self.fb.OperatorCodeT()
        code.builtinCode = getattr(self.fb.BuiltinOperator, builtin.name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = builtin.version
        return code

    def _metadata(self, name: str, raw: bytes) -> Any:
        entry = self.fb.MetadataT()
        entry.name, entry.buffer = name, self._buffer(raw)
        return entry


def _dropped_axes(size: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Bit k is set where axis k of a slice of `size`, then of 1 element, is missing in `shape`."""
    mask, kept = 0, list(shape)
    for axis, n in enumerate(size):
        if kept and kept[0] == n:
            kept.pop(0)
        else:
            mask |= 1 << axis
    return mask


def _vector(values: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.asarray(values, np.int32)
