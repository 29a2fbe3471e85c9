"""Read a traffic, how often each batch size arrives: a CSV file with the header ``batch,count``."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

from trtbatch.core.batches import MAX_BATCH
from trtbatch.errors import UsageError

__all__ = ["MOST_SIZES", "read_traffic"]

MOST_SIZES = 2000
"""Largest number of batch sizes in a traffic, since choosing profiles takes memory and time with its square."""

_HELP = "write a header batch,count and lines of two whole numbers, like 8,1200"


def read_traffic(path: Path) -> dict[int, int]:
    """Return the number of requests by batch size, ascending; lines of one size are added, empty lines skipped.

    Raises:
        UsageError: the file is missing, has another header, or a line isn't two positive integers; names line and
            value.
        OSError: the file can't be read.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a CSV file")
    if not path.exists():
        raise UsageError(f"`traffic={str(path)!r}`: no such file", _HELP)
    counts: Counter[int] = Counter()
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream)
            header = [name.strip().lower() for name in next(lines, [])]
            if header != ["batch", "count"]:
                raise UsageError(f"{path}, line 1: the header is {','.join(header)!r}, not 'batch,count'", _HELP)
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    where = f"{path}, line {lines.line_num}"
                    if len(cells) != 2:
                        raise UsageError(f"{where}: {','.join(cells)!r} has {len(cells)} values, not 2", _HELP)
                    batch = _whole(cells[0], "batch", where)
                    if batch > MAX_BATCH:
                        raise UsageError(
                            f"{where}: batch {batch} is no batch size", f"give sizes from 1 to {MAX_BATCH}"
                        )
                    counts[batch] += _whole(cells[1], "count", where)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} isn't text: {error.reason} at byte {error.start}", _HELP) from error
    except csv.Error as error:
        raise UsageError(f"{path} is no CSV file: {error}", _HELP) from error
    if not counts:
        raise UsageError(f"{path} holds no requests", _HELP)
    if len(counts) > MOST_SIZES:
        raise UsageError(
            f"{path} holds {len(counts)} batch sizes, over {MOST_SIZES}", f"round them to 1 to {MOST_SIZES} sizes"
        )
    return dict(sorted(counts.items()))


def _whole(text: str, name: str, where: str) -> int:
    """Return a positive integer.

    Raises:
        UsageError: names any other value.
    """
    text = text.strip()
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) or int(text) < 1:
        raise UsageError(f"{where}: {name} {text!r} is not a whole number from 1 on", _HELP)
    return int(text)
