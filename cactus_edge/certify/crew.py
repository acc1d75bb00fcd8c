"""Who decides: threads of this process, processes of this machine, or a cluster. The decision is the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cactus_edge.certify import interval
from cactus_edge.certify.spread import Crew, Spread
from cactus_edge.errors import InputError
from cactus_edge.verify.certificate import Decide

MOST_WORKERS = 1024


def decider(threads: int, workers: int = 0, cluster: str = "", keep: Path | None = None) -> Decide:
    """What decides by `workers` processes, by the cluster at dask://HOST:PORT, or, with neither, by threads.

    keep: the folder of finished slices; threads keep none. Raises InputError for a number or an address that is none.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"{workers} workers, expected 0 to {MOST_WORKERS}", hint="--workers N, N the number of cores")
    if workers and cluster:
        raise InputError("--workers and --cluster exclude each other", hint="a cluster has its own workers")
    crew: Crew
    if cluster:
        from cactus_edge.certify.cluster import Cluster

        crew = Cluster(cluster)
    elif workers:
        from cactus_edge.certify.processes import Processes

        crew = Processes(workers)
    else:
        return partial(interval.certify, threads=threads)
    return Spread(crew, keep)
