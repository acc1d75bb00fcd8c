"""First maximum: classes behind the label may equal it. Enumeration, both checkers, certificates; strictness on the wrong side shows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute import boxes, execute, inside, mixtures, programs

from cactus_edge import api
from cactus_edge.certify.attack import attack
from cactus_edge.certify.complete import Budget, Complete
from cactus_edge.certify.linear import Linear
from cactus_edge.cli import main
from cactus_edge.errors import InputError, UnsupportedError
from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.replay import lost
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.resources import data_path
from cactus_edge.verify.certificate import decode, encode, seal
from cactus_edge.verify.check import Checker
from cactus_edge.verify.decide import RULES, Decider
from cactus_edge.verify.goal import Goal, wins
from cactus_edge.verify.proof import Proof, Record, Robust
from cactus_edge.verify.proof import encode as encode_proof
from cactus_edge.verify.recheck import recheck

Array = Any
CLASSES, INPUTS = 4, 3


def coarse(seed: int, softmax: bool = False) -> Graph:
    """Two dense layers whose coarse logits tie often."""
    rng = np.random.default_rng(seed)
    build, width = GraphBuilder(), INPUTS
    last = build.input(Tensor("x", (INPUTS,), scale=float(np.float32(1 / 255)), zero_point=-128))
    for name, size, scale, zero, activation in (
        ("hidden", 6, 0.02, -128, ops.Activation.RELU),
        ("logits", CLASSES, 0.5, 0, ops.Activation.NONE),
    ):
        weight = ops.freeze(rng.integers(-127, 128, (size, width)), np.int8)
        bias = ops.freeze(rng.integers(-500, 500, size), np.int32)
        op = ops.Dense(weight, bias, ops.freeze([np.float32(0.02)], np.float32), activation)
        last, width = build.node(op, [last], Tensor(name, (size,), "int8", float(np.float32(scale)), zero)), size
    if softmax:
        last = build.node(ops.Softmax(), [last], Tensor("p", (CLASSES,), "int8", 1 / 256, -128))
    return build.finish(last)


def first(program: Program) -> Program:
    return replace(program, first_maximum=True)


def tiny(seed: int, softmax: bool = False) -> Program:
    return first(lower(coarse(seed, softmax), profile("tflm")))


def asked(program: Program, seed: int, count: int = 8) -> tuple[Array, Array, Array]:
    """Boxes around random points whose label is their first maximum."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-120, 120, (count, *program.values[program.input].shape))
    radius = rng.integers(0, 5, (count, *(1,) * (x.ndim - 1)))
    labels = run(program, x.astype(np.int8)).reshape(count, -1).argmax(1).astype(np.int64)
    low, high = (np.clip(x + side * radius, -128, 127).astype(np.int8) for side in (-1, 1))
    return low, high, labels


def truth(program: Program, low: Array, high: Array, label: int, first_maximum: bool = True) -> bool:
    """Whether the label wins at every point, by Python's own comparisons."""
    points, complete = inside(np.random.default_rng(0), low, high)
    assert complete
    outputs = run(program, points).tolist()
    return all(
        (out[label] > v) if j < label or not first_maximum else (out[label] >= v)
        for out in outputs
        for j, v in enumerate(out)
        if j != label
    )


def disagreements(seeds: range) -> Counter[str]:
    """Whatever intervals, lines and the complete search say, against all points."""
    pytest.importorskip("torch")
    seen: Counter[str] = Counter()
    for seed in seeds:
        program = tiny(seed, seed % 3 == 0)
        low, high, labels = asked(program, seed)
        certified, _ = Decider(program).decide(low, high, labels)
        complete = Complete(program, Budget(nodes=20))
        found = list(complete.records(low, high, np.arange(len(labels)), labels, low))
        held = Checker(program, complete.linear.slopes).holds([d.record for d in found])
        for i, label in enumerate(labels.tolist()):
            robust = truth(program, low[i], high[i], label)
            verdict = found[i].record.verdict
            seen["robust"] += robust
            seen["tied"] += robust and not truth(program, low[i], high[i], label, first_maximum=False)
            seen["decided"] += verdict is not None
            seen["wrong"] += bool(certified[i]) > robust
            seen["wrong"] += verdict is not None and (isinstance(verdict, Robust) != robust or not held[i])
    return seen


def test_verdicts_are_those_of_all_points() -> None:
    seen = disagreements(range(8))
    assert not seen["wrong"] and seen["decided"] > 58 and seen["robust"] > 30 and seen["tied"] > 4, seen


def behind_is_before(patch: pytest.MonkeyPatch) -> None:
    real = Goal.may_tie
    patch.setattr(Goal, "may_tie", lambda self, y: ~real(self, y) & (np.arange(self.classes) != y[:, None]))


def all_may_tie(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Goal, "may_tie", lambda self, y: np.ones((len(y), self.classes), np.bool_))


