"""Judges of decks: the gate on a host that sees a batch at a time, as the paper gates, and the one file on the emulated board."""

from __future__ import annotations

from typing import TYPE_CHECKING

from _common import Row

# isort: split
import numpy as np

from cactus_edge.assess import Bools
from cactus_edge.certify.attack import strict_win
from cactus_edge.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from cactus_edge.errors import InputError
from cactus_edge.ir.evaluate import trace
from cactus_edge.ir.ops import Float32, Int64
from cactus_edge.train.deck.cards import TrainedDeck
from cactus_edge.verify.tflite_read import read_tflite

if TYPE_CHECKING:
    from _judges import Subject

BATCH = 100
"""Inputs of one corruption and severity that are gated together."""


def batches(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """The first `count` samples under fifteen corruptions at five severities, each batch by one choice of the gate.

    From the file's own logits of each card, at the gate's integer sums. batched: mean accuracy; chosen: the share of inputs,
    each alone, that the second scheme is nearer to, clean and by corruption.
    """
    deck = subject.trained
    if not isinstance(deck, TrainedDeck) or deck.gate is None:
        raise InputError("batches are gated where there is a gate", hint='[deck] gate = "spectral"')
    samples = subject.job.samples()
    x, y = (t[: count or len(t)] for t in (samples.x, samples.y))
    chosen, accuracies = {"clean": float(deck.gate.chosen(x).mean())}, []
    for name in CORRUPTIONS:
        shares = []
        for severity in range(1, SEVERITIES + 1):
            images = corrupt(x, name, severity)
            accuracies.append(_accuracy(subject, deck, images, y))
            shares.append(float(deck.gate.chosen(images).mean()))
        chosen[name] = float(np.mean(shares))
    return {"batched": float(np.mean(accuracies)), "batch": BATCH, "chosen": chosen}, standing


def _accuracy(subject: Subject, deck: TrainedDeck, x: Float32, y: Int64) -> float:
    assert deck.gate is not None
    graph = read_tflite(subject.data).graph
    names = {tensor.name: i for i, tensor in enumerate(graph.tensors)}
    right = 0
    for at in range(0, len(x), BATCH):
        part = x[at : at + BATCH]
        found = trace(graph, part, subject.program.profile)
        logits = [np.asarray(found[names[f"card{i}/logits"]], np.int64) for i in range(len(deck.cards))]
        group = deck.groups()[deck.gate.chosen_together(part)]
        right += int(strict_win(sum(logits[i] for i in group), y[at : at + BATCH].astype(np.int64)).sum())
    return right / len(x)


def board(subject: Subject, count: int, standing: Bools) -> tuple[Row, Bools]:
    """The first `count` samples in the file's firmware on the emulated Cortex-M4, against the interpreter."""
    from device_agree import measured

    x = subject.job.samples().x
    found = measured(read_tflite(subject.data).graph, x[: count or len(x)], ("zig", "unicorn"))
    keys = ("inputs", "equal", "first_difference", "instructions_median", "flash_bytes", "ram_bytes", "firmware_sha256")
    return {"board": {key: found[key] for key in keys}}, standing
