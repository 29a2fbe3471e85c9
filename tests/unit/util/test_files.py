"""Private folders of runs that were killed, and those of runs that weren't."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import child_environment
from trtbatch.util.files import ASIDE, atomic_file, machine_start, probe, scratch

Cli = Callable[..., Any]

pytestmark = pytest.mark.skipif(not machine_start(), reason="only Linux tells when a machine was started")

WRITER = """
import sys
from pathlib import Path
from trtbatch.util.files import scratch
with scratch(Path("out.csv")) as folder:
    (folder / "half").write_text("half")
    (folder / "more").mkdir()
    print(folder.absolute(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def writing(cwd: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that has a private folder, and the folder."""
    line = [sys.executable, "-c", WRITER]
    with subprocess.Popen(
        line, cwd=cwd, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def left(cwd: Path) -> Path:
    """What a killed run leaves."""
    with writing(cwd) as (process, folder):
        process.kill()
        process.wait()
    assert (folder / "half").is_file()
    return folder


@pytest.mark.process
def test_what_a_killed_run_left_is_removed_by_the_next_and_told(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "trtbatch")
    gone = left(tmp_path)
    with atomic_file(tmp_path / "other.txt") as made:
        assert not gone.exists()
        made.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
    assert caplog.messages == [f"removed {gone}, which a run that was killed had left"]


@pytest.mark.process
def test_the_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with writing(tmp_path) as (process, theirs):
        with scratch(tmp_path / "a") as outer, scratch(tmp_path / "b") as inner:
            assert (theirs / "half").is_file()
            assert outer.is_dir()
            assert inner.is_dir()
        assert list(tmp_path.iterdir()) == [theirs]
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_what_is_not_surely_abandoned_stays(tmp_path: Path) -> None:
    """A user's files of a like name, folders of another machine, and a version that was being replaced."""
    start = machine_start()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    (tmp_path / f".trtbatch-{start}-link1234").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / f".trtbatch-{start}-file1234").write_text("")
    (tmp_path / f".trtbatch-{start}-notes").mkdir()
    (tmp_path / ".trtbatch-00000000-abcd1234").mkdir()
    (tmp_path / ".trtbatch-abcd1234").mkdir()
    kept = left(tmp_path)
    shutil.move(kept / "more", kept / ASIDE)
    before = sorted(tmp_path.rglob("*"))
    with scratch(tmp_path / "a"):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_system_without_locks_has_folders_that_nobody_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(38, os.strerror(38))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with scratch(tmp_path / "a") as folder:
            patch.undo()
            with scratch(tmp_path / "b"):
                assert list(tmp_path.glob(".trtbatch-*")) != []
                assert folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_an_error_of_writing_names_what_is_known(tmp_path: Path) -> None:
    """Neither a private file, nor nothing, nor the file that was copied."""
    target, there = tmp_path / "x.onnx", tmp_path / "there"
    cases: list[tuple[Callable[[Path], OSError], Path | None]] = [
        (lambda private: OSError(errno.ENOSPC, "full"), target),
        (lambda private: OSError(errno.ENOSPC, "full", str(private / "traced.onnx")), target),
        (lambda private: OSError(errno.ENOSPC, "full", str(private / "x.onnx" / "deep")), target / "deep"),
        (lambda private: OSError(errno.ENOSPC, "full", str(there), None, str(private / "x.onnx")), target),
        (lambda private: OSError(errno.EACCES, "closed", str(there)), there),
        (lambda private: OSError(errno.EXDEV, "far", str(private / "x.onnx"), None, str(there)), there),
        (lambda private: OSError(errno.ECONNRESET, "reset"), None),
    ]
    for error, named in cases:
        with pytest.raises(OSError, match=r"full|closed|far|reset") as caught, scratch(target) as folder:
            raise error(folder)
        assert caught.value.filename == (None if named is None else str(named))
    assert not list(tmp_path.iterdir())


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    probe(tmp_path / "a" / "b" / "x.onnx")
    (tmp_path / "link").symlink_to("nowhere")
    for wrong, code in ((tmp_path / ("x" * 300), errno.ENAMETOOLONG), (tmp_path / "link" / "x", errno.EEXIST)):
        with pytest.raises(OSError, match=re.escape(os.strerror(code))):
            probe(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.process
def test_a_killed_command_leaves_nothing_for_long(cli: Cli, engine: Path, folder: Path) -> None:
    line = [sys.executable, "-m", "trtbatch", "infer", "--input", "random", "--count", str(10**8), "--output", "p.csv"]
    with subprocess.Popen(line, cwd=folder, env=child_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            while not list(folder.glob(".trtbatch-*/p.csv")):
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    assert list(folder.glob(".trtbatch-*"))
    done = cli("infer", "--input", "random", "--output", "q.csv")
    assert done.exit_code == 0
    assert "which a run that was killed had left" in done.stderr
    assert (folder / "q.csv").is_file()
    assert not list(folder.glob(".trtbatch-*"))
