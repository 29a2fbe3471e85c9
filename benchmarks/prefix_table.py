"""Measure what bytes at a model's input cost the GPU, by how the graph converts them to floats.

    python -m benchmarks.prefix_table [--only "NAME;..."] [--batch 128] [--rounds 8] [--jobs 1]
                                   [--engines DIR] [--build-only] [--json FILE]

Builds engines of a stem alone (the first layers of a ResNet, with random weights), one for each way to write the
prefix, in fp16 and, with quantized convolutions, in int8. Runs them in turns, and lists the times of each engine's
layers. ``floats`` is the stem with an input of floats, which the others are compared with. ``bound`` leaves out mean
and deviation, so its results are wrong, but no prefix can be cheaper. Needs a GPU that nothing else uses, and about ten
seconds per engine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.blocks import Convolution, Line, blocked
from benchmarks.performance import medians, ratio
from benchmarks.summary import machine, write
from trtbatch.backends import open_engine
from trtbatch.benchmark.loops import Loop, mode_loop
from trtbatch.builder.build import BuildRequest, build
from trtbatch.core.rows import random_inputs
from trtbatch.core.sidecar import Artifact
from trtbatch.core.store import load
from trtbatch.util import optional

Array = NDArray[Any]
MEAN = 255 * np.array([0.485, 0.456, 0.406])
DEVIATION = 255 * np.array([0.229, 0.224, 0.225])
CHANNELS = 64
TRANSPOSE = (0, 3, 1, 2)
HALF, SINGLE = np.float16, np.float32
EPSILON = 1e-5
INPUT_SCALE, INNER_SCALE = 0.02, 0.05
"""Scales of quantized activations; the largest value is 127 times the scale."""


@dataclass
class Graph:
    """Nodes and constants of a graph under construction."""

    batch: int
    side: int
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], f"/{output}", **attributes))
        return output

    def cast(self, value: str, dtype: Any) -> str:
        """Add a Cast node and return the name of its output."""
        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def normalised(self, value: str, shape: Sequence[int], dtype: Any) -> str:
        """Add nodes that subtract the mean and divide by the deviation; return the name of the output."""
        value = self.add("Sub", value, self.constant(MEAN.reshape(shape), dtype))
        return self.add("Mul", value, self.constant((1 / DEVIATION).reshape(shape), dtype))

    def quantized(self, value: str, scale: float) -> str:
        """Add nodes that quantize and dequantize; return the name of the output."""
        given = self.constant(scale), self.constant(0, np.int8)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, *given), *given)

    def merged(self, value: str, block: tuple[int, int], shape: Sequence[int]) -> str:
        """Turn NHWC images into NCHW blocks of pixels: the pixels of a block become its channels."""
        _, height, width, channels = shape
        rows, columns = height // block[0], width // block[1]
        between = np.array([-1, rows, block[0], columns, block[1] * channels])
        value = self.add("Reshape", value, self.constant(between, np.int64))
        value = self.add("Transpose", value, perm=(0, 2, 4, 1, 3))
        whole = np.array([-1, block[0] * block[1] * channels, rows, columns])
        return self.add("Reshape", value, self.constant(whole, np.int64))


Prefix = Callable[[Graph, str], str]


def last(dtype: Any) -> Prefix:
    """Return the prefix that normalizes NHWC images and then transposes."""
    return lambda g, x: g.add("Transpose", g.normalised(g.cast(x, dtype), (1, 1, 1, 3), dtype), perm=TRANSPOSE)


def first(dtype: Any) -> Prefix:
    """Return the prefix that transposes and then normalizes."""
    return lambda g, x: g.normalised(g.add("Transpose", g.cast(x, dtype), perm=TRANSPOSE), (1, 3, 1, 1), dtype)


def planar(dtype: Any) -> Prefix:
    """Return the prefix that normalizes NCHW images."""
    return lambda g, x: g.normalised(g.cast(x, dtype), (1, 3, 1, 1), dtype)


def product(channels: int, dtype: Any) -> Prefix:
    """Return the prefix that normalizes by a 1×1 convolution.

    It may give more channels than the image has, since TensorRT's layouts hold four or eight.
    """

    def prefix(graph: Graph, image: str) -> str:
        weights, shift = np.zeros((channels, 3, 1, 1)), np.zeros(channels)
        weights[range(3), range(3), 0, 0], shift[:3] = 1 / DEVIATION, -MEAN / DEVIATION
        planes = graph.add("Transpose", graph.cast(image, dtype), perm=TRANSPOSE)
        given = graph.constant(weights, dtype), graph.constant(shift, dtype)
        return graph.add("Conv", planes, *given, kernel_shape=[1, 1])

    return prefix


def padded(graph: Graph, image: str) -> str:
    """Normalize NHWC images, add a fourth channel of zeros, and transpose."""
    value = graph.normalised(graph.cast(image, np.float16), (1, 1, 1, 3), np.float16)
    none = graph.constant(np.zeros((graph.batch, graph.side, graph.side, 1)), np.float16)
    return graph.add("Transpose", graph.add("Concat", value, none, axis=3), perm=TRANSPOSE)


def bare(dtype: Any) -> Prefix:
    """Return the prefix that only casts and transposes."""
    return lambda g, x: g.add("Transpose", g.cast(x, dtype), perm=TRANSPOSE)


def then(prefix: Prefix, dtype: Any) -> Prefix:
    """Return a prefix followed by a cast."""
    return lambda g, x: g.cast(prefix(g, x), dtype)


def blocks(block: tuple[int, int], dtype: Any, inner: Callable[[Graph, str], str] = lambda g, x: x) -> Prefix:
    """Return the prefix that normalizes NHWC images and makes blocks of pixels; `inner` runs in between."""

    def prefix(graph: Graph, image: str) -> str:
        value = graph.normalised(graph.cast(image, dtype), (1, 1, 1, 3), dtype)
        return graph.merged(inner(graph, value), block, (graph.batch, graph.side, graph.side, 3))

    return prefix


def pairs(dtype: Any, inner: Callable[[Graph, str], str] = lambda g, x: x) -> Prefix:
    """Return the prefix that takes two pixels of a row as one, and then transposes.

    The pixels of a pair are adjacent in memory already. `inner` runs before the transpose.
    """

    def prefix(graph: Graph, image: str) -> str:
        whole = np.array([-1, graph.side, graph.side // 2, 6])
        value = graph.add("Reshape", graph.cast(image, dtype), graph.constant(whole, np.int64))
        value = graph.add("Sub", value, graph.constant(np.tile(MEAN, 2).reshape(1, 1, 1, 6), dtype))
        value = graph.add("Mul", value, graph.constant(np.tile(1 / DEVIATION, 2).reshape(1, 1, 1, 6), dtype))
        return graph.add("Transpose", inner(graph, value), perm=TRANSPOSE)

    return prefix


def widened(prefix: Prefix, channels: int, wanted: int, dtype: Any) -> Prefix:
    """Return a prefix with channels added by a 1×1 convolution, up to the number that the layout holds."""

    def wider(graph: Graph, image: str) -> str:
        weights = graph.constant(np.eye(wanted, channels)[..., None, None], dtype)
        return graph.add("Conv", prefix(graph, image), weights, kernel_shape=[1, 1])

    return wider


def batch_norm(graph: Graph, value: str, dtype: Any) -> str:
    """Normalize by one BatchNormalization node, which TensorRT reads as a scale for each channel."""
    variance = DEVIATION**2 - EPSILON
    given = [graph.constant(each, dtype) for each in (np.ones(3), np.zeros(3), MEAN, variance)]
    return graph.add("BatchNormalization", value, *given, epsilon=EPSILON)


def scaled(graph: Graph, value: str, dtype: Any) -> str:
    """Normalize by one depthwise 1×1 convolution."""
    given = [graph.constant(each, dtype) for each in ((1 / DEVIATION)[:, None, None, None], -MEAN / DEVIATION)]
    return graph.add("Conv", value, *given, kernel_shape=[1, 1], group=3)


Step = Callable[[Graph, str, Any], str]


def planar_by(step: Step, dtype: Any) -> Prefix:
    """Return the prefix that applies a step to NCHW images."""
    return lambda g, x: step(g, g.cast(x, dtype), dtype)


def first_by(step: Step, dtype: Any) -> Prefix:
    """Return the prefix that transposes and then applies a step."""
    return lambda g, x: step(g, g.add("Transpose", g.cast(x, dtype), perm=TRANSPOSE), dtype)


def looked_up(shape: Sequence[int], dtype: Any, is_last: bool, is_late: bool = False) -> Prefix:
    """Return the prefix that looks up the value of each byte in a table.

    Args:
        shape: shape of the channel offsets, which sets the axis of the channels.
        dtype: type of the values.
        is_last: whether the channels are last, and are transposed afterwards.
        is_late: whether the images are transposed first.
    """

    def prefix(graph: Graph, image: str) -> str:
        values = ((np.arange(256)[None] - MEAN[:, None]) / DEVIATION[:, None]).reshape(-1)
        index = graph.cast(image, np.int32)
        if is_late:
            index = graph.add("Transpose", index, perm=TRANSPOSE)
        index = graph.add("Add", index, graph.constant(np.array([0, 256, 512]).reshape(shape), np.int32))
        value = graph.add("Gather", graph.constant(values, dtype), index, axis=0)
        return graph.add("Transpose", value, perm=TRANSPOSE) if is_last and not is_late else value

    return prefix


TABLES = (np.arange(256)[:, None] - MEAN) / DEVIATION
"""Value of each byte by channel, ``(256, 3)``."""


def by_elements(graph: Graph, image: str, dtype: Any) -> str:
    """Look up NHWC images as they are in the tables of all channels at once."""
    index = graph.add("Reshape", graph.cast(image, np.int32), graph.constant(np.array([-1, 3]), np.int64))
    value = graph.add("GatherElements", graph.constant(TABLES, dtype), index, axis=0)
    return graph.add("Reshape", value, graph.constant(np.array([-1, graph.side, graph.side, 3]), np.int64))


def looked_up_by_elements(dtype: Any) -> Prefix:
    """Return the prefix that looks up all channels at once and then transposes."""
    return lambda g, x: g.add("Transpose", by_elements(g, x, dtype), perm=TRANSPOSE)


def looked_up_by_channel(dtype: Any, axis: int) -> Prefix:
    """Return the prefix that looks up each channel along `axis` in its own table and joins the planes."""

    def prefix(graph: Graph, image: str) -> str:
        value, planes = graph.cast(image, np.int32), []
        for channel in range(3):
            bounds = [graph.constant(np.array([each]), np.int64) for each in (channel, channel + 1, axis)]
            plane = graph.add("Slice", value, *bounds)
            shape = graph.constant(np.array([-1, 1, graph.side, graph.side]), np.int64)
            plane = graph.add("Reshape", plane, shape)
            planes.append(graph.add("Gather", graph.constant(TABLES[:, channel], dtype), plane, axis=0))
        return graph.add("Concat", *planes, axis=1)

    return prefix


def as_is(dtype: Any, step: Step | None = None, is_planar: bool = False) -> Prefix:
    """Return the prefix that looks up the byte itself, then transposes, then normalizes."""

    def prefix(graph: Graph, image: str) -> str:
        value = graph.add("Gather", graph.constant(np.arange(256), dtype), graph.cast(image, np.int32), axis=0)
        if not is_planar:
            value = graph.add("Transpose", value, perm=TRANSPOSE)
        if step is None:
            return graph.add("Sub", value, graph.constant(MEAN.reshape(1, 3, 1, 1), dtype))
        return step(graph, value, dtype)

    return prefix


def with_ones(graph: Graph, image: str) -> str:
    """Append a plane of ones to the planes of bytes.

    Mean and deviation are folded into the first convolution.
    """
    ones = graph.constant(np.ones((graph.batch, 1, graph.side, graph.side)), HALF)
    return graph.add("Concat", graph.cast(image, HALF), ones, axis=1)


def multiplied(is_left: bool, dtype: Any) -> Prefix:
    """Return the prefix that scales each channel by a matrix product, and transposes before (`is_left`) or after it."""

    def prefix(graph: Graph, image: str) -> str:
        shape = graph.constant(np.array([-1, graph.side**2, 3]), np.int64)
        pixels = graph.add("Reshape", graph.cast(image, dtype), shape)
        scale = graph.constant(np.diag(1 / DEVIATION), dtype)
        if is_left:
            planes = graph.add("MatMul", scale, graph.add("Transpose", pixels, perm=(0, 2, 1)))
        else:
            planes = graph.add("Transpose", graph.add("MatMul", pixels, scale), perm=(0, 2, 1))
        planes = graph.add("Sub", planes, graph.constant((MEAN / DEVIATION).reshape(1, 3, 1), dtype))
        return graph.add("Reshape", planes, graph.constant(np.array([-1, 3, graph.side, graph.side]), np.int64))

    return prefix


def summed(dtype: Any) -> Prefix:
    """Return the prefix that transposes by a sum over all channels, of which all but one are masked."""

    def prefix(graph: Graph, image: str) -> str:
        shape = graph.constant(np.array([-1, 1, graph.side, graph.side, 3]), np.int64)
        pixels = graph.normalised(graph.add("Reshape", graph.cast(image, dtype), shape), (1, 1, 1, 1, 3), dtype)
        one = graph.add("Mul", pixels, graph.constant(np.eye(3).reshape(1, 3, 1, 1, 3), dtype))
        return graph.add("ReduceSum", one, graph.constant(np.array([4]), np.int64), keepdims=0)

    return prefix


def sliced(dtype: Any) -> Prefix:
    """Return the prefix that slices out each channel, normalizes it, and joins the planes."""

    def prefix(graph: Graph, image: str) -> str:
        value, planes = graph.cast(image, dtype), []
        for channel in range(3):
            bounds = [graph.constant(np.array([each]), np.int64) for each in (channel, channel + 1, 3)]
            plane = graph.add("Slice", value, *bounds)
            plane = graph.add("Reshape", plane, graph.constant(np.array([-1, 1, graph.side, graph.side]), np.int64))
            plane = graph.add("Sub", plane, graph.constant(MEAN[channel].reshape(1, 1, 1, 1), dtype))
            planes.append(graph.add("Mul", plane, graph.constant((1 / DEVIATION[channel]).reshape(1, 1, 1, 1), dtype)))
        return graph.add("Concat", *planes, axis=1)

    return prefix


def filtered(dtype: Any) -> Prefix:
    """Return the prefix that transposes and scales by a convolution over one channel with three columns per pixel."""

    def prefix(graph: Graph, image: str) -> str:
        shape = graph.constant(np.array([-1, 1, graph.side, 3 * graph.side]), np.int64)
        line = graph.add("Reshape", graph.cast(image, dtype), shape)
        given = (
            graph.constant(np.diag(1 / DEVIATION)[:, None, None, :], dtype),
            graph.constant(-MEAN / DEVIATION, dtype),
        )
        return graph.add("Conv", line, *given, kernel_shape=[1, 3], strides=[1, 3])

    return prefix


def lines(dtype: Any) -> Prefix:
    """Return the prefix that gives one channel, whose columns are all channels of all pixels.

    Nothing is transposed.
    """

    def prefix(graph: Graph, image: str) -> str:
        value = graph.normalised(graph.cast(image, dtype), (1, 1, 1, 3), dtype)
        return graph.add("Reshape", value, graph.constant(np.array([-1, 1, graph.side, 3 * graph.side]), np.int64))

    return prefix


@dataclass(frozen=True)
class Way:
    """One way to write the prefix.

    Args:
        prefix: adds the nodes of the prefix.
        layout: layout of the uint8 images; None is an input of floats, NCHW.
        channels: number of channels of the output.
        is_quantized: whether the prefix quantizes its own output.
        block: rows and columns of the pixels that become one.
        is_even: whether the convolution over blocks has as much padding at the end as at the beginning.
        is_line: whether the output is one channel with three columns per pixel.
        folded: the part of the normalization that the first convolution does: ``shift``, ``scale`` or both.
    """

    prefix: Prefix
    layout: str | None = "NHWC"
    channels: int = 3
    is_quantized: bool = False
    block: tuple[int, int] = (1, 1)
    is_even: bool = False
    is_line: bool = False
    folded: str = ""


PAIR, BLOCK = (1, 2), (2, 2)


def requantized(graph: Graph, value: str) -> str:
    """Quantize with the scale of the input."""
    return graph.quantized(value, INPUT_SCALE)


def requantized_in_fp32(graph: Graph, value: str) -> str:
    """Quantize with the scale of the input, in float32."""
    return graph.quantized(graph.cast(value, SINGLE), INPUT_SCALE)


WAYS: dict[str, Way] = {
    "fp16 floats": Way(lambda g, x: g.cast(x, HALF), None),
    "fp16 bound": Way(bare(HALF)),
    "fp16 last": Way(last(HALF)),
    "fp16 first": Way(first(HALF)),
    "fp16 last in fp32": Way(then(last(SINGLE), HALF)),
    "fp16 first in fp32": Way(then(first(SINGLE), HALF)),
    "fp16 planar": Way(planar(HALF), "NCHW"),
    "fp16 product": Way(product(3, HALF)),
    "fp16 product of 8": Way(product(8, HALF), channels=8),
    "fp16 product in fp32": Way(then(product(3, SINGLE), HALF)),
    "fp16 padded": Way(padded, channels=4),
    "fp16 pairs": Way(pairs(HALF), channels=6, block=PAIR),
    "fp16 pairs, even": Way(pairs(HALF), channels=6, block=PAIR, is_even=True),
    "fp16 pairs of 8": Way(widened(pairs(HALF), 6, 8, HALF), channels=8, block=PAIR, is_even=True),
    "fp16 blocks": Way(blocks(BLOCK, HALF), channels=12, block=BLOCK),
    "fp16 blocks, even": Way(blocks(BLOCK, HALF), channels=12, block=BLOCK, is_even=True),
    "fp16 blocks of 16": Way(widened(blocks(BLOCK, HALF), 12, 16, HALF), channels=16, block=BLOCK, is_even=True),
    "fp16 planar bound": Way(lambda g, x: g.cast(x, HALF), "NCHW"),
    "fp16 planar, one node": Way(planar_by(batch_norm, HALF), "NCHW"),
    "fp16 planar, one product": Way(planar_by(scaled, HALF), "NCHW"),
    "fp16 planar, shifted": Way(
        lambda g, x: g.add("Sub", g.cast(x, HALF), g.constant(MEAN.reshape(1, 3, 1, 1), HALF)), "NCHW", folded="scale"
    ),
    "fp16 planar, with ones": Way(with_ones, "NCHW", channels=4, folded="shift and scale"),
    "fp16 planar, looked up": Way(looked_up((1, 3, 1, 1), HALF, is_last=False), "NCHW"),
    "fp16 looked up": Way(looked_up((1, 1, 1, 3), HALF, is_last=True)),
    "fp16 first, looked up": Way(looked_up((1, 3, 1, 1), HALF, is_last=True, is_late=True)),
    "fp16 first, one node": Way(first_by(batch_norm, HALF)),
    "fp16 looked up by elements": Way(looked_up_by_elements(HALF)),
    "fp16 looked up by channel": Way(looked_up_by_channel(HALF, 3)),
    "fp16 planar, looked up by channel": Way(looked_up_by_channel(HALF, 1), "NCHW"),
    "fp16 looked up as it is, shifted": Way(as_is(HALF), folded="scale"),
    "fp16 looked up as it is, one node": Way(as_is(HALF, batch_norm)),
    "fp16 planar, looked up as it is, one node": Way(as_is(HALF, batch_norm, is_planar=True), "NCHW"),
    "fp16 multiplied": Way(multiplied(False, HALF)),
    "fp16 multiplied from the left": Way(multiplied(True, HALF)),
    "fp16 summed": Way(summed(HALF)),
    "fp16 sliced": Way(sliced(HALF)),
    "fp16 filtered": Way(filtered(HALF)),
    "fp16 lines": Way(lines(HALF), channels=1, is_line=True),
    "int8 floats": Way(lambda g, x: x, None),
    "int8 bound": Way(bare(SINGLE)),
    "int8 last": Way(last(SINGLE)),
    "int8 last in fp16": Way(then(last(HALF), SINGLE)),
    "int8 product": Way(product(3, SINGLE)),
    "int8 quantized before": Way(
        lambda g, x: g.add(
            "Transpose",
            g.quantized(g.normalised(g.cast(x, SINGLE), (1, 1, 1, 3), SINGLE), INPUT_SCALE),
            perm=TRANSPOSE,
        ),
        is_quantized=True,
    ),
    "int8 planar bound": Way(lambda g, x: g.cast(x, SINGLE), "NCHW"),
    "int8 planar": Way(planar(SINGLE), "NCHW"),
    "int8 planar in fp16": Way(then(planar(HALF), SINGLE), "NCHW"),
    "int8 planar, one node": Way(planar_by(batch_norm, SINGLE), "NCHW"),
    "int8 planar, one node in fp16": Way(then(planar_by(batch_norm, HALF), SINGLE), "NCHW"),
    "int8 planar, one product": Way(planar_by(scaled, SINGLE), "NCHW"),
    "int8 planar, one product in fp16": Way(then(planar_by(scaled, HALF), SINGLE), "NCHW"),
    "int8 planar, looked up": Way(looked_up((1, 3, 1, 1), SINGLE, is_last=False), "NCHW"),
    "int8 planar, looked up in fp16": Way(then(looked_up((1, 3, 1, 1), HALF, is_last=False), SINGLE), "NCHW"),
    "int8 looked up": Way(looked_up((1, 1, 1, 3), SINGLE, is_last=True)),
    "int8 first, looked up": Way(looked_up((1, 3, 1, 1), SINGLE, is_last=True, is_late=True)),
    "int8 looked up by elements": Way(looked_up_by_elements(SINGLE)),
    "int8 looked up by elements in fp16": Way(then(looked_up_by_elements(HALF), SINGLE)),
    "int8 looked up by channel": Way(looked_up_by_channel(SINGLE, 3)),
    "int8 planar, looked up by channel": Way(looked_up_by_channel(SINGLE, 1), "NCHW"),
    "int8 looked up as it is, one node": Way(as_is(SINGLE, batch_norm)),
    "int8 planar, looked up as it is, one node": Way(as_is(SINGLE, batch_norm, is_planar=True), "NCHW"),
    "int8 looked up by elements, quantized before": Way(
        lambda g, x: g.add("Transpose", g.quantized(by_elements(g, x, SINGLE), INPUT_SCALE), perm=TRANSPOSE),
        is_quantized=True,
    ),
    "int8 summed": Way(summed(SINGLE)),
    "int8 sliced": Way(sliced(SINGLE)),
    "int8 pairs": Way(pairs(SINGLE), channels=6, block=PAIR),
    "int8 pairs quantized before": Way(pairs(SINGLE, requantized), channels=6, block=PAIR, is_quantized=True),
    "int8 blocks": Way(blocks(BLOCK, SINGLE), channels=12, block=BLOCK),
    "int8 blocks, even": Way(blocks(BLOCK, SINGLE), channels=12, block=BLOCK, is_even=True),
    "int8 blocks in fp16": Way(then(blocks(BLOCK, HALF), SINGLE), channels=12, block=BLOCK),
    "int8 blocks quantized before": Way(
        blocks(BLOCK, SINGLE, requantized), channels=12, block=BLOCK, is_quantized=True
    ),
    "int8 blocks quantized before in fp16": Way(
        blocks(BLOCK, HALF, requantized_in_fp32), channels=12, block=BLOCK, is_quantized=True
    ),
}
"""Ways by name; the first word is the precision of the stem."""

PRECISIONS = ("fp16", "int8")

SHOWN = tuple(
    f"{precision} {way}"
    for precision in PRECISIONS
    for way in (
        "floats",
        "last",
        "planar, one node",
        "looked up",
        "looked up by channel",
        "pairs",
        "blocks",
        "product",
        "looked up as it is, one node",
        "planar, looked up as it is, one node",
    )
)
"""Ways whose figures are saved. Of the others, only the fastest and those that can't be built are saved."""


