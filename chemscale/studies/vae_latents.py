"""Latents against abundances, with fits in bins of Teff (Figure 4 and Table 1 of the VAE paper)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, Z_NAMES, contours, latents_of
from chemscale.vae.data import identifiers
from chemscale.vae.evaluate import LABELS, judged_against, pearson

#: Columns of the slopes in the cool, middle and hot third of the stars.
SLOPES = ("slope_cool", "slope_middle", "slope_hot")


def _slopes(x: np.ndarray, z: np.ndarray, teff: np.ndarray, edges: np.ndarray) -> list[float]:
    """Slope of z over x in each bin of Teff; NaN for bins with less than three stars."""
    found = []
    for low, high in pairwise(edges):
        part = np.isfinite(x) & np.isfinite(z) & (teff >= low) & (teff <= high)
        found.append(float(np.polyfit(x[part], z[part], 1)[0]) if part.sum() > 2 else np.nan)
    return found


def compute(context: StudyContext) -> StudyResult:
    """Held-out stars: correlations of every latent with every label, and straight lines by Teff."""
    latents, _, held_out = latents_of(context)
    labels, kind = judged_against(context.survey, context.run.store or None, identifiers(latents))
    names = [str(n) for n in latents["latent"].values]
    shown = [(k, n, LABELS[n][1]) for k, n in enumerate(names) if n in LABELS and LABELS[n][1] in labels]
    if not shown or "teff" not in labels:
        raise DataError("the survey has no abundances (or no Teff) to compare latents with", "ingest them as labels")
    z = np.asarray(latents["mean"].values, dtype=np.float64)[held_out]
    columns = {k: v[held_out] for k, v in labels.items()}
    edges = np.nanquantile(columns["teff"], [0, 1 / 3, 2 / 3, 1])
    table: dict[str, list[Any]] = {k: [] for k in ("latent", "label", "r", *SLOPES)}
    matching = {(latent, label) for _, latent, label in shown}
    for k, latent in enumerate(names):
        for label, values in columns.items():
            if label != "snr":
                table["latent"].append(latent)
                table["label"].append(label)
                table["r"].append(pearson(z[:, k], values))
                slopes = (
                    _slopes(values, z[:, k], columns["teff"], edges) if (latent, label) in matching else [np.nan] * 3
                )
                for name, slope in zip(SLOPES, slopes):
                    table[name].append(slope)
    fig, axes = style.figure(ncols=len(shown), width=style.PAGE, aspect=0.4)
    for ax, (k, latent, label) in zip(np.atleast_1d(axes), shown):
        x = columns[label]
        good = np.isfinite(x) & np.isfinite(z[:, k])
        ax.plot(x[good], z[good, k], ".", ms=1, color=style.FIELD, alpha=0.3, rasterized=True)
        contours(ax, x[good], z[good, k])
        for b in range(3):
            part = good & (columns["teff"] >= edges[b]) & (columns["teff"] <= edges[b + 1])
            if part.sum() > 2:
                slope, start = np.polyfit(x[part], z[part, k], 1)
                ends = np.array([x[part].min(), x[part].max()])
                text = f"{edges[b]:.0f}-{edges[b + 1]:.0f} K"
                ax.plot(ends, start + slope * ends, color=style.CYCLE[b], ls=style.DASHES[b], label=text)
        ax.set_xlabel(f"{SYMBOLS.get(label, label)} (dex)")
        ax.set_ylabel(Z_NAMES.get(latent, f"z {latent}"))
    np.atleast_1d(axes)[0].legend()
    numbers = {f"r_{label}": abs(pearson(z[:, k], columns[label])) for k, _, label in shown}
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "latent": "latent",
            "label": f"label ({kind})",
            "r": "Pearson correlation over held-out stars",
            **{
                s: f"standard deviations a dex, {s.removeprefix('slope_')} third by Teff; own label only"
                for s in SLOPES
            },
        },
        numbers=numbers,
        caption=(
            f"Latents of {int(held_out.sum()):,} held-out stars against their abundances; contours hold half, four "
            "fifths and 95 per cent of them, lines are fits by Teff."
        ),
    )


STUDY = Study("vae_latents", "Latents and abundances", "Signor et al. 2025, Figure 4 and Table 1", compute)
