"""Residuals of calibrated abundances against signal-to-noise (Figure 6 of the VAE paper)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, held
from chemscale.vae.calibrate import fit_calibration


def compute(context: StudyContext) -> StudyResult:
    """Mean and scatter of the residuals of held-out stars in bins of S/N; lines fitted to the others."""
    found = held(context, "snr")
    snr = found.labels["snr"]
    width = float(context.settings["width"])
    z, w = found.z, np.asarray(found.ds["auxiliary"].values, dtype=np.float64)
    variance = np.diagonal(np.asarray(found.ds["covariance"].values, dtype=np.float64), axis1=1, axis2=2)
    low, high = np.nanquantile(snr[found.out], [0.002, 0.998])
    edges = np.arange(np.floor(low / width) * width - width / 2, high + width, width)
    table: dict[str, list[Any]] = {k: [] for k in ("label", "snr", "mean", "error", "scatter", "stars")}
    numbers = {}
    fig, axes = style.figure(ncols=len(found.pairs), width=style.PAGE, aspect=0.33, squeeze=False)
    for ax, (k, _, label) in zip(axes[0], found.pairs):
        known = np.where(found.out, np.nan, found.labels[label])
        value, _ = fit_calibration(z, w, variance, k, known, degrees=(0,)).apply(z, w, variance)
        residual = (value - found.labels[label])[found.out]
        x = snr[found.out]
        good = np.isfinite(residual) & np.isfinite(x)
        x, residual = x[good], residual[good]
        ax.plot(x, residual, ".", ms=1, color=style.FIELD, alpha=0.3, rasterized=True)
        centres, means, sds = [], [], []
        for a, b in itertools.pairwise(edges):
            mine = residual[(x >= a) & (x < b)]
            if mine.size < 5:
                continue
            row = (label, (a + b) / 2, mine.mean(), mine.std(ddof=1) / np.sqrt(mine.size), mine.std(ddof=1), mine.size)
            for key, v in zip(table, row):
                table[key].append(v)
            centres.append(row[1])
            means.append(row[2])
            sds.append(row[4])
        ax.errorbar(centres, means, sds, ls="", marker="o", color=style.COLOURS["vermilion"], ms=4, capsize=2)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_xlabel("S/N per pixel")
        ax.set_ylabel(f"{SYMBOLS[label]} residual (dex)")
        ax.set_ylim(*style.spread(residual))
        if x.size > 2 and np.ptp(x) > 0:
            numbers[f"r_{label}"] = float(np.corrcoef(x, residual)[0, 1])
    if not table["label"]:
        raise DataError(
            "no bin of S/N holds five held-out stars", "widen the bins with `width`, or use a larger survey"
        )
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "label": "abundance",
            "snr": "centre of the bin of signal-to-noise per pixel",
            "mean": "mean residual, dex",
            "error": "its standard error, dex",
            "scatter": "standard deviation of the residuals, dex",
            "stars": "held-out stars in the bin",
        },
        numbers=numbers,
        caption=(
            "Abundance from a line through its latent minus the survey's, against S/N, for held-out stars; "
            "red: mean and standard deviation in bins."
        ),
    )


STUDY = Study("vae_snr", "Residuals against S/N", "Signor et al. 2025, Figure 6", compute, {"width": 10.0})
