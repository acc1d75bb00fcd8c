"""Modules of the user's own: the same function and weights as layers, or a refusal that names the module and a way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_model import ModelRecipe
from cactus_edge.train.allocation import begun
from cactus_edge.train.build import build
from cactus_edge.train.checkpoints import run_key
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import fold, forward
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network
from cactus_edge.train.own import fingerprint

SHAPE = (8, 8, 1)

Own = Callable[..., Network]


class Residual(nn.Module):
    """Stem, depthwise block with identity, projected block whose shortcut comes after, mean, classifier."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1, bias=bias), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(6, 6, 3, padding="same", groups=6)
        self.point = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.main = nn.Conv2d(6, 8, (3, 2), (2, 1), (1, 1))
        self.short = nn.Conv2d(6, 8, (1, 2), (2, 1), (0, 1))
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(self.point(torch.relu(self.depthwise(x)))) + x)
        x = torch.relu(torch.add(self.main(x), self.short(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.out(self.drop(torch.flatten(x, 1)))


class Signal(nn.Module):
    """Conv1d and its friends."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.pool = nn.Conv1d(3, 5, 5, 2, 2), nn.BatchNorm1d(5), nn.AvgPool1d(3)
        self.b, self.c, self.out = nn.Conv1d(5, 4, 3), nn.Linear(4 * 3, 6), nn.Linear(6, 4)
        self.rows = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(self.pool(F.relu(self.norm(self.a(x))))))
        return self.out(F.relu(self.rows(self.c(x.view(x.size(0), -1)))))


class Late(nn.Module):
    """The open end of the sum is computed before what it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.out = nn.Linear(4 * 2 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = self.b(x)
        z = self.c(x).relu()
        y = y + z
        return self.out(F.avg_pool2d(y.relu(), (2, 1)).flatten(1))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Own:
    """The network of what `make()` gives, as the function make of an imported module own_nets."""

    def network(make: Callable[[], object], shape: tuple[int, int, int] = SHAPE, classes: int = 10) -> Network:
        module = ModuleType("own_nets")
        module.make = lambda shape, classes: make()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "own_nets", module)
        return build(ModelRecipe(module="own_nets:make"), shape, classes, 3)

    return network


@pytest.mark.parametrize(
    ("make", "shape", "classes"),
    [
        pytest.param(Residual, SHAPE, 10, id="residual"),
        pytest.param(lambda: Residual(bias=False), SHAPE, 10, id="no_bias"),
        pytest.param(Signal, (30, 1, 3), 4, id="signal"),
        pytest.param(Late, SHAPE, 10, id="open_end_first"),
        pytest.param(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SHAPE, 10, id="linear"),
    ],
)
def test_the_layers_are_the_module(
    own: Own, make: Callable[[], nn.Module], shape: tuple[int, int, int], classes: int
) -> None:
    network = own(make, shape, classes)
    torch.manual_seed(3)
    module = make().eval()
    x = torch.rand((5, shape[2], shape[0], shape[1]), generator=torch.Generator().manual_seed(1))
    theirs = module(x[..., 0] if isinstance(module, Signal) else x)
    assert torch.allclose(theirs, forward(fold(network.layers()), x), atol=1e-5)
    weights = sorted(
        float(w.detach().sum()) for n, w in module.named_parameters() if n.endswith("weight") and w.ndim > 1
    )
    assert sorted(float(layer.weight.detach().sum()) for layer in network.layers()) == pytest.approx(weights, abs=1e-5)


class Bad(nn.Module):
    def __init__(self, body: Callable[[Bad, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3, 2, 1), nn.Linear(64, 10)
        for name, part in parts.items():
            self.add_module(name, part)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def _ends(self: Bad, x: Tensor) -> Tensor:
    return self.out(torch.flatten(x, 1))  # type: ignore[no-any-return]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(torch.flatten(x * mask, 1))  # type: ignore[no-any-return]


class Optional(Masked):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) if mask is not None else self.out(torch.flatten(x, 1))


def _normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


def _holding(name: str, value: float) -> nn.Module:
    """A module with that value in the parameter or buffer `name`."""
    module = _normed()
    module.state_dict()[name].view(-1)[1] = value
    return module


def _huge() -> nn.Module:
    module = nn.Linear(64, 10)
    nn.init.constant_(module.weight, 3e38)
    return nn.Sequential(nn.Flatten(), module)


def _tied(share: Callable[[nn.Linear, nn.Linear], object]) -> nn.Module:
    one, other = nn.Linear(64, 64), nn.Linear(64, 64)
    share(one, other)
    return nn.Sequential(nn.Flatten(), one, nn.ReLU(), other, nn.ReLU(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10)),
            ["2, MaxPool2d", "stride 2"], id="max_pool",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 10)),
            ["1, GELU", "try: ReLU"], id="gelu",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)), ["Softmax", "logits"], id="softmax"
        ),
        pytest.param(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), ["10 outputs"], id="classes"),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(1, 4, 3, dilation=2), nn.Flatten(), nn.Linear(64, 10)),
            ["dilation"], id="dilation",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)), ["AvgPool2d", "the input"],
            id="means_of_the_input",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10)),
            ["2, BatchNorm2d", "before sum and ReLU"], id="norm_after_relu",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AvgPool2d(3, 2), nn.Flatten(), nn.Linear(36, 10)),
            ["AvgPool2d", "overlap"], id="windows_that_overlap",
        ),
        pytest.param(
            lambda: Bad(lambda s, x: _ends(s, s.conv(x).relu() + s.conv2(x).relu()), conv2=nn.Conv2d(1, 4, 3, 2, 1)),
            ["add", "neither"], id="sum_of_two_activations",
        ),
        pytest.param(
            lambda: Bad(lambda s, x: _ends(s, s.again(s.again(s.conv(x)))), again=nn.Conv2d(4, 4, 1)),
            ["again", "used twice"], id="shared_weights",
        ),
        pytest.param(lambda: Bad(lambda s, x: _ends(s, s.conv(x) * 2)), ["mul"], id="a_product"),
        pytest.param(lambda: Bad(lambda s, x: _ends(s, s.conv(x) if x.sum() > 0 else x)), ["traced"], id="control_flow"),
        pytest.param(lambda: Residual, ["gives type"], id="no_module"),
        pytest.param(lambda: 1 // 0, ["ZeroDivisionError"], id="fails"),
        pytest.param(lambda: sys.exit(0), ["SystemExit: 0"], id="exits"),
        pytest.param(lambda: Bad(lambda s, x: sys.exit(0)), ["fails on an input", "SystemExit: 0"], id="exits_in_forward"),
        pytest.param(lambda: _holding("4.weight", float("nan")), ["4.weight holds NaN or infinity"], id="nan_weight"),
        pytest.param(lambda: _holding("1.bias", float("inf")), ["1.bias holds NaN or infinity"], id="infinite_bias"),
        pytest.param(
            lambda: _holding("1.running_mean", float("-inf")), ["1.running_mean holds NaN"], id="infinite_statistic"
        ),
        pytest.param(lambda: _holding("1.running_var", -0.25), ["1.running_var holds -0.25"], id="negative_variance"),
        pytest.param(_huge, ["gives NaN or infinity"], id="infinite_outputs"),
        pytest.param(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(63, 10)),
            ["(4, 1, 8, 8)", "1, Linear(in_features=63", "shapes cannot be multiplied", "takes one float tensor"],
            id="another_shape",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, dtype=torch.complex64)),
            ["1.weight is torch.complex64", "real"], id="complex",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta")),
            ["1.weight", "device meta", "on the CPU"], id="meta",
        ),
        pytest.param(Masked, ["missing 1 required positional argument: 'mask'", "takes one"], id="two_arguments"),
        pytest.param(Optional, ["cannot be traced", "one argument"], id="an_optional_argument"),
        pytest.param(lambda: Bad(lambda s, x: (_ends(s, x),)), ["forward gives tuple", "one tensor"], id="a_tuple"),
        pytest.param(
            lambda: _tied(lambda a, b: setattr(b, "weight", a.weight)), ["3, Linear", "its weight is 1.weight"], id="tied"
        ),
        pytest.param(
            lambda: _tied(lambda a, b: setattr(b.bias, "data", a.bias.data)), ["its bias is 1.bias"], id="tied_data"
        ),
    ],
)  # fmt: skip
def test_refusals(own: Own, make: Callable[[], nn.Module], words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        own(make)
    assert str(caught.value).startswith("own_nets:make") and all(word in str(caught.value) for word in words)
    assert "\n" not in caught.value.message and capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_are_drawn_by_the_seed_and_the_global_generator_stays(own: Own) -> None:
    before = torch.get_rng_state()
    one, other = (
        own(lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))) for _ in "ab"
    )
    assert fingerprint(one) == fingerprint(other) and torch.equal(before, torch.get_rng_state())


