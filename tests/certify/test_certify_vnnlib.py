"""VNN-LIB properties of small networks: sat and unsat are what all points say, both forms, strict or not; the command."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_kit import classifier
from search_kit import network

from cactus_edge import api_vnnlib
from cactus_edge.api_vnnlib import Answer, Answers, _inputs, decide
from cactus_edge.certify.complete import Complete
from cactus_edge.cli import main
from cactus_edge.errors import InputError, InternalError, UnsupportedError
from cactus_edge.formats.c.certified import TFLITE
from cactus_edge.formats.onnx import read_onnx, write_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.check import Checker
from cactus_edge.vnnlib import Property, parse

pytest.importorskip("torch")

CLASSES = 4


def around(program: Program, rng: np.random.Generator) -> tuple[list[Fraction], list[Fraction], Any]:
    """A box in the reals, decimal ends, and all codes inside it."""
    scale, zero = program.quantize.scale, program.quantize.zero_point
    centre, radius = rng.integers(-100, 100, 3), rng.integers(0, 5, 3)
    ends = [
        [Fraction(f"{scale * (c + s * r - zero):.6f}") for c, r in zip(centre, radius, strict=True)] for s in (-1, 1)
    ]
    low, high = (program.quantize.apply(np.array([float(v) for v in side], np.float32)) for side in ends)
    axes = [range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)]
    return ends[0], ends[1], np.array(list(itertools.product(*axes))).astype(np.int8)


def unsafe(rng: np.random.Generator, label: int, form: int) -> str:
    """What may be said of the outputs."""
    others = [j for j in range(CLASSES) if j != label]
    if form == 3:
        return f"(assert (>= Y_{others[0]} Y_{label}))"
    if form == 4:
        target = others[0]
        return "".join(f"(assert (<= Y_{j} Y_{target}))" for j in range(CLASSES) if j != target)
    some = others if form < 2 else others[:2]
    relations = [(">=", "<=") if form != 1 or j < label else (">", "<") for j in some]
    listed = [
        f"(and ({r} Y_{j} Y_{label}))" if rng.random() < 0.5 else f"({back} Y_{label} Y_{j})"
        for j, (r, back) in zip(some, relations, strict=True)
    ]
    return f"(assert (or {' '.join(listed)}))"


def written(lower: list[Fraction], upper: list[Fraction], outputs: str) -> Property:
    names = [*(f"X_{i}" for i in range(len(lower))), *(f"Y_{j}" for j in range(CLASSES))]
    lines = [f"(declare-const {name} Real)" for name in names]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {float(low)}))", f"(assert (<= X_{i} {float(high)}))"]
    return parse("\n".join([*lines, outputs]), "p")


def compared(seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        program = network(seed, (6,), CLASSES)
        model = write_tflite(program.graph, metadata={})
        for form in range(5):
            lower, upper, points = around(program, rng)
            outputs = run(program, points)
            label = int(np.argmax(outputs[len(points) // 2]))
            asked = written(lower, upper, unsafe(rng, label, form))
            answer = decide(model, asked, budget="60n")
            violated = [asked.violated(out) for out in outputs]
            seen[answer.result] += 1
            seen["wrong"] += answer.result == ("unsat" if any(violated) else "sat")
            seen["undecided"] += form < 2 and answer.result == "unknown"
            if answer.result == "sat":
                (at,) = np.flatnonzero((points == answer.codes).all(1))
                inside = all(a <= x <= b for a, x, b in zip(lower, answer.inputs, upper, strict=True))
                real = np.array([float(x) for x in answer.inputs], np.float32)
                same = program.quantize.apply(real).tolist() == list(answer.codes)
                seen["wrong"] += not (violated[at] and inside and same and list(answer.outputs) == outputs[at].tolist())
    return seen


def test_answers_are_those_of_all_points() -> None:
    seen = compared(range(7))
    assert not seen["wrong"] and not seen["undecided"] and min(seen["sat"], seen["unsat"]) >= 5, seen


class Searched(Exception):
    """The codes that are searched."""


def test_a_number_between_two_floats_may_become_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they quantise to two codes, both belong to the box: whoever gave the number did not say how it is rounded."""

    def told(self: Complete, low: Any, high: Any, *_: Any) -> None:
        raise Searched(low.tolist(), high.tolist())

    monkeypatch.setattr(Complete, "records", told)
    program = network(1, (6,), CLASSES)
    apply = program.quantize.apply
    code, above = 10, np.float32(program.quantize.scale * (10 - program.quantize.zero_point))
    while apply(np.array([above]))[0] == code:
        above = np.float32(above + program.quantize.scale / 16)
    below = np.float32(above - program.quantize.scale / 16)
    while np.nextafter(below, above) != above:
        middle = np.float32((below + above) / 2)
        below, above = (middle, above) if apply(np.array([middle]))[0] == code else (below, middle)
    assert apply(np.array([below, above])).tolist() == [code, code + 1]
    between = [(Fraction(float(below)) + Fraction(float(above))) / 2] * 3
    asked = replace(written([Fraction(0)] * 3, [Fraction(0)] * 3, "(assert (>= Y_0 Y_1))"), lower=tuple(between))
    with pytest.raises(Searched) as found:
        decide(write_tflite(program.graph, metadata={}), replace(asked, upper=tuple(between)), budget="1n")
    assert found.value.args == ([[code] * 3], [[code + 1] * 3])
    # What a counterexample is told as is one number, which becomes one of them.
    end = np.array(between, object)
    told_as = [_inputs(program, np.full(3, q, np.int8), end, end) for q in (code, code + 1)]
    assert [x is None for x in told_as] in ([True, False], [False, True])


