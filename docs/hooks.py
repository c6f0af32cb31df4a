"""Parts of the site that come from the package itself, so that they cannot drift apart from it."""

from pathlib import Path

from chemscale.schema import VARIABLES, Flag

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown, **_):
    """Fill the placeholders `<!-- schema -->`, `<!-- flags -->` and `<!-- changelog -->`."""
    return (
        markdown.replace("<!-- schema -->", _schema())
        .replace("<!-- flags -->", _flags())
        .replace("<!-- changelog -->", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    )


def _schema() -> str:
    rows = ["| name | dims | dtype | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    for v in VARIABLES.values():
        name = f"**`{v.name}`**" if v.required else f"`{v.name}`"
        rows.append(f"| {name} | {', '.join(v.dims)} | {v.dtype} | {v.units} | {v.doc} |")
    return "\n".join(rows)


def _flags() -> str:
    rows = ["| bit | value |", "| --- | --- |"]
    return "\n".join(rows + [f"| `{f.name}` | {int(f)} |" for f in Flag])
