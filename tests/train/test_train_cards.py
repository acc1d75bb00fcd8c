"""Lottery tickets, edge-popup, biprop, FT and GMP: what goes and stays away, what is rewound, which gradients flow, that they resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from train_kit import CtrlC, same_after_ctrl_c

from cactus_edge.errors import InputError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.formats.zeros import zeros as zeros_of
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.ops import constants
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_sections import CompressRecipe, TrainRecipe
from cactus_edge.train import loop
from cactus_edge.train.calibrate import to_graph
from cactus_edge.train.checkpoints import checkpoint
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import fold_batch
from cactus_edge.train.loop import EpochStats, planned, train
from cactus_edge.train.methods import lottery, popup, stages
from cactus_edge.train.methods.biprop import BinaryTicket
from cactus_edge.train.methods.gradual import Thinning, gradual
from cactus_edge.train.methods.hydra import Scored
from cactus_edge.train.methods.moving import UPDATES
from cactus_edge.train.methods.popup import Ticket
from cactus_edge.train.models import Network
from cactus_edge.train.sparsity import Masks, Sparsity, present
from cactus_edge.train.trained import TrainedModel
from cactus_edge.verify.tflite_read import read_tflite

Make = Callable[..., Network]
CARDS = ("ft", "gmp", "lth", "lrr", "edge-popup", "biprop")


@pytest.fixture(scope="module")
def card(tiny: Recipe) -> Recipe:
    """Two epochs a round, rounds of 50, 75 and 90 per cent; nothing but cross-entropy, all channels."""
    layers = tuple(replace(layer, kept=0) for layer in tiny.model.layer)
    train_ = replace(tiny.train, epochs=2, ramp_epochs=1, warmup_epochs=0, objective="standard")
    compress = replace(tiny.compress, finetune_epochs=0, sparsity=0.9, round_share=0.5)
    return replace(tiny, model=replace(tiny.model, layer=layers, init="kaiming"), train=train_, compress=compress)


def zeros(network: Network) -> float:
    weights = torch.cat([layer.weight.detach().flatten() for layer in network.layers()])
    return float((weights == 0).double().mean())


@pytest.mark.parametrize("method", CARDS)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_file_gets_the_share_of_zeros(
    card: Recipe, few_digits: Dataset, tmp_path: Path, method: str, scope: str
) -> None:
    recipe = replace(card, compress=replace(card.compress, sparsity_scope=scope))
    made = train(recipe, few_digits, tmp_path, method=method)
    assert zeros(made.network) == pytest.approx(0.9, abs=0.005)
    assert type(made.network) is Network, "what a method needs while it trains is gone"
    each = [float((layer.weight == 0).double().mean()) for layer in made.network.layers()]
    assert (max(each) - min(each) < 0.03) == (scope == "layer")
    assert sum(planned(recipe, method).values()) == len(made.history)


@pytest.mark.parametrize("method", ["gmp", "biprop"])
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_card_goes_on_with_the_same_bits(
    card: Recipe, few_digits: Dataset, tmp_path: Path, method: str, after: int
) -> None:
    recipe = replace(
        card, train=replace(card.train, epochs=4), compress=replace(card.compress, finetune_epochs=1, rewind_epochs=1)
    )
    same_after_ctrl_c(recipe, few_digits, tmp_path, method, after)


@pytest.mark.parametrize("after", [2, 5])
def test_an_interrupted_ticket_finds_its_round_and_its_early_state(
    card: Recipe, few_digits: Dataset, tmp_path: Path, after: int
) -> None:
    whole = train(card, few_digits, tmp_path / "whole", method="lth")
    with pytest.raises(KeyboardInterrupt):
        train(card, few_digits, tmp_path / "cut", CtrlC(after), method="lth")
    seen: list[EpochStats] = []
    resumed = train(card, few_digits, tmp_path / "cut", seen.append, method="lth")
    assert len(seen) == len(whole.history) - after and resumed.digest() == whole.digest()
    read = train(card, few_digits, tmp_path / "cut", seen.append, method="lth")
    assert len(seen) == len(whole.history) - after and read.digest() == whole.digest(), "read, and not trained again"


def test_a_checkpoint_of_more_stages_than_the_method_has_is_refused(
    card: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    """Of an earlier version, say, that trained the method in other steps: it would pass for finished."""
    train(card, few_digits, tmp_path, method="gmp")
    file = checkpoint(card, few_digits, tmp_path, "gmp")
    state = torch.load(file, weights_only=True)
    torch.save(state | {"stage": len(stages("gmp", card)) + 1}, file)
    with pytest.raises(InputError, match="it is in stage 3, and gmp has 2 here"):
        train(card, few_digits, tmp_path, method="gmp")


def test_rounds_follow_from_the_share() -> None:
    def shares(share: float, of_round: float) -> tuple[float, ...]:
        return lottery.shares(share, CompressRecipe(sparsity=share, round_share=of_round))

    assert shares(0.9, 0.5) == pytest.approx((0.5, 0.75, 0.875, 0.9))
    assert shares(0.75, 0.5) == pytest.approx((0.5, 0.75)), "no round for a rounding"
    assert len(shares(0.95, 0.2)) == 14
    assert shares(0.1, 0.5) == (0.1,)
    assert CompressRecipe().rounds == CompressRecipe(sparsity="2:4").rounds == 0
    assert [gradual(0.9, part) for part in (0.0, 0.5, 1.0)] == pytest.approx([0, 0.7875, 0.9])


def entered(method: str, card: Recipe, data: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Entered:
    """Each round's network as it is entered and as it is left, and what was early."""
    found: Entered = []
    honest = loop._Run._entered

    def watching(self: loop._Run, stage: loop.Stage) -> Network:
        left = _state(self._network)
        network = honest(self, stage)
        found.append((stage.name, left, _state(network)))
        return network

    monkeypatch.setattr(loop._Run, "_entered", watching)
    train(card, data, folder, method=method)
    return found


