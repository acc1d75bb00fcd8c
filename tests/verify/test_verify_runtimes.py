"""Certificates about several profiles: which they are, what holds under each alone, and lies about either."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import inside, margins
from certificate_kit import recheck
from test_verify_certificate import BLOB, GRAPH, MODEL, X, Y, elf, failed, issue, resealed

from cactus_edge.errors import InputError, MismatchError, UnsupportedError
from cactus_edge.formats.c.certified import TFLITE
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.certificate import add_firmware
from cactus_edge.verify.decide import Decision, certify
from cactus_edge.verify.regions import box, region
from cactus_edge.verify.runtimes import ALL, runtimes

PAIR = "litert-xnnpack,tflm"
SEVERAL = issue(profile=ALL, eps="1/64")


def flags(verdict: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(verdict[f"{name}_bits"]), np.uint8))[: len(X)].astype(bool)


def test_all_is_every_profile_that_can_run_the_file_and_assumes_nothing() -> None:
    report = recheck(SEVERAL, MODEL, X, Y, profile=ALL)
    assert report.accepted
    row = report.record["profile"]
    able = {name for name, p in PROFILES.items() if p.reads == "tflite" and not p.assumption}
    assert row["members"].keys() | row["excluded"].keys() == able
    assert {"tflm", "litert-ref", "litert-xnnpack"} <= row["members"].keys()
    assert all(row["members"][name] == PROFILES[name].digest() for name in row["members"])


def test_excluded_says_why() -> None:
    weight = np.array(GRAPH.nodes[0].op.weight)  # type: ignore[union-attr]
    weight[0, 0] = -128
    node = replace(GRAPH.nodes[0], op=replace(GRAPH.nodes[0].op, weight=weight))  # type: ignore[call-arg]
    model = write_tflite(replace(GRAPH, nodes=(node, *GRAPH.nodes[1:])), metadata={})
    found = runtimes(model, ALL, TFLITE)
    assert "weight of -128" in found.excluded["litert-xnnpack-arm64"]
    assert found.under("litert-xnnpack-arm64") is None and found.under("litert-xnnpack") is not None


def test_each_profile_has_a_verdict_that_holds_for_it() -> None:
    """The mixture certifies least; what it certifies each certifies, and nothing that a point of the region refutes."""
    verdict = json.loads(SEVERAL)["verdict"]
    assert verdict["each"].keys() == json.loads(SEVERAL)["profile"]["members"].keys()
    for name, own in verdict["each"].items():
        program = lower(GRAPH, PROFILES[name])
        alone = certify(program, region(program, "1/64", (0, 1)), X, Y)
        assert np.array_equal(flags(own, "certified"), alone.certified | flags(verdict, "certified"))
        assert not (flags(verdict, "certified") & ~flags(own, "certified")).any()
        assert not (flags(verdict, "correct") & ~flags(own, "correct")).any()
        lo, hi = box(program, region(program, "1/64", (0, 1)), X)
        rng = np.random.default_rng(0)
        for i in np.flatnonzero(flags(own, "certified")):
            assert margins(program, inside(rng, lo[i], hi[i])[0], int(Y[i])).min() >= 1
        assert own["certified"] == flags(own, "certified").sum() and own["correct"] == flags(own, "correct").sum()


def test_names_are_put_in_order() -> None:
    for name in (PAIR, "tflm, litert-xnnpack", "tflm,litert-xnnpack,tflm"):
        assert runtimes(MODEL, name, TFLITE).name == PAIR
    report = recheck(issue(profile="tflm,litert-xnnpack"), MODEL, X, Y, profile=PAIR)
    assert report.accepted and report.record["profile"]["excluded"] == {}


def test_one_of_several_is_one() -> None:
    assert issue(profile="tflm,tflm") == issue()


def drop(record: dict[str, Any]) -> None:
    del record["profile"]["members"]["litert-ref"]


def add(record: dict[str, Any]) -> None:
    record["profile"]["members"]["tensorrt"] = PROFILES["tensorrt"].digest()


def swap(record: dict[str, Any]) -> None:
    members = record["profile"]["members"]
    members["tflm"], members["litert-ref"] = members["litert-ref"], members["tflm"]


def exclude(record: dict[str, Any]) -> None:
    record["profile"]["excluded"]["litert-ref"] = "it was not asked"


def more(record: dict[str, Any]) -> None:
    record["verdict"]["each"]["tflm"]["certified_bits"] = "f" * len(record["verdict"]["certified_bits"])


def fewer(record: dict[str, Any]) -> None:
    del record["verdict"]["each"]


def narrower(record: dict[str, Any]) -> None:
    record["profile"]["name"] = PAIR


@pytest.mark.parametrize(
    ("lie", "field"),
    [
        (drop, "profile.members"),
        (add, "profile.members"),
        (swap, "profile.members"),
        (exclude, "profile.excluded"),
        (more, "verdict.each"),
        (fewer, "verdict.each"),
        (narrower, "profile.members"),
    ],
)
def test_a_lie_about_the_profiles_is_found(lie: Callable[[dict[str, Any]], None], field: str) -> None:
    assert field in failed(recheck(resealed(lie, SEVERAL), MODEL, X, Y))


def test_a_certificate_about_one_profile_is_none_about_all() -> None:
    assert "the profile asked for" in failed(recheck(issue(), MODEL, X, Y, profile=ALL))


def test_firmware_is_bound_where_its_profile_is_among_them() -> None:
    image = elf(b"code" + BLOB)
    bound = issue(profile=ALL, firmware=[("board", image)])
    assert recheck(bound, MODEL, X, Y, firmware=image).accepted
    assert recheck(add_firmware(SEVERAL, MODEL, [("board", image)], TFLITE), MODEL, X, Y, firmware=image).accepted
    with pytest.raises(MismatchError, match="does not compute the certificate's profile"):
        issue(profile="litert-ref,litert-xnnpack", firmware=[("board", image)])


def test_each_is_decided_on_what_the_mixture_leaves_open() -> None:
    seen: list[int] = []

    def counted(program: Any, around: Any, x: Any, labels: Any) -> Decision:
        seen.append(len(x))
        return certify(program, around, x, labels)

    made = json.loads(issue(profile=PAIR, decide=counted))
    assert seen == [len(X)] + 2 * [len(X) - made["verdict"]["certified"]]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tflm,nothing", InputError, "unknown profile 'nothing'"),
        ("tflm,", InputError, "unknown profile ''"),
        ("tflm,tensorrt", InputError, "conditional and stands alone"),
        ("tflm,ort-x86", UnsupportedError, "reads .onnx files"),
        ("everything", InputError, "unknown profile 'everything'"),
    ],
)
def test_profiles_that_cannot_be_named(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtimes(MODEL, name, TFLITE)


def test_a_file_that_nothing_runs_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in list(PROFILES.items()):
        monkeypatch.setitem(PROFILES, name, replace(row, rules={k: v for k, v in row.rules.items() if k != "Dense"}))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"no profile runs the file: .*Dense"):
        runtimes(MODEL, ALL, TFLITE)
