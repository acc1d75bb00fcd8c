"""A file in the LiteRT (TensorFlow Lite) interpreter of the ai-edge-litert wheel, with one of its three sets of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InstallError, InternalError, ModelError
from cactus_edge.ir.graph import Graph

Array = npt.NDArray[Any]


class Litert:
    """One file, one sample at a time, on one thread (LiteRT's mean splits its vector blocks among threads).

    `resolver` is a name of OpResolverType. BUILTIN: optimised kernels behind the XNNPACK delegate, LiteRT's default.
    BUILTIN_WITHOUT_DEFAULT_DELEGATES: the same without it. BUILTIN_REF: the reference kernels. Tensors inside a delegated part
    do not exist outside of it, so `tensor` opens the file again with that tensor as its output, whatever `keep` says.
    """

    def __init__(self, data: bytes, graph: Graph, keep: bool, *, resolver: str) -> None:
        self._data, self._output, self._resolver = data, graph.output, resolver
        self._interpreter = self._open(data)
        self._sample: Array | None = None

    def _open(self, data: bytes) -> Any:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise InstallError(
                f"the ai-edge-litert wheel cannot be imported: {error}", hint="pip install ai-edge-litert"
            ) from error
        kernels = OpResolverType[self._resolver]
        try:
            interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kernels)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"LiteRT does not accept the model: {error}") from error
        return interpreter

    def run(self, sample: Array) -> Array:
        self._sample = sample
        return _invoke(self._interpreter, sample).reshape(self._output.shape)

    def tensor(self, index: int) -> Array:
        if self._sample is None:
            raise InternalError("a tensor is read before the first run")
        return _invoke(self._open(with_output(self._data, index)), self._sample)


def _invoke(interpreter: Any, sample: Array) -> Array:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ascontiguousarray(sample)[np.newaxis])
    interpreter.invoke()
    output: Array = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return output


def with_output(data: bytes, index: int) -> bytes:
    """The file with tensor `index` as its output: one integer changes, nothing moves."""
    from ai_edge_litert.schema_py_generated import Model

    patched = bytearray(data)
    Model.GetRootAs(patched).Subgraphs(0).OutputsAsNumpy()[:] = index
    return bytes(patched)
