"""Networks of the user's own: a torch module, traced with torch.fx, as layers with its weights.

A layer here is linear map, batch normalisation, sum, ReLU, in that order (`models.Layer`); so each operation of the module
either begins a layer or joins the one that it follows. What fits nowhere is refused by the module's name, before training.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from cactus_edge.errors import InputError, InternalError
from cactus_edge.ir.ops import Padding2d
from cactus_edge.recipe_model import ModelRecipe
from cactus_edge.train.folded import fold, forward
from cactus_edge.train.models import INPUT, NORM_EPSILON, Layer, Network, Norm
from cactus_edge.train.own_module import check_numbers, made, outputs, said

Size = tuple[int, int]

HINT = "see `Own networks` in the README for what a module may hold"


def own_network(model: ModelRecipe, shape: tuple[int, int, int], classes: int, seed: int) -> Network:
    """The network of `model.module` with the weights that it begins with, drawn after torch.manual_seed(seed).

    The module takes float [N, channels, height, width], or [N, channels, height] where it holds Conv1d and the width is 1, and
    gives logits [N, classes]. Raises InputError for a function that is not there or fails, for a module that fails on such an
    input or holds or gives what is not finite, and for what has no layer here.
    """
    module = made(model, shape, classes, seed)
    flat = shape[1] == 1 and any(isinstance(m, nn.Conv1d) for m in module.modules())
    like = torch.rand((4, shape[2], shape[0]) if flat else (4, shape[2], *shape[:2]), generator=_generator(seed))
    check_numbers(model.module, module)
    theirs = outputs(model.module, module, like, seed)
    try:
        traced = fx.symbolic_trace(module)
        with torch.no_grad():
            _Shapes(traced).run(like.clone())
    except (Exception, SystemExit) as error:  # the user's code, or what torch.fx makes of it
        raise InputError(
            f"{model.module}: cannot be traced: {said(error)}",
            hint="forward(x): one argument, no control flow on values",
        ) from error
    network = Network(_Reading(model.module, traced, (shape[0], shape[1]), shape[2]).layers(classes))
    with torch.no_grad():
        ours = forward(fold(network.layers()), like[..., None] if flat else like)
    if not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
        raise InternalError(f"{model.module}: the layers that were read compute something else than the module")
    return network


def fingerprint(network: Network) -> str:
    """SHA-256 (hex) of the layers' geometry and of all parameters and statistics."""
    h = hashlib.sha256()
    for layer in network.layers():
        others = ("weight", "bias", "norm", "window")
        plain = {k: v if k != "padding" else asdict(layer.padding) for k, v in vars(layer).items() if k not in others}
        h.update(repr(sorted(plain.items())).encode())
    for name, tensor in network.state_dict().items():
        h.update(f"{name}{tuple(tensor.shape)}".encode())
        h.update(tensor.numpy().astype("<f4").tobytes())
    return h.hexdigest()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _Shapes(fx.Interpreter):
    """Runs a traced module and notes the shape of each tensor in its node's meta."""

    def run_node(self, n: fx.Node) -> Any:
        """As the base class."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


@dataclass(eq=False)
class _Draft:
    """A layer that grows: `reads` and `adds` are drafts, None the network's input (for adds: none, unless `sums`)."""

    weight: Tensor
    bias: Tensor
    in_size: Size
    out_size: Size
    reads: _Draft | None
    pool: Size | None
    stride: Size = (1, 1)
    padding: Padding2d = field(default_factory=Padding2d)
    dense: bool = False
    depthwise: bool = False
    norm: Norm | None = None
    sums: bool = False
    adds: _Draft | None = None
    relu: bool = False


@dataclass(frozen=True)
class _Value:
    """What a node of the trace holds: the draft's output (None: the input), averaged over windows or not, flattened or not."""

    draft: _Draft | None
    pool: Size | None = None
    flat: bool = False