def square(graph: Graph, channels: int, size: int, side: int, stride: int) -> Convolution:
    """Return a convolution with random weights over square images."""
    weights = graph.generator.standard_normal((CHANNELS, channels, size, size)) / size**2
    line = Line(side, size, stride, size // 2, size // 2)
    return Convolution(weights, line, line)


def over_what_comes(given: Convolution, way: Way) -> Convolution:
    """Return the same convolution over the output of a way; the weights of added channels, which are zero, are zero."""
    if way.folded:
        weights = given.weights / DEVIATION[:, None, None]
        shift = -(weights * MEAN[:, None, None]).sum(axis=1, keepdims=True)
        return replace(given, weights=np.concatenate([weights, shift], axis=1) if "shift" in way.folded else weights)
    if way.is_line:
        many, channels, height, width = given.weights.shape
        columns = given.columns
        wider = Line(*(3 * getattr(columns, name) for name in ("size", "kernel", "stride", "begin", "end")))
        weights = given.weights.transpose(0, 2, 3, 1).reshape(many, 1, height, width * channels)
        return Convolution(weights, given.rows, wider)
    made = blocked(given, way.block, way.is_even)
    assert made is not None, "sides are even"
    more = way.channels - made.weights.shape[1]
    return replace(made, weights=np.pad(made.weights, ((0, 0), (0, more), (0, 0), (0, 0))))


def convolution(graph: Graph, value: str, made: Convolution, is_int8: bool) -> str:
    """Add a convolution with its ReLU, with quantized weights for int8; return the name of the output."""
    weights = made.weights
    dtype = SINGLE if is_int8 else HALF
    given = graph.constant(weights, dtype)
    if is_int8:
        scales = np.abs(weights).max(axis=(1, 2, 3)) / 127
        whole = graph.constant(np.rint(weights / scales[:, None, None, None]), np.int8)
        zeros = graph.constant(np.zeros(CHANNELS), np.int8)
        given = graph.add("DequantizeLinear", whole, graph.constant(scales), zeros, axis=0)
    product = graph.add("Conv", value, given, graph.constant(np.zeros(CHANNELS), dtype), **made.attributes)
    return graph.add("Relu", product)


def stem(name: str, batch: int, side: int) -> Any:
    """Return the ONNX model of a way."""
    way, is_int8 = WAYS[name], name.startswith("int8")
    graph = Graph(batch, side)
    value = way.prefix(graph, "image")
    if is_int8 and not way.is_quantized:
        value = graph.quantized(value, INPUT_SCALE)
    value = convolution(graph, value, over_what_comes(square(graph, 3, 7, side, 2), way), is_int8)
    value = graph.quantized(value, INNER_SCALE) if is_int8 else value
    value = graph.add("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    value = convolution(graph, value, square(graph, CHANNELS, 3, side // 4, 1), is_int8)
    value = graph.add("GlobalAveragePool", graph.quantized(value, INNER_SCALE) if is_int8 else value)
    graph.nodes[-1].output[0] = "sums"
    shape = (batch, 3, side, side) if way.layout in (None, "NCHW") else (batch, side, side, 3)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8 if way.layout else TensorProto.FLOAT, shape)
    kind = TensorProto.FLOAT if is_int8 else TensorProto.FLOAT16
    sums = helper.make_tensor_value_info("sums", kind, (batch, CHANNELS, 1, 1))
    whole = helper.make_graph(graph.nodes, "stem", [image], [sums], graph.constants)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layer_times(path: Path, inputs: Any, runs: int = 8) -> list[tuple[str, float]]:
    """Return the median ms of each of an engine's layers, by TensorRT's profiler.

    Layers take longer under the profiler than in a CUDA graph.
    """
    trt: Any = optional.require("tensorrt", "time layers")
    cuda: Any = optional.require("pycuda.driver", "time layers")
    found: dict[str, list[float]] = {}

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, name: str, ms: float) -> None:
            found.setdefault(name, []).append(ms)

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    context, profiler = engine.create_execution_context(), Profiler()
    context.profiler = profiler
    image = cuda.to_device(inputs["image"])
    sums = cuda.mem_alloc(4 * CHANNELS * len(inputs["image"]))
    for _ in range(runs):
        context.execute_v2([int(image), int(sums)])
    return [(name, float(np.median(times[1:]))) for name, times in found.items()]


