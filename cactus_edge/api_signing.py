"""The verb sign as a function, and what public keys add to verify. Each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cactus_edge.api_files import Pairs, Source, content
from cactus_edge.errors import InputError
from cactus_edge.resources import require_file, require_folder, write_atomic

if TYPE_CHECKING:
    from cactus_edge.signing import Passphrase
    from cactus_edge.verify.recheck import Check

PRIVATE, PUBLIC = "private.pem", "public.pem"


@dataclass(frozen=True)
class Signed:
    """An envelope on disk. keyid: SHA-256 over the public key's description, as securesystemslib computes it."""

    path: Path
    keyid: str
    subjects: tuple[str, ...]
    signatures: int

    def summary(self) -> Pairs:
        """In words."""
        return [
            ("signed", ", ".join(self.subjects)),
            ("key", self.keyid),
            ("signatures", str(self.signatures)),
            ("envelope", str(self.path)),
        ]


def sign(
    certificate: str | Path,
    model: Source,
    *,
    key: str | Path,
    firmware: Sequence[Source] = (),
    proof: Source | None = None,
    passphrase: Passphrase | None = None,
    out: str | Path | None = None,
) -> Signed:
    """Signs the in-toto statement about `certificate`, once the files given are those it is about; writes the envelope.

    key: PEM with an Ed25519, ECDSA or RSA private key. passphrase: called where it is encrypted. out: by default the file
    beside the certificate, cert.json -> cert.dsse.json; an envelope there about the very same statement keeps the signatures
    of other keys. Nothing is proved anew: run `verify` first. Raises InputError for a key that cannot be used, MismatchError
    for a certificate that is damaged or about other files.
    """
    from cactus_edge import signing

    path = require_file(
        Path(out) if out is not None else beside(Path(certificate)),
        "--out",
        (key, certificate, model, *firmware, proof),
    )
    source = content(certificate, "certificate")
    files = [("model", model), *(("firmware", image) for image in firmware), *([("proof", proof)] if proof else [])]
    about = signing.statement(source)
    signing.require_about(source, about, [(role, content(file, role)) for role, file in files])
    known = content(path, "envelope") if path.is_file() else None
    envelope, keyid = signing.signed(about, content(key, "key"), str(key), passphrase, known)
    write_atomic(path, signing.written(envelope))
    return Signed(path, keyid, tuple(name for name, _ in signing.subjects(about)), len(envelope.signatures))


def new_key(folder: str | Path, passphrase: bytes = b"") -> tuple[Path, Path]:
    """A new Ed25519 key pair in `folder`: private.pem (PKCS #8, readable by its owner alone; encrypted where there is a
    passphrase) and public.pem. Raises InputError where one of them is there already."""
    from cactus_edge import signing

    private, public = Path(folder) / PRIVATE, Path(folder) / PUBLIC
    require_folder(Path(folder), "--new-key")
    for path in (private, public):
        if path.exists():
            raise InputError(f"{path} is there already; a key is never overwritten", hint="choose another folder")
    secret, shown = signing.key_pair(passphrase)
    write_atomic(private, secret, private=True)
    write_atomic(public, shown)
    return private, public


def beside(certificate: Path) -> Path:
    """Where a certificate's envelope lies: cert.json -> cert.dsse.json."""
    return certificate.with_name(f"{certificate.stem}.dsse.json")


def signatures(
    certificate: Source, source: bytes, keys: Sequence[str | Path], envelope: Source | None
) -> tuple[Check, ...]:
    """The checks that public keys add to those of the certificate `source`, read from `certificate`; none without a key.

    envelope: by default the one beside the certificate. Raises InputError for an envelope without a key, which nothing would
    check, and as `signing.check` does.
    """
    if not keys:
        if envelope is not None:
            raise InputError("an envelope is given and no key to check it with", hint="--key public.pem")
        return ()
    from cactus_edge.signing import check

    if envelope is None:
        if isinstance(certificate, bytes):
            raise InputError("a key is given and no envelope", hint="pass signature=")
        envelope = beside(Path(certificate))
    publics = [(str(key), content(key, "key")) for key in keys]
    return tuple(check(source, content(envelope, "envelope"), publics))
