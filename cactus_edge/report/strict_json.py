"""Frozen dataclasses to JSON and back, strictly.

The records are the schema: their field names are the keys and their annotations the types, so nothing has to be kept in
step. Supported annotations: str, int, float, bool, dataclasses, `tuple[T, ...]`, `tuple[A, B]` and unions of those with
None. Reading accepts exactly what writing produces, up to white space and the order of keys.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar, cast

from cactus_edge.errors import InternalError

T = TypeVar("T")


class Malformed(ValueError):
    """Text that is not the expected record; the message starts with where."""


def dump(record: Any, kind: str, version: int) -> str:
    """Canonical JSON of a dataclass, its kind and version; InternalError for a value of another type or not finite."""
    try:
        typed = _decode(_encode(record), type(record), "")
    except Malformed as error:
        raise InternalError(f"{kind}: {error}") from error
    body = {"format": kind, "version": version, **_encode(typed)}
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"


def load(text: str, record: type[T], kind: str, version: int) -> T:
    """Inverse of `dump`. Raises `Malformed`."""
    try:
        body = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except Malformed:
        raise
    except json.JSONDecodeError as error:
        raise Malformed(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not readable as JSON: {error}") from error
    if not isinstance(body, dict):
        raise Malformed(f"expected an object, got {_name(body)}")
    if body.pop("format", None) != kind:
        raise Malformed(f"format: expected {kind!r}")
    if (got := body.pop("version", None)) != version or type(got) is not int:
        raise Malformed(f"version: expected {version}, got {got!r}")
    return cast(T, _decode(body, record, ""))


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise InternalError(
        f"a result of type {type(value).__name__} cannot be written as JSON: expected plain Python values"
    )


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        keys = [key for key, _ in pairs]
        raise Malformed(f"key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return body


def _constant(text: str) -> float:
    raise Malformed(f"{text} is not a number")


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", bool: "a truth value", str: "a string"}
    return names.get(type(value), "a number")


def _decode(value: Any, kind: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        return None if value is None else _decode(value, inner, where)
    if origin is tuple:
        return _decode_tuple(value, typing.get_args(kind), where)
    if dataclasses.is_dataclass(kind):
        return _decode_record(value, cast(type, kind), where)
    if kind is float and type(value) in (int, float):
        number = float(value) if abs(value) < 2**53 or type(value) is float else math.inf
        if not math.isfinite(number):
            raise Malformed(f"{where}: expected a finite number")
        return number
    if type(value) is not kind:
        expected = {str: "a string", int: "an integer", float: "a number", bool: "a truth value"}[kind]
        raise Malformed(f"{where}: expected {expected}, got {_name(value)}")
    if kind is str and any("\ud800" <= character <= "\udfff" for character in value):
        raise Malformed(f"{where}: a lone surrogate is not text")
    return value


def _decode_tuple(value: Any, items: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if type(value) is not list:
        raise Malformed(f"{where}: expected a list, got {_name(value)}")
    kinds = [items[0]] * len(value) if items[1:] == (Ellipsis,) else list(items)
    if len(kinds) != len(value):
        raise Malformed(f"{where}: expected {len(kinds)} items, got {len(value)}")
    return tuple(_decode(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _decode_record(value: Any, kind: type, where: str) -> Any:
    if type(value) is not dict:
        raise Malformed(f"{where}: expected an object, got {_name(value)}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    prefix = f"{where}." if where else ""
    if unknown := sorted(set(value) - set(names)):
        raise Malformed(f"{prefix}{unknown[0]}: unknown key")
    if missing := [name for name in names if name not in value]:
        raise Malformed(f"{prefix}{missing[0]}: missing")
    return kind(**{name: _decode(value[name], hints[name], f"{prefix}{name}") for name in names})
