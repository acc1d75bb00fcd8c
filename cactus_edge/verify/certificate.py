"""Certificates: what was proved, about which bytes, in a JSON file that `recheck` recomputes from those bytes.

The file is the canonical encoding of one JSON object (sorted keys, one space of indentation, ASCII, integers and strings
only) and carries the SHA-256 of everything else in it: a flipped bit is not a certificate. That digest guards against
accidents; against lies there is only recomputing, and every claim below is recomputed. What is not is listed in `UNCHECKED`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import CertificateError, InternalError, MismatchError
from cactus_edge.ir.arithmetic import profile_table_digest
from cactus_edge.ir.atoms import Program
from cactus_edge.verify.check import decided
from cactus_edge.verify.counterexamples import Witnesses
from cactus_edge.verify.decide import RULES, Decision, certify
from cactus_edge.verify.elf import find_blob
from cactus_edge.verify.goal import Bools
from cactus_edge.verify.overflow import Fact, prove
from cactus_edge.verify.proof import split
from cactus_edge.verify.regions import Exact, Family, Region, check_data, data_digest, region
from cactus_edge.verify.runtimes import TFLITE, FileFormat, Runtimes, runtimes
from cactus_edge.version import __version__

FORMAT, VERSION = "cactus-edge certificate", 1

UNCHECKED = {
    "tool": "which program wrote the certificate",
    "created": "when it was written",
    "unit": "what one unit of the data is",
    "notes": "free text",
}
"""Fields that no recomputation can confirm; nor can one the target of a firmware."""

MAX_BYTES = 1 << 28

Data = npt.NDArray[Any]


INTERVAL, PROOF = "interval", "proof"
"""How a verdict is shown: by exact intervals, which a re-check recomputes; or by a proof file, whose digest is in the certificate."""

Decide = Callable[[Program, Region, Data, Data], Decision]
"""`verify.decide.certify`, or what gives the same decision sooner."""

Tell = Callable[[Program, Region, Data, Data, Decision], Witnesses]
"""Counterexamples beside those of a proof file, or those that a certificate holds."""

Find = Callable[[Program, Region, Data, Data, bytes], bytes]
"""A proof about the regions around the data, `verify.proof`; the last argument is the SHA-256 of the model file."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """A finished certificate: its JSON object, its proof file where there is one, and for the caller what was proved inside."""

    record: Mapping[str, Any]
    decision: Decision
    each: Mapping[str, Decision]
    facts: tuple[Fact, ...]
    proof: bytes | None = None
    refuted: Bools | None = None

    def to_bytes(self) -> bytes:
        """The certificate file."""
        return encode(self.record)


def certify_file(
    model: bytes,
    x: Data,
    labels: Data,
    *,
    eps: Exact | Sequence[Exact],
    domain: tuple[Exact, Exact] | None,
    family: Family | None = None,
    per_sample: bool = False,
    first_maximum: bool = False,
    profile: str,
    form: FileFormat = TFLITE,
    unit: str = "",
    firmware: Sequence[tuple[str, bytes]] = (),
    notes: Mapping[str, str] | None = None,
    created: str = "",
    decide: Decide = certify,
    find: Find | None = None,
    tell: Tell | None = None,
) -> Certificate:
    """Reads `model`, of format `form`, from its bytes, decides the region of every sample, and writes down what was proved.

    profile: as in `runtimes`; of several, any mixture is decided, and each by itself. x [N, *input shape] float32 or float64 in
    sensor units, or int8 codes; labels integer [N]; eps, domain, family, per_sample as in `regions.region`, first_maximum as in
    `Program`. firmware: (target, ELF bytes) of images that hold the model's blob. created: a time stamp, by default now. decide: by
    intervals; find: instead by whatever it finds proofs with, which are checked and become the certificate's proof file. tell:
    finds counterexamples of families, and universal perturbations, which the certificate then holds. Raises InputError,
    DataError, ModelError, and MismatchError for a firmware without the model's blob.
    """
    asked = runtimes(model, profile, form, first_maximum)
    for program in asked.programs:
        form.confirm(model, program.profile)
    around, digest = region(asked.program, eps, domain, family, per_sample), hashlib.sha256(model).digest()
    proofs = None
    if find is not None:
        proofs = b"".join(find(program, around, x, labels, digest) for program in asked.proved)
    proved = prove_claims(model, x, labels, around, asked, decide, form, proofs, tell)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "tool": f"cactus-edge {__version__}",
        "created": created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "unit": unit,
        "notes": dict(notes or {}),
        "firmware": [_firmware_entry(target, elf, proved.blob) for target, elf in firmware],
        **proved.claims,
    }
    return Certificate(seal(record), proved.decision, proved.each, proved.facts, proofs, proved.refuted)


def add_firmware(
    certificate: bytes, model: bytes, firmware: Sequence[tuple[str, bytes]], form: FileFormat = TFLITE
) -> bytes:
    """The certificate with more firmware images (target, ELF bytes) bound to it. Raises MismatchError as `certify_file` does."""
    record = decode(certificate)
    name, _, _ = question(record)
    match record:
        case {"model": {"sha256": digest}, "firmware": list() as listed} if digest == hashlib.sha256(model).hexdigest():
            blob = None if form.image is None else form.image(runtimes(model, name, form))
        case _:
            raise MismatchError("the certificate is about another model file")
    entries = [*listed, *(_firmware_entry(target, elf, blob) for target, elf in firmware)]
    return encode(seal({**record, "firmware": entries}))


@dataclass(frozen=True, eq=False)
class Proved:
    """Every claim of a certificate as its JSON fields, and what they were written from.

    decision: for any mixture of the runtimes. each: where there are several, by profile, what holds under that one alone.
    blob: what a firmware has to hold; None where the portable runtime's profile is not among them. refuted [N]: the samples
    with a counterexample, under any one of them; None where there is no proof.
    """

    claims: Mapping[str, Any]
    decision: Decision
    each: Mapping[str, Decision]
    facts: tuple[Fact, ...]
    blob: bytes | None
    refuted: Bools | None


def prove_claims(
    model: bytes,
    x: Data,
    labels: Data,
    region: Region,
    asked: Runtimes,
    decide: Decide,
    form: FileFormat = TFLITE,
    proofs: bytes | None = None,
    tell: Tell | None = None,
) -> Proved:
    """Every claim of a certificate, from the bytes alone: with a proof file as that shows them, else by intervals.

    Raises as `certify_file` does, CertificateError for a proof that does not hold.
    """
    program = asked.program
    check_data(program, x, labels)
    blob = None if form.image is None else form.image(asked)
    facts = prove(program)
    digest = hashlib.sha256(model)
    against: Bools | None = None
    if proofs is None:
        decision = decide(program, region, x, labels)
        each = _each(asked, region, x, labels, decision, decide) if asked.several else {}
    else:
        listed = split(proofs)
        named = {p.profile.name: p for p in asked.proved}
        if set(listed) != set(named):
            raise CertificateError(f"the proofs are for {', '.join(listed)}, expected {', '.join(named)}")
        shown = {n: decided(p, region, x, labels, listed[n], digest.digest()) for n, p in named.items()}
        decision, against = shown[program.profile.name]
        alone = (p.profile.name for p in asked.programs)
        each = {name: _joined(decision, shown[name][0]) for name in alone} if asked.several else {}
        for name, own in each.items():
            if (own.certified & shown[name][1]).any():
                raise InternalError("a sample is certified and has a counterexample", hint="please report this model")
            against = against | shown[name][1]
    told = Witnesses() if tell is None else tell(program, region, x, labels, decision)
    claims: dict[str, Any] = {
        **told.claims(program, region, x, labels.astype(np.int64), decision.certified),
        "model": {
            "sha256": digest.hexdigest(),
            "graph_sha256": program.graph.digest(),
            **({"format": form.name} if form.name != TFLITE.name else {}),
            **({"trusted": form.trusted} if form.trusted else {}),
            **({} if blob is None else {"blob_sha256": hashlib.sha256(blob).hexdigest()}),
        },
        "profile": {"name": asked.name, **_profile_record(asked), "table_sha256": profile_table_digest()},
        "region": region.record(),
        "data": {"sha256": data_digest(x, labels), "samples": len(x)},
        "rule": RULES[program.first_maximum],
        "bounds": INTERVAL if proofs is None else PROOF,
        **({} if proofs is None else {"proof": {"sha256": hashlib.sha256(proofs).hexdigest(), "bytes": len(proofs)}}),
        "overflow": [fact.as_json() for fact in facts],
        "verdict": {
            **_verdict(decision),
            **({"each": {name: _verdict(own) for name, own in each.items()}} if each else {}),
            **({} if against is None else {"refuted": int(against.sum()), "refuted_bits": bits(against)}),
        },
    }
    if told.members is not None:
        against = np.isin(np.arange(len(x)), list(told.members)) | (against if against is not None else False)
    return Proved(claims, decision, each, facts, blob, against)


def _each(
    asked: Runtimes, region: Region, x: Data, labels: Data, mixed: Decision, decide: Decide
) -> dict[str, Decision]:
    """What holds under each profile by itself: what any mixture keeps, and what its own program keeps beyond that."""
    rest = np.flatnonzero(~mixed.certified)
    found = {}
    for program in asked.programs:
        own = Decision(mixed.correct.copy(), mixed.certified.copy(), mixed.margin.copy())
        if len(rest):
            alone = decide(program, region.of(rest), x[rest], labels[rest])
            own.correct[rest], own.certified[rest], own.margin[rest] = alone.correct, alone.certified, alone.margin
        found[program.profile.name] = own
    return found


def _joined(mixed: Decision, own: Decision) -> Decision:
    return Decision(mixed.correct | own.correct, mixed.certified | own.certified, np.maximum(mixed.margin, own.margin))


def _profile_record(asked: Runtimes) -> dict[str, Any]:
    """The digests of the rows that a verdict rests on, and what it assumes or leaves out."""
    rows = {program.profile.name: program.profile.digest() for program in asked.programs}
    if asked.several:
        return {"members": rows, "excluded": dict(asked.excluded)}
    (digest,) = rows.values()
    return {"sha256": digest, **({"conditional_on": asked.assumption} if asked.assumption else {})}


def _verdict(decision: Decision) -> dict[str, Any]:
    return {
        "correct": int(decision.correct.sum()),
        "certified": int(decision.certified.sum()),
        "correct_bits": bits(decision.correct),
        "certified_bits": bits(decision.certified),
    }


def question(record: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    """(profile name, region object for `families.read_region`, INTERVAL or PROOF). Raises CertificateError where one is missing."""
    profile, asked, bounds = record.get("profile"), record.get("region"), record.get("bounds")
    match profile, asked:
        case {"name": str() as name}, dict():
            if not isinstance(bounds, str) or bounds not in (INTERVAL, PROOF):
                raise CertificateError(f"the certificate is shown by {bounds!r}, expected {INTERVAL!r} or {PROOF!r}")
            return name, asked, bounds
        case _:
            raise CertificateError("the certificate names no profile and region")


def format_of(record: Mapping[str, Any]) -> str:
    """The format that a certificate names for its model; "tflite" where it names none."""
    match record.get("model"):
        case {"format": str() as name}:
            return name
        case _:
            return TFLITE.name


def bits(flags: Bools) -> str:
    """One bit a sample, first sample in the highest bit of the first byte, as hex."""
    return np.packbits(flags).tobytes().hex()


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the SHA-256 of everything else in it."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return {**rest, "sha256": hashlib.sha256(encode(rest)).hexdigest()}


def encode(record: Mapping[str, Any]) -> bytes:
    """The canonical bytes of a record."""
    return (json.dumps(record, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def decode(data: bytes) -> dict[str, Any]:
    """The record in a certificate's bytes. Raises CertificateError for what is not a certificate of this version."""
    if len(data) > MAX_BYTES:
        raise CertificateError(f"the certificate has {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        record = json.loads(data.decode("ascii"), parse_float=_no_float, parse_constant=_no_float)
        encode(record)  # nesting too deep to be written again is refused here, not later
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"the certificate is not JSON of ours: {error}", hint="is it truncated?") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CertificateError(f'not a certificate: expected "format": "{FORMAT}"')
    if record.get("version") != VERSION:
        raise CertificateError(
            f"certificate version {record.get('version')!r}, expected {VERSION}", hint="update cactus-edge"
        )
    return record


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text} is not an integer; fractions are written as strings")


def _firmware_entry(target: str, elf: bytes, blob: bytes | None) -> dict[str, str]:
    if blob is None:
        raise MismatchError(
            f"the firmware for {target} does not compute the certificate's profile, or cannot run the model",
            hint="certify with --profile tflm; cactus-edge inspect says what the C runtime lacks",
        )
    if find_blob(elf, blob, f"the firmware for {target}") is None:
        raise MismatchError(
            f"the firmware for {target} does not hold the model's blob", hint="build it from this model"
        )
    return {
        "target": target,
        "sha256": hashlib.sha256(elf).hexdigest(),
        "blob_sha256": hashlib.sha256(blob).hexdigest(),
    }
