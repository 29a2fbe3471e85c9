"""The command line as a process: exit codes, two lines of error, tracebacks only when asked for."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

import trtbatch
from tests.support.messages import refused
from tests.support.processes import COMMANDS, ROOT, child_environment, run_process
from trtbatch.cli import app as app_module
from trtbatch.cli import console
from trtbatch.cli.console import parse_bytes, parse_shape, size
from trtbatch.errors import UsageError
from trtbatch.tuner.tune import TuneRequest, tune

Cli = Callable[..., Any]


@pytest.mark.process
def test_version_in_both_ways(folder: Path) -> None:
    for line in ([sys.executable, "-m", "trtbatch"], [str(Path(sys.executable).with_name("trtbatch"))]):
        if not Path(line[0]).exists():
            continue  # run from a checkout that isn't installed
        done = subprocess.run(
            [*line, "--version"], check=False, capture_output=True, text=True, env=child_environment(), cwd=folder
        )
        assert (done.returncode, done.stdout) == (0, f"trtbatch {trtbatch.__version__}\n")


@pytest.mark.process
def test_help_imports_no_more_than_it_needs(folder: Path) -> None:
    """Nor does a wrong name: commands and Rich take longer than a quarter of a second."""
    code = "import sys; from trtbatch.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    for args in ((), ("--help",), ("--version",)):
        line = [sys.executable, "-c", code, *args]
        done = subprocess.run(line, check=False, capture_output=True, text=True, env=child_environment(), cwd=folder)
        assert done.returncode == (0 if args else 2)
        assert done.stdout
        loaded = set(done.stderr.split())
        assert "trtbatch.cli.app" in loaded
        assert not loaded & {"rich.console", "rich.markdown", "numpy", "trtbatch.cli.build", "trtbatch.cli.bench"}


@pytest.mark.parametrize("line", [("build", "small.onnx"), ("verify",), ("tune", "--max-throughput"), ("bench",)])
def test_an_empty_list_of_batches_is_no_default(cli: Cli, engine: Path, line: tuple[str, ...]) -> None:
    refused(cli(*line, "--batch", ""), 2, "batch list '' has an empty part")


def test_the_list_of_commands_says_what_each_says_of_itself(cli: Cli) -> None:
    assert set(app_module.COMMANDS) == {name.split()[0] for name in COMMANDS}
    for name, words in app_module.COMMANDS.items():
        command = get_command(app_module.app).commands[name]  # type: ignore[attr-defined]
        assert " ".join((command.help or "").split("\n\n")[0].split()) == words
        assert " ".join(words.split()[:3]) in cli("--help").output


def test_help_names_the_commands_and_their_defaults(cli: Cli) -> None:
    top = cli("--help")
    assert top.exit_code == 0
    for name in ("export", "build", "infer", "bench"):
        assert name in top.output
        page = cli(name, "--help")
        assert page.exit_code == 0
        assert "--debug" in page.output


@pytest.mark.parametrize(
    "args", [("nonsense",), ("bench", "--nonsense"), ("build", "--opt", "x"), ("build", "--backend", "cuda")]
)
def test_usage_is_exit_code_two(cli: Cli, args: tuple[str, ...]) -> None:
    result = cli(*args)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.process
def test_debug_shows_the_traceback_and_nothing_else_does(folder: Path) -> None:
    quiet = run_process("bench", cwd=folder)
    assert quiet.returncode == 1
    assert "Traceback" not in quiet.stderr
    assert [line.partition(":")[0] for line in quiet.stderr.splitlines()] == ["error", "fix"]
    loud = run_process("bench", "--debug", cwd=folder)
    assert loud.returncode != 0
    assert "Traceback" in loud.stderr
    assert "ArtifactError" in loud.stderr


@pytest.mark.process
def test_messages_go_to_standard_error_and_results_to_standard_output(engine: Path, folder: Path) -> None:
    done = run_process("bench", "--batch", 2, "--iterations", 3, cwd=folder)
    assert done.returncode == 0
    assert done.stderr == "note: using the newest engine: engines/small.ort.onnx\n"
    assert "samples/s" in done.stdout
    assert "note:" not in done.stdout


def test_names_with_markup_are_printed_as_they_are(cli: Cli, folder: Path) -> None:
    result = cli("bench", "[red]x[/red].engine")
    assert "[red]x[/red].engine doesn't exist" in result.output


@pytest.mark.parametrize(("text", "count"), [("4GiB", 2**32), ("512MB", 512_000_000), ("1.5k", 1500), ("7", 7)])
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4TiBs", "0", "1e9", "٣"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


def test_shapes_and_sizes_for_people() -> None:
    assert parse_shape("3,224,224") == parse_shape("3x224x224") == parse_shape("3 × 224 × 224") == (3, 224, 224)
    for text in ("", "3,,4", "3,-4", "a"):
        with pytest.raises(UsageError):
            parse_shape(text)
    assert [size(count) for count in (12, 2048, 3 * 2**20, 5 * 2**29)] == ["12 B", "2.0 KiB", "3.0 MiB", "2.5 GiB"]


@pytest.mark.process
def test_the_package_speaks_of_itself_alone() -> None:
    """No absolute path of a machine, and no registry's host, in what is committed."""
    tracked = subprocess.run(["git", "ls-files"], check=False, cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.split():
        text = (ROOT / name).read_text(encoding="utf-8", errors="ignore") if (ROOT / name).is_file() else ""
        for word in [f"/{folder}/" for folder in ("root", "home", "work/main")]:
            assert word not in text, f"{name} holds {word}"


@pytest.mark.parametrize("command", ["export", "build", "infer", "bench", "verify"])
def test_help_tells_what_is_taken_where_nothing_is_given(cli: Callable[..., Any], command: str) -> None:
    """Rich takes [brackets] for markup unless they are escaped, and prints nothing of them."""
    assert "[default: " in cli(command, "--help").output


def test_help_tells_the_engine_that_is_taken(cli: Callable[..., Any]) -> None:
    for command in ("infer", "bench", "verify"):
        assert "[default: the newest in engines/ that runs" in " ".join(cli(command, "--help").output.split())


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("build m.onnx --opt-level 9", "give 0 to 5"),
        ("plan --traffic t.csv --max-profiles 0", "give 1 to 64"),
        ("infer --input random --topk 0", "give 1 or more"),
        ("infer --input random --batch 0", "give a number from 1 to 1000000"),
        ("deploy triton --repository models --instances 0", "give 1 to 1024"),
        ("deploy triton --repository models --max-queue-delay 2h", "up to 60s"),
        ("bench --batch 0", "give sizes from 1 to 1000000"),
        ("bench --batch 1-20000", "1 to 10000 sizes"),
        ("bench --max-noise 200%", "over 0, below 100%"),
        ("bench --percentile 101", "over 0, up to 100"),
        ("bench --min-time 0", "give 0.01 or more"),
        ("tune --latency 0ms", "over 0"),
        ("tune --latency 5ms --streams 65", "from 1 to 64"),
        ("tune --latency 5ms --percentile 100", "over 0 and below 100"),
        ("compare a.json b.json --fail-if-slower 200%", "from 0, below 100%"),
        ("verify --rtol inf", "from 0 on"),
    ],
)
def test_a_fix_names_the_range_that_is_allowed(cli: Cli, line: str, allowed: str) -> None:
    result = cli(*line.split())
    assert result.exit_code in (1, 2)
    fix = result.output.strip().splitlines()[-1]
    assert fix.startswith("fix: "), result.output
    assert allowed in fix, result.output


