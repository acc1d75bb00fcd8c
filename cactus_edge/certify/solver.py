"""An exact search for counterexamples with an integer solver: OR-tools' CP-SAT on the network itself, within known bounds.

Every value is an integer variable or a constant: accumulators are linear in what they read, a rule is its thresholds t_k (one
literal each, acc >= t_k), maxima and small rules of two arguments are the solver's own constraints. A solution is an input
that the label does not win; it counts once the interpreter says so too. That there is none, the solver cannot prove to us:
its answer then only says that splitting further, with more budget, is worthwhile, and that attacks are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from cactus_edge.errors import InstallError
from cactus_edge.ir.atoms import Affine, Gather, Isotone, Max, Monotone, Program, Softmax, Step, Table
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.linear import pad_image, windows
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.goal import Goal, wins
from cactus_edge.verify.interval import Bounds, thresholds

TERMS = 400_000
"""Terms of the linear constraints, and literals of thresholds, together, beyond which a model is not even built."""

PAIRS = 4096
"""Pairs of codes up to which a rule of two arguments is a table."""


@dataclass(frozen=True)
class Answer:
    """found: codes of a counterexample, replayed. Otherwise `none`: whether the solver holds that there is none."""

    found: Codes | None
    none: bool = False
    why: str = ""


class _TooLarge(Exception):
    """The model would be too large, or has an atom without an encoding; the message says which."""


def search(
    goal: Goal,
    program: Program,
    known: Sequence[Bounds],
    label: int,
    *,
    seconds: float,
    limit: Literal["work", "time"] = "time",
    start: Codes | None = None,
    seed: int = 0,
) -> Answer:
    """Looks for an input within the bounds `known` [*shape] of all values that `label` does not win.

    seconds: of time, or of CP-SAT's deterministic measure of work. start: a good guess. Raises InstallError without OR-tools.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise InstallError("OR-tools is not installed", hint="pip install ortools") from error
    if not program.definite:
        return Answer(None, why="the arithmetic is not one function")
    encoding = Encoding(cp_model, program, known)
    try:
        encoding.build(goal, label)
    except _TooLarge as error:
        return Answer(None, why=str(error))
    if start is not None:
        encoding.hint(start)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    if limit == "work":
        solver.parameters.max_deterministic_time = seconds
    else:
        solver.parameters.max_time_in_seconds = seconds
    status = solver.solve(encoding.model)
    if status == cp_model.INFEASIBLE:
        return Answer(None, none=True, why="the solver holds that there is no counterexample, which is no proof")
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer(None, why="the solver's time is used")
    codes = encoding.solution(solver)
    output = run(program, codes[None]).reshape(1, -1)
    if wins(output, np.array([label]), program.first_maximum)[0]:
        return Answer(None, why="the solver's counterexample is none")
    return Answer(codes, why="the solver's counterexample, replayed")


