"""A build as data: TOML in, a validated frozen record out.

Every key says its unit; radii are exact rationals in sensor units. A key that is unknown, missing, of the wrong type or
out of range is an InputError that names the file, the line and, for a misspelt key, the nearest right one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from cactus_edge import recipe_values as takes
from cactus_edge.errors import InputError
from cactus_edge.recipe_deck import check_deck, with_training
from cactus_edge.recipe_model import NETS, BadLayerError, LayerRecipe, ModelRecipe, expanded, places
from cactus_edge.recipe_reader import Reader
from cactus_edge.recipe_sections import (
    TICKETS,
    CardRecipe,
    CertifyRecipe,
    ChannelRecipe,
    CompressRecipe,
    DataRecipe,
    DeckRecipe,
    QuantiseRecipe,
    TrainRecipe,
)

BUILT_IN = Path(__file__).resolve().parent / "recipes"
"""Folder of the recipes that ship with the package."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a build depends on besides the code. Equal digests describe equal builds."""

    name: Annotated[str, takes.title]
    data: DataRecipe
    model: ModelRecipe
    train: TrainRecipe
    certify: CertifyRecipe
    compress: CompressRecipe = field(default=CompressRecipe())
    quantise: QuantiseRecipe = field(default=QuantiseRecipe())
    description: Annotated[str, takes.text] = ""
    deck: DeckRecipe = field(default=DeckRecipe(), metadata=takes.LATER)

    def digest(self, *sections: str) -> str:
        """SHA-256 (hex) of the named sections, of all of them by default."""
        content = {s: _plain(getattr(self, s), _in_digest) for s in sections or self._sections()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def finetuning(self) -> Recipe:
        """The recipe with the objective and the optimiser of [compress] in [train]: what stages after the first train by."""
        compress, train = self.compress, self.train
        if compress.objective != "same":
            train = replace(train, objective=compress.objective)
        if compress.optimiser != "same":
            train = replace(train, optimiser=compress.optimiser, momentum=compress.momentum)
        return self if train is self.train else replace(self, train=train)

    def _sections(self) -> list[str]:
        return [f.name for f in fields(self) if _in_digest(f, self)]

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values; rationals are strings."""
        plain: dict[str, Any] = _plain(self, lambda field, record: True)
        return plain

    def to_toml(self) -> str:
        """The recipe as `parse_recipe` reads it, with the keys that are at their default.

        What is empty stands for no key, and a net's name for its layers.
        """
        short = replace(self, model=replace(self.model, layer=())) if self.model.net else self
        return takes.written(
            _plain(short, lambda field, record: getattr(record, field.name) not in ("", (), DeckRecipe()))
        )


def _plain(value: Any, kept: Callable[[Field[Any], Any], bool]) -> Any:
    if isinstance(value, takes.ChannelEps):
        return value.plain()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), kept) for f in fields(value) if kept(f, value)}
    if isinstance(value, tuple):
        return [_plain(v, kept) for v in value]
    return str(value) if isinstance(value, Fraction) else value


def _in_digest(f: Field[Any], record: Any) -> bool:
    return not ("undigested" in f.metadata or ("later" in f.metadata and getattr(record, f.name) == f.default))


_SECTIONS: dict[tuple[str, ...], type[Any]] = {
    ("data",): DataRecipe,
    ("data", "channel"): ChannelRecipe,
    ("model",): ModelRecipe,
    ("model", "layer"): LayerRecipe,
    ("train",): TrainRecipe,
    ("compress",): CompressRecipe,
    ("quantise",): QuantiseRecipe,
    ("certify",): CertifyRecipe,
    ("deck",): DeckRecipe,
    ("deck", "card"): CardRecipe,
    ("deck", "card", "train"): TrainRecipe,
}


def names() -> tuple[str, ...]:
    """The built-in recipes' names, sorted."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The built-in recipe of that name, or the one in that TOML file.

    Raises InputError with file and line for whatever is wrong with it.
    """
    text = str(name_or_path)
    if text in names():
        path = BUILT_IN / f"{text}.toml"
    elif isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        path = Path(name_or_path)
    else:
        near = difflib.get_close_matches(text, names(), n=1)
        hint = f"{near[0]}, or the path of a .toml file" if near else "the path of a .toml file"
        raise InputError(f"no recipe is called {text!r}; there are {', '.join(names())}", hint=hint)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read the recipe {path}: {error.strerror or error}", hint=f"one of {', '.join(names())}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text, at byte {error.start}", hint="save the recipe as UTF-8") from error
    recipe = parse_recipe(content, str(path))
    file, folder = (str(path.parent / name) if name else "" for name in (recipe.data.file, recipe.data.folder))
    model = (
        replace(recipe.model, folder=str(path.parent / recipe.model.folder)) if recipe.model.module else recipe.model
    )
    return replace(recipe, model=model, data=replace(recipe.data, file=file, folder=folder))


def parse_recipe(content: str, where: str) -> Recipe:
    """The recipe written in the TOML text `content`; `where` names it in messages. Raises InputError."""
    try:
        table = tomllib.loads(content, parse_float=Decimal)
    except (ValueError, RecursionError) as error:  # besides TOMLDecodeError: a number of thousands of digits, nesting
        line = re.search(r"line (\d+)", str(error))
        raise InputError(
            f"{where}:{line.group(1) if line else content.count(chr(10)) + 1}: not TOML: {error}",
            hint="compare with a built-in recipe",
        ) from error
    reader = Reader(where, content, _SECTIONS)
    recipe = _with_layers(reader, reader.record(Recipe, with_training(table)))
    _cross_check(reader, recipe)
    return recipe


def _with_layers(reader: Reader, recipe: Recipe) -> Recipe:
    """The recipe with the layers of the net that it names."""
    try:
        return replace(recipe, model=expanded(recipe.model))
    except takes.BadValueError as error:
        hint = f"net = {next(iter(NETS))!r}, or a [[model.layer]] table for each hidden layer"
        raise reader.error(("model", "net"), str(error), hint) from error


def _cross_check(reader: Reader, recipe: Recipe) -> None:
    """What one key alone cannot tell."""
    _check_data(reader, recipe.data)
    _check_training(reader, recipe, ("train",))
    compress = recipe.compress
    if recipe.certify.semantic_samples and not recipe.certify.semantic:
        raise reader.error(
            ("certify", "semantic_samples"),
            f"semantic_samples = {recipe.certify.semantic_samples} without semantic",
            'semantic = "rotation=10,blur"',
        )
    if compress.average_epochs > compress.finetune_epochs:
        raise reader.error(
            ("compress", "average_epochs"),
            f"average_epochs = {compress.average_epochs} exceeds finetune_epochs = {compress.finetune_epochs}",
            "average at most all of them",
        )
    _check_compression(reader, recipe)
    if recipe.quantise.weight_bytes and recipe.quantise.weight_bits != QuantiseRecipe.weight_bits:
        raise reader.error(
            ("quantise", "weight_bits"),
            f"weight_bits stands beside weight_bytes = {recipe.quantise.weight_bytes}, which chooses them",
            "remove one of them",
        )
    check_deck(reader, recipe)
    for i, card in enumerate(recipe.deck.card):
        _check_training(reader, replace(recipe, train=card.train), ("deck", "card", i, "train"))
    try:
        places(recipe.model.layer)
    except BadLayerError as error:
        raise reader.error(("model", "layer", error.index, error.key), str(error), error.hint) from error


def _check_training(reader: Reader, recipe: Recipe, at: tuple[str | int, ...]) -> None:
    """Keys of [train], or of the table `at` that stands for it, that need one another."""
    train, compress = recipe.train, recipe.compress
    if train.warmup_epochs + train.ramp_epochs > train.epochs:
        raise reader.error(
            (*at, "ramp_epochs"),
            f"warmup_epochs + ramp_epochs = {train.warmup_epochs + train.ramp_epochs} exceed epochs = {train.epochs}",
            "more epochs or a shorter ramp",
        )
    objectives = {train.objective, recipe.finetuning().train.objective}
    small = "sabr" in objectives
    if train.box_ratio == 1 if small else train.box_ratio < 1 and "ibp" not in objectives:
        raise reader.error(
            (*at, "box_ratio"),
            f"box_ratio = {train.box_ratio:g} with objective = {('sabr' if small else train.objective)!r}",
            "box_ratio below 1" if small else 'box_ratio = 1, or objective = "sabr"',
        )
    if not train.attack_in_domain and not objectives <= {"standard", "pgd"}:
        raise reader.error(
            (*at, "attack_in_domain"),
            f"attack_in_domain = false with objective = {min(objectives - {'standard', 'pgd'})!r}, which bounds inputs in the domain",
            'leave it out, or objective = "pgd"',
        )
    if train.consistency and train.augment == "none":
        raise reader.error(
            (*at, "consistency"), f"consistency = {train.consistency:g} without augment", 'augment = "augmix"'
        )
    if ("semantic" in objectives) != bool(train.mutations):
        raise reader.error(
            (*at, "mutations"),
            f"mutations = {train.mutations!r} with objective = {train.objective!r}",
            'mutations = "rotation=10,blur" goes with objective = "semantic"',
        )
    for section, optimiser, momentum in (
        (at, train.optimiser, train.momentum),
        (("compress",), compress.optimiser, compress.momentum),
    ):
        if momentum and optimiser != "sgd":
            raise reader.error(
                (*section, "momentum"), f"momentum = {momentum:g} with optimiser = {optimiser!r}", 'optimiser = "sgd"'
            )


def _check_compression(reader: Reader, recipe: Recipe) -> None:
    """Keys of [compress] that need one another."""
    compress, widths = recipe.compress, [i for i, layer in enumerate(recipe.model.layer) if layer.kept]
    if compress.keep and widths:
        raise reader.error(
            ("model", "layer", widths[0], "kept"),
            f"kept stands beside keep = {compress.keep:g} of [compress]",
            "remove one of them",
        )
    for key in ("channel_multiple", "allocation", "budget"):
        if not compress.keep and getattr(compress, key) != getattr(CompressRecipe, key):
            raise reader.error(
                ("compress", key), f"{key} = {getattr(compress, key)!r} says nothing without keep", "add keep = 0.5"
            )
    if compress.learn_norm and recipe.train.method not in TICKETS:
        raise reader.error(
            ("compress", "learn_norm"),
            f"learn_norm says nothing with method = {recipe.train.method!r}, which trains all it has",
            f"leave it out, or method = one of {', '.join(TICKETS)}",
        )
    normed = recipe.model.batch_norm and any(layer.batch_norm for layer in recipe.model.layer)
    if compress.learn_norm and not normed and not recipe.model.module:
        raise reader.error(
            ("compress", "learn_norm"),
            "learn_norm says nothing of a network without batch normalisation",
            "leave it out",
        )
    if "sparse" in recipe.train.members and compress.sparsity == "none":
        raise reader.error(
            ("train", "members"), 'members has "sparse", [compress] has no sparsity', 'sparsity = "2:4" there'
        )


def _check_data(reader: Reader, data: DataRecipe) -> None:
    if [data.set, data.file, data.folder].count("") != 2:
        raise reader.error(
            ("data",), "[data] needs one of set, file and folder, and no more than one", 'set = "digits"'
        )
    if bool(data.validation_samples) == bool(data.validation_groups):
        raise reader.error(
            ("data",),
            "[data] needs validation_samples, or for data with groups validation_groups, and not both",
            "validation_samples = 500",
        )
    of = {"size": bool(data.folder), "channel": bool(data.file), "classes": data.set == "ecg"}
    of["channels"] = data.set == "har"
    for key, right in of.items():
        if getattr(data, key) and not right:
            raise reader.error(
                ("data", key), f"{key} means nothing for {data.set or 'this kind of'} data", "leave it out"
            )
    if len(data.size) > 2:
        raise reader.error(("data", "size"), f"size has {len(data.size)} numbers", "size = [rows, columns]")
    for i, channel in enumerate(data.channel):
        if channel.low >= channel.high:
            raise reader.error(
                ("data", "channel", i, "low"), f"the range [{channel.low}, {channel.high}] is empty", "low < high"
            )
        if channel.name in [c.name for c in data.channel[:i]]:
            raise reader.error(("data", "channel", i, "name"), f"a second channel {channel.name!r}", "another name")
