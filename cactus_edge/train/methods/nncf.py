"""NNCF's quantisation of a trained network: its ranges, its scales, its file, read back by our own reader.

`nncf.quantize` with the parameters under which every operator becomes an integer one (README, `.onnx`): on the float ONNX model
(post-training), or on a torch module whose weights are then trained through NNCF's own fake quantisers. It takes the ranges of its
calibration samples by its own statistics and knows nothing of bounds. Source: NNCF 3.4.0,
https://github.com/openvinotoolkit/nncf. Its telemetry stays off.
"""

from __future__ import annotations

import io
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cactus_edge.errors import InstallError
from cactus_edge.train.data import Dataset
from cactus_edge.train.float_onnx import INPUT, OPSET, OUTPUT, float_onnx
from cactus_edge.train.folded import Folded, detach, plan
from cactus_edge.train.loop import to_torch
from cactus_edge.train.methods.nncf_tool import HINT, quiet
from cactus_edge.train.models import input_window
from cactus_edge.train.plain import Plain

SAMPLES = 1000
"""Validation samples that the ranges come from; NNCF's own default is 300."""

EPOCHS, LEARNING_RATE, BATCH = 2, 1e-5, 128
"""Of quantisation-aware training, by Adam: those of NNCF's own example (ResNet-18)."""


def quantised(net: Folded, dataset: Dataset) -> bytes:
    """The int8 ONNX file that NNCF makes of the network. Raises InstallError without NNCF or onnx.

    With its slower, accurate bias correction: on a Fashion-MNIST network the fast one, its default, left 36 % of 82 % clean.
    """
    samples = [{INPUT: row} for row in _samples(_seen(net, dataset))]
    with quiet() as nncf:
        made = _quantize(nncf, float_onnx(net, dataset.shape), samples, correct=True)
    data: bytes = made.SerializeToString()
    return data


def trained_quantised(net: Folded, dataset: Dataset, seed: int) -> bytes:
    """The int8 ONNX file after quantisation-aware training of the cross-entropy, as NNCF's users train. Gradients pass its quantisers.

    Biases are trained, not corrected before: in torch NNCF has the fast correction alone (see `quantised`).
    Its quantisers are compiled on first use, by a C++ compiler. Raises InstallError without NNCF, torchao (for its export) or a compiler.
    """
    generator, dataset = torch.Generator().manual_seed(seed), _seen(net, dataset)
    x, y = to_torch(dataset.train)
    with quiet() as nncf:
        try:
            import_module("torchao")  # what NNCF's export is made of
        except ImportError as error:
            raise InstallError("NNCF's export of trained quantisers needs torchao", hint=HINT) from error
        layers = (replace(a.layer, weight=a.weight, bias=a.bias, norm=None, window=None) for a in detach(net))
        plain = Plain(tuple(layers))
        try:
            made = _quantize(nncf, plain, [torch.from_numpy(row) for row in _samples(dataset)], correct=False)
        except (OSError, RuntimeError) as error:
            raise InstallError(
                f"NNCF's quantisers for torch could not be compiled: {error}", hint="apt install g++, pip install ninja"
            ) from error
        optimizer = torch.optim.Adam(made.parameters(), LEARNING_RATE)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(y), generator=generator), BATCH):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(made(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        stripped = nncf.strip(made.eval(), strip_format=nncf.StripFormat.NATIVE, example_input=x[:1])
        file = io.BytesIO()
        torch.onnx.export(  # its newer exporter cannot follow the branches of the stripped quantisers
            stripped,
            (x[:1],),
            file,  # type: ignore[arg-type]
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
        )
    return file.getvalue()


def _seen(net: Folded, dataset: Dataset) -> Dataset:
    """The samples cut at the network's window, where the file's own input saturates: its range is taken from them."""
    window = input_window(plan(net))
    return dataset if window is None else dataset.clipped(*window)


def _samples(dataset: Dataset) -> list[Any]:
    return [np.ascontiguousarray(row[None]) for row in dataset.validation.x[:SAMPLES].transpose(0, 3, 1, 2)]


def _quantize(nncf: Any, model: Any, samples: list[Any], *, correct: bool) -> Any:
    from nncf.quantization.advanced_parameters import QuantizationParameters

    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        fast_bias_correction=not correct,  # in torch it takes no other
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            quantize_outputs=True,
            disable_bias_correction=not correct,
            activations_quantization_params=QuantizationParameters(per_channel=False),
        ),
    )
