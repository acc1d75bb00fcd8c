"""The largest certified radius of every sample, as a function and with its files. Imports what it needs when it is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cactus_edge.api_files import Pairs, Source, content
from cactus_edge.api_regions import Exact, metadata_domain, two_ends
from cactus_edge.errors import InputError, InternalError
from cactus_edge.resources import require_file, sha256, write_atomic

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.verify.certificate import Certificate

FORMAT, VERSION = "cactus-edge radii", 1

QUANTILES = (10, 25, 50, 75, 90)
"""Percent of the samples."""

IMAGES = (".png", ".svg")


@dataclass(frozen=True, eq=False)
class Radii:
    """The brackets of all samples in the unit of the data, as exact fractions, and the certificates that show their ends.

    certified: the largest radius that was proved, None for none; refuted: the smallest that holds a counterexample, None where
    none was found. certificate: of the certified radii. refutation: of the refuted ones, with the counterexamples in its proof;
    None where none were looked for, since the runtimes named are several or an envelope.
    """

    step: Fraction
    certified: tuple[Fraction | None, ...]
    refuted: tuple[Fraction | None, ...]
    certificate: Certificate
    refutation: Certificate | None

    def to_json(self) -> str:
        """The report: the brackets, and the digests of the certificates that show them."""
        record = self.certificate.record
        body = {
            "format": FORMAT,
            "version": VERSION,
            "model": record["model"]["sha256"],
            "data": record["data"]["sha256"],
            "profile": record["profile"]["name"],
            "bounds": record["bounds"],
            "domain": record["region"]["domain"],
            "step": str(self.step),
            "radii": [[_text(c), _text(r)] for c, r in zip(self.certified, self.refuted, strict=True)],
            "certificate": record["sha256"],
            "refutation": None if self.refutation is None else self.refutation.record["sha256"],
        }
        return json.dumps(body, indent=1, sort_keys=True) + "\n"

    def quantiles(self) -> list[tuple[int, Fraction | None, Fraction | None]]:
        """(percent, certified, refuted): that many of the samples are certified at least within the one, and each other
        sample is refuted, or was not certified, within the other at most; None for no radius."""
        low = sorted(self.certified, key=lambda e: -1 if e is None else e)
        high = sorted((e for e in self.refuted if e is not None), reverse=True)
        free = len(self.refuted) - len(high)
        rows = []
        for percent in QUANTILES:
            rank = -(-percent * len(low) // 100)
            over = None if rank <= free else high[rank - free - 1]
            rows.append((percent, low[len(low) - rank], over))
        return rows

    def summary(self) -> Pairs:
        """In words."""
        pairs = list(zip(self.certified, self.refuted, strict=True))
        exact = sum(c is not None and r is not None and r - c == self.step for c, r in pairs)
        wrong = sum(r == 0 for r in self.refuted)
        rows = [("samples", str(len(pairs))), ("step", f"{self.step} = {float(self.step):.6g}")]
        if self.refutation is not None:
            rows.append(("exact to a step", f"{exact} of {len(pairs) - wrong} that are right"))
        for percent, low, high in self.quantiles():
            over = "" if self.refutation is None else f", and not beyond {_short(high)}"
            rows.append((f"{percent} % of samples", f"certified within {_short(low)}{over}"))
        return rows

    def image(self, kind: str) -> bytes:
        """The share of samples certified, and not refuted, at each radius: a file of kind "png" or "svg"."""
        from cactus_edge.report.plots import brackets_image

        certified, refuted = (
            [None if e is None else float(e) for e in side] for side in (self.certified, self.refuted)
        )
        return brackets_image(certified, refuted, kind)


def max_eps(
    model: Source,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    *,
    step: Exact | None = None,
    profile: str = "",
    domain: tuple[Exact, Exact] | None = None,
    bounds: str = "interval",
    budget: str = "",
    threads: int = 0,
    workers: int = 0,
    cluster: str = "",
    keep: Path | None = None,
) -> Radii:
    """The largest l-inf radius that is certified for each row of x [N, *shape] with label y [N], and the smallest refuted.

    step: radii are multiples of it; by default the scale of the model's input, as an exact fraction. budget: of each sample at
    each radius that is tried between what the quick means leave. The others: as in `certify`. Raises as that does, InternalError
    where a proof and a counterexample contradict each other.
    """
    import os

    from cactus_edge.api import Bounds
    from cactus_edge.api_files import default_profile, file_formats
    from cactus_edge.certify import radius
    from cactus_edge.certify.complete import Budget
    from cactus_edge.certify.crew import crew, decider, finder
    from cactus_edge.verify.certificate import certify_file
    from cactus_edge.verify.read import format_of
    from cactus_edge.verify.regions import check_data, exact, region
    from cactus_edge.verify.runtimes import runtimes

    if bounds not in get_args(Bounds):
        raise InputError(f"unknown bounds {bounds!r}", hint=" or ".join(get_args(Bounds)))
    data = content(model, "model")
    profile, form = profile or default_profile(data), file_formats()[format_of(data)]
    program = runtimes(data, profile, form).program
    check_data(program, x, y)
    whole = region(program, 0, domain or metadata_domain(data)).domain
    unit = Fraction(program.quantize.scale) if step is None else exact(step, "the step")
    if not 0 < unit <= whole[1] - whole[0] or (whole[1] - whole[0]) / unit > MOST_STEPS:
        raise InputError(
            f"the step of the radii is {unit}, expected at least a {MOST_STEPS}th of the domain [{whole[0]}, {whole[1]}], "
            "and at most all of it"
        )
    limit = Budget.parse(budget) if budget else None
    by, proving, digest = crew(workers, cluster), bounds != "interval" or limit is not None, bytes.fromhex(sha256(data))
    decide = decider(threads or os.cpu_count() or 1, by, keep)
    search = radius.Search(program, radius.Scale(unit, whole), x)
    proofs = radius.Proofs(search, y, digest)
    if proving:
        search.prove(
            proofs.by(finder(by, keep, lines=False))
        )  # first what costs little: lines begin where intervals end
        search.prove(proofs.by(finder(by, keep)))
    else:
        search.prove(radius.by_intervals(decide, search, y))
    if program.definite:
        search.refute(proofs.by(finder(by, keep, lines=False, falsify=True)))
    if limit is not None:
        search.prove(proofs.by(finder(by, keep, budget=limit)))

    def certificate(steps: Any, proof: bytes | None) -> Certificate:
        return certify_file(
            data,
            x,
            y,
            eps=[search.scale.radius(n) for n in steps.tolist()],
            domain=whole,
            per_sample=True,
            profile=profile,
            form=form,
            notes={"eps": f"found for each sample by bisection in steps of {unit}"},
            decide=decide,
            find=None
            if proof is None
            else lambda other, around, some, labels, sha: (
                proof
                if other.profile.name == program.profile.name
                else finder(by, keep)(other, around, some, labels, sha)
            ),
        )

    shown = certificate(search.certified, proofs.certified() if proving else None)
    if (shown.decision.certified != (search.certified != radius.NONE)).any():
        raise InternalError("the radii that were found are not those that are certified")
    refuted = radius.refuted_steps(search)
    against = certificate(refuted, proofs.refuted()) if program.definite else None

    def fractions(steps: Any) -> tuple[Fraction | None, ...]:
        return tuple(None if n == radius.NONE else n * unit for n in steps.tolist())

    return Radii(unit, fractions(search.certified), fractions(refuted), shown, against)


MOST_STEPS = 1 << 16


@dataclass(frozen=True, eq=False)
class Written:
    """What `max_eps_files` wrote."""

    radii: Radii
    files: Sequence[tuple[str, Path]]

    def summary(self) -> Pairs:
        """In words."""
        return [*self.radii.summary(), *((what, str(path)) for what, path in self.files)]


def max_eps_files(
    model: Path,
    data: Path,
    *,
    out: Path,
    plot: Path | None = None,
    domain: str = "",
    profile: str = "",
    bounds: str = "interval",
    budget: str = "",
    workers: int = 0,
    cluster: str = "",
) -> Written:
    """`max_eps` from files to files: the certificate `out`, cert.json; cert.refuted.json; the report cert.radii.json; the plot.

    The proof of a certificate that has one stands beside it. domain: "LO,HI" or "".
    """
    import shutil

    from cactus_edge.api import proof_beside, require_certificate
    from cactus_edge.samples import read_samples

    against, report = (out.with_name(f"{out.stem}.{part}.json") for part in ("refuted", "radii"))
    given = (model, data)
    for path in (out, against, report):
        require_certificate(path, given)
    if plot is not None and require_file(plot, "--plot", given).suffix not in IMAGES:
        raise InputError(f"--plot {plot}, expected a name that ends in {' or '.join(IMAGES)}")
    x, y = read_samples(data)
    keep = out.with_name(f"{out.name}.parts")
    ends = two_ends(domain, "domain", "--domain 0,1") if domain else None
    radii = max_eps(
        model,
        x,
        y,
        profile=profile,
        domain=ends,
        bounds=bounds,
        budget=budget,
        workers=workers,
        cluster=cluster,
        keep=keep,
    )
    files = [("certificate", out), ("report", report)]
    certificates = [(out, radii.certificate)]
    if radii.refutation is not None:
        certificates.append((against, radii.refutation))
        files.insert(1, ("refuted by", against))
    for path, certificate in certificates:
        if certificate.proof is not None:
            write_atomic(proof_beside(path), certificate.proof)
        write_atomic(path, certificate.to_bytes())
    write_atomic(report, radii.to_json())
    if plot is not None:
        write_atomic(plot, radii.image(plot.suffix[1:]))
        files.append(("plot", plot))
    shutil.rmtree(keep, ignore_errors=True)
    return Written(radii, files)


def _text(radius: Fraction | None) -> str | None:
    return None if radius is None else str(radius)


def _short(radius: Fraction | None) -> str:
    return "no radius" if radius is None else f"{float(radius):.6g}"
