"""Where training runs: the device, and the processes of `torchrun` that train one network together.

A batch is cut into the recipe's `parts`, and every part is a batch of its own to the objective: batch normalisation, the
largest activations and adversarial weights are those of the part. (Statistics over all processes would put an exchange into
every layer of every member of the network set.) The gradient is the mean over the parts, weighted by their samples and
summed in the order of the parts, wherever they were computed; so the weights depend on the number of parts and not on the
number of processes, bit for bit on equal processors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cactus_edge.errors import CactusError, InputError
from cactus_edge.train.bounds import Box
from cactus_edge.train.objectives.loss import Batch

DEVICES = ("cpu", "cuda", "auto")
"""What can be asked for; auto is CUDA where torch sees it."""

_APART = 10**9
"""Between the seeds of a batch's parts: more than an epoch has batches."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Group:
    """This process (`rank` of `size`, from 0) and the device that it computes on."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This process's consecutive share of `items`, whose number is a multiple of `size`."""
        count = len(items) // self.size
        return items[self.rank * count : (self.rank + 1) * count]

    def rows(self, mine: Tensor) -> Tensor:
        """`mine` [K, N] of every process, in order of rank: [size * K, N]."""
        if self.size == 1:
            return mine
        with _company():
            found = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(found, mine.contiguous())
        return torch.cat(found)

    def totals(self, *mine: int) -> list[int]:
        """The sums over all processes."""
        if self.size == 1:
            return list(mine)
        with _company():
            counts = torch.tensor(mine, dtype=torch.int64, device=self.device)
            dist.all_reduce(counts)
        return [int(n) for n in counts]

    def told(self, content: bytes | None) -> bytes | None:
        """What the first process holds."""
        if self.size == 1:
            return content
        with _company():
            held = [content]
            dist.broadcast_object_list(held, src=0, device=self.device)
        return held[0]


ALONE = Group()


def in_parts(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` consecutive parts whose sizes differ by one at most, each with a seed of its own."""
    if count == 1:
        return [batch]
    whole = (batch.x, batch.y, batch.region.centre, batch.region.radius, *batch.views)
    pieces = [torch.tensor_split(t, count) for t in whole]
    return [
        replace(batch, x=x, y=y, region=Box(centre, radius), seed=batch.seed + i * _APART, views=tuple(views))
        for i, (x, y, centre, radius, *views) in enumerate(zip(*pieces, strict=True))
    ]


def set_gradient(network: nn.Module, losses: Iterable[tuple[Tensor, int]], parts: int, group: Group) -> Tensor:
    """Sets the gradient of L = sum_i n_i L_i / sum_i n_i over all `parts` of the step, and returns L, a scalar.

    losses: (L_i, n_i), the mean loss over n_i samples, of the parts of this process in order; each is differentiated before the
    next one is asked for.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    rows = []
    for loss, count in losses:
        network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if parts == 1:
            return loss.detach()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        rows.append(torch.cat([t.flatten() for t in (*gradients, loss.detach(), loss.new_tensor(count))]))
    every = group.rows(torch.stack(rows))
    weights = every[:, -1] / every[:, -1].sum()
    mean = torch.zeros_like(every[0, :-1])
    for weight, row in zip(weights, every, strict=True):
        mean += weight * row[:-1]
    *gradients, loss = torch.split(mean, [*(p.numel() for p in parameters), 1])
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient.view_as(p)
    return loss[0]


@contextmanager
def joined(device: str = "auto") -> Iterator[Group]:
    """This process among those that torchrun started, or alone; its own GPU where `device` is CUDA (NCCL, else Gloo).

    Raises InputError for an unknown device, or for CUDA where there is none (or fewer GPUs than processes).
    """
    launched = dist.is_available() and dist.is_torchelastic_launched()
    local = int(os.environ.get("LOCAL_RANK", "0")) if launched else 0
    where = find_device(device, local)
    if not launched or int(os.environ["WORLD_SIZE"]) == 1:
        yield Group(where)
        return
    with _company():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Group(where, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def find_device(name: str, local: int = 0) -> torch.device:
    """The device called `name`; local: which of this computer's processes asks. Raises InputError as `joined` says."""
    if name not in DEVICES:
        raise InputError(f"no device is called {name!r}", hint=f"one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"device cuda: torch {torch.__version__} sees no CUDA device", hint="device auto, or cpu")
    if local >= (count := torch.cuda.device_count()):
        raise InputError(
            f"device cuda: process {local} of this computer has no GPU, there are {count}",
            hint=f"torchrun --nproc-per-node {count}",
        )
    return torch.device("cuda", local)


@contextmanager
def settled(threads: int | None, device: torch.device) -> Iterator[None]:
    """torch with so many threads (None: as it is) and, on a GPU, the kernels that give equal bits every time; as before after it.

    A GPU op without such a kernel warns. cuBLAS needs CUBLAS_WORKSPACE_CONFIG for it, which `process.settle` sets.
    """
    before = torch.get_num_threads()
    deterministic, warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if device.type == "cuda":
            torch.use_deterministic_algorithms(deterministic, warn_only=warning)


@contextmanager
def _company() -> Iterator[None]:
    """Turns what torch raises when a process of the group is gone into words."""
    try:
        yield
    except RuntimeError as error:
        raise CactusError(
            f"the processes of this training lost each other: {str(error).splitlines()[0]}",
            hint="run the same command again: what was finished is kept",
        ) from error
