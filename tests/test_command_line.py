"""What a run or a build records of its command."""

from __future__ import annotations

import sys

import pytest

from cactus_edge.runs import command_line


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        (["build", "--host", "anna@10.0.0.7", "--quiet"], "cactus-edge build --host user@host --quiet"),
        (["build", "--host=anna@10.0.0.7"], "cactus-edge build --host=user@host"),
        (["build", "--out", "a b"], "cactus-edge build --out 'a b'"),
    ],
)
def test_who_and_where_a_computer_is_stays_out(
    typed: list[str], recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cactus-edge", *typed])
    assert command_line("build()") == recorded


def test_a_call_from_python_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    assert command_line("build()") == "build()"
