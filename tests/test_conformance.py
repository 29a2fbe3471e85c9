"""Every use of TensorRT in our code, against the real bindings of four releases; no GPU, no TensorRT needed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import conformance
from tests.conformance import Inventory, Use, complaint
from tests.conftest import ROOT

PACKAGE = ROOT / "trtbatch" / "backends" / "tensorrt"

RELEASES = {
    "8.6": "tensorrt_bindings==8.6.1",
    "10.0": "tensorrt_cu12_bindings==10.0.1",
    "10.16": "tensorrt_cu13_bindings==10.16.1.11",
    "11": "tensorrt_cu13_bindings>=11",
}

Stock = Callable[[str], Inventory]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """The inventory of a release's bindings, downloaded once."""
    if not sys.platform.startswith("linux") or not all(map(shutil.which, ("gcc", "nm", "readelf"))):
        pytest.skip("needs Linux with gcc and binutils, to compile link stubs")
    kept: dict[str, Inventory] = {}

    def take(release: str) -> Inventory:
        if release not in kept:
            folder = tmp_path_factory.mktemp(release)
            missing = conformance.download(RELEASES[release], folder / "wheel")
            if missing is not None:
                pytest.skip(f"{RELEASES[release]} can't be had for this Python: {missing}")
            bindings = next((folder / "wheel").rglob("tensorrt*.so"))
            conformance.stub_libraries(bindings, folder)
            version, kept[release] = conformance.take_stock(folder / "wheel", folder)
            assert version.startswith(release)
        return kept[release]

    return take


def all_uses(stock: Stock) -> list[Use]:
    """Return types differ between releases only where a class was renamed: the newest's docstrings serve."""
    return conformance.uses(PACKAGE, stock("10.16"))


@pytest.mark.parametrize("release", RELEASES)
def test_every_use_is_there_or_stands_behind_a_question(stock: Stock, release: str) -> None:
    inventory = stock(release)
    complaints = [text for use in all_uses(stock) if (text := complaint(use, inventory)) is not None]
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
        "def old(trt, config: Any, trt_: int, engine: Any) -> None:\n"
        "    config.set_flag()\n"
        "    engine.get_binding_index('x')\n"
        "    engine.never_was()\n"
        "    if hasattr(engine, 'device_memory_size'):\n"
        "        engine.device_memory_size\n"
        "def flag(trt: Any) -> None:\n"
        "    trt.BuilderFlag.FP16\n"
    )
    found = conformance.uses(tmp_path, stock("10.16"))
    told = "\n".join(filter(None, (complaint(use, stock("11")) for use in found)))
    for words in ("set_flag", "get_binding_index", "never_was", "BuilderFlag.FP16"):
        assert words in told, told
    assert "device_memory_size" not in told
    assert "BuilderFlag.FP16" not in "\n".join(filter(None, (complaint(use, stock("10.16")) for use in found)))
