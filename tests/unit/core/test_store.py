from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trtbatch.cli.wording import as_typed
from trtbatch.core import hints, sidecar, store
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import (
    Artifact,
    BuildRecord,
    Conversion,
    EngineRecord,
    ModelRecord,
    PrecisionRecord,
    Sidecar,
    SourceRecord,
)
from trtbatch.core.tensors import BATCH_AXIS, TensorSpec
from trtbatch.errors import ArtifactError, UsageError
from trtbatch.util import files


def published(target: Path, content: bytes = b"engine", **changes: object) -> Artifact:
    """An artifact with a sidecar, published the way the stages do."""
    with files.scratch(target) as folder:
        made = folder / target.name
        made.write_bytes(content)
        sidecar = Sidecar(
            kind="engine",
            artifact=store.record_file(made),
            inputs=(TensorSpec("input", "float32", (BATCH_AXIS, 3, 8, 8)),),
            outputs=(TensorSpec("output", "float32", (BATCH_AXIS, 5)),),
            model=ModelRecord("m", "random (seed 0)"),
            engine=EngineRecord("onnxruntime", (Profile(1, 4, 8),)),
            build=BuildRecord(created=store.now()),
        )
        return store.publish(made, target, replace(sidecar, **changes))  # type: ignore[arg-type]


def test_a_published_artifact_is_loaded_as_it_was(tmp_path: Path) -> None:
    made = published(tmp_path / "engines" / "m.engine")
    loaded = store.load(made.path, "engine")
    assert loaded == made
    store.check_file(loaded)
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["m.engine", "m.engine.json"]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.scratch(tmp_path / "engines" / "m.engine") as folder:  # noqa: PT012
        (folder / "m.engine").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list((tmp_path / "engines").iterdir()) == []


def test_an_atomic_file_replaces_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_file(target) as made:  # noqa: PT012
        made.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with files.atomic_file(target) as made:
        made.write_text("new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), files.scratch(tmp_path):
        pass


def test_the_newest_that_fits_is_taken(tmp_path: Path) -> None:
    published(tmp_path / "a.engine")
    published(tmp_path / "b.engine", engine=EngineRecord("onnxruntime", (Profile(1, 1, 1),)))
    published(tmp_path / "c.engine", engine=EngineRecord("tensorrt", (Profile(1, 4, 8),)))
    (tmp_path / "d.engine.json").write_text("damaged")
    (tmp_path / "d.engine").write_text("")

    def newest(backend: str) -> str:
        return store.newest("engine", lambda sidecar: sidecar.engine.backend == backend, "engine", tmp_path).path.name

    assert newest("onnxruntime") == "b.engine"
    assert newest("tensorrt") == "c.engine"
    with pytest.raises(ArtifactError) as caught:
        store.newest("onnx", lambda sidecar: True, "ONNX file", tmp_path)
    assert "no ONNX file" in caught.value.problem
    assert "trtbatch export resnet18 --dynamic" in as_typed(caught.value.fix)


def test_a_missing_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        store.newest("engine", lambda sidecar: True, "engine", tmp_path / "engines")
    assert "trtbatch build" in as_typed(caught.value.fix)


def test_truncated_changed_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    made = published(tmp_path / "m.engine", b"0123456789")
    for content, told in (
        (b"01234", "is truncated: 5 bytes, 10"),
        (b"0123456789+", "changed"),
        (b"x123456789", "SHA-256"),
    ):
        made.path.write_bytes(content)
        with pytest.raises(ArtifactError, match=told):
            store.check_file(made)
    made.path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        store.check_file(made)


def test_an_artifact_without_sidecar_says_so(tmp_path: Path) -> None:
    made = published(tmp_path / "m.engine")
    files.sidecar_path(made.path).unlink()
    with pytest.raises(ArtifactError, match=r"no sidecar m\.engine\.json"):
        store.load(made.path, "engine")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"kind": "engine"}', "\x00", "[" * 100_000, '{"kind": "engine", "artifact": 3}'],
)
def test_a_damaged_sidecar_is_an_error_with_a_fix(tmp_path: Path, text: str) -> None:
    made = published(tmp_path / "m.engine")
    files.sidecar_path(made.path).write_text(text)
    with pytest.raises(ArtifactError) as caught:
        store.load(made.path, "engine")
    assert "damaged" in caught.value.problem
    assert "trtbatch build" in as_typed(caught.value.fix)


