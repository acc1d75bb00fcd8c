"""Post-hoc compression, HYDRA, NRSLoss and torch-pruning's criteria: what they keep, that they resume, what they share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from train_kit import same_after_ctrl_c, untimed

from cactus_edge.errors import InputError, InstallError
from cactus_edge.formats.onnx import read_onnx
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.ops import Reshape
from cactus_edge.recipe import Recipe, load_recipe
from cactus_edge.train.bounds import ball, propagate
from cactus_edge.train.build import build
from cactus_edge.train.data import Dataset
from cactus_edge.train.float_onnx import float_onnx
from cactus_edge.train.folded import detach, fold, fold_batch, forward
from cactus_edge.train.loop import train
from cactus_edge.train.methods import hydra, nncf, nncf_pruning, nncf_tool, nrs, posthoc, stages, torch_pruning
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.ibp import IBP
from cactus_edge.train.objectives.loss import Batch, Member, Step
from cactus_edge.train.plain import Plain

Make = Callable[..., Network]
UNIT = (Fraction(0), Fraction(1))
SHARING = ("posthoc-l1", "posthoc-gamma", "posthoc-random", "hydra")
KEPT = (4, 7)


def sample(count: int = 20) -> Batch:
    x = torch.rand((count, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    y = torch.arange(count) % 4
    return Batch(x, y, ball(x, 0.02, UNIT))


@pytest.fixture(scope="module")
def short(tiny: Recipe) -> Recipe:
    train_ = replace(tiny.train, epochs=2, ramp_epochs=1, warmup_epochs=0)
    return replace(tiny, train=train_, compress=replace(tiny.compress, finetune_epochs=3, average_epochs=1))


@pytest.mark.parametrize("method", [*SHARING, "nrs"])
def test_the_recipes_channels_are_left_and_every_epoch_is_spent(
    short: Recipe, few_digits: Dataset, tmp_path: Path, method: str
) -> None:
    made = train(short, few_digits, tmp_path, method=method)
    assert made.widths_before == (6, 10) and made.widths_after == KEPT
    assert len(made.history) == short.train.epochs + short.compress.finetune_epochs
    assert made.ceilings is None, "ranges are calibrated afterwards"


def test_the_dense_network_is_trained_once(short: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    told: dict[str, list[str]] = {}
    for method in SHARING:
        told[method] = []
        made = train(short, few_digits, tmp_path, lambda e, to=told[method]: to.append(e.stage), method=method)
        alone = train(short, few_digits, tmp_path / method, method=method)
        assert made.digest() == alone.digest(), "as if it had trained it itself"
        assert untimed(made) == untimed(alone)
    assert [("dense" in stages) for stages in told.values()] == [True, False, False, False]


def test_another_dense_network_is_not_taken(short: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    train(short, few_digits, tmp_path, method="posthoc-l1")
    told: list[str] = []
    other = replace(short, train=replace(short.train, learning_rate=0.02))
    train(other, few_digits, tmp_path, lambda e: told.append(e.stage), method="posthoc-gamma")
    assert "dense" in told


@pytest.mark.parametrize("method", ["posthoc-l1", "hydra", "nrs"])
@pytest.mark.parametrize("after", [2, 4])
def test_an_interrupted_run_goes_on_with_the_same_bits(
    short: Recipe, few_digits: Dataset, tmp_path: Path, method: str, after: int
) -> None:
    same_after_ctrl_c(short, few_digits, tmp_path, method, after)


def test_criteria_are_what_they_are_called(make_network: Make) -> None:
    layers = make_network(0).layers()
    for layer, l1, gamma in zip(layers, posthoc.l1(layers), posthoc.gamma(layers), strict=False):
        assert layer.norm is not None
        factor = layer.norm.gamma / torch.sqrt(layer.norm.var + 1e-5)
        assert torch.allclose(l1, torch.stack([(f * w).abs().sum() for f, w in zip(factor, layer.weight, strict=True)]))
        assert torch.equal(gamma, layer.norm.gamma.abs())
    one, same, other = (posthoc.random(seed)(layers) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in zip(one, same, other, strict=True))


def test_a_channel_that_training_switched_off_goes_first(make_network: Make) -> None:
    """By a small gamma, or by a shift below any activation: its own weights are as large as ever."""
    network, batch = make_network(0), sample()
    norm = network.layers()[0].norm
    assert norm is not None
    with torch.no_grad():
        norm.gamma[2], norm.beta[3] = 1e-3, -100.0
    layers = network.layers()
    assert int(posthoc.l1(layers)[0].argmin()) == 2 and int(posthoc.gamma(layers)[0].argmin()) == 2
    assert float(nrs.score(layers, batch)[0][3]) == -1 < float(nrs.score(layers, batch)[0][0])


def test_no_gamma_without_batch_normalisation(make_network: Make) -> None:
    with pytest.raises(InputError, match="hidden layer 0 has no batch normalisation"):
        posthoc.gamma(make_network(0, batch_norm=False).layers())


@pytest.mark.parametrize("batch_norm", [True, False])
def test_hydra_switches_channels_as_removal_does(make_network: Make, batch_norm: bool) -> None:
    network = make_network(1, batch_norm=batch_norm)
    scored = hydra.Scored(network.layers(), (3, 2, 5))
    x = sample().x
    assert torch.allclose(forward(fold(scored.layers()), x), forward(fold(scored.chosen().layers()), x), atol=1e-5)
    assert scored.chosen().widths() == (3, 2, 5)
    whole = hydra.Scored(network.layers(), (5, 6, 8))
    assert torch.allclose(forward(fold(whole.layers()), x), forward(fold(network.layers()), x), atol=1e-6)


def test_hydra_trains_scores_and_nothing_else(make_network: Make) -> None:
    scored = hydra.Scored(make_network(1).layers(), (3, 2, 5))
    free = {name for name, p in scored.named_parameters() if p.requires_grad}
    assert free == {"score0", "score1", "score2"}
    fold_batch(scored.layers(), sample().x).logits.square().sum().backward()  # type: ignore[no-untyped-call]
    for i, kept in enumerate((3, 2, 5)):
        gradient = getattr(scored, f"score{i}").grad
        assert gradient is not None and int((gradient != 0).sum()) > kept, (
            "straight through, also to channels that are off"
        )


def test_hydra_begins_with_the_choice_by_magnitude(make_network: Make) -> None:
    layers = make_network(2).layers()
    for score, l1, kept in zip(hydra.Scored(layers, (3, 2, 5)).scores(), posthoc.l1(layers), (3, 2, 5), strict=True):
        assert set(score.topk(kept).indices.tolist()) == set(l1.topk(kept).indices.tolist())


def check_stability(net_and_bounds: tuple[torch.Tensor, ...], low: torch.Tensor, high: torch.Tensor) -> None:
    """A neuron counts as stable exactly where the region cannot switch it by more than its scale."""
    steady = net_and_bounds[0]
    sure = (low > 0) | (high < 0)
    assert bool((steady[sure] >= float(torch.tanh(torch.tensor(1.0))) - 1e-6).all())
    assert bool((steady[low * high < -100] < -0.9).all())


def test_nrs_rewards_stable_neurons(make_network: Make) -> None:
    network, batch = make_network(3), sample()
    net = fold_batch(network.layers(), batch.x).net
    bounds = propagate(net, batch.region, batch.y)
    check_stability(nrs.stability(net, bounds), bounds.pre[0].lower, bounds.pre[0].upper)
    with pytest.raises(AssertionError):  # the sign of the product turned round
        check_stability(tuple(-t for t in nrs.stability(net, bounds)), bounds.pre[0].lower, bounds.pre[0].upper)


def test_nrs_adds_its_term_to_any_loss(make_network: Make) -> None:
    batch, step = sample(), Step(1.0, 0.02, 0.5)
    member = Member(fold_batch(make_network(3).layers(), batch.x).net)
    plain, with_term = IBP.of(member, batch, step), nrs.regularised(IBP, 0.25).of(member, batch, step)
    mean = torch.cat([t.flatten() for t in nrs.stability(member.net, plain.bounds)]).mean()
    assert torch.allclose(with_term.loss, plain.loss - 0.25 * mean)


def test_nrs_goes_down_to_the_kept_channels_in_rounds() -> None:
    steps = [(64, 10)]
    for left in range(nrs.ROUNDS, 0, -1):
        steps.append(nrs.widths(steps[-1], (16, 7), left))
    assert steps[-1] == (16, 7) and steps[1][0] == round(64 * 4 ** (-1 / nrs.ROUNDS))
    assert all(a >= b for one, two in pairwise(steps) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("epochs", [0, 1, 5, 12, 13])
def test_rounds_and_rest_spend_the_finetuning(tiny: Recipe, epochs: int) -> None:
    recipe = replace(tiny, compress=replace(tiny.compress, finetune_epochs=epochs))
    for method in ("nrs", "hydra", "posthoc-l1"):
        spent = [stage.schedule(recipe).epochs for stage in stages(method, recipe)[1:]]
        assert sum(spent) == epochs, method


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("batch_norm", [True, False])
def test_ordinary_modules_compute_the_same(make_network: Make, seed: int, batch_norm: bool) -> None:
    network = make_network(seed, batch_norm=batch_norm)
    x = sample().x
    assert torch.allclose(Plain(network.layers())(x), forward(fold(network.layers()), x), atol=1e-5)


def test_torch_prunings_criteria(make_network: Make, tiny: Recipe) -> None:
    pytest.importorskip("torch_pruning")
    network = make_network(4)
    layers = network.layers()
    gammas = torch_pruning.scores(layers, lambda criteria: criteria.BNScaleImportance())
    for found, expected in zip(gammas, posthoc.gamma(layers), strict=True):
        assert torch.allclose(found / found.sum(), expected / expected.sum(), atol=1e-6)
    norms = torch_pruning.scores(layers, lambda criteria: criteria.GroupMagnitudeImportance())
    own = [layer.weight.square().sum((1, 2, 3)) for layer in layers]
    read = [layers[i + 1].weight.square().sum((0, 2, 3)) for i in range(3)]
    assert len(norms) == 3 and [len(n) for n in norms] == [5, 6, 8]
    assert torch.corrcoef(torch.stack([norms[0], own[0] + read[0] + gammas[0]]))[0, 1] > 0.5
    slopes = torch_pruning.certified_gradients(layers, tiny, sample())
    taylor = torch_pruning.scores(layers, lambda criteria: criteria.GroupTaylorImportance(), slopes)
    assert all(bool((t >= 0).all()) and float(t.sum()) > 0 for t in taylor)


def test_without_the_tool_the_error_says_how_to_install_it(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(InstallError, match="torch-pruning") as refused:
        torch_pruning.scores(make_network(0).layers(), lambda criteria: criteria.BNScaleImportance())
    assert refused.value.hint == "pip install 'cactus-edge[baselines]'"


def test_a_model_written_for_other_tools_computes_the_same(make_network: Make) -> None:
    runtime = pytest.importorskip("onnxruntime")
    net = detach(fold(make_network(5).layers()))
    model = float_onnx(net, (7, 6, 2))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = sample().x
    (found,) = session.run(None, {"x": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), forward(net, x), atol=1e-5)


def test_nncfs_file_is_read_into_the_integer_graph(tiny: Recipe, few_digits: Dataset) -> None:
    pytest.importorskip("nncf")
    net = detach(fold(build(tiny.model, few_digits.shape, 10, 0).layers()))
    graph = read_onnx(nncf.quantised(net, few_digits)).graph
    assert [type(node.op).__name__ for node in graph.nodes] == [
        "Quantize",
        "Conv2d",
        "Reshape",
        "Dense",
        "Dense",
        "Dequantize",
    ]
    x = few_digits.validation.x[:32]
    real = forward(net, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    integer = torch.from_numpy(evaluate(graph, x, profile("ort-x86")))
    assert float((integer - real).abs().mean()) < 0.2 * float(real.abs().mean()), (
        "the same function, rounded and clipped"
    )


@pytest.mark.skipif(shutil.which("c++") is None, reason="NNCF compiles its quantisers for torch with c++")
def test_nncfs_quantisation_aware_training_ends_in_the_integer_graph(few_digits: Dataset) -> None:
    pytest.importorskip("nncf")
    net = fold(build(load_recipe("digits").model, few_digits.shape, 10, 0).layers())
    graph = read_onnx(nncf.trained_quantised(net, few_digits, seed=0)).graph
    assert [type(node.op).__name__ for node in graph.nodes if not isinstance(node.op, Reshape)] == [
        "Quantize",
        "Conv2d",
        "Conv2d",
        "Dense",
        "Dense",
        "Dequantize",
    ]
    x = few_digits.validation.x[:32]
    real = forward(detach(net), torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    integer = torch.from_numpy(evaluate(graph, x, profile("ort-x86")))
    same = float(torch.corrcoef(torch.stack([integer.flatten(), real.flatten()]))[0, 1])
    assert same > 0.9, "two epochs at a small rate change it a little"


def test_without_torchao_nncfs_training_says_how_to_install_it(
    make_network: Make, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InstallError, match="torchao") as refused:
        nncf.trained_quantised(fold(make_network(0).layers()), few_digits, seed=0)
    assert refused.value.hint == "pip install 'cactus-edge[baselines]'"


def test_without_nncf_the_error_says_how_to_install_it(
    make_network: Make, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InstallError, match="NNCF") as refused:
        nncf.quantised(detach(fold(make_network(0).layers())), few_digits)
    assert refused.value.hint == "pip install 'cactus-edge[baselines]'"


def test_single_weights_go_by_magnitude_too(short: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    """[compress] sparsity with a post-hoc method: the dense network's smallest weights, and they stay away."""
    half = replace(short, compress=replace(short.compress, sparsity=0.5))
    made = train(half, few_digits, tmp_path, method="posthoc-l1")
    weights = torch.cat([layer.weight.flatten() for layer in made.network.layers()])
    assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_hydra_chooses_single_weights(short: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    whole = replace(short.model, layer=tuple(replace(layer, kept=0) for layer in short.model.layer))
    half = replace(short, model=whole, compress=replace(short.compress, sparsity=0.5, sparsity_scope="layer"))
    made = train(half, few_digits, tmp_path, method="hydra-weights")
    for layer in made.network.layers():
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(InputError, match="hydra-weights lets a share of the weights go"):
        train(short, few_digits, tmp_path, method="hydra-weights")


@pytest.fixture(scope="module")
def half(short: Recipe) -> Recipe:
    """Half of the weights go, and no channel."""
    whole = replace(short.model, layer=tuple(replace(layer, kept=0) for layer in short.model.layer))
    return replace(short, model=whole, compress=replace(short.compress, sparsity=0.5, finetune_epochs=4))


@pytest.mark.parametrize("by_layer", [True, False])
def test_nncfs_smallest_weights(make_network: Make, by_layer: bool) -> None:
    pytest.importorskip("nncf")
    layers = make_network(1).layers()
    norms = [layer.weight.abs() / (1 if by_layer else layer.weight.norm()) for layer in layers]
    level = [torch.cat([n.flatten() for n in norms]).median()] * len(norms)
    for mask, norm, one in zip(nncf_pruning.smallest(layers, 0.5, by_layer=by_layer), norms, level, strict=True):
        assert torch.equal(mask, norm > (norm.flatten().median() if by_layer else one))


@pytest.mark.parametrize("method", ["nncf-magnitude", "nncf-regularised"])
def test_nncf_prunes_single_weights(half: Recipe, few_digits: Dataset, tmp_path: Path, method: str) -> None:
    pytest.importorskip("nncf")
    made = train(half, few_digits, tmp_path, method=method)
    weights = torch.cat([layer.weight.flatten() for layer in made.network.layers()])
    assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert len(made.history) == half.train.epochs + half.compress.finetune_epochs
    same_after_ctrl_c(half, few_digits, tmp_path / "again", method, half.train.epochs + 1)


@pytest.mark.parametrize("method", ["nncf-magnitude", "nncf-regularised"])
def test_what_nncf_cannot_prune_is_refused_before_training(
    short: Recipe, half: Recipe, few_digits: Dataset, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=f"{method} lets a share of the weights go"):
        train(short, few_digits, tmp_path, method=method)
    monkeypatch.setattr(nncf_tool, "find_spec", lambda _: None)
    with pytest.raises(InstallError, match="needs NNCF"):
        train(half, few_digits, tmp_path, method=method)
    assert not list(tmp_path.iterdir())


def test_nncfs_masks_are_what_is_trained(make_network: Make) -> None:
    """RBLoss counts the weights that are left, and reaches every mask; what a mask switches off is 0; noise is there on demand."""
    pytest.importorskip("nncf")
    network, x = make_network(1), sample().x
    made = nncf_pruning.Regularised(network.layers())
    assert torch.allclose(forward(fold(made.layers()), x), forward(fold(network.layers()), x)), "masks begin on"
    free = [p for p in made.parameters() if p.requires_grad]
    assert [p.numel() for p in free] == list(network.weights())
    found = made.penalty(0.75)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == pytest.approx((0.75 / nncf_pruning.WIDTH) ** 2)
    assert all(p.grad is not None and bool((p.grad > 0).all()) for p in free), "down, each of them"
    with torch.no_grad():
        free[0].view(-1)[:7] = -1.0
    assert int((made.layers()[0].weight.flatten()[:7] != 0).sum()) == 0
    assert int((made.layers()[0].weight == 0).sum()) == 7
    assert made.penalty(7 / sum(network.weights())).item() == pytest.approx(0, abs=1e-6)
    made.noisy(True)
    with torch.no_grad():
        free[0].zero_()
    assert not torch.equal(made.layers()[0].weight, made.layers()[0].weight)


def test_scores_of_weights_get_gradients_everywhere(make_network: Make) -> None:
    scored = hydra.ScoredWeights(make_network(1).layers(), 0.5)
    assert {name[:5] for name, p in scored.named_parameters() if p.requires_grad} == {"score"}
    fold_batch(scored.layers(), sample().x).logits.square().sum().backward()  # type: ignore[no-untyped-call]
    for i, layer in enumerate(scored.layers()):
        off = layer.weight == 0
        assert float(off.float().mean()) == pytest.approx(0.5, abs=0.05)
        assert float(getattr(scored, f"score{i}").grad[off].abs().sum()) > 0