class Encoding:
    """The network within bounds as a CP-SAT model. values: object arrays [*shape] of variables and ints, by value."""

    def __init__(self, cp_model: Any, program: Program, known: Sequence[Bounds]) -> None:
        self.cp_model, self.program, self.known = cp_model, program, known
        self.model = cp_model.CpModel()
        self.values: dict[int, Any] = {}
        self.terms = 0

    def build(self, goal: Goal, label: int) -> None:
        """Adds every step, and that `label` does not win. Raises _TooLarge."""
        self.values[self.program.input] = self._variables(*self.known[self.program.input])
        for value, codes in self.program.constants.items():
            self.values[value] = codes.astype(object)
        for step in self.program.steps:
            if not isinstance(step.atom, Softmax):
                self.values[step.out] = self._step(step)
        logits = self.values[goal.logits].reshape(-1)
        margins = np.arange(-1, 256)
        wrong = []
        for j in range(goal.classes):
            if j != label:
                grid = np.full((len(margins), goal.classes), 1 << 20)
                grid[:, j] = margins
                enough = goal.won(grid, np.full(len(margins), label))[:, j]
                lost = int(margins[~enough].max())
                literal = self.model.new_bool_var("")
                self.model.add(logits[label] - logits[j] <= lost).only_enforce_if(literal)
                wrong.append(literal)
        self.model.add_bool_or(wrong)

    def hint(self, codes: Codes) -> None:
        """Starts at the input `codes`."""
        for variable, code in zip(self.values[self.program.input].ravel(), codes.ravel().tolist(), strict=True):
            if not isinstance(variable, int):
                self.model.add_hint(variable, code)

    def solution(self, solver: Any) -> Codes:
        """The input that was found."""
        variables = self.values[self.program.input]
        flat = [v if isinstance(v, int) else solver.value(v) for v in variables.ravel()]
        found: Codes = np.array(flat).reshape(variables.shape).astype(self.program.input_tensor.dtype)
        return found

    def _variables(self, low: Int64, high: Int64) -> Any:
        made = np.empty(low.size, object)
        for i, (a, b) in enumerate(zip(low.ravel().tolist(), high.ravel().tolist(), strict=True)):
            made[i] = a if a == b else self.model.new_int_var(a, b, "")
        return made.reshape(low.shape)

    def _count(self, terms: int) -> None:
        self.terms += terms
        if self.terms > TERMS:
            raise _TooLarge(f"the solver's model would have more than {TERMS} terms")

    def _step(self, step: Step) -> Any:
        args = [self.values[a] for a in step.args]
        match step.atom:
            case Affine():
                return self._affine(step, step.atom, args[0])
            case Monotone(rule):
                return self._staircase(step, rule.apply, args[0])
            case Gather():
                return step.atom.apply(*(a[None] for a in args))[0]
            case Max() as window:
                return self._maximum(step, window, args[0])
            case Table() as table:
                codes = np.arange(-128, 128)
                return self._tables(step, args, lambda x: table.apply(codes[x + 128]))
            case Isotone(rule, _):
                return self._tables(step, args, rule.apply)
            case other:
                raise _TooLarge(f"the solver has no {type(other).__name__}")

    def _affine(self, step: Step, atom: Affine, x: Any) -> Any:
        out = self._variables(*self.known[step.out])
        shape = atom.linear.out_shape
        flat, bias = x.ravel(), np.broadcast_to(atom.bias, shape).ravel()
        fixed = np.array([isinstance(v, int) for v in flat])
        for i, variable in enumerate(out.ravel()):
            unit = np.zeros((1, prod(shape)))
            unit[0, i] = 1.0
            row = atom.linear.adjoint(unit.reshape(1, *shape)).ravel().astype(np.int64)
            used = np.flatnonzero(row)
            self._count(len(used))
            constant = int(bias[i]) + atom.input_offset * int(row.sum())
            constant += sum(int(row[u]) * flat[u] for u in used if fixed[u])
            free = [u for u in used if not fixed[u]]
            total = self.cp_model.LinearExpr.weighted_sum([flat[u] for u in free], [int(row[u]) for u in free])
            self.model.add(total + constant == variable)
        return out

    def _staircase(self, step: Step, rule: Any, x: Any) -> Any:
        low, high = self.known[step.args[0]]
        levels, t = thresholds(lambda a: rule(a), low, high)
        first = np.broadcast_to(rule(low[None])[0], low.shape)
        reached = (t > low) & (t <= high)
        self._count(int(reached.sum()))
        least, most = self.known[step.out]
        out = np.empty(low.size, object)
        for i, variable in enumerate(x.ravel()):
            if isinstance(variable, int):
                out[i] = int(rule(np.broadcast_to(variable, (1, *low.shape)))[0].ravel()[i])
                continue
            literals = []
            for k in np.flatnonzero(reached.reshape(len(levels), low.size)[:, i]):
                literal, at = self.model.new_bool_var(""), int(t.reshape(len(levels), low.size)[k, i])
                self.model.add(variable >= at).only_enforce_if(literal)
                self.model.add(variable < at).only_enforce_if(literal.negated())
                literals.append(literal)
            for up, down in zip(literals[1:], literals, strict=False):
                self.model.add_implication(up, down)
            ends = int(least.ravel()[i]), int(most.ravel()[i])
            out[i] = self.model.new_int_var(*ends, "")
            self.model.add(out[i] == int(first.ravel()[i]) + sum(literals))
        return out.reshape(low.shape)

    def _maximum(self, step: Step, window: Max, x: Any) -> Any:
        out = self._variables(*self.known[step.out])
        where = pad_image(np.arange(x.size).reshape(1, *x.shape) + 1, window.padding)
        taps = windows(where, window.kernel, window.stride)[0].transpose(0, 1, 4, 2, 3).reshape(out.size, -1)
        for variable, sources in zip(out.ravel(), taps, strict=True):
            self._count(len(sources))
            self.model.add_max_equality(variable, [x.ravel()[s - 1] for s in sources if s])
        return out

    def _tables(self, step: Step, args: Sequence[Any], rule: Any) -> Any:
        shape = self.program.values[step.out].shape
        sides = [np.broadcast_to(a, shape).ravel() for a in args]
        ends = [tuple(np.broadcast_to(b, shape).ravel().tolist() for b in self.known[v]) for v in step.args]
        out = np.empty(prod(shape), object)
        lows, highs = (b.ravel().tolist() for b in self.known[step.out])
        for i in range(len(out)):
            grids = np.meshgrid(*(np.arange(lo[i], hi[i] + 1) for lo, hi in ends), indexing="ij")
            if grids[0].size > PAIRS:
                raise _TooLarge("the solver takes rules of two arguments only within narrow bounds")
            self._count(grids[0].size)
            results = rule(*grids)
            out[i] = self.model.new_int_var(int(results.min()), int(results.max()), "")
            rows = np.stack([*(g.ravel() for g in grids), results.ravel()], 1).tolist()
            variables = [self.model.new_constant(s[i]) if isinstance(s[i], int) else s[i] for s in sides]
            self.model.add_allowed_assignments([*variables, out[i]], rows)
            self.model.add_linear_constraint(out[i], min(lows[i], int(results.min())), highs[i])
        return out.reshape(shape)
