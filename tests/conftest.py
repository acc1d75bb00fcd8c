"""Settings every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.c.host import CHECKED

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


def shared_folder(variable: str, *relative: str) -> Path | None:
    """The folder an environment variable names, else `relative` beside the checkout, else None."""
    named = os.environ.get(variable)
    path = Path(named) if named else Path(__file__).resolve().parents[2].joinpath(*relative)
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data sets; skips where there is none."""
    path = shared_folder("CACTUS_EDGE_DATA", "shared", "data")
    if path is None:
        pytest.skip("no data sets: set CACTUS_EDGE_DATA to the folder that holds them")
    return path


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The folder of the real reference models; skips where there is none."""
    path = shared_folder("CACTUS_EDGE_MODELS", "shared", "models")
    if path is None:
        pytest.skip("no reference models: set CACTUS_EDGE_MODELS to the folder that holds them")
    return path


@pytest.fixture(scope="session", autouse=True)
def every_certificate_meets_its_schema() -> Iterator[None]:
    """Whatever certificate a test makes, the published schema describes it: a field that it lacks turns that test red."""
    from certificate_kit import violations

    from cactus_edge.verify.certificate import Certificate

    written = Certificate.to_bytes

    def to_bytes(self: Certificate) -> bytes:
        assert violations(self.record) == []
        return written(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Certificate, "to_bytes", to_bytes)
        yield


@pytest.fixture(scope="session")
def c_checker(tmp_path_factory: pytest.TempPathFactory) -> CChecker:
    """The checker of proofs in C, optimised, trapping at undefined behaviour."""
    return CChecker(tmp_path_factory.mktemp("checker"), CHECKED)
