"""A few numbers of what bench/soundness.py does ten thousand times, and that its oracle notices every rule broken on purpose."""

from __future__ import annotations

from collections import Counter

import pytest
from soundness_kit import FAULTS, ROWS, examine, noticed


def test_nothing_contradicts_a_bound_or_a_verdict() -> None:
    seen: Counter[str] = sum((examine(n) for n in range(6 * len(ROWS))), Counter())
    assert seen["certified"] > 40 and seen["attacked"] > 30
    assert sum(key.startswith("profile ") for key in seen) == len(ROWS)


@pytest.mark.parametrize("number", [1502, 3062])
def test_margins_in_front_of_a_softmax_that_reshapes_follow(number: int) -> None:
    assert examine(number)["regions"] > 0


def test_nothing_contradicts_them_where_every_point_is_executed() -> None:
    seen: Counter[str] = sum((examine(n, tiny=True) for n in range(len(ROWS))), Counter())
    assert seen["executions"] > 100_000


@pytest.mark.parametrize("fault", FAULTS)
def test_the_oracle_notices(fault: str) -> None:
    assert noticed(FAULTS[fault], 1500) is not None
