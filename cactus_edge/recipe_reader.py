"""Records out of TOML tables: a wrong key or value is an error that names the file, the line and, for a misspelt key, the nearest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from decimal import Decimal
from typing import Any, TypeVar, get_type_hints

from cactus_edge import recipe_values as takes
from cactus_edge.errors import InputError

Path = tuple[str | int, ...]
"""Where a key stands: names of tables, numbers in arrays of tables, the key."""

_Record = TypeVar("_Record")


class Reader:
    """Reads records out of TOML tables and knows on which line each key stands."""

    def __init__(self, where: str, content: str, sections: Mapping[tuple[str, ...], type[Any]]) -> None:
        """`where` names the text `content` in messages; sections: the record of each table, by its name's parts."""
        self._where = where
        self._lines = _lines(content)
        self._sections = sections

    def error(self, path: Path, message: str, hint: str) -> InputError:
        """The error about the key `path`, with the line of the key or of the table that should hold it."""
        at = path
        while at and at not in self._lines:
            at = at[:-1]
        return InputError(f"{self._where}:{self._lines.get(at, 1)}: {message}", hint=hint)

    def record(self, kind: type[_Record], table: Mapping[str, Any], path: Path = ()) -> _Record:
        """The record that the table at `path` describes. Raises InputError."""
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        parsers = _parsers(kind)
        place = f"[{'.'.join(str(p) for p in path if isinstance(p, str))}]" if path else "the top level"
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"{near[0]}" if near else f"one of {', '.join(known)}"
                raise self.error((*path, key), f"unknown key {key!r} in {place}", hint)
        values: dict[str, Any] = {}
        for name, spec in known.items():
            if name in table:
                values[name] = self._value(parsers.get(name), table[name], (*path, name))
            elif spec.default is MISSING:
                raise self.error(path, f"{place} lacks {name!r}", f"add {name} there")
        return kind(**values)

    def _value(self, parse: takes.Parse | None, value: Any, path: Path) -> Any:
        try:
            if parse is not None:
                return parse(value)
            section = self._sections[tuple(p for p in path if isinstance(p, str))]
            if path in (("model", "layer"), ("data", "channel"), ("deck", "card")):
                if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
                    raise takes.BadValueError(f"expected at least one [[{'.'.join(map(str, path))}]] table")
                return tuple(self.record(section, v, (*path, i)) for i, v in enumerate(value))
            if path == ("model",) and isinstance(value, str):
                value = {"module" if ":" in value else "net": value}
            if not isinstance(value, dict):
                raise takes.BadValueError("expected a table")
            return self.record(section, value, path)
        except takes.BadValueError as error:
            shown = _shown(value)
            raise self.error(path, f"{path[-1]} = {shown}: {error}", "change it there") from error


def _parsers(kind: type[Any]) -> dict[str, takes.Parse]:
    """What each key of the record takes; keys that hold tables have no entry."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def _shown(value: Any) -> str:
    try:
        return str(value) if isinstance(value, Decimal) else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return "something too long to show"


_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\- ]+?)\s*\]\]?")
_ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_\-]+(?:\s*\.\s*[A-Za-z0-9_\-]+)*|\"[^\"]*\")\s*=")


def _lines(content: str) -> dict[Path, int]:
    """Line number (from 1) of each table header and key; elements of an array of tables are numbered from 0."""
    found: dict[Path, int] = {}
    prefix: Path = ()
    counts: dict[Path, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if header := _HEADER.match(line):
            *outer, name = (part.strip() for part in header.group(2).split("."))
            prefix = (*_element(outer, counts), name)
            found.setdefault(prefix, number)
            if header.group(1) == "[[":
                counts[prefix] = counts.get(prefix, -1) + 1
                prefix = (*prefix, counts[prefix])
                found[prefix] = number
        elif key := _ASSIGNMENT.match(line):
            parts = tuple(part.strip().strip('"') for part in key.group(1).split("."))
            for depth in range(1, len(parts) + 1):
                found.setdefault((*prefix, *parts[:depth]), number)
    return found


def _element(names: list[str], counts: Mapping[Path, int]) -> Path:
    """Where the table of these names stands: behind the name of an array of tables, in the element that was begun last."""
    path: Path = ()
    for name in names:
        path = (*path, name)
        path = (*path, counts[path]) if path in counts else path
    return path
