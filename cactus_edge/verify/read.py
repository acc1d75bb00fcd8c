"""A model file's bytes -> its integer graph, whatever its format: told by the bytes, never by the file's name."""

from __future__ import annotations

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.profile import DELEGATE, STORED, UINT8, Format, Profile
from cactus_edge.verify.onnx_read import OnnxModel, read_onnx
from cactus_edge.verify.tflite_read import Model, read_tflite

AnyModel = Model | OnnxModel
"""What a reader gives: `graph`, `metadata`, `sha256`, `file_tensors`."""


def format_of(data: bytes) -> Format:
    """ "tflite" where the bytes 4 to 7 are TFL3, else "onnx", whose files have no mark of their own."""
    return "tflite" if data[4:8] == b"TFL3" else "onnx"


def read_model(data: bytes) -> AnyModel:
    """The model in `data`. Raises ModelError or UnsupportedError as the format's reader does."""
    return read_tflite(data) if format_of(data) == "tflite" else read_onnx(data)


def read_for(data: bytes, profile: Profile) -> Graph:
    """The graph that `profile`'s runtime reads from `data`. Raises UnsupportedError where it was not shown to."""
    require_format(data, profile)
    return graph_for(read_model(data), profile)


def graph_for(model: AnyModel, profile: Profile) -> Graph:
    """The graph of a file of the profile's format. Raises UnsupportedError where its runtime was not shown to read that from it."""
    if isinstance(model, OnnxModel):
        if UINT8 not in profile.rules and (model.unsigned or model.shifted):
            what = "activations are uint8" if model.unsigned else "weights are uint8, or around a zero point"
            raise UnsupportedError(f"the file's {what}, which were not shown equal to {profile.runtime}")
    elif model.resolved is not None and STORED in profile.rules:
        raise UnsupportedError(
            f"{model.resolved}, which profile {profile.name!r} does not look for: it would compute something else",
            hint="convert the model again with a fixed batch size of 1; cactus-edge convert --to tflite keeps buffers inside",
        )
    elif model.left is not None and DELEGATE in profile.rules:
        raise UnsupportedError(
            f"{model.left}: profile {profile.name!r} is not what runs it",
            hint="convert the model again with a fixed batch size of 1, or cactus-edge convert --to tflite",
        )
    return model.graph


def require_format(data: bytes, profile: Profile) -> None:
    """Raises UnsupportedError where the profile's runtime reads files of another format than `data`."""
    found = format_of(data)
    if found != profile.reads:
        raise UnsupportedError(
            f"profile {profile.name!r} is that of {profile.runtime}, which reads .{profile.reads} files; this one is .{found}",
            hint=f"convert it first (cactus-edge convert --to {profile.reads}), or name a profile that reads .{found}",
        )
