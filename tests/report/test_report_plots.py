"""The plot of brackets as a file: deterministic, readable, and honest at its ends."""

from __future__ import annotations

import re

import pytest

from cactus_edge.report import plots

CERTIFIED = [None, 0.0, 0.1, 0.1, 0.3]
REFUTED = [0.0, 0.1, 0.2, None, None]


@pytest.mark.parametrize(("kind", "head"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml")])
def test_equal_brackets_give_equal_files(kind: str, head: bytes) -> None:
    image = plots.brackets_image(CERTIFIED, REFUTED, kind)
    assert image.startswith(head) and image == plots.brackets_image(CERTIFIED, REFUTED, kind)
    assert image != plots.brackets_image([0.2, *CERTIFIED[1:]], REFUTED, kind)


def test_no_placeholder_colour_is_left() -> None:
    text = plots.brackets_image(CERTIFIED, REFUTED, "svg").decode()
    assert not re.search("#01020[3-6]", text)
    assert "not refuted" in text and "certified" in text


@pytest.mark.parametrize(
    "ends", [([None], [0.0]), ([0.0], [None]), ([0.5] * 3, [None] * 3)], ids=["none", "all", "same"]
)
def test_extreme_brackets_are_drawn(ends: tuple[list[float | None], list[float | None]]) -> None:
    assert plots.brackets_image(*ends, "png")
