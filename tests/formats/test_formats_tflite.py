"""Writing .tflite: what is read back is what was written, bytes are reproducible, runtimes accept them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from strategies import graphs, random_inputs
from tflite_edit import every_op, operator

import cactus_edge
from cactus_edge.errors import InstallError, ModelError, UnsupportedError
from cactus_edge.formats.tflite import ALIGNMENT, explicit_padding, read_tflite, write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.ops import Padding2d


def conv(padding: Padding2d, size: tuple[int, int] = (5, 6), zero_point: int = 7) -> Graph:
    """One 3x3 convolution with `padding` and an input zero point that makes wrong padding visible."""
    rng = np.random.default_rng(3)
    weight = ops.freeze(rng.integers(-127, 128, (2, 3, 3, 1)), np.int8)
    op = ops.Conv2d(weight, ops.freeze([40, -9], np.int32), ops.freeze([0.01, 0.02], np.float32), padding=padding)
    shape = (size[0] + padding.top + padding.bottom - 2, size[1] + padding.left + padding.right - 2, 2)
    b = GraphBuilder()
    x = b.input(Tensor("x", (*size, 1), "int8", 0.5, zero_point))
    return b.finish(b.node(op, [x], Tensor("y", shape, "int8", 2.0, -4)))


@settings(max_examples=150)
@given(graph=graphs(max_nodes=7))
def test_reading_what_was_written_is_the_identity(graph: Graph) -> None:
    padded = explicit_padding(graph)
    data = write_tflite(graph, metadata={"blob": bytes(range(256)), "empty": b""})
    model = read_tflite(data)
    assert model.graph.digest() == padded.digest()
    assert model.metadata["blob"] == bytes(range(256)) and model.metadata["empty"] == b""
    assert write_tflite(model.graph, metadata=model.metadata) == data


@settings(max_examples=60)
@given(graph=graphs(max_nodes=4, ops=("conv2d", "depthwise_conv2d")))
def test_a_pad_op_computes_what_the_padding_did(graph: Graph) -> None:
    padded = explicit_padding(graph)
    assert explicit_padding(padded).digest() == padded.digest()
    x = random_inputs(np.random.default_rng(0), graph, 6)
    assert np.array_equal(evaluate(graph, x, profile("tflm")), evaluate(padded, x, profile("tflm")))


@pytest.mark.parametrize(
    ("padding", "kinds", "name"),
    [
        (Padding2d(), ["Conv2d"], "VALID"),
        (Padding2d(1, 1, 1, 1), ["Conv2d"], "SAME"),
        (Padding2d(2, 0, 1, 1), ["Pad", "Conv2d"], "VALID"),
    ],
)
def test_padding_is_named_where_it_has_a_name(padding: Padding2d, kinds: list[str], name: str) -> None:
    graph = conv(padding)
    assert [type(node.op).__name__ for node in explicit_padding(graph).nodes] == kinds
    model = schema.ModelT.InitFromPackedBuf(write_tflite(graph), 0)
    assert operator(model, "CONV_2D").builtinOptions.padding == getattr(schema.Padding, name)


def test_a_pool_whose_padding_has_no_name_is_refused() -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (4, 4, 1), "int8", 0.5, 0))
    y = b.node(ops.MaxPool((2, 2), (1, 1), Padding2d(1, 1, 0, 0)), [x], Tensor("y", (5, 3, 1), "int8", 0.5, 0))
    with pytest.raises(UnsupportedError, match=r"op 0 MaxPool.*neither SAME nor VALID"):
        write_tflite(b.finish(y))


def test_tensors_are_renumbered_into_the_order_they_are_written() -> None:
    graph = conv(Padding2d())
    shuffled = Graph(graph.tensors[::-1], tuple(ops_node(n) for n in graph.nodes), (1,), (0,))
    assert read_tflite(write_tflite(shuffled)).graph.digest() == graph.digest()


def ops_node(node: Any) -> Any:
    """The node with its two tensors exchanged."""
    return type(node)(node.op, tuple(1 - i for i in node.inputs), 1 - node.output)


def test_the_bytes_do_not_depend_on_the_order_of_metadata() -> None:
    first = write_tflite(every_op(), metadata={"a": b"1", "b": b"2"})
    assert first == write_tflite(every_op(), metadata={"b": b"2", "a": b"1"})


def test_buffers_are_aligned_for_vector_loads() -> None:
    data = write_tflite(every_op())
    model = schema.Model.GetRootAs(data, 0)
    filled = [b for i in range(model.BuffersLength()) if (b := model.Buffers(i)).DataLength()]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in filled]
    assert starts and all(start % ALIGNMENT == 0 for start in starts)


def test_the_file_says_who_wrote_it_and_which_runtime_it_needs() -> None:
    model = schema.ModelT.InitFromPackedBuf(write_tflite(every_op()), 0)
    assert model.description.decode() == f"cactus-edge {cactus_edge.__version__}"
    # RELU for int8 came with 2.1.0, and FULLY_CONNECTED per channel with 2.17.0, the youngest of all.
    assert read_tflite(write_tflite(every_op())).metadata["min_runtime_version"] == b"2.17.0".ljust(16, b"\0")
    assert read_tflite(write_tflite(conv(Padding2d()))).metadata["min_runtime_version"] == b"1.14.0".ljust(16, b"\0")
    versions = {code.builtinCode: code.version for code in model.operatorCodes}
    assert versions[schema.BuiltinOperator.FULLY_CONNECTED] == 12
    assert versions[schema.BuiltinOperator.CONV_2D] == 3


@settings(max_examples=40)
@given(graph=graphs(max_nodes=6))
def test_litert_accepts_the_file(graph: Graph) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=write_tflite(graph),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    assert tuple(interpreter.get_output_details()[0]["shape"]) == (1, *graph.output.shape)
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], random_inputs(np.random.default_rng(0), graph, 1)
    )
    interpreter.invoke()


def test_a_beta_that_float32_cannot_hold_is_refused() -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (4,), "int8", 0.5, 0))
    graph = b.finish(b.node(ops.Softmax(0.1), [x], Tensor("y", (4,), "int8", 1 / 256, -128)))
    with pytest.raises(UnsupportedError, match=r"beta 0\.1"):
        write_tflite(graph)


def test_an_illegal_graph_is_refused_before_anything_is_written() -> None:
    graph = conv(Padding2d())
    with pytest.raises(ModelError):
        write_tflite(Graph(graph.tensors, (), graph.inputs, graph.outputs))


def test_scales_beyond_float32_still_give_a_legal_file() -> None:
    graph = conv(Padding2d())
    tiny = [Tensor(t.name, t.shape, "int8", float(np.float32(1e-38)), t.zero_point) for t in graph.tensors]
    model = read_tflite(write_tflite(Graph(tuple(tiny), graph.nodes, graph.inputs, graph.outputs)))
    assert model.graph.input.scale == float(np.float32(1e-38))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("ai_edge_litert"):
            raise ImportError("No module named 'ai_edge_litert'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InstallError, match="ai-edge-litert"):
        write_tflite(conv(Padding2d()))


def test_real_models_survive_the_round_trip(models_folder: Path) -> None:
    for path in sorted(models_folder.glob("mlperf-tiny/*.tflite")):
        graph = read_tflite(path.read_bytes()).graph
        assert read_tflite(write_tflite(graph)).graph.digest() == graph.digest(), path.name
