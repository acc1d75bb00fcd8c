"""Fixtures of tests of certification."""

from __future__ import annotations

import pytest

from cactus_edge.certify import crew


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """More slices than workers, of unequal length."""
    monkeypatch.setattr(crew, "INTERVAL_SLICE", 37)
    monkeypatch.setattr(crew, "PROOF_SLICE", 37)
