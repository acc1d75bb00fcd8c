"""One radius per sample: each sample's box is that of its own radius alone, however the data are cut, and no radius changes its sample."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from certificate_kit import GRAPH, MODEL, TFLM, X, Y, issue, recheck

from cactus_edge.errors import CertificateError, InputError, InternalError
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import decide
from cactus_edge.verify.certificate import decode, encode, seal
from cactus_edge.verify.families import Patch, read_region
from cactus_edge.verify.regions import Boxes, Region, box

PROGRAM = lower(GRAPH, TFLM)
DOMAIN = Fraction(0), Fraction(1)
RADII = tuple(Fraction(i * i % 37, 255) for i in range(40))
REGION = Region(RADII, DOMAIN, per_sample=True)
CODES = TFLM.quantize(GRAPH.input).apply(X)


@pytest.mark.parametrize("x", [X, X.astype(np.float64), CODES], ids=["float32", "float64", "codes"])
def test_each_box_is_that_of_its_own_radius(x: Any) -> None:
    lower, upper = box(PROGRAM, REGION, x)
    for i, radius in enumerate(RADII):
        low, high = box(PROGRAM, Region((radius,), DOMAIN), x[i : i + 1])
        assert np.array_equal(lower[i], low[0]) and np.array_equal(upper[i], high[0]), i
    for part in (slice(0, 7), slice(13, 14), slice(33, 40), slice(5, 5)):
        found = Boxes(PROGRAM, REGION, x)(part)
        assert np.array_equal(found[0], lower[part]) and np.array_equal(found[1], upper[part])
        assert found[2].tolist() == list(range(40))[part]


@pytest.mark.parametrize(
    "part", [slice(3, 20), np.array([0, 7, 39]), np.array([], int)], ids=["slice", "index", "none"]
)
def test_some_samples_keep_their_radii(part: Any) -> None:
    lower, upper = box(PROGRAM, REGION, X)
    low, high = box(PROGRAM, REGION.of(part), X[part])
    assert np.array_equal(low, lower[part]) and np.array_equal(high, upper[part])
    ball = Region((Fraction(1, 9),), DOMAIN)
    assert ball.of(part) is ball


def test_the_cut_test_sees_radii_that_stay_behind() -> None:
    """Planted: samples cut without their region are refused, and cut with another part of it get other boxes."""
    with pytest.raises(InputError, match="one per sample"):
        box(PROGRAM, REGION, X[3:20])
    assert not np.array_equal(box(PROGRAM, REGION.of(slice(4, 21)), X[3:20])[0], box(PROGRAM, REGION, X)[0][3:20])


def test_the_decision_is_sample_by_sample() -> None:
    together = decide.certify(PROGRAM, REGION, X, Y, batch=7, threads=2)
    alone = [decide.certify(PROGRAM, Region((r,), DOMAIN), X[i : i + 1], Y[i : i + 1]) for i, r in enumerate(RADII)]
    assert together.certified.tolist() == [bool(d.certified[0]) for d in alone]
    assert together.margin.tolist() == [int(d.margin[0]) for d in alone]
    assert 0 < together.certified.sum() < 40


def test_it_is_certified_and_rechecked() -> None:
    certificate = issue(eps=list(RADII), per_sample=True, profile="litert-ref,tflm")
    assert recheck(certificate, MODEL, X, Y).accepted
    record = decode(certificate)
    assert record["region"]["kind"] == "radii" and record["region"]["eps"] == [str(r) for r in RADII]
    assert read_region(record["region"]) == REGION


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(eps=r["eps"][::-1]),
        lambda r: r.update(eps=r["eps"][1:]),
        lambda r: r.update(eps=[*r["eps"], "0"]),
        lambda r: r.update(eps=[*r["eps"][:-1], "2"]),
        lambda r: r.update(eps=r["eps"][1]),
        lambda r: r.update(eps=[]),
        lambda r: r.update(kind="box"),
        lambda r: r.update(kind="linf"),
    ],
    ids=["reversed", "fewer", "more", "beyond-the-domain", "one", "none", "box", "linf"],
)
def test_other_radii_are_rejected(change: Any) -> None:
    record = json.loads(issue(eps=list(RADII), per_sample=True))
    change(record["region"])
    try:
        assert not recheck(encode(seal(record)), MODEL, X, Y).accepted
    except CertificateError:
        return


def test_one_sample_is_a_list_of_one() -> None:
    one = Region((Fraction(1, 9),), DOMAIN, per_sample=True)
    assert one.record()["eps"] == ["1/9"] and read_region(one.record()) == one


def test_what_makes_no_such_region() -> None:
    with pytest.raises(InputError, match="without a family"):
        Region(RADII, DOMAIN, Patch(2, 2), per_sample=True)
    with pytest.raises(InternalError):
        REGION.around(PROGRAM, X[0], ())
