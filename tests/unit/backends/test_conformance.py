"""Every use of TensorRT in our code, against the real bindings of four releases; no GPU, no TensorRT needed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import conformance
from tests.support.conformance import Inventory, Use, complaint
from tests.support.processes import ROOT

PACKAGE = ROOT / "trtbatch" / "backends" / "tensorrt"

RELEASES = {
    "8.6": "tensorrt_bindings==8.6.1",
    "10.0": "tensorrt_cu12_bindings==10.0.1",
    "10.16": "tensorrt_cu13_bindings==10.16.1.11",
    "11": "tensorrt_cu13_bindings>=11",
}

LEAN = {"10.16 lean": "tensorrt_lean_cu13_bindings==10.16.1.11"}
"""The runtime alone: it opens and runs engines."""

Stock = Callable[[str], Inventory]
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A folder with a release's bindings in ``wheel/`` and stubs of the libraries next to it, made once."""
    if not sys.platform.startswith("linux") or not all(map(shutil.which, ("gcc", "nm", "readelf"))):
        pytest.skip("needs Linux with gcc and binutils, to compile link stubs")
    kept: dict[str, Path] = {}

    def take(release: str) -> Path:
        if release not in kept:
            folder = tmp_path_factory.mktemp(release)
            missing = conformance.download((RELEASES | LEAN)[release], folder / "wheel")
            if missing is not None:
                pytest.skip(f"TensorRT {release} can't be had for this Python: {missing}")
            bindings = next((folder / "wheel").rglob("tensorrt*.so"))
            conformance.stub_libraries(bindings, folder)
            kept[release] = folder
        return kept[release]

    return take


@pytest.fixture(scope="module")
def stock(folders: Folders) -> Stock:
    """The inventory of a release's bindings, taken once."""
    kept: dict[str, Inventory] = {}

    def take(release: str) -> Inventory:
        if release not in kept:
            module = "tensorrt_lean_bindings" if release in LEAN else "tensorrt_bindings"
            version, kept[release] = conformance.take_stock(folders(release) / "wheel", folders(release), module)
            assert version.startswith(release.split()[0])
        return kept[release]

    return take


def all_uses(stock: Stock) -> list[Use]:
    """Return types differ between releases only where a class was renamed: the newest's docstrings serve."""
    return conformance.uses(PACKAGE, stock("10.16"))


BUILDERS = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "NetworkDefinitionCreationFlag", "ILayer", "ITimingCache"),
    *("OnnxParser", "ParserError"),
)


def runs_engines(use: Use) -> bool:
    """Whether a use is in what opens or runs an engine: not of a builder's classes, and not where engines are built."""
    names = use.owner.removeprefix("class:"), use.member
    return not set(BUILDERS).intersection(names) and not use.where.startswith(("builder.py", "worker.py"))


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_every_use_is_there_or_stands_behind_a_question(stock: Stock, release: str) -> None:
    inventory = stock(release)
    complaints = [text for use in all_uses(stock) if (text := complaint(use, inventory)) is not None]
    assert not complaints, "\n".join(complaints)


@pytest.mark.slow
@pytest.mark.parametrize("release", LEAN)
def test_the_lean_runtime_has_what_opens_and_runs_an_engine(stock: Stock, release: str) -> None:
    inventory = stock(release)
    running = [use for use in all_uses(stock) if runs_engines(use)]
    seen = {(use.owner.removeprefix("class:"), use.member) for use in running}
    assert seen >= {
        ("", "Runtime"),
        ("", "TensorLocation"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_format_desc"),
        ("IExecutionContext", "execute_v2"),
    }, sorted(seen)
    complaints = [text for use in running if (text := complaint(use, inventory)) is not None]
    assert not complaints, "\n".join(complaints)


def test_what_is_used_comes_from_the_code(stock: Stock) -> None:
    """The reader sees through fields, parameters and return values; what it must have seen, at the least."""
    seen = {(use.owner.removeprefix("class:"), use.member) for use in all_uses(stock)}
    assert len(seen) > 45, sorted(seen)
    assert seen >= {
        ("", "Builder"),
        ("", "OnnxParser"),
        ("Builder", "create_network"),
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "add_optimization_profile"),
        ("IOptimizationProfile", "set_shape"),
        ("ITimingCache", "serialize"),
        ("OnnxParser", "parse_from_file"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "get_tensor_name"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "execute_v2"),
        ("IExecutionContext", "set_output_allocator"),
        ("EngineInspector", "get_engine_information"),
    }, sorted(seen)


