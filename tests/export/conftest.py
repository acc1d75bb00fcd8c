"""The portable runtime, compiled once a session for this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.c.host import CHECKED, HostRuntime


@pytest.fixture(scope="session")
def host_runtime(tmp_path_factory: pytest.TempPathFactory) -> HostRuntime:
    """Every kernel, optimised, trapping at undefined behaviour."""
    folder: Path = tmp_path_factory.mktemp("host")
    return HostRuntime(folder, CHECKED)


@pytest.fixture(scope="session")
def c_checker(tmp_path_factory: pytest.TempPathFactory) -> CChecker:
    """The checker of proofs, optimised, trapping at undefined behaviour."""
    return CChecker(tmp_path_factory.mktemp("checker"), CHECKED)
