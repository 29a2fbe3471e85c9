"""pytest's JUnit XML to the JSON that is committed: every test, its outcome, what it printed, and the machine.

python scripts/test_summary.py OUT.json TESTS.xml…
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from trtbatch import environment
from trtbatch.backends import tensorrt


def outcome(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def main(target: str, *sources: str) -> int:
    cases = [case for source in sources for case in ElementTree.parse(source).getroot().iter("testcase")]
    tests: list[dict[str, Any]] = []
    for case in cases:
        printed = (case.findtext("system-out") or "").strip().splitlines()
        told = [line.strip() for line in printed if line.strip() and not line.startswith("----")]
        told = [line.replace(str(Path.home()), "~") for line in told]
        seconds = round(float(case.get("time", "0")), 1)
        test = {"test": case.get("name"), "file": case.get("classname"), "outcome": outcome(case), "seconds": seconds}
        tests.append(test | ({"printed": told} if told else {}))
    device: dict[str, str] = {}
    if tensorrt.obstacle() is None:
        from trtbatch.backends.tensorrt.buffers import device_facts

        device = device_facts()
    counts = {
        name: sum(test["outcome"] == name for test in tests) for name in ("passed", "failure", "error", "skipped")
    }
    facts = {"device": device, "environment": environment.describe(), "gpu": environment.gpu_state()}
    result = {"script": "scripts/gpu-check", "counts": counts, **facts, "tests": tests}
    Path(target).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{counts} -> {target}")
    return 0 if counts["passed"] and not counts["failure"] and not counts["error"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
