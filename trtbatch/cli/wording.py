"""Say what the library says in the words of the command line.

The library writes arguments of its functions in backticks: `max=40`, `verify=False`, `device`, and whole calls:
`trtbatch.build('x.onnx', max=40)`. The command line shows options instead: ``--max 40``, ``--no-verify``, ``--device``,
``trtbatch build x.onnx --max 40``.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shlex
from collections.abc import Iterator

import trtbatch

__all__ = ["as_typed"]

_OPTIONS = {
    "address": "ray",
    "batches": "batch",
    "latency_ms": "latency",
    "max_queue_delay_us": "max-queue-delay",
    "modes": "mode",
    "percentiles": "percentile",
    "shapes": "shape",
}
"""Arguments whose option has another name than theirs."""

_NEGATIVE = {
    "cuda_graphs": "--no-cuda-graph",
    "dynamic": "--static",
    "keep_timings": "--no-timing-cache",
    "save": "--no-save",
    "verify": "--no-verify",
}
"""Arguments that an option sets to False."""

_COMMANDS = {"deploy_triton": "deploy triton"}

_OTHERS = {"address", "concurrency", "debug", "format"}
"""Arguments of what the command line calls besides the package's functions."""

_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|\w+(\|\w+)+")
"""Words that the reader replaces, and choices."""

_CODE = re.compile(r"`([a-z][^`]*)`")


def as_typed(text: str) -> str:
    """Return text with the arguments and calls that stand in backticks as options and commands."""
    return _CODE.sub(lambda match: _typed(match[1]) or match[0], text)


@functools.cache
def _arguments() -> frozenset[str]:
    """Return the names of all arguments that have an option."""
    functions = [each for name in trtbatch.__all__ if inspect.isfunction(each := getattr(trtbatch, name))]
    parameters = [each for function in functions for each in inspect.signature(function).parameters.values()]
    names = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    return frozenset(names - {"progress"} | _OTHERS)


def _typed(code: str) -> str | None:
    """Return an argument or a call as it is typed in a shell; None for other code."""
    if code.isidentifier():
        return _option(code) if code in _arguments() else None
    call = code if code.startswith("trtbatch.") else f"argument({code})"
    try:
        parsed = ast.parse(call, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(parsed, ast.Call) or any(each.arg not in _arguments() for each in parsed.keywords):
        return None
    words = [_text(each) for each in parsed.args]
    for keyword in parsed.keywords:
        words += _words(keyword.arg or "", keyword.value)
    typed = " ".join(word if _PLACEHOLDER.fullmatch(word) else shlex.quote(word) for word in words)
    if not isinstance(parsed.func, ast.Attribute):
        return typed if parsed.keywords and not parsed.args else None
    command = _COMMANDS.get(parsed.func.attr, parsed.func.attr)
    return f"trtbatch {command} {typed}".rstrip()


def _option(name: str) -> str:
    if name == "profiles":
        return "--profile"  # --profiles is auto alone
    if name in _NEGATIVE and name != "dynamic":
        return _NEGATIVE[name]
    return "--" + _OPTIONS.get(name, name).replace("_", "-")


def _words(name: str, value: ast.expr) -> Iterator[str]:
    """Yield an argument's option and value."""
    if name == "profiles" and isinstance(value, ast.Constant):
        yield from ("--profiles", _text(value))
    elif isinstance(value, ast.Constant) and isinstance(value.value, bool):
        yield _option(name) if value.value else _NEGATIVE.get(name, f"--no-{name.replace('_', '-')}")
    elif name == "profiles" and isinstance(value, ast.List):
        for each in value.elts:
            yield from ("--profile", _text(each))
    elif name == "keep_fp32" and isinstance(value, ast.List):
        for each in value.elts:
            yield from ("--keep-fp32", _text(each))
    elif name == "shapes" and isinstance(value, ast.Dict):
        for key, sizes in zip(value.keys, value.values):
            yield from ("--shape", f"{_text(key) if key else ''}={_text(sizes)}")
    elif name == "latency_ms":
        yield from (_option(name), f"{_text(value)}ms")
    else:
        yield from (_option(name), _text(value))


def _text(value: ast.expr) -> str:
    """Return a value as it is typed: text without quotes, a list with commas, a placeholder as it is."""
    if isinstance(value, ast.List | ast.Tuple):
        return ",".join(_text(each) for each in value.elts)
    return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)
