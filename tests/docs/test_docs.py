"""Every code block of the documentation runs, or at least names commands, options and settings that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from chemscale.cli import build

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.S | re.M)
#: Pages whose blocks are run one after the other in a fresh folder.
RUN = [
    "howto/own-survey.md",
    "howto/python-objects.md",
    "howto/studies.md",
    "explain/ppca.md",
    "explain/rsca.md",
    "reference/cli.md",
]


def blocks(page: Path, *kinds: str) -> list[tuple[str, str, str]]:
    return [(k, opts, code) for k, opts, code in BLOCK.findall(page.read_text(encoding="utf-8")) if k in kinds]


def commands(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and words[0] == "chemscale":
            stop = next((i for i, w in enumerate(words) if w in {">", "|", "&&"}), len(words))
            found.append(words[1:stop])
    return found


def documented() -> list[tuple[str, list[str]]]:
    return [
        (page.relative_to(ROOT).as_posix(), words)
        for page in PAGES
        if page.exists()
        for _, _, code in blocks(page, "bash", "sh", "console", "")
        for words in commands(code)
    ]


def test_documented_commands_and_options_exist():
    """Walk each command line down the tree of verbs; every `--option` must be one of that verb."""
    problems, checked = [], 0
    for page, words in documented():
        node, rest = get_command(build()), list(words)
        known = {o for p in node.params for o in p.opts} | {"--help", "--install-completion"}
        while rest:
            word = rest.pop(0)
            if word == "--":  # a command of chemscale follows
                node = get_command(build())
            elif word.startswith("-"):
                if word.split("=")[0] not in known:
                    problems.append(f"{page}: chemscale {' '.join(words)}: no option {word}")
            elif word in getattr(node, "commands", {}):
                node = node.commands[word]
                known |= {o for p in node.params for o in (*p.opts, *p.secondary_opts)}
            elif getattr(node, "commands", None) and word.islower() and word.isalpha():
                previous = words[words.index(word) - 1] if words.index(word) else ""
                if not previous.startswith("-"):
                    problems.append(f"{page}: chemscale {' '.join(words)}: no verb {word}")
        checked += 1
    assert checked > 20
    assert problems == []


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
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("howto/own") else []) for n in RUN]
)
def test_page_runs(name, tmp_path):
    run_page(DOCS / name, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tutorial_runs(tmp_path):
    run_page(DOCS / "tutorial.md", tmp_path)
    assert (tmp_path / "run" / "report.html").exists()


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


def test_only_known_pages_leave_blocks_unrun():
    """A page whose Python is not run must be listed here with a reason, so that none is forgotten."""
    needs_something = {
        "howto/apogee-slurm.md": "a Slurm cluster and DR17",
        "howto/lamost-gpu.md": "LAMOST files",
        "howto/s3-kubernetes.md": "an object store",
        "howto/siblings.md": "a run",
        "howto/results.md": "two runs",
        "howto/interstellar.md": "a run",
        "howto/cleaning.md": "a run",
        "explain/choosing.md": "a run",
        "explain/vae.md": "a survey of labelled spectra",
        "index.md": "the demo has its own test",
        "tutorial.md": "run by the slow test",
    }
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        if blocks(page, "bash", "python") and name not in RUN:
            assert name in needs_something, name


def test_changelog_and_citation_have_this_version():
    import chemscale

    assert chemscale.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {chemscale.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