def test_of_several_roundings_each_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.5 steps: TFLM's code is 3 and XNNPACK's 2."""

    def told(self: Complete, low: Any, high: Any, *_: Any) -> None:
        raise Searched(low.tolist(), high.tolist())

    monkeypatch.setattr(Complete, "records", told)
    build = GraphBuilder()
    first = build.input(Tensor("x", (3,), "int8", 1 / 16, 0))
    weight, bias = ops.freeze(np.eye(CLASSES, 3) * 100, np.int8), ops.freeze(np.zeros(CLASSES), np.int32)
    dense = ops.Dense(weight, bias, ops.freeze([np.float32(0.01)], np.float32))
    model = write_tflite(build.finish(build.node(dense, [first], Tensor("y", (CLASSES,), "int8", 1 / 16, 0))))
    tie = [Fraction(5, 32)] * 3
    with pytest.raises(Searched) as found:
        decide(model, written(tie, tie, "(assert (>= Y_0 Y_1))"), profile="tflm,litert-xnnpack", budget="1n")
    assert found.value.args == ([[2] * 3], [[3] * 3])


def test_a_counterexample_that_no_number_of_the_box_gives_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    program, point = network(1, (6,), CLASSES), [Fraction(0)] * 3
    label = int(run(program, program.quantize.apply(np.zeros((1, 3), np.float32)))[0].argmin())
    model = write_tflite(program.graph, metadata={})
    asked = written(point, point, f"(assert (>= Y_{(label + 1) % CLASSES} Y_{label}))")
    assert decide(model, asked, budget="9n").result == "sat"
    monkeypatch.setattr(api_vnnlib, "_inputs", lambda *_: None)
    answer = decide(model, asked, budget="9n")
    assert answer.result == "unknown" and "rounded to a float32 outside" in answer.why and not answer.inputs


def test_images_of_an_onnx_file_are_told_as_they_were_given() -> None:
    """Channels first, while the graph has them last: a point, so that the answer's numbers are the property's."""
    model = write_onnx(classifier())
    program = lower(read_onnx(model).graph, profile("ort-x86"))
    x = np.random.default_rng(0).normal(0, 1, program.values[program.input].shape).astype(np.float32)
    codes = run(program, program.quantize.apply(x[None])).ravel()
    label, classes = int(codes.argmin()), len(codes)
    numbers = [Fraction(float(v)) for v in np.moveaxis(x, 2, 0).ravel()]
    names = [f"(declare-const {v}_{i} Real)" for v, n in (("X", len(numbers)), ("Y", classes)) for i in range(n)]
    box = [f"(assert (>= X_{i} 0))(assert (<= X_{i} 0))" for i in range(len(numbers))]
    others = " ".join(f"(>= Y_{j} Y_{label})" for j in range(classes) if j != label)
    asked = parse("\n".join([*names, *box, f"(assert (or {others}))"]), "p")
    answer = decide(model, replace(asked, lower=tuple(numbers), upper=tuple(numbers)), budget="1n")
    assert answer.result == "sat" and list(answer.outputs) == codes.tolist() and list(answer.inputs) == numbers
    assert list(answer.codes) == np.moveaxis(program.quantize.apply(x), 2, 0).ravel().tolist()


def any_win(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Property, "violated", lambda self, output: True)


def weaker(patch: pytest.MonkeyPatch) -> None:
    real = Property.labels
    patch.setattr(Property, "labels", lambda self, first: real(self, False))


@pytest.mark.parametrize("fault", [any_win, weaker])
def test_a_fault_is_noticed(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Property.violated
    fault(monkeypatch)
    truth = real if fault is any_win else Property.violated
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        program = network(seed, (6,), CLASSES)
        for form in (0, 2, 3):
            lower, upper, points = around(program, rng)
            outputs = run(program, points)
            label = int(np.argmax(outputs[len(points) // 2]))
            asked = written(lower, upper, unsafe(rng, label, form))
            answer = decide(write_tflite(program.graph, metadata={}), asked, budget="20n")
            violated = any(truth(asked, out) for out in outputs)
            wrong += answer.result == ("unsat" if violated else "sat")
        if wrong:
            return
    pytest.fail("nothing is wrong")


def test_a_proof_that_does_not_hold_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checker, "holds", lambda self, records: np.zeros(len(records), np.bool_))
    program = network(1, (6,), CLASSES)
    point = [Fraction(0)] * 3
    with pytest.raises(InternalError):
        decide(write_tflite(program.graph, metadata={}), written(point, point, "(assert (>= Y_0 Y_1))"), budget="20n")


def test_an_empty_box() -> None:
    model = write_tflite(network(1, (6,), CLASSES).graph, metadata={})
    for least in ([Fraction(1)] * 3, [Fraction(-1), Fraction(1), Fraction(-1)]):
        answer = decide(model, written(least, [Fraction(0)] * 3, "(assert (>= Y_0 Y_1))"))
        assert (answer.result, answer.by) == ("unsat", "an empty box")


def test_a_file_that_its_runtime_does_not_compute_so_is_not_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `certify` refuses it: every profile is asked."""
    asked: list[str] = []

    def refuses(data: bytes, rules: Any) -> None:
        asked.append(rules.name)
        if rules.name == "tflm":
            raise UnsupportedError("in floats")

    monkeypatch.setattr(api_vnnlib, "file_formats", lambda: {"tflite": replace(TFLITE, confirm=refuses)})
    model, point = write_tflite(network(1, (6,), CLASSES).graph, metadata={}), [Fraction(0)] * 3
    with pytest.raises(UnsupportedError, match="in floats"):
        decide(model, written(point, point, "(assert (>= Y_0 Y_1))"), profile="tflm,litert-xnnpack", budget="1n")
    assert set(asked) == {"tflm", "litert-xnnpack"}


