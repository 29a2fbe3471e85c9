"""Resize, crop and normalize an image in a separate network, which any backend runs in front of the model.

The network takes one image ``(H, W, 3)`` uint8 and its two matrices (:mod:`trtbatch.images.resample`), and makes one
sample of the model's input. It differs from Pillow by at most 1 of 255, because it does not round between the two
products. Pillow does, which moves a result by at most half the sum of a line's absolute coefficients: 0.5 under a
bilinear filter, 0.64 under bicubic, 0.79 under lanczos. Both results are then rounded, and two numbers less than 1
apart round to the same level or to neighbors. Rounding in between as well makes 99.9 % of the pixels equal to Pillow's
rather than 85 to 98 %, but float32 decides a tie otherwise now and then, and results up to 2 off were seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trtbatch.backends import open_engine
from trtbatch.core import hints, store
from trtbatch.core.preprocessing import Preprocessing
from trtbatch.core.readers import image_input
from trtbatch.core.sidecar import Artifact, FileRecord, Sidecar
from trtbatch.core.store import ENGINES
from trtbatch.core.tensors import TensorSpec
from trtbatch.errors import ArtifactError, ExportError, InputError, UsageError
from trtbatch.images.resample import matrices, rows_first
from trtbatch.onnx_graph.run import OnnxReference
from trtbatch.util import files, optional
from trtbatch.util.log import note
from trtbatch.util.serialization import RecordError, decode, encode

if TYPE_CHECKING:
    from trtbatch.backends.tensorrt.preprocess import TensorRTPreprocessor

__all__ = [
    "KEY",
    "MAX_SIZE",
    "OUTPUT",
    "SUFFIX",
    "OnnxPreprocessor",
    "PreprocessorRecord",
    "build_graph",
    "describe",
    "engine_record",
    "export_preprocessor",
    "find_difference",
    "open_preprocessor",
    "pixels_of",
    "read_record",
]

Array = NDArray[Any]
Pixels = NDArray[np.uint8]

SUFFIX = ".pre.onnx"

OUTPUT = "sample"

KEY = "trtbatch.preprocessor"
"""Key of the record in the ONNX file's metadata."""

MAX_SIZE = 4096
"""Rows and columns of the largest image, unless asked otherwise."""

OPSET, _IR_VERSION = 17, 8
"""The newest that TensorRT 8.6 reads."""

FORMAT_VERSION = 4

_OVERSHOOTING = ("bicubic", "lanczos")
"""Filters with negative weights: their results between the passes are clipped."""

_TRIED = ((1, 1), (2, 7), (90, 60), (224, 224), (375, 500), (480, 360), (601, 1200))
"""Heights and widths of the images that a new preprocessor is compared with Pillow on."""

_LIMIT = 1.1
"""Largest difference from Pillow, in units of 1/255: one level, and what float16 rounds."""


