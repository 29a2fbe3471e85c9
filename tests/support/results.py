"""Results as ``bench --json`` writes them, of times that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trtbatch.benchmark.bench import BatchResult, BenchResult
from trtbatch.core.batches import Profile
from trtbatch.core.sidecar import ModelRecord
from trtbatch.reporting import report
from trtbatch.util.statistics import summarize

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


def row(batch: int, mode: str, **fields: Any) -> BatchResult:
    summary = summarize(np.full(200, 0.5), (90, 99))
    line = BatchResult(
        batch=batch,
        mode=mode,
        profile=1,
        shapes={"input": [batch, 3, 8, 8], "output": [batch, 5]},
        samples_per_s=batch / 0.5e-3,
        ms_per_sample=0.5 / batch,
        speedup=1.0,
        speedup_over=1,
        summary=summary,
        samples_ms=(0.5,) * 200,
        verdict=summary.verdict,
    )
    return replace(line, **fields)


def result(*rows: BatchResult) -> BenchResult:
    return BenchResult(
        engine="x.engine",
        backend="tensorrt",
        precision="fp16",
        model=ModelRecord("resnet18", "random (seed 0)"),
        profiles=(Profile(1, 1, 1), Profile(1, 8, 32)),
        timed={line.mode: f"what {line.mode} is" for line in rows},
        settings={"iterations": None, "max_noise": 0.005, "time_out_s": 3.0},
        tools={},
        device={"gpu": "NVIDIA H200"},
        environment={},
        gpu_before={},
        gpu_after={},
        created="",
        batches=rows,
    )


BATCHES = (1, 2, 4, 8, 16, 32)


def timed(
    ms: Callable[[int], float],
    batches: Sequence[int] = BATCHES,
    mode: str = "graph",
    precision: str = "fp16",
    model: str = "net",
    gpu: str = "NVIDIA H200",
    bound: Callable[[int], str | None] = lambda batch: None,
    samples: int = 60,
) -> BenchResult:
    """A result whose samples lie closely above and below `ms`, the median."""
    spread = 1 + 0.002 * np.random.default_rng(3).permutation(np.arange(samples) - (samples - 1) / 2) / samples
    rows = [
        row(batch, mode, samples_ms=tuple(float(each) for each in ms(batch) * spread), bound=bound(batch))
        for batch in batches
    ]
    made = result(*rows)
    return replace(made, precision=precision, model=replace(made.model, name=model), device={"gpu": gpu})


def saved(path: Path, found: BenchResult) -> Path:
    report.write_json(found, path)
    return path
