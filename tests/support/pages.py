"""The command lines of README.md and the pages in docs/, as a reader would type them, with what is shown below."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import ROOT

__all__ = ["PAGES", "REFERENCE", "Command", "Section", "commands", "is_synopsis", "sections"]

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "reference")
"""The pages that describe the commands, one after the other."""

_SHELL = ("", "sh", "bash", "console")
"""Languages of a fenced block that holds commands."""

_INLINE = re.compile(r"(?<!`)`(trtbatch [^`\n]+)`")

_DRAWN = re.compile("[▶│┃]")
"""What a block without ``$`` is drawn with in which nothing is typed."""


@dataclass
class Command:
    """One line to type, and the output that stands below it, if any does."""

    line: str
    shown: list[str] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        """Whether what is shown is an error, or a verdict of that kind."""
        return any(line.startswith(("error:", "WRONG:")) for line in self.shown)


@dataclass(frozen=True)
class Section:
    """What stands below one ``##`` heading of a page."""

    page: Path
    title: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}: {self.title}"


def sections(page: Path) -> list[Section]:
    """The parts of a page, that before the first heading included."""
    first, *others = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [Section(page, "", first), *(Section(page, text.splitlines()[0], text) for text in others)]


def commands(text: str) -> list[Command]:
    """Every command of a text in its order: in blocks, indented or fenced, and between backticks."""
    found: list[Command] = []
    for block in _blocks(text):
        if isinstance(block, str):
            found += [Command(line) for line in _INLINE.findall(block)]
        else:
            found += _typed(block)
    return found


def is_synopsis(command: Command) -> bool:
    """Whether a line tells the options of a command, and isn't one to type."""
    return re.search(r" \[[-A-Z]", command.line) is not None


def _blocks(text: str) -> Iterator[str | list[str]]:
    """Lines of prose, and blocks of code."""
    block: list[str] = []
    fence: str | None = None
    prose = False  # an indented line below one of prose continues it, as in Markdown
    for line in text.splitlines():
        if line.startswith("```"):
            if fence is not None and fence in _SHELL:
                yield block
            block, fence = [], (line[3:].strip() if fence is None else None)
        elif fence is not None:
            block.append(line)
        elif line.startswith("    ") and not prose:
            block.append(line[4:])
        else:
            if block:
                yield block
                block = []
            yield line
            prose = bool(line.strip())
    if block:
        yield block


def _typed(block: list[str]) -> list[Command]:
    """The commands of a block: after ``$`` where there is one, else every line; a drawing has none."""
    prompted = any(line.startswith("$ ") for line in block)
    if not prompted and _DRAWN.search("".join(block)):
        return []
    found: list[Command] = []
    for line in block:
        if prompted and not line.startswith("$ "):
            found[-1].shown.append(line.rstrip())
        elif found and not prompted and (line.startswith(" ") or found[-1].line.endswith("\\")):
            found[-1].line = f"{found[-1].line.removesuffix(chr(92)).rstrip()} {line.strip()}"
        elif line.strip():
            found.append(Command(re.split(r"\s+# ", line.removeprefix("$ "))[0].strip()))
    return found


MYMODELS = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3))



        return self.head(features.view(8, 8))


def net():
    return Net()
"""
