"""What cannot be built for a target is refused before the first epoch, in the words of the end; what is trained stays the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cactus_edge import jetson, linux, networks, pipeline
from cactus_edge.board import Options
from cactus_edge.chain import Chain
from cactus_edge.errors import CactusError, InputError, ModelError, TargetError, UnsupportedError
from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.rehearsal import few, rehearse, untrained
from cactus_edge.steps import Result
from cactus_edge.train.loop import _Run
from cactus_edge.train.methods import METHODS
from cactus_edge.train.trained import TrainedModel

HEAD = """
name = "small"
[data]
set = "digits"
train_samples = 100
test_samples = 50
validation_samples = 50
[train]
eps = "1/16"
epochs = 1
warmup_epochs = 0
ramp_epochs = 1
batch = 50
members = ["full", "pruned", "quantised"]
[compress]
finetune_epochs = 1
[quantise]
calibration = "min-max"
[certify]
eps = "1/32"
samples = 20
"""
CONV = '[[model.layer]]\nkind = "conv"\nchannels = 8\nkept = 4\nstride = 2\n'
GLOBAL = '[model]\npool = "global"\n' + CONV
RESIDUAL = (
    "[model]\n"
    + CONV.replace("stride = 2", 'name = "a"')
    + CONV.replace("stride = 2", 'adds = "a"').replace("kernel = 3", "")
)
OF_WEIGHTS = {"hydra-weights", "flying-bird", "csam", "ft", "gmp", "lth", "lrr", "edge-popup", "biprop"} | {
    "nncf-magnitude",
    "nncf-regularised",
}
"""Methods that remove weights and no channels."""

DECK = """
[deck]
gate = "none"
[[deck.card]]
scheme = "still"
seeds = [0, 1]
"""


def recipe(model: str, more: str = "") -> Recipe:
    return parse_recipe(HEAD + model + more, "small.toml")


def of_method(method: str) -> Recipe:
    """A recipe that the method trains."""
    made = recipe("[model]\n" + (CONV.replace("kept = 4\n", "") if method in OF_WEIGHTS else CONV))
    sparsity = 0.5 if method in OF_WEIGHTS else "none"
    return replace(made, train=replace(made.train, method=method), compress=replace(made.compress, sparsity=sparsity))


class Trained(BaseException):
    """An epoch would begin."""


@pytest.fixture
def no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the first epoch of any training end the test."""

    def begun(*_: object) -> None:
        raise Trained

    monkeypatch.setattr(_Run, "_run_epoch", begun)


def said(chain: Chain) -> str:
    with pytest.raises(CactusError) as refused:
        pipeline.build_chain(chain, pipeline.SILENT)
    return str(refused.value)


@pytest.mark.parametrize(
    ("model", "op"), [pytest.param(GLOBAL, "AvgPool", id="global"), pytest.param(RESIDUAL, "Add", id="residual")]
)
def test_a_jetson_refuses_before_training_what_it_refuses_after_it(
    model: str, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_epoch: None
) -> None:
    made = recipe(model)
    made = replace(made, quantise=replace(made.quantise, symmetric=True))
    before = said(jetson.JetsonChain(made, tmp_path / "a", Options("jetson", threads=1)))
    assert f"has no rule for {op}" in before
    assert not list((tmp_path / "a").glob(".train/*"))
    monkeypatch.undo()
    monkeypatch.setattr("cactus_edge.pipeline.rehearse", lambda chain: None)
    assert said(jetson.JetsonChain(made, tmp_path / "b", Options("jetson", threads=1))) == before
    assert list((tmp_path / "b").glob(".train/*"))


@pytest.mark.parametrize(
    ("model", "more", "size", "words"),
    [
        pytest.param(
            "[model]\n" + CONV, DECK, {"flash_bytes": 16 * 1024}, "flash by .*it has 16384", id="deck_and_flash"
        ),
        pytest.param(GLOBAL, "", {"ram_bytes": 4096 + 256}, "RAM by .*it has 4352", id="network_and_ram"),
    ],
)
def test_a_board_that_is_too_small_is_told_before_training(
    model: str, more: str, size: dict[str, int], words: str, tmp_path: Path, no_epoch: None
) -> None:
    chain = Chain(recipe(model, more), tmp_path, Options("mcu", threads=1))
    chain.target = replace(chain.target, memory=replace(chain.target.memory, **size))
    with pytest.raises(TargetError, match=words):
        pipeline.build_chain(chain, pipeline.SILENT)


def test_what_fits_goes_on_to_training(tmp_path: Path, no_epoch: None) -> None:
    chain = Chain(recipe(GLOBAL), tmp_path, Options("mcu", threads=1))
    with pytest.raises(Trained):
        pipeline.build_chain(chain, pipeline.SILENT)


