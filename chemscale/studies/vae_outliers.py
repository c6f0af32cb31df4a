"""Where the worst reconstructions lie among the latents (Figure G.2 of the VAE paper)."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, Z_NAMES, contours
from chemscale.studies.vae_worst import all_latents, worst
from chemscale.vae.data import identifiers
from chemscale.vae.evaluate import pearson


def compute(context: StudyContext) -> StudyResult:
    """Latents against abundances as density contours, the worst reconstructions in red (Figure G.2)."""
    found = all_latents(context)
    if not found.pairs:
        raise DataError("the survey has no abundances to compare latents with", "ingest them as labels")
    rows, error = worst(found, int(context.settings["stars"]))
    table: dict[str, list[Any]] = {"star_id": [], "label": [], "latent": [], "abundance": [], "relative_l2": []}
    numbers = {}
    ids = identifiers(found.ds)
    fig, axes = style.figure(ncols=len(found.pairs), width=style.PAGE, aspect=0.36, squeeze=False)
    for ax, (k, latent, label) in zip(axes[0], found.pairs):
        x, y = found.labels[label], found.z[:, k]
        mine = found.out & np.isfinite(x) & np.isfinite(y)
        ax.plot(x[mine], y[mine], ".", ms=1.5, color=style.FIELD, alpha=0.5, rasterized=True)
        contours(ax, x[mine], y[mine])
        ax.plot(x[rows], y[rows], "o", ms=3, color=style.COLOURS["vermilion"], mec="white", mew=0.3)
        ax.set_xlabel(f"{SYMBOLS[label]} (dex)")
        ax.set_ylabel(Z_NAMES.get(latent, latent))
        r = pearson(x[mine], y[mine])
        style.panel_letter(ax, f"r = {r:.2f}")
        numbers[f"r_{label}"] = abs(r)
        for row in rows:
            for key, v in zip(table, (ids[row], label, y[row], x[row], error[row])):
                table[key].append(v)
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "star_id": "star among the worst reconstructed",
            "label": "abundance",
            "latent": "its latent (posterior mean)",
            "abundance": "the survey's abundance, dex",
            "relative_l2": "relative L2 of the reconstruction",
        },
        numbers=numbers,
        caption=(
            "Latents of held-out stars against the survey's abundances; contours hold half, four fifths and 95 per "
            f"cent of them; red: the {len(rows)} worst reconstructions."
        ),
    )


STUDY = Study(
    "vae_outliers",
    "Latents, abundances and the worst reconstructions",
    "Signor et al. 2025, Figure G.2",
    compute,
    {"stars": 20},
)
