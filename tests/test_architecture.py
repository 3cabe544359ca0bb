"""The imports of the three packages, read from their source: one direction, and no circle.

Imports inside functions and under TYPE_CHECKING count like any other. What a package's `__init__` re-exports on first
use counts as an import of that `__init__`.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("runtime", "calibration", "exporter")  # each may import those before it
PREFIX = "resnet_export."


def modules(root: Path) -> dict[str, Path]:
    """Every module below the three packages in `root`, by its dotted name without the namespace."""
    found = {}
    for package in LAYERS:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of `known` that the source of module `name` imports anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix(PREFIX) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").removeprefix(PREFIX)
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base != "resnet_export" else alias.name
                found.add(inner if inner in known else base)
    return {target for target in found if target in known and target != name}


def graph(root: Path) -> dict[str, set[str]]:
    known = modules(root)
    return {name: imports(name, path, known) for name, path in known.items()}


def cycle(edges: dict[str, set[str]]) -> list[str] | None:
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def backward(edges: dict[str, set[str]]) -> list[str]:
    """Every import that goes from a lower package to a higher one."""
    level = {package: index for index, package in enumerate(LAYERS)}
    return [
        f"{name} imports {target}"
        for name, targets in edges.items()
        for target in sorted(targets)
        if level[name.partition(".")[0]] < level[target.partition(".")[0]]
    ]


def test_no_module_imports_itself_in_the_end() -> None:
    assert cycle(graph(ROOT)) is None


def test_imports_go_from_the_exporter_to_calibration_to_the_runtime() -> None:
    assert backward(graph(ROOT)) == []


@pytest.mark.parametrize(
    "source",
    [
        "from resnet_export.runtime.b import thing",
        "from resnet_export.runtime import b",
        "import resnet_export.runtime.b",
        "from . import b",
        "from .b import thing",
        "def later():\n    from resnet_export.runtime.b import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from resnet_export.runtime.b import thing",
    ],
)
def test_a_circle_is_found_however_it_is_written(tmp_path: Path, source: str) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "a.py").write_text(source)
    (tmp_path / "runtime" / "b.py").write_text("from resnet_export.runtime.a import other")
    assert cycle(graph(tmp_path)) is not None


def test_an_import_upwards_is_found(tmp_path: Path) -> None:
    for package in LAYERS:
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("")
    (tmp_path / "runtime" / "a.py").write_text("from resnet_export.calibration import a")
    (tmp_path / "calibration" / "a.py").write_text(
        "from resnet_export import exporter\nimport resnet_export.exporter.a"
    )
    assert backward(graph(tmp_path)) == [
        "runtime.a imports calibration.a",
        "calibration.a imports exporter.a",
    ]
