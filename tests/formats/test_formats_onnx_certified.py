"""Certificates of ONNX files: bound to the bytes, to the runtime that reads them, and to what a conditional profile assumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx_kit import classifier
from test_formats_onnx_tensorrt import good, symmetric

from cactus_edge.errors import MismatchError, ModelError, UnsupportedError
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.formats.onnx.certified import ONNX
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.certificate import certify_file, decode, encode, seal
from cactus_edge.verify.recheck import Report, recheck
from cactus_edge.verify.regions import points
from cactus_edge.verify.runtimes import TFLITE


def samples(graph: Graph, name: str) -> tuple[Any, Any]:
    """Inputs on the input's grid and the classes that they get."""
    rng = np.random.default_rng(0)
    x = (rng.integers(-128, 128, (40, *graph.input.shape)) / 32).astype(np.float32)
    program = lower(graph, profile(name))
    return x, run(program, points(program, x)).argmax(1)


def certified(data: bytes, name: str = "tensorrt") -> tuple[bytes, Any, Any]:
    """(certificate, x, y) of a file."""
    x, y = samples(ONNX.read(data, profile(name)), name)
    made = certify_file(data, x, y, eps="1/64", domain=None, profile=name, form=ONNX)
    assert made.decision.correct.any() and made.decision.certified.any()
    return made.to_bytes(), x, y


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.state == "failed"}


def test_a_conditional_certificate_says_what_it_assumes_and_is_rechecked() -> None:
    data = good("sum")
    certificate, x, y = certified(data)
    record = decode(certificate)
    assert record["profile"]["conditional_on"] == PROFILES["tensorrt"].assumption != ""
    assert record["model"]["format"] == "onnx" and "onnxruntime" in record["model"]["trusted"]
    assert recheck(certificate, data, x, y, formats=(TFLITE, ONNX)).accepted


def test_other_profiles_assume_nothing() -> None:
    data = write_onnx(symmetric(classifier(0)))
    certificate, x, y = certified(data, "ort-x86")
    assert "conditional_on" not in decode(certificate)["profile"]
    assert recheck(certificate, data, x, y, formats=(ONNX,)).accepted
    assert [name for name, row in PROFILES.items() if row.assumption] == ["tensorrt"]


@pytest.mark.parametrize(
    ("group", "key", "value", "check"),
    [
        ("profile", "conditional_on", None, "profile.conditional_on"),
        ("profile", "conditional_on", "nothing", "profile.conditional_on"),
        ("model", "trusted", None, "model.trusted"),
        ("model", "format", None, "the proof"),
    ],
)
def test_a_certificate_that_hides_its_conditions_is_rejected(group: str, key: str, value: Any, check: str) -> None:
    data = good()
    certificate, x, y = certified(data)
    record = decode(certificate)
    changed = {k: v for k, v in record[group].items() if k != key} | ({} if value is None else {key: value})
    forged = encode(seal({**record, group: changed}))
    assert check in failed(recheck(forged, data, x, y, formats=(TFLITE, ONNX)))


def test_without_the_format_nothing_is_accepted() -> None:
    data = good()
    certificate, x, y = certified(data)
    assert failed(recheck(certificate, data, x, y)) == {"model.format"}


def test_a_file_that_breaks_the_rules_is_not_certified() -> None:
    with pytest.raises(UnsupportedError, match="breaks TensorRT's rules"):
        ONNX.read(write_onnx(classifier(0)), profile("tensorrt"))
    with pytest.raises(ModelError):
        ONNX.read(b"", profile("tensorrt"))


def test_a_file_that_onnx_runtime_leaves_in_float_is_not_certified() -> None:
    """The ReLU on the sum of a symmetric tensor keeps its convolution in float there."""
    with pytest.raises(UnsupportedError, match="does not compute this file in integers"):
        ONNX.confirm(good("sum"), profile("ort-x86"))


def test_an_envelope_certifies_no_more_than_its_member() -> None:
    graph = symmetric(classifier(0))
    x, y = samples(graph, "tensorrt")
    bounded = certify_file(good(), x, y, eps="1/64", domain=None, profile="tensorrt", form=ONNX).decision
    member = certify_file(write_onnx(graph), x, y, eps="1/64", domain=None, profile="ort-x86", form=ONNX).decision
    assert not (bounded.certified & ~member.certified).any()
    assert (bounded.margin <= member.margin).all()
    assert (bounded.certified == member.certified).mean() > 0.8


def test_no_firmware_is_bound_to_it() -> None:
    x, y = samples(ONNX.read(good(), profile("tensorrt")), "tensorrt")
    with pytest.raises(MismatchError, match="does not compute the certificate's profile"):
        certify_file(good(), x, y, eps=0, domain=None, profile="tensorrt", form=ONNX, firmware=[("mcu", b"")])


def test_the_assumption_is_part_of_the_profile() -> None:
    row = PROFILES["tensorrt"]
    assert replace(row, assumption="").digest() != row.digest()
