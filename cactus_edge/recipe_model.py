"""The network of a recipe: hidden layers in a table each, or a named net of the literature.

What a layer reads and adds is written by name, so that a recipe stays right when a layer is put between others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from cactus_edge import recipe_values as takes

INPUT = "input"
"""The name of the network's input, where a layer says what it reads or adds."""


@dataclass(frozen=True, kw_only=True)
class LayerRecipe:
    """One hidden layer, followed by batch normalisation (if the model and the layer have it) and, unless relu = false, by ReLU.

    channels are trained, `kept` of them survive compression (0: all); a depthwise layer has those of what it reads, and so has
    "norm", batch normalisation and ReLU alone: what stands before the convolutions of pre-activation networks. A convolution is
    padded as TensorFlow's SAME or VALID; kernel and stride, one number or [down, right], are not used by dense and norm layers.
    reads: name of the earlier layer whose output it reads, "input" for the network's (default: the layer before). adds: name of
    one whose output, of equal shape, is added before the ReLU: a residual block. pool: what is read is averaged first, over
    windows of that size side by side, or over the whole map ("global").
    """

    kind: Annotated[str, takes.one_of("conv", "dense", "depthwise", "norm")]
    channels: Annotated[int, takes.integer(0, 4096)] = 0
    kept: Annotated[int, takes.integer(0, 4096)] = 0
    kernel: Annotated[int | tuple[int, int], takes.one_or_two(1, 255)] = 3
    stride: Annotated[int | tuple[int, int], takes.one_or_two(1, 64)] = 1
    padding: Annotated[str, takes.one_of("same", "valid")] = "same"
    name: Annotated[str, takes.text] = field(default="", metadata=takes.LATER)
    reads: Annotated[str, takes.text] = field(default="", metadata=takes.LATER)
    adds: Annotated[str, takes.text] = field(default="", metadata=takes.LATER)
    pool: Annotated[int | tuple[int, int] | str, takes.window] = field(default=1, metadata=takes.LATER)
    relu: Annotated[bool, takes.flag] = field(default=True, metadata=takes.LATER)
    batch_norm: Annotated[bool, takes.flag] = field(default=True, metadata=takes.LATER)

    @property
    def by_channel(self) -> bool:
        """Whether each channel is made of one channel of what it reads."""
        return self.kind in ("depthwise", "norm")

    @property
    def width(self) -> int:
        """Channels after compression; 0 for a depthwise layer."""
        return self.kept or self.channels


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Hidden layers in order; the classifying dense layer follows by itself, and averages what it reads over `pool`.

    net: a named net instead of layers; `width` times the channels that it has in the literature. module: "package.module:make"
    instead of both, a function (shape, classes) -> torch.nn.Module of the user's own, from the folder `folder` (default: the
    recipe's) or from where the command runs; shape is (height, width, channels). Its own weights are what training begins with.
    init: of all others. "ibp": N(0, 2 pi / fan_in^2), so that interval radii neither grow nor vanish with depth; "uniform": weights
    and biases from [-fan_in^-1/2, fan_in^-1/2], as torch's own layers begin; "kaiming": N(0, 2 / fan_in), of equal size in all layers
    of equal fan-in, as pruning by magnitude over all layers assumes (He et al. 2015, arXiv 1502.01852).
    """

    layer: tuple[LayerRecipe, ...] = ()
    batch_norm: Annotated[bool, takes.flag] = True
    net: Annotated[str, takes.text] = field(default="", metadata=takes.LATER)
    width: Annotated[float, takes.number(0.01, 16)] = field(default=1.0, metadata=takes.LATER)
    pool: Annotated[int | tuple[int, int] | str, takes.window] = field(default=1, metadata=takes.LATER)
    init: Annotated[str, takes.one_of("ibp", "uniform", "kaiming")] = field(default="ibp", metadata=takes.LATER)
    module: Annotated[str, takes.function] = field(default="", metadata=takes.LATER)
    folder: Annotated[str, takes.text] = field(default="", metadata=takes.UNDIGESTED)


@dataclass(frozen=True)
class Place:
    """A layer among the others: indices of what it reads and adds (-1: the input), its channels and those after compression."""

    reads: int
    adds: int | None
    channels: int
    kept: int


class BadLayerError(ValueError):
    """A layer that does not fit in: its index, the key that is wrong, what is wrong and what to do."""

    def __init__(self, index: int, key: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.index, self.key, self.hint = index, key, hint


def places(layers: tuple[LayerRecipe, ...], input_channels: int = 0) -> tuple[Place, ...]:
    """Where each layer stands. input_channels: of the data; 0 where they are not known yet. Raises BadLayerError."""
    found: list[Place] = []
    names = {INPUT: -1}

    def index(i: int, key: str) -> int:
        name = getattr(layers[i], key)
        if name not in names:
            hint = f"one of {', '.join(names)}"
            raise BadLayerError(i, key, f"{key} = {name!r}, and no earlier layer has that name", hint)
        return names[name]

    for i, layer in enumerate(layers):
        reads = index(i, "reads") if layer.reads else i - 1
        adds = index(i, "adds") if layer.adds else None
        if layer.kept > layer.channels:
            message = f"kept = {layer.kept} exceeds channels = {layer.channels}"
            raise BadLayerError(i, "kept", message, "keep at most all")
        if layer.kind == "conv" and reads >= 0 and layers[reads].kind == "dense":
            message = "a convolution cannot follow a dense layer"
            raise BadLayerError(i, "kind", message, "put the convolutions first")
        channels, kept = layer.channels, layer.width
        if layer.kind == "norm" and not layer.batch_norm:
            raise BadLayerError(i, "batch_norm", 'a layer of kind "norm" without batch normalisation', "leave it out")
        if layer.by_channel:
            if channels:
                message = f"channels = {channels}, and a {layer.kind} layer has those of what it reads"
                raise BadLayerError(i, "channels", message, "leave channels and kept out")
            channels, kept = (found[reads].channels, found[reads].kept) if reads >= 0 else (input_channels,) * 2
        elif not channels:
            raise BadLayerError(i, "kind", "[model.layer] lacks 'channels'", "add channels there")
        if adds is not None:
            other = (found[adds].channels, found[adds].kept) if adds >= 0 else (input_channels,) * 2
            if other != (channels, kept) and other != (0, 0):
                message = f"adds {layer.adds!r} of {other[0]} channels, {other[1]} kept, to {channels}, {kept} kept"
                raise BadLayerError(i, "adds", message, "as many channels in both, before and after compression")
        if layer.pool != 1 and reads < 0:
            raise BadLayerError(i, "pool", "the first layer averages the input", "average what a layer has made")
        if layer.name in names:
            raise BadLayerError(i, "name", f"a second layer {layer.name!r}", "another name")
        if layer.name:
            names[layer.name] = i
        found.append(Place(reads, adds, channels, kept))
    return tuple(found)


def _conv(channels: int, kernel: int | tuple[int, int] = 3, stride: int | tuple[int, int] = 1) -> LayerRecipe:
    return LayerRecipe(kind="conv", channels=channels, kernel=kernel, stride=stride)


def _dense(channels: int) -> LayerRecipe:
    return LayerRecipe(kind="dense", channels=channels)


def _resnet8() -> tuple[LayerRecipe, ...]:
    return _residual(((16, 1, 1), (32, 1, 2), (64, 1, 2)))


def _residual(stages: tuple[tuple[int, int, int], ...]) -> tuple[LayerRecipe, ...]:
    """A residual network for small pictures: of each stage (channels, blocks, stride) blocks of two convolutions and a sum."""
    layers, before, width = [replace(_conv(stages[0][0]), name="stem")], "stem", stages[0][0]
    for channels, blocks, first in stages:
        for block in range(blocks):
            name, into, short = f"sum{channels}" + (f"-{block + 1}" if blocks > 1 else ""), _conv(channels), before
            if block == 0 and (first != 1 or channels != width):
                short, into = f"short{channels}", replace(_conv(channels, 3, first), reads=before)
                layers.append(replace(_conv(channels, 1, first), reads=before, relu=False, name=short))
            layers += [into, replace(_conv(channels), adds=short, name=name)]
            before, width = name, channels
    return tuple(layers)


def _ds_cnn() -> tuple[LayerRecipe, ...]:
    return (_conv(64, (10, 4), 2), *(LayerRecipe(kind="depthwise"), _conv(64, 1)) * 4)


def _wide(stages: tuple[tuple[int, int, int], ...], stem: int) -> tuple[LayerRecipe, ...]:
    """Pre-activation blocks: normalisation and ReLU before each convolution, sums without either.

    The second normalisation of a block follows its first convolution at once, and is that layer's own.
    """
    layers, before, width = [replace(_conv(stem), relu=False, batch_norm=False, name="stem")], "stem", stem
    for channels, blocks, first in stages:
        for block in range(blocks):
            stride = first if block == 0 else 1
            active, name, short = f"active{channels}-{block + 1}", f"sum{channels}-{block + 1}", before
            layers.append(LayerRecipe(kind="norm", name=active))
            if channels != width or stride != 1:
                short = f"short{channels}"
                shortcut = _conv(channels, 1, stride)
                layers.append(replace(shortcut, reads=active, relu=False, batch_norm=False, name=short))
            layers.append(replace(_conv(channels, 3, stride), reads=active))
            layers.append(replace(_conv(channels), adds=short, relu=False, batch_norm=False, name=name))
            before, width = name, channels
    return (*layers, LayerRecipe(kind="norm"))


def _mobilenet() -> tuple[LayerRecipe, ...]:
    layers, width = [replace(_conv(32), name="stem")], 32
    for stage, (factor, channels, blocks, first) in enumerate(_INVERTED):
        for block in range(blocks):
            stride, before = (first if block == 0 else 1), str(layers[-1].name)
            if factor > 1:
                layers.append(_conv(factor * width, 1))
            layers.append(LayerRecipe(kind="depthwise", stride=stride))
            joined = before if stride == 1 and channels == width else ""
            layers.append(replace(_conv(channels, 1), relu=False, adds=joined, name=f"block{stage + 1}-{block + 1}"))
            width = channels
    return (*layers, _conv(1280, 1))


_INVERTED = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""MobileNet-V2's stages: factor of expansion, channels, blocks, stride of the first; for pictures of 32 pixels, which are halved thrice."""


