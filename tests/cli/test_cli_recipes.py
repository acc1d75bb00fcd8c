"""`recipes`: the catalogue, one recipe as TOML, JSON; and that every registered method and objective is in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from file_kit import Shown, refused

from cactus_edge import catalogue
from cactus_edge.cli import main
from cactus_edge.recipe import BUILT_IN, load_recipe, names, parse_recipe
from cactus_edge.train.data import load_dataset
from cactus_edge.train.loop import planned
from cactus_edge.train.methods import METHODS
from cactus_edge.train.objectives import OBJECTIVES


def test_the_table_names_every_recipe(capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["recipes"]) == 0
    rows, legend = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in rows.splitlines()[2:]] == list(names())
    digits = next(line for line in rows.splitlines() if line.startswith("digits "))
    assert "CACTUS, IBP" in digits and "90 epochs x 1,257 samples" in digits
    titles = [line.split("  ")[0] for line in legend.splitlines()]
    assert len(titles) == len(set(titles)) and "CACTUS" in titles and "2506.11992" in legend


def test_one_recipe_as_it_was_written(capsys: Shown, recipe: Path) -> None:
    for name, path in (("digits", BUILT_IN / "digits.toml"), (str(recipe), recipe)):
        assert main(["recipes", name]) == 0
        assert capsys.readouterr().out == path.read_text()
    assert main(["recipes", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == load_recipe("digits").to_json()
    refused(["recipes", "digit"], capsys, "no recipe is called 'digit'", "digits")
    refused(["recipes", "none.toml"], capsys, "cannot read the recipe")


def test_json_says_null_where_nothing_was_measured(capsys: Shown) -> None:
    assert main(["recipes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(names())
    assert all(row["minutes"] is None or row["minutes"] > 0 for row in rows)


def test_every_method_and_objective_is_in_the_catalogue() -> None:
    assert set(METHODS) <= set(catalogue.METHODS)
    assert set(OBJECTIVES) <= set(catalogue.OBJECTIVES)
    assert all(
        paper.title and paper.optimises for paper in (*catalogue.METHODS.values(), *catalogue.OBJECTIVES.values())
    )


def test_the_samples_are_those_trained_on() -> None:
    digits = load_recipe("digits")
    assert catalogue.row(digits).samples == len(load_dataset(digits.data).train.y)


def test_the_epochs_are_those_of_every_stage() -> None:
    for name in ("digits", "card-lrr-fmnist", "card-biprop-fmnist"):
        recipe = load_recipe(name)
        assert catalogue.row(recipe).epochs == sum(planned(recipe).values())
    lth = replace(recipe, train=replace(recipe.train, method="lth"), compress=replace(recipe.compress, rewind_epochs=2))
    assert catalogue.row(lth).epochs == sum(planned(lth).values())


def test_minutes_are_those_of_this_very_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_recipe("digits")

    def measured(digest: str, seconds: float) -> dict[str, object]:
        return {"provenance": {"digests": {"recipe": digest}}, "values": {"training_cpu_s": seconds}}

    rows = {f"cactus/{i}": measured(digits.digest(), s) for i, s in enumerate((60.0, 120.0, 600.0))}
    rows |= {"small/0": measured(digits.digest(), 1.0), "cactus/9": measured("0" * 64, 1.0)}
    (tmp_path / "digits.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(catalogue, "_results", lambda: tmp_path)
    assert catalogue.row(digits).minutes == 2.0
    assert catalogue.row(replace(digits, description="other")).minutes is None
    assert catalogue.row(digits).cells()[-1] == "2 min"
    assert parse_recipe(digits.to_toml(), "d") == digits
