"""Signed certificates: who stands for a certificate, as an in-toto statement in a DSSE envelope.

The statement is a function of the certificate alone: its subjects are the SHA-256 of the certificate file and of every file
that the certificate is about, its predicate is the verdict in short. A check recomputes it and compares it with what was
signed. No byte of a payload is interpreted before its signature was found good, and a key identifier is a hint that picks a
signature, never a reason to believe it.

Sources: in-toto attestation framework, Statement v1 and ResourceDescriptor; DSSE v1.0, protocol (PAE) and envelope; the
signatures are those of securesystemslib: Ed25519, ECDSA on P-256, P-384 and P-521, RSASSA-PSS with SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cactus_edge.errors import CertificateError, InputError, InstallError, MismatchError
from cactus_edge.resources import sha256
from cactus_edge.verify.certificate import decode, encode, question, seal
from cactus_edge.verify.recheck import Check

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner, SSlibKey

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:cactus-edge:certificate:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

MAX_ENVELOPE_BYTES = 1 << 26

LEAST_RSA_BITS = 2048
"""NIST SP 800-131A, table 2: shorter keys must not be trusted."""

Passphrase = Callable[[], bytes]
"""Asked only where a private key is encrypted."""


def statement(certificate: bytes) -> dict[str, Any]:
    """The in-toto statement about a certificate file. Raises CertificateError where the file is none of ours.

    Subjects: "certificate", "model", "proof" where there is one, and "firmware: TARGET" for each listed image, each with its
    SHA-256. The predicate has the certificate's question and how many samples it counts as right, certified and, with a proof,
    refuted.
    """
    record = decode(certificate)
    name, region, bounds = question(record)
    match record:
        case {
            "model": {"sha256": str() as model},
            "data": {"sha256": str() as data, "samples": int() as samples},
            "rule": str() as rule,
            "verdict": {"correct": int() as correct, "certified": int() as certified},
            "firmware": list() as images,
            "profile": {**profile},
        }:
            pass
        case _:
            raise CertificateError("the certificate names no model, data, firmware and verdict")
    subjects = [("certificate", sha256(certificate)), ("model", model), *_proof(record), *map(_image, images)]
    condition = {key: value for key, value in profile.items() if key == "conditional_on"}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "profile": {"name": name, **condition},
            "region": dict(region),
            "bounds": bounds,
            "rule": rule,
            "data": {"sha256": data, "samples": samples},
            "verdict": {"correct": correct, "certified": certified, **_refuted(record)},
        },
    }


def _proof(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    match record:
        case {"proof": {"sha256": str() as digest}}:
            return [("proof", digest)]
        case _:
            return []


def _refuted(record: Mapping[str, Any]) -> dict[str, int]:
    match record:
        case {"verdict": {"refuted": int() as refuted}}:
            return {"refuted": refuted}
        case _:
            return {}


def _image(entry: Any) -> tuple[str, str]:
    match entry:
        case {"target": str() as target, "sha256": str() as digest}:
            return f"firmware: {target}", digest
        case _:
            raise CertificateError("the certificate lists a firmware without its target and digest")


def subjects(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, SHA-256) of every subject of a statement."""
    return [(subject["name"], subject["digest"]["sha256"]) for subject in about["subject"]]


def require_about(certificate: bytes, about: Mapping[str, Any], files: Sequence[tuple[str, bytes]]) -> None:
    """Raises MismatchError where the certificate is damaged, or is not about each of `files` (role, bytes)."""
    if encode(seal(decode(certificate))) != certificate:
        raise MismatchError("the certificate is damaged: its digest or its form is wrong", hint="cactus-edge verify")
    for role, data in files:
        digest = sha256(data)
        wanted = [known for name, known in subjects(about) if name.split(":")[0] == role]
        if digest not in wanted:
            raise MismatchError(
                f"the {role} is not the certificate's: its SHA-256 is {digest}, expected {' or '.join(wanted) or 'none'}",
                hint="sign the certificate of these very files",
            )


def signed(
    about: Mapping[str, Any], pem: bytes, name: str, passphrase: Passphrase | None, known: bytes | None
) -> tuple[Envelope, str]:
    """(envelope, identifier of the key): the statement signed with the private key `pem`, called `name`.

    known: an envelope that keeps its other signatures where it is about this very statement. Raises InputError for a key that
    cannot be used, CertificateError where `known` is no envelope.
    """
    require_library()
    from securesystemslib.dsse import Envelope

    payload, signer = encode(about), _signer(pem, name, passphrase)
    envelope = _envelope(known) if known is not None else None
    if envelope is None or envelope.payload != payload:
        envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return envelope, signer.public_key.keyid


def written(envelope: Envelope) -> bytes:
    """The envelope file: canonical JSON."""
    return encode(envelope.to_dict())


