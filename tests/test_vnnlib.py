"""VNN-LIB: what is read exactly, and what is refused with its line."""

from __future__ import annotations

import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cactus_edge import vnnlib
from cactus_edge.errors import InputError
from cactus_edge.vnnlib import Order, parse, read, shaped

HEAD = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = "(assert (>= X_0 0.1)) (assert (<= X_0 2e-1))\n(assert (and (>= X_1 (- 1)) (<= X_1 (/ 1 3))))\n"
ANY = "(assert (or (and (>= Y_0 Y_2)) (and (>= Y_1 Y_2))))\n"


def test_what_is_read() -> None:
    found = parse(f"; label 2\n{HEAD}{BOX}{ANY}", "p")
    assert found.lower == (Fraction(1, 10), Fraction(-1)) and found.upper == (Fraction(1, 5), Fraction(1, 3))
    assert found.outputs == 3 and found.unsafe == ((Order(0, 2),), (Order(1, 2),))
    assert found.labels(False) == [2] and found.labels(True) == [2]
    assert found.violated(np.array([1, 4, 4])) and not found.violated(np.array([1, 3, 4]))


def test_of_two_bounds_the_tighter_one_counts() -> None:
    for more in ("(assert (>= X_0 0.15)) (assert (<= X_0 0.18))", "(assert (<= X_0 0.18)) (assert (>= X_0 0.15))"):
        for text in (BOX + more, more + BOX):
            found = parse(HEAD + text + ANY, "p")
            assert (found.lower[0], found.upper[0]) == (Fraction("0.15"), Fraction("0.18"))


def test_a_number_may_stand_first() -> None:
    box = "(assert (<= 0.1 X_0)) (assert (>= 2e-1 X_0))\n(assert (and (<= (- 1) X_1) (>= (/ 1 3) X_1)))\n"
    assert parse(HEAD + box + ANY, "p") == parse(HEAD + BOX + ANY, "p")
    with pytest.raises(InputError, match="line 6: a bound < of X_0"):
        parse(HEAD + "(assert (> 1 X_0))", "p")


@pytest.mark.parametrize(
    ("text", "strict", "first"),
    [
        ("(assert (or (<= Y_0 Y_1) (and (>= Y_2 Y_0))))", [0], []),
        ("(assert (or (< Y_0 Y_1) (> Y_2 Y_0)))", [0], [0]),
        ("(assert (or (>= Y_0 Y_1) (> Y_2 Y_1)))", [1], [1]),
        ("(assert (>= Y_1 Y_0))", [0], []),
        ("(assert (>= Y_0 Y_1)) (assert (>= Y_0 Y_2))", [1, 2], [1, 2]),
        ("(assert (and (<= Y_2 Y_0) (<= Y_1 Y_0)))", [1, 2], [1, 2]),
        ("(assert (or (and (>= Y_0 Y_1)) (and (>= Y_1 Y_2))))", [], []),
        ("(assert (>= Y_0 Y_2)) (assert (or (>= Y_0 Y_1) (>= Y_2 Y_1)))", [1, 2], [2]),
        ("(assert (>= Y_1 Y_1))", [], []),
    ],
)
def test_whose_win_is_safe(text: str, strict: list[int], first: list[int]) -> None:
    found = parse(HEAD + BOX + text, "p")
    assert (found.labels(False), found.labels(True)) == (strict, first)
    for output in np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T:
        for k in range(3):
            behind = np.arange(3) > k
            others = np.arange(3) != k
            strictly = (output[k] > output[others]).all()
            firstly = (output[k] > output[others & ~behind]).all() and (output[k] >= output[behind]).all()
            assert not (found.violated(output) and ((k in strict and strictly) or (k in first and firstly)))


def test_packed(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress((HEAD + BOX + ANY).encode()))
    assert read(path).unsafe == parse(HEAD + BOX + ANY, "p").unsafe
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


def test_more_than_fits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed or not, by the bytes that it unpacks to."""
    text = (HEAD + BOX + ANY).encode()
    monkeypatch.setattr(vnnlib, "MAX_BYTES", len(text) - 1)
    for data in (text, gzip.compress(text)):
        (tmp_path / "p").write_bytes(data)
        with pytest.raises(InputError, match="has more than"):
            read(tmp_path / "p")


def test_images() -> None:
    numbers = tuple(map(Fraction, range(12)))
    assert shaped(numbers, (2, 2, 3), False)[0, 1].tolist() == [3, 4, 5]
    assert shaped(numbers, (2, 2, 3), True)[0, 1].tolist() == [1, 5, 9]


SINS = {
    "sum": (HEAD + BOX + "(assert (<= (+ Y_0 Y_1) Y_2))", "line 8: a term with '\\+'"),
    "output-and-number": (
        HEAD + BOX + "(assert (<= Y_0 3.9))",
        "line 8: neither an input and a number nor two outputs",
    ),
    "inputs-compared": (HEAD + BOX + "(assert (<= X_0 X_1))", "line 8: neither an input"),
    "input-in-disjunction": (
        HEAD + BOX + "(assert (or (and (<= X_0 1))\n(>= Y_0 Y_1)))",
        "line 8: a bound <= of X_0 inside",
    ),
    "two-disjunctions": (HEAD + BOX + ANY + ANY, "line 9: a second disjunction"),
    "empty-disjunction": (HEAD + BOX + "(assert (or))", "line 8: an empty disjunction"),
    "open-box": (HEAD + "(assert (< X_0 1))", "line 6: a bound < of X_0"),
    "no-lower-end": (HEAD + "(assert (<= X_0 1))", "X_0 has no bound >="),
    "no-outputs": (HEAD + BOX, "nothing is said of the outputs"),
    "undeclared": (HEAD + "(assert (<= X_7 1))", "line 6: 'X_7', which is neither a number nor declared"),
    "declared-twice": (HEAD + "(declare-const X_0 Real)", "line 6: X_0 is declared twice"),
    "gap": ("(declare-const X_1 Real)(declare-const Y_0 Real)", "X are not declared as X_0, X_1"),
    "integer": ("(declare-const X_0 Int)", "line 1: 'Int' where 'Real' is expected"),
    "other-name": ("(declare-const Z_0 Real)", "line 1: a declaration of 'Z_0'"),
    "not": (HEAD + BOX + "(assert (not (<= Y_0 Y_1)))", "line 8: 'not', which is none of"),
    "nan": (HEAD + "(assert (<= X_0 nan))", "line 6: 'nan', which is neither"),
    "huge-exponent": (HEAD + "(assert (<= X_0 1e9999))", "line 6: '1e9999'"),
    "by-zero": (HEAD + "(assert (<= X_0 (/ 1 0)))", "line 6: a term with '/'"),
    "truncated": (HEAD + "(assert (<= X_0", "ends inside an expression"),
    "version-2": ("(vnnlib-version <2.0>)", "line 1: the command 'vnnlib-version'"),
    "word": ("hello", "line 1: 'hello' where '\\(' is expected"),
}


@pytest.mark.parametrize("sin", SINS)
def test_what_is_refused(sin: str) -> None:
    text, said = SINS[sin]
    with pytest.raises(InputError, match=said):
        parse(text, "p")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read(tmp_path / "none.vnnlib")
    (tmp_path / "p").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no ASCII text"):
        read(tmp_path / "p")
