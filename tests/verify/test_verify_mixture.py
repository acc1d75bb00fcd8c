"""Several runtimes at once: no mixture of them leaves the bounds, and a verdict holds for every one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute import boxes, check_bounds, check_verdicts, groups, inside, margins, mixtures
from strategies import random_graph
from test_verify_interval import check_engine

from cactus_edge.errors import InternalError, UnsupportedError
from cactus_edge.ir import mixture as mixture_module
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import AnyOf, Isotone, Monotone, Program, Softmax, Table
from cactus_edge.ir.inputs import MixedQuantizeRule, QuantizeRule
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.verify import interval as interval_module
from cactus_edge.verify import tail as tail_module
from cactus_edge.verify.decide import Decider, decide
from cactus_edge.verify.interval import Engine, propagate
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.regions import box, point_boxes, region


def test_no_mixture_leaves_the_bounds() -> None:
    kinds = set()
    for k, program in enumerate(mixtures(0, 60)):
        check_bounds(program, program, k)
        kinds |= {type(s.atom.atoms[0]) for s in program.steps if isinstance(s.atom, AnyOf)}
    assert kinds >= {Monotone, Isotone, Softmax}


def test_profiles_with_different_weights_are_no_mixture() -> None:
    """TFLM interpolates in fixed point of 10 bits, XNNPACK of 11."""
    graph = random_graph(np.random.default_rng(0), max_nodes=1, middle=("resize_bilinear",), ends=("",))
    with pytest.raises(UnsupportedError, match="different weights"):
        mix([lower(graph, PROFILES[name]) for name in ("tflm", "litert-xnnpack")])


def test_each_profile_stays_within_the_bounds_of_all() -> None:
    for k, group in enumerate(groups(0, 30)):
        for program in group:
            check_bounds(program, mix(group), k)


def test_the_bounds_check_sees_a_profile_left_out() -> None:
    with pytest.raises(AssertionError):
        for k, group in enumerate(groups(0, 30)[1::2]):
            check_bounds(mix(group), mix(group[:-1]), k)


def test_bounds_are_attained_by_one_of_the_profiles() -> None:
    """One step: the bounds of the mixture are the hull of its members' own, no wider."""
    for k, group in enumerate(groups(20, 20, max_nodes=1)):
        lo, _, hi = boxes(np.random.default_rng(k), group[0].values[group[0].input].shape, 8)
        own = [propagate(p, lo, hi) for p in group]
        first = group[0].steps[0].out
        low, high = propagate(mix(group), lo, hi)[first]
        assert np.array_equal(low, np.minimum.reduce([b[first][0] for b in own]))
        assert np.array_equal(high, np.maximum.reduce([b[first][1] for b in own]))


def test_the_engine_equals_its_definition() -> None:
    for k, program in enumerate(mixtures(300, 25)):
        check_engine(program, k)


def test_the_engine_sees_ends_that_are_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = interval_module._extreme
    monkeypatch.setattr(interval_module, "_extreme", lambda of, rules: real(np.minimum, rules))
    with pytest.raises(InternalError, match="differ from their definition"):
        for k, program in enumerate(mixtures(300, 12)):
            check_engine(program, k)


def test_a_certified_region_is_won_by_every_mixture() -> None:
    certified = [check_verdicts(p, k) for k, p in enumerate(mixtures(0, 60, decidable=True, max_nodes=3))]
    assert sum(certified[::2]) > 25 and sum(certified[1::2]) > 12


def test_a_certified_region_is_won_under_each_profile() -> None:
    certified = 0
    for k, group in enumerate(groups(100, 40, decidable=True, max_nodes=3)):
        rng = np.random.default_rng(k)
        lo, x, hi = boxes(rng, group[0].values[group[0].input].shape, 8)
        labels = rng.integers(0, group[0].output_tensor.size, 8)
        mixed = decide(mix(group), lo, hi, labels, x)
        for program in group:
            own = decide(program, lo, hi, labels, x)
            assert not (mixed.correct & ~own.correct).any()
            for i in np.flatnonzero(mixed.certified):
                assert margins(program, inside(rng, lo[i], hi[i])[0], int(labels[i])).min() >= 1
        certified += int(mixed.certified.sum())
    assert certified > 10


def lowest_for_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tail_module._end
    monkeypatch.setattr(tail_module, "_end", lambda atom, value, sign: real(atom, value, -1))


def one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = mixture_module._mixed
    monkeypatch.setattr(mixture_module, "_mixed", lambda steps: real(steps[:1]))


def not_at_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module.Tail, "highest", tail_module.Tail.lowest)


