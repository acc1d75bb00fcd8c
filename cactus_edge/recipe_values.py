"""What a recipe's key takes: functions from a TOML value to ours, which raise BadValueError for any other value; and the way back.

Decimals arrive as Decimal, so that radii stay exact.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

Parse = Callable[[Any], Any]


UNDIGESTED = {"undigested": True}
"""Marks a key that is no part of digests: how much of the machine is used or where files lie, not what is asked for."""

LATER = {"later": True}
"""Marks a key that recipes did not have from the start: at its default it is left out of digests, which so stay as they were."""


class BadValueError(ValueError):
    """A value that its key does not take; the message says what was expected."""


@dataclass(frozen=True)
class ChannelEps:
    """One radius for each channel, exact, in the unit of its sensor.

    names: for each radius the channel, or the unit of the channels, that it is for; empty: the channels in their order.
    """

    radii: tuple[Fraction, ...]
    names: tuple[str, ...] = ()

    def __float__(self) -> float:
        return float(max(self.radii))

    def __str__(self) -> str:
        if not self.names:
            return ", ".join(map(str, self.radii))
        return ", ".join(f"{radius} {name}" for radius, name in zip(self.radii, self.names, strict=True))

    def plain(self) -> list[str] | dict[str, str]:
        """As a recipe writes it."""
        radii = [str(radius) for radius in self.radii]
        return dict(zip(self.names, radii, strict=True)) if self.names else radii


Eps = Fraction | ChannelEps
"""A radius for all channels, or one for each; it has a float, the largest number among them."""


def integer(low: int, high: int = 10**9) -> Parse:
    """An integer in [low, high]."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadValueError(f"expected an integer in [{low}, {high}]")
        return value

    return parse


def one_or_two(low: int, high: int) -> Parse:
    """An integer in [low, high] for both directions, or [down, right]."""

    def parse(value: Any) -> int | tuple[int, int]:
        each = integer(low, high)
        if isinstance(value, list):
            if len(value) != 2:
                raise BadValueError(f"expected an integer in [{low}, {high}], or two: [down, right]")
            return each(value[0]), each(value[1])
        found: int = each(value)
        return found

    return parse


def window(value: Any) -> int | tuple[int, int] | str:
    """The side of a square window, [down, right], or "global"."""
    if isinstance(value, str):
        if value != "global":
            raise BadValueError('expected an integer, [down, right] or "global"')
        return value
    found: int | tuple[int, int] = one_or_two(1, 4096)(value)
    return found


def function(value: Any) -> str:
    """ "package.module:function"."""
    if not isinstance(value, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise BadValueError('expected "package.module:function"')
    return value


def number(low: float, high: float) -> Parse:
    """A decimal or integer in [low, high], as a float."""

    def parse(value: Any) -> float:
        found = float(Decimal(value)) if isinstance(value, int | Decimal) and not isinstance(value, bool) else math.nan
        if not low <= found <= high:
            raise BadValueError(f"expected a number in [{low:g}, {high:g}]")
        return found

    return parse


def rational(low: int, high: int) -> Parse:
    """An exact rational in [low, high], written as a fraction, a decimal or an integer."""

    def parse(value: Any) -> Fraction:
        try:
            sensible = isinstance(value, str | int | Decimal) and not isinstance(value, bool) and _short(str(value))
            found = Fraction(value) if sensible else None
        except (ValueError, ZeroDivisionError, OverflowError):
            found = None
        if found is None or not low <= found <= high:
            raise BadValueError(f'expected an exact rational in [{low}, {high}], such as "1/16" or "0.1"')
        return found

    return parse


def radius(value: Any) -> Eps:
    """A rational in [0, 1] for all channels; or a list with one for each, or a table by channel or unit: up to 10^6 of their units."""
    if not isinstance(value, list | dict):
        found: Fraction = rational(0, 1)(value)
        return found
    if not value:
        raise BadValueError("expected at least one radius")
    each = rational(0, 10**6)
    radii = tuple(each(v) for v in (value.values() if isinstance(value, dict) else value))
    return ChannelEps(radii, tuple(value) if isinstance(value, dict) else ())


def _short(text: str) -> bool:
    """Whether a fraction of these digits is worked out at once: "1e999999999" has a billion of them."""
    return re.fullmatch(r"[^eE]{1,400}([eE][+-]?\d\d?)?", text) is not None


def text(value: Any) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value:
        raise BadValueError("expected a non-empty string")
    return value


def title(value: Any) -> str:
    """A name that a folder can be called after: at most 64 printable characters, no separator of folders, no dot at its beginning."""
    if (
        not isinstance(value, str)
        or not (0 < len(value) <= 64 and value.isprintable())
        or re.search(r"^\.|[/\\]", value)
    ):
        raise BadValueError("expected a name of at most 64 characters without / and \\ that begins with no dot")
    return value


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise BadValueError("expected true or false")
    return value


def one_of(*choices: str) -> Parse:
    """One of these words."""

    def parse(value: Any) -> str:
        if value not in choices:
            raise BadValueError(f"expected one of {', '.join(choices)}")
        return str(value)

    return parse


def list_of(item: Parse, *, at_least: int = 1) -> Parse:
    """A list, as a tuple, of what `item` takes."""

    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < at_least:
            raise BadValueError(f"expected a list of at least {at_least}")
        return tuple(item(v) for v in value)

    return parse


def sparsity(value: Any) -> str | float:
    """ "none", the share of weights that are 0 (unstructured), or "n:m": at most n of m neighbours are not 0."""
    if isinstance(value, Decimal) and 0 < float(value) < 1:
        return float(value)
    if isinstance(value, str) and (value == "none" or n_of_m(value) is not None):
        return value
    raise BadValueError(
        'expected "none", a share between 0 and 1 such as 0.9, or "n:m" with n < m <= 32, such as "2:4"'
    )


def n_of_m(pattern: str | float) -> tuple[int, int] | None:
    """(n, m) of "n:m" with 1 <= n < m <= 32; None for anything else."""
    match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", pattern) if isinstance(pattern, str) else None
    if match is None:
        return None
    n, m = int(match[1]), int(match[2])
    return (n, m) if n < m <= 32 else None


def written(table: Mapping[str, Any]) -> str:
    """TOML text of nested tables of strings, integers, floats, truth values and lists of them; None is left out."""
    return "\n".join(_lines(table, "")).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: str) -> Iterator[str]:
    """Plain keys come first: below a [header] they would belong to it."""
    inner = {}
    for key, value in table.items():
        if isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            inner[key] = value
        elif value is not None:
            yield f"{_key(key)} = {_literal(value)}"
    for key, value in inner.items():
        name = f"{path}{_key(key)}"
        for one in value if isinstance(value, list) else [value]:
            yield f"\n[[{name}]]" if isinstance(value, list) else f"\n[{name}]"
            yield from _lines(one, f"{name}.")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        # JSON escapes what TOML asks for, but for the delete character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value).lower() if isinstance(value, bool) else repr(value)
