"""Signatures: what was signed is recomputed; every other key, payload, certificate or spelling of an envelope is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificate_kit import BLOB, MODEL, X, Y, elf, issue
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

import cactus_edge as ce
from cactus_edge import signing
from cactus_edge.api_signing import beside, new_key
from cactus_edge.cli import main
from cactus_edge.errors import CertificateError, InputError, MismatchError
from cactus_edge.signing import PAYLOAD_TYPE, check, statement
from cactus_edge.verify.certificate import decode, encode, seal

Shown = pytest.CaptureFixture[str]
FIRMWARE = elf(b"code" + BLOB)
PASSPHRASE = b"correct horse"

MAKERS: dict[str, Callable[[], Any]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}
UNFIT: dict[str, Callable[[], Any]] = {
    "ed448": ed448.Ed448PrivateKey.generate,
    "dsa": lambda: dsa.generate_private_key(2048),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "rsa-1024": lambda: rsa.generate_private_key(65537, 1024),
}


def pem(key: Any, passphrase: bytes = b"", layout: form.PrivateFormat = form.PrivateFormat.PKCS8) -> bytes:
    lock = form.BestAvailableEncryption(passphrase) if passphrase else form.NoEncryption()
    secret: bytes = key.private_bytes(form.Encoding.PEM, layout, lock)
    return secret


def public(key: Any) -> bytes:
    shown: bytes = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    return shown


class Desk:
    """A folder with a certificate, its files, a key pair and an envelope."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.model, self.data = folder / "cert.json", folder / "model.tflite", folder / "x.npz"
        self.firmware, self.private, self.public = folder / "fw.elf", folder / "private.pem", folder / "public.pem"
        self.cert.write_bytes(issue(firmware=[("board", FIRMWARE)]))
        self.model.write_bytes(MODEL)
        self.firmware.write_bytes(FIRMWARE)
        np.savez(self.data, x=X, y=Y)
        new_key(folder)
        ce.sign(self.cert, self.model, key=self.private, firmware=[self.firmware])
        self.envelope = beside(self.cert)

    def verify(self, *options: object) -> list[str]:
        files = [self.cert, "--model", self.model, "--data", self.data, "--key", self.public]
        return ["verify", *map(str, files), *map(str, options)]

    def edit(self, change: Callable[[dict[str, Any]], object]) -> bytes:
        envelope = json.loads(self.envelope.read_bytes())
        change(envelope)
        self.envelope.write_text(json.dumps(envelope))
        return self.envelope.read_bytes()

    def failed(self) -> set[str]:
        found = check(self.cert.read_bytes(), self.envelope.read_bytes(), [("k", self.public.read_bytes())])
        return {c.name for c in found if c.state != "ok"}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_what_was_signed_is_accepted_and_names_every_file(desk: Desk, capsys: Shown) -> None:
    assert main(desk.verify("--firmware", desk.firmware)) == 0
    shown = capsys.readouterr().out
    assert "signature of" in shown and shown.rstrip().endswith("accepted")
    payload = json.loads(base64.b64decode(json.loads(desk.envelope.read_bytes())["payload"]))
    assert payload == statement(desk.cert.read_bytes())
    assert [s["name"] for s in payload["subject"]] == ["certificate", "model", "firmware: board"]
    files = (desk.cert, desk.model, desk.firmware)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [s["digest"]["sha256"] for s in payload["subject"]] == digests
    assert payload["predicate"]["region"]["eps"] == "1/64"
    assert payload["predicate"]["verdict"]["certified"] == decode(desk.cert.read_bytes())["verdict"]["certified"]


def test_a_proof_is_a_subject(desk: Desk, tmp_path: Path) -> None:
    made = ce.certify(MODEL, X, Y, eps="1/16", domain=(0, 1), bounds="linear", attack=True)
    assert made.proof is not None
    desk.cert.write_bytes(made.to_bytes())
    shown = tmp_path / "cert.proof"
    shown.write_bytes(made.proof)
    assert ce.sign(desk.cert, desk.model, key=desk.private, proof=shown).subjects == ("certificate", "model", "proof")
    assert main(desk.verify()) == 0
    about = statement(desk.cert.read_bytes())
    assert about["subject"][2]["digest"]["sha256"] == hashlib.sha256(made.proof).hexdigest()
    assert about["predicate"]["verdict"]["refuted"] > 0 and about["predicate"]["bounds"] == "proof"
    shown.write_bytes(made.proof + b"\0")
    with pytest.raises(MismatchError, match="proof"):
        ce.sign(desk.cert, desk.model, key=desk.private, proof=shown)
    assert main(desk.verify()) == 1


