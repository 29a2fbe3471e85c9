"""Define the application: load the subcommands, and turn every error into two lines and an exit code."""

from __future__ import annotations

import ast
import contextlib
import importlib
import itertools
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from trtbatch.cli.console import STATE, show_error, show_notes
from trtbatch.cli.quiet import hidden
from trtbatch.errors import TrtbatchError, UsageError, from_os_error, unreadable
from trtbatch.util.foreign import hide_output
from trtbatch.util.signals import in_callback, send_again
from trtbatch.util.text import shortened
from trtbatch.util.version import __version__

__all__ = ["app", "main"]

_ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals that end a command with the exit code 128 + number, and what the last message calls them.

No output is left half-written.
"""


COMMANDS = {
    "export": "Export a torch model to ONNX, and prove that its batch axis is what it says.",
    "export-preprocessor": "Write a model's preprocessing as a network of its own, which makes one sample of an image "
    "of any size.",
    "build": "Build an engine from an ONNX file, and check its rows at min, opt and max.",
    "infer": "Run images or arrays through an engine, in order, at their true batch sizes.",
    "bench": "Time an engine at each batch size; its rows are checked first.",
    "tune": "Find the best batch size of an engine, and keep it for infer --batch auto and deploy triton.",
    "plan": "Choose the optimization profiles that serve a traffic in the least time.",
    "report": "Lay results of bench over each other: table, charts, page.",
    "compare": "Compare two results of bench: is B FASTER, SLOWER or the SAME as A, batch by batch?",
    "verify": "Check every sample of an engine: against a reference, and against itself. Exit code 0 only if all "
    "passes.",
    "inspect": "Say what is in an ONNX file, an engine or a preprocessor, and where its sidecar says something else.",
    "doctor": "Look over this machine: driver, libraries in search order, packages, tools; one line each, with the "
    "fix.",
    "deploy": "Hand an engine to a server.",
}
"""Subcommands, each with the first paragraph of its own help."""


class _Commands(MutableMapping[str, Any]):
    """Subcommands by name, each made on first access: making all of them takes longer than ``--help`` may."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = dict.fromkeys(COMMANDS)

    def __getitem__(self, name: str) -> Any:
        if self._made[name] is None:
            self._made[name] = _made(name)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _made(name: str) -> Any:
    """Return a subcommand: its module's Typer ``app`` where there is one, else one made of the function ``command``."""
    module = importlib.import_module(f"trtbatch.cli.{name.replace('-', '_')}")
    own = getattr(module, "app", None)
    if own is None:
        own = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        own.command(name, cls=getattr(module, "Command", None))(module.command)
    made = typer.main.get_command(own)
    made.name = name
    return made


class _Group(TyperGroup):
    """Group that runs a subcommand and reports its errors as problem and fix, without a traceback.

    The exit code is 2 for usage and 1 for failure.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Commands()
        self.rich_markup_mode = None  # the help is a plain list, so Rich needn't be imported

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names of the commands, and what each does."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Run the command line, and report Click's errors (unknown options, numbers out of range) like all others."""
        if not options.pop("standalone_mode", True):
            return super().main(args, prog_name, **options, standalone_mode=False)
        try:
            code = super().main(args, prog_name, **options, standalone_mode=False)
        except Exception as error:
            message = getattr(error, "format_message", None)
            if type(error).__name__ == "Abort":
                sys.exit(128 + signal.SIGINT)
            if message is None:
                raise
            given = sys.argv[1:] if args is None else args
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else self._named_in(given)
            if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, empty once that is shown
                with contextlib.suppress(BrokenPipeError):
                    print(message(), flush=True)
            elif (barred := _barred(message())) is not None:
                show_error(barred)
                sys.exit(barred.exit_code)
            elif message():
                fix = f"{_allowed(error)}{_flag_given_a_value(message(), given)}see {path} --help"
                show_error(UsageError(_with_value(message(), given), fix))
            sys.exit(UsageError.exit_code)
        sys.exit(code if isinstance(code, int) else 0)

    def _named_in(self, given: Sequence[str]) -> str:
        """Return the command's path, ``trtbatch deploy triton``, from the command line: the parser doesn't name it."""
        path, commands = "trtbatch", self.commands
        for word in given:
            if word not in commands:
                break
            path, commands = f"{path} {word}", getattr(commands[word], "commands", {})
        return path

    def _output_option(self, ctx: Any) -> str | None:
        """Return ``--output`` where the running command has that option, else None."""
        command: Any = self.commands.get(ctx.invoked_subcommand or "")
        return "--output" if any("--output" in each.opts for each in getattr(command, "params", ())) else None

    def invoke(self, ctx: Any) -> Any:
        STATE.debug = False
        with show_notes():
            try:
                return super().invoke(ctx)
            except TrtbatchError as error:
                self._fail(error)
            except BrokenPipeError:
                raise
            except OSError as error:
                self._fail(from_os_error(error, self._output_option(ctx)))
            except ModuleNotFoundError as error:
                self._fail(TrtbatchError(f"{error.name} isn't installed", f"pip install {error.name}"), error)
            except MemoryError as error:
                self._fail(TrtbatchError("out of memory", "use a smaller --batch"), error)
            except Exception as error:
                if type(error).__module__.partition(".")[0] in ("typer", "click"):
                    raise
                problem = f"unexpected {type(error).__name__}: {shortened(str(error), 300)}"
                self._fail(TrtbatchError(problem, "run it again with --debug, and report what it prints"), error)

    def _fail(self, error: TrtbatchError, cause: BaseException | None = None) -> NoReturn:
        if STATE.signal is not None:  # a library turned the interrupt into its own error
            raise SystemExit(128 + STATE.signal)
        if STATE.debug:
            raise cause or error.__cause__ or error
        show_error(error)
        raise typer.Exit(error.exit_code)


