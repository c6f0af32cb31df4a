"""Spectra flow one way: no module imports from a floor above its own, and no imports run in a circle."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "chemscale"

#: Lowest first. A module may import what stands on its own floor or below it.
FLOORS = (
    ("errors", "schema", "display", "suggest", "labelled", "config", "arrays", "_version"),
    ("runtime",),
    ("statistics",),
    ("simulation",),
    ("formats",),
    ("catalogues",),
    ("survey.resample", "survey.continuum"),
    ("survey.sources",),
    ("survey.conversions", "survey.accessor"),
    ("survey.store",),
    ("survey.ingest",),
    ("survey",),
    ("embedding",),
    ("quality",),
    ("rsca",),
    ("vae",),
    ("studies",),
    ("results",),
    ("report",),
    ("pipeline",),
    ("bench",),
    ("doctor", "demo"),
    ("cli",),
    ("__main__",),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports() -> dict[str, frozenset[str]]:
    """What each module imports of chemscale, at its top and inside its functions alike."""
    found: dict[str, frozenset[str]] = {}
    for name, path in modules().items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    targets.add(inner if inner in modules() else node.module)
        found[name] = frozenset(target for target in targets if target in modules()) - {name}
    return found


def floor(name: str) -> int:
    """The floor of the longest listed prefix; the package's own ``__init__`` stands on no floor."""
    inner = name.removeprefix("chemscale.")
    fitting = [
        (len(room), level)
        for level, rooms in enumerate(FLOORS)
        for room in rooms
        if inner == room or inner.startswith(room + ".")
    ]
    assert fitting, f"{name} stands on no floor: add it to FLOORS and to docs/explain/design.md"
    return max(fitting)[1]


def test_every_module_stands_on_a_floor():
    for name in modules():
        if name != "chemscale":
            floor(name)


def test_imports_point_downstream_to_upstream_only():
    upward = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        if name != "chemscale"
        for target in targets
        if target != "chemscale" and floor(target) > floor(name)
    ]
    assert not upward, "\n".join(sorted(upward))


def test_no_imports_run_in_a_circle():
    graph = {name: targets - {"chemscale"} for name, targets in imports().items() if name != "chemscale"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail(" -> ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())