def test_impossible_values_in_a_sidecar_are_damage(tmp_path: Path) -> None:
    made = published(tmp_path / "m.engine")
    beside = files.sidecar_path(made.path)
    data = json.loads(beside.read_text())
    for key, value in (
        ("engine", data["engine"] | {"profiles": [{"min": 8, "opt": 4, "max": 1}]}),
        ("inputs", [{"name": "i", "dtype": "float32", "shape": [], "batch_axis": 2}]),
    ):
        beside.write_text(json.dumps(data | {key: value}))
        with pytest.raises(ArtifactError, match="damaged"):
            store.load(made.path, "engine")


def test_a_newer_format_asks_for_a_newer_program(tmp_path: Path) -> None:
    made = published(tmp_path / "m.engine", format_version=99)
    with pytest.raises(ArtifactError, match="format 99"):
        store.load(made.path, "engine")


def test_the_kind_is_checked(tmp_path: Path) -> None:
    made = published(tmp_path / "m.engine")
    with pytest.raises(ArtifactError, match="is an engine, not an ONNX file"):
        store.load(made.path, "onnx")


def test_shapes_of_a_spec() -> None:
    spec = TensorSpec("x", "float32", (3, BATCH_AXIS, "width"), batch_axis=1)
    assert spec.at(5) == (3, 5, "width")
    assert spec.fixed_batch is None
    assert replace(spec, shape=(3, 4, 8)).fixed_batch == 4
    assert replace(spec, batch_axis=None).at(5) == spec.shape
    with pytest.raises(ValueError, match="no axis 3"):
        replace(spec, batch_axis=3)


def test_a_sidecar_in_an_artifacts_place_names_the_artifact(tmp_path: Path) -> None:
    engine = published(tmp_path / "m.engine")
    model = published(tmp_path / "m.onnx", kind="onnx")
    for kind, made, fix in (
        ("engine", engine, f"name the file next to it: {engine.path}"),
        ("engine", model, f"make an engine of it: trtbatch build {model.path}"),
        ("onnx", model, f"name the file next to it: {model.path}"),
        ("onnx", engine, "name the ONNX file that it was made from"),
    ):
        with pytest.raises(ArtifactError) as caught:
            store.load(files.sidecar_path(made.path), kind)  # type: ignore[arg-type]
        assert f"{made.path.name}.json is the sidecar of {made.path.name}, not " in caught.value.problem
        assert as_typed(caught.value.fix) == fix


def test_another_json_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"result\.json is a JSON file, not an engine; name an engine"):
        store.load(tmp_path / "result.json", "engine")


def test_an_engine_in_an_onnx_files_place_names_what_it_was_made_from(tmp_path: Path) -> None:
    made = published(tmp_path / "engines" / "m.engine", source=SourceRecord("m.onnx", "0", 1, "../m.onnx"))
    with pytest.raises(ArtifactError) as caught:
        store.load(made.path, "onnx")
    assert caught.value.problem == f"{made.path} is an engine, not an ONNX file"
    assert caught.value.fix.endswith("made from: " + str(tmp_path / "engines" / ".." / "m.onnx"))


