"""A file in ONNX Runtime on the CPU, and the proof that it computes there with integers.

ONNX Runtime fuses DequantizeLinear -> Conv -> QuantizeLinear to an integer kernel only when it recognises the pattern, and
else computes in float without a word. So a session is opened from the *optimised* model, written out at a stated level and
inspected by `require_fused`: each convolution and each dense layer must have become a QLinearConv, QGemm or QLinearMatMul with
an int32 bias. That very model is then run, with optimisation off.
"""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InstallError, ModelError, UnsupportedError
from cactus_edge.formats.onnx.package import onnx_module
from cactus_edge.formats.onnx.read.layout import our_columns, stored_image
from cactus_edge.formats.onnx.read.model import read_onnx
from cactus_edge.formats.onnx.read.moves import MOVES
from cactus_edge.formats.onnx.read.proto import INT32, UINT8, decode
from cactus_edge.formats.onnx.read.wire import parse_message
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph

Array = npt.NDArray[Any]

PROFILE, PACKAGE = "ort-x86", "onnxruntime"

INTEGER_KERNELS: dict[tuple[str, str], int | None] = {
    ("", "QLinearConv"): 8,
    ("com.microsoft", "QGemm"): 6,
    ("", "QLinearMatMul"): None,
}
"""Kernels that accumulate in int32, and the input that is the bias (None: the kernel has none)."""

OTHER_KERNELS: dict[type[ops.Op], str] = {
    ops.Add: "QLinearAdd",
    ops.Mul: "QLinearMul",
    ops.Mean: "QLinearGlobalAveragePool",
    ops.AvgPool: "QLinearAveragePool",
    ops.Softmax: "QLinearSoftmax",
}
"""Ops that must become this kernel of domain com.microsoft."""

UNSIGNED_ONLY = {
    "QLinearAdd": (2, 5, 7),
    "QLinearMul": (2, 5, 7),
    "QLinearAveragePool": (2, 4),
    "QLinearSoftmax": (2, 4),
}
"""Kernels that round uint8 and int8 codes in different ways, with the inputs that are zero points: the profile knows the former."""

