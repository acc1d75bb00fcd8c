"""A crew of workers of an existing Dask cluster, reached at dask://HOST:PORT, the address of its scheduler.

Every worker needs this very code: what is not there, or differs, is told by the worker's address before anything is decided.
A worker that is lost costs the slices that it was at; Dask gives them to others. The network is trusted as Dask trusts it;
the result is not: it is a certificate to be verified like any other.
"""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cactus_edge.certify.spread import Answer, Question, Slice, answer, code_digest
from cactus_edge.errors import InputError, InstallError

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 10
"""Seconds to reach the scheduler, and for a first worker to be there."""

PATIENCE_S = 60
"""Seconds without any worker until the work is given up; it can be continued."""

POLL_S = 2.0

AHEAD = 2
"""Slices on their way for each thread of the cluster: none of them waits, and the scheduler holds little."""


@dataclass(frozen=True)
class Cluster:
    """The workers of the scheduler at `address`, "dask://HOST:PORT"."""

    address: str
    connect_s: float = CONNECT_S
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if not re.fullmatch(r"dask://(\[[0-9a-fA-F:.]+\]|[^\s/:]+):\d{1,5}", self.address):
            raise InputError(
                f"the cluster is {self.address!r}, expected dask://HOST:PORT", hint="the scheduler's address"
            )

    def answers(self, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]:
        """As `Crew`. Raises InputError for a cluster that cannot be reached or is lost, InstallError for its workers' code."""
        client = self._connect()
        try:
            _require_code(client)
            yield from self._collected(client, question, slices)
        finally:
            client.close()

    def _connect(self) -> Client:
        try:
            from distributed import Client
        except ImportError as error:
            raise InstallError(
                "a cluster needs the package distributed", hint="pip install 'cactus-edge[cluster]'"
            ) from error
        target = self.address.replace("dask://", "tcp://")
        try:
            client = Client(target, timeout=self.connect_s, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {self.address}: {error}",
                hint="dask scheduler prints its address; is the port open?",
            ) from error
        try:
            client.wait_for_workers(1, timeout=self.connect_s)
        except TimeoutError as error:
            client.close()
            raise InputError(
                f"the cluster at {self.address} has no worker",
                hint=f"dask worker {target} on the machines that compute",
            ) from error
        return client

    def _collected(self, client: Client, question: Question, slices: Sequence[Slice]) -> Iterator[Answer]:
        from distributed import CancelledError, KilledWorker, wait

        # A task of its own, not scattered data: Dask computes it again where the worker that held it is lost.
        asked = client.submit(pickle.loads, pickle.dumps(question, protocol=5), pure=False)
        left = iter(slices)
        flying: set[Future] = set()
        room = AHEAD * max(1, sum(self._threads(client).values()))
        seen = time.monotonic()
        try:
            while True:
                while len(flying) < room and (part := next(left, None)) is not None:
                    flying.add(client.submit(answer, asked, part, pure=False))
                if not flying:
                    return
                try:
                    with client.as_current():
                        done = wait(flying, timeout=POLL_S, return_when="FIRST_COMPLETED").done
                except TimeoutError:
                    done = set()
                for future in done:
                    try:
                        found = future.result(timeout=POLL_S)
                    except TimeoutError:
                        continue  # its worker was lost with it, and Dask has nobody yet to compute it again
                    flying.discard(future)
                    yield found
                seen = self._still_there(client, seen)
        except KilledWorker as error:
            raise InputError(
                f"workers of the cluster ended over one slice again and again: {error}",
                hint="more memory for each worker; what was finished is kept",
            ) from error
        except ImportError as error:
            raise InstallError(f"a worker of the cluster lacks what is needed: {error}", hint=INSTALL) from error
        except CancelledError as error:
            raise self._lost() from error
        finally:
            if client.status == "running":
                client.cancel([asked, *flying])

    def _still_there(self, client: Client, seen: float) -> float:
        """When a worker was seen last. Raises InputError where that is too long ago, or the scheduler is gone."""
        if client.status != "running":
            raise self._lost()
        now = time.monotonic()
        if self._threads(client):
            return now
        if now - seen > self.patience_s:
            raise InputError(
                f"the cluster at {self.address} has had no worker for {self.patience_s:g} s",
                hint="what was finished is kept: start workers and run the same command again",
            )
        return seen

    def _threads(self, client: Client) -> Mapping[str, int]:
        """The threads of each worker. Raises InputError where nobody answers: a client notices late that its scheduler is gone."""
        try:
            found: Mapping[str, int] = client.nthreads()
        except OSError as error:
            raise self._lost() from error
        return found

    def _lost(self) -> InputError:
        return InputError(
            f"the cluster at {self.address} is gone", hint="what was finished is kept: run the same command again"
        )


INSTALL = "the same version of cactus-edge on every worker"


def _require_code(client: Client) -> None:
    """Raises InstallError where a worker has no cactus-edge, or another one."""

    def theirs() -> str:
        # Sent by value: where the package is missing this still runs.
        try:
            from cactus_edge.certify.spread import code_digest as digest
        except ImportError as error:
            return f"no cactus-edge with certify.spread ({error})"
        return digest()

    ours, found = code_digest(), client.run(theirs)
    wrong: dict[str, Any] = {worker: digest for worker, digest in found.items() if digest != ours}
    if wrong:
        listed = "; ".join(f"{worker}: {digest}" for worker, digest in sorted(wrong.items())[:5])
        raise InstallError(f"{len(wrong)} of {len(found)} workers lack cactus-edge {ours}: {listed}", hint=INSTALL)
