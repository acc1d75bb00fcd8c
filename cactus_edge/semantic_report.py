"""What CC-Cert found out about a file, as a report: *probabilistic*, never a certificate. Of `certify --semantic` and of builds.

Brightness and contrast have an exact form beside it (`verify.families.Tone`): ranges whose every member is decided by integers. A
build certifies those deterministically, in files that say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.ir.lowering import lower
from cactus_edge.report.table import counted
from cactus_edge.resources import sha256, write_atomic
from cactus_edge.samples import write_samples
from cactus_edge.semantics import Semantic, transforms
from cactus_edge.verify.regions import Exact, data_digest, region
from cactus_edge.version import __version__

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.certify.semantic import Estimate
    from cactus_edge.ir.atoms import Program
    from cactus_edge.ir.profile import Profile
    from cactus_edge.verify.certificate import Certificate
    from cactus_edge.verify.families import Tone
    from cactus_edge.verify.runtimes import FileFormat

FORMAT, VERSION = "cactus-edge probabilistic report", 1

MEANING = (
    "probabilistic: estimated from random draws by CC-Cert's bound (AAAI 2022); a chance of losing under random transforms, "
    "not a proof, and nothing about the worst one"
)

REPORT, DATA = "probabilistic.json", "judged.npz"
"""What a build writes, and the inputs that it is about."""

NAMED = str.maketrans("=/", "-_")
"""Of a transform's name in that of a file."""

CONFIDENCE = 1e-4
"""A sample counts where its chance of losing is bounded below this."""

SAMPLES = 100
"""Draws for each of the ten estimates."""


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
    def counts(self) -> list[int]:
        """Samples certified *probabilistically*, by transform."""
        return [int(found.certified(self.threshold).sum()) for found in self.estimates]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.estimates[0].correct)

    @property
    def shares(self) -> list[float]:
        """The share of samples certified *probabilistically*, by transform."""
        return [count / self.samples for count in self.counts]

    def summary(self) -> list[tuple[str, str]]:
        """In words."""
        rows = [("probabilistic", f"chance of losing a random transform, bounded below {self.threshold:g} (CC-Cert)")]
        for found in self.estimates:
            kept, count = found.certified(self.threshold), len(found.correct)
            sure, lost = (
                int((kept & (found.risk(self.threshold) < self.threshold)).sum()),
                int((found.losses[kept] > 0).sum()),
            )
            said = f"probabilistically certified: {kept.sum()} of {count} ({counted(kept.sum(), count)})"
            said += f", {sure} of them with a risk below {self.threshold:g} that the estimate is too low"
            rows.append((found.transform.name, said + (f"; {lost} of them lost a draw" if lost else "")))
        rows.append(("clean", f"{self.estimates[0].correct.sum()} of {len(self.estimates[0].correct)}"))
        return [*rows, ("profile", self.record["profile"])]


