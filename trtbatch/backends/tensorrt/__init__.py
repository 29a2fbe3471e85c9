"""TensorRT: whether it can run here, and whether an engine is of this TensorRT and this GPU."""

from __future__ import annotations

import functools
import os
import shutil

from trtbatch import optional
from trtbatch.artifacts import Artifact
from trtbatch.errors import ArtifactError, MissingPackageError

__all__ = ["obstacle", "refuse_foreign", "sees_nvidia"]


def sees_nvidia() -> bool:
    """Whether the machine looks as if it had an NVIDIA GPU (its device files, or the driver's own tool)."""
    return any(map(os.path.exists, ("/dev/nvidia0", "/dev/dxg"))) or shutil.which("nvidia-smi") is not None


@functools.cache
def obstacle() -> MissingPackageError | None:
    """What keeps TensorRT from running in this process; None where nothing does."""
    if not sees_nvidia():
        return MissingPackageError("no NVIDIA GPU here", "run on a machine with an NVIDIA GPU and driver")
    for package, purpose in (("tensorrt", "build and run engines"), ("pycuda", "reach the GPU")):
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
        ArtifactError: another TensorRT version, or another compute capability.
    """
    from trtbatch.backends.tensorrt import buffers

    trt = optional.require("tensorrt", "run engines")
    made_with = artifact.sidecar.tools.get("tensorrt")
    if made_with is not None and made_with != trt.__version__:
        raise ArtifactError(
            f"{artifact.path} was built with TensorRT {made_with}; this is {trt.__version__}",
            f"build it again here (trtbatch build), or install tensorrt=={made_with}",
        )
    capability = artifact.sidecar.device.get("compute_capability")
    here = buffers.device_facts(device)
    if capability is not None and capability != here["compute_capability"]:
        raise ArtifactError(
            f"{artifact.path} was built for a {artifact.sidecar.device.get('gpu', 'GPU')} (compute capability "
            f"{capability}); this is a {here['gpu']} ({here['compute_capability']})",
            "build it again on this GPU: trtbatch build",
        )
