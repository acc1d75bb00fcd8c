"""Lookups: tables of codes against real functions and a scalar restatement, their ranges and index maps against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops, tables
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import Table
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.tables import code_table, nearest_source, source_index

CODES = np.arange(-128, 128)
SCALE = st.floats(2.0**-9, 2.0, width=32)
INT8 = st.integers(-128, 127)
RUNTIMES = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")


def table(op: Any, name: str, x: Tensor, out: Tensor) -> Any:
    return code_table(op, PROFILES[name].rule(type(op).__name__), x, out)


def tensor(scale: float, zero_point: int = 0) -> Tensor:
    return Tensor("t", (4,), "int8", float(np.float32(scale)), zero_point)


REAL: dict[Any, Callable[[Any], Any]] = {
    ops.Logistic(): lambda v: 1 / (1 + np.exp(-v)),
    ops.Tanh(): np.tanh,
    ops.HardSwish(): lambda v: v * np.clip(v + 3, 0, 6) / 6,
    ops.LeakyRelu(0.25): lambda v: np.where(v >= 0, v, v / 4),
}
FIXED = {ops.Logistic: (1 / 256, -128), ops.Tanh: (1 / 128, 0)}


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("op", REAL, ids=lambda op: type(op).__name__)
@given(scale=SCALE, zero=INT8, z_out=INT8, ratio=st.floats(0.25, 4.0, width=32))
def test_a_table_is_within_rounding_of_its_function(
    op: Any, name: str, scale: float, zero: int, z_out: int, ratio: float
) -> None:
    """Two codes, plus what 16-bit and 8-bit multipliers lose on 255 codes."""
    x = tensor(scale, zero)
    out = tensor(*FIXED.get(type(op), (scale * ratio, z_out)))
    try:
        found = table(op, name, x, out)
    except UnsupportedError:
        return
    exact = REAL[op](x.scale * (CODES - zero)) / out.scale + out.zero_point
    wanted = np.clip(exact, -128, 127)
    assert np.abs(found - wanted).max() <= 2 + 255 * 2.0**-8 / min(ratio, 1)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("op", [ops.Logistic(), ops.Tanh()], ids=["logistic", "tanh"])
def test_a_sigmoid_never_falls(op: Any, name: str) -> None:
    for scale in np.geomspace(2.0**-12, 4.0, 60):
        try:
            found = table(op, name, tensor(scale, 7), tensor(*FIXED[type(op)]))
        except UnsupportedError:
            continue
        assert (np.diff(found) >= 0).all()


def test_hard_swish_falls_and_rises() -> None:
    found = table(ops.HardSwish(), "tflm", tensor(0.05), tensor(0.04, -100))
    assert (np.diff(found) < 0).any() and (np.diff(found) > 0).any()


@pytest.mark.parametrize(
    ("op", "name", "x", "out", "message"),
    [
        (ops.LeakyRelu(-0.5), "tflm", tensor(0.1), tensor(0.1), "negative alpha"),
        (ops.LeakyRelu(0.5), "tflm", tensor(2.0**20), tensor(2.0**-10), "shifts left by 31 bits"),
        (ops.LeakyRelu(2.0**-10), "litert-xnnpack", tensor(0.1), tensor(0.1), "XNNPACK takes them from"),
        (ops.HardSwish(), "tflm", tensor(1.0), tensor(2.0**-10), "exponents 4"),
        (ops.HardSwish(), "tflm", tensor(2.0**-30), tensor(2.0**-30), "-15..15"),
        (ops.Logistic(), "tflm", tensor(32.0), tensor(1 / 256, -128), "from 2^-28 to 2^4"),
        (ops.Tanh(), "tflm", tensor(2.0**-30), tensor(1 / 128), "from 2^-28 to 2^4"),
    ],
)
def test_what_a_runtime_leaves_undefined_is_refused(op: Any, name: str, x: Tensor, out: Tensor, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message.replace("^", r"\^").replace("+", r"\+")):
        table(op, name, x, out)


def test_a_table_that_hangs_on_the_last_bit_of_exp_is_refused() -> None:
    """256 / (1 + exp(-v)) rounds to k + 1/2 in float32 for an exp in reach of this one's neighbours."""
    with pytest.raises(UnsupportedError, match="so near a tie"):
        table(ops.Logistic(), "litert-builtin", tensor(0.0078125, 127), tensor(1 / 256, -128))


