"""Two processes give the weights of one, bit for bit; devices; and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cactus_edge.errors import CactusError, InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train import parallel
from cactus_edge.train.bounds import Box
from cactus_edge.train.data import Dataset
from cactus_edge.train.loop import run_key, train
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.parallel import ALONE, Group, find_device, in_parts, joined, set_gradient

WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
from conftest import TINY
from cactus_edge.recipe import parse_recipe
from cactus_edge.train.data import Dataset, Split, load_dataset
from cactus_edge.train.loop import train
from cactus_edge.train.parallel import joined

recipe = parse_recipe(TINY, "tiny.toml")
short = replace(recipe.train, parts=2, epochs=2, ramp_epochs=0)
recipe = replace(recipe, train=short, compress=replace(recipe.compress, finetune_epochs=1))
whole = load_dataset(recipe.data)
few = Dataset(whole.name, Split(whole.train.x[:150].copy(), whole.train.y[:150].copy()), whole.validation, whole.test,
              whole.labels, whole.preprocessing)
seen = []
with joined("cpu") as group:
    trained = train(recipe, few, Path(sys.argv[1]), seen.append, threads=1, group=group)
    line = f"{group.rank} {group.size} {len(seen)} {trained.digest()}"
    losses = " ".join(repr(s.loss) for s in trained.history)
    sys.stdout.write(f"{line} {losses}\\n")
"""


def test_two_processes_give_the_bits_of_one(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    short = replace(tiny.train, parts=2, epochs=2, ramp_epochs=0)
    halves = replace(tiny, train=short, compress=replace(tiny.compress, finetune_epochs=1))
    alone = train(halves, few_digits, tmp_path / "one", threads=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(worker), str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ranks = sorted(line.split() for line in done.stdout.splitlines())
    assert [r[:3] for r in ranks] == [["0", "2", "3"], ["1", "2", "0"]]
    assert {r[3] for r in ranks} == {alone.digest()}
    assert [float(v) for v in ranks[0][4:]] == [s.loss for s in alone.history]
    # One process takes up what two have left, and finds it finished.
    seen: list[object] = []
    assert train(halves, few_digits, tmp_path / "two", seen.append, threads=1).digest() == alone.digest() and not seen


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