def estimated(
    model: bytes,
    program: Program,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    transforms: tuple[Semantic, ...],
    *,
    profile: str,
    domain: tuple[Exact, Exact] | None,
    samples: int = SAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Semantics:
    """The report on `model`, whose integers under `profile` are `program`. progress: is told the transforms that are done.

    Raises InputError and DataError as `certify.semantic.estimate` does.
    """
    from cactus_edge.certify import semantic as engine

    ends = region(program, 0, domain).domain
    found = []
    for transform in transforms:
        found.append(engine.estimate(program, transform, x, y, domain=ends, samples=samples, seed=seed))
        progress(len(found))
    record = {
        "format": FORMAT,
        "version": VERSION,
        "tool": f"cactus-edge {__version__}",
        "meaning": MEANING,
        "model_sha256": sha256(model),
        "data_sha256": data_digest(x, y),
        "profile": profile,
        "domain": [str(Fraction(end)) for end in ends],
        "seed": seed,
        "estimates": engine.ESTIMATES,
        "samples_each": samples,
        "share": engine.SHARE,
        "threshold": confidence,
        "transforms": [_entry(one, confidence) for one in found],
    }
    return Semantics(record, tuple(found), confidence)


def exact_form(transform: Semantic, domain: tuple[Fraction, Fraction]) -> Tone | None:
    """The family of all that `transform` may draw, its cells still to be chosen; None for what has no exact form here."""
    from cactus_edge.verify.families import Tone

    if len(transform.parts) != 1:
        return None
    (part, amount), one = transform.parts[0], Fraction(1)
    match part:
        case "brightness":
            most = amount * (domain[1] - domain[0])
            return Tone((-most, most))
        case "contrast":
            return Tone(contrast=(one - amount, one + amount), pivot="mean")
        case _:
            return None


def certified(
    model: bytes,
    program: Program,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    family: Tone,
    *,
    form: FileFormat,
    profile: str,
    domain: tuple[Fraction, Fraction],
    unit: str,
    threads: int,
) -> Certificate:
    """The deterministic certificate of a family, cut as finely as it pays."""
    from cactus_edge.certify.interval import certify
    from cactus_edge.certify.refine import with_cells
    from cactus_edge.verify.certificate import certify_file

    decide = partial(certify, threads=threads)
    whole = region(program, 0, domain, family)
    cut = with_cells(lambda around, some, labels: decide(program, around, some, labels), whole, x, y)
    return certify_file(
        model, x, y, eps=0, domain=domain, family=cut.family, profile=profile, form=form, unit=unit, decide=decide
    )


def files(text: str, domain: tuple[Fraction, Fraction]) -> tuple[str, ...]:
    """The files that `judge` writes for these transforms; none for ""."""
    return (REPORT, DATA, *_exact(transforms(text), domain)) if text else ()


def _exact(chosen: tuple[Semantic, ...], domain: tuple[Fraction, Fraction]) -> dict[str, tuple[Semantic, Tone]]:
    """The transforms that have an exact form, with it, by the names of their certificates."""
    found = {f"certificate-{t.name.translate(NAMED)}.json": (t, exact_form(t, domain)) for t in chosen}
    return {name: (t, family) for name, (t, family) in found.items() if family is not None}


def judge(
    folder: Path,
    file: str,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    text: str,
    *,
    form: FileFormat,
    profile: Profile,
    domain: tuple[Fraction, Fraction],
    unit: str,
    threads: int,
    advance: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Judges x, y on folder/`file` under the transforms `text` and writes `files`.

    Gives JSON values: rows in words, and the mean share that CC-Cert bounds.
    """
    model, chosen = (folder / file).read_bytes(), transforms(text)
    program = lower(form.read(model, profile), profile)
    exactly = _exact(chosen, domain)
    total, proved = len(exactly) + len(chosen), dict[str, str]()
    write_samples(folder / DATA, x, y)
    for name, (transform, family) in exactly.items():
        made = certified(
            model, program, x, y, family, form=form, profile=profile.name, domain=domain, unit=unit, threads=threads
        )
        write_atomic(folder / name, made.to_bytes())
        count = int(made.decision.certified.sum())
        proved[transform.name] = f"; deterministic: {count} certified under every one of them, {name}"
        advance(len(proved), total, transform.name)

    def told(done: int) -> None:
        advance(len(exactly) + done, total, chosen[done - 1].name)

    report = estimated(model, program, x, y, chosen, profile=profile.name, domain=domain, progress=told)
    write_atomic(folder / REPORT, report.to_bytes())
    below = [int(found.certified(report.threshold).sum()) for found in report.estimates]
    rows = [
        (t.name, f"probabilistic: {n} of {len(y)} lose with a chance below {report.threshold:g}, by CC-Cert")
        for t, n in zip(chosen, below, strict=True)
    ]
    return {
        "rows": [[name, f"{said}{proved.get(name, '')} ({file}, profile {profile.name})"] for name, said in rows],
        "share": sum(below) / len(below) / len(y),
    }


def in_words(result: dict[str, Any]) -> str:
    """The result of `judge` in words."""
    return f"probabilistic: {result['share']:.2%} of the inputs, mean over {len(result['rows'])} transforms"


def _entry(found: Estimate, threshold: float) -> dict[str, Any]:
    """One transform of the report, with each sample's bound as a power of ten."""
    return {
        "transform": found.transform.name,
        "probabilistically_certified": int(found.certified(threshold).sum()),
        "of_these_with_a_risk_below_threshold": int(
            (found.certified(threshold) & (found.risk(threshold) < threshold)).sum()
        ),
        "samples": len(found.correct),
        "correct": [bool(c) for c in found.correct],
        "log10_bound": [float(b) / math.log(10) for b in found.log_bound],
        "losses": [int(n) for n in found.losses],
        "drawn": found.drawn,
        "risk": [float(r) for r in found.risk(threshold)],
    }
