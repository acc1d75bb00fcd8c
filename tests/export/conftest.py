"""The portable runtime, compiled once a session for this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cactus_edge.formats.c.host import CHECKED, HostRuntime


@pytest.fixture(scope="session")
def host_runtime(tmp_path_factory: pytest.TempPathFactory) -> HostRuntime:
    """Every kernel, optimised, trapping at undefined behaviour."""
    folder: Path = tmp_path_factory.mktemp("host")
    return HostRuntime(folder, CHECKED)
