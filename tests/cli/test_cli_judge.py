"""`build` with [certify] semantic: the probabilistic report and the certificates of exact forms, beside the certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cactus_edge.cli import main
from cactus_edge.errors import InputError
from cactus_edge.recipe import parse_recipe
from cactus_edge.report.results import BuildResults
from cactus_edge.semantic_report import exact_form
from cactus_edge.semantics import transforms
from cactus_edge.verify.families import Tone

Shown = pytest.CaptureFixture[str]

RECIPE = """\
name = "judged"

[data]
set = "digits"
validation_samples = 300
test_samples = 300

[model]
[[model.layer]]
kind = "conv"
channels = 4
stride = 2

[train]
method = "csam-channels"
objective = "semantic"
mutations = "brightness=0.1,blur"
eps = 0
epochs = 2
warmup_epochs = 0
batch = 32
learning_rate = 0.02
robust_weight = 0.5

[compress]
keep = 0.5
finetune_epochs = 3
learning_rate = 0.01

[quantise]
calibration = "min-max"

[certify]
eps = "1/255"
samples = 40
semantic = "brightness=0.05,blur=0.5+contrast=0.1"
semantic_samples = 8
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The build for a target, made once."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "judged.toml").write_text(RECIPE)
    made: dict[str, Path] = {}

    def bundle(target: str) -> Path:
        if target not in made:
            made[target] = folder / target
            command = ["build", "--target", target, "--recipe", str(folder / "judged.toml")]
            assert main([*command, "--out", str(made[target])]) == 0
        return made[target]

    return bundle


@pytest.mark.parametrize(
    ("target", "file"), [("raspberry-pi", "model.tflite"), ("jetson", "model-ort.onnx")], ids=["pi", "jetson"]
)
def test_a_build_judges_its_file_under_transforms(
    bundles: Callable[[str], Path], target: str, file: str, capsys: Shown
) -> None:
    folder = bundles(target)
    report = json.loads((folder / "probabilistic.json").read_text())
    assert report["meaning"].startswith("probabilistic") and report["threshold"] == 1e-4
    assert [t["transform"] for t in report["transforms"]] == ["brightness=0.05", "blur=0.5+contrast=0.1"]
    assert all(t["samples"] == 8 for t in report["transforms"])
    assert len(np.load(folder / "judged.npz")["y"]) == 8
    certificate = json.loads((folder / "certificate-brightness-0.05.json").read_text())
    assert certificate["region"]["brightness"] == ["-1/20", "1/20"]
    assert certificate["model"]["sha256"] == report["model_sha256"]
    rows = BuildResults.from_json((folder / "results.json").read_text()).semantics
    assert [row.name for row in rows] == ["brightness=0.05", "blur=0.5+contrast=0.1"]
    assert all(row.value.startswith("probabilistic: ") and file in row.value for row in rows)
    assert "deterministic" in rows[0].value and "deterministic" not in rows[1].value
    page = (folder / "report.html").read_text()
    assert "no part of any certificate" in page and "brightness=0.05" in page
    capsys.readouterr()
    command = ["verify", str(folder / "certificate-brightness-0.05.json"), "--model", str(folder / file)]
    assert main([*command, "--data", str(folder / "judged.npz")]) == 0


def test_exact_forms_hold_what_is_drawn() -> None:
    """Every draw of brightness and of contrast alone is a member of the family that is certified; a narrower one is seen."""
    image = np.random.default_rng(0).random((4, 4, 1)) * 0.4 + 0.3
    for text in ("brightness=0.1", "contrast=0.2"):
        (transform,) = transforms(text)
        family = exact_form(transform, (0, 2))  # type: ignore[arg-type]
        assert isinstance(family, Tone)
        whole, narrow = (_ends(image, f) for f in (family, _halved(family)))
        drawn = transform.draw(image, 200, (0, 2), np.random.default_rng(1))
        assert (drawn >= whole[0]).all() and (drawn <= whole[1]).all()
        assert not ((drawn >= narrow[0]).all() and (drawn <= narrow[1]).all())
    assert all(exact_form(t, (0, 1)) is None for t in transforms("blur,rotation,brightness+contrast"))  # type: ignore[arg-type]


def _halved(family: Tone) -> Tone:
    b, c = family.brightness, family.contrast
    return Tone((b[0] / 2, b[1] / 2), ((1 + c[0]) / 2, (1 + c[1]) / 2), family.pivot)


def _ends(image: np.ndarray, family: Tone) -> tuple[np.ndarray, np.ndarray]:
    cut = Tone(family.brightness, family.contrast, family.pivot, 1)
    low, high, _ = cut.moved(image[None], np.zeros(1, np.intp), np.zeros(1, np.intp))
    return low[0], high[0]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('semantic = "brightness=0.05,blur=0.5+contrast=0.1"\n', "", "semantic_samples = 8 without semantic"),
        ("brightness=0.05,", "swirl,", "'swirl' is no transform"),
        ("semantic_samples = 8", "semantic_samples = -1", "integer in"),
    ],
    ids=["none", "unknown", "negative"],
)
def test_keys_that_mean_nothing_are_refused(old: str, new: str, told: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_recipe(RECIPE.replace(old, new), "judged.toml")
    assert told in refused.value.message and refused.value.message.startswith("judged.toml:")
