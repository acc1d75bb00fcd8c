"""Files that sin: each is refused with a message that names the sin, and no bytes make the reader do anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_kit import classifier, edit, halve_codes, initializer, node, quantized_by_ort

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.ir import ops

GOOD = write_onnx(classifier(0))


def test_the_file_is_good_before_it_is_edited() -> None:
    assert len(read_onnx(edit(GOOD, lambda m: None)).graph.nodes) == 6


def rename_operator(m: Any) -> None:
    node(m, "Conv").op_type = "ConvInteger"


def foreign_domain(m: Any) -> None:
    node(m, "Conv").domain = "com.example"


def no_scale(m: Any) -> None:
    del node(m, "QuantizeLinear").input[1:]


def computed_scale(m: Any) -> None:
    node(m, "QuantizeLinear", 1).input[1] = "input"


def external_data(m: Any) -> None:
    t = initializer(m, "conv_weight")
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    t.external_data.add(key="location", value="../../secret.bin")


def hidden_external_data(m: Any) -> None:
    initializer(m, "conv_weight").external_data.add(key="location", value="/dev/zero")


def external_attribute(m: Any) -> None:
    value = numpy_helper.from_array(np.zeros(1, np.float32), "v")
    value.data_location = TensorProto.EXTERNAL
    m.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=value))


def infinite_scale(m: Any) -> None:
    initializer(m, "conv_scale").raw_data = np.float32(np.inf).tobytes()


def negative_weight_scale(m: Any) -> None:
    t = initializer(m, "conv_weight_scale")
    t.raw_data = (-numpy_helper.to_array(t)).tobytes()


def tiny_scale(m: Any) -> None:
    initializer(m, "conv_scale").raw_data = np.float32(2.0**-70).tobytes()


def other_scale_behind(m: Any) -> None:
    node(m, "DequantizeLinear", 0).input[1] = "conv_scale"


def no_zero_point(m: Any) -> None:
    del node(m, "QuantizeLinear").input[2:]


def weight_zero_point(m: Any) -> None:
    initializer(m, "conv_weight_zero_point").raw_data = b"\x7f\0\0"


def float_weight(m: Any) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 2, 3, 3), np.float32), "w"))
    node(m, "Conv").input[1] = "w"


def other_bias_scale(m: Any) -> None:
    t = initializer(m, "conv_bias_scale")
    t.raw_data = (2 * numpy_helper.to_array(t)).tobytes()


def huge_float_bias(m: Any) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.float32([1e30, 2, 3]), "b"))
    node(m, "Conv").input[2] = "b"


def int8_bias(m: Any) -> None:
    node(m, "Conv").input[2] = node(m, "Conv").input[1]


def short_weight(m: Any) -> None:
    initializer(m, "conv_weight").raw_data = b"\0\0"


def two_places(m: Any) -> None:
    initializer(m, "conv_weight").int32_data.extend([1, 2, 3])


def listed_out_of_range(m: Any) -> None:
    t = initializer(m, "conv_zero_point")
    t.ClearField("raw_data")
    t.int32_data.append(300)


def huge_weight(m: Any) -> None:
    initializer(m, "conv_weight").dims[0] = 1 << 60


def negative_dimension(m: Any) -> None:
    initializer(m, "conv_weight").dims[0] = -3


def double_constant(m: Any) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.zeros(1), "d"))


def short_codes(m: Any) -> None:
    initializer(m, "conv_zero_point").data_type = TensorProto.INT16


def nibbles(m: Any) -> None:
    initializer(m, "conv_weight").data_type = TensorProto.INT4


def per_channel_codes(m: Any) -> None:
    initializer(m, "conv_scale").CopyFrom(numpy_helper.from_array(np.float32([1, 2, 3]), "conv_scale"))


def twice_named(m: Any) -> None:
    m.graph.initializer.append(initializer(m, "conv_weight"))


def skipped_quantisation(m: Any) -> None:
    node(m, "MaxPool").input[0] = node(m, "Relu").output[0]


def two_readers(m: Any) -> None:
    m.graph.node.append(helper.make_node("QuantizeLinear", ["conv_sum", "conv_scale", "conv_zero_point"], ["again"]))


def float_output(m: Any) -> None:
    m.graph.output[0].name = "logits_sum"


def int8_output(m: Any) -> None:
    m.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8


def int8_input(m: Any) -> None:
    m.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8


def second_input(m: Any) -> None:
    m.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 1]))


def symbolic_height(m: Any) -> None:
    m.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"


def fixed_batch(m: Any) -> None:
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def stated_otherwise(m: Any) -> None:
    m.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6


def read_before_written(m: Any) -> None:
    m.graph.node.insert(0, m.graph.node.pop())


def written_twice(m: Any) -> None:
    m.graph.node.append(m.graph.node[0])


def unknown_attribute(m: Any) -> None:
    node(m, "Conv").attribute.append(helper.make_attribute("mystery", 1))


def attribute_of_another_type(m: Any) -> None:
    a = next(a for a in node(m, "Conv").attribute if a.name == "group")
    a.CopyFrom(helper.make_attribute("group", 1.0))


def attribute_twice(m: Any) -> None:
    node(m, "Conv").attribute.append(helper.make_attribute("group", 1))


def three_pads(m: Any) -> None:
    a = next(a for a in node(m, "Conv").attribute if a.name == "pads")
    a.ints.pop()


def same_padding(m: Any) -> None:
    node(m, "Conv").attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))


def endless_padding(m: Any) -> None:
    a = next(a for a in node(m, "Conv").attribute if a.name == "pads")
    a.ints[0] = 1 << 40


def zero_stride(m: Any) -> None:
    a = next(a for a in node(m, "MaxPool").attribute if a.name == "strides")
    a.ints[0] = 0


def rounding_up(m: Any) -> None:
    node(m, "MaxPool").attribute.append(helper.make_attribute("ceil_mode", 1))
    next(a for a in node(m, "MaxPool").attribute if a.name == "strides").ints[:] = [3, 3]


def zero_groups(m: Any) -> None:
    next(a for a in node(m, "Conv").attribute if a.name == "group").i = 0


def scaled_product(m: Any) -> None:
    node(m, "Gemm").attribute.append(helper.make_attribute("alpha", 0.5))


def blocks(m: Any) -> None:
    node(m, "QuantizeLinear").attribute.append(helper.make_attribute("block_size", 2))


def joined_batch(m: Any) -> None:
    flat = node(m, "Flatten")
    m.graph.initializer.append(numpy_helper.from_array(np.array([1, -1], np.int64), "shape"))
    flat.op_type = "Reshape"
    flat.input.append("shape")
    del flat.attribute[:]


def functions(m: Any) -> None:
    m.functions.add(name="f")


def sparse(m: Any) -> None:
    m.graph.sparse_initializer.add()


def old_operators(m: Any) -> None:
    m.opset_import[0].version = 12


def unknown_version(m: Any) -> None:
    m.ir_version = 99


def metadata_twice(m: Any) -> None:
    for _ in range(2):
        m.metadata_props.add(key="k", value="v")


SINS: list[tuple[Callable[[Any], None], str]] = [
    (
        rename_operator,
        "node 4 ConvInteger 'conv_sum/Conv': the operator ConvInteger, which ONNX Runtime rescales in float, is not",
    ),
    (foreign_domain, "node 4 Conv 'conv_sum/Conv' of domain 'com.example'"),
    (no_scale, "node 0 QuantizeLinear 'input/QuantizeLinear': expected 2 to 3 inputs"),
    (computed_scale, "node 5 QuantizeLinear .* input 1 'input' is not a constant"),
    (external_data, "'conv_weight' keeps its data outside the file, which is never followed"),
    (hidden_external_data, "'conv_weight' keeps its data outside the file"),
    (external_attribute, "node 0 Constant .* keeps its data outside the file"),
    (infinite_scale, "expected a finite scale above zero, got inf"),
    (negative_weight_scale, "expected finite scales above zero"),
    (tiny_scale, r"expected them in \[2\^-60, 2\^60\]"),
    (other_scale_behind, "node 1 DequantizeLinear .*differs from the QuantizeLinear's"),
    (no_zero_point, "node 1 DequantizeLinear .*zero point that differs from the QuantizeLinear"),
    (weight_zero_point, "weights from -.* around their zero point"),
    (float_weight, "node 4 Conv .*'w' is not a constant behind a DequantizeLinear"),
    (other_bias_scale, "a bias whose scale is not that of input times weight"),
    (huge_float_bias, "a float32 bias of more than 32 bits"),
    (int8_bias, "input 2 is int8, expected int32"),
    (short_weight, r"'conv_weight': 2 bytes for shape \(3, 2, 3, 3\)"),
    (two_places, "'conv_weight': expected its values in one place"),
    (listed_out_of_range, "'conv_zero_point': values outside int8"),
    (huge_weight, "'conv_weight': shape .* expected at most"),
    (negative_dimension, r"'conv_weight': shape \(-3, 2, 3, 3\)"),
    (double_constant, "'d' is float64, expected int8"),
    (short_codes, "'conv_zero_point' is int16, expected int8"),
    (nibbles, "'conv_weight' is int4, expected int8"),
    (per_channel_codes, "activations with a scale per channel"),
    (twice_named, "'conv_weight': expected a name of its own"),
    (skipped_quantisation, "2 nodes read its result before it is quantised.*: a float island"),
    (two_readers, "2 nodes read its result before it is quantised.*: a float island"),
    (float_output, "2 nodes read its result before it is quantised.*: a float island"),
    (int8_output, "output 'logits_real' is not a float32 tensor"),
    (int8_input, "input 'input_real' is not a float32 tensor"),
    (second_input, "has 2 inputs and 1 outputs"),
    (symbolic_height, "symbolic or empty axes"),
    (fixed_batch, "a fixed batch of 8"),
    (stated_otherwise, r"states shape \[None, 6\], the nodes give"),
    (read_before_written, "node 0 DequantizeLinear .*reads 'logits' before it is written"),
    (written_twice, "expected a name of its own|a second time"),
    (unknown_attribute, "attribute 'mystery' is not supported"),
    (attribute_of_another_type, "attribute 'group' has type 1, expected 2"),
    (attribute_twice, "attribute 'group' twice"),
    (three_pads, "attribute 'pads' has 3 values, expected 4"),
    (same_padding, "auto_pad b'SAME_UPPER'"),
    (endless_padding, "expected a weight for 3298534883334 inputs"),
    (zero_stride, "strides above zero"),
    (rounding_up, "ceil_mode = 1"),
    (zero_groups, "groups that divide 2 inputs"),
    (scaled_product, "alpha or beta other than 1"),
    (blocks, "block_size = 2"),
    (joined_batch, r"a reshape to \[1, -1\]"),
    (functions, "has functions"),
    (sparse, "sparse initializers"),
    (old_operators, r"operator sets \[12\], expected one from 13"),
    (unknown_version, "IR version 99"),
    (metadata_twice, "metadata 'k' twice"),
]


@pytest.mark.parametrize(("sin", "message"), SINS, ids=lambda v: getattr(v, "__name__", ""))
def test_each_sin_is_named(sin: Callable[[Any], None], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_onnx(edit(GOOD, sin))


def test_weights_outside_the_file_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the onnx package itself saves them, beside the model."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load_from_string(GOOD)
    onnx.save_model(model, "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(UnsupportedError, match="outside the file"):
        read_onnx(Path("model.onnx").read_bytes())


def test_an_activation_that_changes_the_scale_of_codes_it_shares() -> None:
    data = write_onnx(classifier(0, ops.Activation.RELU6))

    with pytest.raises(UnsupportedError, match="relu6 on codes that changes their scale"):
        read_onnx(edit(data, halve_codes))


def test_other_bytes_are_no_onnx_file() -> None:
    for data in (b"", b"\x00", b"TFL3" * 20, b"PK\x03\x04" + bytes(60), b"\x08\x08"):
        with pytest.raises(ModelError, match="not an ONNX file"):
            read_onnx(data)


def test_every_truncation_is_a_model_error() -> None:
    for end in range(0, len(GOOD) - 1, 7):
        with pytest.raises(ModelError):
            read_onnx(GOOD[:end])


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """The file with a few bytes changed, inserted, cut out or copied elsewhere."""
    raw = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, kind = int(rng.integers(len(raw))), rng.integers(5)
        if kind == 0:
            raw[at] = int(rng.integers(256))
        elif kind == 1:
            raw[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            raw[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 3:
            del raw[at : at + int(rng.integers(1, 17))]
        else:
            start = int(rng.integers(len(raw)))
            raw[at:at] = raw[start : start + int(rng.integers(1, 65))]
    return bytes(raw)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """Nothing but a graph or a ModelError comes of 2,000 damaged files."""
    rng = np.random.default_rng(0)
    for data in (GOOD, quantized_by_ort(tmp_path)):
        outcomes = {"read": 0, "refused": 0}
        for _ in range(1000):
            try:
                read_onnx(mutated(rng, data))
            except ModelError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
        assert min(outcomes.values()) > 10, outcomes