@pytest.mark.parametrize("fault", [behind_is_before, all_may_tie])
def test_strictness_on_the_wrong_side_shows(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    assert disagreements(range(8))["wrong"]


def test_no_execution_of_random_graphs_contradicts_a_verdict() -> None:
    more = 0
    for k, plain in enumerate(programs(40, 40, ends=("", "softmax"), max_nodes=4) + mixtures(9, 12)):
        rng = np.random.default_rng(k)
        try:
            decider, strict, search = Decider(first(plain)), Decider(plain), Linear(first(plain))
        except UnsupportedError:
            continue
        low, x, high = boxes(rng, plain.values[plain.input].shape, 5)
        labels = execute(rng, plain, x)[plain.output].reshape(5, -1).argmax(1)
        certified, _ = decider.decide(low, high, labels)
        kept, _ = strict.decide(low, high, labels)
        assert (certified >= kept).all()
        records = search.records(low, high, np.arange(5), labels)
        assert Checker(first(plain), search.slopes).holds(records).all()
        for i in range(5):
            if certified[i] or records[i].verdict is not None:
                points, _ = inside(rng, low[i], high[i])
                out = execute(rng, plain, points)[plain.output].reshape(len(points), -1)
                assert wins(out, np.full(len(points), labels[i]), first_maximum=True).all()
        more += int((certified & ~kept).sum())
    assert more


def test_wins() -> None:
    outputs = np.array([[3, 3, 1], [3, 3, 1], [1, 3, 3], [1, 2, 3]])
    labels = np.array([0, 1, 1, 2])
    assert wins(outputs, labels, first_maximum=True).tolist() == [True, False, True, True]
    assert wins(outputs, labels).tolist() == [False, False, False, True]


def claims() -> list[tuple[bytes, bytes, list[Record], bool]]:
    """Models with proofs of some records each, and whether any of them only the first maximum wins."""
    found = []
    for seed in range(16):
        graph = coarse(seed, seed % 2 == 0)
        model = write_tflite(graph, metadata={})
        program = first(lower(graph, profile("tflm")))
        search = Linear(program)
        low, high, labels = asked(program, seed)
        records = search.records(low, high, np.arange(len(labels)), labels)
        for n, record in enumerate(records):
            ends = [
                p for p in (record.lower, record.upper) if not wins(run(program, p[None]), labels[n : n + 1], True)[0]
            ]
            records[n] = record if record.verdict is not None or not ends else replace(record, verdict=ends[0])
        strict = Checker(replace(program, first_maximum=False), search.slopes)
        proof = proof_of(program, model, search.slopes, *records)
        found.append((model, proof, records, not strict.holds(records).all()))
    return found


def proof_of(program: Program, model: bytes, slopes: Any, *records: Record) -> bytes:
    proof = Proof(hashlib.sha256(model).digest(), "tflm", len(records), slopes, records)
    return encode_proof(program, proof)


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> CChecker:
    return CChecker(tmp_path_factory.mktemp("ce"))


def test_the_checker_in_c_agrees(checker: CChecker) -> None:
    seen: Counter[str] = Counter()
    for model, proof, records, tied in claims():
        assert checker.check(model, proof, first_maximum=True).state == "accepted"
        assert (checker.check(model, proof).state == "rejected") == tied
        seen.update(type(record.verdict).__name__ for record in records)
        seen["tied"] += tied
    assert seen["Robust"] > 40 and seen["ndarray"] and 3 < seen["tied"] < 16, seen


def test_both_checkers_refuse_a_counterexample_that_ties_behind(checker: CChecker) -> None:
    seen = 0
    for seed in range(12):
        graph = coarse(seed)
        program, model = first(lower(graph, profile("tflm"))), write_tflite(graph, metadata={})
        x = np.random.default_rng(seed).integers(-128, 128, (64, INPUTS)).astype(np.int8)
        out = run(program, x).astype(np.int64)
        ties = np.flatnonzero(np.sort(out, 1)[:, -1] == np.sort(out, 1)[:, -2])
        for i in ties[:2]:
            leader, last = (int(k) for k in np.flatnonzero(out[i] == out[i].max())[[0, -1]])
            for label, holds in ((leader, False), (last, True)):
                record = Record(0, label, x[i], x[i], x[i])
                assert Checker(program, {}).holds([record])[0] == holds
                proof = proof_of(program, model, {}, record)
                assert (checker.check(model, proof, first_maximum=True).state == "accepted") == holds
                assert checker.check(model, proof).state == "accepted"
                assert lost(model, x[i : i + 1], np.array([label]), first_maximum=True)[0] == holds
                seen += 1
    assert seen > 6


def test_both_checkers_refuse_a_label_that_ties_with_one_before_it(checker: CChecker) -> None:
    for seed in range(12):
        graph = coarse(seed)
        program, model = first(lower(graph, profile("tflm"))), write_tflite(graph, metadata={})
        search = Linear(program)
        x = np.random.default_rng(seed).integers(-128, 128, (64, INPUTS)).astype(np.int8)
        out = run(program, x).astype(np.int64)
        for i in np.flatnonzero(np.sort(out, 1)[:, -1] == np.sort(out, 1)[:, -2])[:2]:
            leader, last = (int(k) for k in np.flatnonzero(out[i] == out[i].max())[[0, -1]])
            (shown,) = search.records(x[i : i + 1], x[i : i + 1], np.zeros(1, np.int64), np.array([leader]))
            assert isinstance(shown.verdict, Robust)
            wrong = replace(
                shown, label=last, verdict=replace(shown.verdict, tree=replace(shown.verdict.tree, rows=()))
            )
            assert not Checker(program, search.slopes).holds([wrong])[0]
            proof = proof_of(program, model, search.slopes, wrong)
            assert checker.check(model, proof, first_maximum=True).state == "rejected"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("decide.c", "goal->first_maximum && j > label ? 0 : 1", "goal->first_maximum && j < label ? 0 : 1"),
        ("decide.c", "goal->first_maximum && j > label ? 0 : 1", "goal->first_maximum && j != label ? 0 : 1"),
        ("proof.c", "j > c->label);", "j < c->label);"),
    ],
    ids=["before", "both", "counterexample"],
)
def test_a_fault_of_the_checker_in_c_shows(file: str, old: str, new: str, tmp_path: Path) -> None:
    source = data_path("export", "c", "verify", file).read_text()
    assert source.count(old) == 1
    (tmp_path / file).write_text(source.replace(old, new))
    faulty = CChecker(tmp_path, overlay=tmp_path)
    with pytest.raises(AssertionError):
        test_the_checker_in_c_agrees(faulty)
        test_both_checkers_refuse_a_counterexample_that_ties_behind(faulty)
        test_both_checkers_refuse_a_label_that_ties_with_one_before_it(faulty)


