"""pytest's report to the JSON that is committed: every test, its outcome, what it printed, and the machine.

    python scripts/test_summary.py OUT.json TESTS.xml…
    python scripts/test_summary.py OUT.json --machine OTHER.json TESTS.log…

The XML is JUnit's. A log is what ``pytest -rA`` printed, for a run that was cut off before its XML were summarised;
the machine is then that of another result of the same run.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtbatch import environment
from trtbatch.backends import tensorrt

FOLDERS = re.compile(rf"(?:/tmp|/work|{re.escape(str(Path.home()))})/(?:[^\s,:()]*/)?")
"""Working folders of the machine, which say nothing to a reader."""

OUTCOMES = {"PASSED": "passed", "FAILED": "failure", "ERROR": "error", "SKIPPED": "skipped"}


def outcome(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def from_xml(source: str) -> Iterator[dict[str, Any]]:
    for case in ElementTree.parse(source).getroot().iter("testcase"):
        told = case.findtext("system-out") or ""
        seconds = round(float(case.get("time", "0")), 1)
        test = {"test": case.get("name"), "file": case.get("classname"), "outcome": outcome(case), "seconds": seconds}
        yield test | printed(told)


def from_log(source: str) -> Iterator[dict[str, Any]]:
    text = Path(source).read_text(encoding="utf-8")
    if not re.search(r"^\d+ passed(, \d+ \w+)* in [\d.]+s", text, re.MULTILINE):
        raise SystemExit(f"{source} doesn't end with pytest's count of tests: it was cut off")
    sections = dict(re.findall(r"^_+ (\S.*?) _+\n(.*?)(?=^_+ \S[^\n]* _+$|^={4,} )", text, re.MULTILINE | re.DOTALL))
    for kind, file, name in re.findall(
        r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+?)\.py::(\S[^\n]*?)(?: - .*)?$", text, re.M
    ):
        test = {"test": name, "file": file.replace("/", "."), "outcome": OUTCOMES[kind]}
        yield test | printed(sections.get(name, ""))


def printed(text: str) -> dict[str, list[str]]:
    told = [line.strip() for line in text.strip().splitlines() if line.strip() and not line.startswith("----")]
    return {"printed": [FOLDERS.sub("…/", line) for line in told]} if told else {}


def machine() -> dict[str, Any]:
    device: dict[str, str] = {}
    if tensorrt.obstacle() is None:
        from trtbatch.backends.tensorrt.buffers import device_facts

        device = device_facts()
    return {"device": device, "environment": environment.describe(), "gpu": environment.gpu_state()}


def main(target: str, *sources: str) -> int:
    if sources[0] == "--machine":
        other = json.loads(Path(sources[1]).read_text(encoding="utf-8"))
        facts = {"machine": f"of {Path(sources[1]).name}, a result of the same run"}
        facts |= {name: other[name] for name in ("device", "environment")}
        tests = [test for source in sources[2:] for test in from_log(source)]
    else:
        facts = machine()
        tests = [test for source in sources for test in from_xml(source)]
    counts = {name: sum(test["outcome"] == name for test in tests) for name in OUTCOMES.values()}
    result = {"script": "scripts/gpu-check", "counts": counts, **facts, "tests": tests}
    Path(target).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{counts} -> {target}")
    return 0 if counts["passed"] and not counts["failure"] and not counts["error"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
