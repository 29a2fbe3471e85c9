"""Predictors in Ray Data's actors: every row once, whatever dies. One process, two nodes, no GPU."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trtbatch
from scripts.photos import PHOTOS
from tests.support import models
from tests.support.labels import CLASSES, PREPROCESSING
from tests.support.messages import refused
from trtbatch.deployment.rayresults import claim, refuse_taken
from trtbatch.deployment.scale import RayRequest, failure_reason, infer_with_ray
from trtbatch.deployment.store import open_store
from trtbatch.errors import ExecutionError, InputError, UsageError
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.ray import Predictor

pytestmark = pytest.mark.ray

Cli = Callable[..., Any]
MANY = 640


def classes(folder: Path, pictures: list[Any]) -> list[str]:
    """What ONNX Runtime says of Pillow images."""
    scores = OnnxReference(folder / "small.onnx")({"input": np.stack([PREPROCESSING(each) for each in pictures])})
    return [CLASSES[index] for index in scores["output"].argmax(axis=1)]


def pictures(folder: Path, count: int) -> Path:
    """Small JPEGs, each another."""
    target = folder / "pictures"
    target.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (12, 12 + index % 5, 3), np.uint8)
        Image.fromarray(pixels).save(target / f"{index:05}.jpg")
    return target


def objects(values: list[Any]) -> Any:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


# The predictor by itself: no Ray.


def test_photographs_of_any_size_come_back_with_classes(photo_engine: Path, folder: Path, photos: Path) -> None:
    opened = [Image.open(photos / name).convert("RGB") for name in PHOTOS]
    batch = {"image": objects([np.asarray(image) for image in opened]), "path": np.array(PHOTOS)}
    predictor = trtbatch.ray.Predictor(photo_engine)
    found = predictor(batch)
    assert list(found) == ["image", "path", "class", "index", "score", "error"]
    assert found["class"].tolist() == classes(folder, opened)
    assert [CLASSES[index] for index in found["index"]] == found["class"].tolist()
    assert ((found["score"] > 0) & (found["score"] <= 1)).all()
    assert set(found["error"]) == {""}
    predictor.close()
    predictor.close()
    with pytest.raises(UsageError, match="is closed"):
        predictor(batch)


def test_encoded_files_and_those_that_cannot_be_read(photo_engine: Path, folder: Path, photos: Path) -> None:
    files = [(photos / name).read_bytes() for name in PHOTOS[:3]]
    predictor = Predictor(photo_engine, topk=2, drop=["bytes"])
    found = predictor({"bytes": objects([files[0], b"nothing", files[1], None, files[2][:200]])})
    assert "bytes" not in found
    good = classes(folder, [Image.open(io.BytesIO(file)) for file in files[:2]])
    assert found["class"].tolist() == [good[0], "", good[1], "", ""]
    assert found["index"].tolist()[1] == -1
    assert np.isnan(found["score"][1])
    assert [len(row) for row in found["classes"]] == [2, 0, 2, 0, 0]
    assert found["scores"][0][0] == found["score"][0] >= found["scores"][0][1]
    assert found["error"][0] == ""
    assert found["error"][3]
    assert found["error"][1] == "not an image of a format that is read"
    all_bad = predictor({"bytes": objects([b"", b"x"])})
    assert all_bad["class"].tolist() == ["", ""]
    assert all(all_bad["error"])
    assert predictor({"bytes": objects([])})["class"].tolist() == []


def test_ready_inputs_by_name_and_raw_outputs(cli: Cli, folder: Path) -> None:
    models.shuffled(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 4, "--backend", "onnxruntime").exit_code == 0
    a, b = (np.random.default_rng(seed).standard_normal((10, 4)).astype(np.float32) for seed in (1, 2))
    predictor = Predictor(folder / "engines" / "m.ort.onnx", drop=["a", "b"])
    found = predictor({"a": a, "b": objects(list(b)), "error": np.array(["", "bad", *[""] * 8])})
    assert "a" not in found
    assert found["error"][1] == "bad"
    kept = [0, *range(2, 10)]
    np.testing.assert_allclose(found["difference"][kept], (a - b)[kept], rtol=1e-6)
    assert np.isnan(found["difference"][1]).all()
    with pytest.raises(InputError, match=r"rows of column 'a' have shape \(3,\), wanted \(4,\)"):
        predictor({"a": a[:, :3], "b": b})


def test_columns_that_hold_nothing_for_the_model(photo_engine: Path) -> None:
    predictor = Predictor(photo_engine)
    with pytest.raises(InputError, match="the batch has the columns x; give one of: input, pixels, image, bytes"):
        predictor({"x": np.zeros(3)})
    ready = np.zeros((3, 3, 8, 8), np.float32)
    assert predictor({"data": ready})["index"].tolist() == predictor({"input": ready})["index"].tolist()


@pytest.mark.parametrize("name", ["input", "data"])
def test_rows_of_another_type_or_layout_are_refused(photo_engine: Path, name: str) -> None:
    predictor = Predictor(photo_engine)
    with pytest.raises(InputError, match=f"column '{name}': input is uint8 and the engine takes float32") as caught:
        predictor({name: np.full((2, 3, 8, 8), 200, np.uint8)})
    assert all(words in caught.value.fix for words in ("normalise it", "column 'image'", "`fuse_preprocess`"))
    with pytest.raises(InputError, match=r"shape \(8, 8, 3\), wanted \(3, 8, 8\); .*array\.transpose\(0, 3, 1, 2\)"):
        predictor({name: np.zeros((2, 8, 8, 3), np.float32)})


@pytest.mark.parametrize("name", [None, "data", "image", "bytes", "error", "other"])
def test_no_rows_are_no_predictions(photo_engine: Path, name: str | None) -> None:
    """An empty block keeps the columns that others have, so that tables of both can be joined."""
    predictor = Predictor(photo_engine, topk=2)
    batch = {} if name is None else {name: np.array([], dtype=object)}
    found = predictor(batch)
    columns = ("class", "index", "score", "classes", "indices", "scores", "error")
    assert set(found) == {*batch, *columns}
    assert all(len(column) == 0 for column in found.values())
    full = predictor({"data": np.zeros((1, 3, 8, 8), np.float32)})
    assert all(found[column].dtype == full[column].dtype for column in columns)


def test_the_module_needs_no_ray(photo_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    Predictor(photo_engine)({"input": np.zeros((1, 3, 8, 8), np.float32)})


class Absent:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name="ray")


def test_without_ray_the_package_is_named(cli: Cli, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    told = "ray is needed to predict on a cluster, and isn't installed"
    refused(cli("infer", "--ray", "local", "--input", ".", "--output", "out"), 1, told)


@pytest.mark.ray
@pytest.mark.parametrize("topk", [0, -1])
def test_no_classes_cannot_be_given(photo_engine: Path, folder: Path, topk: int) -> None:
    told = f"topk={topk} is no number of classes"
    with pytest.raises(UsageError, match=told):
        Predictor(photo_engine, topk=topk)
    with pytest.raises(UsageError, match=told):
        infer_with_ray(RayRequest(photo_engine, str(folder), str(folder / "out"), topk=topk))


@pytest.mark.ray
@pytest.mark.parametrize("name", ["x.csv", "a/x.JSONL", "x.npz", "x.json", "x.parquet/", "x.npy"])
def test_a_folder_is_not_named_like_a_file(cli: Cli, photo_engine: Path, folder: Path, name: str) -> None:
    source = pictures(folder, 1)
    told = f"--output {name} is the name of a file, and --ray writes a folder"
    refused(cli("infer", "--ray", "local", "--input", source, "--output", name), 2, told, "name a folder: --output ")
    assert sorted(path.name for path in folder.iterdir()) == ["engines", "pictures", "small.onnx"]


def test_random_samples_are_not_for_ray(cli: Cli, photo_engine: Path, folder: Path) -> None:
    line = ("infer", "--ray", "local", "--input", "random", "--output", "out")
    refused(cli(*line), 2, "--input random makes its samples on one machine, without --ray", "leave out --ray")
    assert not (folder / "out").exists()


def test_a_claim_without_results_is_another_jobs_to_take(folder: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow isn't installed")
    target = open_store("out", "--output")
    claim(target, "out", {"format": "parquet"})
    claim(target, "out", {"format": "jsonl"})
    assert json.loads((folder / "out" / "_job.json").read_text()) == {"format": "jsonl"}
    (folder / "out" / "_job.json").write_text("")
    claim(target, "out", {"format": "parquet"})
    (folder / "out" / "part-0.parquet").write_bytes(b"")
    claim(target, "out", {"format": "parquet"})
    for take in (refuse_taken, claim):
        with pytest.raises(UsageError, match=r"`output=\'out\'` holds rows of another format \(parquet\)"):
            take(target, "out", {"format": "jsonl"})
    assert json.loads((folder / "out" / "_job.json").read_text()) == {"format": "parquet"}


@pytest.mark.ray
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    cli: Cli, photo_engine: Path, folder: Path, closed: Callable[[Path], None]
) -> None:
    line = ("infer", "--ray", "local", "--input", pictures(folder, 1), "--output")
    told = "--output /proc/zz can't be written: No such file or directory"
    if Path("/proc/self").exists():
        refused(cli(*line, "/proc/zz"), 1, told, "name a folder that can be made")
    refused(cli(*line, "small.onnx/out"), 1, "--output small.onnx/out can't be written: File exists", "move it")
    (folder / "out").mkdir()
    closed(folder / "out")
    told = "--output out can't be written: Read-only file system"
    refused(cli(*line, "out"), 1, told, "write elsewhere with --output")


@pytest.mark.ray
def test_an_input_that_is_not_there(cli: Cli, photo_engine: Path, folder: Path) -> None:
    line = ("infer", "--ray", "local", "--output", "out", "--input")
    refused(cli(*line, "nodir"), 2, "nodir: no such file or folder", "name a folder or file of images")
    (folder / "nowhere").symlink_to("nodir")
    refused(cli(*line, "nowhere"), 2, "nowhere: no such file or folder")
    refused(cli("verify", "--input", "nodir"), 2, "--input nodir: no such file, folder or match")
    assert not (folder / "out").exists()


@pytest.mark.ray
def test_an_input_that_may_not_be_read(
    cli: Cli, photo_engine: Path, folder: Path, unreadable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "in").mkdir()
    np.save(folder / "in" / "x.npy", np.zeros((1, 3, *PREPROCESSING.crop), np.float32))
    unreadable(folder / "in" / "x.npy")
    line = ("infer", "--ray", "local", "--output", "out", "--input", "in")
    fix = "fix: give yourself the permission to read it"
    refused(cli(*line), 1, "in/x.npy can't be read: Permission denied", fix)

    def walk(root: str, onerror: Callable[[OSError], None], **options: Any) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", root))
        yield from ()

    monkeypatch.setattr("trtbatch.deployment.store.os.walk", walk)
    refused(cli(*line), 1, "in can't be read: Permission denied", fix)


@pytest.mark.ray
def test_arrays_that_do_not_fit_are_told_before_the_work(cli: Cli, photo_engine: Path, folder: Path) -> None:
    (folder / "in").mkdir()
    line = ("infer", "--ray", "local", "--output", "out", "--input", "in")

    def told(array: Any, *words: str) -> None:
        np.save(folder / "in" / "x.npy", array)
        refused(cli(*line), 1, f"{folder}/in/x.npy: ", *words)

    shape = (3, *PREPROCESSING.crop)
    told(np.zeros((2, *shape), np.uint8), "input is uint8 and the engine takes float32", "fix: normalise it to float32")
    told(np.zeros(shape, np.float32), "the engine takes float32 (N, ", "fix: add the batch axis: array[None]")
    told(np.zeros((2, *shape[1:], shape[0]), np.float32), "fix: its layout is NHWC")
    told(np.zeros((2, 5), np.float32), "input is float32 (2, 5)", "fix: save an array of this shape")
    told(np.zeros((2, *shape), "datetime64[s]"), "input is datetime64[s]")
    assert not (folder / "out").exists()


@pytest.mark.ray
def test_columns_that_do_not_fit_are_told_before_the_work(cli: Cli, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    models.negated(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 8, "--backend", "onnxruntime").exit_code == 0
    for column, words in (
        ({"x": [1.0]}, ("x.parquet has the columns x", "fix: wanted: input, or bytes")),
        ({"input": [[1, 2, 3, 4]]}, ("column 'input': input is int64 and the engine takes float32", "fix: cast it")),
        ({"input": [["a"] * 4]}, ("column 'input' holds list<", "fix: give lists of numbers")),
        ({"input": [1.0]}, ("column 'input' holds 1 numbers a row; the engine takes 4", "fix: give each row")),
        ({"input": pa.array([[1.0] * 3], pa.list_(pa.float32(), 3))}, ("holds 3 numbers a row; the engine takes 4",)),
        ({"bytes": [b""]}, ("no preprocessing",)),
    ):
        pq.write_table(pa.table(column), folder / "x.parquet")
        result = cli("infer", "--ray", "local", "--output", "out", "--input", "x.parquet")
        refused(result, 2 if "bytes" in column else 1, *words)
    assert not (folder / "out").exists()


def test_a_bucket_that_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = pytest.importorskip("pyarrow.fs", reason="pyarrow isn't installed")

    class Unreached:
        @staticmethod
        def from_uri(text: str) -> Any:
            raise OSError("When resolving region for bucket 'b': AWS Error NETWORK_CONNECTION " + "of some host " * 30)

    with pytest.raises(UsageError, match="Unrecognized filesystem type") as refusal:
        open_store("nothing://b/y", "--input")
    assert refusal.value.fix == "name a path, s3:// or gs://"
    monkeypatch.setattr(fs, "FileSystem", Unreached)
    with pytest.raises(UsageError, match=r"^--input s3://b/y: When resolving .* of some host of …; ") as refusal:
        open_store("s3://b/y", "--input")
    assert refusal.value.fix == "check the bucket's name, your permissions and the network"


def test_our_own_errors_in_a_task_keep_problem_and_fix() -> None:
    ours = ValueError(
        "a\nTraceback\ntrtbatch.errors.InputError: x is bad; mend it; or else\nray.exceptions.Error: advice"
    )
    assert failure_reason(ours) == ("x is bad", "mend it; or else; what is done stays")
    assert failure_reason(ValueError("a\nKeyError: 'b; c'\nadvice"))[0] == "KeyError: 'b; c'"
    assert failure_reason(ValueError("what"))[0] == "ValueError: what"


# On a cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes in this process, which report nothing to anybody."""
    pytest.importorskip("ray.data", reason="Ray (ray[data]) isn't installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 150_000_000}
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        made.add_node(**node)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        made.shutdown()


class Mortal(Predictor):
    """A predictor of which one dies, once, in the middle of its work."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._left = 5

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._left -= 1
        if self._left == 0:
            try:
                os.close(os.open(os.environ["TRTBATCH_TEST_DEATH"], os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return super().__call__(batch)


class Failing(Predictor):
    """A predictor that gives up after some batches, as an engine does that runs out of memory."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if any("00300" in path for path in batch["path"]):
            raise ExecutionError("the GPU is on fire", "pour water on it")
        return super().__call__(batch)


@pytest.mark.slow
def test_every_row_comes_once_though_an_actor_dies(
    cluster: None, photo_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr("trtbatch.deployment.scale.BLOCK_ROWS", 64)
    source = pictures(folder, MANY)
    (source / "00123.jpg").write_bytes(b"nothing")
    seen: list[tuple[int, int]] = []
    request = RayRequest(
        None, str(source), str(folder / "out"), batch=8, concurrency=2, progress=lambda *pair: seen.append(pair)
    )
    mortal = type("Marked", (Mortal,), {"__module__": __name__, "__init__": _marked(str(folder / "died"))})
    result = infer_with_ray(request, mortal)
    assert (folder / "died").exists(), "one actor has died"
    assert (result.rows, result.failed, result.before) == (MANY, 1, 0)
    assert seen[-1] == (MANY, MANY)
    rows = pq.read_table(folder / "out").to_pylist()
    names = sorted(row["path"] for row in rows)
    assert names == [str(source / f"{index:05}.jpg") for index in range(MANY)]
    by_name = {Path(row["path"]).name: row for row in rows}
    bad = by_name.pop("00123.jpg")
    assert bad["error"] == "not an image of a format that is read"
    assert bad["class"] is None
    assert bad["index"] is None
    some = sorted(by_name)[::17]
    assert [by_name[name]["class"] for name in some] == classes(folder, [Image.open(source / name) for name in some])
    assert len(by_name[some[0]]["classes"]) == 5
    assert by_name[some[0]]["error"] is None
    again = infer_with_ray(request)
    assert (again.rows, again.before) == (0, MANY), "what is done isn't done again"


def _marked(mark: str) -> Any:
    def init(self: Any, *args: Any, **named: Any) -> None:
        os.environ["TRTBATCH_TEST_DEATH"] = mark
        Mortal.__init__(self, *args, **named)

    return init


@pytest.mark.slow
def test_the_next_run_goes_on_where_one_ended(
    cluster: None, photo_engine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtbatch.deployment.scale.BLOCK_ROWS", 50)
    source = pictures(folder, 400)
    request = RayRequest(photo_engine, str(source), str(folder / "out"), batch=8, concurrency=1, format="jsonl", topk=1)
    with pytest.raises(ExecutionError, match=r"^the Ray job failed: the GPU is on fire; ") as failed:
        infer_with_ray(request, Failing)
    assert failed.value.fix == "pour water on it; what is done stays"
    half = sum(len(file.read_text().splitlines()) for file in (folder / "out").glob("*.jsonl"))
    assert 0 < half < 400
    for name in (".part-0.jsonl.0", "._job.json.0"):
        (folder / "out" / name).write_text('{"path": "half a fi')  # as a machine that stops leaves it
    result = infer_with_ray(request)
    assert (result.before, result.rows) == (half, 400 - half)
    rows = [json.loads(line) for file in (folder / "out").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(Path(row["path"]).name for row in rows) == [f"{index:05}.jpg" for index in range(400)]
    assert not list((folder / "out").glob(".*"))
    with pytest.raises(UsageError, match="holds rows of another topk"):
        infer_with_ray(RayRequest(photo_engine, str(source), str(folder / "out"), format="jsonl", topk=2))


@pytest.mark.slow
def test_arrays_and_tables_are_read_row_by_row(
    cluster: None, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("trtbatch.deployment.scale.BLOCK_ROWS", 16)
    models.negated(folder / "m.onnx")
    assert cli("build", "m.onnx", "--max", 8, "--backend", "onnxruntime").exit_code == 0
    rows = np.random.default_rng(0).standard_normal((45, 4)).astype(np.float32)
    for kind in ("npy", "parquet"):
        place = folder / f"in_{kind}"
        place.mkdir()
        if kind == "npy":
            np.save(place / "x.npy", rows)
        else:
            pq.write_table(pa.table({"input": rows.tolist()}), place / "x.parquet", row_group_size=20)
        args = (
            "infer",
            "--ray",
            "auto",
            "--input",
            place.as_uri(),
            "--output",
            f"out_{kind}",
            "--batch",
            8,
            "--topk",
            1,
        )
        result = cli(*args)
        assert result.exit_code == 0, result.output
        found = pq.read_table(folder / f"out_{kind}").to_pylist()
        found.sort(key=lambda row: int(row["path"].split("[")[1][:-1]))
        assert [row["path"] for row in found] == [f"{place}/x.{kind}[{index}]" for index in range(45)]
        expected = (-rows).astype(np.float64)
        best = [row["index"] for row in found]
        assert best == expected.argmax(axis=1).tolist()


@pytest.mark.slow
def test_names_that_are_not_utf8_and_errors_that_are_told_again(
    cluster: None, cli: Cli, photo_engine: Path, folder: Path
) -> None:
    import pyarrow.parquet as pq

    source = pictures(folder, 3)
    (source / "nowhere.jpg").symlink_to("no-such-file.jpg")
    (source / "text.jpg").write_text("no photograph")
    (source / "sub").mkdir()
    try:
        (source / "00000.jpg").rename(os.fsdecode(os.fsencode(source) + b"/sub/gr\xfcn.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    names = ["00001.jpg", "00002.jpg", "nowhere.jpg", "sub/gr\udcfcn.jpg", "text.jpg"]
    good = [0, 1, 3]
    line = ("infer", "--ray", "auto", "--input", source, "--output", "out")
    for predicted, before in ((5, 0), (0, 5)):
        done = cli(*line)
        assert done.exit_code == 1, done.output
        assert f"{predicted} rows predicted, {before} were there" in done.output
        assert "2 of 5 rows have an error" in done.output
    rows = sorted(pq.read_table(folder / "out").to_pylist(), key=lambda row: str(row["path"]))
    assert [row["path"] for row in rows] == [f"{source}/{name}".replace("\udcfc", r"\xfc") for name in names]
    assert [index for index, row in enumerate(rows) if row["error"] is None] == good
    opened = [Image.open(source / names[index]) for index in good]
    assert [rows[index]["class"] for index in good] == classes(folder, opened)
    refused(cli(*line[:5], "--output", "out\udcff"), 2, r"--output 'out\xff': pyarrow takes names in UTF-8 only")


@pytest.mark.slow
def test_users_own_pipeline(cluster: None, photo_engine: Path, folder: Path) -> None:
    import ray

    source = pictures(folder, 40)
    ds = ray.data.read_images(str(source), include_paths=True)
    ds = ds.map_batches(
        trtbatch.ray.Predictor,
        fn_constructor_kwargs={"engine": str(photo_engine)},
        batch_size=32,
        concurrency=1,
    )
    rows = {Path(row["path"]).name: row["class"] for row in ds.take_all()}
    assert len(rows) == 40
    assert list(rows.values()) == classes(folder, [Image.open(source / name) for name in rows])


@pytest.mark.ray
def test_requests_that_cannot_be_carried_out(cli: Cli, photo_engine: Path, folder: Path) -> None:
    base = ("infer", "--ray", "auto", "--output", "out")
    refused(cli(*base, "--input", "nowhere"), 2, "no such file or folder")
    refused(cli(*base, "--input", "ftp://x/y"), 2, "--input ftp://x/y")
    refused(cli(*base, "--input", "engines", "--trace", "t.json"), 2, "--trace")
    refused(cli("infer", "--ray", "auto", "--input", "engines"), 2, "--output")
    refused(cli("infer", "--input", "random", "--concurrency", 2), 2, "--concurrency")
    (folder / "empty").mkdir()
    refused(cli(*base, "--input", "empty"), 1, "holds no images")
    source = pictures(folder, 2)
    np.save(source / "x.npy", np.zeros(3))
    refused(cli(*base, "--input", source), 2, "holds images and npy")
    (source / "x.npy").unlink()
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "x.parquet").write_bytes(b"")
    refused(cli(*base, "--input", source), 2, "holds files of something else")
