"""Convert pytest's report to the committed JSON: tests by outcome, the lines that the docs quote, and the machine.

    python scripts/test_summary.py OUT.json TESTS.xml…
    python scripts/test_summary.py OUT.json --machine OTHER.json TESTS.log…

The XML is JUnit's. A log is the output of ``pytest -rA``, for a run that was cut off before its XML was summarized; the
machine is then that of another result of the same run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.summary import machine, write

FOLDERS = re.compile(rf"(?:/tmp|/work|{re.escape(str(Path.home()))})/(?:[^\s,:()]*/)?")
"""Working folders of the machine, which mean nothing to a reader."""

QUOTED = {
    "test_the_bench_line_prints_a_table_of_every_batch": re.compile(
        r"resnet18 ·|[┃│]|execute_v2:|async:|ms/batch|executed at|accuracy:|[a-z]+-bound|\S+\.json$"
    )
}
"""Tests whose output the docs quote, and the starts of the lines to keep."""

OUTCOMES = {"PASSED": "passed", "FAILED": "failure", "ERROR": "error", "SKIPPED": "skipped"}


def outcome(case: ElementTree.Element) -> str:
    """Return the outcome of a test case: ``passed``, ``failure``, ``error`` or ``skipped``."""
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def from_xml(source: str) -> Iterator[dict[str, Any]]:
    """Yield the tests of a JUnit file."""
    for case in ElementTree.parse(source).getroot().iter("testcase"):
        told = case.findtext("system-out") or ""
        name = case.get("name", "")
        yield {"test": name, "file": case.get("classname"), "outcome": outcome(case), "printed": printed(name, told)}


def from_log(source: str) -> Iterator[dict[str, Any]]:
    """Yield the tests of a log; exit if the log was cut off."""
    text = Path(source).read_text(encoding="utf-8")
    if not re.search(r"^\d+ passed(, \d+ \w+)* in [\d.]+s", text, re.MULTILINE):
        raise SystemExit(f"{source} doesn't end with pytest's count of tests: it was cut off")
    sections = dict(re.findall(r"^_+ (\S.*?) _+\n(.*?)(?=^_+ \S[^\n]* _+$|^={4,} )", text, re.MULTILINE | re.DOTALL))
    for kind, file, name in re.findall(
        r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+?)\.py::(\S[^\n]*?)(?: - .*)?$", text, re.M
    ):
        told = printed(name, sections.get(name, ""))
        yield {"test": name, "file": file.replace("/", "."), "outcome": OUTCOMES[kind], "printed": told}


def printed(name: str, text: str) -> list[str]:
    """Return the lines of a test's output that the docs quote."""
    if name not in QUOTED:
        return []
    told = [line.strip() for line in text.splitlines() if QUOTED[name].match(line.strip())]
    return [FOLDERS.sub("…/", line) for line in told]


def summary(tests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts, names of the tests by outcome, and the lines that the docs quote."""
    by_outcome = {name: [test["test"] for test in tests if test["outcome"] == name] for name in OUTCOMES.values()}
    quoted = [line for test in tests for line in test["printed"]]
    return {
        "counts": {name: len(found) for name, found in by_outcome.items()},
        "files": sorted({test["file"] for test in tests}),
        **{name: found for name, found in by_outcome.items() if found},
        **({"printed": quoted} if quoted else {}),
    }


def main(target: str, *sources: str) -> int:
    """Write the summary to a file; return 0 if tests passed and none failed."""
    if sources[0] == "--machine":
        other = json.loads(Path(sources[1]).read_text(encoding="utf-8"))
        facts = {"machine": f"of {Path(sources[1]).name}, a result of the same run"}
        facts |= {name: other[name] for name in ("device", "environment")}
        tests = [test for source in sources[2:] for test in from_log(source)]
    else:
        facts = machine()
        tests = [test for source in sources for test in from_xml(source)]
    result = {"script": "scripts/gpu-check", **facts, **summary(tests)}
    write(Path(target), result)
    counts = result["counts"]
    print(f"{counts} -> {target}")
    return 0 if counts["passed"] and not counts["failure"] and not counts["error"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