def test_a_fix_names_no_option_that_the_command_lacks(
    cli: Cli, engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> str:
        raise OSError(28, "No space left on device", "there")

    monkeypatch.setattr("trtbatch.util.files.tempfile.mkdtemp", full)
    told = {
        ("build", "small.onnx", "--output", "there/x.ort.onnx"): "free disk space, or write elsewhere with --output",
        ("bench", "--json", "there/r.json"): "free disk space, or write elsewhere with --json",
        ("deploy", "triton", "--repository", "there"): "free disk space, or write elsewhere with --repository",
    }
    for line, fix in told.items():
        assert cli(*line).output.strip().splitlines()[-1] == f"fix: {fix}"


@pytest.mark.parametrize("command", ["bench --batch", "infer --topk", "deploy triton --name"])
def test_an_option_without_its_value_points_to_the_commands_own_help(cli: Cli, command: str) -> None:
    words = command.split()
    result = cli(*words)
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1] == f"fix: see trtbatch {' '.join(words[:-1])} --help"


@pytest.mark.process
@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["build", "m.onnx", "--opt-level", "9"], "--opt-level 9: "),
        (["build", "m.onnx", "--opt-level=9"], "--opt-level 9: "),
        (["bench", "--iterations", "0"], "--iterations 0: "),
        (["export", "resnet18", "--exporter", "foo"], "--exporter foo: "),
    ],
)
def test_a_value_out_of_range_is_shown_with_its_option(folder: Path, line: list[str], told: str) -> None:
    done = run_process(*line, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr.splitlines()[0], done.stderr
    assert "Value error" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_being_done_is_said_now_and_then_where_no_spinner_turns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "EVERY", 0.005)
    told, deadline = "", time.monotonic() + 60
    with console.show_progress() as (_, report):
        assert not threads_of_progress(), "nothing is told, and nothing runs"
        report("batch 8 [bold]", None)
        while told.count("\n") < 2 and time.monotonic() < deadline:
            told += capsys.readouterr().err
        report("timing tactics", 0.4)
        while "tactics" not in told and time.monotonic() < deadline:
            told += capsys.readouterr().err
    assert not threads_of_progress()
    lines = told.splitlines()
    assert re.fullmatch(r"[0-9]+ s: batch 8 \[bold\]", lines[0])
    assert lines[1].endswith(" s: batch 8 [bold]")
    assert lines[-1].endswith(" s: timing tactics, 40%")


