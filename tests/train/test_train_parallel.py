"""Parts of a batch, devices, and what is refused; `tests/cli/test_cli_train.py` runs two processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cactus_edge.errors import CactusError, InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train import parallel
from cactus_edge.train.bounds import Box
from cactus_edge.train.checkpoints import run_key
from cactus_edge.train.data import Dataset
from cactus_edge.train.loop import train
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.parallel import ALONE, Group, find_device, in_parts, joined, set_gradient


def test_other_parts_are_another_run(tiny: Recipe, few_digits: Dataset) -> None:
    halves = replace(tiny, train=replace(tiny.train, parts=2))
    assert run_key(halves, few_digits) != run_key(tiny, few_digits)
    assert replace(halves, train=replace(halves.train, parts=1)).digest() == tiny.digest()


@pytest.mark.parametrize("sizes", [(4, 4), (5, 4), (3, 3, 2)], ids=str)
def test_the_gradient_is_the_weighted_mean(sizes: tuple[int, ...]) -> None:
    """Without anything that mixes samples, parts change nothing but the order of sums."""
    torch.manual_seed(0)
    network, x = torch.nn.Linear(3, 1), torch.rand(sum(sizes), 3)
    whole = network(x).square().mean()
    whole.backward()
    want = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    batch = Batch(x, torch.zeros(len(x), dtype=torch.int64), Box(x, torch.zeros_like(x)))
    parts = in_parts(batch, len(sizes))
    assert [len(p.y) for p in parts] == list(sizes) and torch.equal(torch.cat([p.x for p in parts]), x)
    losses = ((network(p.x).square().mean(), len(p.y)) for p in parts)
    loss = set_gradient(network, losses, len(sizes), ALONE)
    assert torch.allclose(loss, whole)
    for p, gradient in zip(network.parameters(), want, strict=True):
        assert p.grad is not None and torch.allclose(p.grad, gradient)


def test_an_unweighted_mean_is_caught() -> None:
    """The planted fault: parts of other sizes that count alike give another gradient."""
    torch.manual_seed(0)
    network, x = torch.nn.Linear(3, 1), torch.rand(9, 3)
    network(x).square().mean().backward()
    want = network.weight.grad
    assert want is not None
    want = want.clone()
    set_gradient(network, ((network(p).square().mean(), 1) for p in (x[:5], x[5:])), 2, ALONE)
    assert network.weight.grad is not None and not torch.allclose(network.weight.grad, want)


def test_shares_cover_the_parts_in_order() -> None:
    parts = list(range(6))
    shares = [Group(rank=r, size=3).share(parts) for r in range(3)]
    assert [p for share in shares for p in share] == parts


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="no device is called 'gpu'"):
        find_device("gpu")
    with joined("cpu") as group:
        assert group == ALONE and group.first


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda() -> None:
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="sees no CUDA device"):
        find_device("cuda")


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="process 2 of this computer has no GPU, there are 2"):
        find_device("cuda", 2)


def test_a_lost_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr(parallel.dist, "all_reduce", gone)
    with pytest.raises(CactusError, match=r"lost each other: Connection closed by peer\n"):
        Group(size=2).totals(1)


@pytest.mark.parametrize(("parts", "batch", "size", "match"), [(3, 16, 2, "for 2 processes"), (8, 16, 1, "in 8 parts")])
def test_parts_that_cannot_be(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, parts: int, batch: int, size: int, match: str
) -> None:
    recipe = replace(tiny, train=replace(tiny.train, parts=parts, batch=batch))
    with pytest.raises(InputError, match=match):
        train(recipe, few_digits, tmp_path, group=Group(size=size))
    assert not [*tmp_path.iterdir()]