def test_a_module_whose_own_train_returns_nothing(own: Own) -> None:
    class Forgets(Masked):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.out(torch.flatten(x, 1))  # type: ignore[no-any-return]

    assert len(own(Forgets).layers()) == 1


@pytest.mark.parametrize(
    ("module", "word"),
    [
        pytest.param("no_such_nets:make", "no_such_nets.py", id="module"),
        pytest.param("small_nets:build", "build", id="function"),
        pytest.param("broken_nets:make", "ZeroDivisionError", id="import_fails"),
        pytest.param("leaving_nets:make", "SystemExit: 0", id="import_exits"),
    ],
)
def test_a_function_that_is_not_there(tiny: Recipe, tmp_path: Path, module: str, word: str) -> None:
    _recipe(tiny, tmp_path)
    (tmp_path / "broken_nets.py").write_text("1 // 0\n")
    (tmp_path / "leaving_nets.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(InputError, match=word):
        build(ModelRecipe(module=module, folder=str(tmp_path)), SHAPE, 10, 0)


NETS = """\
import torch
from torch import nn

def make(shape, classes):
    h, w, c = shape
    return nn.Sequential(
        nn.Conv2d(c, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Flatten(),
        nn.Linear(WIDTH * h * w // 4, 9), nn.ReLU(), nn.Linear(9, classes),
    )
"""


def _recipe(tiny: Recipe, folder: Path, width: int = 6) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "small_nets.py").write_text(NETS.replace("WIDTH", str(width)))
    model = ModelRecipe(module="small_nets:make", folder=str(folder))
    return replace(tiny, model=model, compress=replace(tiny.compress, keep=0.5))


