"""Import optional packages, all of them here, and name the extra that installs each."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from trtbatch.errors import MissingPackageError

__all__ = ["is_installed", "require", "version"]

EXTRAS = {
    "torch": "export",
    "torchvision": "export",
    "onnxscript": "export",
    "tensorrt": "tensorrt",
    "pycuda": "tensorrt",
    "pynvml": "tensorrt",
    "cuda": "tensorrt",
    "modelopt": "precision",
    "netron": "view",
    "matplotlib": "report",
    "ray": "ray",
    "pyarrow": "ray",
    "tritonclient": "triton",
    "nvidia.dali": "dali",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import `module`, or raise an error that names the missing package, its purpose and its installation.

    An installed package that fails to import (an import error of its own, a missing shared library) is reported with
    its own message.

    Raises:
        MissingPackageError: the package isn't installed, or doesn't import.
    """
    top = module.partition(".")[0]
    package = next((name for name in EXTRAS if f"{module}.".startswith(f"{name}.")), top)  # nvidia holds many packages
    extra = EXTRAS.get(package)
    install = f"pip install 'trtbatch[{extra}]' (in a clone: '.[{extra}]')" if extra else f"pip install {package}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (package, top):
            raise MissingPackageError(
                f"{package} is installed but doesn't import: {error}", f"reinstall it: {install}"
            ) from error
        raise MissingPackageError(f"{package} is needed to {purpose}, and isn't installed", install) from error
    except (ImportError, OSError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingPackageError(
            f"{package} is installed but doesn't import: {first_line}",
            f"mend its installation ({install}), or its shared libraries on LD_LIBRARY_PATH",
        ) from error


def is_installed(package: str) -> bool:
    """Return whether `package` can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def version(package: str) -> str | None:
    """Return the installed version of a distribution without importing it, or None where it isn't installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(package)
    except PackageNotFoundError:
        return None
