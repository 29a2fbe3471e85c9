"""Shared fixtures: a command line in a folder of its own, photographs, a built engine."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scripts.photos import copy_photos
from tests.support import models
from tests.support.labels import CLASSES, PREPROCESSING
from tests.support.sidecars import change_sidecar
from trtbatch.cli.app import app
from trtbatch.util import optional
from trtbatch.util.serialization import encode

LONGEST = ("ray", "recipes", "export", "program", "ray_connecting", "tune", "fuzz", "scale_table", "stress", "plan")
"""Files that take the longest: begun last, they would leave the other processors idle at the end."""


# Ray gives its workers the lowest priority but four: next to other tests, each job takes four times as long.
os.environ.setdefault("RAY_worker_niceness", "0")

NEEDED = {"modelopt": "precision", "ray": "ray", "torch": "export"}
"""Packages that are markers too, and trtbatch's extras that bring them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that ``tests/support/golden.py`` describes."""
    parser.addoption("--rewrite-golden", action="store_true", help="Write the golden files of tests/cli anew.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first. Of ``TRTBATCH_SHARD=I/N``, keep each N-th test: others run the rest meanwhile."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    shard, _, count = os.environ.get("TRTBATCH_SHARD", "0/1").partition("/")
    items[:] = [item for index, item in enumerate(items) if index % int(count) == int(shard)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked with a package that isn't installed; ``scripts/test`` has an environment with each."""
    for package, extra in NEEDED.items():
        if item.get_closest_marker(package) is not None and not optional.is_installed(package):
            pytest.skip(f"needs {package} (extra {extra})")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path}/"):
            del sys.modules[name]


@pytest.fixture
def cli(folder: Path) -> Callable[..., Any]:
    """Run ``trtbatch ARGS`` in this process, in `folder`."""
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let a folder take no files, which permissions don't where the tests are root's."""

    def close(refusing: Path) -> None:
        real: Any = tempfile.mkdtemp

        def refuse(*args: Any, dir: Any = None, **options: Any) -> str:
            if Path(dir).resolve() == refusing.resolve():
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
            return str(real(*args, dir=dir, **options))

        monkeypatch.setattr("trtbatch.util.files.tempfile.mkdtemp", refuse)

    return close


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let a file be read by nobody, which permissions don't where the tests are root's."""
    barred: set[Path] = set()
    opens: Any = open
    access: Any = os.access

    def refuse(file: Any, *args: Any, **options: Any) -> Any:
        if isinstance(file, (str, os.PathLike)) and Path(file).resolve() in barred:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return opens(file, *args, **options)

    def may(path: Any, *args: Any, **options: Any) -> bool:
        return Path(os.fsdecode(path)).resolve() not in barred and access(path, *args, **options)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("os.access", may)
    return lambda file: barred.add(file.resolve())


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten real photographs."""
    target = tmp_path_factory.mktemp("photos")
    copy_photos(target)
    return target


@pytest.fixture
def engine(folder: Path, cli: Callable[..., Any]) -> Path:
    """``engines/small.ort.onnx``: the small classifier, profile 1:4:8, ONNX Runtime."""
    (folder / "engines").mkdir()
    models.classifier(folder / "small.onnx")
    result = cli("build", "small.onnx", "--min", 1, "--opt", 4, "--max", 8, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    return folder / "engines" / "small.ort.onnx"


@pytest.fixture
def photo_engine(engine: Path) -> Path:
    """The small engine, with preprocessing and classes in its sidecar."""
    change_sidecar(engine, preprocessing=encode(PREPROCESSING), classes=CLASSES)
    return engine


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """File names that are no text, in what a test has logged, would end the process that is to send it on."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report
