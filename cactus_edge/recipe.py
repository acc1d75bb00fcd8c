"""A build as data: TOML in, a validated frozen record out.

Every key says its unit; radii are exact rationals in sensor units. A key that is unknown, missing, of the wrong type or
out of range is an InputError that names the file, the line and, for a misspelt key, the nearest right one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cactus_edge import recipe_values as takes
from cactus_edge.errors import InputError
from cactus_edge.recipe_deck import check_deck, with_training
from cactus_edge.recipe_model import NETS, BadLayerError, LayerRecipe, ModelRecipe, expanded, places
from cactus_edge.recipe_reader import Reader

BUILT_IN = Path(__file__).resolve().parent / "recipes"
"""Folder of the recipes that ship with the package."""

OBJECTIVES = ("ibp", "sabr", "crown-ibp", "mtl-ibp", "cc-ibp", "exp-ibp", "qa-ibp", "standard", "pgd", "semantic")
"""Training objectives by name."""

OPTIMISERS = ("adam", "sgd")

Member = Literal["full", "pruned", "sparse", "quantised", "perturbed", "joint"]


_UNDIGESTED, _LATER = takes.UNDIGESTED, takes.LATER


def _semantics(value: Any) -> str:
    """Transforms as `semantics.transforms` reads them."""
    from cactus_edge.semantics import transforms

    try:
        transforms(takes.text(value))
    except InputError as error:
        raise takes.BadValueError(f"{error.message}, expected transforms such as rotation=10,blur") from error
    return str(value)


@dataclass(frozen=True, kw_only=True)
class ChannelRecipe:
    """One channel of the user's own signals: what it measures, in which unit, and the range of the sensor in that unit."""

    name: Annotated[str, takes.text]
    unit: Annotated[str, takes.text]
    low: Annotated[Fraction, takes.rational(-(10**9), 10**9)]
    high: Annotated[Fraction, takes.rational(-(10**9), 10**9)]


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Which samples, and how they are split. `set` names a built-in set; `file` is an .npz and `folder` a folder of images of
    the user's own, relative to the recipe's folder (one of the three).

    validation_samples are taken from the training samples. test_samples are split off only where the set brings no test
    samples of its own. Both splits follow from split_seed and stay the same over training seeds. validation_groups: instead of
    validation_samples, whose samples validate, where each belongs to somebody: persons of har, records of ecg.
    train_samples: so many of what is left train (0: all).
    size: rows and columns that the images of a folder are brought to. classes: of ecg, the AAMI letters of each class.
    channels: of har, the sensors that are used. channel: one table for each channel of `file`.
    """

    set: Annotated[str, takes.text] = ""
    file: Annotated[str, takes.text] = ""
    validation_samples: Annotated[int, takes.integer(0)] = 0
    test_samples: Annotated[int, takes.integer(0)] = 0
    split_seed: Annotated[int, takes.integer(0, 2**31 - 1)] = 0
    folder: Annotated[str, takes.text] = field(default="", metadata=_LATER)
    train_samples: Annotated[int, takes.integer(0)] = field(default=0, metadata=_LATER)
    size: Annotated[tuple[int, ...], takes.list_of(takes.integer(1, 4096), at_least=2)] = field(
        default=(), metadata=_LATER
    )
    validation_groups: Annotated[tuple[int, ...], takes.list_of(takes.integer(0))] = field(default=(), metadata=_LATER)
    classes: Annotated[tuple[str, ...], takes.list_of(takes.text, at_least=2)] = field(default=(), metadata=_LATER)
    channels: Annotated[tuple[str, ...], takes.list_of(takes.text)] = field(default=(), metadata=_LATER)
    channel: tuple[ChannelRecipe, ...] = field(default=(), metadata=_LATER)


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """The certified objective and its schedule. Epoch counts are over the training split.

    For `warmup_epochs` the radius is 0, over the next `ramp_epochs` it grows linearly to `eps`, and robust_weight (lambda
    of CACTUS, kappa of IBP) grows with it from 0. The learning rate is constant until decay_from of the stage, then
    falls linearly to one hundredth. shift_pixels, rotate_degrees and zoom (a part of the size) bound the random movement of
    each training sample; crop shifts it by up to so many whole pixels (of a signal: steps in time) with its edge repeated,
    mirror turns half of them left to right, gain bounds a random factor 1 +- gain. class_balance: 0 draws every sample once an
    epoch, 1 every class as often as the others, b in between class c in proportion to n_c^(1 - b) of its n_c samples.
    decay: "linear" as said; "step": constant from the first step to decay_from, then a tenth; "cosine": from a short rise on along
    half a cosine to 0. optimiser: "adam", or "sgd" with momentum; weight_decay adds that part of each parameter to its gradient.
    augment: "augmix" (Hendrycks et al. 2020), chains of simple operations on pictures, mixed; "gaussian", noise of a tenth of the
    domain on half of the samples. consistency: the weight of three times the Jensen-Shannon divergence between what is said of a
    sample and of two augmented versions of it (12 in the paper; the loss is then that of the clean sample); 0: train on the
    augmented sample itself.
    threads: torch's while training (0: all processors), since sums in another order are other weights.
    parts: each batch is cut into so many, with statistics of their own, as the processes of torchrun compute them
    (`train.parallel`); other parts are other weights.

    method: the stages and what they train. objective: the certified loss of every member of the set, or one that bounds
    nothing: "standard", cross-entropy of the samples as they are; "pgd", robust_weight of it at adversarial points; "semantic",
    robust_weight of it after one of the transforms in `mutations`, such as "rotation=10,blur+brightness=0.1" (as `certify
    --semantic`). None has the warm-up regulariser, and what training reports as certified of its batches is 0. box_ratio: 1 trains on
    the whole region (ibp), less on a box of that part of its radius around an adversarial point (sabr), 0 on that point.
    crown_start, crown_end: weight of crown-ibp's linear margins against those of intervals, as the ramp begins and ends. mix: of
    mtl-ibp, cc-ibp and exp-ibp, from 0 (the adversarial point alone) to 1 (the bounds alone). hinge_weight, hinge_margin (of
    logits) and width_weight: of qa-ibp, as the ramp ends. attack_*: steps, random starts, first step as a part of the radius
    that the attack has (0: 2.5 / steps), and what it is multiplied by after half and after seven eighths of the steps.
    attack_random_start = false: from the sample itself. attack_in_domain = false, of pgd alone: points leave the sensor's range.
    """

    eps: Annotated[takes.Eps, takes.radius]
    epochs: Annotated[int, takes.integer(1, 10_000)]
    warmup_epochs: Annotated[int, takes.integer(0, 10_000)] = 1
    ramp_epochs: Annotated[int, takes.integer(0, 10_000)] = 0
    batch: Annotated[int, takes.integer(2, 65_536)] = 256
    learning_rate: Annotated[float, takes.number(0, 1)] = 0.002
    decay_from: Annotated[float, takes.number(0, 1)] = 0.6
    clip_norm: Annotated[float, takes.number(0, 1e6)] = 10.0
    robust_weight: Annotated[float, takes.number(0, 1)] = 0.7
    warmup_regulariser: Annotated[float, takes.number(0, 100)] = 0.5
    weight_l1: Annotated[float, takes.number(0, 1)] = 0.0
    shift_pixels: Annotated[float, takes.number(0, 8)] = 0.0
    rotate_degrees: Annotated[float, takes.number(0, 45)] = 0.0
    zoom: Annotated[float, takes.number(0, 0.5)] = 0.0
    members: Annotated[tuple[Member, ...], takes.list_of(takes.one_of(*get_args(Member)))] = ("full",)
    method: Annotated[str, takes.text] = field(default="cactus", metadata=_LATER)
    objective: Annotated[str, takes.one_of(*OBJECTIVES)] = field(default="ibp", metadata=_LATER)
    box_ratio: Annotated[float, takes.number(0, 1)] = field(default=1.0, metadata=_LATER)
    crop: Annotated[int, takes.integer(0, 64)] = field(default=0, metadata=_LATER)
    mirror: Annotated[bool, takes.flag] = field(default=False, metadata=_LATER)
    gain: Annotated[float, takes.number(0, 0.9)] = field(default=0.0, metadata=_LATER)
    augment: Annotated[str, takes.one_of("none", "augmix", "gaussian")] = field(default="none", metadata=_LATER)
    consistency: Annotated[float, takes.number(0, 100)] = field(default=0.0, metadata=_LATER)
    class_balance: Annotated[float, takes.number(0, 1)] = field(default=0.0, metadata=_LATER)
    crown_start: Annotated[float, takes.number(0, 1)] = field(default=1.0, metadata=_LATER)
    crown_end: Annotated[float, takes.number(0, 1)] = field(default=0.0, metadata=_LATER)
    mutations: Annotated[str, _semantics] = field(default="", metadata=_LATER)
    mix: Annotated[float, takes.number(0, 1)] = field(default=0.5, metadata=_LATER)
    hinge_weight: Annotated[float, takes.number(0, 100)] = field(default=0.5, metadata=_LATER)
    hinge_margin: Annotated[float, takes.number(0, 100)] = field(default=0.2, metadata=_LATER)
    width_weight: Annotated[float, takes.number(0, 100)] = field(default=0.001, metadata=_LATER)
    attack_steps: Annotated[int, takes.integer(1, 1000)] = field(default=8, metadata=_LATER)
    attack_restarts: Annotated[int, takes.integer(1, 100)] = field(default=1, metadata=_LATER)
    attack_step: Annotated[float, takes.number(0, 100)] = field(default=0.0, metadata=_LATER)
    attack_decay: Annotated[float, takes.number(0, 1)] = field(default=1.0, metadata=_LATER)
    attack_random_start: Annotated[bool, takes.flag] = field(default=True, metadata=_LATER)
    attack_in_domain: Annotated[bool, takes.flag] = field(default=True, metadata=_LATER)
    decay: Annotated[str, takes.one_of("linear", "step", "cosine")] = field(default="linear", metadata=_LATER)
    optimiser: Annotated[str, takes.one_of(*OPTIMISERS)] = field(default="adam", metadata=_LATER)
    momentum: Annotated[float, takes.number(0, 1)] = field(default=0.0, metadata=_LATER)
    weight_decay: Annotated[float, takes.number(0, 1)] = field(default=0.0, metadata=_LATER)
    seed: Annotated[int, takes.integer(0, 2**31 - 1)] = 0
    threads: Annotated[int, takes.integer(0, 4096)] = field(default=0, metadata=_UNDIGESTED)
    parts: Annotated[int, takes.integer(1, 4096)] = field(default=1, metadata=_LATER)


@dataclass(frozen=True, kw_only=True)
class CompressRecipe:
    """What goes for good, and the fine-tuning at the full radius on the network that ships.

    The learning rate is constant until decay_from of these epochs, then falls as [train] says. The network that ships has the
    mean weights of the ends of the last average_epochs (0: the last weights). objective, optimiser: "same" as in [train], or its
    own, then with its own momentum.

    Channels: keep is the share of each hidden layer's channels that stays (0: as each layer's `kept` says), rounded up to
    whole multiples of channel_multiple (0: the target's, 1 without a target). allocation "sensitivity" moves them between
    layers, at no more MACs or bytes (budget) than that, to where the certified loss of the validation split rises least.
    importance says which channels of a layer stay: "reach" (how much one moves the next layer), "l1" or "l2" of its weights,
    or "taylor" (how much the certified loss changes without it; while the set is trained "reach" takes its place).

    Weights: sparsity is "none", the share of weights that are 0 (unstructured; sparsity_scope: over all layers, or in each),
    or "n:m": at most n of m neighbouring input channels are not 0. mask_gradient: what the sparse members teach, the "kept"
    weights or "all" (straight through). round_share: of what is left, what a round of lth and lrr lets go. rewind_epochs: of
    lth, after which the weights are what it rewinds to. A build refuses sparsity that its target gains nothing from, unless allow_no_gain.
    """

    finetune_epochs: Annotated[int, takes.integer(0, 10_000)] = 0
    learning_rate: Annotated[float, takes.number(0, 1)] = 0.001
    decay_from: Annotated[float, takes.number(0, 1)] = 0.0
    members: Annotated[tuple[Member, ...], takes.list_of(takes.one_of("full", "quantised", "perturbed"))] = (
        "full",
        "quantised",
    )
    average_epochs: Annotated[int, takes.integer(0, 10_000)] = field(default=0, metadata=_LATER)
    objective: Annotated[str, takes.one_of("same", *OBJECTIVES)] = field(default="same", metadata=_LATER)
    optimiser: Annotated[str, takes.one_of("same", *OPTIMISERS)] = field(default="same", metadata=_LATER)
    momentum: Annotated[float, takes.number(0, 1)] = field(default=0.0, metadata=_LATER)
    keep: Annotated[float, takes.number(0, 1)] = field(default=0.0, metadata=_LATER)
    channel_multiple: Annotated[int, takes.integer(0, 256)] = field(default=0, metadata=_LATER)
    allocation: Annotated[str, takes.one_of("uniform", "sensitivity")] = field(default="uniform", metadata=_LATER)
    budget: Annotated[str, takes.one_of("macs", "bytes")] = field(default="macs", metadata=_LATER)
    importance: Annotated[str, takes.one_of("reach", "l1", "l2", "taylor")] = field(default="reach", metadata=_LATER)
    sparsity: Annotated[str | float, takes.sparsity] = field(default="none", metadata=_LATER)
    sparsity_scope: Annotated[str, takes.one_of("global", "layer")] = field(default="global", metadata=_LATER)
    mask_gradient: Annotated[str, takes.one_of("kept", "all")] = field(default="kept", metadata=_LATER)
    round_share: Annotated[float, takes.number(0.01, 0.99)] = field(default=0.2, metadata=_LATER)
    rewind_epochs: Annotated[int, takes.integer(0, 10_000)] = field(default=0, metadata=_LATER)
    allow_no_gain: Annotated[bool, takes.flag] = field(default=False, metadata=_UNDIGESTED)

    @property
    def rounds(self) -> int:
        """Rounds in which lth and lrr let weights go; 0 without a share of weights that goes."""
        if not isinstance(self.sparsity, float):
            return 0
        return math.ceil(math.log1p(-self.sparsity) / math.log1p(-self.round_share) - 1e-9)

    def kept_of(self, channels: int) -> int:
        """Channels that stay of so many by `keep`, a whole multiple or all; 0 where `keep` leaves it to the layers."""
        multiple = self.channel_multiple or 1
        wanted = multiple * math.ceil(max(self.keep * channels, 1) / multiple - 1e-9)
        return min(channels, wanted) if self.keep else 0


@dataclass(frozen=True, kw_only=True)
class QuantiseRecipe:
    """How the ranges of the activations are chosen, on the validation split.

    calibration: "certified" searches, layer by layer, ranges, clipped weights and corrected biases for the most certified and
    correct samples of the integer network, from `clips` of the largest clean activations on; what it chooses certifies no
    fewer of those samples than any other criterion. "min-max": the largest values; "percentile": those up to which
    `percentile` per cent of all lie; "entropy": least KL divergence; "mse": least mean squared error.
    weight_bits: one width for all layers, or one for each. Refused where the target's kernels do not read that width: such
    weights would be stored and multiplied as int8, with fewer values.
    input_steps: steps of the int8 input tensor from 0 to 1. With 255 it is the byte of an 8-bit sensor less 128; where
    eps * input_steps is a whole number, rounding the input does not widen the region.
    symmetric: zero points of 0 everywhere, as TensorRT takes them; target "jetson" asks for it. The input then has its own steps.
    """

    input_steps: Annotated[int, takes.integer(1, 255)] = 255

    clips: Annotated[tuple[float, ...], takes.list_of(takes.number(0.05, 4))] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    train_clip: Annotated[float, takes.number(0.05, 4)] = 0.9
    symmetric: Annotated[bool, takes.flag] = False
    calibration: Annotated[str, takes.one_of("certified", "min-max", "percentile", "entropy", "mse")] = field(
        default="certified", metadata=_LATER
    )
    percentile: Annotated[float, takes.number(50, 100)] = field(default=99.99, metadata=_LATER)
    weight_bits: Annotated[tuple[int, ...], takes.list_of(takes.integer(2, 8))] = field(default=(8,), metadata=_LATER)

    @property
    def levels(self) -> int:
        """Steps of an activation that is never negative."""
        return 127 if self.symmetric else 255


@dataclass(frozen=True, kw_only=True)
class CertifyRecipe:
    """What the certificate is about: an l-inf ball of radius eps (sensor units, exact) around the first `samples` test samples.

    eps: one for all channels; a list with one for each; or a table by channel or unit, { g = "0.032", "rad/s" = "0.064" }.
    samples = 0: all of them. semantic: transforms, as "rotation=10,blur+brightness=0.1", under which a build also judges the first
    semantic_samples of them (0: all): *probabilistically*, by CC-Cert; and with certificates for brightness and contrast alone.
    """

    eps: Annotated[takes.Eps, takes.radius]
    samples: Annotated[int, takes.integer(0)] = 0
    semantic: Annotated[str, _semantics] = field(default="", metadata=_LATER)
    semantic_samples: Annotated[int, takes.integer(0)] = field(default=0, metadata=_LATER)


@dataclass(frozen=True, kw_only=True)
class CardRecipe:
    """Cards that are trained alike: one for each of `seeds`, which are added to the recipe's own.

    scheme: what the gate calls them. train: their [train]; a recipe writes what differs from its own under [deck.card.train].
    """

    scheme: Annotated[str, takes.text]
    seeds: Annotated[tuple[int, ...], takes.list_of(takes.integer(0, 2**20))]
    train: TrainRecipe


@dataclass(frozen=True, kw_only=True)
class DeckRecipe:
    """Several networks, cards, that ship as one file; without a card the recipe is one network.

    gate: "none" averages the logits of all cards; "spectral" those of one scheme, of two, whose training images an input's spectrum
    is closer to. tile: side of the windows whose Fourier transforms the gate looks at, a power of two for filters without mean.
    alone: schemes whose cards answer alone for what is closer to them (none named: both); all cards answer for the rest.
    """

    card: tuple[CardRecipe, ...] = ()
    gate: Annotated[str, takes.one_of("none", "spectral")] = "none"
    tile: Annotated[int, takes.integer(2, 32)] = 8
    alone: Annotated[tuple[str, ...], takes.list_of(takes.text)] = ()

    @property
    def count(self) -> int:
        """Cards of all kinds."""
        return sum(len(card.seeds) for card in self.card)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a build depends on besides the code. Equal digests describe equal builds."""

    name: Annotated[str, takes.text]
    data: DataRecipe
    model: ModelRecipe
    train: TrainRecipe
    certify: CertifyRecipe
    compress: CompressRecipe = CompressRecipe()
    quantise: QuantiseRecipe = QuantiseRecipe()
    description: Annotated[str, takes.text] = ""
    deck: DeckRecipe = field(default=DeckRecipe(), metadata=_LATER)

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
