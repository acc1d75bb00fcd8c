"""Elementwise lookups, products, differences and moves of elements against the real runtimes, all codes and edge scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from agree_kit import admitted

from cactus_edge.errors import MismatchError, UnsupportedError
from cactus_edge.formats.agree import agree
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops, tables
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor

RUNTIMES = ("tflm", "litert-ref", "litert-builtin", "litert-xnnpack")
CODES = np.arange(-128, 128, dtype=np.int8)


def f32(value: float) -> float:
    return float(np.float32(value))


def unary(op: ops.Op, x: tuple[float, int], out: tuple[float, int]) -> Graph:
    b = GraphBuilder()
    first = b.input(Tensor("x", (256,), "int8", f32(x[0]), x[1]))
    return b.finish(b.node(op, [first], Tensor("y", (256,), "int8", f32(out[0]), out[1])))


def scales(rng: np.random.Generator, count: int) -> Iterator[tuple[float, float, int, int]]:
    """(S_in, S_out, z_in, z_out): usual, extreme, and small fractions whose quotients tie."""
    for k in range(count):
        s_in = 2.0 ** (rng.uniform(-34, 8) if k % 3 == 0 else rng.uniform(-9, 1))
        ratio = 2.0 ** (rng.uniform(-10, 10) if k % 3 == 0 else rng.uniform(-2, 2))
        if k % 5 == 0:
            s_in = rng.choice([1, 3, 5, 7, 11]) / rng.choice([1, 2, 8, 32, 64, 256, 7, 11])
            ratio = rng.choice([1, 2, 4, 0.5, 0.25, 3, 1 / 3, 1.5, 0.75])
        z_in, z_out = (int(z) for z in rng.choice([-128, 127, 0, *rng.integers(-128, 128, 4)], 2))
        yield s_in, s_in * ratio, z_in, z_out


def lookup(kind: str, rng: np.random.Generator, count: int) -> Iterator[Graph]:
    for s_in, s_out, z_in, z_out in scales(rng, count):
        match kind:
            case "logistic":
                yield unary(ops.Logistic(), (s_in, z_in), (1 / 256, -128))
            case "tanh":
                yield unary(ops.Tanh(), (s_in, z_in), (1 / 128, 0))
            case "hard_swish":
                yield unary(ops.HardSwish(), (s_in, z_in), (s_out, z_out))
            case _:
                alpha = f32(rng.choice([0.01, 0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0**-9]))
                yield unary(ops.LeakyRelu(alpha), (s_in, z_in), (s_out, z_out))


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("kind", ["logistic", "tanh", "hard_swish", "leaky_relu"])
def test_every_code_agrees(kind: str, name: str) -> None:
    assert admitted(((graph, CODES[np.newaxis]) for graph in lookup(kind, np.random.default_rng(5), 120)), name) >= 80


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("tflm", "logistic", ("xnnpack",)),
        ("litert-builtin", "logistic", ("gemmlowp_q4_27",)),
        ("litert-xnnpack", "tanh", ("gemmlowp_q4_27",)),
        ("tflm", "leaky_relu", ("D", "float32")),
        ("litert-xnnpack", "leaky_relu", ("D", "float32")),
    ],
)
def test_another_runtime_s_table_is_told_apart(
    name: str, kind: str, rule: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    op = {"logistic": "Logistic", "tanh": "Tanh", "leaky_relu": "LeakyRelu"}[kind]
    monkeypatch.setitem(PROFILES[name].rules, op, rule)  # type: ignore[index]
    with pytest.raises(MismatchError):
        admitted(((graph, CODES[np.newaxis]) for graph in lookup(kind, np.random.default_rng(5), 2000)), name)


def test_a_rounding_shift_of_hard_swish_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "rdp", lambda x, e: (x + ((1 << e) >> 1)) >> e)
    with pytest.raises(MismatchError):
        admitted(((graph, CODES[np.newaxis]) for graph in lookup("hard_swish", np.random.default_rng(5), 200)), "tflm")


def every_pair(kind: type[ops.Op], rng: np.random.Generator, count: int) -> Iterator[Graph]:
    """x [256, 1, 16] with a constant row of all 256 codes: every pair meets, 16 times; or one constant per channel, or one."""
    for k in range(count):
        s1, s2 = (
            2.0 ** rng.uniform(-12, 6) if k % 2 else rng.integers(1, 13) / rng.choice([3, 7, 8]) for _ in range(2)
        )
        largest = max(s1, s2) * (2.0 ** rng.uniform(-6, 6) if k % 2 else rng.choice([1, 2, 0.5, 1.5, 0.75]))
        product = s1 * s2 * (2.0 ** rng.uniform(-8, 18) if k % 2 else rng.choice([2, 4, 8, 64, 256, 96]))
        z1, z2, zo = (int(z) for z in rng.choice([-128, 127, 0, *rng.integers(-128, 128, 4)], 3))
        shape = [(1, 256, 1), (1, 1, 16), (1, 1, 1), (256, 1, 16)][k % 4]
        values = CODES.reshape(shape) if k % 4 == 0 else rng.integers(-128, 128, shape)
        b = GraphBuilder()
        x = b.input(Tensor("x", (256, 1, 16), "int8", f32(s1), z1))
        y = b.constant(Tensor("c", shape, "int8", f32(s2), z2), ops.freeze(values, np.int8))
        pair = [x, y] if k % 3 else [y, x]
        out = Tensor("y", (256, shape[1], 16), "int8", f32(product if kind is ops.Mul else largest), zo)
        yield b.finish(b.node(kind(list(ops.Activation)[k % 4]), pair, out))  # type: ignore[call-arg]


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("kind", [ops.Sub, ops.Mul, ops.Add], ids=["sub", "mul", "add"])
def test_every_pair_of_codes_agrees(kind: type[ops.Op], name: str) -> None:
    codes = CODES.repeat(16).reshape(1, 256, 1, 16)
    least = 3 if (kind, name) == (ops.Add, "litert-builtin") else 8
    assert admitted(((graph, codes) for graph in every_pair(kind, np.random.default_rng(11), 16)), name) >= least


def square(reshape: bool) -> Graph:
    b = GraphBuilder()
    x = b.input(Tensor("x", (16, 16), "int8", f32(0.3), 5))
    y = b.node(ops.Reshape(), [x], Tensor("r", (16, 16), "int8", f32(0.3), 5)) if reshape else x
    return b.finish(b.node(ops.Mul(), [x, y], Tensor("y", (16, 16), "int8", f32(0.21), -7)))


@pytest.mark.parametrize("reshape", [False, True])
def test_a_square_is_refused_where_xnnpack_computes_another(reshape: bool) -> None:
    codes = CODES.reshape(1, 16, 16)
    with pytest.raises(UnsupportedError, match="Mul of a tensor with itself"):
        agree(write_tflite(square(reshape)), codes, "litert-xnnpack")
    agree(write_tflite(square(reshape)), codes, "tflm").require()


def test_xnnpack_s_square_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for that refusal."""
    monkeypatch.setitem(PROFILES["litert-xnnpack"].rules, "Mul", ("F", "float32"))  # type: ignore[index]
    rng = np.random.default_rng(0)
    with pytest.raises(MismatchError):
        for _ in range(60):
            b = GraphBuilder()
            scale = f32(rng.integers(8, 16) / rng.choice([7, 11, 13]))
            x = b.input(Tensor("x", (256,), "int8", scale, int(rng.integers(-128, 128))))
            out = Tensor("y", (256,), "int8", f32(scale**2 * rng.integers(1, 90)), int(rng.integers(-128, 128)))
            agree(write_tflite(b.finish(b.node(ops.Mul(), [x, x], out))), CODES[np.newaxis], "litert-xnnpack").require()


@pytest.mark.parametrize("name", ["litert-ref", "litert-builtin"])
def test_sum_is_refused_where_it_is_not_int8_arithmetic(name: str) -> None:
    b = GraphBuilder()
    x = b.input(Tensor("x", (4, 4), "int8", 0.5, 0))
    graph = b.finish(b.node(ops.Sum((0,)), [x], Tensor("y", (4,), "int8", 1.0, 0)))
    with pytest.raises(UnsupportedError, match="no rule for Sum"):
        agree(write_tflite(graph), CODES[:16].reshape(1, 4, 4), name)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)], ids=["plain", "aligned", "centred"])
def test_nearest_neighbours_agree(flags: tuple[bool, bool], name: str) -> None:
    rng = np.random.default_rng(1)
    for n, m in rng.integers(1, 60, (25, 2)):
        b = GraphBuilder()
        x = b.input(Tensor("x", (int(n), 4, 2), "int8", 0.5, 0))
        graph = b.finish(b.node(ops.ResizeNearest(*flags), [x], Tensor("y", (int(m), 7, 2), "int8", 0.5, 0)))
        agree(write_tflite(graph), rng.integers(-128, 128, (2, n, 4, 2)).astype(np.int8), name).require()