@pytest.mark.parametrize("fault", [lowest_for_highest, one_for_all, not_at_the_samples])
def test_the_verdict_check_sees_a_fault(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = groups(0, 80, decidable=True, max_nodes=3)[1::2]
    right = [mix(group) for group in found]
    fault(monkeypatch)
    wrong = [mix(group) for group in found]
    real = decide
    with pytest.raises(AssertionError):
        for k, (program, faulty) in enumerate(zip(right, wrong, strict=True)):
            monkeypatch.setattr("brute.decide", lambda _, *a, faulty=faulty, **k: real(faulty, *a, **k))
            check_verdicts(program, k)


def softmaxes(seed: int, count: int) -> list[list[Program]]:
    return groups(seed, count, decidable=True, max_nodes=1, middle=("dense",), ends=("softmax",))


def test_a_softmax_must_separate_under_every_rule() -> None:
    """The criteria are not one: regions certified by the mixture are certified by each of its softmaxes, and some by fewer."""
    kinds = set()
    for k, group in enumerate(softmaxes(0, 20)):
        mixed = Decider(mix(group))
        kinds |= {type(rule) for rule in mixed.goal.softmaxes}
        rows = np.arange(-5, 250).repeat(mixed.goal.classes).reshape(-1, mixed.goal.classes)
        labels = np.zeros(len(rows), np.int64)
        own = [Decider(p).goal.won(rows, labels) for p in group]
        assert np.array_equal(mixed.goal.won(rows, labels), np.logical_and.reduce(own)), k
    assert len(kinds) == 4


def test_what_stands_at_the_input_is_quantised_by_every_rule() -> None:
    """0.5 steps are 1 for half_away, 0 for half_even."""
    rule = MixedQuantizeRule((QuantizeRule(1.0, 0, "half_away"), QuantizeRule(1.0, 0, "half_even")))
    x = np.array([0.5, 1.5, -0.5, 0.25], np.float32)
    assert rule.lowest(x).tolist() == [0, 2, -1, 0] and rule.highest(x).tolist() == [1, 2, 0, 0]
    assert rule.apply(x).tolist() == rule.rules[0].apply(x).tolist()
    group = next(g for g in groups(0, 40, ends=("",)) if len({p.quantize for p in g}) > 1)
    program = mix(group)
    assert isinstance(program.quantize, MixedQuantizeRule)
    shape = program.values[program.input].shape
    x = np.full((1, *shape), np.float32(program.quantize.scale) * np.float32(0.5), np.float32)
    low, high = point_boxes(program, x)
    assert (high.astype(int) - low == 1).all()
    lo, hi = box(program, region(program, 0), x)
    assert np.array_equal(lo, low) and np.array_equal(hi, high)


def test_tables_are_mixed_entry_by_entry() -> None:
    found = [
        s.atom
        for p in mixtures(0, 40, max_nodes=2, middle=("leaky_relu", "logistic", "tanh"))
        for s in p.steps
        if isinstance(s.atom, AnyOf) and isinstance(s.atom.atoms[0], Table)
    ]
    assert found
    everything = np.full((1, 1), -128), np.full((1, 1), 127)
    for atom in found:
        low, high = interval_module.step_bounds(atom, [everything])
        tables = [t.table for t in atom.atoms if isinstance(t, Table)]
        assert low.min() == min(t.min() for t in tables) and high.max() == max(t.max() for t in tables)


def test_the_proof_of_overflow_is_the_worst_of_all() -> None:
    for group in groups(0, 20):
        own = [{(f.node, f.quantity): f.bound for f in prove(p)} for p in group]
        keys = set().union(*own)
        assert {(f.node, f.quantity): f.bound for f in prove(mix(group))} == {
            key: max(facts.get(key, 0) for facts in own) for key in keys
        }


def test_equal_steps_stay_one_function() -> None:
    group = groups(0, 1)[0]
    assert mix([group[0], lower(group[0].graph, group[0].profile)]).definite
    assert mix(group[:1]) is group[0]
    assert not mix(groups(0, 2)[1]).definite


def test_a_mixture_is_of_one_graph_and_lowers_nothing() -> None:
    first, second = groups(0, 2)
    for programs in ([], [first[0], second[0]]):
        with pytest.raises(ValueError, match="one graph"):
            mix(programs)
    with pytest.raises(UnsupportedError, match="no rule"):
        mix(first).profile.rule("Dense")


def test_engines_do_not_write_into_each_others_arguments() -> None:
    """Several compiled rules read one array of accumulators."""
    for k, program in enumerate(mixtures(40, 6, middle=("dense", "conv2d"), max_nodes=2, ends=("",))):
        lo, _, hi = boxes(np.random.default_rng(k), program.values[program.input].shape, 4)
        engine = Engine(program, range(len(program.values)))
        again = [engine.run(lo, hi) for _ in range(2)]
        assert all(np.array_equal(a, b) for x, y in zip(*again, strict=True) for a, b in zip(x, y, strict=True))
