"""NNCF's post-training quantisation of a trained network: its ranges, its scales, its file, read back by our own reader.

`nncf.quantize` on the float ONNX model, with the parameters under which every operator becomes an integer one (README, `.onnx`).
It takes the ranges of its calibration samples by its own statistics and knows nothing of bounds. Source: NNCF 3.4.0,
https://github.com/openvinotoolkit/nncf. Its telemetry stays off.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np

from cactus_edge.errors import InstallError
from cactus_edge.train.data import Dataset
from cactus_edge.train.float_onnx import INPUT, float_onnx
from cactus_edge.train.folded import Folded

SAMPLES = 1000
"""Validation samples that the ranges come from; NNCF's own default is 300."""


def quantised(net: Folded, dataset: Dataset) -> bytes:
    """The int8 ONNX file that NNCF makes of the network. Raises InstallError without NNCF or onnx."""
    x = dataset.validation.x[:SAMPLES].transpose(0, 3, 1, 2)
    with _quiet() as nncf:
        from nncf.quantization.advanced_parameters import QuantizationParameters

        samples = nncf.Dataset([{INPUT: np.ascontiguousarray(row[None])} for row in x])
        made = nncf.quantize(
            float_onnx(net, dataset.shape),
            samples,
            subset_size=len(x),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                quantize_outputs=True, activations_quantization_params=QuantizationParameters(per_channel=False)
            ),
        )
    data: bytes = made.SerializeToString()
    return data


@contextmanager
def _quiet() -> Iterator[Any]:
    """The nncf package, imported without telemetry; its progress and its warnings go nowhere meanwhile."""
    switches = {"NNCF_CI": "1", "CI": "true"}
    before = {name: os.environ.get(name) for name in switches}
    os.environ.update(switches)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                import nncf
            except ImportError as error:
                raise InstallError(
                    "this needs NNCF, which is not installed", hint="pip install 'cactus-edge[baselines]'"
                ) from error
            logger = logging.getLogger("nncf")
            level = logger.level
            logger.setLevel(logging.ERROR)
            try:
                yield nncf
            finally:
                logger.setLevel(level)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