@pytest.mark.parametrize(
    "change", ["sys.path.remove(sys.path[0])", "sys.path[:] = sys.path[2:]", "sys.path.insert(0, '/odd')"]
)
def test_a_file_may_change_where_modules_are_looked_for(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "nets"
    recipe = _recipe(tiny, folder)
    (folder / "small_nets.py").write_text(f"import sys\n{change}\n{NETS.replace('WIDTH', '6')}")
    assert len(build(recipe.model, SHAPE, 10, 0).layers()) == 3
    assert str(folder) not in sys.path


def test_a_module_trains_and_its_structure_and_weights_are_part_of_the_run(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    one, other = _recipe(tiny, tmp_path / "a"), _recipe(tiny, tmp_path / "b", 8)
    assert one.digest() == other.digest()
    keys = [run_key(r, few_digits, seed=s) for r, s in ((one, 0), (other, 0), (one, 1), (one, 0))]
    assert len(set(keys)) == 3 and keys[0] == keys[3]
    first, second = (begun(r, SHAPE, 10, 0) for r in (one, one))
    assert fingerprint(first) == fingerprint(second) != fingerprint(begun(other, SHAPE, 10, 0))
    assert (first.widths(), first.kept_widths()) == ((6, 9), (3, 5))
    assert begun(one, SHAPE, 10, 0, compressed=True).widths() == (3, 5)
    trained = train(one, few_digits, tmp_path, threads=1)
    assert (trained.widths_before, trained.widths_after) == ((6, 9), (3, 5))
    assert train(one, few_digits, tmp_path, threads=1).digest() == trained.digest()
