"""The .tflite reader: real models, every refusal by name, every malformed construct with its place."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_edit import edited, every_op, every_op_file, operand, operator

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.verify import tflite_schema
from cactus_edge.verify.tflite_read import read_tflite

FILE = every_op_file()


def tensor(model: Any, name: str) -> Any:
    return next(t for t in model.subgraphs[0].tensors if t.name in (name, name.encode()))


# What is read


def test_reads_the_file_it_was_written_from() -> None:
    model = read_tflite(FILE)
    assert model.graph.digest() == every_op().digest()
    assert model.sha256 == hashlib.sha256(FILE).hexdigest()
    assert model.metadata["note"] == b"hello"
    assert [model.graph.tensors[i].name for i in (0, -1)] == ["image", "probabilities"]


def test_file_tensors_map_each_tensor_of_the_graph_to_its_index_in_the_file() -> None:
    model, stored = read_tflite(FILE), schema.ModelT.InitFromPackedBuf(FILE, 0).subgraphs[0].tensors
    assert [stored[i].name.decode() for i in model.file_tensors] == [t.name for t in model.graph.tensors]


def test_reads_the_mlperf_tiny_models(models_folder: Path) -> None:
    kws = read_tflite((models_folder / "mlperf-tiny" / "kws_ref_model.tflite").read_bytes()).graph
    kinds = [type(node.op).__name__ for node in kws.nodes]
    assert kinds == ["Conv2d", *["DepthwiseConv2d", "Conv2d"] * 4, "AvgPool", "Reshape", "Dense", "Softmax"]
    assert (kws.input.shape, kws.input.zero_point, kws.output.shape) == ((49, 10, 1), 83, (12,))
    first = kws.nodes[0].op
    assert isinstance(first, ops.Conv2d) and first.stride == (2, 2) and first.padding == ops.Padding2d(4, 5, 1, 1)
    resnet = read_tflite((models_folder / "mlperf-tiny" / "pretrainedResnet_quant.tflite").read_bytes()).graph
    assert sum(isinstance(node.op, ops.Add) for node in resnet.nodes) == 3
    assert resnet.weights() == 77360


def test_a_per_tensor_weight_scale_counts_for_each_channel_of_a_convolution() -> None:
    def one_scale(model: Any) -> None:
        for index in (1, 2):
            q = operand(model, "CONV_2D", index).quantization
            q.scale, q.zeroPoint = np.float32([0.01 if index == 1 else 0.0005]), np.int64([0])

    op = read_tflite(edited(FILE, one_scale)).graph.nodes[1].op
    assert isinstance(op, ops.Conv2d) and op.weight_scale.tolist() == [np.float32(0.01)] * 4


def test_an_absent_bias_is_zero() -> None:
    def drop(model: Any) -> None:
        operator(model, "CONV_2D").inputs = operator(model, "CONV_2D").inputs[:2]
        operator(model, "FULLY_CONNECTED").inputs[2] = -1

    nodes = read_tflite(edited(FILE, drop)).graph.nodes
    for op in (nodes[1].op, nodes[13].op):
        assert isinstance(op, ops.Conv2d | ops.Dense) and not op.bias.any()


def test_old_files_store_the_operator_code_in_one_byte() -> None:
    def old(model: Any) -> None:
        for code in model.operatorCodes:
            code.builtinCode = 0 if code.builtinCode < 127 else code.builtinCode

    assert read_tflite(edited(FILE, old)).graph.digest() == every_op().digest()


def test_negative_axes_and_a_free_batch_size() -> None:
    def negative(model: Any) -> None:
        operator(model, "CONCATENATION").builtinOptions.axis = -1
        model.buffers[operand(model, "MEAN", 1).buffer].data = np.frombuffer(struct.pack("<i", -2), np.uint8)
        tensor(model, "image").shapeSignature = np.int32([-1, 6, 7, 2])

    assert read_tflite(edited(FILE, negative)).graph.digest() == every_op().digest()


def test_the_schema_tables_match_the_generated_schema() -> None:
    names = tflite_schema.BUILTIN_OPERATORS
    generated = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    assert dict(enumerate(names)) == generated
    types = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
    assert dict(enumerate(tflite_schema.TYPES)) == types
    assert all(getattr(schema.BuiltinOptions, f.__name__) == code for code, f in tflite_schema.OPTIONS.values())
    tables = [t for t in vars(tflite_schema).values() if isinstance(t, type) and issubclass(t, IntEnum)]
    for fields in [t for t in tables if t is not IntEnum]:
        stored = {"Quantization": "QuantizationParameters"}.get(fields.__name__, fields.__name__)
        # Slots of retired fields count, and have no function of their own.
        builder = flatbuffers.Builder(0)
        getattr(schema, f"{stored}Start")(builder)
        assert len(fields) == len(builder.current_vtable), stored


# What is refused by name

Change = Callable[[Any], None]


def _set(path: Callable[[Any], Any], **values: Any) -> Change:
    def change(model: Any) -> None:
        target = path(model)
        for name, value in values.items():
            assert hasattr(target, name)
            setattr(target, name, value)

    return change


def _code(name: str, **values: Any) -> Change:
    return _set(lambda m: m.operatorCodes[operator(m, name).opcodeIndex], **values)


def _second_subgraph(model: Any) -> None:
    model.subgraphs.append(model.subgraphs[0])


def _sparse_weight(model: Any) -> None:
    operand(model, "CONV_2D", 1).sparsity = schema.SparsityParametersT()


def _custom_quantisation(model: Any) -> None:
    q = operand(model, "CONV_2D", 1).quantization
    q.detailsType, q.details = schema.QuantizationDetails.CustomQuantization, schema.CustomQuantizationT()


def _constant_operand(model: Any, name: str, *places: int, **changes: Any) -> None:
    """Replaces operands of the first operator `name` by one constant of ones."""
    used = operator(model, name)
    t = model.subgraphs[0].tensors[used.inputs[places[0]]]
    constant = schema.TensorT()
    constant.name, constant.shape, constant.type, constant.quantization = "c", t.shape, t.type, t.quantization
    for field, value in changes.items():
        setattr(constant, field, value)
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = np.ones(int(np.prod(constant.shape)), np.uint8)
    constant.buffer = len(model.buffers) - 1
    model.subgraphs[0].tensors.append(constant)
    for place in places:
        used.inputs[place] = len(model.subgraphs[0].tensors) - 1


def _activation_weight(model: Any) -> None:
    operator(model, "CONV_2D").inputs[1] = operator(model, "CONV_2D").inputs[0]


REFUSED: dict[str, tuple[Change, str]] = {
    "unknown_op": (
        _code("RELU", builtinCode=schema.BuiltinOperator.ELU, deprecatedBuiltinCode=111),
        "operator 8 ELU is not",
    ),
    "future_op": (_code("RELU", builtinCode=4000), "operator 8 builtin operator 4000 is not supported"),
    "control_flow": (_code("RELU", builtinCode=schema.BuiltinOperator.WHILE), "operator 8 WHILE is not supported"),
    "custom_op": (
        _code("RELU", builtinCode=schema.BuiltinOperator.CUSTOM, deprecatedBuiltinCode=32, customCode="MyOp"),
        "operator 8 CUSTOM 'MyOp'",
    ),
    "two_subgraphs": (_second_subgraph, "2 subgraphs"),
    "schema_version_4": (_set(lambda m: m, version=4), "schema version 4"),
    "external_tensor": (_set(lambda m: operand(m, "CONV_2D", 1), externalBuffer=1), "external_buffer"),
    "sparse_weight": (_sparse_weight, "sparsity"),
    "variable_tensor": (_set(lambda m: tensor(m, "image"), isVariable=True), "is_variable"),
    "custom_quantisation": (_custom_quantisation, "custom quantisation"),
    "uint8_activation": (_set(lambda m: tensor(m, "t3"), type=schema.TensorType.UINT8), "'t3' is UINT8; expected INT8"),
    "int16_activation": (_set(lambda m: tensor(m, "t3"), type=schema.TensorType.INT16), "mixes int16 and int8"),
    "int2_weight": (_set(lambda m: operand(m, "CONV_2D", 1), type=schema.TensorType.INT2), "is INT2; expected INT8"),
    "int64_bias": (_set(lambda m: operand(m, "CONV_2D", 2), type=schema.TensorType.INT64), "is INT64; expected INT32"),
    "weight_zero_point": (
        _set(lambda m: operand(m, "CONV_2D", 1).quantization, zeroPoint=np.int64([0, 0, 1, 0])),
        "operator 1 CONV_2D: a weight with a zero point",
    ),
    "batch_of_two": (_set(lambda m: tensor(m, "t3"), shape=np.int32([2, 6, 7, 4])), "batch"),
    "dynamic_height": (_set(lambda m: tensor(m, "image"), shapeSignature=np.int32([-1, -1, 7, 2])), "dynamic shape"),
    "fused_tanh": (
        _set(lambda m: operator(m, "ADD").builtinOptions, fusedActivationFunction=4),
        "operator 3 ADD: fused activation TANH",
    ),
    "fused_concat": (
        _set(lambda m: operator(m, "CONCATENATION").builtinOptions, fusedActivationFunction=1),
        "operator 6 CONCATENATION: a fused activation",
    ),
    "shuffled_weights": (
        _set(lambda m: operator(m, "FULLY_CONNECTED").builtinOptions, weightsFormat=1),
        "operator 13 FULLY_CONNECTED: a shuffled",
    ),
    "unknown_padding": (_set(lambda m: operator(m, "CONV_2D").builtinOptions, padding=7), "CONV_2D: padding 7"),
    "batch_concat": (_set(lambda m: operator(m, "CONCATENATION").builtinOptions, axis=0), "axis 0"),
    "batch_mean": (
        _set(lambda m: m.buffers[operand(m, "MEAN", 1).buffer], data=np.zeros(4, np.uint8)),
        "MEAN: axis 0",
    ),
    "batch_pad": (
        _set(
            lambda m: m.buffers[operand(m, "PAD", 1).buffer],
            data=np.ones(32, np.uint8) * np.tile([1, 0, 0, 0], 8).astype(np.uint8),
        ),
        "padding the batch axis",
    ),
    "constant_pooled": (
        lambda m: _constant_operand(m, "MAX_POOL_2D", 0),
        "input 0 of operator 4 MAX_POOL_2D is tensor",
    ),
    "constants_only": (
        lambda m: _constant_operand(m, "ADD", 0, 1),
        "input 0 of operator 3 ADD and all others are constants",
    ),
    "constant_without_scale": (lambda m: _constant_operand(m, "ADD", 1, quantization=None), "without one scale"),
    "constant_of_other_rank": (
        lambda m: _constant_operand(m, "ADD", 1, shape=np.array([1, 1, 6, 7, 4], np.int32)),
        "a constant of shape",
    ),
    "activation_as_weight": (_activation_weight, "operator 1 CONV_2D"),
}


@pytest.mark.parametrize("sin", REFUSED)
def test_unsupported_is_refused_by_name(sin: str) -> None:
    change, named = REFUSED[sin]
    with pytest.raises(UnsupportedError) as refusal:
        read_tflite(edited(FILE, change))
    assert named in str(refusal.value)


# What contradicts itself


def _same_name_twice(model: Any) -> None:
    model.metadata.append(model.metadata[0])


def _written_twice(model: Any) -> None:
    operator(model, "RELU6").outputs[0] = operator(model, "RELU").outputs[0]


def _read_before_written(model: Any) -> None:
    operators = model.subgraphs[0].operators
    operators[9], operators[10] = operators[10], operators[9]


def _scale(value: float) -> Change:
    return _set(lambda m: tensor(m, "t3").quantization, scale=np.float32([value]))


MALFORMED: dict[str, tuple[Change, str]] = {
    "zero_scale": (_scale(0.0), "finite scales above zero, got 0.0"),
    "negative_scale": (_scale(-1.0), "got -1.0"),
    "nan_scale": (_scale(float("nan")), "got nan"),
    "infinite_scale": (_scale(float("inf")), "got inf"),
    "zero_point_200": (_set(lambda m: tensor(m, "t3").quantization, zeroPoint=np.int64([200])), "[200, 200]"),
    "no_quantisation": (_set(lambda m: tensor(m, "t3"), quantization=None), "got no quantisation"),
    "two_scales": (
        _set(lambda m: tensor(m, "t3").quantization, scale=np.float32([1, 1]), zeroPoint=np.int64([0, 0])),
        "2 scales",
    ),
    "three_weight_scales": (
        _set(lambda m: operand(m, "CONV_2D", 1).quantization, scale=np.float32([1] * 3), zeroPoint=np.int64([0] * 3)),
        "1 weight scale or 4 along axis 0, got 3",
    ),
    "scales_along_another_axis": (
        _set(lambda m: operand(m, "DEPTHWISE_CONV_2D", 1).quantization, quantizedDimension=0),
        "4 along axis 3, got 4 along axis 0",
    ),
    "bias_scale_off": (
        _set(lambda m: operand(m, "CONV_2D", 2).quantization, scale=np.float32([1, 1, 1, 1])),
        "operator 1 CONV_2D: expected bias scales",
    ),
    "bias_zero_point": (
        _set(lambda m: operand(m, "CONV_2D", 2).quantization, zeroPoint=np.int64([1, 0, 0, 0])),
        "zero points of 0",
    ),
    "short_weight": (_set(lambda m: operand(m, "CONV_2D", 1), shape=np.int32([4, 3, 3, 1])), "expected 36 bytes"),
    "huge_weight": (_set(lambda m: operand(m, "CONV_2D", 1), shape=np.int32([65536, 65536, 1, 1])), "fewer than 2^31"),
    "negative_shape": (_set(lambda m: tensor(m, "t3"), shape=np.int32([1, -6, 7, 4])), "positive sizes"),
    "zero_shape": (_set(lambda m: tensor(m, "t3"), shape=np.int32([1, 0, 7, 4])), "positive sizes"),
    "nine_axes": (_set(lambda m: tensor(m, "t3"), shape=np.int32([1] * 9)), "at most 8 positive sizes"),
    "wrong_output_shape": (_set(lambda m: tensor(m, "t3"), shape=np.int32([1, 6, 7, 5])), "shape"),
    "zero_stride": (
        _set(lambda m: operator(m, "CONV_2D").builtinOptions, strideH=0),
        "stride_h and stride_w above zero",
    ),
    "negative_dilation": (
        _set(lambda m: operator(m, "CONV_2D").builtinOptions, dilationWFactor=-1),
        "dilation_w above zero",
    ),
    "depth_multiplier_off": (
        _set(lambda m: operator(m, "DEPTHWISE_CONV_2D").builtinOptions, depthMultiplier=2),
        "got 2",
    ),
    "negative_padding": (
        _set(lambda m: m.buffers[operand(m, "PAD", 1).buffer], data=np.full(32, 255, np.uint8)),
        "least -1",
    ),
    "external_buffer": (_set(lambda m: m.buffers[3], offset=64, size=64), "inside the FlatBuffer or behind it"),
    "reshape_disagrees": (
        _set(lambda m: operator(m, "RESHAPE").builtinOptions, newShape=np.int32([1, 31])),
        "options that fit the shape asked for, [1, 32]",
    ),
    "other_options": (
        _set(lambda m: operator(m, "ADD"), builtinOptionsType=1, builtinOptions=schema.Conv2DOptionsT()),
        "options of type 11",
    ),
    "no_options": (
        _set(lambda m: operator(m, "CONV_2D"), builtinOptionsType=0, builtinOptions=None),
        "options of type 1",
    ),
    "operator_code_99": (_set(lambda m: operator(m, "CONV_2D"), opcodeIndex=99), "operator code 99"),
    "tensor_99": (_set(lambda m: operator(m, "RELU"), inputs=np.int32([99])), "tensor 99"),
    "tensor_minus_2": (_set(lambda m: operator(m, "RELU"), inputs=np.int32([-2])), "tensor -2"),
    "buffer_999": (_set(lambda m: tensor(m, "t3"), buffer=999), "buffer 999"),
    "three_summands": (_set(lambda m: operator(m, "ADD"), inputs=np.int32([2, 3, 3])), "expected 2 to 2 inputs"),
    "no_output": (_set(lambda m: operator(m, "ADD"), outputs=np.int32([])), "1 output"),
    "version_zero": (_code("RELU", version=0), "version of at least 1"),
    "buffer_0_filled": (_set(lambda m: m.buffers[0], data=np.zeros(4, np.uint8)), "buffer 0"),
    "metadata_twice": (_same_name_twice, "a name of its own"),
    "written_twice": (_written_twice, "was not written before"),
    "read_before_written": (_read_before_written, "expected a tensor written before"),
    "no_operator": (_set(lambda m: m.subgraphs[0], operators=[]), "one that is not"),
    "two_outputs": (_set(lambda m: m.subgraphs[0], outputs=np.int32([1, 2])), "one input and one output"),
}


@pytest.mark.parametrize("sin", MALFORMED)
def test_contradictions_are_named(sin: str) -> None:
    change, named = MALFORMED[sin]
    with pytest.raises(ModelError) as refusal:
        read_tflite(edited(FILE, change))
    assert named in str(refusal.value)


# What is no FlatBuffer


def _root() -> int:
    return int(struct.unpack_from("<I", FILE)[0])


def _patched(at: int, code: str, value: int) -> bytes:
    changed = bytearray(FILE)
    struct.pack_into("<" + code, changed, at, value)
    return bytes(changed)


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "file of 0"),
    "three_bytes": (lambda: FILE[:3], "file of 3"),
    "a_zip": (lambda: b"PK\x03\x04" + FILE[4:], "inside the file"),
    "other_identifier": (lambda: FILE[:4] + b"TFL2" + FILE[8:], "b'TFL2'"),
    "half_a_file": (lambda: FILE[: len(FILE) // 2], "inside the file"),
    "root_outside": (lambda: _patched(0, "I", 0xFFFFFFF0), "inside the file"),
    "root_at_itself": (lambda: _patched(0, "I", 0), "a reference of at least 4"),
    "vtable_outside": (lambda: _patched(_root(), "i", -0x7FFFFFF0), "vtable"),
    "vtable_before_the_file": (lambda: _patched(_root(), "i", 0x7FFFFFF0), "vtable"),
    "vtable_of_odd_length": (lambda: _patched(_vtable(), "H", 7), "even length"),
    "vtable_too_long": (lambda: _patched(_vtable(), "H", 0xFFFE), "inside the file"),
    "table_too_short": (lambda: _patched(_vtable() + 2, "H", 6), "inside the table"),
    "field_beyond_its_table": (lambda: _patched(_vtable() + 4, "H", 0xFF0), "inside the table"),
}


def _vtable() -> int:
    return _root() - int(struct.unpack_from("<i", FILE, _root())[0])


@pytest.mark.parametrize("sin", BROKEN)
def test_broken_bytes_are_named_with_their_place(sin: str) -> None:
    build, named = BROKEN[sin]
    with pytest.raises(ModelError) as refusal:
        read_tflite(build())
    assert named in str(refusal.value)


def test_a_field_of_a_newer_schema_is_refused_not_dropped() -> None:
    # A vtable in front of the file's own, one slot longer than the schema this reader knows.
    known = len(tflite_schema.Model)
    length, size = struct.unpack_from("<HH", FILE, _vtable())
    slots = list(struct.unpack_from(f"<{(length - 4) // 2}H", FILE, _vtable() + 4))
    slots += [0] * (known - len(slots)) + [4]
    longer = struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), size, *slots)
    changed = bytearray(FILE + longer)
    struct.pack_into("<i", changed, _root(), _root() - len(FILE))
    with pytest.raises(UnsupportedError, match=f"field {known} is set"):
        read_tflite(bytes(changed))


def test_many_references_to_one_buffer_do_not_multiply_the_work() -> None:
    def share(model: Any) -> None:
        model.buffers.append(schema.BufferT())
        model.buffers[-1].data = np.zeros(100_000, np.uint8)
        for number in range(1000):
            entry = schema.MetadataT()
            entry.name, entry.buffer = f"n{number}", len(model.buffers) - 1
            model.metadata.append(entry)

    # 100 MB of metadata in a file of 150 kB.
    with pytest.raises(ModelError, match="readings of each byte"):
        read_tflite(edited(FILE, share))
