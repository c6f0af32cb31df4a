"""`build_comparison`: two runs side by side as one HTML page that needs no network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from chemscale._version import __version__
from chemscale.report.findings import Table, words
from chemscale.report.html import ENDINGS
from chemscale.rsca.registry import titles
from chemscale.runtime.files import write_file
from chemscale.suggest import known_ending


def build_comparison(found: Mapping[str, Any], out: str | os.PathLike[str]) -> Path:
    """Write what :func:`chemscale.results.compare.compare` found as a page.

    Parameters
    ----------
    found : mapping
    out : path

    Returns
    -------
    pathlib.Path

    Raises
    ------
    InputError
        `out` does not end in ``.html``.
    """
    env = Environment(loader=PackageLoader("chemscale.report"), autoescape=True, undefined=StrictUndefined)
    css = env.loader.get_source(env, "report.css")[0]  # type: ignore[union-attr]
    page = env.get_template("compare.html").render(
        a=found["a"], b=found["b"], tables=tables(found), absent=found["absent"], css=css, version=__version__
    )
    target = known_ending(out, ENDINGS)
    write_file(target, page.encode())
    return target


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The parts of a comparison as tables, those that differ first."""
    made = []
    if found.get("rates"):
        rows = []
        for method, r in found["rates"].items():
            error = "" if r["error"] is None else f" ± {r['error']:.4f}"
            change = "–" if r["difference"] is None else f"{r['difference']:+.4f}{error}"
            both = ["–" if r[k] is None else f"{r[k]:.4f}" for k in "ab"]
            rows.append([titles().get(method, words(method)), *both, change, str(r["clusters"])])
        note = (
            "B − A is paired over the clusters that both runs rated and counts each of them once, while A and B weigh "
            "clusters by their members: their signs may differ. Below zero, B is better."
        )
        made.append(Table("Doppelganger rates", ["rate", "A", "B", "B − A", "clusters"], rows, note))
    if "neighbours" in found:
        n = found["neighbours"]
        row = [f"{n['shared']:.0%}", f"{n['chance']:.1%}", str(n["neighbours"]), str(n["stars"])]
        note = f"By the recommended metric of each run: {n['metrics'][0]} in A; {n['metrics'][1]} in B."
        made.append(Table("Nearest stars", ["shared", "by chance", "neighbours", "stars asked"], [row], note))
    if found.get("latents"):
        rows = [[name, f"{r:+.3f}"] for name, r in found["latents"].items()]
        made.append(Table("Latents", ["latent", "correlation of A and B"], rows))
    settings = [[k, str(one), str(other)] for k, (one, other) in found["settings"].items()]
    made.append(Table("Settings that differ", ["setting", "A", "B"], settings, "" if settings else "None differs."))
    return made
