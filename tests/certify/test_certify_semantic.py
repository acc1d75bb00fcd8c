"""The CC-Cert bound: in logarithms what exact arithmetic gives, above the true probability, and seen to fail where it is made wrong."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from cactus_edge import semantic_report
from cactus_edge.certify import semantic
from cactus_edge.certify.semantic import (
    ESTIMATES,
    Estimate,
    Semantic,
    at_most,
    estimate,
    log_bound,
    probabilities,
    transforms,
)
from cactus_edge.errors import DataError, InputError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.verify.regions import data_digest, points

Array = Any
UNIT = (0, 1)
(BRIGHTER,) = transforms("brightness=0.1")


def brightness_net(shape: tuple[int, ...] = (2, 2), name: str = "tflm") -> Program:
    """Class 0 wins where the mean is above 1/2, by a margin that grows with it."""
    build = GraphBuilder()
    scale = float(np.float32(1 / 255))
    size = int(np.prod(shape))
    first = build.input(Tensor("x", shape, "int8", scale, -128))
    flat = build.node(ops.Reshape(), [first], Tensor("flat", (size,), "int8", scale, -128))
    weight = ops.freeze([[100] * size, [-100] * size], np.int8)
    bias = ops.freeze([-12750 * size, 12750 * size], np.int32)
    dense = ops.Dense(weight, bias, ops.freeze([np.float32(0.01)], np.float32), ops.Activation.NONE)
    last = build.node(dense, [flat], Tensor("y", (2,), "int8", float(np.float32(0.04 * size / 4))))
    return lower(build.finish(last), profile(name))


def exact_log_bound(z: Array, d: float, grid: Array, share: Fraction) -> float:
    """The same with 60 digits, and no logarithm before the end."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**9, -(10**9)
        largest = max(
            min(
                sum((Decimal(float(t)) * Decimal(float(v))).exp() for v in row)
                / len(row)
                / (Decimal(float(t)) * Decimal(d)).exp()
                for t in grid
            )
            for row in z
        )
        bound = largest / Decimal(share.numerator) * Decimal(share.denominator)
        return float(min(Decimal(0), bound.ln()))


def check_logarithms() -> None:
    rng = np.random.default_rng(1)
    for d, top in ((0.4, 0.3), (0.05, 0.2), (0.5, 0.01), (0.001, 0.0005)):
        z = rng.uniform(0, top, (3, 5))
        grid = np.geomspace(1e-4, 1e4, 25)
        got, _ = log_bound(z, d, grid)
        assert got == pytest.approx(exact_log_bound(z, d, grid, Fraction(9, 10)), rel=1e-9, abs=1e-9)


def test_the_logarithms_are_those_of_exact_arithmetic() -> None:
    check_logarithms()


def test_exponents_beyond_any_float_are_no_trouble() -> None:
    grid = np.array([1e4])
    assert log_bound(np.full((2, 3), 0.9), 0.4, grid)[0] == 0
    assert log_bound(np.full((2, 3), 0.1), 0.4, grid)[0] == pytest.approx(-3000 - math.log(0.9))
    mixed = log_bound(np.array([[0.0, 0.9]]), 0.95, grid)[0]
    assert mixed == pytest.approx(-500 - math.log(2) - math.log(0.9))


def test_few_losses_of_few_draws_say_little() -> None:
    """By the sum of the binomial's terms; a loss that was never drawn is not excluded by a mean without variance."""
    for count, chance in ((20, 0.3), (1000, 1e-4), (7, 0.999)):
        terms = [math.comb(count, i) * chance**i * (1 - chance) ** (count - i) for i in range(count + 1)]
        assert np.allclose(at_most(count, chance), np.cumsum(terms), rtol=1e-9)
    none = Estimate(BRIGHTER, np.array([True]), np.array([-50.0]), np.array([0]), np.array([0.0]), 1000)
    assert none.certified(1e-4).all() and none.risk(1e-4) == pytest.approx((1 - 1e-4) ** 1000)
    assert replace(none, drawn=100_000).risk(1e-4) < 1e-4
    assert replace(none, too_low=np.array([0.95])).risk(1e-4) == 0.95
    lost = replace(none, losses=np.array([3])).risk(1e-4)
    assert lost == pytest.approx(at_most(1000, 1e-4)[3]) and lost > none.risk(1e-4)


