"""Did the engine do what the graph asked? Its layers' precisions next to those of the graph's products. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["RealizedPrecision", "realized_precision"]

_BITS = {"int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "tf32": 19, "fp32": 32}
"""Bits that a product's factors are held in."""

_REGION = "ForeignNode["
"""TensorRT's name of a region that its graph compiler made into one layer, whose nodes can't be distinguished."""


@dataclass(frozen=True)
class RealizedPrecision:
    """What the layers of an engine compute in.

    Args:
        shares: of the layers that tell, by precision.
        resolved: products of the graph whose layer was found and tells its precision.
        unmet: products that compute in more bits than the graph gives them, in words.
        narrow: products that compute in fewer bits than the graph gives them, and may not, in words.
    """

    shares: dict[str, float]
    resolved: int
    unmet: tuple[str, ...]
    narrow: tuple[str, ...]


def realized_precision(
    products: Mapping[str, str],
    layers: Sequence[tuple[str, str, str, str]],
    allowed: Collection[str] = (),
    kept: Collection[str] = (),
) -> RealizedPrecision:
    """Compare.

    Args:
        products: what each product of the graph is to compute in, by the node's name.
        layers: (name, kind, precision, tactic) of the engine's; fused layers are named ``A + B + C``.
        allowed: precisions that products may use though the graph gives them more bits.
        kept: products to which that doesn't apply.
    """
    counts = Counter(precision for _, _, precision, _ in layers if precision)
    total = sum(counts.values())
    by_node = {node: precision for name, _, precision, _ in layers for node in _nodes(name)}
    known = {node: by_node[node] for node in products if by_node.get(node, "") in _BITS}
    return RealizedPrecision(
        {name: round(count / total, 4) for name, count in counts.most_common()},
        len(known),
        tuple(_words(node, found, products) for node, found in known.items() if _BITS[found] > _BITS[products[node]]),
        tuple(
            _words(node, found, products)
            for node, found in known.items()
            if _BITS[found] < min(_BITS[products[node]], _BITS["tf32"]) and (found not in allowed or node in kept)
        ),
    )


def _words(node: str, found: str, products: Mapping[str, str]) -> str:
    return f"{node} ({found}, not {products[node]})"


def _nodes(layer: str) -> Iterator[str]:
    """Return the ONNX nodes that a layer's name contains."""
    if _REGION not in layer:
        yield from (part.strip() for part in layer.split(" + "))
