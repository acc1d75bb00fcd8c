"""Single checks of the readers, each with the file that would be read as something else if it were left out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from test_tflite_read import FILE, _constant_operand, _patched, _set, _vtable
from test_tflite_read_moves import SHAPE, File
from test_tflite_read_shapes import FILE as RESHAPING
from test_tflite_read_shapes import Editor
from test_verify_elf import CODE, make
from tflite_edit import edited, operand, operator

from cactus_edge.errors import ModelError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.verify.elf import read_elf

Change = Callable[[Any], None]


def chain(x: Tensor, *steps: tuple[ops.Op, Tensor]) -> Graph:
    """Each op on the result of the one before it."""
    b = GraphBuilder()
    last = b.input(x)
    for op, y in steps:
        last = b.node(op, [last], y)
    return b.finish(last)


def refused(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_tflite(data)


# Dilated convolutions as SPACE_TO_BATCH_ND, CONV_2D, BATCH_TO_SPACE_ND


def dilated(kernel: int) -> Graph:
    """One convolution of dilation 2 that keeps the image's size."""
    rng = np.random.default_rng(kernel)
    weight = ops.freeze(rng.integers(-127, 128, (2, kernel, kernel, 2)), np.int8)
    op = ops.Conv2d(weight, ops.freeze([40, -9], np.int32), ops.freeze([0.01, 0.02], np.float32))
    p = kernel - 1
    op = ops.Conv2d(op.weight, op.bias, op.weight_scale, (1, 1), ops.Padding2d(p, p, p, p), (2, 2))
    return chain(Tensor("x", (4, 4, 2), "int8", 0.5, 3), (op, Tensor("y", (4, 4, 2), "int8", 0.25, -2)))


def _tensor(model: Any, like: Any, shape: tuple[int, ...], values: Any = None) -> int:
    """A new tensor: `like` in another shape, or a constant of int32."""
    t, buffer = copy.copy(like), schema.BufferT()
    t.name, t.shape, t.shapeSignature = f"n{len(model.subgraphs[0].tensors)}", np.array(shape, np.int32), None
    if values is not None:
        t.type, t.quantization, buffer.data = schema.TensorType.INT32, None, np.asarray(values, "<i4").tobytes()
    model.buffers.append(buffer)
    t.buffer = len(model.buffers) - 1
    model.subgraphs[0].tensors.append(t)
    return len(model.subgraphs[0].tensors) - 1


def _operator(model: Any, name: str, inputs: list[int], output: int) -> Any:
    """An operator with options of no fields, at the end."""
    code, o = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
    model.operatorCodes.append(code)
    o.opcodeIndex = len(model.operatorCodes) - 1
    o.inputs, o.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
    table = "".join(part.title() for part in name.split("_")).replace("Nd", "ND") + "Options"
    o.builtinOptions, o.builtinOptionsType = getattr(schema, f"{table}T")(), getattr(schema.BuiltinOptions, table)
    return o


