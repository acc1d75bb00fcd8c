"""Families of inputs: any part of their boxes, their records, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from families_kit import UNIT, net

from cactus_edge.errors import CertificateError, DataError, InputError, InternalError
from cactus_edge.ir.evaluate import run
from cactus_edge.verify.decide import certify
from cactus_edge.verify.families import Patch, read_region, tone
from cactus_edge.verify.regions import Boxes, Region, box, points, region


@pytest.mark.parametrize("part", [slice(0, 1), slice(3, 11), slice(5, 6), slice(11, 12), slice(0, 12), slice(7, 99)])
def test_any_part_of_the_boxes_is_that_part(part: slice) -> None:
    program = net((3, 3), 1)
    x = np.random.default_rng(0).random((3, 3, 3)).astype(np.float32)
    for chosen in (Patch(2, 2), tone(("-0.1", "0.1"), ("0.9", "1.1"), "mean", 2), None):
        around = Region((Fraction(1, 200),), UNIT, chosen)
        whole = around.boxes(program, x)
        for got, want in zip(around.boxes(program, x, part), whole, strict=True):
            assert np.array_equal(got, want[part])
        for got, want in zip(Boxes(program, around, x)(part), whole, strict=True):
            assert np.array_equal(got, want[part])


def test_batches_and_threads_change_nothing() -> None:
    program = net((4, 4), 5, classes=3)
    x = np.random.default_rng(1).random((7, 4, 4)).astype(np.float32)
    labels = run(program, points(program, x)).argmax(1)
    around = Region((Fraction(0),), UNIT, Patch(2, 2))
    whole = certify(program, around, x, labels)
    done: list[int] = []
    parts = certify(program, around, x, labels, batch=5, threads=3, progress=done.append)
    assert np.array_equal(whole.certified, parts.certified) and np.array_equal(whole.margin, parts.margin)
    assert done[-1] == 7 and done == sorted(done)


# Records, and what is refused.


@pytest.mark.parametrize(
    "chosen",
    [
        None,
        Patch(3, 3),
        tone(("-0.1", "1/3"), cells=7),
        tone(contrast=("0.8", 2), pivot="mean", cells=1),
    ],
    ids=["ball", "patch", "brightness", "contrast"],
)
@pytest.mark.parametrize("eps", [["1/16"], ["0", "1/2"]], ids=["one", "two"])
def test_a_region_is_read_as_it_was_written(chosen: Any, eps: list[str]) -> None:
    around = Region(tuple(map(Fraction, eps)), UNIT, chosen)
    assert read_region(around.record()) == around


GOOD = Region((Fraction(0),), UNIT, tone(("-0.1", "0.1"), cells=4)).record()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "polygon"},
        {"kind": None},
        {"cells": 0},
        {"cells": "4"},
        {"cells": True},
        {"kind": "patch", "patch": [True, True]},
        {"kind": "patch", "patch": [2, True]},
        {"brightness": ["0"]},
        {"brightness": ["-1", 1]},
        {"pivot": 0},
        {"domain": ["0"]},
        {"eps": 0},
        {"kind": "patch"},
    ],
    ids=repr,
)
def test_records_of_another_form_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CertificateError):
        read_region({**GOOD, **change})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Patch(0, 0), "1 x 1"),
        (lambda: tone(("0.1", "0.2")), "the sample itself"),
        (lambda: tone(contrast=("1.1", "2")), "the sample itself"),
        (lambda: tone(contrast=("-1", "2")), "expected 0 to"),
        (lambda: tone(contrast=("1", "9999")), "expected 0 to"),
        (lambda: tone(cells=10**6), "cells"),
        (lambda: tone(("x", "1")), "brightness"),
        (lambda: tone().count((3,)), "not chosen"),
        (lambda: Patch(3, 3).count((9,)), "expected an image"),
        (lambda: Patch(3, 3).count((2, 9)), "on an image of 2 x 9"),
        (lambda: Patch(2, 2).member(np.zeros((3, 3)), (Fraction(2), Fraction(0))), "a row below 2"),
        (lambda: Patch(2, 2).member(np.zeros((3, 3)), (Fraction(1, 2), Fraction(0))), "a row below 2"),
        (lambda: Patch(2, 2).member(np.zeros((3, 3)), ()), "nothing"),
        (lambda: tone(("0", "1")).member(np.zeros(3), (Fraction(2), Fraction(1))), "inside their ranges"),
    ],
)
def test_families_that_make_no_sense(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_one_box_is_not_asked_of_many() -> None:
    program = net((3, 3))
    with pytest.raises(InternalError, match="not one box"):
        box(program, region(program, 0, (0, 1), Patch(2, 2)), np.zeros((1, 3, 3), np.float32))


def test_the_sample_that_is_outside_the_domain_is_named() -> None:
    program = net((3, 3))
    x = np.zeros((3, 3, 3), np.float32)
    x[2, 1, 1] = 2
    with pytest.raises(DataError, match="sample 2 holds"):
        region(program, 0, (0, 1), Patch(2, 2)).boxes(program, x, slice(8, 12))
