"""Suggest what to call next: what makes an artifact again, or the file to name instead of a wrong one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trtbatch.core.sidecar import Artifact, Kind, Sidecar, read_sidecar
from trtbatch.errors import ArtifactError
from trtbatch.util.files import sidecar_path

__all__ = [
    "ARTICLES",
    "EXPORT",
    "MAKE",
    "Placeholder",
    "build_line",
    "built_from",
    "call",
    "instead",
    "of_other_backend",
    "precision_arguments",
    "refuse_other_file",
]

ARTICLES: dict[Kind, str] = {"onnx": "an ONNX file", "engine": "an engine", "preprocessor": "a preprocessor"}


class Placeholder(str):
    """A word that stands for what the reader has to fill in, ``MODEL``."""

    def __repr__(self) -> str:
        return str(self)


def call(function: str, *given: object, **arguments: object) -> str:
    """Return a call of one of the package's functions in backticks, in which messages name code.

    The command line shows it as a command.
    """
    words = [*map(_code, given), *(f"{name}={_code(value)}" for name, value in arguments.items())]
    return f"`trtbatch.{function}({', '.join(words)})`"


def _code(value: object) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)


EXPORT = call("export", Placeholder("MODEL"), dynamic=True)

MAKE: dict[Kind, str] = {
    "onnx": call("export", "resnet18", dynamic=True),
    "engine": call("build"),
    "preprocessor": call("build", "NAME.pre.onnx"),
}


def built_from(artifact: Artifact) -> str | None:
    """Return the path of the file that an artifact was made from, relative to here; None where it is unknown."""
    source = artifact.sidecar.source
    return os.path.normpath(artifact.path.parent / source.path) if source is not None and source.path else None


def build_line(artifact: Artifact) -> str:
    """Return the call that builds this engine again in its place, as far as its sidecar records it.

    The sidecar doesn't record the path of calibration samples, nor the builder's settings that decide how long it
    searches.
    """
    sidecar = artifact.sidecar
    arguments: dict[str, Any] = {}
    if sidecar.kind == "engine" and sidecar.is_dynamic:
        arguments["profiles"] = [str(profile) for profile in sidecar.engine.profiles]
    elif sidecar.kind == "engine":
        arguments["static"] = sidecar.engine.profiles[0].max
    arguments |= precision_arguments(sidecar) | sidecar.build.options
    if sidecar.engine.backend == "onnxruntime":
        arguments["backend"] = "onnxruntime"
    source = built_from(artifact) or Placeholder("ONNX_FILE")
    return call("build", source, **arguments, output=artifact.path)


def precision_arguments(sidecar: Sidecar) -> dict[str, Any]:
    """Return the arguments of ``build`` that request this engine's precision."""
    conversion, asked = sidecar.conversion, sidecar.precision.asked
    if asked in (None, "default"):
        asked = None if conversion is None else conversion.precision
    arguments: dict[str, Any] = {} if asked is None else {"precision": asked}
    if conversion is not None:
        if conversion.io is not None:
            arguments["io_precision"] = conversion.io
        if conversion.keep_fp32:
            arguments["keep_fp32"] = list(conversion.keep_fp32)
        if conversion.method is not None and not conversion.random:
            arguments["calibration"] = Placeholder("SAMPLES")
    return arguments


