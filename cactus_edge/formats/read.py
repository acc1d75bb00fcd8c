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
    if UINT8 not in profile.rules and (model.unsigned or model.shifted):
        what = "activations are uint8" if model.unsigned else "weights are uint8, or around a zero point"
        raise UnsupportedError(f"the file's {what}, which were not shown equal to {profile.runtime}")
    return model.graph
