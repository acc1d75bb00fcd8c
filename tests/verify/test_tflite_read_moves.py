"""Reading operators that move elements, split tensors or take constants, from files whose tables are set field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from strategies import MIDDLE, random_graph, random_inputs

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.tflite import explicit_padding, read_tflite, write_tflite
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph

SHAPE = (1, 4, 6, 3)
LITERT_AND_TFLM = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")
UNVERSIONED = ("SQUEEZE", "EXPAND_DIMS", "TILE")


@dataclass
class File:
    """A .tflite file of one operator on an int8 tensor [1, 4, 6, 3], written through the schema's Object API."""

    name: str
    outputs: Sequence[tuple[int, ...]]
    constants: Sequence[Any] = ()
    first: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    input_shape: tuple[int, ...] = SHAPE

    def _tensor(self, model: Any, shape: Sequence[int], kind: str, raw: bytes = b"") -> int:
        t = schema.TensorT()
        t.name, t.shape, t.type = f"t{len(model.tensors)}", np.array(shape, np.int32), getattr(schema.TensorType, kind)
        buffer = schema.BufferT()
        buffer.data = raw or None
        self.buffers.append(buffer)
        t.buffer = len(self.buffers) - 1
        if kind == "INT8":
            t.quantization = schema.QuantizationParametersT()
            t.quantization.scale, t.quantization.zeroPoint = np.array([0.5], np.float32), np.array([3], np.int64)
        model.tensors.append(t)
        return len(model.tensors) - 1

    def data(self) -> bytes:
        self.buffers = [schema.BufferT()]
        sub = schema.SubGraphT()
        sub.tensors = []
        x = self._tensor(sub, self.input_shape, "INT8")
        fixed = [
            self._tensor(sub, np.shape(c), "INT8" if isinstance(c, np.ndarray) and c.dtype == np.int8 else "INT32",
                         np.asarray(c, c.dtype if isinstance(c, np.ndarray) else np.int32).tobytes())
            for c in self.constants
        ]  # fmt: skip
        made = [self._tensor(sub, shape, "INT8") for shape in self.outputs]
        operator = schema.OperatorT()
        operator.inputs = np.array([*fixed[: self.first], x, *fixed[self.first :]], np.int32)
        operator.outputs = np.array(made, np.int32)
        table = self.table or "".join(part.title() for part in self.name.split("_")) + "Options"
        if hasattr(schema, f"{table}T"):
            operator.builtinOptions = getattr(schema, f"{table}T")()
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            for key, value in self.options.items():
                assert hasattr(operator.builtinOptions, key)
                setattr(operator.builtinOptions, key, value)
        sub.operators, sub.inputs, sub.outputs = [operator], np.array([x], np.int32), np.array(made[-1:], np.int32)
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, self.name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1 if self.name in UNVERSIONED else 2
        model = schema.ModelT()
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [sub], self.buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


X = np.random.default_rng(0).integers(-128, 128, SHAPE).astype(np.int8)

