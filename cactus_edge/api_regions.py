"""What the user says about a region, as the exact numbers that `verify.regions` takes: radii, noise floors, families, domains."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from io import BytesIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cactus_edge.api_files import content
from cactus_edge.errors import InputError, ModelError

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.ir.atoms import Program
    from cactus_edge.verify.certificate import Decide
    from cactus_edge.verify.families import AnyFamily
    from cactus_edge.verify.regions import Family

Exact = str | Fraction | int | float
Unit = Literal["data", "lsb"]


@dataclass(frozen=True)
class Flags:
    """The region as the command line has it; "" and 0 for what is not said."""

    eps: str = ""
    unit: Unit = "data"
    noise: Path | None = None
    patch: str = ""
    brightness: str = ""
    contrast: str = ""
    pivot: str = ""
    cells: int = 0

    def radii(self) -> list[Exact]:
        """The eps that are listed, or stand in an .npz; 0 where a family or noise says what changes. Raises InputError for none."""
        if self.eps:
            return listed_eps(self.eps)
        if self.noise is None and self.family() is None:
            raise InputError(
                "nothing says what may change", hint="--eps 1/16, --noise, --patch, --brightness or --contrast"
            )
        return [0]

    def floors(self) -> tuple[Channel, ...]:
        """The noise floors, if a file with some is named."""
        return () if self.noise is None else noise_floors(self.noise)

    def family(self) -> AnyFamily | None:
        """The family, if one is named. Raises InputError for more than one, or one that cannot be read."""
        from cactus_edge.verify.families import Patch, tone

        toned = bool(self.brightness or self.contrast)
        if self.patch and toned:
            raise InputError(
                "a patch and brightness or contrast: together they are no exact family", hint="one of them at a time"
            )
        if not toned and (self.pivot or self.cells):
            raise InputError("--pivot and --cells are about --brightness and --contrast")
        if self.patch:
            sizes = self.patch.split("x")
            if len(sizes) > 2 or not all(size.isdecimal() and len(size) < 6 for size in sizes):
                raise InputError(
                    f"patch {self.patch!r}, expected its pixels a side",
                    hint="--patch 3, or --patch 2x5: rows x columns",
                )
            return Patch(int(sizes[0]), int(sizes[-1]))
        if not toned:
            return None
        brightness = two_ends(self.brightness or "0,0", "brightness", "--brightness=-0.1,0.1")
        contrast = two_ends(self.contrast or "1,1", "contrast", "--contrast 0.8,1.2")
        return tone(brightness, contrast, self.pivot or 0, self.cells)


@dataclass(frozen=True)
class Channel:
    """One sensor channel's noise floor in the unit of the data."""

    eps: Fraction
    said: str


@dataclass(frozen=True)
class Asked:
    """What `verify.regions.region` takes, and notes that say how it was given."""

    eps: list[Fraction]
    domain: tuple[Exact, Exact] | None
    family: Family | None
    notes: Mapping[str, str]


def asked(
    model: bytes,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    eps: Exact | Sequence[Exact] | None,
    unit: str,
    family: Family | None,
    noise: Sequence[Channel],
    domain: tuple[Exact, Exact] | None,
    profile: str,
    decide: Decide,
    first_maximum: bool = False,
) -> Asked:
    """The region in the unit of the data, with the file's own domain where none is given and ranges cut into cells by `decide`.

    Raises InputError as `api.certify` does.
    """
    from cactus_edge.api_files import file_formats
    from cactus_edge.certify.refine import with_cells
    from cactus_edge.verify.families import Tone
    from cactus_edge.verify.read import format_of
    from cactus_edge.verify.regions import exact, region
    from cactus_edge.verify.runtimes import runtimes

    if eps is None and family is None and not noise:
        raise InputError("nothing says what may change", hint="eps, region or noise")

    def program() -> Program:
        return runtimes(model, profile, file_formats()[format_of(model)], first_maximum).program

    given = [0] if eps is None else [eps] if isinstance(eps, str | Fraction | int | float) else list(eps)
    radii, notes = [exact(e, "eps") for e in given], {}
    domain = domain or metadata_domain(model)
    if unit != "data":
        radii, notes["eps"] = _steps(radii, unit, Fraction(program().quantize.scale))
    if noise:
        notes["noise"] = "floors of the channels, added to eps: " + ", ".join(channel.said for channel in noise)
    radii = per_feature(radii, noise, x.shape[1:])
    if isinstance(family, Tone) and not family.cells:
        whole = program()
        around = region(whole, radii, domain, family)
        chosen = with_cells(lambda cut, some, labels: decide(whole, cut, some, labels), around, x, y)
        family = chosen.family
    return Asked(radii, domain, family, notes)


def _steps(steps: Sequence[Fraction], unit: str, step: Fraction) -> tuple[list[Fraction], str]:
    """Steps of the input quantisation as exact radii in the unit of the data, and a note that says so."""
    if unit != "lsb":
        raise InputError(f"unknown unit {unit!r}", hint="data or lsb")
    for n in steps:
        if not 0 <= n <= 255:
            raise InputError(f"eps is {n} lsb, expected 0 to 255: the input has 256 codes")
    listed = ", ".join(map(str, steps)) if len(steps) == 1 else "one per feature,"
    return [n * step for n in steps], f"given as {listed} lsb; 1 lsb = {step}, the input's scale"