def phased(kernel: int) -> bytes:
    """`dilated` as TensorFlow writes it."""

    def change(model: Any) -> None:
        sub, conv, border = model.subgraphs[0], operator(model, "CONV_2D"), 2 * (kernel - 1)
        x, y = int(conv.inputs[0]), int(conv.outputs[0])
        n = (4 + 2 * (kernel - 1)) // 2
        block = _tensor(model, sub.tensors[x], (2,), [2, 2])
        pads = _tensor(model, sub.tensors[x], (2, 2), [[border // 2] * 2] * 2)
        crops = _tensor(model, sub.tensors[x], (2, 2), [[0, 0], [0, 0]])
        cut = _tensor(model, sub.tensors[x], (4, n, n, 2))
        made = _tensor(model, sub.tensors[y], (4, n - kernel + 1, n - kernel + 1, 2))
        conv.inputs[0], conv.outputs[0] = cut, made
        conv.builtinOptions.padding = schema.Padding.VALID
        conv.builtinOptions.dilationHFactor = conv.builtinOptions.dilationWFactor = 1
        enter = _operator(model, "SPACE_TO_BATCH_ND", [x, block, pads], cut)
        leave = _operator(model, "BATCH_TO_SPACE_ND", [made, block, crops], y)
        sub.operators = [enter, conv, leave]

    return edited(write_tflite(dilated(kernel)), change)


@pytest.mark.parametrize("kernel", [1, 3])
def test_phases_of_an_image_are_one_dilated_convolution(kernel: int) -> None:
    data = phased(kernel)
    assert read_tflite(data).graph.digest() == dilated(kernel).digest()
    x = np.random.default_rng(0).integers(-128, 128, (3, 4, 4, 2)).astype(np.int8)
    for name in ("litert-ref", "litert-builtin", "litert-xnnpack"):
        agree(data, x, name).require()


def _conv_options(**values: Any) -> Change:
    return _set(lambda m: operator(m, "CONV_2D").builtinOptions, **values)


def _of_images(**values: Any) -> Change:
    return _set(lambda m: operand(m, "CONV_2D", 0).quantization, **values)


def _of_result(**values: Any) -> Change:
    def path(model: Any) -> Any:
        return model.subgraphs[0].tensors[operator(model, "BATCH_TO_SPACE_ND").outputs[0]].quantization

    return _set(path, **values)


def _other_blocks(model: Any) -> None:
    leave = operator(model, "BATCH_TO_SPACE_ND")
    leave.inputs[1] = _tensor(model, operand(model, "BATCH_TO_SPACE_ND", 0), (2,), [4, 1])


def _second_convolution(model: Any) -> None:
    """The same weights a second time; they would be read once."""
    sub, conv = model.subgraphs[0], operator(model, "CONV_2D")
    again = copy.copy(conv)
    made = _tensor(model, sub.tensors[conv.outputs[0]], tuple(sub.tensors[conv.outputs[0]].shape))
    again.inputs, again.outputs = conv.inputs.copy(), np.array([made], np.int32)
    again.inputs[0] = conv.outputs[0]
    sub.tensors[conv.inputs[2]].quantization = None  # that of the second convolution would be another
    sub.operators.insert(2, again)
    sub.operators[3].inputs[0] = made


def _images_in_the_input(model: Any) -> None:
    sub = model.subgraphs[0]
    sub.operators[0].outputs[0] = sub.operators[1].inputs[0] = sub.inputs[0]


PHASES: dict[str, tuple[int, Change, str]] = {
    "dilation": (1, _conv_options(dilationHFactor=2), "dilation .2, 1. or padding inside"),
    "stride": (1, _conv_options(strideH=2), "a stride .2, 1."),
    "padding": (3, _conv_options(padding=schema.Padding.SAME), "or padding inside a dilated convolution"),
    "images_of_another_scale": (1, _of_images(scale=np.float32([0.75])), "images of shape"),
    "images_of_another_zero_point": (1, _of_images(zeroPoint=np.int64([4])), "images of shape"),
    "result_of_another_scale": (1, _of_result(scale=np.float32([0.75])), "one that requantises"),
    "result_of_another_zero_point": (1, _of_result(zeroPoint=np.int64([7])), "one that requantises"),
    "other_blocks": (1, _other_blocks, "blocks .4, 1. .* behind blocks .2, 2."),
    "two_convolutions": (1, _second_convolution, "another operator than one convolution"),
    "written_before": (1, _images_in_the_input, "expected one not written before"),
}


@pytest.mark.parametrize("sin", PHASES)
def test_what_stands_between_the_phases_is_one_plain_convolution(sin: str) -> None:
    kernel, change, message = PHASES[sin]
    refused(edited(phased(kernel), change), message)


# Transposed convolutions


def upsampling() -> bytes:
    weight = ops.freeze(np.arange(-18, 18).reshape(2, 3, 3, 2), np.int8)
    bias, scale = ops.freeze([40, -9], np.int32), ops.freeze([0.01, 0.02], np.float32)
    op = ops.TransposeConv2d(weight, bias, scale, (2, 2))
    return write_tflite(chain(Tensor("x", (4, 4, 2), "int8", 0.5, 3), (op, Tensor("y", (9, 9, 2), "int8", 0.25, -2))))


def _another_size(model: Any) -> None:
    buffer = model.buffers[operand(model, "TRANSPOSE_CONV", 0).buffer]
    shape = np.frombuffer(bytes(buffer.data), "<i4").copy()
    shape[1] += 1
    buffer.data = shape.tobytes()


def _nibbles(model: Any) -> None:
    weight = operand(model, "TRANSPOSE_CONV", 1)
    weight.type = schema.TensorType.INT4
    data = model.buffers[weight.buffer].data
    model.buffers[weight.buffer].data = bytes(data)[: len(data) // 2]


@pytest.mark.parametrize(
    ("change", "message"), [(_another_size, "expected the output's shape"), (_nibbles, "with weights of 4 bits")]
)
def test_a_transposed_convolution_states_its_output_and_has_bytes(change: Change, message: str) -> None:
    read_tflite(upsampling())
    refused(edited(upsampling(), change), message)


# uint8 codes, first axes, int16


def requantised() -> bytes:
    """x -> RELU6 -> QUANTIZE -> QUANTIZE -> y, all of one scale."""
    like = [Tensor(n, (4,), "int8", 0.5, 3) for n in ("x", "r", "u", "y")]
    return write_tflite(
        chain(like[0], (ops.Relu6(), like[1]), (ops.Requantize(), like[2]), (ops.Requantize(), like[3]))
    )


def _unsigned(name: str) -> Change:
    def change(model: Any) -> None:
        t = next(t for t in model.subgraphs[0].tensors if t.name in (name, name.encode()))
        t.type, t.quantization.zeroPoint = schema.TensorType.UINT8, np.int64([131])

    return change


def test_uint8_codes_are_at_the_ends_alone() -> None:
    read_tflite(edited(requantised(), _unsigned("y")))
    refused(edited(requantised(), _unsigned("u")), "uint8 codes inside the model")
    refused(edited(requantised(), _unsigned("x")), "an operator on uint8 codes")


def test_a_model_of_a_batch_is_refused() -> None:
    assert read_tflite(File("RELU", [(1, 4)], input_shape=(1, 4)).data()).graph.input.shape == (4,)
    refused(File("RELU", [(2, 4)], input_shape=(2, 4)).data(), r"first \(batch\) axis other than 1")


def test_moves_of_int16_codes_were_not_shown() -> None:
    x, y = Tensor("x", (4, 1, 6), "int16", 0.5), Tensor("y", (4, 6), "int16", 0.5)

    def squeeze(model: Any) -> None:
        o = operator(model, "RESHAPE")
        code = model.operatorCodes[o.opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SQUEEZE
        o.inputs = o.inputs[:1]
        o.builtinOptions, o.builtinOptionsType = schema.SqueezeOptionsT(), schema.BuiltinOptions.SqueezeOptions
        o.builtinOptions.squeezeDims = np.int32([2])

    refused(edited(write_tflite(chain(x, (ops.Reshape(), y))), squeeze), "SQUEEZE: an operator on int16 codes")


# Fields


def _quantised(scales: list[float], zeros: list[int] | None) -> Any:
    q = schema.QuantizationParametersT()
    q.scale, q.zeroPoint = np.float32(scales), None if zeros is None else np.int64(zeros)
    return q


def _one_bias_scale(model: Any) -> None:
    """A tenth of an output code away in one channel of four."""
    q = operand(model, "CONV_2D", 2).quantization
    out = model.subgraphs[0].tensors[operator(model, "CONV_2D").outputs[0]].quantization.scale[0]
    q.scale = q.scale + np.float32([0, 0, 0.1 * out, 0])


FIELDS: dict[str, tuple[Change, str]] = {
    "one_bias_scale_off": (_one_bias_scale, "expected bias scales within 0.02"),
    "constant_of_two_scales": (
        lambda m: _constant_operand(m, "ADD", 1, quantization=_quantised([0.5, 0.25], [0, 0])),
        "a constant without one scale",
    ),
    "weight_without_zero_points": (
        _set(lambda m: operand(m, "CONV_2D", 1).quantization, zeroPoint=None),
        "expected 4 zero points",
    ),
    "activation_without_zero_point": (
        _set(lambda m: operand(m, "DEPTHWISE_CONV_2D", 0).quantization, zeroPoint=None),
        "expected 1 zero points",
    ),
    "weight_without_scales": (_set(lambda m: operand(m, "CONV_2D", 1), quantization=None), "a quantised weight"),
    "variants": (
        _set(lambda m: operand(m, "CONV_2D", 1), variantTensors=[schema.VariantSubTypeT()]),
        "uses variant_tensors",
    ),
    "external_buffers": (_set(lambda m: m, externalBuffers=[schema.ExternalBufferT()]), "uses external_buffers"),
    "inside_and_behind": (_set(lambda m: m.buffers[3], offset=64, size=0), "inside the FlatBuffer or behind it"),
    "custom_options": (_set(lambda m: operator(m, "RELU"), customOptions=[1, 2]), "uses custom_options"),
    "intermediates": (_set(lambda m: operator(m, "RELU"), intermediates=np.int32([1])), "state or intermediate"),
    "state": (_set(lambda m: operator(m, "RELU"), mutatingVariableInputs=[True]), "state or intermediate"),
}


@pytest.mark.parametrize("sin", FIELDS)
def test_a_field_with_a_meaning_is_not_dropped(sin: str) -> None:
    change, message = FIELDS[sin]
    refused(edited(FILE, change), message)


def test_a_field_does_not_begin_inside_its_tables_head() -> None:
    refused(_patched(_vtable() + 4, "H", 2), "inside the table")


def test_a_buffer_behind_the_flatbuffer_is_something_to_find_out() -> None:
    def behind(at: int) -> bytes:
        def change(model: Any) -> None:
            buffer = model.buffers[operand(model, "CONV_2D", 1).buffer]
            buffer.data, buffer.offset, buffer.size = None, at, 72

        return edited(FILE, change)

    weights = read_tflite(FILE).graph.nodes[1].op.weight.tobytes()  # type: ignore[union-attr]
    model = read_tflite(behind(len(behind(1 << 20))) + weights)
    assert model.graph.digest() == read_tflite(FILE).graph.digest()
    assert read_tflite(FILE).resolved is None and "behind the FlatBuffer" in (model.resolved or "")


# Moves and shapes


def _border_scale(model: Any) -> None:
    t = operand(model, "PADV2", 2)
    t.quantization = _quantised([0.25], [3])


def test_a_border_in_another_scale_is_refused() -> None:
    data = File("PADV2", [(1, 5, 6, 3)], [[[0, 0], [1, 0], [0, 0], [0, 0]], np.int8([9])]).data()
    read_tflite(data)
    refused(edited(data, _border_scale), "not one number in the input's scale")


MOVES: dict[str, tuple[File, str]] = {
    "new_axis": (File("STRIDED_SLICE", [SHAPE], [[0], [1], [1]], options={"newAxisMask": 1}), "a new axis or an offset"),
    "offset": (
        File("STRIDED_SLICE", [(1, 1, 6, 3)], [[0, 1], [1, 2], [1, 1]], options={"offset": True}),
        "a new axis or an offset",
    ),
    "batch_dimensions": (
        File("GATHER", [(1, 4, 2, 3)], [[0, 2]], options={"axis": 2, "batchDims": 1}),
        "a gather with batch dimensions",
    ),
    "mirror": (
        File("MIRROR_PAD", [(1, 5, 6, 3)], [[[0, 0], [1, 0], [0, 0], [0, 0]]], options={"mode": 2}),
        "MIRROR_PAD: mode 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("sin", MOVES)
def test_an_option_that_moves_otherwise_is_refused(sin: str) -> None:
    file, message = MOVES[sin]
    refused(file.data(), message)


def _cut_along_a_new_axis(model: Any) -> None:
    e = Editor(model)
    e.target(e.cut(e.shape(), 1, 4, [3], newAxisMask=1))


def _gathered_by_batch(model: Any) -> None:
    e = Editor(model)
    e.target(e.emit("GATHER", [e.shape(), e.constant([1, 2])], [2], batchDims=1))


def _packed_along_the_second(model: Any) -> None:
    e = Editor(model)
    batch = e.cut(e.shape(), 0, 1, [], shrinkAxisMask=1)
    sizes = [e.constant(np.int32(n)) for n in (8, 6)]
    e.target(e.emit("PACK", [batch, *sizes], [3], valuesCount=3, axis=1))


def _product(**options: Any) -> Change:
    """RESHAPE to [REDUCE_PROD(SHAPE(x))], kept as a list where the options say so."""

    def change(model: Any) -> None:
        e = Editor(model)
        made = e.emit("SHAPE", [e.shape()], [1] if options.get("keepDims") else [])
        o = model.subgraphs[0].operators[-2]
        o.inputs = np.array([o.inputs[0], e.constant([0])], np.int32)
        code = model.operatorCodes[o.opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.REDUCE_PROD
        o.builtinOptions, o.builtinOptionsType = schema.ReducerOptionsT(), schema.BuiltinOptions.ReducerOptions
        o.builtinOptions.__dict__.update(options)
        e.target(made)

    return change


SHAPES: dict[str, tuple[Change, str]] = {
    "new_axis": (_cut_along_a_new_axis, "an ellipsis, a new axis or an offset"),
    "gather": (_gathered_by_batch, "gathering along another axis"),
    "pack": (_packed_along_the_second, "packing along another axis"),
    "product": (_product(keepDims=True), "a product over other than the axis of a list"),
}


@pytest.mark.parametrize("sin", SHAPES)
def test_shape_arithmetic_of_another_kind_is_refused(sin: str) -> None:
    change, message = SHAPES[sin]
    refused(edited(RESHAPING, change), message)


# ELF


def test_segments_that_share_one_byte_overlap() -> None:
    read_elf(make(data_3=0x100 + len(CODE)))
    with pytest.raises(ModelError, match="load addresses of two segments overlap"):
        read_elf(make(data_3=0x100 + len(CODE) - 1))
