"""A photograph's way into the model's input as a model of its own: resize, crop and normalise, for any backend.

``image (N, S, S, 3)`` uint8 becomes N samples of the model's input. Each photograph is the part that the crop needs, in
the upper left corner of a square: what is beside it counts nothing. How it is resized comes beside it
(:class:`trtbatch.photographs.operands.Packing`), a few integers for a bilinear filter, and otherwise the taps of each
line and their starts; of these the graph makes the matrices of two products (:mod:`trtbatch.photographs.resample`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtbatch import artifacts, files, optional
from trtbatch.artifacts import ENGINES, Artifact, Sidecar, TensorSpec
from trtbatch.backends import onnxruntime
from trtbatch.errors import ArtifactError, ExportError, InputError, UsageError
from trtbatch.inspection import is_engine
from trtbatch.notes import note
from trtbatch.photographs.operands import MAX_SIZE, Operands, Packing, is_computed, operands, square
from trtbatch.photographs.record import FORMAT_VERSION, OPSET, OUTPUT, PreprocessorRecord
from trtbatch.photographs.resample import FRACTION_BITS, LOW_BITS
from trtbatch.preprocessing import Preprocessing
from trtbatch.records import RecordError, decode, encode

__all__ = [
    "KEY",
    "SUFFIX",
    "OnnxPreprocessor",
    "PreprocessorRequest",
    "build_graph",
    "describe",
    "differences",
    "export_preprocessor",
    "feeds",
    "pixels_of",
    "prove",
    "recorded_in",
]

Array = NDArray[Any]

SUFFIX = ".pre.onnx"

_IR_VERSION = 8
"""The newest that TensorRT 8.6 reads."""

KEY = "trtbatch.photographs.preprocessor"
"""Of the record in an ONNX file's metadata."""

_LIMIT = 1.1
"""Of 255: one step of a pixel, and what float16 rounds."""

_PROVEN = ((1, 1), (2, 7), (90, 60), (224, 224), (375, 500), (480, 360), (601, 1200))
"""Heights and widths of the photographs that a new preprocessor is tried on."""


@dataclass(frozen=True)
class PreprocessorRequest:
    """What to write a preprocessor for, and where.

    Args:
        artifact: engine or ONNX file; None takes the newest engine that has preprocessing.
        max_size: rows and columns of the largest part of a photograph.
        output: None is ``engines/NAME.pre.onnx``.
    """

    artifact: Path | None = None
    max_size: int = MAX_SIZE
    output: Path | None = None


def export_preprocessor(request: PreprocessorRequest) -> Path:
    """Write the preprocessor of an artifact, and ``NAME.pre.json`` beside it; it appears only when it has run right.

    Raises:
        ArtifactError: there is no such artifact.
        UsageError: the model has no preprocessing, more than one input, or one that no photograph fits.
        ExportError: in ONNX Runtime it gives other pixels than Pillow.
    """
    artifact = _source(request.artifact)
    record = describe(artifact.sidecar, request.max_size)
    target = request.output or ENGINES / f"{_stem(artifact.path)}{SUFFIX}"
    beside = target.with_suffix(".json")
    outputs = ((target, SUFFIX, "--output"), (beside, ".json", "--output"))
    files.refuse_outputs(*outputs, inputs=(artifact.path,))
    with files.atomic_file(beside) as facts, files.atomic_file(target) as made:
        made.write_bytes(build_graph(record))
        with OnnxPreprocessor(made) as preprocessor:
            prove(preprocessor)
        data = {"artifact": encode(artifacts.record_file(made)), **encode(record)}
        facts.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def _source(path: Path | None) -> Artifact:
    if path is not None:
        return artifacts.load(path, "engine" if is_engine(path) else "onnx")
    artifact = artifacts.newest("engine", lambda sidecar: sidecar.preprocessing is not None, "engine for photographs")
    note(f"for the newest engine that takes photographs: {artifact.path}")
    return artifact


