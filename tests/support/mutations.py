"""Files with bytes changed at random, and commands that read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from trtbatch.cli.app import app

Mutation = tuple[str, int, bytes]


mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "truncate"]),
        st.integers(0, 2**20),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=4,
)


def fuzzed(examples: int) -> settings:
    """The same examples each time, so that a failure on one machine is one on all."""
    quiet = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=quiet)


def mutated(data: bytes, changes: list[Mutation]) -> bytes:
    for kind, where, piece in changes:
        at = where % (len(data) + 1)
        if kind == "set":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(piece) :]
        else:
            data = data[:at]
    return data


@contextmanager
def altered(path: Path, data: bytes) -> Iterator[None]:
    """The file with other content, for the block."""
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def run_mutated(*args: object) -> Any:
    """A command; whatever it makes of the file, it ends as commands end."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output, result.output
    assert "error: unexpected" not in result.output, result.output
    if result.exit_code:
        errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
        verdicts = [line for line in result.output.splitlines() if line.startswith("WRONG")]
        assert len(errors) + len(verdicts) == 1, result.output
        assert verdicts or "\nfix: " in result.output, result.output
    return result
