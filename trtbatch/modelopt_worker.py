"""Runs NVIDIA ModelOpt on one ONNX file; :mod:`trtbatch.precision` starts it, maybe in another interpreter.

    PYTHON trtbatch/modelopt_worker.py REQUEST.json

ModelOpt pins its own onnx and ONNX Runtime, so it may live in an environment that has no trtbatch: nothing of the
package is imported here. The last line on standard output is a JSON object, ``converted`` or ``failed``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(request_file: str) -> int:
    """Convert, and tell on standard output; returns the exit code."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # ModelOpt prints as it goes
    with open(request_file, encoding="utf-8") as stream:
        request = json.load(stream)
    try:
        convert(request)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps({"failed": text[:500]}), file=channel, flush=True)
        return 1
    from importlib.metadata import version

    print(json.dumps({"converted": {"modelopt": version("nvidia-modelopt")}}), file=channel, flush=True)
    return 0


def convert(request: dict[str, Any]) -> None:
    """Write ``request["output"]``: ``request["source"]`` in ``request["precision"]``."""
    if request["precision"] in ("fp16", "bf16"):
        _autocast(request)
    else:
        _quantize(request)


def _autocast(request: dict[str, Any]) -> None:
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    model = convert_to_mixed_precision(
        request["source"],
        low_precision_type=request["precision"],
        nodes_to_exclude=request["exclude_nodes"],  # regular expressions
        op_types_to_exclude=request["exclude_ops"],
        keep_io_types=request["keep_io"],
        calibration_data=request["calibration"],
        providers=["cpu"],
    )
    large = model.ByteSize() > request["largest"]
    location = os.path.basename(request["output"]) + ".data"
    onnx.save(model, request["output"], save_as_external_data=large, location=location)


def _quantize(request: dict[str, Any]) -> None:
    import numpy as np
    from modelopt.onnx.quantization import quantize

    with np.load(request["calibration"], allow_pickle=False) as archive:
        samples = {name: archive[name] for name in archive}
    quantize(
        request["source"],
        quantize_mode=request["precision"],
        calibration_data=samples,
        calibration_method=request["method"],
        calibration_eps=["cpu"],
        op_types_to_exclude=request["exclude_ops"] or None,
        nodes_to_exclude=request["exclude_nodes"] or None,  # regular expressions
        use_external_data_format=os.path.getsize(request["source"]) > request["largest"],
        high_precision_dtype=request["rest"],
        output_path=request["output"],
        log_level="WARNING",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
