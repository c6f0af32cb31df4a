"""Code blocks and commands of the documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.S | re.M)
#: Pages whose blocks are run one after the other in a fresh folder.
RUN = [
    "howto/own-survey.md",
    "howto/python-objects.md",
    "howto/studies.md",
    "howto/try.md",
    "explain/ppca.md",
    "explain/rsca.md",
    "reference/cli.md",
]


def blocks(page: Path, *kinds: str) -> list[tuple[str, str, str]]:
    """Kind, options and code of the blocks of a page; a block without a kind is ''."""
    return [(k, opts, code) for k, opts, code in BLOCK.findall(page.read_text(encoding="utf-8")) if k in kinds]


def commands(code: str) -> list[list[str]]:
    """Words after `chemscale` of every line of a block that calls it."""
    lines = code.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and words[0] == "chemscale":
            stop = next((i for i, w in enumerate(words) if w in {">", "|", "&&"}), len(words))
            found.append(words[1:stop])
    return found


def documented() -> list[tuple[str, list[str]]]:
    """Page and words of every command that the pages print, in their order."""
    return [
        (page.relative_to(ROOT).as_posix(), words)
        for page in PAGES
        if page.exists()
        for _, _, code in blocks(page, "bash", "sh", "console", "")
        for words in commands(code)
    ]