def refuse_other_file(path: Path, kind: Kind | None) -> None:
    """Raise where a path is a folder, or its name shows that it isn't an artifact of this kind.

    Args:
        path: what the user named.
        kind: the kind that is needed; None where any artifact will do.

    Raises:
        ArtifactError: a sidecar, another JSON file, a preprocessor, an image, a table, …; the fix names the intended
            file, or the kind of file to name.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not {_wanted(kind)}", _one_of_folder(path, kind))
    if path.suffix.lower() in _OTHERS and path.is_file():
        what, fix = _OTHERS[path.suffix.lower()]
        raise ArtifactError(f"{path} is {what}, not {_wanted(kind)}", fix.format(str(path)) or f"name {_wanted(kind)}")
    if path.suffix == ".json" and path.is_file():
        _refuse_json(path, kind)
    if path.name.endswith(".pre.onnx") and kind in ("engine", "onnx") and not sidecar_path(path).is_file():
        fix = _for_images(path) if kind == "engine" else "name the model's own ONNX file"
        raise ArtifactError(f"{path} is a preprocessor, not {ARTICLES[kind]}", fix)


_IMAGE, _TABLE, _ARRAYS = ("an image", ""), ("a table", ""), ("a file of arrays", "")
_WEIGHTS = (
    "a file of torch weights",
    "export the model with them: `trtbatch.export(MODEL, dynamic=True, weights={!r})`",
)

_OTHERS = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"), _IMAGE),
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".parquet"), _TABLE),
    **dict.fromkeys((".npy", ".npz"), _ARRAYS),
    **dict.fromkeys((".pt", ".pth", ".safetensors"), _WEIGHTS),
    ".pt2": ("a program of torch", "export it first: `trtbatch.export({!r}, dynamic=True)`"),
    ".py": ("Python code", "export its model first: `trtbatch.export('MODULE:FACTORY', dynamic=True)`"),
}
"""Files named by mistake, by suffix: what they are, and the fix (``""``: name the right file)."""

_SUFFIXES: dict[Kind | None, tuple[str, ...]] = {
    None: (".onnx", ".engine", ".plan"),
    "onnx": (".onnx",),
    "engine": (".engine", ".plan", ".ort.onnx"),
    "preprocessor": (".pre.engine", ".pre.onnx"),
}

_MOST_NAMED = 4


def _wanted(kind: Kind | None) -> str:
    return "an ONNX file or an engine" if kind is None else ARTICLES[kind]


def _one_of_folder(folder: Path, kind: Kind | None) -> str:
    """Return the fix for a folder: the files of the kind that it contains."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(_SUFFIXES[kind]) and path.is_file())
    if kind == "onnx":
        names = [name for name in names if not name.endswith((".ort.onnx", ".pre.onnx"))]
    if not names:
        return f"name {_wanted(kind)}; there is none in it"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"name a file in it: {', '.join(str(folder / name) for name in names[:_MOST_NAMED])}{more}"


def _refuse_json(path: Path, kind: Kind | None) -> None:
    """Raise for a JSON file; where it is a sidecar, the fix names its artifact."""
    wanted = _wanted(kind)
    own = path.with_name(path.name.removesuffix(".json"))
    if not own.is_file():
        raise ArtifactError(f"{path} is a JSON file, not {wanted}", f"name {wanted}")
    fix = f"name the file next to it: {own}"
    if kind is not None:
        try:
            refuse_other_file(own, kind)
            sidecar = read_sidecar(path, MAKE[kind])
        except ArtifactError as error:
            fix = error.fix
        else:
            fix = fix if sidecar.kind == kind else instead(own, sidecar, kind)
    raise ArtifactError(f"{path} is the sidecar of {own.name}, not {wanted}", fix)


def instead(path: Path, sidecar: Sidecar, kind: Kind) -> str:
    """Return the fix where `kind` is needed and a file of another kind was given."""
    if kind == "preprocessor":
        return f"make one for it: trtbatch export-preprocessor {path}"
    if kind == "engine" and sidecar.kind == "preprocessor":
        return _for_images(path)
    if kind == "engine":
        return f"make an engine of it: {call('build', path)}"
    known = "" if sidecar.source is None or sidecar.source.path is None else f": {path.parent / sidecar.source.path}"
    return f"name the ONNX file that it was made from{known}"


def _for_images(path: Path) -> str:
    line = call("infer", Placeholder("ENGINE"), input=Placeholder("IMAGES"), preprocessor=path)
    return f"name the model's engine; infer makes its samples with this: {line}"


def of_other_backend(path: Path) -> Path | None:
    """Return the engine of the same name for the other backend: ``x.ort.onnx`` for ``x.engine``, or the reverse."""
    suffixes = (".engine", ".ort.onnx")
    for own, other in (suffixes, suffixes[::-1]):
        there = path.with_name(path.name.removesuffix(own) + other)
        if path.name.endswith(own) and there.is_file():
            return there
    return None
