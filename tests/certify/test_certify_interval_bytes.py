"""The byte engine gives numpy's bounds bit for bit, takes only what it can prove, and notices kernels that do not add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from brute import mixtures, programs

from cactus_edge.certify import interval_bytes
from cactus_edge.certify.interval import TorchEngine, quickest
from cactus_edge.certify.interval_bytes import ByteEngine, byte_layers, exact, line
from cactus_edge.certify.tiles import TILE
from cactus_edge.errors import InternalError
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import Affine, Between, Program
from cactus_edge.ir.envelope import requantise_ends
from cactus_edge.ir.linear import Dense
from cactus_edge.ir.rules import FloatRequantise
from cactus_edge.verify.interval import Engine, propagate

CHAIN: dict[str, Any] = {"middle": ("conv2d", "dense", "reshape"), "ends": ("",), "max_nodes": 3}

pytestmark = pytest.mark.skipif(not exact(), reason="torch has no exact byte products on this processor")


def chains() -> Iterator[Program]:
    """Chains under several profiles and under mixtures of them."""
    for k, name in enumerate(("tflm", "litert-ref", "litert-xnnpack")):
        yield from programs(100 * k, 20, arithmetic=PROFILES[name], **CHAIN)
    yield from mixtures(7, 10, **CHAIN)


def engines(found: Iterator[Program]) -> Iterator[ByteEngine]:
    for program in found:
        layers = byte_layers(program, [program.output])
        if layers is not None:
            yield ByteEngine(program, [program.output], layers)


def check(engine: Engine, seed: int, count: int = 5) -> None:
    rng = np.random.default_rng(seed)
    shape = engine.program.values[engine.program.input].shape
    lo, hi = np.sort(rng.integers(-128, 128, (2, count, *shape)), axis=0).astype(np.int8)
    expected = propagate(engine.program, lo, hi)[engine.program.output]
    (got,) = engine.run(lo, hi)
    assert all(np.array_equal(e, g) for e, g in zip(expected, got, strict=True))


def test_bounds_equal_the_definition() -> None:
    found = list(engines(chains()))
    assert len(found) > 20
    for k, engine in enumerate(found):
        check(engine, k)


@pytest.mark.parametrize("count", [1, TILE - 1, TILE, TILE + 1])
def test_every_number_of_samples_comes_out_whole(count: int) -> None:
    check(next(engines(chains())), count, count)


def test_what_is_no_chain_is_left_to_the_other_engine() -> None:
    for options in ({"middle": ("add",)}, {"middle": ("max_pool",)}, {"middle": ("depthwise_conv2d",)}):
        for program in programs(3, 4, ends=("",), max_nodes=2, **options):
            if len(program.steps) > 1:
                assert byte_layers(program, [program.output]) is None
                assert type(quickest(program, [program.output])) is TorchEngine
    program = next(chains())
    assert byte_layers(program, range(len(program.values))) is None


def test_sums_beyond_float32_are_left_to_the_other_engine() -> None:
    taken = [p for p in programs(0, 20, **CHAIN) if byte_layers(p, [p.output]) is not None]

    def huge(program: Program) -> Program:
        steps = tuple(
            replace(s, atom=replace(s.atom, bias=s.atom.bias + 2**23)) if isinstance(s.atom, Affine) else s
            for s in program.steps
        )
        return replace(program, steps=steps)

    assert taken and all(byte_layers(huge(p), [p.output]) is None for p in taken)


def test_weights_of_nine_bits_are_left_to_the_other_engine() -> None:
    weight = np.full((2, 4), 128)
    assert interval_bytes._product(Dense(weight - 1, (4,)), np.zeros(4, np.float32), 0, 4) is not None
    assert interval_bytes._product(Dense(weight, (4,)), np.zeros(4, np.float32), 0, 4) is None


def test_a_rule_that_no_guess_meets_is_not_taken() -> None:
    low, high = np.array([-1000]), np.array([1000])
    assert line(lambda a: np.clip(a >> 3, -128, 127), np.array([0.125]), low, high, 0, 255) is not None
    bent = line(lambda a: np.clip(np.where(a < 0, a >> 5, a >> 2), -128, 127), np.array([0.125]), low, high, 0, 255)
    assert bent is None


def test_one_multiplier_and_a_bias_for_each_channel() -> None:
    """An envelope's slack varies with the bias where the scale is the tensor's: a dense layer for TensorRT."""
    low, high = np.full(8, -170_000), np.full(8, 160_000)
    ends = requantise_ends(0.5, 0.01, 1.0, np.arange(8) * 1000, (0, 127), "here")
    slope = interval_bytes._slope(Between(ends[0], FloatRequantise("F", np.array([0.005]), 0, 0, 127), ends[1]))
    found = interval_bytes._lines((ends[0].apply, ends[1].apply), slope, low, high)
    assert slope.shape == (8,)
    assert found is None or all(part.shape == (8,) for part in found[0])


# Planted faults


def saturating(patch: pytest.MonkeyPatch) -> None:
    """Pairs of products in 16 bits, as on processors without VNNI."""
    real = interval_bytes._product

    def product(linear: Any, *rest: Any) -> Any:
        exactly = real(linear, *rest)
        return exactly and (lambda x: exactly(x).clamp(-32767, 32767))

    patch.setattr(interval_bytes, "_product", product)


def swapped_ends(patch: pytest.MonkeyPatch) -> None:
    real = interval_bytes._both
    patch.setattr(interval_bytes, "_both", lambda w: np.ascontiguousarray(np.roll(real(w), len(w), 0)))


def lost_sign(patch: pytest.MonkeyPatch) -> None:
    real = interval_bytes._both
    patch.setattr(interval_bytes, "_both", lambda w: np.maximum(real(w), 0))


def off_by_one(patch: pytest.MonkeyPatch) -> None:
    real = interval_bytes._lines

    def lines(*a: Any) -> Any:
        found = real(*a)
        return found and (found[0], [above - np.float32(1) for above in found[1]], found[2])

    patch.setattr(interval_bytes, "_lines", lines)


@pytest.mark.parametrize("fault", [saturating, swapped_ends, lost_sign, off_by_one])
def test_a_fault_is_noticed(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exact()
    fault(monkeypatch)
    with pytest.raises(InternalError, match="differ from"):
        for _ in engines(chains()):
            pass


def test_a_processor_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    saturating(monkeypatch)
    exact.cache_clear()
    try:
        assert not exact()
    finally:
        exact.cache_clear()


def test_a_torch_without_byte_kernels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        @property
        def onednn(self) -> Any:
            raise AttributeError("no such operators")

    monkeypatch.setattr(torch, "ops", Without())
    exact.cache_clear()
    try:
        assert not exact()
    finally:
        exact.cache_clear()
