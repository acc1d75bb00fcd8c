"""VNN-LIB properties of small networks: sat and unsat are what all points say, both forms, strict or not; the command."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_kit import network

from cactus_edge import api_vnnlib
from cactus_edge.api_vnnlib import decide
from cactus_edge.cli import main
from cactus_edge.errors import InputError, InternalError
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
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
    answer = decide(model, written([Fraction(1)] * 3, [Fraction(0)] * 3, "(assert (>= Y_0 Y_1))"))
    assert (answer.result, answer.by) == ("unsat", "an empty box")


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