def _stem(path: Path) -> str:
    suffixes = (".ort.onnx", ".onnx", ".engine", ".plan")
    return path.name.removesuffix(next((each for each in suffixes if path.name.endswith(each)), path.suffix))


def describe(sidecar: Sidecar, max_size: int = MAX_SIZE) -> PreprocessorRecord:
    """The preprocessor that fills the input of a model.

    Raises:
        UsageError: there is no preprocessing, not one input, or one that the recipe's samples don't fit; or
            `max_size` is below the crop.
    """
    name, recipe = sidecar.model.name, sidecar.preprocessing
    if recipe is None:
        raise UsageError(f"{name} has no preprocessing recorded", "export it with a ModelSpec that has preprocessing")
    if len(sidecar.inputs) != 1:
        names = ", ".join(spec.name for spec in sidecar.inputs)
        fix = "export a model whose one input is the image"
        raise UsageError(f"{name} has {len(sidecar.inputs)} inputs ({names}); a preprocessor fills one", fix)
    if max_size < max(recipe.crop):
        raise UsageError(
            f"--max-size {max_size} is below the crop, {recipe.crop[1]}×{recipe.crop[0]}",
            f"pass --max-size {max(recipe.crop)} or more",
        )
    spec, shape = sidecar.inputs[0], _sample_shape(recipe)
    types = ("float32", "float16") if recipe.fused is None else ("uint8",)
    if spec.batch_axis != 0 or not spec.fits(shape) or spec.dtype not in types:
        wanted = f"({', '.join(map(str, ('batch', *shape[1:])))}) {types[0]}"
        raise UsageError(f"the input {spec} of {name} doesn't take the samples of its recipe, {wanted}", "export again")
    tools = {"onnx": found} if (found := optional.version("onnx")) else {}
    output = TensorSpec(OUTPUT, spec.dtype, shape)
    return PreprocessorRecord(recipe, output, max_size, sidecar.artifact, tools=tools, created=artifacts.now())


def _sample_shape(recipe: Preprocessing) -> tuple[int, ...]:
    return (1, *recipe.crop, 3) if recipe.fused == "NHWC" else (1, 3, *recipe.crop)


def feeds(record: PreprocessorRecord, given: Operands) -> dict[str, Array]:
    """All inputs of the preprocessor for one photograph, contiguous, by name."""
    packing = Packing(record)
    height, width = given.image.shape[:2]
    side = square(height, width, record.max_size)
    room = np.empty(packing.room(side), np.uint8)
    packing.lay(room, side, given)
    return {
        "image": np.ndarray((1, side, side, 3), np.uint8, room),
        "positions": np.arange(side, dtype=np.int32)[None, None, None],
        **packing.views(room[-packing.bytes :]),
    }


def pixels_of(record: PreprocessorRecord, sample: Array) -> NDArray[np.float64]:
    """The pixels ``(H, W, 3)``, 0 to 255, that a sample was made of: what "1 of 255" is counted in."""
    recipe = record.recipe
    values: NDArray[np.float64] = sample.reshape(_sample_shape(recipe))[0].astype(np.float64)
    if recipe.fused == "NHWC":
        return values
    values = values.transpose(1, 2, 0)
    if recipe.fused is None:
        values = (values * np.asarray(recipe.std) + np.asarray(recipe.mean)) * 255
    return values


