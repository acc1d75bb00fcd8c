"""`certify --vnnlib` as a function: properties of a classifier in VNN-LIB, decided on the integers of its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.api_files import Pairs, Source, content, default_profile, file_formats
from cactus_edge.errors import InputError, InternalError
from cactus_edge.resources import require_file, sha256, write_atomic
from cactus_edge.vnnlib import Property, read, shaped

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.ir.atoms import Program

FORMAT, VERSION = "cactus-edge vnnlib", 1

BUDGET = "60s"
"""Where none is given."""

WORDS = {"unsat": "robust", "sat": "not robust", "unknown": "unknown"}


@dataclass(frozen=True, eq=False)
class Answer:
    """result: "unsat", no input of the box has unsafe outputs, by a proof that was checked; "sat", `inputs` has, by the
    interpreter; or "unknown", why. label: whose win was looked at; rule: what a win is (`verify.decide.RULES`); by: what decided.

    inputs: of a counterexample, exactly, in the property's order; codes, what the runtime makes of them; outputs: as codes.
    """

    name: str
    result: str
    label: int
    rule: str
    by: str = ""
    why: str = ""
    inputs: tuple[Fraction, ...] = ()
    codes: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """For the report."""
        found = {"inputs": [str(x) for x in self.inputs], "codes": list(self.codes), "outputs": list(self.outputs)}
        row = {"property": self.name, "result": self.result, "words": WORDS[self.result], "label": self.label}
        row |= {"rule": self.rule, "by": self.by} | ({"why": self.why} if self.why else {})
        return row | (found if self.inputs else {})


def decide(model: Source, asked: Property, *, profile: str = "", budget: str = BUDGET) -> Answer:
    """Decides one property of the file `model`, .tflite or .onnx, by all means within the budget, as `api.certify` has it.

    Inputs are the real numbers that the runtime quantises, in the file's own order (of an .onnx image C, H, W); outputs compare as
    their codes, which have one scale. Proofs are checked by `verify`, counterexamples run by the interpreter. Raises InputError for a
    property that does not fit the file, or that a win of one class does not decide, and as `api.certify` does.
    """
    import numpy as np

    from cactus_edge.certify.complete import Budget, Complete
    from cactus_edge.ir.evaluate import run
    from cactus_edge.verify.check import Checker
    from cactus_edge.verify.decide import RULES
    from cactus_edge.verify.proof import Robust
    from cactus_edge.verify.read import format_of
    from cactus_edge.verify.regions import exact, float32_below
    from cactus_edge.verify.runtimes import runtimes

    data, limit = content(model, "model"), Budget.parse(budget)
    form = file_formats()[format_of(data)]
    rules = [first for first in (True, False) if asked.labels(first)]
    if not rules:
        raise InputError(
            f"{asked.name}: no class is said to be reached by others in every case",
            hint="(assert (or (and (>= Y_0 Y_5)) ...)): class 5 is to win",
        )
    named = runtimes(data, profile or default_profile(data), form, rules[0])
    for one in named.programs:
        form.confirm(data, one.profile)
    program = named.program
    _require_fit(program, asked)
    for i, ends in enumerate(zip(asked.lower, asked.upper, strict=True)):
        for end in ends:
            exact(end, f"{asked.name}: a bound of X_{i}")  # floats cannot hold larger ones
    lower, upper = (
        shaped(ends, program.values[program.input].shape, form.name == "onnx") for ends in (asked.lower, asked.upper)
    )
    labels, rule = asked.labels(rules[0]), RULES[rules[0]]
    if (lower > upper).any():
        return Answer(asked.name, "unsat", labels[0], rule, "an empty box")
    under = np.vectorize(float32_below, otypes=[np.float32])(lower)
    over = -np.vectorize(float32_below, otypes=[np.float32])(-upper)
    low, high = program.quantize.lowest(under), program.quantize.highest(over)
    middle = ((low.astype(np.int64) + high) // 2).astype(low.dtype)
    output = run(program, middle[None]).reshape(-1) if program.definite else np.zeros(asked.outputs)
    label = max(labels, key=lambda k: output[k])
    search = Complete(program, limit)
    (found,) = search.records(low[None], high[None], np.zeros(1, np.int64), np.array([label]), middle[None])
    verdict = found.record.verdict
    if verdict is None:
        return Answer(asked.name, "unknown", label, rule, found.effort.by, found.effort.why)
    if not Checker(program, search.linear.slopes).holds([found.record])[0]:
        raise InternalError("a verdict that was found does not hold", hint="please report this model")
    if isinstance(verdict, Robust):
        return Answer(asked.name, "unsat", label, rule, found.effort.by)
    output = run(program, verdict[None]).reshape(-1)
    inputs = _inputs(program, verdict, lower, upper)
    if inputs is None or not asked.violated(output):
        why = f"class {label} does not win everywhere, which is more than the property asks"
        if inputs is None:
            why = "a counterexample only where an end of the box is rounded to a float32 outside"
        return Answer(asked.name, "unknown", label, rule, found.effort.by, why)
    order = np.moveaxis(inputs, 2, 0) if form.name == "onnx" and inputs.ndim == 3 else inputs
    codes = np.moveaxis(verdict, 2, 0) if form.name == "onnx" and verdict.ndim == 3 else verdict
    numbers = tuple(map(int, codes.ravel())), tuple(map(int, output))
    return Answer(asked.name, "sat", label, rule, found.effort.by, "", tuple(order.ravel()), *numbers)


def _require_fit(program: Program, asked: Property) -> None:
    inputs = 1
    for n in program.values[program.input].shape:
        inputs *= n
    if (len(asked.lower), asked.outputs) != (inputs, program.output_tensor.size):
        raise InputError(
            f"{asked.name} declares {len(asked.lower)} inputs and {asked.outputs} outputs, "
            f"the model has {inputs} and {program.output_tensor.size}"
        )


def _inputs(
    program: Program, codes: npt.NDArray[Any], lower: npt.NDArray[Any], upper: npt.NDArray[Any]
) -> npt.NDArray[Any] | None:
    """Exact numbers of the box, [*shape], that a float32 and the runtime turn into these codes; None where there are none."""
    import numpy as np

    scale, zero_point = Fraction(program.quantize.scale), program.quantize.zero_point
    real = np.vectorize(lambda q: scale * (int(q) - zero_point), otypes=[object])(codes)
    inside = np.minimum(np.maximum(real, lower), upper)
    rounded = np.vectorize(float, otypes=[np.float64])(inside).astype(np.float32)
    return inside if np.array_equal(program.quantize.apply(rounded), codes) else None


@dataclass(frozen=True)
class Answers:
    """A report on disk, and what it says."""

    path: Path
    answers: Sequence[Answer]

    @property
    def robust(self) -> int:
        """How many properties hold."""
        return sum(a.result == "unsat" for a in self.answers)

    def summary(self) -> Pairs:
        """One line a property."""
        rows = [
            (a.result, f"{a.name}: {WORDS[a.result]} ({a.rule}, class {a.label}; {a.why or a.by})")
            for a in self.answers
        ]
        return [*rows, ("report", str(self.path))]


def decide_files(model: Path, properties: Sequence[Path], *, out: Path, profile: str = "", budget: str = "") -> Answers:
    """`decide` for one property after the other, and the report: JSON at `out`."""
    require_file(out, "--out", (model, *properties))
    asked = [read(path) for path in properties]
    data = content(model, "model")
    answers = [decide(data, one, profile=profile, budget=budget or BUDGET) for one in asked]
    body = {
        "format": FORMAT,
        "version": VERSION,
        "model": sha256(data),
        "profile": profile or default_profile(data),
        "budget": budget or BUDGET,
        "results": [
            {"sha256": sha256(path.read_bytes()), **a.record()} for path, a in zip(properties, answers, strict=True)
        ],
    }
    write_atomic(out, json.dumps(body, indent=1, sort_keys=True) + "\n")
    return Answers(out, answers)
