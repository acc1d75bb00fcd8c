"""Counterexamples: an input of a sample's region, as codes, that its label does not win strictly. Replayed, never believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import CertificateError, InputError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.ops import Codes
from cactus_edge.verify.regions import Region, box

Witnesses = Mapping[int, Codes]
"""Sample -> codes [*input shape]."""


def require_definite(program: Program) -> None:
    """Raises InputError for a program that is not one function: what a runtime makes of an input is then not known."""
    if not program.definite:
        raise InputError(
            f"a counterexample is one for one arithmetic, and {program.profile.name} is several or an envelope",
            hint="one --profile that is no envelope",
        )


def refuted(
    program: Program, region: Region, x: npt.NDArray[Any], labels: npt.NDArray[Any], witnesses: Witnesses
) -> npt.NDArray[np.bool_]:
    """[N]: the samples that have a witness, each checked: inside its region, and no strict win of the label.

    Raises CertificateError for one that is none, InputError as `require_definite` does.
    """
    require_definite(program)
    found = np.zeros(len(labels), np.bool_)
    if not witnesses:
        return found
    index = np.array(sorted(witnesses))
    shape = program.values[program.input].shape
    if index[0] < 0 or index[-1] >= len(labels) or any(witnesses[i].shape != shape for i in index):
        raise CertificateError(f"a counterexample is of no sample, or not of shape {shape}")
    codes = np.stack([witnesses[i] for i in index])
    lower, upper = box(program, region, x[index])
    out = run(program, codes).reshape(len(index), -1).astype(np.int64)
    own = out[np.arange(len(index)), labels[index]]
    out[np.arange(len(index)), labels[index]] = np.iinfo(np.int64).min
    for wrong, why in (
        (((codes < lower) | (codes > upper)).reshape(len(index), -1).any(1), "is outside its region"),
        (own > out.max(1), "is won by its label"),
    ):
        if wrong.any():
            raise CertificateError(f"the counterexample of sample {index[wrong][0]} {why}")
    found[index] = True
    return found


def written(witnesses: Witnesses) -> dict[str, str]:
    """For a certificate: sample -> the codes as bytes in hex, the least byte of each first."""
    return {
        str(i): codes.astype(codes.dtype.newbyteorder("<")).tobytes().hex() for i, codes in sorted(witnesses.items())
    }


def read(field: Any, x: Tensor) -> dict[int, Codes]:
    """What `written` wrote of codes of x. Raises CertificateError for anything else."""
    stored = np.dtype(x.dtype).newbyteorder("<")
    try:
        found = {int(i): np.frombuffer(bytes.fromhex(codes), stored) for i, codes in field.items()}
        return {i: codes.astype(x.dtype).reshape(x.shape) for i, codes in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CertificateError("the counterexamples are not samples with their codes in hex") from error