def described(record: Mapping[str, Any]) -> str:
    """The region of a certificate in words, and who wins ties there where that is anybody."""
    from cactus_edge.verify.decide import RULES

    return _region(record) + (", ties won by the first class" if record["rule"] == RULES[True] else "")


def _region(record: Mapping[str, Any]) -> str:
    region, notes = record["region"], record["notes"]
    one = isinstance(region["eps"], str)
    eps = f"eps {region['eps']}" if one else f"an eps for each of {len(region['eps'])} features"
    if one and len(region["eps"]) > 12:
        eps = f"eps {float(Fraction(region['eps'])):.6g}"
    if "eps" in notes:
        eps += f" ({notes['eps'].split(';')[0]})"
    match region:
        case {"patch": [height, width]}:
            family = f"a patch of {height} x {width} pixels anywhere"
        case {"brightness": [b0, b1], "contrast": [c0, c1], "pivot": pivot, "cells": cells}:
            ranges = [f"brightness {b0} to {b1}"] if b0 != b1 else []
            ranges += [f"contrast {c0} to {c1} around {pivot}"] if c0 != c1 else []
            family = f"{' and '.join(ranges) or 'brightness 0'} (cells: {cells})"
        case _:
            return eps
    return family if region["eps"] == "0" else f"{family}, with {eps}"


def listed_eps(text: str) -> list[Exact]:
    """ "1/16"; "0.1,0.2": several; "radii.npz": its array eps, row-major. Raises InputError or DataError."""
    if not text.endswith(".npz"):
        return list(text.split(","))
    from cactus_edge.samples import read_arrays

    found = read_arrays(Path(text), ("eps",))["eps"]
    if found.dtype.kind not in "fiu":
        raise InputError(f"eps in {text} is {found.dtype}, expected numbers")
    return [value if isinstance(value, int) else float(value) for value in found.ravel().tolist()]


def noise_floors(path: Path) -> tuple[Channel, ...]:
    """The noise floors in a TOML file: tables [[channel]] in the order of the data's last axis.

    Each has `eps`, in the unit of the data, or `counts` of a converter with `count`, what one is in that unit; and perhaps a
    `name`. Raises InputError, naming the file and the channel.
    """
    from cactus_edge.verify.regions import exact

    try:
        table = tomllib.load(BytesIO(content(path, "noise")), parse_float=Decimal)
    except ValueError as error:  # of tomllib, or of a file that is no UTF-8
        raise InputError(f"{path}: {error}", hint="[[channel]] tables with eps, or with counts and count") from error
    entries = table.get("channel")
    if set(table) != {"channel"} or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise InputError(f"{path} holds {', '.join(table) or 'nothing'}; expected [[channel]] tables alone")
    found = []
    for i, entry in enumerate(entries):
        where = f"{path}, channel {i}"
        keys = set(entry) - {"name"}
        if keys not in ({"eps"}, {"counts", "count"}):
            raise InputError(f"{where} has {', '.join(sorted(keys)) or 'nothing'}; expected eps, or counts and count")
        values = {key: exact(_number(entry[key]), f"{where}: {key}") for key in sorted(keys)}
        eps = values["eps"] if "eps" in values else values["counts"] * values["count"]
        if eps < 0:
            raise InputError(f"{where}: {eps}, expected no less than 0")
        found.append(Channel(eps, f"{entry.get('name', i)}: {eps}"))
    return tuple(found)


def per_feature(radii: Sequence[Exact], noise: Sequence[Channel], shape: Sequence[int]) -> list[Fraction]:
    """eps + noise, one for all features or one for each, row-major, of a sample of this shape.

    radii: one, one per channel (the last axis), or one per feature. noise: one per channel. Raises InputError for other counts.
    """
    from cactus_edge.verify.regions import exact

    channels, size = shape[-1] if shape else 1, prod(shape)
    wide = [exact(e, "eps") for e in radii]
    if len(wide) == channels and channels > 1:
        wide *= size // channels
    if not noise:
        return wide
    if len(noise) != channels:
        raise InputError(f"noise floors of {len(noise)} channels, expected {channels}: the last axis of {tuple(shape)}")
    floors = [channel.eps for channel in noise] * (size // channels)
    if len(wide) not in (1, size):
        raise InputError(
            f"{len(wide)} values of eps for {size} features, expected one, one per channel or one per feature"
        )
    both = [e + floor for e, floor in zip(wide if len(wide) == size else wide * size, floors, strict=True)]
    return both[:1] if len(set(both)) == 1 else both


def two_ends(text: str, what: str, example: str) -> tuple[str, str]:
    """ "LO,HI" as two numbers that are still text. Raises InputError for another count."""
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"{what} {text!r}, expected two numbers", hint=example)
    return parts[0], parts[1]


def metadata_domain(model: bytes) -> tuple[Exact, Exact] | None:
    """The sensor's range that the file itself states, if it states one."""
    from cactus_edge.formats.read import read_model

    entry = read_model(model).metadata.get("cactus_edge")
    if entry is None:
        return None
    try:
        low, high = json.loads(entry)["domain"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the model's cactus_edge metadata name no domain: {error}", hint="pass --domain LO,HI"
        ) from error
    return str(low), str(high)


def _number(value: object) -> Exact:
    """A TOML number as `exact` takes it: a decimal is what is written."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return str(value)[:40]
    return value if isinstance(value, int) else str(value)