def test_a_rare_loss_is_seldom_said_to_be_excluded() -> None:
    """One transform in a thousand loses, and of a thousand draws often none: the planted fault is Cantelli's inequality alone."""
    rng, wrong, fooled, chance = np.random.default_rng(0), 0, 0, 1e-3
    for _ in range(300):
        z = np.where(rng.random((10, 100)) < chance, 1.0, 0.02)
        log, too_low = log_bound(z, 0.4)
        found = Estimate(
            BRIGHTER, np.array([True]), np.array([log]), np.array([int((z >= 0.4).sum())]), np.array([too_low]), z.size
        )
        wrong += bool(found.certified(chance) & (found.risk(chance) < 0.05))
        fooled += bool(found.certified(chance) & (found.too_low < 0.05))
    assert wrong <= 15 and fooled > 60


def test_the_risk_of_an_estimate() -> None:
    """Of two equally likely values 1 and e at t = 1: v = ((e - 1) / (e + 1))^2."""
    _, risk = log_bound(np.array([[0.0, 1.0]] * 3), 0.5, np.array([1.0]))
    v = ((math.e - 1) / (math.e + 1)) ** 2
    assert risk == pytest.approx((v / (v + 0.01 * 2)) ** 3)
    assert log_bound(np.zeros((3, 4)), 0.5)[1] == 0


def check_toy(losing: float) -> None:
    """Brightness moves a flat grey of 0.5 + h by a uniform u of +-0.2: it loses where u <= -h, with a known probability."""
    program = brightness_net()
    h = 0.2 - 0.4 * losing
    x = np.full((1, 2, 2), 0.5 + h, np.float32)
    found = estimate(program, transforms("brightness=0.2")[0], x, np.array([0]), domain=UNIT, samples=400, seed=3)
    assert found.correct[0] and found.drawn == ESTIMATES * 400
    share = found.losses[0] / found.drawn
    spread = 5 * math.sqrt(max(losing, 0.001) / found.drawn)
    assert abs(share - losing) < spread + 0.01
    assert math.exp(found.log_bound[0]) >= losing - 1e-12
    assert bool(found.certified(1e-4)[0]) == (losing == 0)


@pytest.mark.parametrize("losing", [0.25, 0.05, 0.0])
def test_the_bound_is_above_the_known_probability(losing: float) -> None:
    if losing:
        check_toy(losing)
        return
    program = brightness_net()
    x = np.full((1, 2, 2), 0.95, np.float32)
    found = estimate(program, transforms("brightness=0.01")[0], x, np.array([0]), domain=UNIT)
    assert found.losses[0] == 0 and found.certified(1e-4)[0] and found.log_bound[0] < math.log(1e-4)


def test_the_checks_see_a_bound_that_forgets_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    right = semantic.log_bound
    monkeypatch.setattr(semantic, "log_bound", lambda z, d: right(z, 10 * d))
    with pytest.raises(AssertionError):
        check_toy(0.25)


def test_the_checks_see_the_share_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic.math, "log", lambda x: 0.0)
    with pytest.raises(AssertionError):
        check_logarithms()


@dataclass(frozen=True)
class Told(Semantic):
    """Draws what it was told."""

    told: Array = None

    def draw(self, x: Array, count: int, domain: tuple[float, float], rng: np.random.Generator) -> Array:
        """As it is in `Semantic`."""
        assert self.told.shape == (count, *x.shape)
        drawn: Array = self.told
        return drawn


def grey(*codes: int) -> Array:
    """Images of 2 x 2 pixels, each of one code, for `brightness_net`."""
    return np.repeat(np.float32(1 / 255) * np.array(codes, np.float32), 4).reshape(-1, 2, 2)


