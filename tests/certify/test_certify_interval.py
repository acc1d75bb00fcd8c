"""The torch engine gives numpy's bounds and verdicts bit for bit, and notices a library that does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs, random_graph

from cactus_edge.certify import interval
from cactus_edge.certify.interval import TorchAccumulate, TorchEngine, TorchStaircase, quickest
from cactus_edge.certify.tiles import TILE
from cactus_edge.errors import InternalError, UnsupportedError
from cactus_edge.ir import evaluate
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import decide
from cactus_edge.verify.interval import Engine, propagate
from cactus_edge.verify.regions import region

TFLM = profile("tflm")


def program_of(seed: int, **options: Any) -> Program:
    return lower(random_graph(np.random.default_rng(seed), **options), TFLM)


def boxes(seed: int, program: Program, count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.integers(-128, 128, (2, count, *program.values[program.input].shape)), axis=0).astype(np.int8)
    return ends[0], ends[1]


@settings(max_examples=60)
@given(data=st.data())
def test_bounds_equal_the_definition(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    try:
        program = lower(graph, TFLM)
    except UnsupportedError:
        return
    seed, count = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 5))
    lo, hi = boxes(seed, program, count)
    values = range(len(program.values))
    for expected, got in zip(propagate(program, lo, hi), TorchEngine(program, values).run(lo, hi), strict=True):
        assert all(np.array_equal(e, g) for e, g in zip(expected, got, strict=True))


@settings(max_examples=60)
@given(data=st.data())
def test_points_come_out_as_the_interpreter_has_them(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    try:
        program = lower(graph, TFLM)
    except UnsupportedError:
        return
    x, _ = boxes(data.draw(st.integers(0, 2**32 - 1)), program, data.draw(st.integers(1, 5)))
    got = interval.outputs(program, len(x))(x)
    assert got.dtype == program.output_tensor.dtype and np.array_equal(got, evaluate.run(program, x))


def test_of_points_there_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(2, max_nodes=1, middle=("conv2d",), ends=("",))
    engine, (x, _) = TorchEngine(program, [program.output]), boxes(0, program, TILE)
    made: list[object] = []
    real = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda *a, **k: made.append(a) or real(*a, **k))
    ((low, high),) = engine.run(x, x)
    assert len(made) == 1 and np.array_equal(low, evaluate.run(program, x)) and np.array_equal(high, low)


def test_a_point_that_an_engine_bounds_more_coarsely_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(5, max_nodes=4)
    x, _ = boxes(1, program, 5)
    real = Engine.run

    def coarse(self: Engine, *ends: Any) -> Any:
        return [
            (low - (np.arange(len(low)) % 2).reshape(-1, *(1,) * (low.ndim - 1)), high)
            for low, high in real(self, *ends)
        ]

    monkeypatch.setattr(interval, "quickest", lambda *a: type("Coarse", (Engine,), {"run": coarse})(*a))
    monkeypatch.setattr(Engine, "_self_check", lambda self: None)
    assert np.array_equal(interval.outputs(program, 5)(x), evaluate.run(program, x))


@pytest.mark.parametrize("count", [1, TILE - 1, TILE, TILE + 1, 2 * TILE])
def test_every_number_of_samples_comes_out_whole(count: int) -> None:
    program = program_of(5, max_nodes=4)
    lo, hi = boxes(count, program, count)
    targets = [program.output]
    (low, high), (expected_low, expected_high) = (
        *TorchEngine(program, targets).run(lo, hi),
        *Engine(program, targets).run(lo, hi),
    )
    assert np.array_equal(low, expected_low) and np.array_equal(high, expected_high)


def test_torch_does_the_work_where_it_can() -> None:
    """A fallback to numpy everywhere would pass every comparison: it must not be what happens."""
    used = set()
    for seed in range(30):
        engine = TorchEngine(program := program_of(seed), range(len(program.values)))
        used |= {type(form) for form in engine._affine.values()} | {
            type(rule) for pair in engine._rules.values() for rule in pair
        }
    assert TorchAccumulate in used and TorchStaircase in used


def test_the_decision_is_the_same_and_threads_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen, verdicts = torch.get_num_threads(), [], []
    real = TorchEngine.run

    def watched(self: TorchEngine, *ends: Any) -> Any:
        seen.append(torch.get_num_threads())
        return real(self, *ends)

    monkeypatch.setattr(TorchEngine, "run", watched)
    for seed in range(6):
        program = program_of(seed, max_nodes=2, middle=("conv2d", "dense"), ends=("",))
        x = np.random.default_rng(1).integers(-128, 128, (300, *program.values[program.input].shape)).astype(np.int8)
        labels = evaluate.run(program, x).reshape(len(x), -1).argmax(1)
        try:
            expected = decide.certify(program, ball := region(program, program.quantize.scale * 2), x, labels)
        except UnsupportedError:
            continue
        for threads in (1, 3):
            got = interval.certify(program, ball, x, labels, threads=threads)
            for name in ("correct", "certified", "margin"):
                assert np.array_equal(getattr(got, name), getattr(expected, name))
        verdicts.append(expected.certified)
    assert np.concatenate(verdicts).any() and not np.concatenate(verdicts).all()
    assert set(seen) == {1} and torch.get_num_threads() == before


def test_small_work_does_not_load_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch in the process, some samples of a small network stay with numpy; a long run loads it."""
    program = program_of(11, max_nodes=3, ends=("",))
    x = np.zeros((4, *program.values[program.input].shape), np.int8)
    monkeypatch.setattr(interval, "sys", type("without", (), {"modules": {}}))
    chosen: list[object] = []
    monkeypatch.setattr(interval.decide, "certify", lambda *a, engine=Engine, **k: chosen.append(engine))
    ball = region(program, 0)
    interval.certify(program, ball, x, np.zeros(4, np.int64))
    monkeypatch.setattr(interval, "WORTH", 0)
    interval.certify(program, ball, x, np.zeros(4, np.int64))
    monkeypatch.setattr(interval, "_installed", lambda: False)
    interval.certify(program, ball, x, np.zeros(4, np.int64))
    assert chosen == [Engine, quickest, Engine]
    monkeypatch.setattr(interval, "quickest", lambda *a: pytest.fail("torch is loaded"))
    assert np.array_equal(interval.outputs(program, 10**9)(x), evaluate.run(program, x))


