"""Regions as a user asks for them: radii in a list or a file, noise floors, patches, brightness and contrast; and chances."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certificate_kit import violations
from file_kit import Shown, refused

import cactus_edge as ce
from cactus_edge.api_regions import listed_eps, noise_floors, per_feature
from cactus_edge.cli import attached, main
from cactus_edge.errors import InputError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor
from cactus_edge.verify.families import Patch, tone

SHAPE = (4, 4, 2)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes by the mean of an image of 4 x 4 pixels and two channels; the domain is in the file."""
    build = GraphBuilder()
    scale = float(np.float32(1 / 255))
    first = build.input(Tensor("x", SHAPE, "int8", scale, -128))
    flat = build.node(ops.Reshape(), [first], Tensor("flat", (32,), "int8", scale, -128))
    weight = ops.freeze([[100] * 32, [-100] * 32], np.int8)
    bias = ops.freeze([-12750 * 32, 12750 * 32], np.int32)
    dense = ops.Dense(weight, bias, ops.freeze([np.float32(0.01)], np.float32), ops.Activation.NONE)
    last = build.node(dense, [flat], Tensor("y", (2,), "int8", float(np.float32(0.4))))
    path = tmp_path_factory.mktemp("image") / "model.tflite"
    path.write_bytes(
        write_tflite(build.finish(last), metadata={"cactus_edge": json.dumps({"domain": [0, 1]}).encode()})
    )
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Greys: dark, nearly even and bright."""
    x = np.stack([np.full(SHAPE, grey, np.float32) for grey in (0.1, 0.45, 0.52, 0.9)])
    np.savez(tmp_path / "images.npz", x=x, y=np.array([1, 1, 0, 0]))
    return tmp_path / "images.npz"


def certified(model: Path, data: Path, out: Path, *options: str) -> dict[str, Any]:
    """The certificate of these options, re-checked."""
    assert main(["certify", str(model), "--data", str(data), "--out", str(out), *options]) == 0
    record: dict[str, Any] = json.loads(out.read_text())
    assert violations(record) == []
    assert main(["verify", str(out), "--model", str(model), "--data", str(data)]) == 0
    return record


CASES: dict[str, tuple[list[str], dict[str, Any], int, str]] = {
    "patch": (["--patch", "2"], {"kind": "patch", "eps": "0", "patch": [2, 2]}, 2, "a patch of 2 x 2 pixels anywhere"),
    "patch in noise": (["--patch=1x2", "--eps", "1/255"], {"eps": "1/255", "patch": [1, 2]}, 2, "with eps 1/255"),
    "brightness": (["--brightness", "-0.03,0.1"], {"brightness": ["-3/100", "1/10"]}, 2, "brightness -3/100 to 1/10 ("),
    "contrast": (
        ["--contrast", "0.9,1.2"],
        {"contrast": ["9/10", "6/5"], "pivot": "0"},
        2,
        "contrast 9/10 to 6/5 around 0",
    ),
    "both": (
        ["--brightness=0,0.01", "--contrast=0.5,2", "--pivot", "mean", "--cells", "3"],
        {"cells": 3, "pivot": "mean"},
        4,
        "(cells: 3)",
    ),
    "a list": (["--eps", "0.04,1/25"], {"kind": "box", "eps": ["1/25"] * 32}, 3, "each of 32 features"),
}


@pytest.mark.parametrize("case", CASES)
def test_regions(case: str, image_model: Path, images: Path, tmp_path: Path, capsys: Shown) -> None:
    options, expected, count, said = CASES[case]
    record = certified(image_model, images, tmp_path / "cert.json", *options)
    assert {key: record["region"][key] for key in expected} == expected
    assert record["region"]["domain"] == ["0", "1"]
    assert record["verdict"]["certified"] == count and record["verdict"]["correct"] == 4
    assert said in capsys.readouterr().out


def test_attacks_on_families(image_model: Path, images: Path, tmp_path: Path, capsys: Shown) -> None:
    """The counterexamples stand in the certificate, which needs no proof file."""
    for options in (["--patch=2"], ["--brightness=-0.03,0.1"], ["--contrast=0.9,1.2", "--eps=0.005"]):
        record = certified(image_model, images, tmp_path / "cert.json", "--attack", *options)
        assert set(record["counterexamples"]) == {"1", "2"} and record["verdict"]["certified"] == 2
        shown = capsys.readouterr().out
        assert "refuted      2 of 4 (50.00%) of those right" in shown and "open         0 of 4" in shown
        assert record["bounds"] == "interval"
    record = certified(image_model, images, tmp_path / "cert.json", "--attack", "--patch=2", "--bounds=linear")
    assert set(record["counterexamples"]) == {"1", "2"} and record["bounds"] == "proof"


def test_one_perturbation_for_all(image_model: Path, images: Path, tmp_path: Path, capsys: Shown) -> None:
    """What is too bright and what is too dark cannot both be undone by one perturbation."""
    record = certified(image_model, images, tmp_path / "cert.json", "--eps", "0.06", "--universal")
    assert (record["universal"]["at_least"], record["universal"]["at_most"]) == (2, 3)
    shown = capsys.readouterr().out
    assert "2 labels at least" in shown and "3 at most" in shown


def test_the_cells_are_as_few_as_certify_most(image_model: Path, images: Path, tmp_path: Path) -> None:
    ranges = ["--brightness", "-0.03,0.03", "--contrast", "0.97,1.03", "--pivot", "0.5"]
    found = certified(image_model, images, tmp_path / "cert.json", *ranges)
    cells = found["region"]["cells"]
    assert cells in (1, 2, 4, 8, 16)
    for other in (cells // 2, 2 * cells):
        if other:
            verdict = certified(image_model, images, tmp_path / "other.json", *ranges, f"--cells={other}")["verdict"]
            assert (verdict["certified"] < found["verdict"]["certified"]) == (other < cells)


def test_radii_in_a_file(image_model: Path, images: Path, tmp_path: Path) -> None:
    radii = np.zeros(SHAPE)
    radii[1, 2, 0], radii[3, 3, 1] = 0.25, 0.5
    np.savez(tmp_path / "radii.npz", eps=radii)
    record = certified(image_model, images, tmp_path / "cert.json", "--eps", str(tmp_path / "radii.npz"))
    assert record["region"]["eps"] == [str(Fraction(e)) for e in radii.ravel()]
    np.savez(tmp_path / "radii.npz", eps=radii > 0)
    with pytest.raises(InputError, match="is bool, expected numbers"):
        listed_eps(str(tmp_path / "radii.npz"))


NOISE = """
[[channel]]
name = "red"
eps = 0.01
[[channel]]
counts = 3
count = "1/1024"
"""


def test_noise_floors(image_model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "floors.toml").write_text(NOISE)
    record = certified(image_model, images, tmp_path / "cert.json", "--noise", str(tmp_path / "floors.toml"))
    assert record["region"]["eps"] == ["1/100", "3/1024"] * 16
    assert record["notes"]["noise"] == "floors of the channels, added to eps: red: 1/100, 1: 3/1024"
    both = certified(image_model, images, tmp_path / "both.json", f"--noise={tmp_path / 'floors.toml'}", "--eps=0.01")
    assert both["region"]["eps"] == ["1/50", str(Fraction(3, 1024) + Fraction(1, 100))] * 16
    floors = noise_floors(tmp_path / "floors.toml")
    assert per_feature([1], floors, (2,)) == [Fraction(101, 100), 1 + Fraction(3, 1024)]
    assert per_feature(["1/2", 1], (), (3, 2)) == [Fraction(1, 2), 1] * 3
    assert per_feature([1] * 6, floors, (3, 2))[3] == 1 + Fraction(3, 1024)
    assert per_feature([2], (floors[0], floors[0]), (3, 2)) == [Fraction(201, 100)]
    with pytest.raises(InputError, match="2 channels, expected 3"):
        per_feature([1], floors, (3,))
    with pytest.raises(InputError, match="5 values of eps"):
        per_feature([1] * 5, floors, (3, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds nothing"),
        ("eps = 1", "holds eps"),
        ("[channel]\neps = 1", "holds channel"),
        ("[[channel]]\nname = 'x'", "channel 0 has nothing"),
        ("[[channel]]\neps = 1\n[[channel]]\neps = 1\ncounts = 2", "channel 1 has counts, eps"),
        ("[[channel]]\neps = -1", "no less than 0"),
        ("[[channel]]\neps = true", "expected a number"),
        ("[[channel]]\neps = inf", "finite number"),
        ("[[channel]\n", "floors.toml"),
        ("\udcff", "floors.toml"),
    ],
)
def test_noise_files_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "floors.toml").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=said):
        noise_floors(tmp_path / "floors.toml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing says what may change"),
        (["--patch=2", "--brightness=-1,1"], "no exact family"),
        (["--patch=2y"], "pixels a side"),
        (["--patch=1x2x3"], "pixels a side"),
        (["--patch=9"], "on an image of 4 x 4"),
        (["--brightness=1"], "two numbers"),
        (["--brightness=0.1,0.2"], "the sample itself"),
        (["--contrast=x,2"], "contrast is 'x'"),
        (["--contrast=0,2", "--cells=-1"], "cells"),
        (["--eps=1/16", "--pivot=mean"], "--contrast"),
        (["--eps=1/16,1/8,1/4"], "3 values of eps for 32 features"),
        (["--noise=nowhere.toml"], "nowhere.toml"),
        (["--eps=nowhere.npz"], "nowhere.npz"),
        (["--patch=2", "--universal"], "is one of a ball"),
        (["--patch=2", "--attack", "--profile=litert-ref,tflm"], "several"),
        (["--semantic=blur", "--eps=1"], "no use for --eps"),
        (["--semantic=blur", "--max-eps"], "no use for --max-eps"),
        (["--max-eps", "--universal"], "no use for --universal"),
        (["--semantic=swirl"], "is no transform"),
        (["--semantic=blur", "--confidence=2"], "between 0 and 1"),
        (["--semantic=blur", "--confidence=1"], "between 0 and 1"),
        (["--semantic=blur", "--confidence=0"], "between 0 and 1"),
        (["--semantic=blur", "--samples=0"], "samples"),
        (["--semantic=blur", "--seed=-1"], "seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_refused(
    options: list[str], said: str, image_model: Path, images: Path, tmp_path: Path, capsys: Shown
) -> None:
    command = ["certify", str(image_model), "--data", str(images), "--out", str(tmp_path / "cert.json"), *options]
    refused(command, capsys, said)
    assert not (tmp_path / "cert.json").exists()


def test_values_that_begin_with_a_minus() -> None:
    assert attached(["--brightness", "-0.1,0.1", "--domain", "-1,1"]) == ["--brightness=-0.1,0.1", "--domain=-1,1"]
    kept = ["certify", "-h", "--eps", "1", "--attack", "--out", "x", "-.5"]
    assert attached(kept) == kept


def test_in_python(image_model: Path, images: Path) -> None:
    held = np.load(images)
    one = ce.certify(image_model, held["x"], held["y"], region=Patch(2, 2))
    assert one.record["region"]["kind"] == "patch"
    other = ce.certify(
        image_model, held["x"], held["y"], region=tone(brightness=("-0.01", "0.01")), eps="1/255", threads=2
    )
    assert other.record["region"]["cells"] >= 1 and other.record["region"]["eps"] == "1/255"
    with pytest.raises(InputError, match="nothing says"):
        ce.certify(image_model, held["x"], held["y"])


def test_chances_are_labelled_probabilistic_and_no_certificate(
    image_model: Path, images: Path, tmp_path: Path, capsys: Shown
) -> None:
    command = ["certify", str(image_model), "--data", str(images), "--semantic", "brightness=0.02,rotation+blur"]
    assert main([*command, "--samples", "30", "--out", str(tmp_path / "one.json")]) == 0
    shown = capsys.readouterr().out
    for line in ("probabilistic", "brightness=0.02", "rotation=10+blur=1"):
        assert line in shown
    assert shown.count("probabilistically certified: ") == 2
    report = json.loads((tmp_path / "one.json").read_text())
    assert report["format"] == "cactus-edge probabilistic report" and report["meaning"].startswith("probabilistic")
    assert [t["probabilistically_certified"] for t in report["transforms"]] == [3, 4]
    assert main([*command, "--samples", "30", "--out", str(tmp_path / "two.json"), "--require", "76"]) == 1
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert main([*command, "--samples=30", "--seed=1", f"--out={tmp_path / 'three.json'}", "--require=75"]) == 0
    other = json.loads((tmp_path / "three.json").read_text())
    assert (report["seed"], other["seed"]) == (0, 1) and report["domain"] == ["0", "1"], "the file's own"
    assert [t["losses"] for t in other["transforms"]] != [t["losses"] for t in report["transforms"]]
    refused(["verify", str(tmp_path / "one.json"), f"--model={image_model}", f"--data={images}"], capsys, "certificate")