READ: dict[str, tuple[File, Any]] = {
    "transpose": (File("TRANSPOSE", [(1, 3, 4, 6)], [[0, 3, 1, 2]]), X.transpose(0, 3, 1, 2)),
    "split": (File("SPLIT", [(1, 4, 2, 3)] * 3, [2], 1, {"numSplits": 3}), X[:, :, 4:]),
    "split_from_the_end": (File("SPLIT", [(1, 4, 6, 1)] * 3, [-1], 1, {"numSplits": 3}), X[..., 2:]),
    "split_v": (File("SPLIT_V", [(1, 1, 6, 3), (1, 3, 6, 3)], [[1, -1], 1], options={"numSplits": 2}), X[:, 1:]),
    "unpack": (File("UNPACK", [(1, 4, 3)] * 6, options={"num": 6, "axis": 2}), X[:, :, 5]),
    "slice": (File("SLICE", [(1, 2, 5, 3)], [[0, 1, 1, 0], [1, 2, -1, 3]]), X[:, 1:3, 1:]),
    "squeeze": (
        File("SQUEEZE", [(1, 4, 18)], options={"squeezeDims": np.array([-2], np.int32)}, input_shape=(1, 4, 1, 18)),
        X.reshape(1, 4, 18),
    ),
    "expand_dims": (File("EXPAND_DIMS", [(1, 4, 1, 6, 3)], [2]), X.reshape(1, 4, 1, 6, 3)),
    "expand_dims_at_the_end": (File("EXPAND_DIMS", [(1, 4, 6, 3, 1)], [-1]), X[..., None]),
    "strided_slice": (File("STRIDED_SLICE", [(1, 2, 3, 3)], [[0, 0, 1, 0], [1, 4, 6, 3], [1, 2, 2, 1]]), X[:, ::2, 1::2]),
    "strided_slice_masks": (
        File(
            "STRIDED_SLICE",
            [(1, 4, 3)],
            [[5, -9, -2, 0], [7, 2, 0, 0], [1, 1, 1, 1]],
            options={"beginMask": 0b0011, "endMask": 0b1011, "shrinkAxisMask": 0b0100},
        ),
        X[:, :, -2],
    ),
    "strided_slice_of_few_axes": (File("STRIDED_SLICE", [(1, 3, 6, 3)], [[0, 1], [1, 99], [1, 1]]), X[:, 1:]),
    "tile": (File("TILE", [(1, 4, 18, 3)], [[1, 1, 3, 1]]), np.tile(X, (1, 1, 3, 1))),
    "tile_once": (File("TILE", [SHAPE], [[1, 1, 1, 1]]), X),
    "resize": (
        File("RESIZE_NEAREST_NEIGHBOR", [(1, 8, 12, 3)], [[8, 12]]),
        X.repeat(2, 1).repeat(2, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_an_operator_means_what_numpy_does(case: str) -> None:
    file, expected = READ[case]
    graph = read_tflite(file.data()).graph
    x = X.reshape(file.input_shape)
    assert np.array_equal(evaluate(graph, x, profile("tflm")), expected)
    again = read_tflite(write_tflite(graph)).graph
    assert again.digest() == explicit_padding(graph).digest()
    assert np.array_equal(evaluate(again, x, profile("tflm")), expected)


@pytest.mark.parametrize("name", LITERT_AND_TFLM)
@pytest.mark.parametrize("case", READ)
def test_the_runtime_reads_it_so_too(case: str, name: str) -> None:
    file, _ = READ[case]
    if name == "tflm" and case in ("strided_slice_of_few_axes", "tile", "tile_once"):
        pytest.skip("TFLM has no TILE and wants one entry for each axis of a slice, and says so")
    agree(file.data(), X.reshape(file.input_shape), name).require()


REFUSED: dict[str, tuple[File, str]] = {
    "transposed_batch": (File("TRANSPOSE", [(4, 1, 6, 3)], [[1, 0, 2, 3]]), "moves the batch axis"),
    "permutation_too_short": (File("TRANSPOSE", [(1, 6, 3)], [[0, 2, 1]]), "a permutation of 4 axes"),
    "split_batch": (File("SPLIT", [SHAPE], [0], 1, {"numSplits": 1}), "axis 0"),
    "split_count": (File("SPLIT", [(1, 4, 2, 3)] * 3, [2], 1, {"numSplits": 2}), "one axis and 3 parts"),
    "split_with_remainder": (File("SPLIT", [(1, 1, 6, 3)] * 3, [1], 1, {"numSplits": 3}), "positive sizes of sum 4"),
    "split_v_twice_open": (File("SPLIT_V", [(1, 2, 6, 3)] * 2, [[-1, -1], 1], options={"numSplits": 2}), "one axis and 2"),
    "sliced_batch": (File("SLICE", [(1, 4, 6, 3)], [[1, 0, 0, 0], [1, 4, 6, 3]]), "slicing the batch axis"),
    "slice_beyond": (File("SLICE", [(1, 4, 6, 3)], [[0, 1, 0, 0], [1, 4, 6, 3]]), "elements 1 \\+ i \\* 1 for i < 4"),
    "empty_slice": (File("SLICE", [(1, 4, 6, 3)], [[0, 0, 0, 0], [1, 0, 6, 3]]), "i < 0 along"),
    "backwards": (File("STRIDED_SLICE", [SHAPE], [[0, 3], [1, 0], [1, -1]]), "a stride of -1"),
    "ellipsis": (File("STRIDED_SLICE", [SHAPE], [[0], [1], [1]], options={"ellipsisMask": 1}), "an ellipsis"),
    "shrunk_batch": (
        File("STRIDED_SLICE", [(4, 6, 3)], [[0], [1], [1]], options={"shrinkAxisMask": 1}),
        "that keeps the batch axis",
    ),
    "squeezed_wide_axis": (File("SQUEEZE", [SHAPE], options={"squeezeDims": np.array([1], np.int32)}), "axes of size 1"),
    "squeezed_batch": (File("SQUEEZE", [(4, 6, 3)]), "expected an output of shape .4, 6, 3."),
    "expanded_elsewhere": (File("EXPAND_DIMS", [(1, 4, 6, 1, 3)], [2]), "an output of shape"),
    "tiled_often": (File("TILE", [(1, 4, 6, 3 << 28)], [[1, 1, 1, 1 << 28]]), "more than 64 times"),
    "tiled_batch": (File("TILE", [(2, 4, 6, 3)], [[2, 1, 1, 1]]), "repeating the batch axis"),
    "tiled_away": (File("TILE", [SHAPE], [[1, 0, 1, 1]]), "4 positive multiples"),
    "resized_otherwise": (File("RESIZE_NEAREST_NEIGHBOR", [(1, 8, 12, 3)], [[8, 11]]), "the output's size"),
    "negative_slope_infinite": (File("LEAKY_RELU", [SHAPE], options={"alpha": float("inf")}), "a finite float32"),
    "logistic_scale": (File("LOGISTIC", [SHAPE]), "expected 1/256 and -128"),
    "tanh_scale": (File("TANH", [SHAPE]), "expected 1/128 and 0"),
}  # fmt: skip


@pytest.mark.parametrize("sin", REFUSED)
def test_refused_by_name(sin: str) -> None:
    file, message = REFUSED[sin]
    with pytest.raises(ModelError, match=message):
        read_tflite(file.data())


@pytest.mark.parametrize("shape", [(), (3,), (1, 1, 1, 3), (1, 4, 6, 3), (1, 4, 1, 1)])
@pytest.mark.parametrize("first", [0, 1], ids=["constant_last", "constant_first"])
def test_a_constant_operand_is_read_and_agrees(first: int, shape: tuple[int, ...]) -> None:
    constant = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    data = File("SUB", [SHAPE], [constant], 1 - first).data()
    graph = read_tflite(data).graph
    assert [c.size for c in graph.constants.values()] == [constant.size]
    for name in LITERT_AND_TFLM:
        agree(data, X, name).require()
    flipped = np.int8(constant.ravel()[0] ^ 1)
    other = constant.copy()
    other.ravel()[:1] = flipped
    assert read_tflite(File("SUB", [SHAPE], [other], 1 - first).data()).graph.digest() != graph.digest()


def test_a_constant_of_more_axes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="is a constant of shape"):
        read_tflite(File("MUL", [SHAPE], [np.zeros((1, 1, 4, 6, 3), np.int8)]).data())


def test_random_networks_of_all_ops_survive_the_way_through_bytes() -> None:
    for seed in range(60):
        graph: Graph = random_graph(np.random.default_rng(seed), 7, MIDDLE)
        again = read_tflite(write_tflite(graph)).graph
        assert again.digest() == explicit_padding(graph).digest()
        x = random_inputs(np.random.default_rng(seed), graph, 3)
        try:
            expected = evaluate(graph, x, profile("tflm"))
        except UnsupportedError:
            continue
        assert np.array_equal(evaluate(again, x, profile("tflm")), expected)
