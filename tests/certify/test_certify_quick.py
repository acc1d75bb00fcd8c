"""The quick linear bounds are those of the definition, bit for bit, and the quick way is the one that is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import boxes, mixtures, programs
from proof_kit import slopes

from cactus_edge.certify import quick as module
from cactus_edge.certify.quick import QuickRelaxation
from cactus_edge.ir.atoms import Program
from cactus_edge.verify.lines import ONE
from cactus_edge.verify.relax import Relaxation

FIRST: dict[str, Any] = {"middle": ("conv2d", "dense", "relu", "max_pool"), "ends": ("",), "max_nodes": 4}


def found() -> list[Program]:
    return programs(50, 40, **FIRST) + programs(400, 10, max_nodes=5) + mixtures(30, 6, **FIRST)


def differing(program: Program, seed: int) -> bool:
    """Whether intervals or rows over boxes differ, with any slopes and rows of any size."""
    rng = np.random.default_rng(seed)
    chosen = slopes(rng, program)
    plain, quick = Relaxation(program, chosen), QuickRelaxation(program, chosen)
    lo, _, hi = boxes(rng, program.values[program.input].shape, 6)
    known, _ = plain.forward(lo, hi)
    if not all(
        np.array_equal(*ends)
        for v, w in zip(known, quick.forward(lo, hi)[0], strict=True)
        for ends in zip(v, w, strict=True)
    ):
        return True
    shape = program.values[program.output].shape
    rows = rng.integers(-(2**12), 2**12, (6, 5, *shape)) >> rng.integers(0, 12, (6, 5, *(1,) * len(shape)))
    hints = {
        v: tuple(rng.integers(0, 2**ONE + 1, (6, 1, *program.values[v].shape)) for _ in range(2)) for v in plain.lines
    }
    return not np.array_equal(*(r.lower(program.output, rows, known, hints) for r in (plain, quick)))  # type: ignore[arg-type]


def test_bounds_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    real = module._onto_input

    def watched(*args: Any) -> bool:
        taken.append(real(*args))
        return taken[-1]

    monkeypatch.setattr(module, "_onto_input", watched)
    assert not any(differing(program, k) for k, program in enumerate(found()))
    assert sum(taken) > 5 and not all(taken)


def grain_more(patch: pytest.MonkeyPatch) -> None:
    real = module._onto_input

    def onto(first: Any, a: Any, e: Any, state: Any, bounds: Any) -> bool:
        done = real(first, a, e, state, bounds)
        state.constant += done << module.GRAIN
        return done

    patch.setattr(module, "_onto_input", onto)


def a_point(patch: pytest.MonkeyPatch) -> None:
    real = module._onto_input
    patch.setattr(module, "_onto_input", lambda *args: real(*args[:4], (args[4][0], args[4][0])))


def bound_more(patch: pytest.MonkeyPatch) -> None:
    real = QuickRelaxation._step

    def step(self: Any, step: Any, args: Any) -> Any:
        low, high = real(self, step, args)
        return low + (step.out in self._affine), high

    patch.setattr(QuickRelaxation, "_step", step)


def another_offset(patch: pytest.MonkeyPatch) -> None:
    real = module._onto_input
    patch.setattr(module, "_onto_input", lambda first, *args: real(replace(first, offset=first.offset + 1), *args))


@pytest.mark.parametrize("fault", [grain_more, a_point, bound_more, another_offset])
def test_a_fault_is_noticed(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    assert any(differing(program, k) for k, program in enumerate(found()))
