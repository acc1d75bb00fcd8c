"""Re-checking a certificate: everything that can be recomputed is recomputed from the bytes, and no stored number is trusted.

From the certificate come the question (profile and region) and the answer; the answer is computed anew by the same
definitions and compared field by field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from cactus_edge.errors import CactusError, InputError, InstallError, ModelError
from cactus_edge.ir.arithmetic import profile_table_digest
from cactus_edge.ir.atoms import Program
from cactus_edge.verify.certificate import (
    PROOF,
    UNCHECKED,
    Data,
    decode,
    encode,
    format_of,
    prove_claims,
    question,
    seal,
)
from cactus_edge.verify.counterexamples import Witnesses, read_witnesses
from cactus_edge.verify.decide import RULES, certify
from cactus_edge.verify.elf import find_blob
from cactus_edge.verify.families import read_region
from cactus_edge.verify.regions import Exact, data_digest, exact
from cactus_edge.verify.runtimes import TFLITE, FileFormat, Runtimes, runtimes

State = Literal["ok", "failed", "not checked"]

CONFIRMED = "what the runtime makes of the file"
IMAGE = "model.blob_sha256"
FIRMWARE = ["blob_sha256", "sha256", "target"]
NO_IMAGE = "what firmware has to hold"


@dataclass(frozen=True)
class Check:
    """One comparison: what was recomputed (`expected`) against what the certificate or the firmware says (`got`)."""

    name: str
    state: State
    expected: str
    got: str

    @property
    def detail(self) -> str:
        """For people: the value, or how the two differ."""
        if self.state == "failed":
            return f"expected {_short(self.expected)}, got {_short(self.got)}"
        return _short(self.got)


@dataclass(frozen=True)
class Report:
    """The outcome: accepted iff no check failed. `record` is the certificate's JSON object."""

    checks: tuple[Check, ...]
    record: Mapping[str, Any]

    @property
    def accepted(self) -> bool:
        return all(c.state != "failed" for c in self.checks)

    @property
    def condition(self) -> str:
        """What has to be true of a run for the verdicts to hold for it; "" for nothing."""
        match self.record:
            case {"profile": {"conditional_on": str() as condition}}:
                return condition
            case _:
                return ""


def recheck(
    certificate: bytes,
    model: bytes,
    x: Data,
    labels: Data,
    *,
    proof: bytes | None = None,
    firmware: bytes | None = None,
    eps: Exact | None = None,
    profile: str | None = None,
    formats: Sequence[FileFormat] = (TFLITE,),
    threads: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Checks a certificate against the model's bytes, the data and, where given, a firmware ELF.

    proof: the proof file, for a certificate that has one. eps, profile: what the reader expects the certificate to be about
    (optional). formats: what can be read. Raises CertificateError for bytes that are no certificate of this version, InputError
    where the proof file is missing, DataError for labels that are no integers; all else that is wrong is a failed check.
    """
    record = decode(certificate)
    name, asked, bounds = question(record)
    sealed = seal(record)
    checks = [
        Check(
            "the file is intact", _state(encode(sealed) == certificate), sealed["sha256"], _text(record.get("sha256"))
        ),
        _compare("model.sha256", hashlib.sha256(model).hexdigest(), record, "model.sha256"),
        _compare("data.sha256", data_digest(x, labels), record, "data.sha256"),
        _compare("the table of runtimes' arithmetics", profile_table_digest(), record, "profile.table_sha256"),
    ]
    if bounds == PROOF:
        if proof is None:
            raise InputError("the certificate rests on a proof file, and none is given", hint="verify --proof FILE")
        checks.append(_compare("proof.sha256", hashlib.sha256(proof).hexdigest(), record, "proof.sha256"))
    if profile is not None:
        checks.append(_compare("the profile asked for", profile, record, "profile.name"))
    if eps is not None:
        checks.append(_compare("the eps asked for", str(exact(eps, "eps")), record, "region.eps"))
    form = next((f for f in formats if f.name == format_of(record)), None)
    if form is None:
        known = " or ".join(f.name for f in formats)
        checks.append(Check("model.format", "failed", known, format_of(record)))
    if form is not None and all(c.state == "ok" for c in checks):
        try:
            decide = partial(certify, threads=threads, progress=progress)
            named = runtimes(model, name, form, record.get("rule") == RULES[True])
            told = partial(_told, record)
            proved = prove_claims(
                model, x, labels, read_region(asked), named, decide, form, proof if bounds == PROOF else None, told
            )
        except CactusError as error:
            checks.append(Check("the proof", "failed", "one that can be recomputed", error.message))
        else:
            done = {c.name for c in checks}
            checks += [_compare(p, value, record, p) for p, value in _leaves(proved.claims).items() if p not in done]
            unread = () if form.image else (IMAGE,)
            checks += [
                Check(p, "failed", "no such field", _text(v)) for p, v in _unknown(proved.claims, record, unread)
            ]
            checks += _firmware(record, firmware, proved.blob) if form.image else _unbound(record, firmware)
            checks += _confirmed(form, model, named)
    else:
        checks.append(Check("the proof", "not checked", "", "not reached"))
    checks += [Check(key, "not checked", why, _text(record.get(key))) for key, why in UNCHECKED.items()]
    return Report(tuple(checks), record)


def _told(record: Mapping[str, Any], program: Program, *_: object) -> Witnesses:
    """The counterexamples that the certificate itself holds: to be replayed."""
    return read_witnesses(record, program.input_tensor)


def _confirmed(form: FileFormat, model: bytes, named: Runtimes) -> Iterator[Check]:
    """What the bytes do not tell, where the format has such a thing; a condition is listed, since no proof covers it."""
    if named.assumption:
        yield Check("the condition is true of a run", "not checked", "a run on the device", named.assumption)
    elif form.trusted:
        yield _answer(form, model, named)


def _answer(form: FileFormat, model: bytes, named: Runtimes) -> Check:
    """What the runtimes themselves say of the file."""
    try:
        for program in named.programs:
            form.confirm(model, program.profile)
    except InstallError as error:
        return Check(CONFIRMED, "not checked", "an answer of the runtime", error.message)
    except CactusError as error:
        return Check(CONFIRMED, "failed", "integer kernels", error.message)
    return Check(CONFIRMED, "ok", "integer kernels", "integer kernels")


def _unknown(claims: Mapping[str, Any], record: Mapping[str, Any], unread: Sequence[str]) -> list[tuple[str, Any]]:
    """The fields that no certificate has: refused, since nobody would have checked them."""
    known = {*_leaves(claims), *UNCHECKED, *unread, "format", "version", "firmware", "sha256"}
    # A key that is written as a path would stand for the field that the path names.
    dotted = [(key, value) for key, value in record.items() if "." in key]
    return dotted + [(path, value) for path, value in _leaves(record).items() if path not in known]


def _leaves(record: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path: "group.key" for what stands in an object, except in the free notes."""
    leaves: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict) and value and key != "notes":
            leaves |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            leaves[key] = value
    return leaves