def built(name: str, batch: int, folder: Path) -> Artifact | str:
    """Return the engine of a way, or why it can't be built."""
    file = folder / f"{name.replace(' ', '-').replace(',', '')}.onnx"
    if file.with_suffix(".engine").exists():
        return load(file.with_suffix(".engine"), "engine")
    onnx.save(stem(name, batch, 224), str(file))
    request = BuildRequest(file, backend="tensorrt", own_kernels=True, verify=False, output=file.with_suffix(".engine"))
    try:
        return build(request)
    except Exception as error:  # TensorRT can't build some of them: report that and go on
        print(name, "can't be built:", error, flush=True)
        return str(error)


def build_all(names: Sequence[str], batch: int, jobs: int, folder: Path) -> dict[str, Artifact | str]:
    """Return the engines by name of the way, built `jobs` at once."""
    with ThreadPoolExecutor(jobs) as pool:  # each build runs in its own process
        return dict(zip(names, pool.map(lambda name: built(name, batch, folder), names)))


def measure(artifacts: Mapping[str, Artifact | str], batch: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way; those that can't be built have no figures."""
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        loops: dict[str, Loop] = {}
        for name, artifact in artifacts.items():
            if isinstance(artifact, str):
                rows[name] = {"way": name, "failed": artifact}
                continue
            inputs = random_inputs(artifact.sidecar.inputs, batch, seed=0)
            session = stack.enter_context(stack.enter_context(open_engine(load(artifact.path, "engine"))).session())
            session.bind(inputs)
            loops[name] = mode_loop(session.modes()["graph"])
            rows[name] = {"way": name, "layers": layer_times(artifact.path, inputs)}
        times = medians(loops, rounds)
    for name, found in times.items():
        floats = times.get(f"{name.split()[0]} floats", found)
        more = float(np.median(np.asarray(found) - np.asarray(floats)))
        rows[name] |= {"ms": float(np.median(found)), "over_floats": ratio(found, floats), "more_ms": more}
        rows[name]["rounds_ms"] = found
    return list(rows.values())


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what ``--json`` writes."""
    by_way = {row["way"]: row for row in rows}
    least = {}
    for precision in PRECISIONS:
        computed = [
            row
            for way, row in by_way.items()
            if way.startswith(precision) and "more_ms" in row and "bound" not in way and "floats" not in way
        ]
        if computed:
            best = min(computed, key=lambda row: float(row["more_ms"]))
            least[precision] = {"way": best["way"], "more_ms": best["more_ms"]}
    figures = ("way", "ms", "over_floats", "more_ms")
    return {
        "ways": len(rows),
        "least": least,
        "failed": {way: row["failed"][:200] for way, row in by_way.items() if "failed" in row},
        "rows": [{name: by_way[way][name] for name in figures} for way in SHOWN if "ms" in by_way.get(way, {})],
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table with a line for each way."""
    lines = ["| stem, prefix | GPU, ms | more than floats, ms |", "|---|---:|---:|"]
    for row in rows:
        figures = "can't be built | –" if "failed" in row else f"{row['ms']:.4f} | {row['more_ms']:+.4f}"
        lines.append(f"| {row['way']} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=";".join(WAYS), help="names of ways, with a semicolon between")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="engines built at once, which disturb each other's choices")
    parser.add_argument("--engines", type=Path, help="folder to keep them in; those in it aren't built again")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.engines or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = build_all(given.only.split(";"), given.batch, given.jobs, folder)
        if given.build_only:
            return
        rows = measure(artifacts, given.batch, given.rounds)
    for row in rows:
        for layer, ms in row.get("layers", []):
            print(f"{row['way']:24} {ms:.4f} {layer}")
    print(markdown(rows))
    if given.json is not None:
        write(given.json, {"script": "benchmarks/prefix_table.py", "batch": given.batch, **machine(), **summary(rows)})


if __name__ == "__main__":
    main()
