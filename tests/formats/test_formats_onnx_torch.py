"""Files of torch's exporter that traces programs: operators `quantized_decomposed`, as pt2e quantisation leaves them."""

from __future__ import annotations

import importlib
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cactus_edge.formats.onnx import read_onnx
from cactus_edge.formats.onnx.runtime import OrtSession, has_vnni
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not has_vnni(), reason="the profile is that of x86-64 with VNNI"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small CNN with int8 weights, per channel and per tensor, float biases and a batch of any size."""
    torch = pytest.importorskip("torch", reason="the exporter is torch's")
    pytest.importorskip("onnxscript", reason="the exporter needs it")
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
        _export(torch, path)
    return path.read_bytes()


def _export(torch: Any, path: Path) -> None:
    functional, generator = torch.nn.functional, torch.Generator().manual_seed(0)
    quantised, int8 = torch.ops.quantized_decomposed, (-128, 127, torch.int8)

    def simulated(x: Any, scale: float, zero_point: int) -> Any:
        codes = quantised.quantize_per_tensor(x, scale, zero_point, *int8)
        return quantised.dequantize_per_tensor(codes, scale, zero_point, *int8)

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.randint(-127, 128, (4, 2, 3, 3), generator=generator).to(torch.int8))
            self.register_buffer("scales", torch.tensor([0.01, 0.02, 0.005, 0.01]))
            self.register_buffer("zeros", torch.zeros(4, dtype=torch.int64))
            self.register_buffer("matrix", torch.randint(-127, 128, (5, 36), generator=generator).to(torch.int8))
            self.register_buffer("shift", torch.randn(4, generator=generator))
            self.register_buffer("offset", torch.randn(5, generator=generator))

        def forward(self, x: Any) -> Any:
            x = simulated(x, 0.03, 3)
            kernel = quantised.dequantize_per_channel(self.kernel, self.scales, self.zeros, 0, *int8)
            x = simulated(torch.relu(functional.conv2d(x, kernel, self.shift)), 0.03, -128)
            x = simulated(functional.max_pool2d(x, 2), 0.03, -128)
            x = simulated(torch.flatten(x, 1), 0.03, -128)
            x = functional.linear(x, quantised.dequantize_per_tensor(self.matrix, 0.011, 0, *int8), self.offset)
            return simulated(x, 0.1, -7)

    torch.onnx.export(
        *(Network().eval(), (torch.zeros(2, 2, 8, 8),)),
        dynamo=True,
        input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    ).save(path)


def test_files_of_the_exporter_agree(exported: bytes) -> None:
    graph = read_onnx(exported).graph
    kinds = [type(n.op).__name__ for n in graph.nodes]
    assert kinds == ["Quantize", "Conv2d", "MaxPool", "Reshape", "Dense", "Dequantize"]
    x = np.random.default_rng(0).normal(0, 1.2, (2000, 8, 8, 2)).astype(np.float32)
    got, want = OrtSession(exported, graph, False).run_batch(x), evaluate(graph, x, profile("ort-x86"))
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    assert len(np.unique(got)) > 100, "the codes vary"
