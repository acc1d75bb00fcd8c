"""TensorRT's rules for QDQ files, and the verdicts of a real TensorRT parser where one is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from onnx_kit import chain, classifier, edit

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.formats.onnx.tensorrt import require_tensorrt, violations
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph


def symmetric(graph: Graph) -> Graph:
    """The network with zero points of 0."""
    return replace(graph, tensors=tuple(replace(t, zero_point=0) for t in graph.tensors))


def cases() -> list[tuple[bytes, int]]:
    """(file, activations with a zero point + int32 biases)."""
    graph = classifier(0)
    return [
        (write_onnx(symmetric(graph), bias="float32"), 0),
        (write_onnx(symmetric(graph)), 2),
        (write_onnx(graph, bias="float32"), 2),
        (write_onnx(graph), 4),
        *((write_onnx(symmetric(classifier(0, activation)), bias="float32"), 0) for activation in ops.Activation),
    ]


def test_each_violation_is_counted_and_named() -> None:
    for data, count in cases():
        assert len(violations(data)) == count
    require_tensorrt(cases()[0][0])
    with pytest.raises(UnsupportedError, match=r"activation 'input' has zero point 5, expected 0.*and 1 more"):
        require_tensorrt(write_onnx(classifier(0)))
    with pytest.raises(UnsupportedError, match="node 3 DequantizeLinear 'conv_bias_dq/DequantizeLinear' takes int32"):
        require_tensorrt(cases()[1][0])


def test_what_cannot_be_read_is_no_verdict() -> None:
    def weight_zero_point(m: Any) -> None:
        t = next(t for t in m.graph.initializer if t.name == "conv_weight_zero_point")
        t.CopyFrom(numpy_helper.from_array(np.array([1, 0, 0], np.int8), t.name))

    with pytest.raises(ModelError, match="zero point other than 0"):
        violations(edit(cases()[0][0], weight_zero_point))


def test_the_real_parser_agrees() -> None:
    """tensorrt-rtx-cu12 parses without a GPU; it is proprietary and therefore no dependency."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the optional package tensorrt-rtx-cu12 is not installed")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)

    def parses(data: bytes) -> bool:
        network = trt.Builder(logger).create_network(0)
        return bool(trt.OnnxParser(network, logger).parse(data))

    for data, count in cases():
        assert parses(data) == (count == 0)
    for seed in range(20):
        graph = symmetric(chain(np.random.default_rng(seed)))
        try:
            data = write_onnx(graph, bias="float32")
        except UnsupportedError:
            continue
        assert parses(data), seed