# Planted faults: what a library could do that the numpy proofs do not cover.


def test_a_product_in_bfloat16_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda *a, **k: real(*a, **k).bfloat16().float())
    with pytest.raises(InternalError, match="differ from numpy"):
        program = program_of(2, max_nodes=1, middle=("conv2d",), ends=("",))
        TorchEngine(program, range(len(program.values)))


def test_a_product_that_is_not_an_integer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Winograd's: right up to a rounding error."""
    real = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda *a, **k: real(*a, **k) * (1 + 2**-20))
    with pytest.raises(InternalError, match="differ from numpy"):
        program = program_of(2, max_nodes=1, middle=("conv2d",), ends=("",))
        TorchEngine(program, range(len(program.values)))


@pytest.mark.parametrize("fault", ["border", "bias", "clamp"])
def test_a_wrong_form_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(seed: int) -> None:
        program = program_of(seed, max_nodes=2, middle=("conv2d",), ends=("",))
        TorchEngine(program, range(len(program.values)))

    if fault == "border":
        real_sum = TorchAccumulate._sum
        monkeypatch.setattr(TorchAccumulate, "_sum", lambda self, f, a, b, border: real_sum(self, f, a, b, 0.0))
    elif fault == "bias":
        real_conv = torch.conv2d
        monkeypatch.setattr(torch, "conv2d", lambda x, w, bias, **k: real_conv(x, w, None, **k))
    else:
        real_of = TorchStaircase.of.__func__  # type: ignore[attr-defined]

        def high(cls: type[TorchStaircase], rule: Any, **k: Any) -> TorchStaircase:
            made: TorchStaircase = real_of(cls, rule, **k)
            object.__setattr__(made, "hi", made.hi - 1)
            return made

        monkeypatch.setattr(TorchStaircase, "of", classmethod(high))
    with pytest.raises(InternalError, match="differ from numpy"):
        for seed in range(20):
            tampered(seed)
