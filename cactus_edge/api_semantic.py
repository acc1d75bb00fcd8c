"""`certify --semantic` as a function: probabilistic bounds for transforms that have no exact form. Never a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.api_files import Source, content, default_profile, file_formats
from cactus_edge.api_regions import Exact, metadata_domain, two_ends
from cactus_edge.errors import InputError
from cactus_edge.resources import require_file, write_atomic
from cactus_edge.semantic_report import CONFIDENCE, SAMPLES, Semantics, estimated
from cactus_edge.semantics import transforms as parsed

if TYPE_CHECKING:
    import numpy.typing as npt


def semantic(
    model: Source,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    transforms: str,
    *,
    samples: int = SAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    profile: str = "",
    domain: tuple[Exact, Exact] | None = None,
) -> Semantics:
    """Bounds how likely random transforms make each row of x [N, *shape] lose its label y [N] on the integer network.

    transforms: as "rotation=10,blur+brightness=0.1" (`semantics.transforms`). samples: draws for each of ten estimates.
    confidence: a sample counts where the bound on its chance of losing is below this. *Probabilistic*: no certificate is made.
    Raises InputError, DataError and ModelError as `certify` does; InstallError where a transform needs scipy.
    """
    from cactus_edge.verify.read import format_of
    from cactus_edge.verify.runtimes import runtimes

    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence:g}, expected a chance between 0 and 1", hint="--confidence 1e-4")
    if not 0 <= seed < 2**31:
        raise InputError(f"seed is {seed}, expected 0 to {2**31 - 1}")
    chosen = parsed(transforms)
    data = content(model, "model")
    name = profile or default_profile(data)
    program = runtimes(data, name, file_formats()[format_of(data)]).program
    ends = domain or metadata_domain(data)
    return estimated(
        data, program, x, y, chosen, profile=name, domain=ends, samples=samples, confidence=confidence, seed=seed
    )


def semantic_files(
    model: Path,
    data: Path,
    transforms: str,
    *,
    samples: int = SAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    domain: str,
    profile: str,
    out: Path,
) -> Semantics:
    """`semantic` from files to a file. domain: "LO,HI" or ""."""
    from cactus_edge.samples import read_samples

    require_file(out, "--out", (model, data))
    x, y = read_samples(data)
    ends = two_ends(domain, "domain", "--domain 0,1") if domain else None
    report = semantic(
        model, x, y, transforms, samples=samples, confidence=confidence, seed=seed, profile=profile, domain=ends
    )
    write_atomic(out, report.to_bytes())
    return report