@dataclass(frozen=True)
class PreprocessorRecord:
    """Describe a preprocessor; the ONNX file keeps this in its metadata.

    Args:
        recipe: the preprocessing that the network does.
        output: one sample of the model's input, ``(1, 3, H, W)``, or uint8 in the layout of a fused `recipe`.
        max_size: rows and columns of the largest image that an engine is built for.
        source: the artifact whose input the network fills; of an engine, the ONNX file that it was built from.
    """

    recipe: Preprocessing
    output: TensorSpec
    max_size: int
    source: FileRecord
    opset: int = OPSET
    tools: dict[str, str] = field(default_factory=dict)
    created: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the network; the image's height and width are open."""
        height, width = self.recipe.crop
        return (
            TensorSpec("image", "uint8", ("height", "width", 3), None),
            TensorSpec("rows", "float32", (height, "height"), None),
            TensorSpec("columns", "float32", (width, "width"), None),
        )

    def feeds(self, pixels: Pixels) -> dict[str, Array]:
        """Return the network's inputs for an image ``(H, W, 3)`` uint8, contiguous, by name.

        Pillow resizes an image that the network can't: one larger than `max_size`, and one whose rows Pillow resizes
        first, under a filter that overshoots, since clipping in the other order moves pixels by up to 58 levels (seen).
        The network then gets Pillow's result with identity matrices.

        Raises:
            InputError: not the pixels of a color image.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise InputError(f"{pixels.dtype} {pixels.shape} is not an image", "pass RGB pixels (H, W, 3) uint8")
        recipe, (height, width) = self.recipe, pixels.shape[:2]
        turned = recipe.interpolation in _OVERSHOOTING and rows_first(recipe, height, width)
        if turned or max(height, width) > self.max_size:
            pixels, recipe = _resize(recipe, pixels), replace(recipe, resize=min(recipe.crop))
        rows, columns = matrices(recipe, *pixels.shape[:2])
        return {"image": np.ascontiguousarray(pixels), "rows": rows, "columns": columns}


def _resize(recipe: Preprocessing, pixels: Pixels) -> Pixels:
    from PIL import Image

    return recipe.pixels(Image.fromarray(np.ascontiguousarray(pixels)))


def export_preprocessor(artifact: Path | None = None, max_size: int = MAX_SIZE, output: Path | None = None) -> Path:
    """Write the preprocessor of a model; the file appears once its pixels are compared with Pillow's.

    Args:
        artifact: engine or ONNX file; None takes the newest engine that has preprocessing.
        max_size: rows and columns of the largest image.
        output: None is ``engines/NAME.pre.onnx``.

    Raises:
        ArtifactError: there is no such artifact.
        UsageError: the model has no preprocessing, more than one input, or one that no image fits.
        ExportError: a pixel is more than 1 of 255 from Pillow's in ONNX Runtime.
    """
    source = _source(artifact)
    record = describe(source.sidecar, max_size)
    target = output or ENGINES / f"{_stem(source.path)}{SUFFIX}"
    files.refuse_outputs((target, SUFFIX, "output"), inputs=(source.path,))
    with files.atomic_file(target) as made:
        made.write_bytes(build_graph(record))
        difference = find_difference(record, OnnxPreprocessor(made))
        if difference is not None:
            raise ExportError(difference, "report it, with the versions of Pillow and ONNX Runtime: pip list")
    return target


def _source(path: Path | None) -> Artifact:
    if path is not None:
        return store.load(path, "engine" if store.is_engine(path) else "onnx")
    artifact = store.newest("engine", lambda sidecar: sidecar.preprocessing is not None, "engine for images")
    note(f"using the newest engine that takes images: {artifact.path}")
    return artifact


def _stem(path: Path) -> str:
    suffixes = (".ort.onnx", ".onnx", ".engine", ".plan")
    return path.name.removesuffix(next((each for each in suffixes if path.name.endswith(each)), path.suffix))


def describe(sidecar: Sidecar, max_size: int = MAX_SIZE) -> PreprocessorRecord:
    """Return the record of the preprocessor that fills the input of a model.

    Raises:
        UsageError: as :func:`image_input`, or `max_size` is smaller than the crop.
    """
    spec, recipe = image_input(sidecar, instead="")
    if max_size < max(recipe.crop):
        crop = "×".join(map(str, recipe.crop[::-1]))
        raise UsageError(f"max size {max_size} is below the crop, {crop}", f"pass {max(recipe.crop)} or more")
    shape = _sample_shape(recipe)
    types = ("float32", "float16") if recipe.fused is None else ("uint8",)
    if spec.batch_axis != 0 or spec.dtype not in types:
        made = TensorSpec(OUTPUT, types[0], shape)
        problem = f"the input {spec} of {sidecar.model.name} doesn't take the samples of its recipe, {made}"
        raise UsageError(problem, "export again")
    tools = {"onnx": found} if (found := optional.version("onnx")) else {}
    output = TensorSpec(OUTPUT, spec.dtype, shape)
    return PreprocessorRecord(recipe, output, max_size, sidecar.artifact, tools=tools, created=store.now())


def _sample_shape(recipe: Preprocessing) -> tuple[int, ...]:
    return (1, *recipe.crop, 3) if recipe.fused == "NHWC" else (1, 3, *recipe.crop)


def build_graph(record: PreprocessorRecord) -> bytes:
    """Return the ONNX file of a preprocessor, in operators that TensorRT 8.6 reads."""
    onnx = optional.require("onnx", "write ONNX files")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(value: Any, dtype: type = np.float32) -> str:
        name = f"constant_{len(constants)}"
        constants.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], f"/{name}", **attributes))
        return name

    recipe, black, white = record.recipe, constant(0), constant(255)
    # TensorRT 8.6 takes uint8 at the inputs and outputs alone, next to a Cast.
    planes = add("Transpose", add("Cast", "image", to=float32), perm=(2, 0, 1))
    across = add("MatMul", planes, add("Transpose", "columns", perm=(1, 0)))
    down = add("MatMul", "rows", add("Clip", across, black, white))
    # Half up, as Pillow's clip8 does.
    pixels = add("Clip", add("Floor", add("Add", down, constant(0.5))), black, white)
    if recipe.fused == "NHWC":
        pixels = add("Transpose", pixels, perm=(1, 2, 0))
    sample = add("Unsqueeze", pixels, constant([0], np.int64))
    if recipe.fused is None:  # in the order of Preprocessing.normalise
        mean, std = (constant(np.reshape(values, (3, 1, 1))) for values in (recipe.mean, recipe.std))
        sample = add("Div", add("Sub", add("Div", sample, white), mean), std)
    dtypes = {spec.name: helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)) for spec in _tensors(record)}
    add("Cast", sample, output=OUTPUT, to=dtypes[OUTPUT])
    infos = [helper.make_tensor_value_info(spec.name, dtypes[spec.name], spec.shape) for spec in _tensors(record)]
    graph = helper.make_graph(nodes, "preprocessor", infos[:-1], infos[-1:], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="trtbatch", opset_imports=opsets, ir_version=_IR_VERSION)
    helper.set_model_props(model, {KEY: json.dumps(encode(record), ensure_ascii=False)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _tensors(record: PreprocessorRecord) -> tuple[TensorSpec, ...]:
    return (*record.inputs, record.output)


class OnnxPreprocessor:
    """Run a preprocessor in ONNX Runtime on the CPU; calls from several threads may overlap.

    Args:
        path: the ``.pre.onnx`` file.
        threads: threads of one call; None is ONNX Runtime's own number.

    Raises:
        ArtifactError: no preprocessor, or a damaged one.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        ort = optional.require("onnxruntime", "run ONNX files")
        if not path.is_file():
            raise ArtifactError(f"{path} doesn't exist", "run: trtbatch export-preprocessor")
        hints.refuse_other_file(path, "preprocessor")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._run = OnnxReference(path, options)
        self.record = read_record(self._run.metadata, path)

    def __call__(self, pixels: Pixels) -> Array:
        """Return the sample of an image ``(H, W, 3)`` uint8: ``(3, H, W)``, or uint8 in the layout of a fused recipe.

        Raises:
            InputError: not the pixels of a color image.
            ExecutionError: ONNX Runtime failed.
        """
        row: Array = self._run(self.record.feeds(pixels))[OUTPUT][0]
        return row


