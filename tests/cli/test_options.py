"""Every command's arguments and options: names, types, choices, defaults, and whether they are required."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import pytest

from tests.support.command_line import commands
from tests.support.golden import Golden

COMMANDS = commands()


def test_the_commands(golden: Golden) -> None:
    golden.check_names(list(COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options(name: str, golden: Golden) -> None:
    parameters = COMMANDS[name].params
    golden.check(
        name,
        {
            "arguments": [_argument(each) for each in parameters if each.param_type_name == "argument"],
            "options": dict(sorted(_option(each) for each in parameters if each.param_type_name == "option")),
        },
    )


def _argument(parameter: Any) -> str:
    return f"{_kind(parameter)}{_count(parameter)}"


def _option(parameter: Any) -> tuple[str, str]:
    """``("--seed", "int 0..4294967295 = 42")``."""
    names = "/".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    given = isinstance(default, (bool, int, float, str)) and not (default is False and not parameter.secondary_opts)
    return names, f"{_kind(parameter)}{_count(parameter)}{f' = {default}' if given else ''}"


def _count(parameter: Any) -> str:
    repeated = getattr(parameter, "multiple", False) or parameter.nargs != 1
    return f"{', repeated' if repeated else ''}{', required' if parameter.required else ''}"


def _kind(parameter: Any) -> str:
    """``int 0..7``, ``auto|tensorrt``, ``flag``; of text the words that its help names, as in ``str auto|host``."""
    if getattr(parameter, "is_flag", False):
        return "flag"
    kind = _type(parameter)
    holder = parameter if hasattr(parameter, "min") else getattr(parameter, "type", None)
    low, high = getattr(holder, "min", None), getattr(holder, "max", None)
    if low is not None or high is not None:
        kind += f" {'' if low is None else low}..{'' if high is None else high}"
    words = [word for word in (parameter.metavar or "").split("|") if re.fullmatch(r"[a-z0-9]+", word)]
    return f"{kind} {'|'.join(words)}" if words else kind


def _type(parameter: Any) -> str:
    """Type of the value. Newer releases of Typer keep the annotation, older ones a type of Click's."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if annotation is None:
        choices = getattr(parameter.type, "choices", None)
        names = {"integer": "int", "text": "str", "path": "Path", "float": "float", "boolean": "bool"}
        return "|".join(choices) if choices else names[parameter.type.name.split()[0]]
    if get_origin(annotation) is list:
        (annotation,) = get_args(annotation)
    return "|".join(get_args(annotation)) if get_origin(annotation) is Literal else str(annotation.__name__)
