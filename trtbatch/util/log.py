"""Report a stage's messages through one logger, which the command line shows and a program may redirect."""

from __future__ import annotations

import logging

__all__ = ["LOGGER", "note", "warn"]

LOGGER = logging.getLogger("trtbatch")
LOGGER.addHandler(logging.NullHandler())


def note(message: str) -> None:
    """Log one line of information, such as the file or the backend that is used."""
    LOGGER.info(message)


def warn(message: str) -> None:
    """Log one line that a user must not miss."""
    LOGGER.warning(message)