@pytest.mark.parametrize("lost", [(), (0,), (9,), (0, 4, 9)], ids=["none", "first", "last", "three"])
def test_every_draw_is_counted_and_the_sample_itself_is_none(lost: tuple[int, ...]) -> None:
    told = grey(*(20 if i in lost else 240 for i in range(ESTIMATES)))
    found = estimate(brightness_net(), Told((), told), grey(240), np.array([0]), domain=UNIT, samples=1)
    assert found.losses.tolist() == [len(lost)] and found.drawn == ESTIMATES and found.correct.all()
    wrong = estimate(brightness_net(), Told((), told), grey(240), np.array([1]), domain=UNIT, samples=1)
    assert wrong.losses.tolist() == [ESTIMATES - len(lost)] and not wrong.correct.any()


def test_a_tie_is_no_win_of_a_draw_nor_of_the_sample() -> None:
    """Pixels of 127 and 128 out of 255: both outputs are equal."""
    tie = grey(127, 128).transpose(1, 0, 2).reshape(1, 2, 4)[:, :, 1:3]
    program = brightness_net()
    assert len(set(run(program, points(program, tie)).ravel().tolist())) == 1
    told = Told((), np.concatenate([grey(*[240] * (ESTIMATES - 1)), tie]))
    assert estimate(program, told, grey(240), np.array([0]), domain=UNIT, samples=1).losses.tolist() == [1]
    for label in (0, 1):
        found = estimate(program, told, tie, np.array([label]), domain=UNIT, samples=1)
        assert not found.correct.any() and not found.certified(0.999).any()


def test_of_all_classes_the_one_that_moved_furthest_counts() -> None:
    """The runner-up gains what the label and a third class lose together: neither the label's change nor a fall alone is as large."""
    build = GraphBuilder()
    first = build.input(Tensor("x", (3,), "int8", float(np.float32(1 / 255)), -128))
    dense = ops.Dense(
        ops.freeze(100 * np.eye(3), np.int8), ops.freeze([0] * 3, np.int32), ops.freeze([np.float32(0.01)], np.float32)
    )
    last = build.node(dense, [first], Tensor("y", (3,), "int8", float(np.float32(0.03)), -128))
    program = lower(build.finish(last), profile("tflm"))
    codes = np.array([[200, 170, 170], *[[200, 180, 170]] * ESTIMATES], np.float64)
    x = (codes / 255).astype(np.float32)
    p = probabilities(program, run(program, points(program, x)))
    change = p[1] - p[0]
    assert change[1] > 1.5 * np.abs(change[[0, 2]]).max()
    found = estimate(program, Told((), x[1:]), x[:1], np.array([0]), domain=UNIT, samples=1)
    expected = log_bound(np.full((ESTIMATES, 1), change[1]), (p[0, 0] - p[0, 1]) / 2)
    assert found.correct.all() and found.log_bound[0] == pytest.approx(expected[0]) and expected[0] < 0


def test_draws_stay_in_the_domain_that_is_asked_for() -> None:
    """In [0, 2/5] nothing is ever as bright as it would have to be to lose; in [0, 1] most is."""
    (chosen,), dark = transforms("brightness=1"), grey(70)
    losses = [
        estimate(brightness_net(), chosen, dark, np.array([1]), domain=(0, end), samples=20).losses[0]
        for end in (Fraction(2, 5), 1)
    ]
    assert losses[0] == 0 and losses[1] > 30


def test_each_sample_has_draws_of_its_own() -> None:
    """Two that are the same: what is drawn of the one says nothing about the other."""
    found = estimate(
        brightness_net(), transforms("brightness=0.2")[0], grey(140, 140), np.array([0, 0]), domain=UNIT, samples=20
    )
    assert found.correct.all() and len(set(found.losses.tolist())) == 2


def test_draws_depend_on_the_seed_and_the_sample_alone() -> None:
    program = brightness_net((6, 6, 1))
    x = np.random.default_rng(0).random((3, 6, 6, 1)).astype(np.float32)
    labels = run(program, points(program, x)).argmax(1)
    chosen = transforms("rotation+blur=2+translation+contrast+brightness")[0]
    whole = estimate(program, chosen, x, labels, domain=UNIT, samples=5, seed=1)
    again = estimate(program, chosen, x[:2], labels[:2], domain=UNIT, samples=5, seed=1)
    other = estimate(program, chosen, x, labels, domain=UNIT, samples=5, seed=2)
    assert np.array_equal(whole.log_bound[:2], again.log_bound) and np.array_equal(whole.losses[:2], again.losses)
    assert not np.array_equal(whole.losses, other.losses)


