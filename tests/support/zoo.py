"""Torch models that exporters, or people, get wrong; factories for ``tests.support.zoo:NAME``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trtbatch import ModelSpec, Preprocessing


class Small(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.conv(x).relu().mean((2, 3)))


def small() -> nn.Module:
    return Small()


def wide() -> nn.Module:
    return Small(5000)


class Reshaped(Small):
    """``view`` with the batch that it was traced with."""

    def forward(self, x: Any) -> Any:
        return self.head(self.conv(x).relu().view(2, 8, -1).mean(2))


def reshaped() -> nn.Module:
    return Reshaped()


class Viewed(Small):
    """A hard-coded batch in front of the classifier."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x: Any) -> Any:
        features = self.conv(x).relu().mean((2, 3))
        return self.head(features.view(1, 8) if self.batch == 1 else features.view(self.batch, 8))


def one() -> nn.Module:
    return Viewed(1)


def eight() -> nn.Module:
    return Viewed(8)


class Token(nn.Module):
    """A class token, expanded to a number: the exporter folds it into a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        tokens = x.flatten(2).transpose(1, 2)[:, :, :1].repeat(1, 1, 4)
        return self.head(torch.cat([self.token.expand(2, -1, -1), tokens], 1).mean(1))


def token() -> nn.Module:
    return Token()


class Untracked(nn.Module):
    """A Python number taken from the shape: the tracer warns, and bakes it in."""

    def forward(self, x: Any) -> Any:
        return x.flatten(1).sum(1, keepdim=True) * float(x.shape[0])


def untracked() -> nn.Module:
    return Untracked()


class Fails(nn.Module):
    def forward(self, x: Any) -> Any:
        raise ValueError("this model never runs")


def fails() -> nn.Module:
    return Fails()


class TwoIn(nn.Module):
    def forward(self, image: Any, ids: Any) -> Any:
        return {"sum": image.mean((1, 2, 3)) + ids.float().sum(1), "ids": ids + 1}


def two_in() -> ModelSpec:
    return ModelSpec(
        TwoIn(),
        inputs=lambda batch: {"image": torch.randn(batch, 3, 8, 8), "ids": torch.randint(10, 90, (batch, 4))},
        preprocessing=Preprocessing(10, (8, 8)),
    )


def two_in_tensors() -> ModelSpec:
    return ModelSpec(TwoIn(), inputs={"image": torch.randn(1, 3, 8, 8), "ids": torch.arange(4)[None] + 10})


class BatchSecond(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.cumsum(0)


def batch_second() -> ModelSpec:
    return ModelSpec(BatchSecond(), inputs=lambda batch: torch.randn(6, batch, 3))


def photos() -> ModelSpec:
    return ModelSpec(Small(), lambda n: torch.randn(n, 3, 16, 16), Preprocessing(18, (16, 16)), list("abcde"))


def not_a_module() -> int:
    return 3


def broken() -> nn.Module:
    raise RuntimeError("no such file: weights.bin")


no_function = 3


class Attention(nn.Module):
    """A transformer layer: its fused inference path is one that exporters don't know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.layer(x.flatten(2).transpose(1, 2)).mean(1)


def attention() -> ModelSpec:
    return ModelSpec(Attention(), lambda n: torch.randn(n, 8, 3, 3))


class Noisy(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.rand_like(x)


def noisy() -> nn.Module:
    return Noisy()


class Unused(nn.Module):
    def forward(self, a: Any, b: Any) -> Any:
        return a * 2


def unused() -> ModelSpec:
    return ModelSpec(Unused(), lambda n: (torch.randn(n, 3), torch.randn(n, 3)))


def brain() -> nn.Module:
    return Small().to(torch.bfloat16)


def divides() -> ModelSpec:
    return ModelSpec(Small(), lambda n: 1 // 0)


def leaves() -> nn.Module:
    raise SystemExit(3)


def cropped() -> ModelSpec:
    return ModelSpec(Small(), lambda n: torch.randn(n, 3, 32, 32), Preprocessing(18, (16, 16)))


def unnamed() -> ModelSpec:
    return ModelSpec(Small(), lambda n: torch.randn(n, 3, 16, 16), classes=["a", "b"])


class Constants(nn.Module):
    """Outputs that are no rows: a scalar and a buffer, next to one that is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.arange(3.0))

    def forward(self, x: Any) -> Any:
        return {"rows": x * 2, "total": x.sum(), "doubled": self.anchors * 2 + x.sum() * 0}


def constants() -> ModelSpec:
    return ModelSpec(Constants(), lambda n: torch.randn(n, 4))


def listed() -> ModelSpec:
    return ModelSpec(Small(), lambda n: {"x": [1, 2]})


def noisy_spec() -> ModelSpec:
    return ModelSpec(Noisy(), lambda n: torch.randn(n, 4))
