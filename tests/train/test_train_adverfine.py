"""AdverFine: what goes, what is trained by which objective, and the control from scratch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_kit import untimed

from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.train.data import Dataset
from cactus_edge.train.loop import planned, train

KEYS = 'objective = "standard"\noptimiser = "sgd"\nattack_steps = 3\nrobust_weight = 1\n'


@pytest.fixture
def fine(tiny_text: str) -> Recipe:
    """Trains on the samples as they are, fine-tunes at adversarial points."""
    text = tiny_text.replace("[train]\n", "[train]\n" + KEYS).replace(
        "[compress]\n", '[compress]\nobjective = "pgd"\nmembers = ["full"]\n'
    )
    return parse_recipe(text.replace('members = ["full", "pruned", "quantised", "perturbed"]\n', ""), "fine.toml")


def test_the_three_ways_of_a_network(fine: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    pruned, whole, scratch = (
        train(fine, few_digits, tmp_path, threads=1, method=f"adverfine{way}") for way in ("", "-whole", "-scratch")
    )
    assert pruned.widths_after == scratch.widths_after == scratch.widths_before == (4, 7)
    assert whole.widths_after == whole.widths_before == pruned.widths_before == (6, 10)
    assert untimed(pruned)[:3] == untimed(whole)[:3]  # one dense network
    assert [s.stage for s in pruned.history] == ["dense"] * 3 + ["compress"] * 2
    assert [s.stage for s in scratch.history] == ["compress"] * 2
    assert planned(fine, "adverfine-scratch") == {"begin": 0, "compress": 2}


def test_the_filters_of_least_l1_norm_go_with_their_kernels(fine: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    untuned = replace(fine, compress=replace(fine.compress, finetune_epochs=0))
    small, dense = (
        train(untuned, few_digits, tmp_path, threads=1, method=m).network.layers()
        for m in ("adverfine", "adverfine-whole")
    )
    # Batch normalisation is folded before norms are compared, so that they are those of the filters in the file.
    first = dense[0]
    assert first.norm is not None
    factor = (first.norm.gamma * torch.rsqrt(first.norm.var + 1e-5))[:, None, None, None]
    kept = torch.sort(torch.topk((first.weight * factor).abs().sum((1, 2, 3)), 4).indices).values
    assert torch.equal(small[0].weight, first.weight[kept])
    rows = [next(j for j in range(10) if torch.equal(dense[1].weight[j][kept], row)) for row in small[1].weight]
    assert rows == sorted(rows) and len(set(rows)) == 7


def test_quantised_fine_tuning_is_clamped(fine: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    aware = replace(fine, compress=replace(fine.compress, members=("quantised",)))
    assert train(aware, few_digits, tmp_path, threads=1, method="adverfine-whole").ceilings is not None
    assert train(fine, few_digits, tmp_path, threads=1, method="adverfine-whole").ceilings is None
