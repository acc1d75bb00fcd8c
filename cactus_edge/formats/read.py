"""A model file's bytes -> its integer graph, whatever its format: told by the bytes, never by the file's name."""

from __future__ import annotations

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx.read.model import OnnxModel, read_onnx
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.profile import UINT8, Profile
from cactus_edge.verify import read
from cactus_edge.verify.read import format_of, require_format
from cactus_edge.verify.tflite_read import Model, read_tflite

AnyModel = Model | OnnxModel
"""What a reader gives: `graph`, `metadata`, `sha256`, `file_tensors`."""


def read_model(data: bytes) -> AnyModel:
    """The model in `data`. Raises ModelError or UnsupportedError as the format's reader does."""
    return read_tflite(data) if format_of(data) == "tflite" else read_onnx(data)


def read_for(data: bytes, profile: Profile) -> Graph:
    """The graph that `profile`'s runtime reads from `data`. Raises UnsupportedError where it was not shown to."""
    require_format(data, profile)
    return graph_for(read_model(data), profile)


def graph_for(model: AnyModel, profile: Profile) -> Graph:
    """The graph of a file of the profile's format. Raises UnsupportedError where its runtime was not shown to read that from it."""
    if isinstance(model, Model):
        return read.graph_for(model, profile)
    rule, *alone = profile.rules.get(UINT8, ("",))
    for refused, what in (
        (model.unsigned and not rule, "activations are uint8"),
        (model.shifted and rule != "copy", "weights are uint8, or around a zero point"),
        (model.unsigned and rule == "alone" and model.signed, "activations are int8 and uint8"),
    ):
        if refused:
            raise UnsupportedError(f"the file's {what}, which were not shown equal to {profile.runtime}")
    for index, node in enumerate(model.graph.nodes if model.signed else ()):
        if type(node.op).__name__ in alone:
            raise UnsupportedError(
                f"{model.graph.label(index)}: on int8 codes it was not shown equal to {profile.runtime}",
                hint="quantise activations to uint8",
            )
    return model.graph