def test_radii_of_two_units_are_rehearsed_at_none(tmp_path: Path, no_epoch: None) -> None:
    """0 is 0 in every unit."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=rng.random((120, 16, 1, 2)).astype(np.float32), y=np.arange(120) % 3)
    channels = "".join(
        f'[[data.channel]]\nname = "{name}"\nunit = "{unit}"\nlow = 0\nhigh = 1\n'
        for name, unit in (("a", "g"), ("w", "rad/s"))
    )
    data = f'file = "{tmp_path / "own.npz"}"\ntest_samples = 40\nvalidation_samples = 40\n{channels}'
    text = HEAD.replace('set = "digits"\ntrain_samples = 100\ntest_samples = 50\nvalidation_samples = 50\n', data)
    text = text.replace('eps = "1/16"', 'eps = { g = "0.01", "rad/s" = "0.02" }').replace(
        'eps = "1/32"', 'eps = { g = "0.01", "rad/s" = "0.02" }'
    )
    layer = '[[model.layer]]\nkind = "conv"\nchannels = 8\nkept = 4\nkernel = [3, 1]\nstride = [2, 1]\n'
    rehearse(Chain(parse_recipe(text + layer, "x.toml"), tmp_path / "out", Options("mcu")))


def test_a_network_that_is_trained_needs_no_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_epoch: None
) -> None:
    monkeypatch.setattr("cactus_edge.pipeline.rehearse", None)  # not even called
    monkeypatch.setattr(Chain, "train", lambda chain, advance: (_ for _ in ()).throw(Trained))
    chain = Chain(recipe(GLOBAL), tmp_path, Options("mcu", threads=1, trained=tmp_path))
    with pytest.raises(Trained):
        pipeline.build_chain(chain, pipeline.SILENT)


def test_what_follows_from_weights_alone_is_left_to_the_trained_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(recipe(GLOBAL), tmp_path, Options("mcu", threads=1))
    raised: list[CactusError] = [ModelError("a sum leaves int32"), UnsupportedError("no such op")]

    def compress(trial: Chain, advance: object) -> Result:
        assert trial is not chain
        raise raised[0]

    monkeypatch.setattr(Chain, "compress", compress)
    rehearse(chain)
    raised.reverse()
    with pytest.raises(UnsupportedError, match="no such op"):
        rehearse(chain)


def test_no_stream_and_no_weight_changes(tmp_path: Path) -> None:
    """Training after a rehearsal leaves the weights of training without one; what the chain knows stays its own."""
    chain = linux.LinuxChain(recipe(GLOBAL), tmp_path / "rehearsed", Options("raspberry-pi", threads=1), None)
    torch.manual_seed(1)
    states = (torch.get_rng_state(), str(np.random.get_state()), torch.get_num_threads())
    known = dict(vars(chain), dataset=chain.dataset, target=None, profile=None)
    rehearse(chain)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (str(np.random.get_state()), torch.get_num_threads()) == states[1:]
    assert {name for name in vars(chain) if vars(chain)[name] is not known.get(name, 0)} <= {"target", "profile"}
    assert not (tmp_path / "rehearsed").exists()
    plain = networks.train(chain.recipe, chain.dataset, tmp_path / "plain", 1, lambda *_: None)
    assert chain.train(lambda *_: None)["network"] == plain.digest()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_network_without_an_epoch(method: str, tmp_path: Path) -> None:
    made = of_method(method)
    chain = Chain(made, tmp_path, Options(threads=1))
    found = networks.train(untrained(made), few(chain.dataset), tmp_path, 1, lambda *_: None)
    assert not found.history
    assert found.weights_after


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_fine_tunes_chooses_widths(method: str, tmp_path: Path) -> None:
    """In the shape that ships; the others say that they cannot, and a budget that nothing fits is told before the first epoch."""
    made = of_method(method)
    chain = Chain(made, tmp_path, Options(threads=1))

    def trained(budget: int) -> TrainedModel:
        asked = replace(made, quantise=replace(made.quantise, weight_bytes=budget))
        found = networks.train(untrained(asked), few(chain.dataset), tmp_path, 1, lambda *_: None)
        assert isinstance(found, TrainedModel)
        return found

    if method in ("small", "uncompressed"):
        with pytest.raises(InputError, match="chooses widths as fine-tuning begins"):
            trained(10**6)
        return
    found = trained(10**6).chosen
    assert found is not None and found.weight_bits == (8, 8)
    least = found.bytes - sum(trained(10**6).weights_after) // 2
    narrow = trained(least).chosen
    assert narrow is not None and narrow.weight_bits == (4, 4) and narrow.bytes == least
    with pytest.raises(InputError, match=f"take {least} bytes"):
        trained(least - 1)
