"""A small certified network, firmware that holds it, and the schema that every certificate has to meet."""

from __future__ import annotations

import functools
import json
import struct
from typing import Any

import numpy as np

from cactus_edge.formats.c.blob import to_blob
from cactus_edge.formats.c.certified import TFLITE
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.resources import SCHEMAS, schema
from cactus_edge.verify.certificate import certify_file
from cactus_edge.verify.recheck import recheck as verify_recheck

TFLM = profile("tflm")


def network(bias: int = 0) -> Graph:
    """6 inputs in [0, 1], 8 hidden elements, 3 classes."""
    rng = np.random.default_rng(3)
    build = GraphBuilder()
    last = build.input(Tensor("x", (6,), "int8", float(np.float32(1 / 255)), -128))
    for name, inputs, outputs in (("hidden", 6, 8), ("logits", 8, 3)):
        op = ops.Dense(
            ops.freeze(rng.integers(-127, 128, (outputs, inputs)), np.int8),
            ops.freeze(np.full(outputs, bias), np.int32),
            ops.freeze(np.array([0.003], np.float32), np.float32),
        )
        last = build.node(op, [last], Tensor(name, (outputs,), "int8", float(np.float32(1 / 255)), -10))
    return build.finish(last)


GRAPH = network()
MODEL = write_tflite(GRAPH, metadata={})
BLOB = to_blob(GRAPH, TFLM)
X = np.random.default_rng(0).random((40, 6)).astype(np.float32)
Y = evaluate(GRAPH, TFLM.quantize(GRAPH.input).apply(X), TFLM).argmax(1)
Y[0] = (Y[0] + 1) % 3


def elf(loaded: bytes, trailing: bytes = b"") -> bytes:
    """A minimal ARM executable with one loadable segment, and bytes after it that no loader reads."""
    header = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01" + bytes(9), 2, 40, 1, 0x8001, 52, 0, 0, 52, 32, 1, 0, 0, 0
    )
    segment = struct.pack("<8I", 1, 84, 0x8000, 0x8000, len(loaded), len(loaded), 5, 4)
    return header + segment + loaded + trailing


def issue(**changes: Any) -> bytes:
    """A certificate of MODEL around X."""
    options: dict[str, Any] = {"eps": "1/64", "domain": (0, 1), "profile": "tflm", "unit": "pixel", "created": "then"}
    return certify_file(MODEL, X, Y, **({"form": TFLITE} | options | changes)).to_bytes()


recheck = functools.partial(verify_recheck, formats=(TFLITE,))
"""With the image of firmware, as the verb has it."""


@functools.cache
def validator(name: str) -> Any:
    """The validator of a published schema, which may refer to the others."""
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource

    known = {n: json.loads(schema(n)) for n in SCHEMAS}
    registry = Registry().with_resources((body["$id"], Resource.from_contents(body)) for body in known.values())
    Draft202012Validator.check_schema(known[name])
    return Draft202012Validator(known[name], registry=registry)


def violations(record: Any, name: str = "certificate") -> list[str]:
    """Where a record breaks a schema."""
    return [f"{error.json_path}: {error.message[:200]}" for error in validator(name).iter_errors(record)]