def key_pair(passphrase: bytes) -> tuple[bytes, bytes]:
    """A new Ed25519 key: PEM of the private part, PKCS #8, encrypted where there is a passphrase, and of the public part."""
    require_library()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pair = Ed25519PrivateKey.generate()
    lock = form.BestAvailableEncryption(passphrase) if passphrase else form.NoEncryption()
    private = pair.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock)
    return private, pair.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def check(certificate: bytes, envelope: bytes, keys: Sequence[tuple[str, bytes]]) -> Iterator[Check]:
    """Whether each of `keys` (name, PEM of a public key) signed the statement about `certificate`.

    Raises CertificateError for an envelope that cannot be read, InputError for a key that cannot.
    """
    about, read = statement(certificate), _envelope(envelope)
    publics = [(name, _public(pem, name)) for name, pem in keys]
    held = ", ".join(signature.keyid[:16] for signature in read.signatures.values())
    for i, (name, key) in enumerate(publics):
        if any(key.keyid == other.keyid for _, other in publics[:i]):
            raise InputError(f"the key {name} was given twice", hint="one --key for each signature that you require")
        good = _verified(read, key)
        yield Check(
            f"signature of {name}", "ok" if good else "failed", f"one by {key.keyid[:16]}", f"signatures by {held}"
        )
        if not good:
            return
    yield from _compared(about, read.payload)


def _compared(about: Mapping[str, Any], payload: bytes) -> Iterator[Check]:
    """The signed statement against the recomputed one, field by field."""
    try:
        signed = json.loads(payload)
    except (ValueError, RecursionError) as error:
        yield Check("the signed statement", "failed", "JSON", str(error))
        return
    if not isinstance(signed, dict):
        yield Check("the signed statement", "failed", "a JSON object", type(signed).__name__)
        return
    for field in sorted(about.keys() | signed.keys()):
        # As text: in Python True equals 1, in a statement it must not.
        want, got = (
            json.dumps(side[field], sort_keys=True) if field in side else "no such field" for side in (about, signed)
        )
        yield Check(f"signed: {field}", "ok" if want == got else "failed", want, got)


def _verified(envelope: Envelope, key: SSlibKey) -> bool:
    from securesystemslib.exceptions import VerificationError

    try:
        envelope.verify([key], 1)
    except VerificationError:
        return False
    return True


def _envelope(data: bytes) -> Envelope:
    """The envelope in these bytes. Raises CertificateError for anything else, and for two signatures of one key identifier."""
    require_library()
    from securesystemslib.dsse import Envelope

    if len(data) > MAX_ENVELOPE_BYTES:
        raise CertificateError(f"the envelope has {len(data)} bytes, expected at most {MAX_ENVELOPE_BYTES}")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"the envelope is not JSON: {error}", hint="is it truncated?") from None
    match record:
        case {"payloadType": str() as kind, "payload": str(), "signatures": [_, *_] as signatures}:
            pass
        case _:
            raise CertificateError("not a DSSE envelope: expected payload, payloadType and at least one signature")
    if kind != PAYLOAD_TYPE:
        raise CertificateError(f"the envelope's payload is {kind[:80]!r}, expected {PAYLOAD_TYPE}")
    for signature in signatures:
        match signature:
            case {"keyid": str(), "sig": str()}:
                pass
            case _:
                raise CertificateError("a signature of the envelope lacks its keyid or sig")
    try:
        return Envelope.from_dict(record)
    except ValueError as error:
        raise CertificateError(f"the envelope cannot be read: {error}") from error


def _signer(pem: bytes, name: str, passphrase: Passphrase | None) -> CryptoSigner:
    require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    secret = None
    if _encrypted(pem):
        if passphrase is None:
            raise InputError(f"{name} is encrypted", hint="give its passphrase")
        secret = passphrase()
    try:
        private = load_pem_private_key(pem, secret)
        signer = CryptoSigner(private)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        wrong = "or the passphrase is wrong" if secret is not None else "only a private key signs"
        raise InputError(
            f"{name} holds no private key that can sign, {wrong}: {error}",
            hint="an Ed25519, ECDSA (P-256, P-384, P-521) or RSA key in PEM; cactus-edge sign --new-key FOLDER makes one",
        ) from error
    _require_strong(private, name)
    return signer


def _encrypted(pem: bytes) -> bool:
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def _public(pem: bytes, name: str) -> SSlibKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = load_pem_public_key(pem)
        described = SSlibKey.from_crypto(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{name} holds no public key that can be checked: {error}",
            hint="an Ed25519, ECDSA (P-256, P-384, P-521) or RSA public key in PEM",
        ) from error
    _require_strong(key, name)
    return described


def _require_strong(key: PrivateKeyTypes | PublicKeyTypes, name: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

    if isinstance(key, RSAPrivateKey | RSAPublicKey) and key.key_size < LEAST_RSA_BITS:
        raise InputError(f"{name} is an RSA key of {key.key_size} bits, expected at least {LEAST_RSA_BITS}")


def require_library() -> None:
    """Raises InstallError where a package of the extra `sign` is missing."""
    from importlib.util import find_spec

    for module in ("securesystemslib", "cryptography"):
        if find_spec(module) is None:
            raise InstallError(f"signatures need the package {module}", hint="pip install 'cactus-edge[sign]'")
