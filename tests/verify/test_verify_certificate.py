"""Certificates: what is written is recomputed; one flipped bit, another model, data, profile, radius or firmware is rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from certificate_kit import BLOB, GRAPH, MODEL, TFLITE, X, Y, elf, issue, network, recheck

from cactus_edge.errors import CertificateError, DataError, MismatchError
from cactus_edge.formats.tflite import read_tflite, write_tflite
from cactus_edge.verify import certificate as module
from cactus_edge.verify import recheck as unbound
from cactus_edge.verify.certificate import add_firmware, decode, encode, seal
from cactus_edge.verify.decide import certify
from cactus_edge.verify.recheck import Report
from cactus_edge.verify.regions import Region, exact

CERTIFICATE = issue(firmware=[("board", elf(b"code" + BLOB))])


def failed(report: Report) -> set[str]:
    assert not report.accepted
    return {c.name for c in report.checks if c.state == "failed"}


def resealed(change: Callable[[dict[str, Any]], object], source: bytes = CERTIFICATE) -> bytes:
    """The certificate after `change`, with a digest that fits again: a lie instead of an accident."""
    record = json.loads(source)
    change(record)
    return encode(seal(record))


def test_what_is_issued_is_accepted_and_says_what_was_proved() -> None:
    report = recheck(CERTIFICATE, MODEL, X, Y, firmware=elf(b"code" + BLOB), eps="0.015625", profile="tflm")
    assert report.accepted
    verdict = report.record["verdict"]
    assert 0 < verdict["certified"] <= verdict["correct"] == 39
    flags = np.unpackbits(np.frombuffer(bytes.fromhex(verdict["certified_bits"]), np.uint8))[:40]
    assert flags.sum() == verdict["certified"] and not flags[0]
    assert {c.name for c in report.checks if c.state == "not checked"} == {
        *("tool", "created", "unit", "notes"),
        "firmware 0: target",
    }
    assert report.record["region"] == {"kind": "linf", "eps": "1/64", "domain": ["0", "1"]}
    assert {f["op"] for f in report.record["overflow"]} == {"Dense"}


def test_issuing_is_deterministic_and_threads_do_not_matter() -> None:
    assert issue() == issue(decide=partial(certify, threads=3))
    assert issue(created="") != issue()


def test_one_eps_per_feature_is_a_box() -> None:
    source = issue(eps=["1/64", "0", "1/100", "0", "0", "0.5"])
    report = recheck(source, MODEL, X, Y)
    assert report.accepted and report.record["region"]["kind"] == "box"


def test_every_flipped_bit_is_rejected() -> None:
    for i in range(len(CERTIFICATE)):
        for bit in range(8):
            flipped = bytearray(CERTIFICATE)
            flipped[i] ^= 1 << bit
            try:
                report = recheck(bytes(flipped), MODEL, X, Y)
            except CertificateError:
                continue
            assert not report.accepted


def test_the_flip_test_sees_a_missing_digest_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the digest and the canonical form, a changed unit (which nothing recomputes) would pass."""
    changed = CERTIFICATE.replace(b'"unit": "pixel"', b'"unit": "pixem"')
    assert failed(recheck(changed, MODEL, X, Y)) == {"the file is intact"}
    monkeypatch.setattr(unbound, "encode", lambda record: changed)
    assert recheck(changed, MODEL, X, Y).accepted


@pytest.mark.parametrize("cut", [0, 1, 100, len(CERTIFICATE) - 3])
def test_a_truncated_certificate_is_unusable(cut: int) -> None:
    with pytest.raises(CertificateError):
        recheck(CERTIFICATE[:cut], MODEL, X, Y)


