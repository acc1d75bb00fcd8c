"""A .tflite's bytes -> the graph that a profile's runtime reads from them; other formats are `formats.read`'s."""

from __future__ import annotations

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.profile import DELEGATE, STORED, Format, Profile
from cactus_edge.verify.tflite_read import Model


def format_of(data: bytes) -> Format:
    """ "tflite" where the bytes 4 to 7 are TFL3, else "onnx", whose files have no mark of their own."""
    return "tflite" if data[4:8] == b"TFL3" else "onnx"


def require_format(data: bytes, profile: Profile) -> None:
    """Raises UnsupportedError where the profile's runtime reads files of another format than `data`."""
    found = format_of(data)
    if found != profile.reads:
        raise UnsupportedError(
            f"profile {profile.name!r} is that of {profile.runtime}, which reads .{profile.reads} files; this one is .{found}",
            hint=f"convert it first (cactus-edge convert --to {profile.reads}), or name a profile that reads .{found}",
        )


def graph_for(model: Model, profile: Profile) -> Graph:
    """The graph of a .tflite. Raises UnsupportedError where the profile's runtime was not shown to read that from it."""
    if model.resolved is not None and STORED in profile.rules:
        raise UnsupportedError(
            f"{model.resolved}, which profile {profile.name!r} does not look for: it would compute something else",
            hint="convert the model again with a fixed batch size of 1; cactus-edge convert --to tflite keeps buffers inside",
        )
    if model.left is not None and DELEGATE in profile.rules:
        raise UnsupportedError(
            f"{model.left}: profile {profile.name!r} is not what runs it",
            hint="convert the model again with a fixed batch size of 1, or cactus-edge convert --to tflite",
        )
    return model.graph
