"""Bytes of a QDQ ONNX file -> graph, images turned to channel last.

Read are files of one float input and one float output in QDQ form (`nodes`) or QOperator form (`qoperator`), with
int8 or uint8 activations, int8 weights and int32 biases, as ONNX Runtime's `quantize_static` and `write_onnx` write them.
uint8 codes become int8 codes and zero points less 128, which are the same real numbers. What has no counterpart in the graph,
above all a result that is never rounded to int8, is refused by the node's name and index. Ignored are only names of
producers, documentation and the shapes stated for intermediate values.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx.read.layout import as_image, keeps_order
from cactus_edge.formats.onnx.read.nodes import READ
from cactus_edge.formats.onnx.read.proto import FLOAT, constants, parse
from cactus_edge.formats.onnx.read.qoperator import ON_CODES
from cactus_edge.formats.onnx.read.values import Codes, Network, Operator, Pending, Real, Source, Value
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.spec import check


@dataclass(frozen=True)
class OnnxModel:
    """A file's graph, its metadata by name, the SHA-256 (hex) of its bytes, and the file's name of each graph tensor.

    The file's images are [N, C, H, W], the graph's (H, W, C). uint8: tensors whose codes are uint8 in the file, 128 above the
    graph's. shifted: a weight is uint8, or has a zero point. rounded: a
    float32 bias of the file is not exactly the int32 one of the graph, which is what ONNX Runtime makes of it. A tensor that
    is in the graph alone has no name. `file_tensors` are graph indices, for `formats.agree`.
    """

    graph: Graph
    metadata: dict[str, bytes]
    sha256: str
    names: tuple[str, ...]
    uint8: frozenset[int]
    shifted: bool
    rounded: bool

    @property
    def unsigned(self) -> bool:
        """Whether any of the file's codes are uint8."""
        return bool(self.uint8)

    @property
    def signed(self) -> bool:
        """Whether any of the file's codes are int8."""
        named = (i for i, name in enumerate(self.names) if name and self.graph.tensors[i].dtype == "int8")
        return not self.uint8.issuperset(named)

    @property
    def file_tensors(self) -> tuple[int, ...]:
        """The index under which a session knows each graph tensor: its own."""
        return tuple(range(len(self.names)))


def read_onnx(data: bytes) -> OnnxModel:
    """The int8 network in the bytes of an ONNX file: float input, QUANTIZE, one node per operator, DEQUANTIZE, float output.

    Raises ModelError where the bytes are malformed or contradict themselves, UnsupportedError (a ModelError) where they
    are well-formed and use what the graph cannot express or name data outside the file.
    """
    model = parse(data)
    g = model.graph
    known = constants(g.initializer)
    if len(g.input) != 1 or len(g.output) != 1:
        raise UnsupportedError(
            f"the ONNX graph has {len(g.input)} inputs and {len(g.output)} outputs, expected one of each"
        )
    uses = Counter(name for node in g.node for name in node.input)
    source, end = g.input[0].name, g.output[0].name
    uses[end] += 1
    net = Network(known, uses)
    shape = _input_shape(g.input[0])
    net.single = g.input[0].type.tensor_type.shape.dim[0].has("dim_value")
    net.tensor(Tensor(source, shape, "float32"), as_image(shape))
    net.define(source, Source(), "the graph's input")
    for index, node in enumerate(g.node):
        _read_node(Operator(net, node, index))
    net.settle(end)
    last = net.values.get(end)
    if not isinstance(last, Real):
        raise _float_end(end, last)
    out = net.tensors[last.tensor]
    if len(out.shape) == 1 and not keeps_order(net.images[last.tensor]):
        raise UnsupportedError(f"the output {end!r} is a flattened image in channel-first order")
    _check_output(g.output[0], out.shape)
    net.tensors.append(Tensor(end, out.shape, "float32"))
    net.nodes.append(Node(ops.Dequantize(), (last.tensor,), len(net.tensors) - 1))
    graph = Graph(tuple(net.tensors), tuple(net.nodes), (0,), (len(net.tensors) - 1,))
    check(graph)
    names = tuple(t.name for t in net.tensors)
    return OnnxModel(
        graph, _metadata(model), hashlib.sha256(data).hexdigest(), names, frozenset(net.uint8), net.shifted, net.rounded
    )