def test_another_spelling_of_the_same_json_is_rejected() -> None:
    record = json.loads(CERTIFICATE)
    for text in (json.dumps(record), json.dumps(record, sort_keys=True, indent=1), CERTIFICATE.decode() + " "):
        assert failed(recheck(text.encode(), MODEL, X, Y)) == {"the file is intact"}
    twice = CERTIFICATE.replace(b'"unit": "pixel"', b'"unit": "pixel",\n "unit": "pixel"')
    assert failed(recheck(twice, MODEL, X, Y)) == {"the file is intact"}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"{}", b"null", b'"x"', b"{" * 5000, b"[" * 100_000, b'{"format": "cactus-edge certificate"}',
     b'{"format": "cactus-edge certificate", "version": 2}', b'{"format": "cactus-edge certificate", "version": 1}',
     b'{"format": "cactus-edge certificate", "version": NaN}', b"1" * 10_000,
     b'{"format": "cactus-edge certificate", "version": 1, "a": 1.5}'],
)  # fmt: skip
def test_what_is_no_certificate_is_unusable(content: bytes) -> None:
    with pytest.raises(CertificateError):
        recheck(content, MODEL, X, Y)


def test_another_model_is_rejected() -> None:
    other = write_tflite(network(bias=1), metadata={})
    assert failed(recheck(CERTIFICATE, other, X, Y)) == {"model.sha256"}
    for i in range(0, len(MODEL), 7):
        flipped = bytearray(MODEL)
        flipped[i] ^= 1 << i % 8
        assert failed(recheck(CERTIFICATE, bytes(flipped), X, Y)) == {"model.sha256"}
        # The same with a certificate that claims the changed file: whatever that file says, this proof is not its proof.
        digest = module.hashlib.sha256(bytes(flipped)).hexdigest()
        lie = resealed(lambda r, d=digest: r["model"].update(sha256=d))  # type: ignore[misc]
        report = recheck(lie, bytes(flipped), X, Y)
        if not report.accepted:
            continue
        # Bytes that no reader looks at (names, padding) may change: then everything that was proved is still so.
        assert read_tflite(bytes(flipped)).graph.digest() == GRAPH.digest()


@pytest.mark.parametrize("x", [X + np.float32(2**-20), X.astype(np.float64), X[:39], X[::-1]])
def test_another_data_set_is_rejected(x: Any) -> None:
    assert "data.sha256" in failed(recheck(CERTIFICATE, MODEL, x, Y[: len(x)]))


def test_other_labels_are_rejected_and_wrong_ones_unusable() -> None:
    assert failed(recheck(CERTIFICATE, MODEL, X, (Y + 1) % 3)) == {"data.sha256"}
    with pytest.raises(DataError):
        recheck(CERTIFICATE, MODEL, X, Y.astype(np.float32))


