"""Results as ``bench --json`` writes them, of times that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_result"]


def write_result(path: Path, ms: Mapping[int, float], stable: bool = True, runs: int = 60, cpu: str = "a CPU") -> None:
    """Write a result whose times lie closely around `ms`, which is by batch size."""
    result = {
        "engine": "small.ort.onnx",
        "backend": "onnxruntime",
        "precision": "fp32",
        "model": {"name": "small", "weights": "random (seed 0)", "opset": 17},
        "profiles": [{"min": 1, "opt": 4, "max": 8}],
        "tools": {"onnxruntime": "1.24.0"},
        "timed": {"run": "wall time per call"},
        "settings": {"iterations": runs, "min_time_s": 1.0, "max_noise": 0.01, "warmup_ms": 200.0, "seed": 0},
        "device": {"cpu": cpu},
        "environment": {"trtbatch": "0.1.0", "cpu": cpu, "cores": 2, "python": "3.11.7", "libraries": {}},
        "created": "2025-01-01T00:00:00+00:00",
        "gpu_before": {},
        "gpu_after": {},
        "batches": [_line(batch, median, stable, runs) for batch, median in ms.items()],
        "format_version": 1,
    }
    path.write_text(json.dumps(result))


def _line(batch: int, median: float, stable: bool, runs: int) -> dict[str, Any]:
    summary = {
        "iterations": runs,
        "median": median,
        "mean": median,
        "minimum": median * 0.999,
        "maximum": median * 1.001,
        "percentiles": {"p90": median, "p99": median * 1.001},
        "cv": 0.001,
        "noise": 0.0005,
        "drift": 0.0,
        "stable": stable,
    }
    return {
        "batch": batch,
        "mode": "run",
        "profile": 0,
        "shapes": {"input": [batch, 3, 8, 8], "output": [batch, 5]},
        "samples_per_s": 1e3 * batch / median,
        "ms_per_sample": median / batch,
        "speedup": 1.0,
        "speedup_over": 1,
        "summary": summary,
        "samples_ms": [median * (1 + 0.001 * (-1) ** index) for index in range(runs)],
        "verdict": "stable" if stable else "noise 9 %",
        "parts_ms": {},
        "window": 1,
        "bad": [],
        "faults": [],
    }
