"""Files of the package don't import each other in a circle, imports for types included."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.processes import ROOT


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports, wherever in it, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{each.name}" for each in node.names}
            found |= names & modules or {node.module}
    return found & modules


def order_of(package: Path) -> list[str]:
    """The modules of a package in an order of imports; the package's own front, which names all of them, is left out.

    Raises:
        CycleError: there is none.
    """
    files = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
        if path != package / "__init__.py"
    }
    return list(TopologicalSorter({name: imported(path, set(files)) for name, path in files.items()}).static_order())


def test_no_circle() -> None:
    order = order_of(ROOT / "trtbatch")
    assert order.index("trtbatch.core.preprocessing") < order.index("trtbatch.core.sidecar")
    assert order.index("trtbatch.core.sidecar") < order.index("trtbatch.builder.build")


def test_a_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "rooms").mkdir(parents=True)
    (package / "rooms" / "__init__.py").write_text("")
    (package / "rooms" / "one.py").write_text("from house.rooms.two import window\n")
    (package / "rooms" / "two.py").write_text("def window():\n    from house.rooms import one\n")
    with pytest.raises(CycleError):
        order_of(package)
