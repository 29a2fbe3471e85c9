"""Text of others, for our lines: file names that no encoder takes (Linux lets a name be any bytes), long messages."""

from __future__ import annotations

import re

__all__ = ["shortened", "written"]

_BYTE = re.compile("[\udc80-\udcff]")


def written(name: str) -> str:
    """A name as any reader of UTF-8 takes it: a byte that is no text as ``\\xff``, half a character as ``\\ud800``."""
    if name.isascii():
        return name
    shown = _BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, most: int = 200) -> str:
    """A message on one line, cut between words, with "…", where it is longer than `most` characters."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    head, gap, _ = line[:most].rpartition(" ")
    return f"{head.rstrip(' .,;:')} …" if gap else f"{line[: most - 1]}…"