class _Graph:
    """Nodes and constants as they come, each value named after its node."""

    def __init__(self) -> None:
        self._onnx = optional.require("onnx", "write ONNX files")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str | Array | float, output: str | None = None, **attributes: Any) -> str:
        """A node with one output, whose name it returns; arrays and numbers among its inputs become constants."""
        return self._node(operator, inputs, [output or f"{operator.lower()}_{len(self.nodes)}"], attributes)[0]

    def split(self, value: str, axis: int, count: int, length: int = 1) -> list[str]:
        names = [f"{value}_{index}" for index in range(count)]
        return self._node("Split", (value, np.array(count * [length])), names, {"axis": axis})

    def halves(self, value: str, axis: int, length: int) -> tuple[str, str]:
        high, low = self.split(value, axis, 2, length)
        return high, low

    def _node(
        self, operator: str, inputs: tuple[Any, ...], outputs: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        name = f"/{outputs[0]}"
        self.nodes.append(self._onnx.helper.make_node(operator, names, outputs, name, **attributes))
        return outputs

    def _constant(self, value: Array | float) -> str:
        array = np.asarray(value)
        if array.dtype != np.int32:
            array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name


def build_graph(record: PreprocessorRecord) -> bytes:
    """The ONNX file of a preprocessor: opset 17, IR version 8, operators that TensorRT 8.6 reads.

    uint8 stands beside a Cast at the inputs and outputs alone, the only place where TensorRT 8.6 has it.
    """
    onnx = optional.require("onnx", "write ONNX files")
    helper, tensor = onnx.helper, onnx.TensorProto
    height, width = record.recipe.crop
    graph, packing = _Graph(), Packing(record)
    # The image lies as (N, 3, S, S): the columns of all channels and rows are one product.
    planes = graph.add("Transpose", graph.add("Cast", "image", to=tensor.FLOAT), perm=(0, 3, 1, 2))
    rows, columns = _matrices(graph, record)
    across = graph.add("Transpose", columns, perm=(0, 1, 3, 2))
    narrow = _rounded(graph, *graph.halves(graph.add("MatMul", planes, across), 3, width))
    down = graph.add("MatMul", rows, narrow)
    _finish(graph, _rounded(graph, *graph.halves(down, 2, height)), record)
    infos = [
        helper.make_tensor_value_info("image", tensor.UINT8, ["count", "side", "side", 3]),
        helper.make_tensor_value_info("positions", tensor.INT32, [1, 1, 1, "side"]),
    ]
    for name, (shape, dtype) in packing.arrays.items():
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), ["count", *shape]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(record.output.dtype))
    sample = helper.make_tensor_value_info(OUTPUT, kind, ["count", *record.output.shape[1:]])
    whole = helper.make_graph(graph.nodes, "preprocessor", infos, [sample], graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(whole, producer_name="trtbatch", opset_imports=opsets, ir_version=_IR_VERSION)
    helper.set_model_props(model, {KEY: json.dumps(encode(record), ensure_ascii=False)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _matrices(graph: _Graph, record: PreprocessorRecord) -> list[str]:
    """Of rows and of columns ``(N, 1, 2n, S)``: of each line and each pixel, the coefficient that the pixel has in it;
    the upper halves, then the lower ones."""
    crop = record.recipe.crop
    lines = max(crop)
    both = _computed(graph, lines) if is_computed(record.recipe) else _looked_up(graph, Packing(record))
    if crop[0] == crop[1]:
        return graph.split(both, 1, 2)
    matrices = []
    for count, side in zip(crop, graph.split(both, 1, 2)):
        halves = graph.halves(side, 2, lines)
        bounds = np.array([0]), np.array([count]), np.array([2])
        matrices.append(graph.add("Concat", *(graph.add("Slice", half, *bounds) for half in halves), axis=2))
    return matrices


def _looked_up(graph: _Graph, packing: Packing) -> str:
    """Taps, put where they begin. Pixels before and behind a line's taps get the zeros at either end."""
    last = packing.arrays["taps"][0][-1] - 1
    at = graph.add("Add", graph.add("Sub", "positions", "starts"), _int(1))
    index = graph.add("Max", graph.add("Min", at, _int(last)), _int(0))
    return graph.add("GatherElements", "taps", index, axis=3)


def _int(value: int) -> NDArray[np.int32]:
    return np.array(value, np.int32)


def _computed(graph: _Graph, lines: int) -> str:
    """Upper halves of bilinear coefficients, then the lower ones, made in integers of 32 bits.

    A coefficient is the quotient of two integers (:mod:`trtbatch.photographs.resample`), to 22 bits and rounded half
    up: 10 bits, the next 6 of what is left, and 6 more.
    """
    onnx = optional.require("onnx", "write ONNX files")
    add = graph.add
    size, new_size, shift, pixels, before, behind = graph.split("sides", 3, 6)
    line = np.arange(lines, dtype=np.int32)[:, None]
    centre = add("Sub", add("Mul", (2 * line + 1)[None, None], size), shift)
    pixel = add("Mul", add("Add", add("Mul", "positions", _int(2)), _int(1)), new_size)
    away = add("Max", add("Sub", pixel, centre), add("Sub", centre, pixel))
    reach = add("Mul", add("Max", size, new_size), _int(2))
    inside = add("Min", add("Sub", line[None, None], before), add("Sub", behind, line[None, None]))
    there = add("Max", add("Min", add("Sub", pixels, "positions"), _int(1)), _int(0))
    counts = add("Mul", add("Max", add("Min", inside, _int(1)), _int(0)), there)
    part = add("Mul", add("Max", add("Sub", reach, away), _int(0)), counts)
    whole = add("Max", add("ReduceSum", part, np.array([3]), keepdims=1), _int(1))
    high, left = _divided(graph, add("Mul", part, _int(1 << 10)), whole)
    middle, left = _divided(graph, add("Mul", left, _int(1 << 6)), whole)
    doubled = add("Add", add("Mul", left, _int(1 << 7)), whole)
    low = add("Add", add("Mul", middle, _int(1 << 6)), add("Div", doubled, add("Mul", whole, _int(2))))
    # The lower half lies between −2¹¹ and 2¹¹, which 11 bits hold.
    floats = add("Cast", low, to=onnx.TensorProto.FLOAT)
    one = float(1 << LOW_BITS)
    carry = add("Floor", add("Mul", add("Add", floats, one / 2), 1 / one))
    upper = add("Add", add("Cast", high, to=onnx.TensorProto.FLOAT), carry)
    return add("Concat", upper, add("Sub", floats, add("Mul", carry, one)), axis=2)


def _divided(graph: _Graph, value: str, by: str) -> tuple[str, str]:
    """Quotient and remainder of integers that aren't negative."""
    quotient = graph.add("Div", value, by)
    return quotient, graph.add("Sub", value, graph.add("Mul", quotient, by))


def _rounded(graph: _Graph, high: str, low: str) -> str:
    """``(high·2¹² + low)·2⁻²²`` to the nearest, half up, 0 to 255: ``clip8`` of Pillow's Resample.c.

    The whole part of `high` is set aside first: what is added then stays below 2²⁴, and exact.
    """
    one, fraction = float(1 << FRACTION_BITS - LOW_BITS), float(1 << FRACTION_BITS)
    whole = graph.add("Floor", graph.add("Mul", high, 1 / one))
    rest = graph.add("Mul", graph.add("Sub", high, graph.add("Mul", whole, one)), float(1 << LOW_BITS))
    half = graph.add("Add", graph.add("Add", rest, low), fraction / 2)
    carry = graph.add("Floor", graph.add("Mul", half, 1 / fraction))
    return graph.add("Clip", graph.add("Add", whole, carry), 0.0, 255.0)


def _finish(graph: _Graph, pixels: str, record: PreprocessorRecord) -> None:
    """From pixels ``(N, 3, H, W)`` to the samples, in the order of :meth:`Preprocessing.normalise`."""
    onnx = optional.require("onnx", "write ONNX files")
    recipe, dtype = record.recipe, record.output.dtype
    plain = dtype == "float32"
    if recipe.fused is None:
        mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (recipe.mean, recipe.std))
        centred = graph.add("Sub", graph.add("Div", pixels, 255.0), mean)
        pixels = graph.add("Div", centred, std, output=OUTPUT if plain else None)
    elif recipe.fused == "NHWC":
        pixels = graph.add("Transpose", pixels, perm=(0, 2, 3, 1))
    if not plain:
        graph.add("Cast", pixels, output=OUTPUT, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class OnnxPreprocessor:
    """A preprocessor in ONNX Runtime on the CPU; calls from several threads may overlap.

    Args:
        path: of the ``.pre.onnx`` file, which says itself what it is.
        threads: that one call may use; None is ONNX Runtime's own number.

    Raises:
        ArtifactError: no preprocessor, or a damaged one.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        ort = optional.require("onnxruntime", "run ONNX files")
        if not path.is_file():
            raise ArtifactError(f"{path} doesn't exist", "run: trtbatch export-preprocessor")
        artifacts.refuse_other_file(path, "preprocessor")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session: Any = onnxruntime.open_session(path, options)
        self.record = recorded_in(self._session.get_modelmeta().custom_metadata_map, path)

    def __call__(self, pixels: NDArray[np.uint8], out: Array) -> None:
        """Write the sample of a photograph ``(H, W, 3)`` uint8 into `out`, a row of the model's input batch.

        Nothing is copied but the part of the photograph that the crop needs, where that isn't contiguous.

        Raises:
            InputError: not the pixels of a photograph, or an `out` of another shape or type, or not contiguous.
            ExecutionError: ONNX Runtime failed.
        """
        spec = self.record.output
        if out.shape not in (spec.shape, spec.shape[1:]) or out.dtype != spec.dtype or not out.flags.c_contiguous:
            layout = "" if out.flags.c_contiguous else ", not contiguous"
            raise InputError(f"the sample is {spec}, out is {out.dtype} {out.shape}{layout}", "give a row of the input")
        given = feeds(self.record, operands(self.record.recipe, pixels, self.record.max_size))
        binding = self._session.io_binding()
        for name, array in given.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output(OUTPUT, "cpu", 0, out.dtype, spec.shape, out.ctypes.data)
        onnxruntime.run_bound(self._session, binding)

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> OnnxPreprocessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def recorded_in(metadata: Mapping[str, str], path: Path) -> PreprocessorRecord:
    """What an ONNX file says of itself in its metadata.

    Raises:
        ArtifactError: no preprocessor, or one of another format.
    """
    fix = "run: trtbatch export-preprocessor"
    if KEY not in metadata:
        raise ArtifactError(f"{path} is not a preprocessor: it doesn't say what it was made for", fix)
    try:
        data = json.loads(metadata[KEY])
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            newer = version > FORMAT_VERSION
            problem = f"{path} has format {version}; this trtbatch reads {FORMAT_VERSION}"
            raise ArtifactError(problem, "update trtbatch: pip install -U trtbatch" if newer else fix)
        return decode(PreprocessorRecord, data)
    except (RecordError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", fix) from error


def prove(preprocessor: OnnxPreprocessor) -> None:
    """Run it on noise of several sizes, in which every pixel counts: none may be more than 1 of 255 from Pillow's.

    Raises:
        ExportError: with the size and the difference.
    """
    for words in differences(preprocessor.record, preprocessor):
        raise ExportError(words, "report it, with the versions of Pillow and ONNX Runtime: pip list")


def differences(record: PreprocessorRecord, run: Callable[[NDArray[np.uint8], Array], None]) -> Iterator[str]:
    """Of each size that is tried, what is wrong, in words.

    Args:
        run: writes the sample of a photograph ``(H, W, 3)`` uint8 into an array.
    """
    from PIL import Image

    generator = np.random.default_rng(0)
    for height, width in _PROVEN:
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        sample = np.empty(_sample_shape(record.recipe), record.output.dtype)
        run(pixels, sample)
        wanted = record.recipe.pixels(Image.fromarray(pixels))
        worst = float(np.abs(pixels_of(record, sample) - wanted).max())
        if not worst <= _LIMIT:
            yield f"a photograph of {width}×{height} comes out up to {worst:.3g} of 255 from Pillow's"
