"""A Dask cluster decides what a serial run decides; workers that die, another code and a cluster that goes away are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spread_kit import (
    LABELS,
    MANY,
    PROGRAM,
    REGION,
    ask_for_two_arithmetics,
    equal,
    files,
    proof,
    serial,
    without_time,
)

from cactus_edge.certify import cluster as cluster_module
from cactus_edge.certify import crew as crew_module
from cactus_edge.certify.cluster import Cluster
from cactus_edge.certify.crew import decider
from cactus_edge.certify.spread import Alone
from cactus_edge.cli import main
from cactus_edge.errors import InputError, InstallError

dask = pytest.importorskip("distributed", reason="no distributed")


pytestmark = pytest.mark.usefixtures("short_slices")


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    """Two real worker processes and a scheduler."""
    with dask.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        yield cluster


def address(cluster: Any) -> str:
    return str(cluster.scheduler_address).replace("tcp://", "dask://")


def test_a_cluster_is_a_serial_run(local: Any) -> None:
    assert equal(decider(1, Cluster(address(local)))(PROGRAM, REGION, MANY, LABELS), serial())


def test_a_worker_of_the_cluster_dies(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "PROOF_SLICE", 4)
    victim = next(iter(local.workers.values())).pid

    def kill(done: int) -> None:
        if not killed:
            killed.append(done)
            os.kill(victim, signal.SIGKILL)

    killed: list[int] = []
    assert proof(Cluster(address(local)), progress=kill) == proof(Alone()) and killed


def test_the_users_mistake_comes_back_from_a_cluster(local: Any) -> None:
    ask_for_two_arithmetics(Cluster(address(local)))


def test_workers_with_another_code_are_refused(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "code_digest", lambda: "0.0.0 another")
    with pytest.raises(InstallError, match=r"of \d workers lack cactus-edge 0\.0\.0 another") as error:
        decider(1, Cluster(address(local)))(PROGRAM, REGION, MANY, LABELS)
    assert "same version" in error.value.hint


def test_through_the_command_line(local: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = files(tmp_path, 1)
    assert main([*command, f"--out={tmp_path / 'c.json'}", f"--cluster={address(local)}"]) == 0
    assert main([*command, f"--out={tmp_path / 's.json'}"]) == 0
    assert without_time(tmp_path / "c.json") == without_time(tmp_path / "s.json")
    capsys.readouterr()
    for wrong in ("localhost:8786", "dask://localhost", "tcp://localhost:8786", "dask://a b:1"):
        assert main([*command, f"--out={tmp_path / 'c.json'}", f"--cluster={wrong}"]) == 2
        assert "dask://HOST:PORT" in capsys.readouterr().err


def test_nobody_at_that_address() -> None:
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        decider(1, Cluster("dask://127.0.0.1:9", connect_s=0.5))(PROGRAM, REGION, MANY, LABELS)


def test_a_scheduler_that_is_gone_before_its_client_knows() -> None:
    class Deaf:
        status = "running"

        def nthreads(self) -> dict[str, int]:
            raise OSError("timed out trying to connect")

    with pytest.raises(InputError, match="is gone") as error:
        Cluster("dask://there:1")._still_there(Deaf(), 0.0)
    assert "run the same command again" in error.value.hint


def test_a_cluster_without_workers() -> None:
    with (
        dask.LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0", silence_logs=50
        ) as empty,
        pytest.raises(InputError, match="has no worker"),
    ):
        decider(1, Cluster(address(empty), connect_s=0.5))(PROGRAM, REGION, MANY, LABELS)


@pytest.mark.parametrize("what", ["workers", "scheduler"])
def test_a_cluster_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What came back is kept; the error says how to go on."""
    monkeypatch.setattr(crew_module, "PROOF_SLICE", 4)
    monkeypatch.setattr(cluster_module, "POLL_S", 0.2)
    with dask.LocalCluster(
        n_workers=1, processes=False, protocol="tcp://", dashboard_address=":0", silence_logs=50
    ) as leaving:

        def leave(done: int) -> None:
            if done == 4:
                leaving.scale(0) if what == "workers" else leaving.close()

        with pytest.raises(InputError, match="cluster at dask") as error:
            proof(Cluster(address(leaving), patience_s=0.5), tmp_path, leave)
    assert "run the same command again" in error.value.hint
    assert list(tmp_path.glob("*/*.npz"))
