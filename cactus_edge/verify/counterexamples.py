"""Counterexamples outside proof files, replayed and never believed: members of a family, and a perturbation for all samples.

A box of a family with ranges holds more than the family, so no point of it is evidence. A member is named by its exact
parameters, and what they make of the sample is computed here; a universal perturbation is one array that is added to every
sample. Both are run by the interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import CertificateError, InputError, InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.goal import wins
from cactus_edge.verify.regions import Bools, Float64, Region, below, exact, float32_below, real

Data = npt.NDArray[Any]
Parameters = tuple[Fraction, ...]
"""Of a member, as `regions.Family.member` takes them."""


@dataclass(frozen=True, eq=False)
class Member:
    """codes [*input shape]: among those that the member at these parameters may become; None for the least of them."""

    at: Parameters
    codes: Codes | None = None


STORED = np.dtype("<f8")

BATCH = 1024
"""Samples moved together: bounds the memory, changes no result."""


@dataclass(frozen=True, eq=False)
class Witnesses:
    """members: sample -> a member that its label does not win strictly. delta [*input shape]: in units of the data.

    None: not looked for.
    """

    members: Mapping[int, Member] | None = None
    delta: Float64 | None = None

    def claims(self, program: Program, region: Region, x: Data, labels: Int64, certified: Bools) -> dict[str, Any]:
        """Their fields in a certificate, once each was replayed; `read_witnesses` reads them.

        counterexamples: the parameters as fractions, and perhaps the codes as bytes in hex. universal: delta as the bytes of
        little-endian doubles in hex; at_most, the strict wins that are left under it; at_least, those that are left under any
        one perturbation of the ball, which all certified samples are.
        Raises as `refuted` and `under` do, InternalError for a sample that is certified and refuted.
        """
        found: dict[str, Any] = {}
        if self.members is not None:
            _require_open(certified, refuted(program, region, x, labels, self.members))
            found["counterexamples"] = {str(i): _record(member) for i, member in sorted(self.members.items())}
        if self.delta is not None:
            wins = under(program, region, x, labels, self.delta)
            found["universal"] = _universal(self.delta, certified, wins)
        return found


def _universal(delta: Float64, certified: Bools, wins: Bools) -> dict[str, Any]:
    _require_open(certified, ~wins)
    stored = delta.astype(STORED).tobytes().hex()
    return {"delta": stored, "at_least": int(certified.sum()), "at_most": int(wins.sum())}


def read_witnesses(record: Mapping[str, Any], x: Tensor) -> Witnesses:
    """Those in a certificate's record, for the input x. Raises CertificateError for another form."""
    members, delta = None, None
    try:
        match record:
            case {"counterexamples": dict() as listed}:
                members = {int(i): _member(entry, x) for i, entry in listed.items()}
        match record:
            case {"universal": {"delta": str() as text}}:
                delta = np.frombuffer(bytes.fromhex(text), STORED).astype(np.float64).reshape(x.shape)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise CertificateError("the counterexamples are no members of samples' families, or no perturbation") from error
    return Witnesses(members, delta)


def _record(member: Member) -> dict[str, Any]:
    if member.codes is None:
        return {"at": [str(v) for v in member.at]}
    stored = member.codes.astype(member.codes.dtype.newbyteorder("<"))
    return {"at": [str(v) for v in member.at], "codes": stored.tobytes().hex()}


def _member(entry: Mapping[str, Any], x: Tensor) -> Member:
    at = tuple(exact(str(v), "a parameter") for v in entry["at"])
    if "codes" not in entry:
        return Member(at)
    stored = np.frombuffer(bytes.fromhex(entry["codes"]), np.dtype(x.dtype).newbyteorder("<"))
    return Member(at, stored.astype(x.dtype).reshape(x.shape))


def _require_open(certified: Bools, lost: Bools) -> None:
    if (certified & lost).any():
        raise InternalError("a sample is certified and has a counterexample", hint="please report this model")


def require_definite(program: Program) -> None:
    """Raises InputError for a program that is not one function: what a runtime makes of an input is then not known."""
    if not program.definite:
        raise InputError(
            f"a counterexample is one for one arithmetic, and {program.profile.name} is several or an envelope",
            hint="one --profile that is no envelope",
        )


def won_by(program: Program, codes: Codes, labels: Int64) -> Bools:
    """[N]: whether the label wins at codes [N, *input shape]."""
    return wins(run(program, codes).reshape(len(codes), -1), labels, program.first_maximum)


def refuted(program: Program, region: Region, x: Data, labels: Int64, members: Mapping[int, Member]) -> Bools:
    """[N]: the samples of x [N, *input shape] whose label loses for one of `members`, each checked.

    Raises CertificateError for one that is none, InputError as `require_definite` does.
    """
    require_definite(program)
    if region.family is None:
        raise CertificateError(f"members of a family, in a region of kind {region.kind}, which has none")
    found = np.zeros(len(labels), np.bool_)
    for i, member in members.items():
        if not 0 <= i < len(labels):
            raise CertificateError(f"a counterexample of sample {i}, of which there are {len(labels)}")
        try:
            least, most = region.around(program, x[i], member.at)
        except InputError as error:
            raise CertificateError(f"the counterexample of sample {i} is no member: {error.message}") from error
        codes = least if member.codes is None else member.codes
        if not ((least <= codes) & (codes <= most)).all():
            raise CertificateError(f"the counterexample of sample {i} is not what the member may become")
        if won_by(program, codes[None], labels[i : i + 1])[0]:
            raise CertificateError(f"the counterexample of sample {i} is won by its label")
        found[i] = True
    return found


def under(program: Program, region: Region, x: Data, labels: Int64, delta: Float64) -> Bools:
    """[N]: the samples that their label wins once the one perturbation delta is added to all of them.

    Each x + delta is clamped to the domain and rounded to a float32 beside it, the nearest one but for double roundings.
    Raises CertificateError for a delta outside the ball, InputError for a region that is not the same ball for all samples.
    """
    require_definite(program)
    if region.kind not in ("linf", "box"):
        raise InputError(f"a universal perturbation is one of a ball, and the region is of kind {region.kind}")
    radii = region.eps * delta.size if len(region.eps) == 1 else region.eps
    inside = np.isfinite(delta).all() and all(
        abs(Fraction(d)) <= e for d, e in zip(delta.ravel().tolist(), radii, strict=True)
    )
    if not inside:
        raise CertificateError("the universal perturbation is outside the ball")
    low, high = float32_below(region.domain[0]), -float32_below(-region.domain[1])
    won = np.zeros(len(x), np.bool_)
    for i in range(0, len(x), BATCH):
        part = slice(i, i + BATCH)
        v = real(program, x[part]).astype(np.float64)
        beside = np.clip((v + delta).astype(np.float32), below(v, -delta), -below(-v, delta))
        won[part] = won_by(program, program.quantize.apply(np.clip(beside, low, high)), labels[part])
    return won
