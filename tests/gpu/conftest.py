"""Tests on a real GPU; skipped, with the reason, where TensorRT can't run."""

from __future__ import annotations

import pytest

from trtbatch.backends import tensorrt


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    obstacle = tensorrt.obstacle()
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if obstacle is not None:
                item.add_marker(pytest.mark.skip(reason=f"TensorRT can't run here: {obstacle.problem}"))
