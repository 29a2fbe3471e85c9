"""Every command of README.md and the pages in docs/, as it stands there, on a small model."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tests.support.pages import MYMODELS, PAGES, Command, Section, commands, is_synopsis, sections
from tests.support.processes import COMMANDS, EXPORT_PYTHON, needs_export, run_process, untold
from trtbatch.backends import tensorrt
from trtbatch.cli.app import app
from trtbatch.util import optional

SECTIONS = [section for page in PAGES for section in sections(page)]

ELSEWHERE = {
    "pip install '.[export,tensorrt,triton]'": "installs from the package index",
    "docker run --rm --gpus all -p 8000:8000 -v $PWD/models:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 "
    "tritonserver --model-repository=/models": "needs Docker, and fetches an image",
    "curl --fail --retry 30 --retry-all-errors localhost:8000/v2/models/resnet18/ready": "asks that Triton",
    "python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]'": "installs from the package index",
    "export TRTBATCH_MODELOPT_PYTHON=$PWD/modelopt/bin/python": "sets a variable for the line above",
    "g++ -std=c++17 -O2 consumer.cpp -o consumer -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer "
    "-lcudart": "needs TensorRT's headers: tests/project/test_consumer.py",
    "./consumer engines/resnet18_dynamic.engine 5 samples.bin": "is what g++ makes",
}
"""Commands that aren't run here, and why."""

ON_A_GPU = {
    "trtbatch bench --batch 1,2,4,...,32 --mode execute_v2,async --json r.json": (),
    "trtbatch build engines/resnet18_dynamic.pre.onnx": ("trtbatch export-preprocessor",),
}
"""What ONNX Runtime doesn't have, and what comes before it."""

BY_TEST = ("trtbatch verify",)
"""Commands whose model a test of ``test_readme.py`` makes; it runs them."""

OF_THE_MACHINE = {"trtbatch doctor": "tells what is wrong with a machine, with exit code 1 where something is"}
"""Commands of which neither what they print nor how they end is known here."""

NEEDED = {"--ray": "ray", "deploy triton": "tritonclient", "--png": "matplotlib"}

OBSTACLE = tensorrt.obstacle()
SUFFIX = ".engine" if OBSTACLE is None else ".ort.onnx"

EXPORT = "trtbatch export resnet18 --dynamic"

TRAFFIC = "batch,count\n1,5000\n2,1200\n5,800\n8,300\n20,90\n"


def small(line: str) -> list[str]:
    """The command for a model that builds in a second, with this machine's kind of engine, and short timings."""
    for old, new in {
        "export resnet18": "export tests.support.zoo:photos",
        "resnet18": "photos",
        ".engine": SUFFIX,
    }.items():
        line = line.replace(old, new)
    words = shlex.split(line)[1:]
    return [*words, "--min-time", "0.05"] if words[0] in ("bench", "tune") else words


def lacks(command: Command) -> bool:
    """Whether a package that a command needs isn't installed."""
    return any(word in command.line and not optional.is_installed(package) for word, package in NEEDED.items())


def typed(section: Section) -> list[Command]:
    """What a test has to run of a section: all that isn't a synopsis, and isn't exempt."""
    exempt = {*ELSEWHERE, *BY_TEST, *ON_A_GPU}
    return [each for each in commands(section.text) if not is_synopsis(each) and each.line not in exempt]


def run(command: Command, cwd: Path) -> None:
    """Run a command; what is shown below it in words is what it prints."""
    done = outcome(small(command.line), cwd)
    printed = done.stdout + done.stderr
    free = command.line in OF_THE_MACHINE or "--fail-if-slower" in command.line  # two runs here may well differ
    allowed = (1, 2) if command.fails else (0, 1, 3) if free else (0,)
    assert done.returncode in allowed, (command.line, printed)
    assert command.fails or "error:" not in done.stderr
    if "--ray" in command.line:
        assert untold(done.stderr) == [], "Ray itself says nothing"
    if OBSTACLE is not None and command.line not in OF_THE_MACHINE:  # what is shown is of ONNX Runtime
        for words in wording(command.shown):
            assert words in printed, (command.line, words, printed)


