"""The complete search over the samples of a network, shared out among processes."""

from __future__ import annotations

import multiprocessing
import time

from _networks import Network

# isort: split
from cactus_edge.certify.complete import Budget, Complete, Effort
from cactus_edge.certify.find import find_all
from cactus_edge.process import settle
from cactus_edge.verify.regions import Region

Found = tuple[bytes, list[Effort]]
"""(proof, how each sample was decided)."""


def search(network: Network, around: Region, budget: str) -> Found:
    """By one process."""
    complete = Complete(network.program, Budget.parse(budget))
    return find_all(complete, around, network.x, network.y, bytes.fromhex(network.digest))


def searched(network: Network, around: Region, budget: str, processes: int) -> tuple[list[Network], list[Found], float]:
    """(every `processes`-th sample from the k-th on, what its process found, the seconds that all took); no share is empty."""
    shares = [network.part(slice(k, None, processes)) for k in range(min(processes, len(network.y)))]
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes, initializer=settle) as pool:
        found = pool.starmap(search, [(share, around, budget) for share in shares])
    return shares, found, time.monotonic() - start