def test_a_damaged_engine_names_the_command_that_builds_it(tmp_path: Path) -> None:
    fixed = TensorSpec("input", "float32", (4, 3, 8, 8))
    int8 = Conversion("int8", "fp32", "fp16", ("Conv", "/head"), "photos", "0", "entropy")
    beside, above = (SourceRecord("m.onnx", "0", 1, path) for path in ("m.onnx", "../m.onnx"))
    one, static = (EngineRecord("tensorrt", (Profile(1, 4, 8),)), EngineRecord("onnxruntime", (Profile(4, 4, 4),)))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "trtbatch build ONNX_FILE --profile 1:4:8 --backend onnxruntime"),
        (
            {"source": above, "engine": EngineRecord("tensorrt", (Profile(1, 1, 2), Profile(1, 8, 8)))},
            f"trtbatch build {tmp_path / 'm.onnx'} --profile 1:1:2 --profile 1:8:8",
        ),
        (
            {"source": beside, "inputs": (fixed,), "engine": static, "precision": PrecisionRecord("fp16")},
            f"trtbatch build {tmp_path / 'a b/m.onnx'} --static 4 --precision fp16 --backend onnxruntime",
        ),
        (
            {
                "engine": one,
                "precision": PrecisionRecord("default"),
                "conversion": int8,
                "build": BuildRecord(options={"aux_streams": 0}),
            },
            "trtbatch build ONNX_FILE --profile 1:4:8 --precision int8 --io-precision fp16 --keep-fp32 Conv "
            "--keep-fp32 /head --calibration SAMPLES --aux-streams 0",
        ),
        (
            {
                "kind": "preprocessor",
                "source": SourceRecord("m.pre.onnx", "0", 1, "m.pre.onnx"),
                "engine": EngineRecord("tensorrt"),
            },
            f"trtbatch build {tmp_path / 'a b/m.pre.onnx'}",
        ),
    ]
    for changes, words in cases:
        made = published(tmp_path / "a b" / "m.engine", **changes)
        made.path.write_bytes(b"ENGINE")
        with pytest.raises(ArtifactError, match="SHA-256 differs") as caught:
            store.check_file(made)
        told = as_typed(caught.value.fix).removeprefix("run: ")
        assert shlex.split(told) == [*shlex.split(words.replace("a b", "'a b'")), "--output", str(made.path)]


def test_files_that_are_no_artifacts_are_called_what_they_are(tmp_path: Path) -> None:
    for name, what, fix in (
        ("x.jpg", "an image", "name an engine"),
        ("X.PNG", "an image", "name an engine"),
        ("x.csv", "a table", "name an engine"),
        ("x.npy", "a file of arrays", "name an engine"),
        ("x.pth", "a file of torch weights", f"trtbatch export MODEL --dynamic --weights {tmp_path / 'x.pth'}"),
        ("x.pt2", "a program of torch", f"trtbatch export {tmp_path / 'x.pt2'} --dynamic"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ArtifactError) as caught:
            store.load(tmp_path / name, "engine")
        assert caught.value.problem == f"{tmp_path / name} is {what}, not an engine"
        assert as_typed(caught.value.fix).endswith(fix)


def test_of_a_folder_the_files_in_it_are_named(tmp_path: Path) -> None:
    def fix(kind: sidecar.Kind | None) -> str:
        with pytest.raises(ArtifactError, match=f"{tmp_path} is a folder, not an") as caught:
            hints.refuse_other_file(tmp_path, kind)
        return as_typed(caught.value.fix)

    assert fix("engine") == "name an engine; there is none in it"
    for name in ("a.onnx", "a.engine", "a.ort.onnx", "a.engine.json", "b.onnx", "c.onnx", "a.pre.onnx", "x.jpg"):
        (tmp_path / name).touch()
    assert fix("engine") == f"name a file in it: {tmp_path / 'a.engine'}, {tmp_path / 'a.ort.onnx'}"
    assert fix("onnx") == f"name a file in it: {', '.join(str(tmp_path / f'{name}.onnx') for name in 'abc')}"
    assert fix(None).endswith(f"{tmp_path / 'a.pre.onnx'} and 2 more")


def test_an_engine_of_the_other_backend_is_named(cli: Callable[..., Any], engine: Path) -> None:
    done = cli("infer", engine.with_name("small.engine"), "--input", "random")
    assert done.exit_code == 1
    assert "small.engine doesn't exist" in done.output
    assert f"name the one that is there: {engine}" in " ".join(done.output.split())


def test_an_engines_input_has_a_size_on_every_axis_but_the_batch(cli: Callable[..., Any], engine: Path) -> None:
    beside = files.sidecar_path(engine)
    data = json.loads(beside.read_text())
    data["inputs"][0]["shape"][1] = ""
    beside.write_text(json.dumps(data))
    done = cli("infer", engine, "--input", "random")
    assert done.exit_code == 1
    assert "is damaged: axis 1 of input 'input' has no size ('')" in done.output
