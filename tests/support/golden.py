"""Golden files: what the outside of the program is, in JSON that a reviewer reads.

A test compares what it finds with an entry of a file in ``tests/cli/golden``. An intended change is written with

    pytest tests/cli -n 0 --rewrite-golden

and is reviewed as the diff of those files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Golden", "fields"]

_HOW = "an intended change is written with: pytest tests/cli -n 0 --rewrite-golden"

_BY_MACHINE = {"libraries", "tools"}
"""Objects whose keys are what is installed."""

_NULL_BY_MACHINE = {"commit", "driver"}
"""Text where the machine has a checkout or a GPU, else null."""

_NUMBERS = {"inf", "-inf", "nan"}
"""How JSON files write what is no JSON number."""


@dataclass(frozen=True)
class Golden:
    """One golden file: an object of entries by name."""

    path: Path
    rewrite: bool

    def entries(self) -> dict[str, Any]:
        """Return all entries; none where there is no file yet."""
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return found

    def check(self, name: str, found: Any) -> None:
        """Assert that `found` is the entry `name`, or write it where ``--rewrite-golden`` is given."""
        if self.rewrite:
            self._write({**self.entries(), name: found})
        else:
            entries = self.entries()
            assert name in entries, f"{self.path.name} has no {name}; {_HOW}"
            assert found == entries[name], f"{name} is not as in {self.path.name}; {_HOW}"

    def check_names(self, names: Sequence[str]) -> None:
        """Assert that the entries are those of `names`, or drop the others where ``--rewrite-golden`` is given."""
        entries = self.entries()
        if self.rewrite:
            self._write({name: entry for name, entry in entries.items() if name in names})
        else:
            assert sorted(entries) == sorted(names), f"other entries are in {self.path.name}; {_HOW}"

    def _write(self, entries: Mapping[str, Any]) -> None:
        if "PYTEST_XDIST_WORKER" in os.environ:
            pytest.fail("golden files are rewritten by one process: add -n 0")
        self.path.parent.mkdir(exist_ok=True)
        text = json.dumps(dict(sorted(entries.items())), indent=1, ensure_ascii=False)
        self.path.write_text(f"{text}\n", encoding="utf-8")


def fields(*values: Any) -> Any:
    """Describe JSON values by their fields, nesting and types, one description for all of them.

    An object becomes its fields. The key ``name[]`` is a list, ``name?`` a field that not all objects have,
    ``name|null`` an object that may be null. Everything else becomes the names of its types, and ``empty`` is a list
    in which nothing was found.
    """
    (described,) = dict([_field("", values, optional=False)]).values()
    return described


def _field(name: str, values: Sequence[Any], optional: bool) -> tuple[str, Any]:
    key = name
    nullable = None in values
    rest = [value for value in values if value is not None]
    while rest and all(isinstance(value, list) for value in rest):
        rest, key = [item for value in rest for item in value], f"{key}[]"
    key += "?" if optional else ""
    if rest and all(isinstance(value, dict) for value in rest):
        return (f"{key}|null" if nullable else key), _object(name, rest)
    types = {_type(value) for value in rest} | ({"null"} if nullable else set())
    types |= {"null", "string"} if name in _NULL_BY_MACHINE else set()
    return key, "|".join(sorted(types)) or "empty"


def _object(name: str, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if name in _BY_MACHINE:
        return dict([_field("*", [item for value in values for item in value.values()], optional=False)])
    names = dict.fromkeys(key for value in values for key in value)
    return dict(
        _field(
            key, [value[key] for value in values if key in value], optional=any(key not in value for value in values)
        )
        for key in names
    )


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "number" if value in _NUMBERS else "string"
    names = {bool: "boolean", int: "integer", float: "number", dict: "object", list: "list"}
    return names[type(value)]
