"""The onnx package, where it is needed: to write files, and to cut them for a look inside a run. Reading does without."""

from __future__ import annotations

from typing import Any

from cactus_edge.errors import InstallError


def onnx_module() -> Any:
    """The onnx package. Raises InstallError where it is missing."""
    try:
        import onnx
    except ImportError as error:
        raise InstallError(
            f"ONNX files need the package onnx: {error}", hint="pip install 'cactus-edge[build]'"
        ) from error
    return onnx
