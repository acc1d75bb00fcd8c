"""Who decides: this process, processes of this machine, or a cluster. What is decided is the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from cactus_edge.certify import interval
from cactus_edge.certify.complete import Budget, Complete, Effort
from cactus_edge.certify.find import find, find_all
from cactus_edge.certify.linear import Linear
from cactus_edge.certify.spread import Alone, Array, Crew, Found, Question, Solve, Spread, Work, cut
from cactus_edge.errors import InputError, InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.verify.certificate import Decide, Find
from cactus_edge.verify.decide import Decision
from cactus_edge.verify.proof import Proof, encode, parse
from cactus_edge.verify.regions import Region

MOST_WORKERS = 1024

INTERVAL_SLICE, PROOF_SLICE, SEARCH_SLICE = 512, 32, 8
"""Samples of a slice at most. What an attack finds depends on the slice, so that the others are part of what a proof is."""


@dataclass(frozen=True)
class Intervals:
    """Work: decisions by intervals."""

    size: int
    fields: ClassVar[tuple[str, ...]] = ("correct", "certified", "margin")

    def start(self, program: Program) -> Solve:
        """As `Work`."""

        def solve(region: Region, x: Array, labels: Array) -> Found:
            d = interval.certify(program, region, x, labels)
            return dict(zip(self.fields, (d.correct, d.certified, d.margin), strict=True))

        return solve

    def fits(self, found: Found, samples: int) -> bool:
        """As `Work`: one entry a sample."""
        return all(array.shape == (samples,) for array in found.values())


@dataclass(frozen=True)
class Proofs:
    """Work: the bytes of a proof about the slice, its samples counted from 0. lines, falsify: as in `find`."""

    model_sha256: bytes
    lines: bool
    falsify: bool
    size: int
    fields: ClassVar[tuple[str, ...]] = ("proof",)

    def start(self, program: Program) -> Solve:
        """As `Work`."""
        search = Linear(program)

        def solve(region: Region, x: Array, labels: Array) -> Found:
            shown = find(
                program, region, x, labels, self.model_sha256, lines=self.lines, falsify=self.falsify, search=search
            )
            return {"proof": np.frombuffer(shown, np.uint8)}

        return solve

    def fits(self, found: Found, samples: int) -> bool:
        """As `Work`: bytes, which `joined` reads."""
        return all(array.dtype == np.uint8 and array.ndim == 1 for array in found.values())


@dataclass(frozen=True)
class Searches:
    """Work: likewise by all means within a budget for each region, and in JSON what they took."""

    model_sha256: bytes
    budget: Budget
    size: int
    fields: ClassVar[tuple[str, ...]] = ("proof", "efforts")

    def start(self, program: Program) -> Solve:
        """As `Work`."""
        search = Complete(program, self.budget)

        def solve(region: Region, x: Array, labels: Array) -> Found:
            shown, efforts = find_all(search, region, x, labels, self.model_sha256)
            told = json.dumps([asdict(effort) for effort in efforts]).encode()
            return {"proof": np.frombuffer(shown, np.uint8), "efforts": np.frombuffer(told, np.uint8)}

        return solve

    def fits(self, found: Found, samples: int) -> bool:
        """As `Work`: bytes."""
        return all(array.dtype == np.uint8 and array.ndim == 1 for array in found.values())


def crew(workers: int = 0, cluster: str = "") -> Crew:
    """`workers` processes, the cluster at dask://HOST:PORT, or nobody else. Raises InputError for a number or an address that is none."""
    if not 0 <= workers <= MOST_WORKERS:
        raise InputError(f"{workers} workers, expected 0 to {MOST_WORKERS}", hint="--workers N, N the number of cores")
    if workers and cluster:
        raise InputError("--workers and --cluster exclude each other", hint="a cluster has its own workers")
    if cluster:
        from cactus_edge.certify.cluster import Cluster

        return Cluster(cluster)
    if workers:
        from cactus_edge.certify.processes import Processes

        return Processes(workers)
    return Alone()


def decider(
    threads: int,
    by: Crew,
    keep: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Decide:
    """`verify.decide.certify` by the crew; where that is nobody else, by threads, which keep no slices in the folder `keep`."""
    if isinstance(by, Alone):
        return partial(interval.certify, threads=threads, progress=progress)
    spread = Spread(by, keep, progress)

    def decide(program: Program, region: Region, x: Array, labels: Array) -> Decision:
        found = spread.ask(Question(program, region, Intervals(INTERVAL_SLICE)), x, labels)
        return Decision(*(np.concatenate([f[name] for f in found]) for name in Intervals.fields))

    return decide


def finder(
    by: Crew,
    keep: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
    *,
    lines: bool = True,
    falsify: bool = False,
    budget: Budget | None = None,
    hear: Callable[[Effort], None] = lambda one: None,
) -> Find:
    """`find` by the crew, slice by slice whoever that is: the same bytes. keep: the folder of finished slices.

    budget: `find_all` instead; `hear` is told what each region took, of the first program that is asked about.
    """
    spread = Spread(by, keep, progress)
    heard: list[Program] = []

    def found(program: Program, region: Region, x: Array, labels: Array, model_sha256: bytes) -> bytes:
        work: Work = Proofs(model_sha256, lines, falsify, PROOF_SLICE)
        if budget is not None:
            work = Searches(model_sha256, budget, SEARCH_SLICE)
        slices = spread.ask(Question(program, region, work), x, labels)
        if budget is not None and not heard:
            heard.append(program)
            for part, f in zip(cut(x, labels, work.size), slices, strict=True):
                for effort in json.loads(f["efforts"].tobytes()):
                    hear(Effort(**{**effort, "sample": effort["sample"] + part.start}))
        return joined(program, [f["proof"].tobytes() for f in slices])

    return found


def joined(program: Program, proofs: Sequence[bytes]) -> bytes:
    """One proof about all samples from those about slice after slice. Raises InternalError for slopes that differ."""
    parsed = [parse(data, program) for data in proofs]
    first, samples, records = parsed[0], 0, []
    for proof in parsed:
        if (proof.model_sha256, proof.profile, proof.slopes) != (first.model_sha256, first.profile, first.slopes):
            raise InternalError("proofs of two slices are not about one question")
        records += [replace(r, sample=r.sample + samples) for r in proof.records]
        samples += proof.samples
    return encode(program, Proof(first.model_sha256, first.profile, samples, first.slopes, records))
