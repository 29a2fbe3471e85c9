"""Convert dataclasses to JSON and back, and check the JSON of sidecars and results on reading."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["RecordError", "decode", "encode"]

T = TypeVar("T")


class RecordError(ValueError):
    """A JSON value doesn't match the dataclass; the message gives the place."""


def encode(value: Any) -> Any:
    """Return the JSON-ready form of a dataclass tree, without optional values and records at their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: encode(item) for field, item in pairs if not _is_left_out(field, item)}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity and no NaN
    return str(value) if isinstance(value, Path) else value


def _is_left_out(field: dataclasses.Field[Any], item: Any) -> bool:
    return item == field.default if dataclasses.is_dataclass(item) else item is None and field.default is None


Place = tuple[str | int, ...]
"""Path of a value: the record's name, then field names and list indices, outermost first."""

_KINDS: dict[type, str] = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}


def decode(kind: type[T], value: Any, whole: str = "it") -> T:
    """Return the dataclass `kind` from its JSON form; unknown keys are ignored, so that newer files stay readable.

    Raises:
        RecordError: a key is missing or a value has another type; the message gives the place.
    """
    result: T = _decode(kind, value, (whole,))
    return result


def _words(place: Place) -> str:
    """Return a path in words: ``samples_ms of entry 0 of batches``."""
    words = [f"entry {each}" if isinstance(each, int) else each for each in reversed(place[1:])]
    return " of ".join(words) or str(place[0])


def _decode(kind: Any, value: Any, where: Place) -> Any:
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
            return tuple(_decode(arg, item, (*where, i)) for i, (arg, item) in enumerate(zip(arguments, value)))
        return tuple(_decode(arguments[0], item, (*where, i)) for i, item in enumerate(value))
    if origin is list:
        _expect(isinstance(value, list), value, "a list", where)
        return [_decode(arguments[0], item, (*where, i)) for i, item in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, dict), value, "an object", where)
        return {key: _decode(arguments[1], item, (*where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if kind is Path:
        return Path(_expect(isinstance(value, str), value, "a path", where))
    if kind is float and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind is float:
        return float(_expect(isinstance(value, (int, float)) and value is not True, value, "a number", where))
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return _expect(fits, value, _KINDS.get(kind, f"of type {kind.__name__}"), where)


def _decode_union(kinds: tuple[Any, ...], value: Any, where: Place) -> Any:
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


def _decode_dataclass(kind: Any, value: Any, where: Place) -> Any:
    _expect(isinstance(value, dict), value, "an object", where)
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = _decode(hints[field.name], value[field.name], (*where, field.name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(f"{_words(where)} lacks {field.name!r}")
    try:
        return kind(**found)
    except ValueError as error:
        raise RecordError(f"{_words(where)}: {error}") from error


def _expect(fits: bool, value: Any, wanted: str, where: Place) -> Any:
    if not fits:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        raise RecordError(f"{_words(where)} is {shown if len(shown) <= 40 else shown[:37] + '...'}, not {wanted}")
    return value
