"""File names that are no text: Linux lets a name be any bytes, and what Python makes of such ones no encoder takes."""

from __future__ import annotations

import re

__all__ = ["written"]

_BYTE = re.compile("[\udc80-\udcff]")


def written(name: str) -> str:
    """A name as any reader of UTF-8 takes it: a byte that is no text as ``\\xff``, half a character as ``\\ud800``."""
    if name.isascii():
        return name
    shown = _BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")
