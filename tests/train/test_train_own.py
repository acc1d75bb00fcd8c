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
    ],
)  # fmt: skip
def test_refusals(own: Own, make: Callable[[], nn.Module], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        own(make)
    assert str(caught.value).startswith("own_nets:make") and all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("module", "word"),
    [
        pytest.param("no_such_nets:make", "no_such_nets.py", id="module"),
        pytest.param("small_nets:build", "build", id="function"),
        pytest.param("broken_nets:make", "ZeroDivisionError", id="import_fails"),
    ],
)
def test_a_function_that_is_not_there(tiny: Recipe, tmp_path: Path, module: str, word: str) -> None:
    _recipe(tiny, tmp_path)
    (tmp_path / "broken_nets.py").write_text("1 // 0\n")
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