def test_a_wider_error_of_the_library_refuses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        count = 0
        for scale in np.geomspace(2.0**-8, 2.0**-3, 80):
            try:
                table(ops.Tanh(), "litert-builtin", tensor(scale, 3), tensor(1 / 128))
            except UnsupportedError:
                count += 1
        return count

    few = refused()
    monkeypatch.setattr(tables, "TANH_ULPS", 60)
    assert few <= 2 < refused()


@given(st.integers(0, 2**32 - 1))
def test_extremes_are_those_of_every_interval(seed: int) -> None:
    values = np.random.default_rng(seed).integers(-128, 128, 256)
    least, most = Table(values).extremes
    for low in range(0, 256, 17):
        for high in range(low, 256, 13):
            assert least[low, high] == values[low : high + 1].min() and most[low, high] == values[low : high + 1].max()


def scalar_nearest(i: int, n: int, m: int, aligned: bool, centred: bool) -> int:
    """GetNearestNeighbor, statement by statement."""
    f = np.float32
    scale = f(n - 1) / f(m - 1) if aligned and m > 1 else f(n) / f(m)
    place = float((f(i) + f(0.5 if centred else 0.0)) * scale)
    return max(0, min(math.floor(place + 0.5) if aligned else math.floor(place), n - 1))


@given(st.integers(1, 300), st.integers(1, 300), st.booleans(), st.booleans())
def test_nearest_sources_are_those_of_the_scalar_code(n: int, m: int, aligned: bool, centred: bool) -> None:
    expected = [scalar_nearest(i, n, m, aligned, centred) for i in range(m)]
    assert nearest_source(n, m, aligned, centred).tolist() == expected


@given(data=st.data())
def test_index_maps_are_numpy_s(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    image = np.arange(int(np.prod(shape))).reshape(shape)
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    turned = image.transpose(perm)
    assert np.array_equal(source_index(ops.Transpose(perm), shape, turned.shape), turned)
    begin = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stride = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    cut = image[tuple(slice(b, None, s) for b, s in zip(begin, stride, strict=True))]
    found = source_index(ops.Slice(begin, cut.shape, stride), shape, cut.squeeze().shape)
    assert np.array_equal(found, cut.squeeze()) and found.shape == cut.squeeze().shape


def ends_alone(table: Table) -> tuple[Any, Any]:
    """What a table that never turns would have."""
    y = table.table
    return np.minimum.outer(y, y), np.maximum.outer(y, y)


def without_zero_point(op: Any, rule: Any, x: Tensor, out: Tensor) -> Any:
    return tables.code_table(op, rule, replace(x, zero_point=0), out)


def never_centred(n: int, m: int, aligned: bool, centred: bool) -> Any:
    return tables.nearest_source(n, m, aligned, False)


def there_for_back(op: Any, shape: tuple[int, ...], out: tuple[int, ...]) -> Any:
    turned = replace(op, perm=tuple(np.argsort(op.perm).tolist())) if isinstance(op, ops.Transpose) else op
    return tables.source_index(turned, shape, out)


FAULTS: list[tuple[Callable[[], None], str, Any]] = [
    (lambda: test_a_table_is_within_rounding_of_its_function(ops.Tanh(), "tflm"), "code_table", without_zero_point),
    (test_nearest_sources_are_those_of_the_scalar_code, "nearest_source", never_centred),
    (test_index_maps_are_numpy_s, "source_index", there_for_back),
]


@pytest.mark.parametrize(("test", "name", "fault"), FAULTS, ids=["zero point", "centre", "inverse"])
def test_planted_faults(test: Callable[[], None], name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), name, fault)
    with pytest.raises((AssertionError, ValueError, ExceptionGroup)):
        test()


def test_planted_fault_extremes_of_the_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Table, "extremes", property(ends_alone))
    with pytest.raises(AssertionError):
        test_extremes_are_those_of_every_interval()