NETS: Mapping[str, tuple[tuple[LayerRecipe, ...], int | str]] = {
    "cnn3": ((_conv(16, 5, 2), _conv(32, 4, 2)), 1),
    "cnn5": ((_conv(16), _conv(16, 4, 2), _conv(32, 4, 2), _dense(512)), 1),
    "cnn7": ((_conv(64), _conv(64), _conv(128, 3, 2), _conv(128), _conv(128), _dense(512)), 1),
    "cnn8": ((*(_conv(c, 3, s) for c, s in zip((32, 32, 64, 64, 128, 128), (1, 2) * 3, strict=True)), _dense(128)), 1),
    "resnet8": (_resnet8(), "global"),
    "ds-cnn": (_ds_cnn(), "global"),
    "resnet18": (_residual(((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))), "global"),
    "wrn18-2": (_wide(((64, 2, 1), (192, 2, 2), (384, 2, 2), (768, 2, 2)), 64), "global"),
    "mobilenet-v2": (_mobilenet(), "global"),
}
"""Hidden layers and the classifier's `pool` by name.

Sources: cnn3, cnn5, cnn7 as in CTBench (Mao et al. 2024, arXiv 2406.04848, model zoo: cnn_3layer, cnn_5layer, cnn_7layer); their
strided layers are padded as SAME here, which gives maps of the same size. cnn8: the network of AdverFine for Fashion-MNIST
(Thorsteinsson et al. 2024, arXiv 2403.09441), without batch normalisation there (`batch_norm = false`). resnet8, ds-cnn: MLPerf
Tiny's reference models of image classification and keyword spotting (Banbury et al. 2021, arXiv 2106.07597), read from their
.tflite files. resnet18, wrn18-2
(pre-activation, twice as wide): as the cards of Diffenderfer et al. 2021, arXiv 2106.09129 (RobustBench model zoo); those of full
precision are resnet18 with width = 2. mobilenet-v2: Sandler et al. 2018, arXiv 1801.04381, in the form for CIFAR-10; ReLU takes the
place of ReLU6, whose clamp the int8 range is.
"""


def expanded(model: ModelRecipe) -> ModelRecipe:
    """The model with its named net's layers in place. Raises BadValueError for what cannot stand together."""
    kinds = [key for key in ("layer", "net", "module") if getattr(model, key)]
    if len(kinds) != 1:
        raise takes.BadValueError(
            f"[model] needs [[model.layer]] tables, net or module, and has {' and '.join(kinds) or 'none'}"
        )
    if model.width != 1 and not model.net:
        raise takes.BadValueError("width goes with net")
    if not model.net:
        return _normalised(model)
    if model.net not in NETS:
        raise takes.BadValueError(f"no net is called {model.net!r}; there are {', '.join(NETS)}")
    layers, pool = NETS[model.net]
    scaled = (replace(a, channels=max(1, round(a.channels * model.width)) if a.channels else 0) for a in layers)
    return _normalised(replace(model, layer=tuple(scaled), pool=pool))


def _normalised(model: ModelRecipe) -> ModelRecipe:
    if not model.batch_norm and any(layer.kind == "norm" for layer in model.layer):
        raise takes.BadValueError('batch_norm = false, and a layer is of kind "norm"')
    return model
