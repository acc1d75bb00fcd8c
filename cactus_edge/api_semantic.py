"""`certify --semantic` as a function: probabilistic bounds for transforms that have no exact form. Never a certificate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.api_files import Pairs, Source, content, default_profile, file_formats
from cactus_edge.api_regions import Exact, metadata_domain, two_ends
from cactus_edge.errors import InputError
from cactus_edge.resources import require_file, sha256, write_atomic
from cactus_edge.version import __version__

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.certify.semantic import Estimate

FORMAT, VERSION = "cactus-edge probabilistic report", 1

MEANING = (
    "probabilistic: estimated from random draws by CC-Cert's bound (AAAI 2022); a chance of losing under random transforms, "
    "not a proof, and nothing about the worst one"
)


@dataclass(frozen=True, eq=False)
class Semantics:
    """Estimates for each transform asked for, and what they were made from. threshold: certified means bounded below it."""

    record: Mapping[str, Any]
    estimates: tuple[Estimate, ...]
    threshold: float

    def to_bytes(self) -> bytes:
        """The report file: JSON."""
        return (json.dumps(self.record, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")

    @property
    def shares(self) -> list[float]:
        """The share of samples certified *probabilistically*, by transform."""
        return [float(found.certified(self.threshold).mean()) for found in self.estimates]

    def summary(self) -> Pairs:
        """In words."""
        rows = [("probabilistic", f"chance of losing a random transform, bounded below {self.threshold:g} (CC-Cert)")]
        for found in self.estimates:
            kept, count = found.certified(self.threshold), len(found.correct)
            sure, lost = int((kept & (found.risk < self.threshold)).sum()), int((found.losses[kept] > 0).sum())
            said = f"probabilistically certified: {kept.sum()} of {count} ({kept.mean():.2%})"
            said += f", {sure} of them with a risk below {self.threshold:g} that the estimate is too low"
            rows.append((found.transform.name, said + (f"; {lost} of them lost a draw" if lost else "")))
        rows.append(("clean", f"{self.estimates[0].correct.sum()} of {len(self.estimates[0].correct)}"))
        return [*rows, ("profile", self.record["profile"])]


def semantic(
    model: Source,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    transforms: str,
    *,
    samples: int = 100,
    confidence: float = 1e-4,
    seed: int = 0,
    profile: str = "",
    domain: tuple[Exact, Exact] | None = None,
) -> Semantics:
    """Bounds how likely random transforms make each row of x [N, *shape] lose its label y [N] on the integer network.

    transforms: as "rotation=10,blur+brightness=0.1" (`certify.semantic.transforms`). samples: draws for each of ten estimates.
    confidence: a sample counts where the bound on its chance of losing is below this. *Probabilistic*: no certificate is made.
    Raises InputError, DataError and ModelError as `certify` does; InstallError where a transform needs scipy.
    """
    from cactus_edge.certify import semantic as engine
    from cactus_edge.verify.read import format_of
    from cactus_edge.verify.regions import data_digest, region
    from cactus_edge.verify.runtimes import runtimes

    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence:g}, expected a chance between 0 and 1", hint="--confidence 1e-4")
    if not 0 <= seed < 2**31:
        raise InputError(f"seed is {seed}, expected 0 to {2**31 - 1}")
    chosen = engine.transforms(transforms)
    data = content(model, "model")
    name = profile or default_profile(data)
    program = runtimes(data, name, file_formats()[format_of(data)]).program
    ends = region(program, 0, domain or metadata_domain(data)).domain
    found = tuple(
        engine.estimate(program, transform, x, y, domain=ends, samples=samples, seed=seed) for transform in chosen
    )
    record = {
        "format": FORMAT,
        "version": VERSION,
        "tool": f"cactus-edge {__version__}",
        "meaning": MEANING,
        "model_sha256": sha256(data),
        "data_sha256": data_digest(x, y),
        "profile": name,
        "domain": [str(Fraction(end)) for end in ends],
        "seed": seed,
        "estimates": engine.ESTIMATES,
        "samples_each": samples,
        "share": engine.SHARE,
        "threshold": confidence,
        "transforms": [_entry(one, confidence) for one in found],
    }
    return Semantics(record, found, confidence)


def semantic_files(
    model: Path,
    data: Path,
    transforms: str,
    *,
    samples: int = 100,
    confidence: float = 1e-4,
    seed: int = 0,
    domain: str,
    profile: str,
    out: Path,
) -> Semantics:
    """`semantic` from files to a file. domain: "LO,HI" or ""."""
    from cactus_edge.samples import read_samples

    require_file(out, "--out")
    x, y = read_samples(data)
    ends = two_ends(domain, "domain", "--domain 0,1") if domain else None
    report = semantic(
        model, x, y, transforms, samples=samples, confidence=confidence, seed=seed, profile=profile, domain=ends
    )
    write_atomic(out, report.to_bytes())
    return report


def _entry(found: Estimate, threshold: float) -> dict[str, Any]:
    """One transform of the report, with each sample's bound as a power of ten."""
    return {
        "transform": found.transform.name,
        "probabilistically_certified": int(found.certified(threshold).sum()),
        "of_these_with_a_risk_below_threshold": int((found.certified(threshold) & (found.risk < threshold)).sum()),
        "samples": len(found.correct),
        "correct": [bool(c) for c in found.correct],
        "log10_bound": [float(b) / math.log(10) for b in found.log_bound],
        "losses": [int(n) for n in found.losses],
        "drawn": found.drawn,
        "risk": [float(r) for r in found.risk],
    }