def test_transforms_do_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    image = np.zeros((9, 9, 2))
    image[4, 6] = 1
    flat = np.full((5, 5, 1), 0.25)
    for name in semantic.AMOUNTS:
        drawn = Semantic(((name, Fraction(1, 2) if name in ("brightness", "contrast") else Fraction(2)),)).draw(
            image, 50, UNIT, rng
        )
        assert drawn.shape == (50, 9, 9, 2) and drawn.min() >= 0 and drawn.max() <= 1
        assert np.allclose(drawn[..., 0], drawn[..., 1])
    turned = Semantic((("rotation", Fraction("180.0")),)).draw(image, 400, UNIT, rng)
    lands = {divmod(int(i), 9) for i in turned[..., 0].reshape(400, -1).argmax(1)}
    assert {(2, 4), (6, 4), (4, 2), (4, 6)} <= lands and (4, 4) not in lands
    for name in ("rotation", "translation", "blur", "contrast"):
        assert np.allclose(Semantic(((name, Fraction("1.0")),)).draw(flat, 9, UNIT, rng), 0.25)
    shifted = Semantic((("translation", Fraction("2.0")),)).draw(image, 200, UNIT, rng)[..., 0]
    mass = shifted.reshape(200, -1).sum(1)
    centre = (shifted.sum(2) @ np.arange(9)) / mass, (shifted.sum(1) @ np.arange(9)) / mass
    for along, start in zip(centre, (4, 6), strict=True):
        assert start - 2 <= along.min() < start - 1.5 and start + 1.5 < along.max() <= start + 2
    assert abs(np.corrcoef(*centre)[0, 1]) < 0.2, "down and right are drawn for themselves"
    moved = Semantic((("brightness", Fraction("0.1")),)).draw(flat, 500, (0, 2), rng)[:, 0, 0, 0]
    assert 0.05 <= moved.min() < 0.06 and 0.44 < moved.max() <= 0.45
    blurred = Semantic((("blur", Fraction("2.0")),)).draw(image, 50, UNIT, rng)
    assert blurred.reshape(50, -1).max(1).min() < 0.1 and np.allclose(blurred.sum((1, 2, 3)), 2, atol=0.3)
    assert np.allclose(blurred[:, 4, 7], blurred[:, 5, 6]), "as wide as it is high"


def test_codes_stand_for_their_values() -> None:
    program = brightness_net()
    codes = np.random.default_rng(0).integers(-128, 128, (6, 2, 2)).astype(np.int8)
    labels = run(program, codes).argmax(1)
    chosen = transforms("contrast+brightness")[0]
    same = [
        estimate(program, chosen, x, labels, domain=UNIT, samples=3)
        for x in (codes, program.quantize.scale * (codes.astype(np.float64) + 128))
    ]
    assert np.array_equal(same[0].log_bound, same[1].log_bound) and same[0].correct.all()


def test_probabilities_are_the_files_own() -> None:
    program = brightness_net()
    x = np.array([[[0, 0], [0, 0]], [[1, 1], [1, 1]]], np.float32)
    p = probabilities(program, run(program, points(program, x)))
    assert np.allclose(p.sum(1), 1) and p[0, 1] > 0.9 and p[1, 0] > 0.9


def test_a_sample_that_is_wrong_is_bounded_by_one() -> None:
    found = estimate(
        brightness_net(), transforms("blur")[0], np.ones((1, 2, 2), np.float32), np.array([1]), domain=UNIT, samples=2
    )
    assert not found.correct[0] and found.log_bound[0] == 0 and not found.certified(1)[0]


