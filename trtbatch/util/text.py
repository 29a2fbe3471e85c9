"""Make text from elsewhere printable: file names that no encoder takes (Linux allows any bytes), long messages."""

from __future__ import annotations

import re

__all__ = ["shortened", "written"]

_BYTE = re.compile("[\udc80-\udcff]")


def written(name: str) -> str:
    r"""Return a name as valid UTF-8: a byte that doesn't decode as ``\xff``, a lone surrogate as ``\ud800``."""
    if name.isascii():
        return name
    shown = _BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, most: int = 200) -> str:
    """Return a message on one line; above `most` characters it is cut between words, and ends in "…"."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    head, gap, _ = line[:most].rpartition(" ")
    return f"{head.rstrip(' .,;:')} …" if gap else f"{line[: most - 1]}…"