PER_CODE = frozenset({"QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "Concat", "QLinearConcat", *MOVES})
"""Operators that may stay as they are: on codes dequantised with one scale and quantised again with the same, exact."""

TABLES: dict[type[ops.Op], frozenset[str]] = {
    ops.LeakyRelu: frozenset({"QLinearLeakyRelu", "LeakyRelu"}),
    ops.Logistic: frozenset({"QLinearSigmoid", "Sigmoid"}),
    ops.Tanh: frozenset({"Tanh"}),
    ops.HardSwish: frozenset({"HardSwish", "HardSigmoid", "Mul"}),
}
"""Ops on each code alone, and the operators that compute them, of codes or of their real values: the same functions."""

PAIR_LIMIT = 32767
"""vpmaddubsw, the kernel of x86 processors without VNNI, saturates u8 * s8 + u8 * s8 at 16 bits."""


class OrtSession:
    """A Session of `formats.agree`: one sample at a time, images channel last; `keep` lets `tensor` follow a run."""

    def __init__(self, data: bytes, graph: Graph, keep: bool) -> None:
        self._graph, self._data, self._keep = graph, data, keep
        self._session = _open(require_fused(optimise(data), graph))
        self._input = self._session.get_inputs()[0].name
        self._last: Array | None = None

    def run(self, sample: Array) -> Array:
        """The float32 output [*output.shape] for one float32 sample [*input.shape]."""
        result: Array = self.run_batch(sample[np.newaxis])[0]
        return result

    def run_batch(self, x: Array) -> Array:
        """The float32 outputs [N, *output.shape] for x float32 [N, *input.shape]; the file's batch must be symbolic for N > 1."""
        stored = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x)
        if self._keep:
            self._last = x
        with _refusals("run"):
            out: Array = self._session.run(None, {self._input: stored})[0]
        return out.transpose(0, 2, 3, 1) if out.ndim == 4 else out

    def tensor(self, index: int) -> Array | None:
        """The int8 codes of graph tensor `index` for the last run, batch axis included: the file cut off behind it, run anew.

        None for a tensor that is in the graph alone.
        """
        if self._last is None:
            raise ValueError("no run to look at: open the session with keep and run it first")
        tensor = self._graph.tensors[index]
        if index in self._graph.outputs or index in self._graph.inputs:
            raise ValueError(f"tensor {tensor.name!r} is float32")
        if not tensor.name:
            return None
        at = next(i for i, node in enumerate(self._graph.nodes) if node.output == index)
        before = replace(self._graph, nodes=self._graph.nodes[: at + 1])
        real = OrtSession(cut(self._data, index), before, False).run_batch(self._last)
        codes = (np.rint(real / np.float32(tensor.scale)) + tensor.zero_point).astype(np.int8)
        return our_columns(codes, stored_image(self._graph, index)) if codes.ndim == 2 else codes


def check_runnable(graph: Graph) -> None:
    """Raises UnsupportedError where this processor is not one of the profile's.

    x86 with VNNI computes integer products exactly. Without it, 8-bit products are added in pairs that saturate at 16 bits;
    a network passes there only if no pair of its weights can: 255 * 2 * max |w| <= 32767 in every layer.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise UnsupportedError(
            f"profile {PROFILE!r} is ONNX Runtime's on x86-64, this machine is {platform.machine()}: the kernels differ"
        )
    if has_vnni():
        return
    for index, node in enumerate(graph.nodes):
        if not isinstance(node.op, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense):
            continue
        weight = np.abs(node.op.weight.astype(np.int64))
        largest = 2 * int(weight.max(initial=0))
        if 255 * largest > PAIR_LIMIT:
            raise UnsupportedError(
                f"{graph.label(index)}: this processor has no VNNI, and ONNX Runtime's kernels saturate where two weights of "
                f"{largest // 2} meet",
                hint="run on a processor with AVX-512 VNNI or AVX-VNNI, or quantise the weights to 7 bits",
            )


@cache
def has_vnni() -> bool:
    """Whether the processor says that it has AVX-512 VNNI or AVX-VNNI; False where it cannot be asked."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def optimise(data: bytes) -> bytes:
    """The model as ONNX Runtime rewrites it at level EXTENDED, as ONNX bytes. Raises ModelError where it refuses the file."""
    ort = _ort()
    with tempfile.TemporaryDirectory(prefix="cactus-edge-") as folder:
        path = Path(folder) / "optimised.onnx"
        options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
        options.optimized_model_filepath = str(path)
        _session(data, options)
        return path.read_bytes()


def require_fused(optimised: bytes, graph: Graph) -> bytes:
    """`optimised` itself, if every convolution and dense layer of `graph` runs as an integer kernel with its int32 bias in it.

    Raises UnsupportedError naming the nodes that stayed in float.
    """
    model = parse_message(memoryview(optimised), "Model")
    int32 = {t.name: decode(t, t.name).tobytes() for t in model.graph.initializer if t.data_type == INT32}
    affine = [n.op for n in graph.nodes if isinstance(n.op, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense)]
    biases = {op.bias.tobytes() for op in affine}
    wanted = Counter(kernel for n in graph.nodes for kind, kernel in OTHER_KERNELS.items() if isinstance(n.op, kind))
    tables = frozenset[str]().union(*(TABLES.get(type(n.op), ()) for n in graph.nodes))
    unsigned = {t.name for t in model.graph.initializer if t.data_type == UINT8}
    others: Counter[str] = Counter()
    fused, floats = 0, []
    for node in model.graph.node:
        key = (node.domain, node.op_type)
        if key in INTEGER_KERNELS:
            at = INTEGER_KERNELS[key]
            bias = node.input[at] if at is not None and len(node.input) > at else ""
            if bias and int32.get(bias) not in biases:
                floats.append(f"{node.op_type} {node.output[0]!r} whose bias is not the network's int32 constant")
            fused += 1
        elif node.op_type in wanted:
            others[node.op_type] += 1
            zero_points = UNSIGNED_ONLY.get(node.op_type, ())
            if not unsigned.issuperset(node.input[i] for i in zero_points):
                floats.append(f"{node.op_type} {node.output[0]!r} on int8 codes, which are rounded in another way")
        elif node.op_type not in PER_CODE | tables:
            floats.append(f"{node.op_type} {node.output[0]!r}")
    floats += [f"{n} of {kernel}, expected {wanted[kernel]}" for kernel, n in others.items() if n != wanted[kernel]]
    floats += [f"no {kernel}" for kernel in wanted if kernel not in others]
    if floats or fused != len(affine):
        named = ", ".join(floats[:4]) or f"{fused} integer kernels for {len(affine)} convolutions and dense layers"
        raise UnsupportedError(
            f"ONNX Runtime does not compute this file in integers: {named}",
            hint="cactus-edge convert --to onnx writes the same network in a form that ONNX Runtime computes in integers",
        )
    return optimised


def cut(data: bytes, index: int) -> bytes:
    """The file that ends behind graph tensor `index`, whose dequantised value becomes the output."""
    onnx = onnx_module()
    model = onnx.ModelProto()
    model.ParseFromString(data)
    found = read_onnx(data)
    name, tensor = found.names[index], found.graph.tensors[index]
    at = next(i for i, n in enumerate(model.graph.node) if name in n.output)
    shift, dtype = (128, np.uint8) if index in found.uint8 else (0, np.int8)
    values = {f"{name}_cut_scale": np.float32(tensor.scale), f"{name}_cut_zero": dtype(tensor.zero_point + shift)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    kept = list(model.graph.node[: at + 1])
    end = onnx.helper.make_node("DequantizeLinear", [name, *values], [f"{name}_cut"])
    axes: list[Any] = [None] * (len(tensor.shape) + 1)
    value = onnx.helper.make_tensor_value_info(f"{name}_cut", onnx.TensorProto.FLOAT, axes)
    del model.graph.node[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.node.extend([*kept, end])
    model.graph.output.extend([value])
    shortened: bytes = model.SerializeToString(deterministic=True)
    return shortened


def _ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InstallError(
            f"running ONNX files needs the package onnxruntime: {error}", hint="pip install 'cactus-edge[build]'"
        ) from error
    return onnxruntime


def _options(level: Any) -> Any:
    options = _ort().SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Only fatal messages on stderr: refusals come as exceptions.
    options.log_severity_level = 4
    return options


def _open(optimised: bytes) -> Any:
    return _session(optimised, _options(_ort().GraphOptimizationLevel.ORT_DISABLE_ALL))


def _session(data: bytes, options: Any) -> Any:
    with _refusals("accept"):
        return _ort().InferenceSession(data, options, providers=["CPUExecutionProvider"])


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """ONNX Runtime's own exceptions as ModelError: it does not `what` the model."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        yield
    except (
        state.Fail,
        state.RuntimeException,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.InvalidArgument,
    ) as error:
        raise ModelError(f"ONNX Runtime does not {what} the model: {error}") from error
