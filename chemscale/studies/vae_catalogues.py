"""Correlations of latents with labels over several catalogues, with their scatter (Table 1 of the VAE paper)."""

from __future__ import annotations

import numpy as np

from chemscale.runtime.run import Run
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, Z_NAMES, correlations, held


def compute(context: StudyContext) -> StudyResult:
    """|r| of every latent and label: mean and scatter over this run and those of the setting `runs`."""
    others = [r.strip() for r in str(context.settings["runs"]).split(",") if r.strip()]
    found = [held(context)]
    found += [held(StudyContext(Run.open(r))) for r in others]
    tables = [correlations(f) for f in found]
    keys = [k for k in tables[0] if all(k in t for t in tables)]
    values = np.array([[t[k] for k in keys] for t in tables])
    mean = values.mean(0)
    # one catalogue has no scatter between catalogues: the error of r over its stars stands in
    stars = int(found[0].out.sum())
    error = values.std(0, ddof=1) if len(tables) > 1 else (1 - mean**2) / np.sqrt(max(stars - 2, 1))
    latents = list(dict.fromkeys(k[0] for k in keys))
    labels = [s for s in SYMBOLS if any(k[1] == s for k in keys)]
    grid = np.array([[mean[keys.index((a, b))] for b in labels] for a in latents])
    fig, ax = style.figure(aspect=0.55)
    image = ax.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, a in enumerate(latents):
        for j, b in enumerate(labels):
            text = f"{grid[i, j]:.3f}\n$\\pm${error[keys.index((a, b))]:.3f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if grid[i, j] > 0.6 else "black")
    ax.set_xticks(range(len(labels)), [SYMBOLS[s] for s in labels])
    ax.set_yticks(range(len(latents)), [Z_NAMES.get(n, n) for n in latents])
    ax.minorticks_off()
    ax.tick_params(length=0)
    fig.colorbar(image, ax=ax, label="|r|")
    kind = "scatter between catalogues" if len(tables) > 1 else "error of r over the stars of one catalogue"
    return StudyResult(
        figure=fig,
        table={"latent": [k[0] for k in keys], "label": [k[1] for k in keys], "r": mean, "r_error": error},
        columns={
            "latent": "latent",
            "label": "survey label",
            "r": "absolute Pearson correlation over held-out stars, mean of the catalogues",
            "r_error": kind,
        },
        numbers={
            "catalogues": len(tables),
            **{f"r_{label}": float(mean[keys.index((name, label))]) for _, name, label in found[0].pairs},
        },
        caption=f"Absolute correlation of latents (rows) with labels; {len(tables)} catalogue(s); uncertainty: {kind}.",
    )


STUDY = Study(
    "vae_catalogues",
    "Correlations over catalogues",
    "Signor et al. 2025, Table 1",
    compute,
    {"runs": ""},
)
