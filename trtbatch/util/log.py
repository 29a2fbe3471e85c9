"""What a stage tells its caller on the way: one logger, which the command line shows and a program may route."""

from __future__ import annotations

import logging

__all__ = ["LOGGER", "note", "warn"]

LOGGER = logging.getLogger("trtbatch")
LOGGER.addHandler(logging.NullHandler())


def note(message: str) -> None:
    """One line that a user wants to know: which file was taken, which backend runs."""
    LOGGER.info(message)


def warn(message: str) -> None:
    """One line that a user must not miss."""
    LOGGER.warning(message)
