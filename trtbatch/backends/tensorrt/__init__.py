"""Check whether TensorRT can run here, and whether an engine was made for this TensorRT and this GPU."""

from __future__ import annotations

import functools
import os
import shutil

from trtbatch.core.hints import build_line
from trtbatch.core.sidecar import Artifact
from trtbatch.errors import ArtifactError, MissingPackageError
from trtbatch.util import optional

__all__ = ["numbers", "obstacle", "refuse_foreign", "sees_nvidia", "wheel"]


def sees_nvidia() -> bool:
    """Return whether the machine seems to have an NVIDIA GPU, by its device files or the driver's own tool."""
    return any(map(os.path.exists, ("/dev/nvidia0", "/dev/dxg"))) or shutil.which("nvidia-smi") is not None


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers: ``10.16.1.11`` gives (10, 16, 1, 11)."""
    found: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def wheel(driver_cuda: str | None, version: str | None = None) -> str:
    """Return the pip command for a TensorRT that this driver can run.

    From 10 on the names of NVIDIA's packages carry the CUDA version that they need: cu11 up to 10.13.0, cu12
    throughout, cu13 from 10.13.2 on. 8.6 is one package, for CUDA 12 (the package index, November 2026).

    Args:
        driver_cuda: the newest CUDA that the driver runs, such as ``12.4``; None where unknown.
        version: the TensorRT version needed; None for the newest.
    """
    wanted = numbers(version or "")
    if wanted and wanted < (10,):
        return f"pip install tensorrt=={version} (for CUDA 12, and Python up to 3.11)"
    if driver_cuda is None:
        return f"pip install tensorrt=={version}" if version else "pip install 'trtbatch[tensorrt]'"
    major = (numbers(driver_cuda) or (12,))[0]
    if major < 12:
        fits = not wanted or wanted < (10, 13, 1)
        newest = f"=={version}" if wanted and fits else "==10.13.0.35"
        return f"pip install tensorrt-cu11{newest}" + ("" if fits else ", or update the NVIDIA driver")
    cuda13 = major >= 13 and (not wanted or wanted >= (10, 13, 2))
    return f"pip install tensorrt-cu{13 if cuda13 else 12}" + (f"=={version}" if version else "")


@functools.cache
def obstacle() -> MissingPackageError | None:
    """Return what keeps TensorRT from running in this process, or None where it can run."""
    if not sees_nvidia():
        return MissingPackageError("no NVIDIA GPU here", "run on a machine with an NVIDIA GPU and driver")
    packages = {"tensorrt": "build and run engines", "pycuda": "reach the GPU", "cuda.bindings": "reach the GPU"}
    for package, purpose in packages.items():
        if not optional.is_installed(package):
            return MissingPackageError(
                f"{package} is needed to {purpose}, and isn't installed", "pip install 'trtbatch[tensorrt]'"
            )
    from trtbatch.backends.tensorrt import buffers

    try:
        optional.require("tensorrt", "build and run engines")
        count = buffers.device_count()
    except MissingPackageError as error:
        return error
    if count == 0:
        return MissingPackageError("the CUDA driver sees no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return None


def refuse_foreign(artifact: Artifact, device: int = 0) -> None:
    """Compare the sidecar with this TensorRT and this GPU, before the engine is deserialised.

    Raises:
        ArtifactError: the engine was made by another TensorRT version, or for another compute capability.
    """
    from trtbatch.backends.tensorrt import buffers

    trt = optional.require("tensorrt", "run engines")
    made_with = artifact.sidecar.build.tools.get("tensorrt")
    here = buffers.device_facts(device)
    options = artifact.sidecar.build.options
    later = bool(options.get("version_compatible")) and numbers(str(made_with)) <= numbers(trt.__version__)
    if made_with is not None and made_with != trt.__version__ and not later:
        raise ArtifactError(
            f"{artifact.path} was built with TensorRT {made_with}; this is {trt.__version__}",
            f"build it again here ({build_line(artifact)}), or {wheel(here['driver_cuda'], made_with)}",
        )
    capability = artifact.sidecar.build.device.get("compute_capability")
    anywhere = bool(options.get("hardware_compatible")) and numbers(here["compute_capability"]) >= (8, 0)
    if capability is not None and capability != here["compute_capability"] and not anywhere:
        raise ArtifactError(
            f"{artifact.path} was built for a {artifact.sidecar.build.device.get('gpu', 'GPU')} (compute capability "
            f"{capability}); this is a {here['gpu']} ({here['compute_capability']})",
            f"build it again on this GPU: {build_line(artifact)}",
        )