def _unbound(record: Mapping[str, Any], firmware: bytes | None) -> Iterator[Check]:
    """What the certificate says of firmware, where the format does not say what firmware has to hold."""
    match record.get("model"):
        case {"blob_sha256": digest}:
            yield Check(IMAGE, "not checked", NO_IMAGE, _text(digest))
    if record.get("firmware") or firmware is not None:
        state: State = "not checked" if firmware is None else "failed"
        yield Check("firmware", state, NO_IMAGE, _text(record.get("firmware")))


def _firmware(record: Mapping[str, Any], firmware: bytes | None, blob: bytes | None) -> Iterator[Check]:
    """Each listed image names this model's blob; the given one is listed and holds the blob byte for byte where it is loaded."""
    entries = record.get("firmware")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        yield Check("firmware", "failed", "a list of objects", _text(entries))
        return
    if blob is None:
        if entries or firmware is not None:
            name = "firmware: computes the profile"
            yield Check(name, "failed", "a profile that firmware of ours computes", _text(record.get("profile")))
        return
    blob_digest = hashlib.sha256(blob).hexdigest()
    for i, entry in enumerate(entries):
        yield _compare(f"firmware {i}: blob", blob_digest, entry, "blob_sha256")
        yield Check(f"firmware {i}: fields", _state(sorted(entry) == FIRMWARE), _text(FIRMWARE), _text(sorted(entry)))
        yield Check(f"firmware {i}: target", "not checked", "the board it is for", _text(entry.get("target")))
    listed = [e.get("sha256") for e in entries]
    if firmware is None:
        if listed:
            yield Check("firmware", "not checked", "an ELF file to compare with", _text(listed))
        return
    digest = hashlib.sha256(firmware).hexdigest()
    yield Check("firmware: listed", _state(digest in listed), digest, _text(listed))
    try:
        address = find_blob(firmware, blob)
    except ModelError as error:
        yield Check("firmware: holds the blob", "failed", blob_digest, error.message)
        return
    where = "no copy of the blob in a loaded segment" if address is None else f"the blob at address {address:#x}"
    yield Check("firmware: holds the blob", _state(address is not None), blob_digest, where)


def _compare(name: str, expected: Any, record: Mapping[str, Any], path: str) -> Check:
    leaves = _leaves(record)
    # As JSON text: in Python True equals 1, in a certificate it must not.
    same = path in leaves and json.dumps(expected, sort_keys=True) == json.dumps(leaves[path], sort_keys=True)
    return Check(name, _state(same), _text(expected), _text(leaves.get(path, "nothing")))


def _state(good: bool) -> State:
    return "ok" if good else "failed"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