def test_what_the_reader_asked_for_must_be_what_was_proved() -> None:
    assert failed(recheck(CERTIFICATE, MODEL, X, Y, eps="1/32")) == {"the eps asked for"}
    assert failed(recheck(CERTIFICATE, MODEL, X, Y, profile="xnnpack")) == {"the profile asked for"}


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a larger eps": (lambda r: r["region"].update(eps="1/4"), "verdict.certified_bits"),
    "an eps of another form": (lambda r: r["region"].update(eps="2/128"), "region.eps"),
    "an eps above the range": (lambda r: r["region"].update(eps="2"), "the proof"),
    "an eps that explodes": (lambda r: r["region"].update(eps="1e999999999"), "the proof"),
    "a domain that cuts the data": (lambda r: r["region"].update(domain=["0", "1/2"]), "the proof"),
    "a kind that it is not": (lambda r: r["region"].update(kind="box"), "region.kind"),
    "an unknown profile": (lambda r: r["profile"].update(name="tflx"), "the proof"),
    "another row": (lambda r: r["profile"].update(sha256="0" * 64), "profile.sha256"),
    "another table": (lambda r: r["profile"].update(table_sha256="0" * 64), "the table of runtimes' arithmetics"),
    "no table": (lambda r: r["profile"].pop("table_sha256"), "the table of runtimes' arithmetics"),
    "one more sample": (lambda r: r["data"].update(samples=41), "data.samples"),
    "another rule": (lambda r: r.update(rule="last-maximum/1"), "rule"),
    "a smaller bound": (lambda r: r["overflow"][0].update(bound=1), "overflow"),
    "a proof left out": (lambda r: r["overflow"].pop(), "overflow"),
    "all certified": (lambda r: r["verdict"].update(certified=40), "verdict.certified"),
    "a bit more": (lambda r: r["verdict"].update(certified_bits="f" + r["verdict"]["certified_bits"][1:]), "verdict.certified_bits"),
    "a number as text": (lambda r: r["verdict"].update(correct="39"), "verdict.correct"),
    "another blob": (lambda r: r["model"].update(blob_sha256="0" * 64), "model.blob_sha256"),
    "another graph": (lambda r: r["model"].update(graph_sha256="0" * 64), "model.graph_sha256"),
    "a group left out": (lambda r: r.pop("verdict"), "verdict.certified"),
    "a field too many": (lambda r: r["verdict"].update(robust=True), "verdict.robust"),
    "a group too many": (lambda r: r.update(guarantee=None), "guarantee"),
    "a group that is a list": (lambda r: r.update(verdict=[]), "verdict"),
    "a firmware of another blob": (lambda r: r["firmware"][0].update(blob_sha256="0" * 64), "firmware 0: blob"),
    "a claim beside a firmware": (lambda r: r["firmware"][0].update(verdict="40 of 40 certified"), "firmware 0: fields"),
    "a firmware without a target": (lambda r: r["firmware"][0].pop("target"), "firmware 0: fields"),
    "a firmware list that is none": (lambda r: r.update(firmware={}), "firmware"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_sealed_lie_is_rejected_by_name(lie: str) -> None:
    change, name = LIES[lie]
    assert name in failed(recheck(resealed(change), MODEL, X, Y))


def test_a_true_statement_about_another_radius_is_accepted() -> None:
    """The digest is no signature: whoever recomputes a smaller radius has proved that."""
    verdict = decode(issue(eps="1/128"))["verdict"]
    assert recheck(
        resealed(lambda r: (r["region"].update(eps="1/128"), r.update(verdict=verdict))), MODEL, X, Y
    ).accepted


def test_without_firmwares_image_nothing_is_said_of_firmware() -> None:
    """`verify` alone: the verdicts are checked, what they say of a blob is not; and an image that was handed in is not waved through."""
    report = unbound.recheck(CERTIFICATE, MODEL, X, Y)
    assert report.accepted
    assert {"model.blob_sha256", "firmware"} <= {c.name for c in report.checks if c.state == "not checked"}
    assert failed(unbound.recheck(CERTIFICATE, MODEL, X, Y, firmware=elf(b"code" + BLOB))) == {"firmware"}


def test_firmware_must_be_listed_and_hold_the_blob() -> None:
    good = elf(b"code" + BLOB)
    assert failed(recheck(CERTIFICATE, MODEL, X, Y, firmware=elf(b"Code" + BLOB))) == {"firmware: listed"}
    wrong = bytearray(good)
    wrong[84 + 4 + len(BLOB) // 2] ^= 1
    assert failed(recheck(CERTIFICATE, MODEL, X, Y, firmware=bytes(wrong))) == {
        "firmware: listed",
        "firmware: holds the blob",
    }
    assert "firmware: holds the blob" in failed(recheck(CERTIFICATE, MODEL, X, Y, firmware=b"not an ELF file"))
    unloaded = elf(b"code", trailing=BLOB)
    listed = resealed(lambda r: r["firmware"][0].update(sha256=module.hashlib.sha256(unloaded).hexdigest()))
    assert failed(recheck(listed, MODEL, X, Y, firmware=unloaded)) == {"firmware: holds the blob"}
    with pytest.raises(MismatchError, match="board"):
        issue(firmware=[("board", unloaded)])


def test_firmware_can_be_added_later() -> None:
    image = elf(b"later" + BLOB)
    bound = add_firmware(issue(), MODEL, [("mcu", image)], TFLITE)
    assert recheck(bound, MODEL, X, Y, firmware=image).accepted
    assert "not checked" in {c.state for c in recheck(bound, MODEL, X, Y).checks if c.name == "firmware"}
    with pytest.raises(MismatchError, match="another model"):
        add_firmware(issue(), write_tflite(network(1), metadata={}), [("mcu", image)], TFLITE)


def test_recheck_sees_a_defect_in_the_prover() -> None:
    """A certificate issued by a faulty prover (inward region) does not survive a sound recheck."""
    point = Region((exact(0, "eps"),), (exact(0, "lo"), exact(1, "hi")))
    wrong = issue(eps="1/16", decide=lambda program, region, x, labels: certify(program, point, x, labels))
    assert "verdict.certified" in failed(recheck(wrong, MODEL, X, Y))
