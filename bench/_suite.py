"""Suites of `train_methods`: groups of rows in TOML, each row a recipe with some keys changed.

A row with `all_channels` loses none of them, whatever its recipe says: for zeros among the weights instead.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from _common import ROOT

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe, load_recipe

SUITES = ROOT / "bench" / "suites"
ROLES = ("ours", "baseline", "uncompressed", "control")
GOALS = ("clean", "certified", "bytes", "ahead", "behind")
GROUP_KEYS = {"key", "title", "recipe", "seeds", "best_samples", "budget", "gpu", "shape", "goal", "row"}
ROW_KEYS = {"key", "role", "method", "quantiser", "recipe", "all_channels", "set"}


@dataclass(frozen=True)
class Case:
    """One row: a method on a recipe. quantiser: "ours" or "nncf". role: what it counts as in the group's goals."""

    key: str
    role: str
    recipe: Recipe
    quantiser: str = "ours"


@dataclass(frozen=True)
class Group:
    """Methods that are compared: the same data, radius and kept channels, as many epochs.

    best_samples, budget: of `best`. gpu: without one its rows are an estimate, for which shape tells height, width, channels,
    training samples and classes. goal: at least this clean and certified accuracy
    (per cent) of ours, at most these bytes, so many points of certified accuracy ahead of every baseline, and at most so many
    behind the best uncompressed network.
    """

    key: str
    title: str
    cases: tuple[Case, ...]
    seeds: int = 1
    best_samples: int = 0
    budget: str = "2s"
    gpu: bool = False
    shape: tuple[int, int, int, int, int] | None = None
    goal: dict[str, float] = dataclasses.field(default_factory=dict)


def load_suite(name: str, only: list[str]) -> list[Group]:
    """The groups of bench/suites/train-methods-NAME.toml with the rows that begin as one of `only` (all for an empty list)."""
    path = SUITES / f"train-methods-{name}.toml"
    groups = [_group(table, path.name) for table in tomllib.loads(path.read_text())["group"]]
    keys = [case.key for group in groups for case in group.cases]
    for text in only:
        if not any(key.startswith(text) for key in keys):
            raise InputError(f"no row of {path.name} begins with {text!r}", hint=", ".join(keys))
    if only:
        groups = [
            dataclasses.replace(g, cases=tuple(c for c in g.cases if c.key.startswith(tuple(only)))) for g in groups
        ]
    return [group for group in groups if group.cases]


def _group(table: dict[str, Any], where: str) -> Group:
    _known(table, GROUP_KEYS, f"{where}, group {table.get('key')}")
    _known(table.get("goal", {}), set(GOALS), f"{where}, goal of {table['key']}")
    cases = []
    for row in table["row"]:
        here = f"{where}, {table['key']}/{row.get('key')}"
        _known(row, ROW_KEYS, here)
        recipe = _recipe(row.get("recipe", table["recipe"]))
        if row.get("all_channels"):
            layers = tuple(dataclasses.replace(layer, kept=0) for layer in recipe.model.layer)
            recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, layer=layers))
        changes = {section: dict(values) for section, values in row.get("set", {}).items()}
        changes.setdefault("train", {})["method"] = row.get("method", recipe.train.method)
        recipe = changed(recipe, changes, here)
        role = row["role"]
        if role not in ROLES:
            raise InputError(f"{here}: role = {role!r}", hint=f"one of {', '.join(ROLES)}")
        cases.append(Case(f"{table['key']}/{row['key']}", role, recipe, row.get("quantiser", "ours")))
    rest = {key: table[key] for key in GROUP_KEYS & set(table) - {"key", "title", "recipe", "row"}}
    return Group(table["key"], table["title"], tuple(cases), **rest)


def _known(table: dict[str, Any], keys: set[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise InputError(f"{where}: unknown key {key!r}", hint=f"one of {', '.join(sorted(keys))}")


def _recipe(name: str) -> Recipe:
    file = SUITES / name
    return load_recipe(file if file.suffix == ".toml" and Path(file).is_file() else name)


def changed(recipe: Recipe, changes: dict[str, dict[str, Any]], where: str) -> Recipe:
    """The recipe with other values of some keys, by section. Raises InputError for a key that is not there."""
    for section, values in changes.items():
        record = getattr(recipe, section, None)
        known = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)} if record is not None else {}
        for key, value in values.items():
            if key not in known:
                raise InputError(f"{where}: a recipe has no [{section}] {key}", hint=f"one of {', '.join(known)}")
            values[key] = _as(known[key], value)
        recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(record, **values)})
    return recipe


def _as(old: Any, value: Any) -> Any:
    if isinstance(old, Fraction):
        return Fraction(value)
    return tuple(value) if isinstance(value, list) else value
