"""Tests of the package's structure: no import cycles, and no long function without a stated reason."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "residuald_train"
FILES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MAX_LINES = 80


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in FILES}


def imported(path):
    """The package's modules that a file imports, including imports inside functions."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(FILES[path]):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = ".".join(package[: len(package) - node.level + 1] + (node.module or "").split(".")).rstrip(".")
        for alias in node.names:
            # `from . import x` names a module, or something that the package's __init__ defines
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in NAMES else base


def test_imports_have_no_circle():
    graph = {name: set(imported(path)) - {name} for name, path in NAMES.items()}
    assert all(found <= NAMES.keys() for found in graph.values())
    assert sum(map(len, graph.values())) > 100
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_are_short_and_modules_documented(path):
    for node in ast.walk(FILES[path]):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MAX_LINES, f"{path.name}: {node.name}"
    assert ast.get_docstring(FILES[path]) or path.name == "__main__.py"