class _Reading:
    """One walk over a traced module."""

    def __init__(self, where: str, traced: fx.GraphModule, size: Size, channels: int) -> None:
        self.where, self.traced, self.size, self.channels = where, traced, size, channels
        self.order: list[_Draft] = []
        self.values: dict[fx.Node, _Value] = {}
        self.used: set[nn.Module] = set()
        self.owners: dict[int, str] = {}

    def layers(self, classes: int) -> tuple[Layer, ...]:
        """All layers in the order of execution. Raises InputError."""
        out: _Value | None = None
        self.traced.graph.eliminate_dead_code()
        for node in self.traced.graph.nodes:
            if node.op == "output":
                out = self.values.get(node.args[0])
            elif node.op == "placeholder":
                self.values[node] = _Value(None)
            elif "shape" in node.meta:
                self.values[node] = self._value(node)
        last = out.draft if out is not None else None
        plain = last is not None and last.dense and not (last.relu or last.norm or last.sums)
        if last is None or not plain or last.weight.shape[0] != classes or last is not self.order[-1]:
            text = f"{self.where}: the module must end in a Linear layer with {classes} outputs, the logits"
            raise InputError(text, hint="no softmax, activation, normalisation or sum after it")
        number: dict[_Draft | None, int] = {None: INPUT} | {draft: i for i, draft in enumerate(self.order)}
        return tuple(
            Layer(
                d.weight, d.bias, d.norm, d.in_size, d.stride, d.padding, d.dense, d.relu, d.depthwise,
                number[d.reads], number[d.adds] if d.sums else None, d.pool,
            )
            for d in self.order
        )  # fmt: skip

    def refused(self, node: fx.Node, why: str, hint: str = HINT) -> InputError:
        """The error about one operation of the module, by its name there."""
        what = repr(self.traced.get_submodule(str(node.target))) if node.op == "call_module" else node.name
        place = f"{node.target}, {what}" if node.op == "call_module" else what
        return InputError(f"{self.where}: {place}: {why}", hint=hint)

    def _value(self, node: fx.Node) -> _Value:
        name, module = self._operation(node)
        read = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if read is None:
            raise self.refused(node, "reads no value of the network")
        if module is not None and next(module.parameters(), None) is not None:
            if module in self.used:
                raise self.refused(node, "is used twice, and layers do not share weights", "a module for each use")
            self.used.add(module)
            for part, parameter in module.named_parameters(remove_duplicate=False):
                own = f"{node.target}.{part}"
                owner = self.owners.setdefault(parameter.data_ptr(), own)
                if owner != own:
                    why = f"its {part} is {owner} as well, and layers do not share weights"
                    raise self.refused(node, why, "parameters of its own, a copy of those: clone()")
        match name:
            case "conv1d" | "conv2d":
                return self._convolution(node, module, read)
            case "linear":
                return self._linear(node, module, read)
            case "batchnorm1d" | "batchnorm2d":
                return self._normalised(node, module, read)
            case "relu":
                return self._rectified(node, read)
            case "add":
                return self._sum(node)
            case "avgpool1d" | "avgpool2d" | "adaptiveavgpool1d" | "adaptiveavgpool2d" | "mean":
                return self._averaged(node, module, name, read)
            case "dropout" | "dropout1d" | "dropout2d" | "identity" | "contiguous":
                return read
            case "flatten" | "view" | "reshape" | "squeeze" | "unsqueeze":
                return self._reshaped(node, read)
            case _:
                raise self.refused(node, "has no layer here", _INSTEAD.get(name, HINT))

    def _operation(self, node: fx.Node) -> tuple[str, nn.Module | None]:
        """The operation's name in lower case without underscores, and its module if it has one."""
        if node.op == "call_module":
            module = self.traced.get_submodule(str(node.target))
            return type(module).__name__.lower(), module
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        name = name.replace("_", "").lower()
        return {"iadd": "add"}.get(name, name), None

    def _map(self, value: _Value) -> tuple[int, Size]:
        """Channels and (H, W) of a value before it is averaged."""
        if value.draft is None:
            return self.channels, self.size
        return value.draft.weight.shape[0], value.draft.out_size

    def _seen(self, node: fx.Node, value: _Value) -> tuple[int, Size]:
        """Channels and (H, W) of a value as it is read."""
        channels, size = self._map(value)
        if value.pool is not None and value.draft is None:
            raise self.refused(node, "averages the network's input", "average what a layer has made")
        return channels, size if value.pool is None else (size[0] // value.pool[0], size[1] // value.pool[1])

    def _begin(self, draft: _Draft) -> _Value:
        self.order.append(draft)
        return _Value(draft, flat=draft.dense)

    def _convolution(self, node: fx.Node, module: nn.Module | None, read: _Value) -> _Value:
        if not isinstance(module, nn.Conv1d | nn.Conv2d) or read.flat:
            raise self.refused(node, "is no Conv module on a map", "torch.nn.Conv2d, as a module")
        channels, _ = self._seen(node, read)
        depthwise = module.groups == channels == module.out_channels and channels > 1
        if set(module.dilation) != {1} or module.padding_mode != "zeros" or (module.groups != 1 and not depthwise):
            why = "has dilation, another padding than zeros, or groups of more than one channel"
            raise self.refused(node, why, "groups = channels (depthwise), or no groups")
        weight = module.weight.detach().clone()
        kernel, stride = tuple(module.kernel_size), tuple(module.stride)
        around = [(k - 1) // 2 for k in kernel] if module.padding == "same" else module.padding
        rests = [(k - 1) % 2 for k in kernel] if module.padding == "same" else [0] * len(kernel)
        sides = [0] * len(kernel) if around == "valid" else [int(n) for n in around]
        if isinstance(module, nn.Conv1d):
            weight, stride = weight[..., None], (*stride, 1)
            sides, rests = [*sides, 0], [*rests, 0]
        padding = Padding2d(sides[0], sides[0] + rests[0], sides[1], sides[1] + rests[1])
        shape = _shape(node)
        out_size = (shape[2], shape[3] if len(shape) == 4 else 1)
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().clone()
        return self._begin(
            _Draft(
                *(weight, bias, self._map(read)[1], out_size, read.draft, read.pool, (stride[0], stride[1]), padding),
                depthwise=depthwise,
            )
        )

    def _linear(self, node: fx.Node, module: nn.Module | None, read: _Value) -> _Value:
        channels, size = self._seen(node, read)
        if not isinstance(module, nn.Linear) or not (read.flat or size == (1, 1)) or len(_shape(node)) != 2:
            raise self.refused(node, "is no Linear module on a flattened map", "Flatten before it")
        weight = module.weight.detach().clone().view(-1, channels, *size)
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().clone()
        return self._begin(_Draft(weight, bias, self._map(read)[1], (1, 1), read.draft, read.pool, dense=True))

    def _open(self, node: fx.Node, value: _Value | None, source: fx.Node) -> _Draft | None:
        """The draft that `node` may still change: a linear map whose value nobody else reads, not yet summed, without ReLU."""
        draft = value.draft if value is not None else None
        alone = set(source.users) == {node}
        fresh = draft is not None and value is not None and value.pool is None and not (draft.relu or draft.sums)
        return draft if fresh and alone else None

    def _normalised(self, node: fx.Node, module: nn.Module | None, read: _Value) -> _Value:
        draft = self._open(node, read, node.all_input_nodes[0])
        if draft is None or draft.norm is not None:
            raise self.refused(node, "does not follow a Conv or Linear layer directly", "normalise before sum and ReLU")
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) or not module.affine or module.eps != NORM_EPSILON:
            raise self.refused(node, "is another normalisation than here", f"affine = True, eps = {NORM_EPSILON}")
        mean, var = module.running_mean, module.running_var
        draft.norm = Norm(
            module.weight.detach().clone(),
            module.bias.detach().clone(),
            torch.zeros(len(module.weight)) if mean is None else mean.clone(),
            torch.ones(len(module.weight)) if var is None else var.clone(),
        )
        return read

    def _rectified(self, node: fx.Node, read: _Value) -> _Value:
        draft = read.draft
        if draft is not None and draft.relu:
            return read
        source = node.all_input_nodes[0]
        if draft is None or read.pool is not None or set(source.users) != {node}:
            why = "does not follow a layer whose value only it reads"
            raise self.refused(node, why, "ReLU right after the layer, or a 1 x 1 convolution between")
        draft.relu = True
        return read

    def _sum(self, node: fx.Node) -> _Value:
        terms = [a for a in node.args if isinstance(a, fx.Node)]
        values = [self.values.get(t) for t in terms]
        if len(terms) != 2 or None in values or node.kwargs.get("alpha", 1) != 1 or terms[0] is terms[1]:
            raise self.refused(node, "is no sum of two values of the network")
        open_ = [self._open(node, v, t) for v, t in zip(values, terms, strict=True)]
        choices = [d for d in open_ if d is not None]
        if not choices:
            why = "adds two values, neither of which comes straight from a Conv, Linear or BatchNorm layer"
            raise self.refused(node, why, "one of them without its own ReLU, as in a residual block")
        own = max(choices, key=self.order.index)
        other = values[1 - open_.index(own)]
        if other is None or other.pool is not None or self._map(other) != self._map(_Value(own)):
            raise self.refused(node, "adds values of other shapes, or averaged ones", "equal shapes")
        # Nobody has read it yet: it may move behind what it adds.
        self.order.remove(own)
        self.order.append(own)
        own.sums, own.adds = True, other.draft
        return _Value(own, flat=own.dense)

    def _averaged(self, node: fx.Node, module: nn.Module | None, name: str, read: _Value) -> _Value:
        _, size = self._map(read)
        shape, kept = _shape(node), _shape(node.all_input_nodes[0])
        out = (*shape[2:], 1, 1)[:2]
        if read.flat or read.pool is not None or read.draft is None or len(kept) == 2:
            raise self.refused(node, "averages the input, a flattened value or an average", "average a layer's map")
        if name == "mean" and (shape[:2] != kept[:2] or prod(shape[2:]) != 1):
            raise self.refused(node, "is no mean over the whole map", "mean((2, 3))")
        window = size if out == (1, 1) else (size[0] // out[0], size[1] // out[1])
        if not name.startswith("adaptive") and name != "mean":
            window = self._window(node, module)
        if out != (size[0] // window[0], size[1] // window[1]) or (name.startswith("adaptive") and out != (1, 1)):
            why = "averages over windows that overlap, leave gaps or are padded"
            raise self.refused(node, why, "stride = kernel_size and no padding, or AdaptiveAvgPool2d(1)")
        return _Value(read.draft, window if window != (1, 1) else None, flat=len(shape) == 2)

    def _window(self, node: fx.Node, module: nn.Module | None) -> Size:
        if module is not None:
            parts: dict[str, Any] = vars(module)
        else:
            names = ("input", "kernel_size", "stride", "padding", "ceil_mode")
            parts = dict(zip(names, node.args, strict=False)) | node.kwargs
        one = len(_shape(node)) == 3
        kernel, stride, padding = (_two(parts.get(k), one) for k in ("kernel_size", "stride", "padding"))
        if kernel is None or stride not in (None, kernel) or any(padding or ()) or parts.get("ceil_mode"):
            why = "averages over windows that overlap, leave gaps or are padded"
            raise self.refused(node, why, "stride = kernel_size and no padding, or AdaptiveAvgPool2d(1)")
        return (kernel[0], 1) if one else kernel

    def _reshaped(self, node: fx.Node, read: _Value) -> _Value:
        shape, before = _shape(node), _shape(node.all_input_nodes[0])
        if len(shape) == 2 and shape == (before[0], prod(before[1:])):
            return _Value(read.draft, read.pool, flat=True)
        if not read.flat and len(shape) > 2 and shape[:2] == before[:2] and (*shape[2:], 1)[:2] == (*before[2:], 1)[:2]:
            return read
        raise self.refused(node, f"reshapes {tuple(before[1:])} to {tuple(shape[1:])}", "Flatten to one row per sample")


_CONVOLVE = "a convolution of stride 2, or AvgPool2d"
_INSTEAD = {
    "maxpool1d": _CONVOLVE,
    "maxpool2d": _CONVOLVE,
    "softmax": "end in the logits: they are what is certified",
    "logsoftmax": "end in the logits: they are what is certified",
} | dict.fromkeys(("relu6", "leakyrelu", "gelu", "silu", "sigmoid", "tanh", "elu", "hardswish"), "ReLU")
"""What to use in place of what has no layer, by the operation's name."""


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = node.meta["shape"]
    return shape


def _two(value: Any, one: bool) -> Size | None:
    """A side, or several, as (down, right); along a signal the second is the first."""
    if value is None:
        return None
    sides = (value,) if isinstance(value, int) else tuple(value)
    return (sides[0], sides[0] if one or len(sides) == 1 else sides[1])
