"""`build` of a deck: one file, gate included, that runs on the emulated board as the interpreter says, and for the other targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_kit import Shown, build_command

from cactus_edge.cli import main
from cactus_edge.report.results import BuildResults

DECK = """
[quantise]
calibration = "min-max"
[deck]
gate = "spectral"
tile = 4
[[deck.card]]
scheme = "still"
seeds = [0]
[[deck.card]]
scheme = "gained"
seeds = [0]
[deck.card.train]
gain = 0.5
"""


@pytest.fixture(scope="module")
def deck_recipe(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cards of the tiny recipe, an epoch each."""
    path = tmp_path_factory.mktemp("deck") / "deck.toml"
    text = recipe.read_text().replace("epochs = 3", "epochs = 1").replace("ramp_epochs = 1\n", "")
    path.write_text(text.replace("warmup_epochs = 1", "warmup_epochs = 0").replace("finetune_epochs = 1", "") + DECK)
    return path


@pytest.fixture(scope="module")
def deck_bundle(deck_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle for the emulated board."""
    folder = tmp_path_factory.mktemp("bundle") / "deck-mcu"
    assert main(build_command(deck_recipe, folder, "--quiet")) == 0
    return folder


def test_one_file_runs_on_the_board(deck_bundle: Path) -> None:
    results = BuildResults.from_json((deck_bundle / "results.json").read_text())
    assert results.device is not None
    assert results.device.equal == results.device.compared == 5
    assert all(a.mismatches == 0 for a in results.agreement)
    assert [row.name for row in results.deck] == ["Deck", "Card 0", "Card 1", "Gate"]
    assert "one by one" in results.deck[-1].value
    assert "The file is a deck" in (deck_bundle / "report.html").read_text()


def test_the_manifest_names_cards_and_gate(deck_bundle: Path) -> None:
    deck = json.loads((deck_bundle / "manifest.json").read_text())["deck"]
    assert [(card["scheme"], card["method"], card["seed"]) for card in deck["cards"]] == [
        ("still", "cactus", 0),
        ("gained", "cactus", 0),
    ]
    assert sum(deck["gate"]["validation"]) + deck["gate"]["undecided"] == 100
    size = len((deck_bundle / "model.tflite").read_bytes())
    parts = sum(card["bytes"] for card in deck["cards"]) + deck["gate"]["bytes"] + deck["joint_bytes"]
    assert parts < size < parts + 20_000


@pytest.mark.parametrize("target", ["raspberry-pi", "jetson"])
def test_other_targets(deck_bundle: Path, deck_recipe: Path, target: str, tmp_path: Path, capsys: Shown) -> None:
    assert main(["build", f"--recipe={deck_recipe}", f"--target={target}", f"--out={tmp_path / 'out'}", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "2 cards in one file" in shown
    if target == "raspberry-pi":
        assert "under profile ort-arm64: certificate-ort-arm64.json" in shown


def test_a_run_is_one_network(deck_recipe: Path, tmp_path: Path, capsys: Shown) -> None:
    assert main(["train", f"--recipe={deck_recipe}", f"--out={tmp_path / 'run'}"]) == 2
    assert "is a deck, and a run is one network" in capsys.readouterr().err
