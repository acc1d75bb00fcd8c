"""Counterexamples: found, replayed, written down; one that is none, or outside its region, is rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from brute import boxes, inside, margins, programs
from test_verify_certificate import GRAPH, MODEL, X, Y, failed, issue, resealed

from cactus_edge.certify.attack import falsify
from cactus_edge.errors import CertificateError, InputError, InternalError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.decide import Decision, certify
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.regions import box, points, region
from cactus_edge.verify.witness import read, refuted, written

PROGRAM = lower(GRAPH, profile("tflm"))
WIDE = "1/4"
ATTACKED = issue(eps=WIDE, falsify=falsify)


def held() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ATTACKED)["verdict"]["counterexamples"]
    return found


def test_counterexamples_stand_in_the_certificate_and_are_replayed() -> None:
    assert held()
    report = recheck(ATTACKED, MODEL, X, Y)
    assert report.accepted
    decision = certify(PROGRAM, region(PROGRAM, WIDE, (0, 1)), X, Y)
    lo, hi = box(PROGRAM, region(PROGRAM, WIDE, (0, 1)), X)
    for i, codes in read(held(), GRAPH.input).items():
        assert decision.correct[i] and not decision.certified[i]
        assert (codes >= lo[i]).all() and (codes <= hi[i]).all()
        assert margins(PROGRAM, codes[None], int(Y[i]))[0] < 1


def test_none_are_looked_for_where_nobody_asks() -> None:
    assert "counterexamples" not in json.loads(issue(eps=WIDE))["verdict"]


def test_a_sample_is_either_certified_or_refuted_or_open() -> None:
    """Small boxes in full: a counterexample is never found where every point wins."""
    seen = 0
    for k, program in enumerate(programs(60, 20, middle=("dense",), ends=("",), max_nodes=2)):
        if program.output_tensor.size < 2:
            continue
        rng = np.random.default_rng(k)
        lo, _, hi = boxes(rng, program.values[program.input].shape, 5)
        y = rng.integers(0, program.output_tensor.size, 5)
        for i in range(5):
            points_, all_of_them = inside(rng, lo[i], hi[i])
            losing = points_[margins(program, points_, int(y[i])) < 1]
            around = region(program, 0)
            for codes in losing[:3]:
                near = program.quantize.scale * (codes.astype(np.float64) - program.quantize.zero_point)
                assert refuted(program, around, near[None], y[i : i + 1], {0: codes})[0]
                seen += 1
            if all_of_them and not len(losing):
                with pytest.raises(CertificateError, match="won by its label"):
                    real = program.quantize.scale * (points_[0].astype(np.float64) - program.quantize.zero_point)
                    refuted(program, around, real[None], y[i : i + 1], {0: points_[0]})
    assert seen > 10


def first(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def lie(record: dict[str, Any]) -> None:
        found = record["verdict"]["counterexamples"]
        sample = next(iter(found))
        found[sample] = change(found[sample])

    return lie


def winning(record: dict[str, Any]) -> None:
    sample = next(iter(record["verdict"]["counterexamples"]))
    record["verdict"]["counterexamples"][sample] = points(PROGRAM, X)[int(sample)].tobytes().hex()


def of_another_sample(record: dict[str, Any]) -> None:
    found = record["verdict"]["counterexamples"]
    sample = next(i for i in range(len(X)) if str(i) not in found)
    found[str(sample)] = "7f" * X[0].size


def of_no_sample(record: dict[str, Any]) -> None:
    record["verdict"]["counterexamples"]["99"] = next(iter(held().values()))


def nothing(record: dict[str, Any]) -> None:
    record["verdict"]["counterexamples"] = []


LIES = {
    "outside": first(lambda codes: "80" * (len(codes) // 2)),
    "too short": first(lambda codes: codes[:-2]),
    "no hex": first(lambda codes: "zz" + codes[2:]),
    "a number": first(lambda codes: 7),
    "winning": winning,
    "another sample": of_another_sample,
    "no sample": of_no_sample,
    "no object": nothing,
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found(name: str) -> None:
    assert "the proof" in failed(recheck(resealed(LIES[name], ATTACKED), MODEL, X, Y))


def test_a_name_written_otherwise_is_found() -> None:
    def respell(record: dict[str, Any]) -> None:
        found = record["verdict"]["counterexamples"]
        sample = next(iter(found))
        found[f" {sample}"] = found.pop(sample)

    assert "verdict.counterexamples" in failed(recheck(resealed(respell, ATTACKED), MODEL, X, Y))


def test_a_counterexample_against_a_certificate_is_a_defect_of_ours() -> None:
    def everything(program: Any, around: Any, x: Any, labels: Any) -> Decision:
        return Decision(np.ones(len(x), bool), np.ones(len(x), bool), np.ones(len(x), np.int64))

    with pytest.raises(InternalError, match="certified and has a counterexample"):
        issue(
            eps=WIDE,
            decide=lambda *a, bounds: everything(*a),
            falsify=lambda *a: read(held(), GRAPH.input),
        )


@pytest.mark.parametrize("name", ["tflm,litert-xnnpack", "all"])
def test_several_arithmetics_have_no_counterexample_in_common(name: str) -> None:
    with pytest.raises(InputError, match="one for one arithmetic"):
        issue(eps=WIDE, profile=name, falsify=falsify)


def test_what_is_written_is_read() -> None:
    codes = {3: np.array([[-128, 127], [0, 5]], np.int8)}
    assert np.array_equal(read(written(codes), Tensor("x", (2, 2)))[3], codes[3])
    wide = {3: codes[3].astype(np.int16) * 256 + 1}
    again = read(written(wide), Tensor("x", (2, 2), "int16"))[3]
    assert again.dtype == np.int16 and np.array_equal(again, wide[3])