def test_the_envelope_is_what_the_standard_says(desk: Desk) -> None:
    """DSSE v1.0: the signature is over the pre-authentication encoding, checked here without the library that made it."""
    envelope = json.loads(desk.envelope.read_bytes())
    body = base64.b64decode(envelope["payload"])
    pae = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(body), body)
    key = form.load_pem_public_key(desk.public.read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_key_signs(desk: Desk, kind: str) -> None:
    key = MAKERS[kind]()
    desk.private.write_bytes(pem(key))
    desk.public.write_bytes(public(key))
    desk.envelope.unlink()
    ce.sign(desk.cert, desk.model, key=desk.private)
    assert desk.failed() == set()
    other = MAKERS[kind]()
    desk.public.write_bytes(public(other))
    assert len(desk.failed()) == 1


@pytest.mark.parametrize("kind", UNFIT)
def test_a_weak_or_unknown_key_is_refused(desk: Desk, kind: str) -> None:
    key = UNFIT[kind]()
    desk.private.write_bytes(pem(key))
    with pytest.raises(InputError):
        ce.sign(desk.cert, desk.model, key=desk.private)
    desk.public.write_bytes(public(key))
    with pytest.raises(InputError):
        desk.failed()


@pytest.mark.parametrize("layout", ["PKCS8", "TraditionalOpenSSL"])
def test_an_encrypted_key_asks_for_its_passphrase(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: Shown, layout: str
) -> None:
    key = MAKERS["p256"]()
    desk.private.write_bytes(pem(key, PASSPHRASE, getattr(form.PrivateFormat, layout)))
    desk.public.write_bytes(public(key))
    command = ["sign", str(desk.cert), "--model", str(desk.model), "--key", str(desk.private)]
    for wrong in ("", "wrong"):
        monkeypatch.setenv("CACTUS_EDGE_PASSPHRASE", wrong)
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "passphrase" in message and "Traceback" not in message
    monkeypatch.setenv("CACTUS_EDGE_PASSPHRASE", PASSPHRASE.decode())
    assert main(command) == 0
    assert main(desk.verify()) == 0
    with pytest.raises(InputError, match="encrypted"):
        ce.sign(desk.cert, desk.model, key=desk.private)


def test_new_key_is_private_encrypted_on_request_and_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setenv("CACTUS_EDGE_PASSPHRASE", PASSPHRASE.decode())
    assert main(["sign", "--new-key", str(tmp_path / "keys")]) == 0
    private = tmp_path / "keys" / "private.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in private.read_bytes() and str(private) in capsys.readouterr().out
    assert isinstance(form.load_pem_private_key(private.read_bytes(), PASSPHRASE), ed25519.Ed25519PrivateKey)
    before = private.read_bytes()
    assert main(["sign", "--new-key", str(tmp_path / "keys")]) == 2
    assert "overwritten" in capsys.readouterr().err and private.read_bytes() == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_the_documented_openssl_lines_make_a_key(desk: Desk) -> None:
    for line in (
        f"genpkey -algorithm ed25519 -out {desk.private}",
        f"pkey -in {desk.private} -pubout -out {desk.public}",
    ):
        subprocess.run(["openssl", *line.split()], check=True, capture_output=True)
    ce.sign(desk.cert, desk.model, key=desk.private)
    assert desk.failed() == set()


def test_another_key_is_rejected(desk: Desk, capsys: Shown) -> None:
    desk.public.write_bytes(public(MAKERS["ed25519"]()))
    assert main(desk.verify()) == 1
    shown = capsys.readouterr().out
    assert "REJECTED" in shown and "signed: " not in shown, "nothing of an unsigned payload is interpreted"


def test_every_flipped_bit_of_the_envelope_is_refused(desk: Desk) -> None:
    whole = desk.envelope.read_bytes()
    certificate, key = desk.cert.read_bytes(), [("k", desk.public.read_bytes())]
    accepted = []
    for i in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[i] ^= 1 << bit
            try:
                if all(c.state == "ok" for c in check(certificate, bytes(flipped), key)):
                    accepted.append(bytes(flipped))
            except CertificateError:
                continue
    # White space, and bits of base64 that stand for nothing: other spellings of the very same envelope.
    assert {meaning(spelling) for spelling in accepted} <= {meaning(whole)}


def meaning(envelope: bytes) -> tuple[Any, ...]:
    record = json.loads(envelope)
    signatures = [(s["keyid"], base64.b64decode(s["sig"])) for s in record["signatures"]]
    return record["payloadType"], base64.b64decode(record["payload"]), *signatures


def test_the_flip_test_sees_a_signature_that_is_not_checked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.edit(lambda e: e["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()))
    assert desk.failed() != set()
    monkeypatch.setattr(signing, "_verified", lambda envelope, key: True)
    assert desk.failed() == set()


def test_an_envelope_about_another_certificate_is_rejected(desk: Desk, capsys: Shown) -> None:
    desk.cert.write_bytes(issue(firmware=[("board", FIRMWARE)], unit="another"))
    assert desk.failed() == {"signed: subject"}
    assert main(desk.verify()) == 1
    assert "signed: subject" in capsys.readouterr().out
    desk.cert.write_bytes(issue(eps="1/128"))
    assert desk.failed() == {"signed: subject", "signed: predicate"}


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["predicate"]["verdict"].update(certified=40),
        lambda s: s["predicate"]["verdict"].update(correct=True),
        lambda s: s["predicate"].update(surprise=1),
        lambda s: s["subject"].append(s["subject"][0]),
        lambda s: s["subject"].pop(),
        lambda s: s.update(predicateType="urn:cactus-edge:certificate:v2"),
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(surprise=1),
        lambda s: s.pop("predicate"),
    ],
    ids=["count", "bool", "field", "subject-twice", "subject-less", "predicate-type", "type", "unknown", "missing"],
)
def test_a_signed_lie_is_rejected(desk: Desk, change: Callable[[dict[str, Any]], object]) -> None:
    """The key's owner signed something else about the very certificate."""
    about = statement(desk.cert.read_bytes())
    change(about)
    envelope, _ = signing.signed(about, desk.private.read_bytes(), "k", None, None)
    desk.envelope.write_bytes(signing.written(envelope))
    assert desk.failed() and all(name.startswith("signed: ") for name in desk.failed())


@pytest.mark.parametrize("payload", [b"", b"[]", b"not json", b"\xff\xfe", b"[" * 100_000])
def test_signed_garbage_is_rejected(desk: Desk, monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    monkeypatch.setattr(signing, "encode", lambda record: payload)
    envelope, _ = signing.signed({}, desk.private.read_bytes(), "k", None, None)
    monkeypatch.setattr(signing, "encode", encode)
    desk.envelope.write_bytes(signing.written(envelope))
    assert desk.failed() == {"the signed statement"}


def test_key_identifiers_are_hints(desk: Desk) -> None:
    """A signature by another key under our key's identifier, and ours under another one: neither is believed."""
    key = MAKERS["ed25519"]()
    envelope, _ = signing.signed(statement(desk.cert.read_bytes()), pem(key), "k", None, None)
    theirs = json.loads(signing.written(envelope))["signatures"][0]
    ours = json.loads(desk.envelope.read_bytes())["signatures"][0]
    desk.edit(lambda e: e.update(signatures=[{"keyid": ours["keyid"], "sig": theirs["sig"]}]))
    assert desk.failed() == {"signature of k"}
    desk.edit(lambda e: e.update(signatures=[{"keyid": theirs["keyid"], "sig": ours["sig"]}]))
    assert desk.failed() == {"signature of k"}
    desk.edit(lambda e: e.update(signatures=[theirs, ours]))
    assert desk.failed() == set(), "a second signature by somebody else does no harm"


def test_several_keys_have_to_have_signed_all(desk: Desk, tmp_path: Path) -> None:
    second = tmp_path / "second"
    private, shown = new_key(second)
    assert main(desk.verify("--key", shown)) == 1
    assert ce.sign(desk.cert, desk.model, key=private).signatures == 2
    assert main(desk.verify("--key", shown)) == 0
    assert main(desk.verify("--key", desk.public)) == 2, "one key is not two signers"
    assert ce.sign(desk.cert, desk.model, key=private).signatures == 2
    desk.cert.write_bytes(issue(eps="1/128"))
    assert ce.sign(desk.cert, desk.model, key=private).signatures == 1, "of another statement no signature is kept"
    assert main(desk.verify()) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e["signatures"].append(e["signatures"][0]), "Multiple"),
        (lambda e: e.update(payloadType="application/json"), "payload"),
        (lambda e: e.update(signatures=[]), "at least one"),
        (lambda e: e.update(payload=5), "not a DSSE"),
        (lambda e: e.update(payload="%%%"), "cannot be read"),
        (lambda e: e["signatures"][0].pop("keyid"), "keyid"),
        (lambda e: e["signatures"][0].update(sig="%"), "cannot be read"),
        (lambda e: e["signatures"].append("x"), "keyid"),
    ],
    ids=["duplicate", "type", "unsigned", "number", "base64", "no-keyid", "sig", "string"],
)
def test_an_envelope_of_another_form_is_unusable(
    desk: Desk, capsys: Shown, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    desk.edit(change)
    assert main(desk.verify()) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000], ids=["empty", "cut", "list", "bytes", "deep"]
)
def test_what_is_no_envelope_is_unusable(desk: Desk, capsys: Shown, content: bytes) -> None:
    desk.envelope.write_bytes(content)
    assert main(desk.verify()) == 2
    assert "envelope" in capsys.readouterr().err
    assert main(["sign", str(desk.cert), "--model", str(desk.model), "--key", str(desk.private)]) == 2


