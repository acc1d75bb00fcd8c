"""`verify --with-c`: the checker in C has its own line in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from certificate_kit import MODEL, X, Y

import cactus_edge as ce
from cactus_edge.certify.find import find
from cactus_edge.cli import main
from cactus_edge.formats.c import checker
from cactus_edge.formats.c.checker import second_check
from cactus_edge.verify.certificate import certify_file
from cactus_edge.verify.recheck import Check

LINE = "the proof, by the checker in C"


@pytest.mark.parametrize("bounds", ["linear", "interval"])
def test_it_is_a_line_of_the_report(bounds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, certificate = (str(tmp_path / name) for name in ("model.tflite", "test.npz", "cert.json"))
    Path(model).write_bytes(MODEL)
    np.savez(data, x=X, y=Y)
    options = ["--eps", "1/32", "--profile", "tflm", "--bounds", bounds]
    assert main(["certify", model, "--data", data, "--out", certificate, *options]) == 0
    assert main(["verify", certificate, "--model", model, "--data", data, "--with-c"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(LINE))
    assert line.split(LINE)[1].strip().startswith("ok" if bounds == "linear" else "not checked")


@pytest.mark.parametrize("ties", ["strict", "first-maximum"])
def test_it_is_asked_with_the_certificates_rule(ties: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "test.npz", x=X, y=Y)
    made = ce.certify(MODEL, X, Y, eps="1/32", domain=(0, 1), bounds="linear", ties=ties)
    asked: list[bool] = []

    def told(model: bytes, proof: bytes | None, first_maximum: bool = False) -> Check:
        asked.append(first_maximum)
        return Check(LINE, "ok", "", "")

    monkeypatch.setattr(checker, "second_check", told)
    report = ce.verify(made.to_bytes(), MODEL, tmp_path / "test.npz", proof=made.proof, with_c=True)
    assert report.accepted and asked == [ties == "first-maximum"] and LINE in {c.name for c in report.checks}


def test_a_wrong_proof_fails_it() -> None:
    made = certify_file(MODEL, X, Y, eps="1/32", domain=(0, 1), profile="tflm", created="then", find=find)
    assert made.proof is not None
    assert second_check(MODEL, made.proof).state == "ok"
    assert second_check(MODEL, made.proof[:-1]).state == "failed"
    assert second_check(MODEL, made.proof.replace(b"tflm", b"none")).state == "not checked"
