"""A network that dies in training is gone back from: same bytes every time, also over Ctrl-C, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_kit import CtrlC, untimed

from cactus_edge.recipe import Recipe
from cactus_edge.runs import figures
from cactus_edge.train import loop, recovery
from cactus_edge.train.averaging import nothing
from cactus_edge.train.data import Dataset
from cactus_edge.train.history import EpochStats
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network
from cactus_edge.train.recovery import Guess, Recovery
from cactus_edge.train.stages import Schedule
from cactus_edge.train.trained import TrainedModel

Make = Callable[..., Network]
GUESS = Guess(0.1, math.log(10))


def epoch(number: int, clean: float, certified: float) -> EpochStats:
    return EpochStats("train", number, 9, 0.1, 0.1, 0.1, 1.0, 1.0, clean, certified, 1.0)


def after(network: Network, *shares: tuple[float, float]) -> Recovery:
    """After epochs with these shares of the validation split right and certified; nine in ten training samples right."""
    optimizer = torch.optim.Adam(network.parameters())
    found = Recovery()
    for number, (clean, certified) in enumerate(shares, 1):
        found = found.holding(epoch(number, clean, certified), 0.9, network, optimizer, None)
    return found


def test_guessing() -> None:
    found = Guess.of(torch.tensor([0, 0, 1, 3]))
    assert found.right == 0.5 and found.loss == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize(
    ("found", "loss", "dies"),
    [(0.12, 2.4, True), (0.49, 2.4, True), (0.51, 2.4, False), (0.12, 2.2, False), (0.1, math.nan, True)],
    ids=["dead", "less_than_half", "more_than_half", "a_low_loss", "nan"],
)
def test_what_counts_as_dead(make_network: Make, found: float, loss: float, dies: bool) -> None:
    """Nine tenths were right: half of the way from guessing's tenth to there is one half."""
    assert after(make_network(), (0.9, 0.5)).dies(found, loss, GUESS) is dies


def test_what_never_learned_anything_does_not_die(make_network: Make) -> None:
    assert not Recovery().dies(0.1, 3.0, GUESS)
    assert not after(make_network(), (0.9, 0.5)).dies(0.66, 3.0, Guess(0.66, 0.6)), "an imbalanced set"


def test_the_best_epoch_is_held_and_not_the_last(make_network: Make) -> None:
    network = make_network()
    found = after(network, (0.9, 0.2), (0.8, 0.5), (0.85, 0.4))
    assert found.best is not None and found.best.epoch == 2 and found.slower == 1
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert not torch.equal(found.best.network["weight0"], network.state_dict()["weight0"]), "a copy"
    for _ in range(recovery.MOST):
        assert found.dies(0.1, 3.0, GUESS)
        found = found.returned()
    assert not found.dies(0.1, 3.0, GUESS) and found.slower == 0.5**recovery.MOST


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_keeps_it(make_network: Make, averaged: bool) -> None:
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters())
    average = nothing(network).include(network) if averaged else None
    found = Recovery(returns=2).holding(epoch(3, 0.9, 0.5), 0.8, network, optimizer, average)
    back = Recovery.of(found.to_state())
    assert back.returns == 2 and back.best is not None and (back.best.epoch, back.best.right) == (3, 0.8)
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in back.best.network.items())
    assert (back.best.average is not None) == averaged
    assert Recovery.of(None) == Recovery.of({"best": None, "returns": 0}) or Recovery.of(None).best is None


@pytest.fixture
def deadly(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose second epoch kills: its learning rate is beyond anything."""
    honest = Schedule.rate
    monkeypatch.setattr(Schedule, "rate", lambda self, at: 300.0 if 1 <= at < 2 else honest(self, at))
    return replace(tiny, train=replace(tiny.train, epochs=4), compress=replace(tiny.compress, finetune_epochs=0))


def trained(recipe: Recipe, dataset: Dataset, folder: Path) -> TrainedModel:
    return train(recipe, dataset, folder, threads=1)


def test_a_network_that_dies_is_gone_back_from(deadly: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    found = trained(deadly, few_digits, tmp_path / "a")
    history = found.history
    assert [s.back_to for s in history] == [0, 1, 0, 0] and history[1].loss > history[0].loss
    assert (history[1].val_clean, history[1].val_certified) == (history[0].val_clean, history[0].val_certified)
    assert history[2].learning_rate == pytest.approx(deadly.train.learning_rate / 2, rel=0.5)
    assert history[3].val_clean > 0.5
    assert "died: back to train 1" in figures(history[1]) and "died" not in figures(history[2])
    assert found.digest() == trained(deadly, few_digits, tmp_path / "b").digest()


def test_without_going_back_it_stays_dead(
    deadly: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault."""
    monkeypatch.setattr(recovery, "MOST", 0)
    assert trained(deadly, few_digits, tmp_path).history[3].val_clean < 0.4


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_cut_run_goes_back_to_the_same_bits(deadly: Recipe, few_digits: Dataset, tmp_path: Path, cut: int) -> None:
    whole = trained(deadly, few_digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(deadly, few_digits, tmp_path / "cut", CtrlC(cut), threads=1)
    resumed = trained(deadly, few_digits, tmp_path / "cut")
    assert resumed.digest() == whole.digest() and untimed(resumed) == untimed(whole)


def test_a_forgotten_state_is_caught(
    deadly: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above: resumed without what it could go back to, it stays dead."""
    whole = trained(deadly, few_digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(deadly, few_digits, tmp_path / "cut", CtrlC(1), threads=1)
    monkeypatch.setattr(loop.Recovery, "of", staticmethod(lambda _: Recovery()))
    assert trained(deadly, few_digits, tmp_path / "cut").digest() != whole.digest()


def test_a_run_in_which_nothing_dies_is_as_it_was(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trained(tiny, few_digits, tmp_path / "a")
    monkeypatch.setattr(recovery, "MOST", 0)
    assert found.digest() == trained(tiny, few_digits, tmp_path / "b").digest()
    assert not any(s.back_to for s in found.history)
