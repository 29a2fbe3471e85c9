"""Run NVIDIA ModelOpt on one ONNX file.

:mod:`trtbatch.quantization.converter` starts this program, maybe in another interpreter::

    PYTHON trtbatch/quantization/modelopt_worker.py REQUEST.json

ModelOpt pins its own onnx and ONNX Runtime, so it may live in an environment that has no trtbatch: nothing of the
package is imported here. The last line on standard output is a JSON object: ``converted``, ``missing`` (a module) or
``failed``. When standard input closes, the parent is gone, and so is this process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != os.path.dirname(os.path.abspath(__file__))]
"""Started by its path, this script has the package's folder first, whose ``build`` and ``stats`` aren't theirs."""


def main(request_file: str) -> int:
    """Convert, report on standard output, and return the exit code."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # ModelOpt prints as it goes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(request_file, encoding="utf-8") as stream:
        found = answer(json.load(stream))
    print(json.dumps(found), file=channel, flush=True)
    return 0 if "converted" in found else 1


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Convert, and return what came of it: ``converted``, ``missing`` or ``failed``."""
    try:
        convert(request)
    except ModuleNotFoundError as error:
        return {"missing": error.name}
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return {"failed": text[:500]}
    from importlib.metadata import version

    return {"converted": {"modelopt": version("nvidia-modelopt")}}


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def convert(request: dict[str, Any]) -> None:
    """Write ``request["output"]``: ``request["source"]`` in ``request["precision"]``.

    What isn't quantized is cast afterwards: AutoCast leaves in float32 what it is told to, and what needs it;
    ``quantize`` by itself casts everything.
    """
    if request["precision"] in ("fp16", "bf16"):
        _autocast(request, request["source"], request["precision"])
        return
    _quantize(request)
    if request["rest"] != "fp32":
        quantized = request["output"] + ".quantized.onnx"
        os.rename(request["output"], quantized)
        _autocast(request, quantized, request["rest"], opset=19)  # the first whose scales may be float16


def _autocast(request: dict[str, Any], source: str, precision: str, opset: int | None = None) -> None:
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    model = convert_to_mixed_precision(
        source,
        low_precision_type=precision,
        opset=opset,
        nodes_to_exclude=request["exclude_nodes"],  # regular expressions
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
        nodes_to_exclude=request["exclude_nodes"] or None,  # regular expressions
        use_external_data_format=os.path.getsize(request["source"]) > request["largest"],
        high_precision_dtype="fp32",
        output_path=request["output"],
        log_level="WARNING",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