def test_every_figure_of_a_report_is_counted_from_the_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six samples: three are certified, of which one lost draws and one has an estimate that may be too low; the last is wrong."""
    found = Estimate(
        BRIGHTER,
        np.array([True] * 5 + [False]),
        np.array([-20.0, -20.0, -20.0, -5.0, -1.0, 0.0]),
        np.array([0, 0, 2, 5, 90, 99]),
        np.array([0.0, 0.5, 0.0, 0.0, 1.0, 1.0]),
        200_000,
    )
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(semantic, "estimate", lambda *_, **options: asked.append(options) or found)
    x, y, done = grey(*range(0, 240, 40)), np.zeros(6, np.int64), list[int]()
    report = semantic_report.estimated(
        b"model",
        brightness_net(),
        x,
        y,
        (BRIGHTER, BRIGHTER),
        profile="tflm",
        domain=(0, "1/2"),
        samples=7,
        confidence=1e-3,
        seed=5,
        progress=done.append,
    )
    assert asked == [{"domain": (0, Fraction(1, 2)), "samples": 7, "seed": 5}] * 2 and done == [1, 2]
    assert report.shares == [0.5, 0.5] and report.threshold == 1e-3
    said = dict(report.summary())
    assert said["brightness=0.1"] == (
        "probabilistically certified: 3 of 6 (50.00%), 2 of them with a risk below 0.001 that the estimate is too low; "
        "1 of them lost a draw"
    )
    assert said["clean"] == "5 of 6" and "bounded below 0.001" in said["probabilistic"]
    record = json.loads(report.to_bytes())
    rows = record.pop("transforms")
    assert {key: record[key] for key in record.keys() - {"format", "version", "tool", "meaning"}} == {
        "model_sha256": hashlib.sha256(b"model").hexdigest(),
        "data_sha256": data_digest(x, y),
        "profile": "tflm",
        "domain": ["0", "1/2"],
        "seed": 5,
        "estimates": ESTIMATES,
        "samples_each": 7,
        "share": semantic.SHARE,
        "threshold": 1e-3,
    }
    assert rows[0] == rows[1] and rows[0]["log10_bound"] == pytest.approx(found.log_bound / math.log(10))
    assert {key: rows[0][key] for key in rows[0].keys() - {"log10_bound"}} == {
        "transform": "brightness=0.1",
        "probabilistically_certified": 3,
        "of_these_with_a_risk_below_threshold": 2,
        "samples": 6,
        "correct": [True] * 5 + [False],
        "losses": [0, 0, 2, 5, 90, 99],
        "drawn": 200_000,
        "risk": found.risk(1e-3).tolist(),
    }


def test_names() -> None:
    assert [t.name for t in transforms("rotation=5, blur,contrast+brightness=1/20")] == [
        "rotation=5",
        "blur=1",
        "contrast=0.2+brightness=0.05",
    ]


@pytest.mark.parametrize(
    "text", ["", "rot", "rotation=", "rotation=x", "rotation=-1", "blur=0", "brightness=2", "rotation++blur"]
)
def test_transforms_that_make_no_sense(text: str) -> None:
    if text == "rotation=":
        assert transforms(text)[0].name == "rotation=10"
        return
    with pytest.raises(InputError):
        transforms(text)


def test_data_that_cannot_be_transformed() -> None:
    program = brightness_net((4,))
    with pytest.raises(InputError, match="expected images"):
        estimate(
            program, transforms("rotation")[0], np.zeros((1, 4), np.float32), np.array([0]), domain=UNIT, samples=1
        )
    with pytest.raises(InputError, match="samples"):
        estimate(
            program, transforms("contrast")[0], np.zeros((1, 4), np.float32), np.array([0]), domain=UNIT, samples=0
        )
    mixed = mix([brightness_net((4,), name) for name in ("tflm", "litert-xnnpack")])
    with pytest.raises(InputError, match="several or an envelope"):
        estimate(mixed, transforms("contrast")[0], np.zeros((1, 4), np.float32), np.array([0]), domain=UNIT)
    with pytest.raises(DataError):
        estimate(program, transforms("contrast")[0], np.zeros((1, 5), np.float32), np.array([0]), domain=UNIT)
