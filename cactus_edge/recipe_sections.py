"""The sections of a recipe, a record each: what every key means, its unit, its range and its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

from cactus_edge import recipe_values as takes
from cactus_edge.errors import InputError

OBJECTIVES = ("ibp", "sabr", "crown-ibp", "mtl-ibp", "cc-ibp", "exp-ibp", "qa-ibp", "standard", "pgd", "semantic")
"""Training objectives by name."""

OPTIMISERS = ("adam", "sgd")

Member = Literal["full", "pruned", "sparse", "quantised", "perturbed", "joint"]


TICKETS = ("edge-popup", "biprop")
"""The methods that choose among random weights."""

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
    train_samples: so many of what is left train (0: all). centre: what every sample is less, x' = x - centre, in the data's unit.
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
    centre: Annotated[Fraction, takes.rational(-1, 1)] = field(default=Fraction(0), metadata=_LATER)


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
    precision: of the products in training's steps, "float32", or "bfloat16" with everything else in float32 but the passes of its
    attacks: faster where the processor or the GPU multiplies it, and other weights. What is validated, exported and certified is
    float32 in any case, or the integers themselves.
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
    precision: Annotated[str, takes.one_of("float32", "bfloat16")] = field(default="float32", metadata=_LATER)


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
    lth, after which the weights are what it rewinds to. learn_norm: whether biprop and edge-popup learn what normalisation scales
    and shifts by beside their scores. A build refuses sparsity that its target gains nothing from, unless allow_no_gain.
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
    learn_norm: Annotated[bool, takes.flag] = field(default=False, metadata=_LATER)
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

    calibration: "certified" searches, layer by layer, ranges, clipped weights, small weights to drop and corrected biases for the most
    certified and correct samples of the integer network, from `clips` of the largest clean activations on; what it chooses certifies
    no fewer of those samples than any other criterion. "min-max": the largest values; "percentile": those up to which
    `percentile` per cent of all lie; "entropy": least KL divergence; "mse": least mean squared error.
    class_balance: of "certified", what a class counts in the choice: 0 as many as it has samples, 1 as much as every other, so that
    balanced accuracy is maximised; b in between n_c^(1 - b) for its n_c samples. Where most samples are of one class a network that
    always says it is certified on most of them, so plain counts would choose for that.
    weight_bits: one width for all layers with weights, or one for each, 8 or 4: members "quantised", "joint" and "perturbed" learn
    with it, the file stores two weights of 4 bits to a byte. Refused where the target's kernels do not read that width: such weights
    would be stored and multiplied as int8, with fewer values.
    weight_bytes: instead of weight_bits, how many bytes the weights and int32 biases of the file may take (0: as weight_bits says).
    Each layer's width is then chosen, as fine-tuning begins, for the least certified loss of the validation split; until then members
    learn with 8 bits, and afterwards with what was chosen.
    input_steps: steps of the int8 input tensor from 0 to 1. With 255 it is the byte of an 8-bit sensor less 128; where
    eps * input_steps is a whole number, rounding the input does not widen the region. Steps so many that int8 does not hold the
    sensor's range make the input saturate, around 0 where the data go below it (`[data] centre`): the file then tells nothing
    apart beyond its ends, training sees it so, and regions shrink where they lie there. With centre = "1/2" and 620 steps an input
    saturates at 0.294 and 0.705: black and white pixels stay what they are within a radius of 0.294.
    symmetric: zero points of 0 everywhere, as TensorRT takes them; target "jetson" asks for it. An input that is never negative
    then has its own steps.
    """

    input_steps: Annotated[int, takes.integer(1, 32_767)] = 255

    clips: Annotated[tuple[float, ...], takes.list_of(takes.number(0.05, 4))] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    train_clip: Annotated[float, takes.number(0.05, 4)] = 0.9
    symmetric: Annotated[bool, takes.flag] = False
    calibration: Annotated[str, takes.one_of("certified", "min-max", "percentile", "entropy", "mse")] = field(
        default="certified", metadata=_LATER
    )
    percentile: Annotated[float, takes.number(50, 100)] = field(default=99.99, metadata=_LATER)
    class_balance: Annotated[float, takes.number(0, 1)] = field(default=0.0, metadata=_LATER)
    weight_bits: Annotated[tuple[int, ...], takes.list_of(takes.integer(2, 8))] = field(default=(8,), metadata=_LATER)
    weight_bytes: Annotated[int, takes.integer(0)] = field(default=0, metadata=_LATER)

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