app = typer.Typer(
    cls=_Group,
    name="trtbatch",
    help="PyTorch vision models on TensorRT at any batch size: export, build, infer, bench.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _barred(message: str) -> TrtbatchError | None:
    """Return the error that replaces the parser's message about an unreadable file; None for other messages."""
    match = re.search(
        r"""\b(?:path|file|directory) ('.*'|".*") is not readable\.$""", message, re.IGNORECASE | re.DOTALL
    )
    return unreadable(ast.literal_eval(match[1])) if match else None


def _with_value(message: str, given: Sequence[str]) -> str:
    """Return a message about an option's value with the value added, because the parser names only the option."""
    match = re.match(r"Invalid value for '(--[a-z0-9-]+)[^']*': (?:Value error, )?", message)
    if match is None:
        return message
    option = match[1]
    joined = next((text.partition("=")[2] for text in given if text.startswith(f"{option}=")), None)
    pairs = list(itertools.pairwise(given))
    after = next((value for name, value in reversed(pairs) if name == option), None)  # the last occurrence counts
    value = joined if joined is not None else after
    return message if value is None else f"{option} {value}: {message[match.end() :]}"


def _flag_given_a_value(message: str, given: Sequence[str]) -> str:
    """Return the fix for an extra word after an option that takes no value, as in ``--static 4``; else nothing."""
    match = re.match(r"Got unexpected extra arguments?(?:\(s\))? \((\S+)", message)
    word = match[1].rstrip(")") if match else None
    flag = next((before for before, after in itertools.pairwise(given) if after == word), "")
    if not flag.startswith("--") or "=" in flag:
        return ""
    instead = ""
    if flag == "--static":
        instead = f": write {'--dynamic, or ' if '--dynamic' in given else ''}--static --batch {word}"
    return f"{flag} takes no value{instead}; "


def _allowed(error: Exception) -> str:
    """Return the range of the number that the parser rejects; empty where it rejects something else."""
    parameter = getattr(error, "param", None)
    # Typer releases without a parser of their own hold the range in the type.
    holder = parameter if hasattr(parameter, "min") else getattr(parameter, "type", None)
    low, high = getattr(holder, "min", None), getattr(holder, "max", None)
    if low is None and high is None:
        return ""
    return (
        f"give {high} or less; "
        if low is None
        else f"give {low} or more; "
        if high is None
        else f"give {low} to {high}; "
    )


def _version(value: bool) -> None:
    if value:
        print(f"trtbatch {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """PyTorch vision models on TensorRT at any batch size: export, build, infer, bench."""
    hide_output(hidden)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, so that a model file in this folder is found


def main() -> NoReturn:
    """Run the command ``trtbatch``."""
    logging.captureWarnings(False)
    # Pillow warns above its pixel limit and refuses above twice that. The host reader refuses above the limit.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    sys.unraisablehook = _ignored
    for number in _ENDS:
        signal.signal(number, _end)
    try:
        app(standalone_mode=True)
        STATE.ended = True
        code = 0
    except SystemExit as done:
        STATE.ended = True
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        STATE.ended = True
        code = 128 + signal.SIGINT
    if STATE.signal is not None:
        code = 128 + STATE.signal
        print(f"{_ENDS[signal.Signals(STATE.signal)]}; nothing half-written is left", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # CPython kills itself by SIGINT at exit if an interrupt ever passed through an exec()
    sys.exit(code)


class _Interrupt(KeyboardInterrupt):
    """The end of a command by a signal, which is sent again if anything drops the exception.

    Python drops what is raised in a finalizer or in a weak reference's callback, which the import system has. TensorRT
    drops what is raised while it looks up a logger's method, before any frame of the logger runs.
    """

    def __del__(self) -> None:
        if STATE.signal is not None and not STATE.ended:
            send_again(STATE.signal)


def _ignored(found: sys.UnraisableHookArgs) -> None:
    if not isinstance(found.exc_value, _Interrupt):
        sys.__unraisablehook__(found)


def _end(number: int, frame: FrameType | None) -> None:
    if STATE.ended:
        os._exit(128 + number)  # what remains is Python's own end
    STATE.signal = number
    if in_callback(frame):
        send_again(number)
    else:
        raise _Interrupt
