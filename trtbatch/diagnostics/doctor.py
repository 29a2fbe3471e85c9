"""Judge the gathered facts of a machine that won't run engines, as an engineer would check it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from trtbatch.backends.tensorrt import wheel
from trtbatch.diagnostics.system_info import FAMILIES, Library, SystemInfo

__all__ = ["Check", "diagnose"]

Level = Literal["ok", "warning", "problem"]

_CUDA_FAMILIES = ("libcudart", "libcublas")
"""Families whose version is that of CUDA itself."""


@dataclass(frozen=True)
class Check:
    """Result of one check: its subject, its level, the finding, and the fix."""

    what: str
    level: Level
    found: str
    fix: str = ""


def diagnose(facts: SystemInfo) -> list[Check]:
    """Return the results of all checks that apply, in the order in which an engineer would check."""
    checks: tuple[Callable[[SystemInfo], Iterator[Check]], ...] = (
        _gpu,
        _driver,
        _library_paths,
        _mapped,
        _tensorrt,
        _pycuda,
        _torch,
        _packages,
        _tools,
    )
    return [line for check in checks for line in check(facts)]


def _gpu(facts: SystemInfo) -> Iterator[Check]:
    if not facts.sees_nvidia:
        yield Check("GPU", "warning", "no NVIDIA GPU here; engines run on ONNX Runtime, on the CPU")
        return
    if not facts.gpus:
        fix = "pip install nvidia-ml-py" if facts.driver else "install the NVIDIA driver, and check nvidia-smi"
        yield Check("GPU", "warning" if facts.driver else "problem", "NVML reports no GPUs", fix)
    for index, gpu in enumerate(facts.gpus):
        name = f"GPU {index}"
        text = f"{gpu.name} (compute capability {gpu.capability}), {gpu.free_mib:,} of {gpu.total_mib:,} MiB free"
        if gpu.compute_mode == "prohibited":
            yield Check(name, "problem", f"{text}, compute mode prohibited", f"nvidia-smi -i {index} -c DEFAULT")
        elif gpu.free_mib < 2048:
            who = f"; {', '.join(gpu.others)} run there" if gpu.others else ""
            yield Check(name, "problem", text + who, "stop what holds the memory: a build needs about 2 GiB")
        elif gpu.others and gpu.compute_mode == "exclusive process":
            yield Check(name, "problem", f"{text}, held by {', '.join(gpu.others)} alone", "wait, or use another GPU")
        elif gpu.others:
            yield Check(name, "warning", f"{text}; {', '.join(gpu.others)} run there too", "timings will be disturbed")
        else:
            yield Check(name, "ok", text)


def _driver(facts: SystemInfo) -> Iterator[Check]:
    if not facts.sees_nvidia and facts.driver is None:
        return
    if facts.driver is None:
        yield Check("driver", "problem", "the NVIDIA driver doesn't answer", "install it, or start it: nvidia-smi")
        return
    newest = _dotted(facts.driver_cuda) if facts.driver_cuda else "unknown"
    wanted = _wheel_cuda(facts)
    text = f"NVIDIA {facts.driver}, runs CUDA up to {newest}"
    if wanted and facts.driver_cuda and wanted > facts.driver_cuda[0]:
        fix = f"{wheel(newest)}, or update the driver"
        yield Check("driver", "problem", f"{text}; the TensorRT installed is for CUDA {wanted}", fix)
    else:
        yield Check("driver", "ok", text)


def _library_paths(facts: SystemInfo) -> Iterator[Check]:
    """Check for several versions of one library on LD_LIBRARY_PATH, of which the loader takes the first."""
    for family in FAMILIES:
        found = [library for library in facts.libraries if library.family == family]
        if not found:
            continue
        listed = "; ".join(f"{_dotted(x.version) or 'version unknown'} {x.path} ({x.place})" for x in found)
        on_path = [library for library in found if library.place == "LD_LIBRARY_PATH" and library.version]
        better = _better(family, on_path, facts)
        if better is not None:
            first = on_path[0]
            yield Check(
                family,
                "problem",
                f"{_dotted(first.version)} in {_folder(first)} comes before {_dotted(better.version)} in "
                f"{_folder(better)}; all, in search order: {listed}",
                f"export LD_LIBRARY_PATH={_reordered(facts.ld_library_path, _folder(better))}",
            )
        elif len({library.version[:1] for library in found}) > 1:
            yield Check(family, "warning", f"several major versions, in search order: {listed}", _one_of(family))
        else:
            yield Check(family, "ok", listed)


def _better(family: str, on_path: list[Library], facts: SystemInfo) -> Library | None:
    """Return the library that should come first on the path but doesn't: that of TensorRT's CUDA, else the newest."""
    if len(on_path) < 2:
        return None
    wanted = _wanted_version(family, facts)
    fitting = [library for library in on_path if wanted and library.version[: len(wanted)] == wanted]
    best = fitting[0] if fitting else max(on_path, key=lambda library: library.version)
    return best if best.version[:2] != on_path[0].version[:2] else None


def _wanted_version(family: str, facts: SystemInfo) -> tuple[int, ...]:
    """Return the first version numbers that the installed TensorRT, or else torch, needs; empty if unknown."""
    if family == "libnvinfer":
        version = str(facts.probes.get("tensorrt", {}).get("version", ""))
        return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if family not in _CUDA_FAMILIES:
        return ()
    wheel = _wheel_cuda(facts)
    if wheel:
        return (wheel,)
    return _numbers(str(facts.probes.get("torch", {}).get("cuda") or ""))[:2]


def _one_of(family: str) -> str:
    return f"nothing, while it works; if an engine fails to load, remove all {family} but one"


def _reordered(path: tuple[str, ...], first: str) -> str:
    rest = [part for part in path if part.rstrip("/") != first.rstrip("/")]
    return ":".join(dict.fromkeys((first, *rest)))


def _mapped(facts: SystemInfo) -> Iterator[Check]:
    """Report which libraries an import of TensorRT and pycuda maps."""
    for package in ("tensorrt", "pycuda"):
        maps = facts.probes.get(package, {}).get("maps", [])
        used = [path for path in maps if any(f"/{family}.so" in path for family in FAMILIES)]
        if used:
            yield Check(f"mapped by {package}", "ok", ", ".join(used))


def _tensorrt(facts: SystemInfo) -> Iterator[Check]:
    level: Level = "problem" if facts.sees_nvidia else "ok"
    fix = _wheel_for(facts)
    probe = facts.probes.get("tensorrt")
    if probe is None:
        found = "not installed" if facts.sees_nvidia else "not installed, and not needed without an NVIDIA GPU"
        yield Check("TensorRT", level, found, fix if facts.sees_nvidia else "")
        return
    installs = [
        name for name in facts.packages if name in ("tensorrt", "tensorrt-cu11", "tensorrt-cu12", "tensorrt-cu13")
    ]
    versions = {facts.packages[name] for name in installs}
    tags = {name for name in installs if name != "tensorrt"}
    if len(versions) > 1 or len(tags) > 1:
        listed = ", ".join(f"{name} {facts.packages[name]}" for name in installs)
        yield Check(
            "TensorRT packages", "problem", f"two installs: {listed}", f"pip uninstall {' '.join(installs)}; {fix}"
        )
    if "error" in probe:
        reason = str(probe["error"])
        yield Check("TensorRT", "problem", f"installed, and doesn't import: {reason}", _import_fix(reason, fix))
        return
    package, library = str(probe.get("version")), _library_version(probe.get("library"))
    if library and _numbers(package)[: len(library)] != library:
        found = f"the package is {package}, the library that it maps {_dotted(library)}"
        yield Check("TensorRT", "problem", found, "remove the other libnvinfer from LD_LIBRARY_PATH")
    else:
        yield Check("TensorRT", "ok", package)


def _library_version(number: object) -> tuple[int, ...]:
    """Return the version that ``getInferLibVersion`` encodes: 8600 is 8.6.0, 101600 is 10.16.0."""
    if not isinstance(number, int) or number <= 0:
        return ()
    if number >= 100_000:
        return (number // 10_000, number % 10_000 // 100, number % 100)
    return (number // 1000, number % 1000 // 100, number % 100)


def _import_fix(reason: str, fix: str) -> str:
    if "libnvinfer" in reason or "libcud" in reason or "libcublas" in reason:
        return f"put the folder of the missing library on LD_LIBRARY_PATH, or install the wheels with it: {fix}"
    return f"reinstall it: {fix}"


def _wheel_for(facts: SystemInfo) -> str:
    """Return the TensorRT wheel for this driver, and the packages that it needs."""
    if facts.driver_cuda is None:
        return wheel(None)
    return f"{wheel(_dotted(facts.driver_cuda))} pycuda cuda-bindings nvidia-ml-py"


def _wheel_cuda(facts: SystemInfo) -> int | None:
    """Return the CUDA major version of the TensorRT wheel, from the name of its package."""
    majors = [int(name[-2:]) for name in facts.packages if name.startswith("tensorrt-cu") and name[-2:].isdigit()]
    return majors[0] if len(set(majors)) == 1 else None


def _pycuda(facts: SystemInfo) -> Iterator[Check]:
    probe = facts.probes.get("pycuda")
    needed = facts.sees_nvidia
    if probe is None:
        if needed:
            yield Check("pycuda", "problem", "not installed", "pip install 'trtbatch[tensorrt]'")
    elif "error" in probe:
        fix = (
            "install the NVIDIA driver"
            if "libcuda.so" in str(probe["error"])
            else "pip install --force-reinstall pycuda"
        )
        yield Check(
            "pycuda", "problem" if needed else "warning", f"installed, and doesn't import: {probe['error']}", fix
        )
    else:
        built = tuple(int(part) for part in probe.get("cuda", ())[:2])
        found = f"{facts.packages.get('pycuda', '')} built with CUDA {_dotted(built)}".strip()
        if facts.driver_cuda and built[:1] > facts.driver_cuda[:1]:
            fix = f"pip install --force-reinstall --no-binary pycuda pycuda, with a CUDA {facts.driver_cuda[0]} nvcc"
            yield Check("pycuda", "problem", f"{found}; the driver runs up to {_dotted(facts.driver_cuda)}", fix)
        else:
            yield Check("pycuda", "ok", found)
    if needed and (probe is None or "error" in probe):
        for name, path in (("nvcc", facts.nvcc), ("cuda.h", facts.cuda_h)):
            if path is None:
                fix = "install the CUDA toolkit, or set CUDA_HOME"
                yield Check(name, "problem", "not found; pycuda is compiled with it when it is installed", fix)


def _torch(facts: SystemInfo) -> Iterator[Check]:
    probe = facts.probes.get("torch")
    if probe is None:
        yield Check("torch", "ok", "not installed; only export needs it")
        return
    if "error" in probe:
        fix = "pip install --force-reinstall torch torchvision"
        yield Check("torch", "problem", f"installed, and doesn't import: {probe['error']}", fix)
        return
    cuda, wheel = probe.get("cuda"), _wheel_cuda(facts)
    found = f"{probe.get('version')}, CUDA {cuda or 'none'}"
    if cuda and wheel and _numbers(str(cuda))[:1] != (wheel,) and "tensorrt" in facts.probes:
        text = f"{found}; TensorRT is for CUDA {wheel}: two CUDA runtimes in one process"
        yield Check("torch", "warning", text, f"export in another environment, or install torch for CUDA {wheel}")
    else:
        yield Check("torch", "ok", found)


def _packages(facts: SystemInfo) -> Iterator[Check]:
    for name in ("torchvision", "onnx", "onnxruntime", "numpy"):
        version = facts.packages.get(name) or (name == "onnxruntime" and facts.packages.get("onnxruntime-gpu"))
        if version:
            yield Check(name, "ok", str(version))
        elif name != "torchvision":
            yield Check(name, "problem", "not installed", f"pip install {name}")
    if "onnxruntime" in facts.packages and "onnxruntime-gpu" in facts.packages:
        found = "onnxruntime and onnxruntime-gpu write to the same folder"
        yield Check("onnxruntime", "warning", found, "pip uninstall one, then reinstall the other")


def _tools(facts: SystemInfo) -> Iterator[Check]:
    if facts.sees_nvidia:
        yield Check("trtexec", "ok", facts.trtexec or "not on the PATH; nothing here needs it")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def _folder(library: Library) -> str:
    return library.path.rpartition("/")[0]