def threads_of_progress() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_long_tune_shows_signs_of_life_in_a_pipe(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("tune", "--max-throughput", "--batch", "2,4", "--min-time", 0.05, "--no-save")
    monkeypatch.setattr(console, "EVERY", 1e6)
    assert " s: measurement" not in cli(*line).output, "no command that is done soon says so"
    monkeypatch.setattr(console, "EVERY", 0.01)
    result = cli(*line)
    assert result.exit_code == 0
    assert re.search(r"^[0-9]+ s: measurement [0-9]+: batch [24], 1 in flight$", result.stderr, re.MULTILINE)
    assert not re.search(r"^[0-9]+ s: ", result.stdout, re.MULTILINE), "results alone go there"


def test_what_may_not_be_read_is_told_so_whoever_reads_it(
    cli: Cli, engine: Path, folder: Path, unreadable: Callable[[Path], None]
) -> None:
    fix = "fix: give yourself the permission to read it"
    assert cli("infer", engine, "--input", "random", "--output", "saved.npz").exit_code == 0
    np.save(folder / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    (folder / "it's.onnx").write_bytes((folder / "small.onnx").read_bytes())
    for name in ("x.npy", "saved.npz", "it's.onnx"):
        unreadable(folder / name)
    refused(cli("infer", engine, "--input", "x.npy"), 1, "x.npy can't be read: Permission denied", fix)
    refused(cli("verify", engine, "--input", "x.npy"), 1, "x.npy can't be read: Permission denied", fix)
    refused(cli("verify", engine, "--against", "saved.npz"), 1, "saved.npz can't be read: Permission denied", fix)
    refused(cli("verify", engine, "--against", "it's.onnx"), 1, "it's.onnx can't be read: Permission denied", fix)
    told = "error: it's.onnx can't be read: Permission denied"
    for command in ("build", "inspect", "infer --input random", "bench"):
        name, *options = command.split()
        refused(cli(name, "it's.onnx", *options), 1, told, fix)
    (folder / "shut").mkdir()
    unreadable(folder / "shut")
    refused(cli("infer", engine, "--input", "shut"), 1, "shut can't be read: Permission denied", fix)
    unreadable(folder / "small.onnx")
    refused(cli("verify", engine), 1, "small.onnx can't be read: Permission denied", fix)
    unreadable(engine)
    refused(cli("infer", "--input", "random"), 1, "small.ort.onnx can't be read: Permission denied", fix)


@pytest.mark.parametrize("count", [0, 65, 100000])
def test_streams_are_bounded(cli: Cli, engine: Path, count: int) -> None:
    told = f"--streams {count}"
    refused(cli("bench", engine, "--batch", 1, "--mode", "throughput", "--streams", count), 2, told, "give 1 to 64")
    refused(cli("tune", engine, "--max-throughput", "--streams", f"1,{count}"), 2, f"1,{count}", "from 1 to 64")
    with pytest.raises(UsageError, match=r"not numbers of streams; give numbers from 1 to 64$"):
        tune(TuneRequest(engine, streams=[1, count]))


def test_a_folder_on_the_way_that_may_not_be_searched(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat: Any = os.stat

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if "shut/" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr("os.stat", refuse)
    fix = "fix: give yourself the permission to read it"
    for line in ("infer --input shut/x.npy", "verify --input shut/x.npy", "verify --against shut/x.onnx"):
        name, *options = line.split()
        refused(cli(name, engine, *options), 1, f"{options[-1]} can't be read: Permission denied", fix)