def test_what_is_unknown_is_not_robust(tmp_path: Path) -> None:
    found = Answers(tmp_path, [Answer("p", result, 0, "") for result in ("unsat", "sat", "unknown", "unknown")])
    assert found.robust == 1


def test_properties_that_do_not_fit() -> None:
    model = write_tflite(network(1, (6,), CLASSES).graph, metadata={})
    one = [Fraction(0)]
    with pytest.raises(InputError, match="declares 2 inputs and 4 outputs, the model has 3 and 4"):
        decide(model, written(one * 2, one * 2, "(assert (>= Y_0 Y_1))"))
    with pytest.raises(InputError, match="no class is said to be reached"):
        decide(model, written(one * 3, one * 3, "(assert (or (>= Y_0 Y_1) (>= Y_1 Y_2)))"))


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = [network(seed, (6,), CLASSES) for seed in range(9)]
    outputs_of = [run(p, p.quantize.apply(np.zeros((1, 3), np.float32)))[0] for p in programs]
    program, output = next((p, o) for p, o in zip(programs, outputs_of, strict=True) if (o == o.max()).sum() == 1)
    (tmp_path / "m.tflite").write_bytes(write_tflite(program.graph, metadata={}))
    label = int(output.argmax())
    for name, outputs in (("safe", label), ("unsafe", (label + 1) % CLASSES)):
        listed = " ".join(f"(and (>= Y_{j} Y_{outputs}))" for j in range(CLASSES) if j != outputs)
        head = "".join(f"(declare-const {v}_{i} Real)" for v, n in (("X", 3), ("Y", CLASSES)) for i in range(n))
        box = "".join(f"(assert (>= X_{i} 0))(assert (<= X_{i} 0.0))" for i in range(3))
        (tmp_path / f"{name}.vnnlib").write_text(f"{head}\n{box}\n(assert (or {listed}))\n")
    out = tmp_path / "r.json"
    files = [f"--vnnlib={tmp_path / 'safe.vnnlib'}", f"--out={out}", "--budget=20n"]
    assert main(["certify", str(tmp_path / "m.tflite"), *files, "--require=100"]) == 0
    assert "unsat" in capsys.readouterr().out
    both = ["--vnnlib", str(tmp_path / "safe.vnnlib"), str(tmp_path / "unsafe.vnnlib"), f"--out={out}", "--budget=20n"]
    assert main(["certify", str(tmp_path / "m.tflite"), *both, "--require=100"]) == 1
    report = json.loads(out.read_text())
    assert [row["result"] for row in report["results"]] == ["unsat", "sat"]
    assert (report["profile"], report["budget"]) == ("tflm", "20n")
    named = [report["model"], *(row["sha256"] for row in report["results"])]
    listed = [tmp_path / name for name in ("m.tflite", "safe.vnnlib", "unsafe.vnnlib")]
    assert named == [hashlib.sha256(path.read_bytes()).hexdigest() for path in listed]
    assert report["format"] == api_vnnlib.FORMAT and report["results"][1]["inputs"] == ["0"] * 3
    for wrong in (["--eps=1"], ["--ties=strict"], ["--attack"], ["--data=x.npz"]):
        assert main(["certify", str(tmp_path / "m.tflite"), *files, *wrong]) == 2
        assert f"--vnnlib has no use for {wrong[0].split('=')[0]}" in capsys.readouterr().err
    assert main(["certify", str(tmp_path / "m.tflite"), f"--out={out}"]) == 2


@pytest.mark.parametrize("bound", ["1" + "0" * 39, "1e400", "-1" + "0" * 31])
def test_bounds_that_no_float_holds_are_refused(bound: str) -> None:
    rng = np.random.default_rng(0)
    asked = written([Fraction(-1)] * 3, [Fraction(1)] * 3, unsafe(rng, 0, 0))
    ends = (
        (asked.lower, (Fraction(bound), *asked.upper[1:]))
        if bound[0] != "-"
        else ((Fraction(bound), *asked.lower[1:]), asked.upper)
    )
    with pytest.raises(InputError, match="a bound of X_0"):
        decide(write_tflite(network(0, classes=CLASSES).graph), replace(asked, lower=ends[0], upper=ends[1]))
