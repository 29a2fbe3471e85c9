"""Dataclasses to JSON and back: what sidecars and results are written with, and checked by when read."""

from __future__ import annotations

import dataclasses
import math
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["RecordError", "decode", "encode"]

T = TypeVar("T")


class RecordError(ValueError):
    """A JSON value that doesn't have the shape of the dataclass; the message says where."""


def encode(value: Any) -> Any:
    """JSON-ready form of a dataclass tree; fields that are None are left out where that is their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: encode(item) for field, item in pairs if item is not None or field.default is not None}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity and no NaN
    return str(value) if isinstance(value, Path) else value


def decode(kind: type[T], value: Any, where: str = "top level") -> T:
    """The dataclass `kind` from its JSON form. Unknown keys are ignored, so that newer files stay readable.

    Raises:
        RecordError: a missing key or a value of another type, with the path to it.
    """
    result: T = _decode(kind, value, where)
    return result


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        return _expect(value in arguments, value, f"one of {', '.join(map(repr, arguments))}", where)
    if origin is tuple:
        _expect(isinstance(value, list), value, "a list", where)
        if arguments[-1] is not Ellipsis:
            _expect(len(value) == len(arguments), value, f"a list of {len(arguments)}", where)
            return tuple(_decode(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(arguments, value)))
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is list:
        _expect(isinstance(value, list), value, "a list", where)
        return [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, dict), value, "an object", where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if kind is Path:
        return Path(_expect(isinstance(value, str), value, "a path", where))
    if kind is float and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind is float:
        return float(_expect(isinstance(value, (int, float)) and value is not True, value, "a number", where))
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return _expect(fits, value, f"a value of type {kind.__name__}", where)


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    failures = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _decode(kind, value, where)
            except RecordError as error:
                failures.append(error)
    raise failures[0]


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, "an object", where)
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = _decode(hints[field.name], value[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where} lacks {field.name!r}")
    try:
        return kind(**found)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from error


def _expect(fits: bool, value: Any, wanted: str, where: str) -> Any:
    if not fits:
        shown = repr(value)
        raise RecordError(f"{where} is {shown if len(shown) <= 40 else shown[:37] + '...'}, not {wanted}")
    return value
