"""Suites of the benches of methods: groups of rows in TOML, each row a recipe with some keys changed.

A group may take over the rows of another one (`rows_of`, "SUITE/GROUP" of the same bench; `only` those that begin so), change keys
of the recipe for all of its rows (`set`, before a row's own), and leave out what a paper says of them (`paper = false`). A row
with `all_channels` loses none of them, whatever its recipe says: for zeros among the weights instead.
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
GOALS = ("clean", "certified", "bytes", "ahead", "behind", "deviations")
GROUP_KEYS = {
    "key",
    "title",
    "recipe",
    "seeds",
    "best_samples",
    "judges",
    "transforms",
    "draws",
    "budget",
    "gpu",
    "shape",
    "goal",
    "expects",
    "row",
    "rows_of",
    "only",
    "set",
    "paper",
}
QUANTISERS = ("ours", "nncf", "nncf-qat")

ROW_KEYS = {"key", "role", "method", "quantiser", "recipe", "all_channels", "set", "paper", "seeds"}


@dataclass(frozen=True)
class Case:
    """One row: a method on a recipe. quantiser: one of QUANTISERS. role: what it counts as in the group's goals.

    seeds: how many, 0 for as many as the group has. paper: what a publication reports of it, mean and deviation in per cent by the row's
    own figure that it is compared with.
    """

    key: str
    role: str
    recipe: Recipe
    quantiser: str = QUANTISERS[0]
    paper: dict[str, list[float]] = dataclasses.field(default_factory=dict, hash=False)
    seeds: int = 0


@dataclass(frozen=True)
class Group:
    """Methods that are compared: the same data, radius and kept channels, as many epochs.

    judges: what a row is judged by (`_judges.JUDGES`), beside its clean accuracies: `judges(best_samples)` if the suite says
    nothing. budget: of `best`. transforms: of `cc-cert`, draws: in each of its
    ten estimates. gpu: without one its rows are an estimate, for which shape tells height,
    width, channels, training samples and classes. goal: at least this clean and certified accuracy (per cent) of ours, at most
    these bytes, so many points of certified accuracy ahead of every baseline, and at most so many behind the best uncompressed
    network; and figures at most so many of a paper's deviations from its own. expects: that `column` of `row` is at least `by`
    points above that of the row `above`, or above `at` per cent, which `above` says the origin of.
    """

    key: str
    title: str
    cases: tuple[Case, ...]
    seeds: int = 1
    judges: tuple[str, ...] = ()
    transforms: str = ""
    draws: int = 100
    budget: str = "2s"
    gpu: bool = False
    shape: tuple[int, int, int, int, int] | None = None
    goal: dict[str, float] = dataclasses.field(default_factory=dict)
    expects: tuple[dict[str, Any], ...] = ()


def judges(best_samples: int) -> tuple[str, ...]:
    """What certified training is judged by: the first samples by all engines, if there are any."""
    return ("certified", "attacked", *([f"best:{best_samples}"] if best_samples else []))


def load_suite(bench: str, name: str, only: list[str]) -> list[Group]:
    """The groups of bench/suites/BENCH-NAME.toml with the rows that begin as one of `only` (all for an empty list)."""
    path = SUITES / f"{bench}-{name}.toml"
    groups = [_group(table, path.name, bench) for table in _tables(path)]
    keys = [case.key for group in groups for case in group.cases]
    for text in only:
        if not any(key.startswith(text) for key in keys):
            raise InputError(f"no row of {path.name} begins with {text!r}", hint=", ".join(keys))
    if only:
        groups = [
            dataclasses.replace(g, cases=tuple(c for c in g.cases if c.key.startswith(tuple(only)))) for g in groups
        ]
    return [group for group in groups if group.cases]


def _tables(path: Path) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = tomllib.loads(path.read_text())["group"]
    return tables


def _rows(table: dict[str, Any], where: str, bench: str) -> list[dict[str, Any]]:
    """The group's own rows after those that it takes over."""
    own: list[dict[str, Any]] = table.get("row", [])
    if "rows_of" not in table:
        return own
    suite, _, group = table["rows_of"].partition("/")
    path = SUITES / f"{bench}-{suite}.toml"
    others = {t["key"]: t.get("row", []) for t in _tables(path)} if path.is_file() else {}
    if group not in others:
        raise InputError(f"{where}: rows_of = {table['rows_of']!r}", hint="SUITE/GROUP of this bench")
    taken = [row for row in others[group] if row["key"].startswith(tuple(table.get("only", [""])))]
    return [*taken, *own]


def _group(table: dict[str, Any], where: str, bench: str) -> Group:
    _known(table, GROUP_KEYS, f"{where}, group {table.get('key')}")
    _known(table.get("goal", {}), set(GOALS), f"{where}, goal of {table['key']}")
    for one in table.get("expects", []):
        _known(one, {"column", "row", "above", "at", "by"}, f"{where}, expects of {table['key']}")
    cases = []
    for row in _rows(table, where, bench):
        here = f"{where}, {table['key']}/{row.get('key')}"
        _known(row, ROW_KEYS, here)
        recipe = _recipe(row.get("recipe", table["recipe"]))
        if row.get("all_channels"):
            layers = tuple(dataclasses.replace(layer, kept=0) for layer in recipe.model.layer)
            recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, layer=layers))
        method = {"train": {"method": row.get("method", recipe.train.method)}}
        for changes in (table.get("set", {}), row.get("set", {}), method):
            recipe = changed(recipe, {section: dict(values) for section, values in changes.items()}, here)
        quantiser = row.get("quantiser", QUANTISERS[0])
        if quantiser not in QUANTISERS:
            raise InputError(f"{here}: quantiser = {quantiser!r}", hint=f"one of {', '.join(QUANTISERS)}")
        role, paper = row["role"], (row.get("paper", {}) if table.get("paper", True) else {})
        if role not in ROLES:
            raise InputError(f"{here}: role = {role!r}", hint=f"one of {', '.join(ROLES)}")
        cases.append(Case(f"{table['key']}/{row['key']}", role, recipe, quantiser, paper, row.get("seeds", 0)))
    rest = {
        key: table[key] for key in ("seeds", "transforms", "draws", "budget", "gpu", "shape", "goal") if key in table
    }
    rest["expects"] = tuple(table.get("expects", ()))
    rest["judges"] = tuple(table.get("judges", judges(table.get("best_samples", 0))))
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