class Outcome(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def outcome(args: list[str], cwd: Path) -> Outcome:
    """Run a command here, where torch is imported already; one that starts Ray in a process of its own."""
    if "--ray" in args or EXPORT_PYTHON is not None:
        done = run_process(*args, cwd=cwd)
        return Outcome(done.returncode, done.stdout, done.stderr)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(cwd)
        patch.delitem(sys.modules, "mymodels", raising=False)  # each folder has its own
        result = CliRunner().invoke(app, args)
        return Outcome(result.exit_code, result.stdout, result.stderr)


def wording(shown: Iterable[str]) -> list[str]:
    """Of lines that are shown, what doesn't depend on model and machine: their beginnings, and heads of tables."""
    found = []
    for line in shown:
        if line.startswith("┃"):
            found += [cell.strip() for cell in line.split("┃") if re.fullmatch(r"[a-z /]+", cell.strip())]
        elif label := re.match(r" +(?!smaller|larger|alike)[a-z]+ ", line):  # those that tune tells where there are any
            found.append(label[0])
        elif re.match(r"[A-Za-z]", line):
            start = re.split(r"[0-9(/'…]|resnet|engines|(?<=bound by)", line)[0].rstrip()
            found += [start] if len(start) > 2 else []
    return found


@pytest.fixture(scope="session")
def used(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A folder in which the three lines have run, with photographs, traffic and models of the reader's own."""
    folder = tmp_path_factory.mktemp("used")
    prepare(folder, photos)
    for line in (
        "trtbatch export resnet18 --dynamic",
        "trtbatch build --min 1 --opt 16 --max 32",
        "trtbatch bench --batch 1,8 --json before.json",
        "trtbatch bench --batch 1,8 --json after.json",
        "trtbatch tune --latency 10s --batch 1,2",
    ):
        run(Command(line), folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A folder in which the line has run that most sections begin with."""
    folder = tmp_path_factory.mktemp("exported")
    prepare(folder, photos)
    run(Command(EXPORT), folder)
    return folder


def prepare(folder: Path, photos: Path) -> None:
    """What a reader has: photographs, a traffic, models."""
    shutil.copytree(photos, folder / "PHOTOS")
    (folder / "TRAFFIC.csv").write_text(TRAFFIC)
    (folder / "mymodels.py").write_text(MYMODELS + "\n\nfrom tests.support.zoo import two_in as two_inputs\n")


def begins(lines: Sequence[Command]) -> bool:
    """Whether a section starts from nothing."""
    return lines[0].line.startswith("trtbatch export resnet18")


def case(section: Section) -> Any:
    """The parameter of a section, marked where it converts to another precision."""
    converts = any("--precision" in command.line for command in typed(section))
    return pytest.param(section, id=section.name, marks=[pytest.mark.modelopt] if converts else [])


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("section", [case(each) for each in SECTIONS if typed(each)])
def test_every_command_of_a_section_runs(section: Section, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    needs_export()
    lines, folder = typed(section), tmp_path / "folder"
    if begins(lines) and lines[0].line == EXPORT and not lines[0].shown:
        shutil.copytree(request.getfixturevalue("exported"), folder)
        lines = lines[1:]
    elif begins(lines):
        folder.mkdir()
        prepare(folder, request.getfixturevalue("photos"))
    else:
        shutil.copytree(request.getfixturevalue("used"), folder)
    for command in lines:
        if command.line.startswith("python -c "):
            subprocess.run([sys.executable, *shlex.split(command.line)[1:]], cwd=folder, check=True, timeout=60)
            continue
        assert command.line.startswith("trtbatch "), f"{command.line} is neither run here nor exempt"
        if not lacks(command):
            run(command, folder)


@pytest.mark.process
@pytest.mark.gpu
@pytest.mark.skipif(OBSTACLE is not None, reason="TensorRT can't run here")
@pytest.mark.parametrize("line", ON_A_GPU)
def test_what_needs_a_gpu_runs_on_one(line: str, used: Path, tmp_path: Path) -> None:
    shutil.copytree(used, tmp_path / "folder")
    for each in (*ON_A_GPU[line], line):
        run(Command(each), tmp_path / "folder")


def test_what_is_exempt_stands_on_a_page() -> None:
    lines = {command.line for section in SECTIONS for command in commands(section.text)}
    exempt = {*ELSEWHERE, *BY_TEST, *ON_A_GPU, *OF_THE_MACHINE}
    assert lines >= exempt, exempt - lines
    assert all(ELSEWHERE.values())


def test_every_synopsis_is_one_of_a_command() -> None:
    """Their options are held against the program in tests/project/test_readme.py; no line to type hides among them."""
    found = [each.line for section in SECTIONS for each in commands(section.text) if is_synopsis(each)]
    named = [next((name for name in COMMANDS if line.startswith(f"trtbatch {name} ")), line) for line in found]
    assert sorted(named) == sorted(COMMANDS)


def test_the_recipes_are_whole() -> None:
    recipes = [section for section in SECTIONS if section.page.name == "recipes.md" and section.title]
    assert len(recipes) >= 4
    assert all(len(commands(recipe.text)) >= 3 for recipe in recipes)


PAGE = """
Type `trtbatch doctor`, or:

    trtbatch build [ONNX] --max 8
                   [--json FILE]
    trtbatch build --max 8   # eight
    curl localhost

```
x ──▶ y
```

```
$ docker run \\
$ trtbatch bench
error: none
```

```python
import trtbatch
```
"""


def test_what_is_typed_on_a_page_is_found() -> None:
    found = commands(PAGE)
    assert [each.line for each in found] == [
        "trtbatch doctor",
        "trtbatch build [ONNX] --max 8 [--json FILE]",
        "trtbatch build --max 8",
        "curl localhost",
        "docker run \\",
        "trtbatch bench",
    ]
    assert [is_synopsis(each) for each in found] == [False, True, False, False, False, False]
    assert found[-1].fails
    assert found[-1].shown == ["error: none"]
    assert not found[-2].fails