def _float_end(name: str, last: Value | None) -> UnsupportedError:
    """Why a file whose output is `last` has no integer network."""
    if isinstance(last, Pending):
        return UnsupportedError(
            f"the output {name!r} is the float32 result of the last {type(last.op).__name__}, never rounded to codes: a float "
            "island at the end",
            hint=_END
            if isinstance(last.op, ops.Softmax)
            else "quantise the output as well; NNCF does with quantize_outputs=True, on a model that ends in an Identity",
        )
    return UnsupportedError(
        f"the output {name!r} is not the result of a DequantizeLinear on int8 codes",
        hint="an int8 or float output leaves the last layer in float in ONNX Runtime",
    )


QUANTISING = ("QuantizeLinear", "DequantizeLinear")
"""Operators that domain com.microsoft has as well, for codes of 16 and 4 bits, and the same for those of 8 bits."""

FLOAT_THERE = {
    "ReduceMean": "sums in float, in an order of its own",
    "HardSigmoid": "computes in float",
    "Sub": "computes in float",
    "LogSoftmax": "computes in float",
    "ConvInteger": "rescales in float",
    "MatMulInteger": "rescales in float",
    "DynamicQuantizeLinear": "computes from each input anew",
}
"""Operators that people quantise, and why no integer op means what they compute."""

_END = "if it is the last operator, leave it out: the order of the classes is that of its input"

INSTEAD = {
    "ReduceMean": "GlobalAveragePool says the same of an image, in integers",
    "BatchNormalization": "fold it into the convolution: onnxruntime.quantization.shape_inference.quant_pre_process does",
    "LogSoftmax": _END,
    "ArgMax": _END,
}
"""What a user can do instead."""


def _read_node(o: Operator) -> None:
    """Adds one node to the network. Raises UnsupportedError or ModelError, naming it."""
    on_codes = ON_CODES.get((o.domain, o.kind))
    if on_codes is not None and (o.kind not in READ or (o.inputs and isinstance(o.value(0), Codes))):
        value: Value | None = on_codes(o)
    elif o.kind in READ and o.domain in ("", *(("com.microsoft",) if o.kind in QUANTISING else ())):
        value = READ[o.kind](o)
    else:
        why = FLOAT_THERE.get(o.kind, "")
        message = f"{o.what}: the operator {o.kind}{why and f', which ONNX Runtime {why},'} is not supported"
        raise UnsupportedError(message, hint=INSTEAD.get(o.kind, ""))
    o.attributes.finish()
    if value is not None:
        o.net.define(o.outputs[0], value, o.what)


def _input_shape(value: Any) -> tuple[int, ...]:
    """One sample's shape, channel last, of the graph's float input."""
    where = f"the input {value.name!r}"
    dims = _float_dims(value, where)
    if len(dims) not in (2, 4):
        raise UnsupportedError(f"{where} has {len(dims)} axes, expected [N, features] or [N, channels, height, width]")
    if dims[0].has("dim_value") and dims[0].dim_value != 1:
        raise UnsupportedError(f"{where} has a fixed batch of {dims[0].dim_value}, expected 1 or a symbolic one")
    if not all(d.has("dim_value") and d.dim_value > 0 for d in dims[1:]):
        raise UnsupportedError(f"{where} has symbolic or empty axes besides the batch")
    sizes = tuple(int(d.dim_value) for d in dims[1:])
    return (sizes[1], sizes[2], sizes[0]) if len(sizes) == 3 else sizes


def _check_output(value: Any, shape: tuple[int, ...]) -> None:
    """Raises ModelError where the sizes that the output states contradict `shape`, channel last."""
    stored = (shape[2], shape[0], shape[1]) if len(shape) == 3 else shape
    dims = _float_dims(value, f"the output {value.name!r}")
    if not value.type.tensor_type.has("shape"):
        return
    stated = [int(d.dim_value) if d.has("dim_value") else None for d in dims]
    if len(stated) != len(stored) + 1 or any(s not in (None, n) for s, n in zip(stated[1:], stored, strict=True)):
        raise ModelError(f"malformed ONNX: the output states shape {stated}, the nodes give [N, *{stored}]")


def _float_dims(value: Any, where: str) -> list[Any]:
    if not value.type.has("tensor_type") or value.type.tensor_type.elem_type != FLOAT:
        raise UnsupportedError(
            f"{where} is not a float32 tensor: with int8 ends ONNX Runtime leaves the first and the last layer in float"
        )
    return list(value.type.tensor_type.shape.dim)


def _metadata(model: Any) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in model.metadata_props:
        name = entry.key
        if name in found:
            raise ModelError(f"malformed ONNX: metadata {name!r} twice")
        found[name] = entry.value.encode()
    return found
