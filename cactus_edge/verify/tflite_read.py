"""Bytes of a .tflite file -> graph. Trusted: a certificate is about what this module says the file contains.

Read it with `flatbuffer` (bytes), `tflite_tensors`, `tflite_ops` and the tables of `tflite_schema`; nothing else takes
part. Everything the file claims is checked before it is used, and nothing is dropped: a construct that has no counterpart
in the graph is refused by name. Ignored are only fields from which no int8 runtime derives a value: names, descriptions,
signatures, min/max ranges and operator versions (no reader has to trust them).
Source of the rules: tensorflow/lite/schema/schema.fbs and the Prepare functions under tensorflow/lite/kernels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir.graph import Graph, Node
from cactus_edge.ir.spec import check
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify.flatbuffer import Reader, Table
from cactus_edge.verify.tflite_ops import read_nodes
from cactus_edge.verify.tflite_tensors import Tensors, indices, refuse

MAX_OPERATORS = 2048
"""Operators of one file: a few bytes each could otherwise cost a thousand times their size in memory, and minutes."""

MAX_NODES = 2 * MAX_OPERATORS
"""Ops of the graph, several of which one operator may be."""


@dataclass(frozen=True)
class Model:
    """A file's graph, its metadata buffers by name, the SHA-256 (hex) of its bytes, and the file's index of each graph tensor.

    An index of -1: the file has no such tensor. unsigned_input, unsigned_output: its codes are uint8, 128 above the graph's.
    resolved: the first thing that a runtime has to find out for itself; left: the first operator that a delegate leaves to other
    kernels, though not for what the graph says of it; both in words (`tflite_tensors.Tensors`).
    """

    graph: Graph
    metadata: dict[str, bytes]
    sha256: str
    file_tensors: tuple[int, ...]
    unsigned_input: bool = False
    unsigned_output: bool = False
    resolved: str | None = None
    left: str | None = None


def read_tflite(data: bytes) -> Model:
    """The int8 network in the bytes of a .tflite file: its input first, then per operator its constant operands and outputs, a
    node for each output.

    Raises ModelError where the bytes are malformed or contradict themselves, UnsupportedError (a ModelError) where they
    are well-formed and use what the graph cannot express; no other exception, whatever the bytes.
    """
    model = _open(data)
    subgraphs = model.tables(fb.Model.SUBGRAPHS, fb.SubGraph, "subgraph")
    if len(subgraphs) != 1:
        raise UnsupportedError(f"the model has {len(subgraphs)} subgraphs, expected 1: control flow is not supported")
    subgraph = subgraphs[0]
    codes = model.tables(fb.Model.OPERATOR_CODES, fb.OperatorCode, "operator code")
    operators = subgraph.tables(fb.SubGraph.OPERATORS, fb.Operator, "operator")
    if len(operators) > MAX_OPERATORS:
        raise UnsupportedError(f"the model has {len(operators)} operators, at most {MAX_OPERATORS} are supported")
    tensors = Tensors(
        subgraph.tables(fb.SubGraph.TENSORS, fb.Tensor, "tensor"), model.tables(fb.Model.BUFFERS, fb.Buffer, "buffer")
    )
    inputs = tuple(
        tensors.define(i, "the graph's input", unsigned=tensors.type_name(i) == "UINT8")
        for i in indices(subgraph, fb.SubGraph.INPUTS)
    )
    nodes: list[Node] = []
    for i in range(len(operators)):
        nodes += read_nodes(tensors, codes, operators[i], i)
        if len(nodes) > MAX_NODES:
            raise UnsupportedError(f"the model is more than {MAX_NODES} ops of the graph from operator {i} on")
    outputs = tuple(tensors.use(i, "the graph's output") for i in indices(subgraph, fb.SubGraph.OUTPUTS))
    for end in (*inputs, *outputs):
        if end in tensors.whole:
            raise UnsupportedError(f"{tensors.activations[end].name!r} has a first (batch) axis other than 1")
    if not tensors.unsigned <= {*inputs, *outputs}:
        raise UnsupportedError("uint8 codes inside the model; only its input and output may hold them")
    # Some converters ask the float image of a tensor for its shape; nothing computes with it.
    read = {*outputs, *(i for node in nodes for i in node.inputs)}
    nodes = [n for n in nodes if n.output in read or n.output not in tensors.measured]
    graph = Graph(tuple(tensors.activations), tuple(nodes), inputs, outputs, tensors.constants)
    check(graph)
    return Model(
        graph,
        _metadata(model, tensors),
        hashlib.sha256(data).hexdigest(),
        tuple(tensors.file_index),
        inputs[0] in tensors.unsigned,
        outputs[0] in tensors.unsigned,
        tensors.resolved,
        tensors.left,
    )


def _open(data: bytes) -> Table:
    reader = Reader(data)
    root = reader.follow(0, "the model")
    reader.claim(4, 4, "the file identifier")
    if data[4:8] != fb.IDENTIFIER:
        raise ModelError(
            f"not a .tflite file: expected the identifier {fb.IDENTIFIER!r} at byte 4, got {data[4:8]!r}",
            hint="give the .tflite file itself, not an archive or a saved model",
        )
    model = Table(reader, root, fb.Model, "the model")
    version = model.number(fb.Model.VERSION, "I", 0)
    if version != fb.VERSION:
        raise UnsupportedError(f"schema version {version}, expected {fb.VERSION}")
    refuse(model, fb.Model.EXTERNAL_BUFFERS, fb.Model.EXTERNAL_BUFFER_GROUPS)
    return model


def _metadata(model: Table, tensors: Tensors) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    entries = model.tables(fb.Model.METADATA, fb.Metadata, "metadata entry")
    for i in range(len(entries)):
        name = entries[i].text(fb.Metadata.NAME)
        if name in found:
            raise ModelError(f"malformed .tflite: metadata entry {i}: expected a name of its own, got {name!r} again")
        found[name] = tensors.buffer(entries[i].number(fb.Metadata.BUFFER, "I", 0)).tobytes()
    return found
