"""Weight averaging: the mean it is, kept through interruptions, and statistics that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_kit import CtrlC, untimed

from cactus_edge.recipe import Recipe, _in_digest, _plain
from cactus_edge.train import loop
from cactus_edge.train.averaging import Average, nothing
from cactus_edge.train.checkpoints import run_key
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import statistics
from cactus_edge.train.loop import to_torch, train
from cactus_edge.train.models import Network

Make = Callable[..., Network]


@pytest.fixture(scope="module")
def averaging(tiny: Recipe) -> Recipe:
    """The tiny recipe with three epochs of fine-tuning, the last two averaged."""
    return replace(tiny, compress=replace(tiny.compress, finetune_epochs=3, average_epochs=2))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_average_is_the_mean_of_every_parameter(make_network: Make, batch_norm: bool) -> None:
    networks = [make_network(seed, batch_norm=batch_norm) for seed in range(3)]
    average = nothing(networks[0])
    for network in networks:
        average = average.include(network)
    mean = average.network(networks[0])
    for name, found in mean.state_dict().items():
        expected = torch.stack([n.state_dict()[name] for n in networks]).double().mean(0)
        assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-7), name
    assert [p.requires_grad for p in mean.parameters()] == [p.requires_grad for p in networks[0].parameters()]


def test_the_average_of_one_network_is_that_network_and_shares_no_memory(make_network: Make) -> None:
    network = make_network(0)
    mean = nothing(network).include(network).network(network)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with torch.no_grad():
        for p in mean.parameters():
            p.add_(1)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_what_ships_is_the_average_with_its_own_statistics(
    averaging: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    included: list[dict[str, torch.Tensor]] = []
    honest = Average.include

    def recording(self: Average, network: Network) -> Average:
        included.append({name: t.clone() for name, t in network.state_dict().items()})
        return honest(self, network)

    monkeypatch.setattr(Average, "include", recording)
    trained = train(averaging, few_digits, tmp_path, threads=1)
    assert len(included) == 2
    for name, found in trained.network.state_dict().items():
        if not name.startswith(("mean", "var")):
            assert torch.allclose(found, (included[0][name] + included[1][name]) / 2, rtol=1e-5, atol=1e-7), name
    layers = trained.network.layers()
    x, _ = to_torch(few_digits.train)
    for layer, found_statistics in zip(layers, statistics(layers, x), strict=True):
        if layer.norm is not None and found_statistics is not None:
            assert torch.equal(layer.norm.mean, found_statistics[0])
            assert torch.equal(layer.norm.var, found_statistics[1])


@pytest.mark.parametrize("method", ["cactus", "small"])
def test_resumed_inside_the_window_equals_uninterrupted(
    averaging: Recipe, few_digits: Dataset, tmp_path: Path, method: str
) -> None:
    whole = train(averaging, few_digits, tmp_path / "whole", threads=1, method=method)
    with pytest.raises(KeyboardInterrupt):
        train(averaging, few_digits, tmp_path / "cut", CtrlC(5), threads=1, method=method)
    resumed = train(averaging, few_digits, tmp_path / "cut", threads=1, method=method)
    assert resumed.digest() == whole.digest()
    assert untimed(resumed) == untimed(whole)


def test_a_forgotten_average_is_caught(
    averaging: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above: resuming without the sum gives the last weights instead."""
    whole = train(averaging, few_digits, tmp_path / "whole", threads=1)
    with pytest.raises(KeyboardInterrupt):
        train(averaging, few_digits, tmp_path / "cut", CtrlC(5), threads=1)
    monkeypatch.setattr(loop, "Average", lambda *_: None)
    assert train(averaging, few_digits, tmp_path / "cut", threads=1).digest() != whole.digest()


def test_the_baseline_is_averaged_over_as_many_epochs(
    averaging: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    honest = Average.network
    monkeypatch.setattr(Average, "network", lambda self, like: counts.append(self.count) or honest(self, like))
    train(averaging, few_digits, tmp_path, threads=1, method="small")
    assert max(counts) == averaging.compress.average_epochs


def test_a_recipe_without_averaging_keeps_its_key(tiny: Recipe, few_digits: Dataset) -> None:
    averaged = replace(tiny, compress=replace(tiny.compress, average_epochs=1))
    assert run_key(averaged, few_digits) != run_key(tiny, few_digits)
    assert "average_epochs" not in _plain(tiny.compress, _in_digest)
    assert [r.to_json()["compress"]["average_epochs"] for r in (tiny, averaged)] == [0, 1]
