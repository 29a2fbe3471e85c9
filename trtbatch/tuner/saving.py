"""Save the result of a search to the engine's sidecar, after checking that it can be written."""

from __future__ import annotations

from trtbatch.core import store
from trtbatch.core.sidecar import Artifact, Planned, Tuned
from trtbatch.errors import ArtifactError, TrtbatchError, from_os_error
from trtbatch.util import files

__all__ = ["keep", "refuse_unsaved", "refuse_unwritable"]


def refuse_unwritable(artifact: Artifact) -> None:
    """Raise, before anything is measured, if the sidecar can't be written.

    Raises:
        TrtbatchError: the advice names ``--no-save``.
    """
    try:
        files.probe(files.sidecar_path(artifact.path))
    except OSError as error:
        reason = from_os_error(error).problem
        raise TrtbatchError(f"what is found can't be kept in the sidecar of {artifact.path}: {reason}", _FIX) from error


_FIX = "pass `save=False` to leave the sidecar as it is (the result is kept all the same), or make that folder writable"


def keep(artifact: Artifact, **fields: Tuned | Planned) -> str:
    """Write fields of the engine's record to the sidecar; return why that failed, or an empty string on success."""
    try:
        store.rewrite(artifact, **fields)
    except OSError as error:
        return from_os_error(error).problem
    except ArtifactError as error:
        return error.problem
    return ""


def refuse_unsaved(reason: str) -> None:
    """Raise, after the result is shown, if saving it failed.

    Raises:
        TrtbatchError: names the reason.
    """
    if reason:
        problem = f"the result above is whole, and isn't kept in the engine's sidecar: {reason}"
        raise TrtbatchError(problem, "mend that and run it again, or pass `save=False`")
