"""The published schemas: every kind of certificate meets them, no field may be missing, unknown or of another form.

Beside these, every certificate that any test makes is held against the schema (conftest).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from certificate_kit import BLOB, elf, issue, violations
from onnx_kit import classifier, symmetric

from cactus_edge.certify.find import find
from cactus_edge.certify.members import told
from cactus_edge.cli import main
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.formats.onnx.certified import ONNX
from cactus_edge.resources import SCHEMAS, schema
from cactus_edge.signing import statement
from cactus_edge.verify.certificate import FORMAT, UNCHECKED, VERSION, certify_file, decode
from cactus_edge.verify.families import tone


def conditional() -> bytes:
    """Of an ONNX file, under a profile that assumes something."""
    model = write_onnx(symmetric(classifier(0)), bias="float32", relu="sum")
    x, y = np.zeros((3, 4, 4, 2), np.float32), np.array([0, 1, 2])
    return certify_file(model, x, y, eps="1/64", domain=None, profile="tensorrt", form=ONNX).to_bytes()


KINDS = {
    "ball": issue,
    "box": lambda: issue(eps=["1/64", "0", "1/100", "0", "0", "0.5"]),
    "proof": lambda: issue(find=find),
    "radii": lambda: issue(eps=[Fraction(i, 255) for i in range(40)], per_sample=True, profile="litert-ref,tflm"),
    "tone": lambda: issue(family=tone(("-1/50", "1/50"), ("9/10", "11/10"), "mean", 4)),
    "counterexamples": lambda: issue(
        eps="1/64", family=tone(("-1/2", "1/2"), cells=2), tell=partial(told, members=True)
    ),
    "universal": lambda: issue(eps="1/8", tell=partial(told, delta=True)),
    "firmware": lambda: issue(firmware=[("board", elf(BLOB))], notes={"why": "test"}),
    "several": lambda: issue(profile="all"),
    "refuted": lambda: issue(find=partial(find, falsify=True), eps="1/8"),
    "conditional-onnx": conditional,
}


@pytest.fixture(scope="module", params=KINDS)
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A certificate of each kind."""
    return decode(KINDS[request.param]())


def parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all objects and of all their values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from parts(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:3]):
            yield from parts(inner, (*path, i))


def at(record: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        record = record[key]
    return record


FREE = ("notes", "members", "excluded", "each", "counterexamples")
"""Objects whose keys are names; members and excluded and each hold one entry at least, or none."""

OPTIONAL = ("blob_sha256", "format", "trusted", "conditional_on", "each", "counterexamples", "universal", "codes")


def test_every_kind_meets_the_schema(record: dict[str, Any]) -> None:
    assert violations(record) == []
    assert record["version"] == VERSION and record["format"] == FORMAT


def test_no_field_may_be_missing_or_of_another_type(record: dict[str, Any]) -> None:
    seen = 0
    for path in parts(record):
        changed = copy.deepcopy(record)
        at(changed, path[:-1])[path[-1]] = None
        assert violations(changed), path
        inside_free = len(path) > 1 and path[-2] in FREE
        top_optional = path[-1] in OPTIONAL and path != ("format",) and path[0] != "firmware"
        if inside_free or top_optional or not isinstance(path[-1], str):
            continue
        del at(changed, path[:-1])[path[-1]]
        assert violations(changed), path
        seen += 1
    assert seen > 30


def test_no_field_may_be_unknown(record: dict[str, Any]) -> None:
    for path in [(), *(p for p in parts(record) if isinstance(at(record, p), dict) and p[-1] not in FREE)]:
        changed = copy.deepcopy(record)
        at(changed, path)["surprise"] = "1"
        assert violations(changed), path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("version",), "1"),
        (("format",), "another certificate"),
        (("sha256",), "00"),
        (("model", "sha256"), "g" * 64),
        (("region", "eps"), "0.5"),
        (("region", "eps"), "1/0"),
        (("region", "kind"), "ball"),
        (("region", "domain"), ["0"]),
        (("data", "samples"), 0),
        (("verdict", "certified"), 1.5),
        (("verdict", "certified_bits"), "abc"),
        (("bounds",), "guess"),
        (("rule",), "last-maximum/1"),
    ],
    ids=str,
)
def test_a_value_of_another_form_is_told(path: tuple[str, ...], value: Any) -> None:
    changed = decode(issue())
    at(changed, path[:-1])[path[-1]] = value
    assert violations(changed)


def test_what_nothing_recomputes_says_so() -> None:
    described = json.loads(schema("certificate"))["properties"]
    assert {key for key, body in described.items() if "Not recomputed" in body.get("description", "")} == set(UNCHECKED)


def test_the_statement_of_every_kind_meets_its_schema() -> None:
    for make in KINDS.values():
        about = statement(make())
        assert violations(about, "statement") == []
        for path in [(), ("predicate",), ("predicate", "verdict"), ("subject", 0)]:
            changed = copy.deepcopy(about)
            at(changed, path)["surprise"] = "1"
            assert violations(changed, "statement"), path
        for path in parts(about):
            if path[-1] not in ("conditional_on", "refuted"):
                changed = copy.deepcopy(about)
                del at(changed, path[:-1])[path[-1]]
                assert violations(changed, "statement"), path


def test_the_verb_prints_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    for name in SCHEMAS:
        assert main(["schema", name]) == 0
        assert json.loads(capsys.readouterr().out)["$id"] == f"urn:cactus-edge:schema:{name}:1"
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(schema("certificate"))