def files(folder: Path) -> tuple[Path, Path, Array, Array]:
    """A model and samples some of which tie with a class behind their label."""
    graph = coarse(4)
    program = lower(graph, profile("tflm"))
    x = np.random.default_rng(0).integers(-128, 128, (60, INPUTS)).astype(np.int8)
    y = run(program, x).argmax(1)
    (folder / "m.tflite").write_bytes(write_tflite(graph, metadata={}))
    np.savez(folder / "x.npz", x=x, y=y)
    return folder / "m.tflite", folder / "x.npz", x, y


def resealed(certificate: bytes, rule: str) -> bytes:
    return encode(seal({**decode(certificate), "rule": rule}))


@pytest.mark.parametrize("bounds", ["interval", "linear"])
def test_certificates_name_their_rule(bounds: str, tmp_path: Path) -> None:
    model, _, x, y = files(tmp_path)
    some = {"eps": "0", "bounds": bounds, "attack": bounds == "linear"}
    strict, firsts = (api.certify(model, x, y, ties=ties, **some) for ties in ("strict", "first-maximum"))
    assert strict.record["rule"] == RULES[False] and firsts.record["rule"] == RULES[True]
    assert firsts.decision.certified.all() and not strict.decision.certified.all()
    for certificate in (strict, firsts):
        rule = certificate.record["rule"]
        for said in RULES.values():
            report = recheck(resealed(certificate.to_bytes(), said), model.read_bytes(), x, y, proof=certificate.proof)
            assert report.accepted == (said == rule)
    with pytest.raises(InputError, match="unknown ties 'last'"):
        api.certify(model, x, y, eps="0", ties="last")


def test_an_attack_knows_who_wins_ties() -> None:
    """Of points whose label is the first maximum none is lost by that rule; by the strict one those that tie are."""
    program = tiny(0)
    x = np.random.default_rng(0).integers(-120, 120, (60, INPUTS)).astype(np.int8)
    labels = run(program, x).argmax(1).astype(np.int64)
    lost = [
        attack(p, x, x, labels, start=x, restarts=0).found.sum()
        for p in (program, replace(program, first_maximum=False))
    ]
    assert lost[0] == 0 < lost[1]


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, _, _ = files(tmp_path)
    certify = ["certify", str(model), f"--data={data}", f"--out={tmp_path / 'c.json'}"]
    assert main([*certify, "--eps=0", "--attack", "--ties=first-maximum", "--require=100"]) == 0
    assert "60 of 60" in (said := capsys.readouterr().out) and "ties won by the first class" in said
    assert json.loads((tmp_path / "c.json").read_text())["rule"] == RULES[True]
    assert main(["verify", str(tmp_path / "c.json"), f"--model={model}", f"--data={data}"]) == 0
    assert main([*certify, "--eps=0", "--require=100"]) == 1
    assert main([*certify, "--max-eps", "--ties=first-maximum"]) == 2
    assert "--max-eps has no use for --ties" in capsys.readouterr().err