def test_what_is_missing_is_named(desk: Desk, tmp_path: Path, capsys: Shown) -> None:
    cert, model, key = str(desk.cert), str(desk.model), str(desk.private)
    for command, words in (
        (["sign", cert, "--model", model], "no key"),
        (["sign", cert, "--key", key], "no model"),
        (["sign"], "no certificate"),
        (["sign", cert, "--model", model, "--key", str(tmp_path / "none.pem")], "cannot read the key"),
        (["sign", cert, "--model", model, "--key", str(desk.public)], "private key"),
        (["sign", model, "--model", model, "--key", key], "certificate"),
        (desk.verify("--signature", tmp_path / "none.json"), "cannot read the envelope"),
        ([*desk.verify()[:-1], key], "public key"),
        ([*desk.verify()[:-2], "--signature", str(desk.envelope)], "--key"),
    ):
        assert main(command) == 2, command
        message = capsys.readouterr().err
        assert words in message and "Traceback" not in message, message


def test_only_the_certified_files_are_signed(desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(MODEL + b"\0")
    with pytest.raises(MismatchError, match="model"):
        ce.sign(desk.cert, other, key=desk.private)
    with pytest.raises(MismatchError, match="firmware"):
        ce.sign(desk.cert, desk.model, key=desk.private, firmware=[other])
    with pytest.raises(MismatchError, match="proof"):
        ce.sign(desk.cert, desk.model, key=desk.private, proof=other)
    with pytest.raises(MismatchError, match="the model is not the certificate's"):
        ce.sign(desk.cert, desk.firmware, key=desk.private)
    with pytest.raises(MismatchError, match="the firmware is not the certificate's"):
        ce.sign(desk.cert, desk.model, key=desk.private, firmware=[desk.firmware, desk.model])
    whole = desk.cert.read_bytes()
    for damaged in (whole.replace(b'"unit": "pixel"', b'"unit": "pixem"'), json.dumps(json.loads(whole)).encode()):
        desk.cert.write_bytes(damaged)
        with pytest.raises(MismatchError, match="damaged"):
            ce.sign(desk.cert, desk.model, key=desk.private)


def test_a_condition_is_signed() -> None:
    """What is certified on a condition is signed on it; nothing is said of one where there is none."""
    record = decode(issue())
    assert statement(encode(record))["predicate"]["profile"] == {"name": "tflm"}
    record["profile"]["conditional_on"] = "the moon is full"
    about = statement(encode(seal(record)))
    assert about["predicate"]["profile"] == {"name": "tflm", "conditional_on": "the moon is full"}


def test_without_the_library_the_error_is_the_command_that_installs_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(desk.verify()) == 2
    assert "pip install 'cactus-edge[sign]'" in capsys.readouterr().err


def test_the_terminal_is_asked_where_there_is_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from cactus_edge.cli.sign import passphrase

    monkeypatch.delenv("CACTUS_EDGE_PASSPHRASE", raising=False)
    stdin = io.StringIO()
    monkeypatch.setattr("sys.stdin", stdin)
    assert passphrase("") == b""
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed")
    assert passphrase("?") == b"typed"