def test_a_use_that_a_release_lacks_is_found(stock: Stock, tmp_path: Path) -> None:
    """The check can fail: the builder flag that 11 lost, a method that never was, a call with too few arguments."""
    for name in conformance.FILES:
        (tmp_path / name).write_text("")
    (tmp_path / "compat.py").write_text(
        "def old(trt, config: BuilderConfig, trt_: int, engine: CudaEngine) -> None:\n"
        "    config.set_flag()\n"
        "    engine.get_binding_index('x')\n"
        "    engine.never_was()\n"
        "    if hasattr(engine, 'device_memory_size'):\n"
        "        engine.device_memory_size\n"
        "def flag(trt: ModuleType) -> None:\n"
        "    trt.BuilderFlag.FP16\n"
    )
    found = conformance.uses(tmp_path, stock("10.16"))
    told = "\n".join(filter(None, (complaint(use, stock("11")) for use in found)))
    for words in ("set_flag", "get_binding_index", "never_was", "BuilderFlag.FP16"):
        assert words in told, told
    assert "device_memory_size" not in told
    assert "BuilderFlag.FP16" not in "\n".join(filter(None, (complaint(use, stock("10.16")) for use in found)))


def test_every_name_that_is_asked_for_exists_in_some_release(stock: Stock) -> None:
    """A question about a name that no release has would be a typing error that always answers no."""
    known = {name for release in RELEASES for members in stock(release).values() for name in members}
    asked = conformance.all_questions(PACKAGE)
    assert {"STRONGLY_TYPED", "FP16", "VERSION_COMPATIBLE", "device_memory_size_v2", "OnnxParserRefitter"} <= asked
    assert asked <= known, asked - known


ANSWERS = """
from trtbatch.backends.base import BuilderOptions, fields
from trtbatch.backends.tensorrt import compat
names = [field.name for field in fields(BuilderOptions)]
print(json.dumps({
    "strongly typed": compat.strongly_typed(trt),
    "lacks": [name for name in names if compat.missing_option(trt, name)],
    "flags": [name for name in compat._TYPE_FLAGS.values() if hasattr(trt.BuilderFlag, name)],
}))
"""

EXPECTED = {
    "8.6": {"strongly typed": False, "lacks": ["strip_weights", "weight_streaming"], "flags": ["FP16", "INT8", "FP8"]},
    "10.0": {"strongly typed": True, "lacks": [], "flags": ["FP16", "BF16", "INT8", "FP8"]},
    "10.16": {"strongly typed": True, "lacks": [], "flags": ["FP16", "BF16", "INT8", "FP8"]},
    "11": {"strongly typed": True, "lacks": [], "flags": []},
}


@pytest.mark.parametrize("release", RELEASES)
def test_what_each_release_is_found_to_offer(folders: Folders, release: str) -> None:
    folder = folders(release)
    assert conformance.ask(ANSWERS, folder / "wheel", folder) == EXPECTED[release]


REFUSALS = """
from trtbatch.backends.tensorrt.builder import refuse_precision
from trtbatch.errors import PrecisionError
from trtbatch.quantization.precision import PRECISIONS
def told(precision, capability):
    try:
        refuse_precision(trt, precision, {"gpu": "GPU", "compute_capability": capability, "driver_cuda": "12.4"})
    except PrecisionError as error:
        return error.problem + " | " + error.fix
    return ""
print(json.dumps({f"{name} on {capability}": told(name, capability) for name in PRECISIONS
                  for capability in ("6.0", "7.5", "8.0", "9.0")}))
"""


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_release_or_a_gpu_cannot_compute_in_is_refused(folders: Folders, release: str) -> None:
    folder = folders(release)
    told = conformance.ask(REFUSALS, folder / "wheel", folder)
    assert isinstance(told, dict)
    for name in ("fp32", "tf32", "fp16"):
        assert not any(text for case, text in told.items() if case.startswith(name))
    assert "int8 needs compute capability 6.1; this is a GPU (6.0)" in told["int8 on 6.0"]
    assert not told["int8 on 7.5"]
    if release == "8.6":
        assert "has no bf16 (it reads ONNX up to opset 17; bf16 takes 22)" in told["bf16 on 9.0"]
        assert "has no fp8" in told["fp8 on 9.0"]
        assert "pip install tensorrt-cu12" in told["fp8 on 9.0"]
    elif release == "10.0":
        assert "has no bf16 (it reads ONNX up to opset 20; bf16 takes 22)" in told["bf16 on 9.0"]
        assert "fp8 needs compute capability 8.9; this is a GPU (8.0)" in told["fp8 on 8.0"]
        assert not told["fp8 on 9.0"]
    else:
        assert "bf16 needs compute capability 8.0; this is a GPU (7.5)" in told["bf16 on 7.5"]
        assert not told["bf16 on 8.0"]
        assert not told["fp8 on 9.0"]