def read_record(metadata: Mapping[str, str], path: Path) -> PreprocessorRecord:
    """Return the record in an ONNX file's metadata.

    Raises:
        ArtifactError: no preprocessor, or one of another format.
    """
    fix = "run: trtbatch export-preprocessor"
    if KEY not in metadata:
        raise ArtifactError(f"{path} is not a preprocessor, or one of an earlier trtbatch", fix)
    try:
        data = json.loads(metadata[KEY])
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            problem = f"{path} has format {version}; this trtbatch reads {FORMAT_VERSION}"
            newer = version > FORMAT_VERSION
            raise ArtifactError(problem, "update trtbatch: pip install -U trtbatch" if newer else fix)
        return decode(PreprocessorRecord, data)
    except (RecordError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", fix) from error


def engine_record(artifact: Artifact) -> PreprocessorRecord:
    """Return the record of a preprocessor's engine, from its sidecar.

    Raises:
        ArtifactError: the sidecar lacks something, or the engine is of an earlier trtbatch.
    """
    sidecar = artifact.sidecar
    recipe, size = sidecar.preprocessing, sidecar.build.details.get("max_size")
    if recipe is None or not isinstance(size, int) or sidecar.source is None:
        raise ArtifactError(f"{artifact.path}: its sidecar lacks the recipe or the size", "run: `trtbatch.build()`")
    record = PreprocessorRecord(recipe, sidecar.outputs[0], size, sidecar.source)
    if sidecar.inputs != record.inputs:
        fix = "make both again: trtbatch export-preprocessor, then `trtbatch.build()`"
        raise ArtifactError(f"{artifact.path} has other inputs than this trtbatch's preprocessors", fix)
    return record


def open_preprocessor(artifact: Artifact, device: int = 0) -> TensorRTPreprocessor:
    """Load the engine of a preprocessor; the checks and errors are those of :func:`trtbatch.backends.open_engine`."""
    from trtbatch.backends.tensorrt.engine import TensorRTEngine
    from trtbatch.backends.tensorrt.preprocess import TensorRTPreprocessor

    record, engine = engine_record(artifact), open_engine(artifact, device)
    if not isinstance(engine, TensorRTEngine):
        raise ArtifactError(f"{artifact.path}: its sidecar names another backend", "build it again: `trtbatch.build()`")
    return TensorRTPreprocessor(engine, record)


def find_difference(record: PreprocessorRecord, sample_of: Callable[[Pixels], Array]) -> str | None:
    """Compare samples with Pillow's on noise of several sizes; describe the first that is over 1 of 255 off.

    Args:
        record: record of the preprocessor.
        sample_of: makes the sample of an image ``(H, W, 3)`` uint8.
    """
    generator = np.random.default_rng(0)
    for height, width in _TRIED:
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        worst = float(np.abs(pixels_of(record, sample_of(pixels)) - _resize(record.recipe, pixels)).max())
        if not worst <= _LIMIT:
            return f"an image of {width}×{height} differs from Pillow's by up to {worst:.3g} of 255"
    return None


def pixels_of(record: PreprocessorRecord, sample: Array) -> NDArray[np.float64]:
    """Return the pixels ``(H, W, 3)``, 0 to 255, that a sample was made of."""
    recipe = record.recipe
    values: NDArray[np.float64] = sample.reshape(_sample_shape(recipe))[0].astype(np.float64)
    if recipe.fused == "NHWC":
        return values
    values = values.transpose(1, 2, 0)
    return values if recipe.fused else (values * np.asarray(recipe.std) + np.asarray(recipe.mean)) * 255
