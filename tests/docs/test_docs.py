"""Pages run from top to bottom, the site builds, its settings are valid; for single commands see test_commands.py."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, RUN, blocks


def test_documented_settings_are_valid():
    from chemscale.runtime.settings import KINDS, from_mapping

    tables = 0
    for page in PAGES:
        if not page.exists():
            continue
        for _, _, code in blocks(page, "toml"):
            tree = tomllib.loads(code)
            if "cluster" in tree:
                assert from_mapping(tree["cluster"]).kind in KINDS
                tables += 1
    assert tables >= 2


def run_page(page: Path, folder: Path) -> None:
    """Run a page's blocks in order; Python blocks share one interpreter state within the page."""
    seen = ""
    for kind, opts, code in blocks(page, "bash", "python"):
        if "notest" in opts:
            continue
        if kind == "bash":
            program = f'"{sys.executable}" -c "from chemscale.cli import main; main()"'
            script = f'set -e\nchemscale() {{ {program} "$@"; }}\n{code}'
            done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=500)
        else:
            seen += code + "\n"
            done = subprocess.run([sys.executable, "-c", seen], cwd=folder, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith(("howto/own", "howto/try")) else []) for n in RUN]
)
def test_page_runs(name, tmp_path):
    run_page(DOCS / name, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tutorial_runs(tmp_path):
    run_page(DOCS / "tutorial.md", tmp_path)
    assert (tmp_path / "giants" / "report.html").exists()


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "reference" / "python.html").read_text(encoding="utf-8").count("doppelganger_rates") > 3


def test_every_public_name_is_documented():
    """Names of the package stand in the reference, and whatever has no underscore has a docstring."""
    import ast

    import chemscale

    reference = (DOCS / "reference" / "python.md").read_text(encoding="utf-8") + "chemscale.schema.Flag"
    for name in set(chemscale.__all__) - {"__version__", "Flag", "validate"}:
        assert f"::: chemscale.{name}\n" in reference, name
    bare = []

    def explained(tree: ast.AST) -> set[str]:
        """Methods that a Protocol documents: implementations need not repeat it."""
        classes = [c for c in ast.walk(tree) if isinstance(c, ast.ClassDef)]
        methods = [f for c in classes for f in c.body if any(getattr(b, "id", "") == "Protocol" for b in c.bases)]
        return {f.name for f in methods if isinstance(f, ast.FunctionDef) and ast.get_docstring(f)}

    def walk(file: Path, node: ast.AST, known: set[str], prefix: str = "") -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                inherited = isinstance(node, ast.ClassDef) and node.bases  # documented where it is declared
                if not (ast.get_docstring(child) or inherited or (prefix and child.name in known)):
                    bare.append(f"{file.relative_to(ROOT)}: {prefix}{child.name}")
                if isinstance(child, ast.ClassDef):
                    walk(file, child, known, f"{prefix}{child.name}.")

    trees = {f: ast.parse(f.read_text(encoding="utf-8")) for f in sorted((ROOT / "chemscale").rglob("*.py"))}
    known = set().union(*map(explained, trees.values()))
    for file, tree in trees.items():
        if not ast.get_docstring(tree) and tree.body:
            bare.append(str(file.relative_to(ROOT)))
        walk(file, tree, known)
    assert bare == []


def test_figures_of_the_site_come_from_their_script():
    """Every image of the pages exists; those of the script have their numbers beside them."""
    used = {m for page in PAGES for m in re.findall(r"assets/([\w.]+\.png)", page.read_text(encoding="utf-8"))}
    there = {p.name for p in (DOCS / "assets").glob("*.png")}
    assert used == there
    script = (DOCS / "figures.py").read_text(encoding="utf-8")
    for name in re.findall(r'_save\(fig, folder, "(\w+)"', script):
        assert f"{name}.png" in used and (DOCS / "assets" / f"{name}.csv").stat().st_size > 50


@pytest.mark.slow
def test_figures_script_runs(tmp_path):
    done = subprocess.run([sys.executable, DOCS / "figures.py", tmp_path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.glob("*.pdf"))) == len(list(tmp_path.glob("*.csv"))) == 4


def test_changelog_and_citation_have_this_version():
    import chemscale

    assert chemscale.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {chemscale.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
