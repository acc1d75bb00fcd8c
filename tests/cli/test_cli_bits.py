"""Widths of weights within a budget: from the recipe to the file, the C, the firmware and the words about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_kit import Shown, build_command, refused

from cactus_edge.cli import main
from cactus_edge.formats.nibbles import weight_bytes
from cactus_edge.ir import ops
from cactus_edge.report.results import BuildResults
from cactus_edge.verify.tflite_read import read_tflite

BUDGET = 600


@pytest.fixture(scope="module")
def budgeted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe with a budget that not every layer in 8 bits fits."""
    path = tmp_path_factory.mktemp("budgeted") / "budgeted.toml"
    path.write_text(recipe.read_text() + f"[quantise]\nweight_bytes = {BUDGET}\n")
    return path


def test_a_budget_goes_through_the_whole_chain(budgeted: Path, tmp_path: Path, capsys: Shown) -> None:
    out = tmp_path / "out"
    assert main(build_command(budgeted, out, "--quiet")) == 0
    shown, manifest = capsys.readouterr().out, json.loads((out / "manifest.json").read_text())
    nodes = read_tflite((out / "model.tflite").read_bytes()).graph.nodes
    layers = [node.op for node in nodes if isinstance(node.op, ops.Conv2d | ops.Dense)]
    chosen, taken = manifest["weight_bits"], sum(weight_bytes(op) + op.bias.nbytes for op in layers)
    assert chosen["weight_bits"] == [op.weight_bits for op in layers] and 4 in chosen["weight_bits"]
    assert chosen["bytes"] == taken <= chosen["budget"] == BUDGET
    widths = ", ".join(map(str, chosen["weight_bits"]))
    assert f"{widths} bits: {taken:,} of 600 bytes" in manifest["gains"]["Widths of weights"]
    assert f"widths of weights  {widths} bits" in shown and f"{widths} bits" in (out / "report.html").read_text()
    results = BuildResults.from_json((out / "results.json").read_text())
    assert len(results.agreement) == 2 and all(a.mismatches == 0 for a in results.agreement)  # TFLM, and our C
    assert results.device is not None and results.device.equal == results.device.compared == 5


@pytest.mark.parametrize(
    ("target", "old", "new", "words"),
    [
        pytest.param("jetson", "", "", "weight_bytes = 600 gains nothing on", id="jetson"),
        pytest.param("mcu", str(BUDGET), "99", "weight_bytes = 99: weights as narrow as they can be", id="budget"),
        pytest.param("mcu", "[compress]", "method = 'small'\n[compress]", "method 'small' has none", id="method"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    budgeted: Path, tmp_path: Path, capsys: Shown, target: str, old: str, new: str, words: str
) -> None:
    path = tmp_path / "changed.toml"
    path.write_text(budgeted.read_text().replace(old, new) if old else budgeted.read_text())
    refused(build_command(path, tmp_path / "out", f"--target={target}"), capsys, words, "try: ")
    assert not list(tmp_path.glob("out/.train/*"))