Entered = list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]


def _state(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def zeros_in(state: dict[str, Tensor]) -> float:
    weights = torch.cat([value.flatten() for name, value in state.items() if name.startswith("weight")])
    return float((weights == 0).double().mean())


def check_monotone(found: Entered) -> None:
    """A weight that went never comes back, neither by a round nor by training."""
    gone: dict[str, Tensor] = {}
    for _, left, now in found:
        for state in (left, now):
            for name, value in state.items():
                if name.startswith("weight"):
                    zero = value == 0
                    assert name not in gone or bool(zero[gone[name]].all())
                    gone[name] = zero


@pytest.mark.parametrize("method", ["lth", "lrr"])
def test_what_went_stays_away(
    card: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    found = entered(method, card, few_digits, tmp_path, monkeypatch)
    check_monotone(found)
    assert zeros_in(found[-1][2]) == pytest.approx(0.9, abs=0.005)
    assert len({round(zeros_in(now), 2) for *_, now in found}) >= 3, "in steps"
    name, left, now = found[-1]
    now["weight0"][now["weight0"] == 0] = 1.0
    with pytest.raises(AssertionError):  # planted: what went comes back
        check_monotone([(name, left, left), (name, left, now)])


def test_gmp_thins_along_its_curve_and_what_went_stays_away(
    card: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, steps = Thinning.hold, dict[float, dict[str, Tensor]]()

    def watching(network: Thinning) -> None:
        honest(network)
        steps[network.passed] = _state(network)  # the last one of a step counts

    monkeypatch.setattr(Thinning, "hold", watching)
    recipe = replace(card, train=replace(card.train, epochs=4))
    made = train(recipe, few_digits, tmp_path, method="gmp")
    check_monotone([("", state, state) for state in steps.values()])
    assert zeros(made.network) == pytest.approx(0.9, abs=0.005)
    shares = {round(zeros_in(state), 4) for state in steps.values()}
    assert len(shares) >= 12, "in steps"
    for passed, state in steps.items():
        since = gradual(0.9, max(passed - 1 / UPDATES, 0)) - 0.005, gradual(0.9, passed) + 0.005
        assert since[0] <= zeros_in(state) <= since[1], passed
    assert zeros_in(steps[max(steps)]) > 0.88


def rewinds(found: Entered) -> bool:
    """Whether each round begins with the weights that the first one began with, where they are still there."""
    _, _, first = next(f for f in found if f[0] == "round 0")
    rounds = [now for name, _, now in found if name.startswith("round ") and name != "round 0"]
    return all(
        torch.equal(now[k][now[k] != 0], first[k][now[k] != 0]) for now in rounds for k in now if k.startswith("weight")
    )


def test_lth_rewinds_weights_and_lrr_does_not(
    card: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rewinds(entered("lth", card, few_digits, tmp_path, monkeypatch))
    monkeypatch.undo()
    found = entered("lrr", card, few_digits, tmp_path, monkeypatch)
    assert not rewinds(found)
    for name, left, now in found:
        for key in now:
            if key.startswith("weight"):
                there = now[key] != 0
                assert torch.equal(now[key][there], left[key][there]), f"{name}: what is left goes on from where it was"


def test_late_rewinding_goes_back_to_after_the_first_epochs(
    card: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = replace(card, compress=replace(card.compress, rewind_epochs=1))
    found = entered("lth", late, few_digits, tmp_path, monkeypatch)
    start, begun = found[0][2], found[1][2]
    assert not torch.equal(start["weight0"], begun["weight0"]) and rewinds(found)
    assert len(planned(late, "lth")) == len(planned(late, "lrr")) + 1


def test_the_learning_rate_rewinds_each_round(card: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    made = train(replace(card, train=replace(card.train, epochs=3)), few_digits, tmp_path, method="lrr")
    rates = [s.learning_rate for s in made.history]
    assert rates == rates[:3] * 5 and rates[2] < rates[1]


@pytest.mark.parametrize("method", ["gmp", "lth", "lrr"])
def test_rounds_train_by_the_section_of_training(
    method: str, card: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the fine-tuning at the end by its own."""
    real, seen = loop.optimiser, list[str]()

    def optimiser(network: Network, by: TrainRecipe) -> torch.optim.Optimizer:
        seen.append(by.optimiser)
        return real(network, by)

    monkeypatch.setattr(loop, "optimiser", optimiser)
    tuned = replace(card, compress=replace(card.compress, finetune_epochs=1, optimiser="sgd", momentum=0.9))
    train(tuned, few_digits, tmp_path, method=method)
    assert card.train.optimiser == "adam" and seen[-1] == "sgd" and set(seen[:-1]) == {"adam"}
    assert len(seen) == len(stages(method, tuned))


def ticket(make: Make, kind: type[Ticket], share: float = 0.75, *, by_layer: bool = False) -> Ticket:
    return kind(make(1).layers(), Sparsity(None, share, by_layer), 0)


@pytest.mark.parametrize("kind", [Ticket, BinaryTicket])
def test_the_gradient_of_a_score_goes_straight_through(make_network: Make, kind: type[Ticket]) -> None:
    """dL/ds = dL/dw_eff * w * sign(s), for weights that are there and for those that are not."""
    made = ticket(make_network, kind)
    assert {name[:5] for name, p in made.named_parameters() if p.requires_grad} == {"score"}
    layers = made.layers()
    for layer in layers:
        layer.weight.retain_grad()
    x = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    fold_batch(layers, x).logits.square().sum().backward()  # type: ignore[no-untyped-call]
    for i, (layer, mask) in enumerate(zip(layers, made.masks(), strict=True)):
        score, weight, by_weight = getattr(made, f"score{i}"), getattr(made, f"weight{i}"), layer.weight.grad
        assert by_weight is not None and bool((score.grad[~mask] != 0).any())
        assert torch.allclose(score.grad, by_weight * weight * score.sign())
        assert not torch.allclose(score.grad, by_weight * weight), "the sign of the score counts"
        assert not torch.allclose(score.grad, by_weight * weight * score.sign() * mask)


@pytest.mark.parametrize("by_layer", [False, True])
def test_the_threshold_is_strict(make_network: Make, by_layer: bool) -> None:
    made = ticket(make_network, Ticket, by_layer=by_layer)
    count = sum(mask.numel() for mask in made.masks())
    assert sum(int(mask.sum()) for mask in made.masks()) == pytest.approx(count / 4, abs=4)
    with torch.no_grad():
        for i in range(len(made.layers())):
            getattr(made, f"score{i}").fill_(0.5)
    assert not any(bool(mask.any()) for mask in made.masks()), "at the threshold a weight is not there"
    with torch.no_grad():
        made.share.zero_()
    assert all(bool(mask.all()) for mask in made.masks())


def test_weights_go_along_the_ramp(make_network: Make) -> None:
    made = ticket(make_network, Ticket, 0.9)
    for progress, gone in ((0.0, 0.5), (0.5, 1 - (0.1 + 0.4 / 8)), (1.0, 0.9)):
        made.follow(progress)
        assert float(made.share) == pytest.approx(gone)
        shown = torch.cat([mask.flatten() for mask in made.masks()])
        assert float((~shown).double().mean()) == pytest.approx(gone, abs=0.01)
    for fixed in (ticket(make_network, Ticket, 0.9, by_layer=True), ticket(make_network, Ticket, 0.4)):
        before = float(fixed.share)
        fixed.follow(0.0)
        assert float(fixed.share) == before


def check_binary(network: Network) -> None:
    for layer in network.layers():
        there = layer.weight[layer.weight != 0].abs()
        assert len(there) and float(there.max()) == float(there.min())


def test_a_binary_card_has_one_magnitude_a_layer(card: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    recipe = replace(card, train=replace(card.train, epochs=3, learning_rate=0.1))
    made = train(recipe, few_digits, tmp_path, method="biprop").network
    check_binary(made)
    signs = torch.cat([layer.weight.detach().flatten().sign() for layer in made.layers()])
    assert set(signs.tolist()) == {-1.0, 0.0, 1.0}
    norm = made.layers()[0].norm
    assert norm is not None and bool((norm.gamma == 1).all()) and bool((norm.beta == 0).all())
    with pytest.raises(AssertionError):
        check_binary(train(recipe, few_digits, tmp_path, method="edge-popup").network)


@pytest.mark.parametrize("method", ["edge-popup", "biprop"])
def test_a_tickets_normalisation_may_learn(card: Recipe, few_digits: Dataset, tmp_path: Path, method: str) -> None:
    """Its scales and shifts move, its weights stay what they were drawn as, or their signs; what was learned survives Ctrl-C."""
    recipe = replace(card, compress=replace(card.compress, learn_norm=True, finetune_epochs=1))
    made = train(recipe, few_digits, tmp_path, method=method).network
    norms = [layer.norm for layer in made.layers() if layer.norm is not None]
    assert norms and all(bool((n.gamma != 1).any()) and bool((n.beta != 0).any()) for n in norms)
    start = loop.begun(recipe, few_digits.shape, 10, recipe.train.seed)
    for layer, drawn in zip(made.layers(), start.layers(), strict=True):
        there = layer.weight != 0
        assert torch.equal(layer.weight[there].sign(), drawn.weight[there].sign())
        assert torch.equal(layer.bias, drawn.bias)
        assert method == "biprop" or torch.equal(layer.weight[there], drawn.weight[there])
    still = train(
        replace(recipe, compress=replace(recipe.compress, learn_norm=False)), few_digits, tmp_path, method=method
    )
    assert all(bool((layer.norm.gamma == 1).all()) for layer in still.network.layers() if layer.norm is not None)
    same_after_ctrl_c(recipe, few_digits, tmp_path / "again", method, 1)


def test_edge_popup_keeps_the_weights_as_they_were_drawn(card: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    made = train(card, few_digits, tmp_path, method="edge-popup").network
    start = loop.begun(card, few_digits.shape, 10, card.train.seed)
    moved = 0
    for layer, drawn, early in zip(made.layers(), start.layers(), _first_masks(card, start), strict=True):
        there = layer.weight != 0
        assert torch.equal(layer.weight[there], drawn.weight[there])
        moved += int((there != early).sum())
    assert moved > 0, "training chose others"


def _first_masks(card: Recipe, start: Network) -> Masks:
    return Ticket(start.layers(), Sparsity(None, 0.9), card.train.seed).masks()


def test_hydras_scores_learn_also_where_the_weight_is_away(
    card: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objective of the stage that chooses must not stop the gradient at zeros."""
    recipe = replace(card, compress=replace(card.compress, sparsity_scope="layer", finetune_epochs=3))
    stage = next(s for s in stages("hydra-weights", recipe) if s.name == "score")
    network = loop.begun(recipe, few_digits.shape, 10, 0)
    x, y = (t[:20] for t in loop.to_torch(few_digits.train))
    batch = popup.Batch(x, y, loop.ball(x, 0.0, few_digits.domain))
    network = stage.enter(network, recipe, batch)
    away = [~mask for mask in present(network.layers())]
    stage.objective(recipe)(network, batch, popup.Step(1.0, 0.0, 0.0)).loss.backward()  # type: ignore[no-untyped-call]
    for i, mask in enumerate(away):
        assert bool((getattr(network, f"score{i}").grad[mask] != 0).any())


def test_hydras_channels_can_come_back_with_a_sparsity(tiny: Recipe, few_digits: Dataset) -> None:
    """Channels that are off learn by their scores, whether or not weights go as well."""
    for sparsity in ("none", 0.5):
        recipe = replace(tiny, compress=replace(tiny.compress, sparsity=sparsity, finetune_epochs=3))
        stage = next(s for s in stages("hydra", recipe) if s.name == "score")
        network = loop.begun(recipe, few_digits.shape, 10, 0)
        x, y = (t[:20] for t in loop.to_torch(few_digits.train))
        batch = popup.Batch(x, y, loop.ball(x, 0.0, few_digits.domain))
        network = stage.enter(network, recipe, batch)
        assert isinstance(network, Scored)
        scores, kept = network.scores()[0].detach(), network.kept_widths()[0]
        off = scores < scores.sort(descending=True).values[kept - 1]
        stage.objective(recipe)(network, batch, popup.Step(1.0, 0.0, 0.0)).loss.backward()  # type: ignore[no-untyped-call]
        assert off.any() and bool((network.score0.grad[off] != 0).any()), sparsity  # type: ignore[union-attr,operator,index]


@pytest.mark.parametrize("method", CARDS)
def test_what_a_card_cannot_do_is_refused(card: Recipe, few_digits: Dataset, tmp_path: Path, method: str) -> None:
    for wish in ("none", "2:4"):
        with pytest.raises(InputError, match=f"{method} lets a share of the weights go"):
            planned(replace(card, compress=replace(card.compress, sparsity=wish)), method)
    for kept in (
        replace(card, compress=replace(card.compress, keep=0.5)),
        replace(card, model=replace(card.model, layer=(replace(card.model.layer[0], kept=4), *card.model.layer[1:]))),
    ):
        with pytest.raises(InputError, match=f"{method} removes no channels"):
            train(kept, few_digits, tmp_path, method=method)


@pytest.mark.parametrize("method", ["edge-popup", "biprop"])
def test_tickets_have_no_mean(card: Recipe, method: str) -> None:
    averaged = replace(card, compress=replace(card.compress, finetune_epochs=2, average_epochs=1))
    with pytest.raises(InputError, match="average_epochs"):
        planned(averaged, method)


def binary(card: Recipe, data: Dataset, folder: Path) -> TrainedModel:
    """A binary card of convolutions, normalisations that flip and scale each channel included."""
    shape = replace(card.model.layer[0], channels=8, kernel=3, stride=1)
    model = replace(card.model, layer=(shape, replace(shape, channels=12, stride=2)), pool="global")
    recipe = replace(card, model=model, train=replace(card.train, epochs=3, learning_rate=0.1))
    made = train(recipe, data, folder, method="biprop")
    with torch.no_grad():
        for i, layer in enumerate(made.network.layers()):
            if layer.norm is not None:
                drawn = torch.rand(len(layer.norm.gamma), generator=torch.Generator().manual_seed(i)) + 0.3
                layer.norm.gamma.copy_(drawn * (-1.0) ** torch.arange(len(drawn)))
    return made


def check_exact(made: TrainedModel, graph: Graph) -> None:
    """The file's weights are the card's: -127, 0 and 127 in steps that carry magnitude, scale and sign of the channel."""
    nodes = [node.op for node in graph.nodes if "weight" in constants(node.op)]
    for affine, op in zip(made.folded(), nodes, strict=True):
        codes, steps = constants(op)["weight"], constants(op)["weight_scale"]
        real = affine.weight.numpy().transpose(0, 2, 3, 1).reshape(codes.shape)
        assert set(np.unique(codes)) <= {-127, 0, 127}
        stored = codes.astype(np.float64) * steps.astype(np.float64).reshape(-1, *(1,) * (codes.ndim - 1))
        assert np.abs(stored - real).max() <= 2.0**-22 * np.abs(real).max()
        assert np.array_equal(stored == 0, real == 0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_quantising_a_binary_card_is_exact(card: Recipe, few_digits: Dataset, tmp_path: Path, symmetric: bool) -> None:
    made = binary(card, few_digits, tmp_path)
    recipe = replace(card, quantise=replace(card.quantise, calibration="mse", symmetric=symmetric))
    graph = to_graph(made, few_digits, recipe)
    if not symmetric:
        graph = read_tflite(write_tflite(graph, metadata={})).graph
    check_exact(made, graph)
    assert [z.bits for z in zeros_of(graph)] == [1, 1, 1]
    with torch.no_grad():  # planted: a second magnitude in a channel
        row = made.network.layers()[1].weight[0].view(-1)
        row[row.nonzero()[0]] *= 0.77
    with pytest.raises(AssertionError):
        check_exact(made, to_graph(made, few_digits, recipe))
