"""The spectra reconstructed worst (Figure G.1 of the VAE paper)."""

from __future__ import annotations

import numpy as np
import torch

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import Held, latents_of, model_of, spectra
from chemscale.vae.data import identifiers
from chemscale.vae.evaluate import label_columns


def worst(found: Held, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the held-out stars with the largest relative L2, largest first, and everyone's error."""
    error = np.asarray(found.ds["relative_l2"].values, dtype=np.float64)[:, 0]
    usable = found.out & np.isfinite(error)
    if not usable.any():
        raise DataError("no held-out star with a spectrum", "train with a held-out fraction above 0")
    return np.argsort(-np.where(usable, error, -np.inf))[: min(count, int(usable.sum()))], error


def all_latents(context: StudyContext) -> Held:
    """Latents of the run with whatever labels the survey has."""
    ds, record, out = latents_of(context)
    return Held(ds, record, out, label_columns(context.survey))


def compute(context: StudyContext) -> StudyResult:
    """Spectra with the highest reconstruction errors, below each other (Figure G.1)."""
    found = all_latents(context)
    rows, error = worst(found, int(context.settings["stars"]))
    wave = np.asarray(context.survey["wavelength"].values)
    order = np.sort(rows)
    flux, weight = spectra(context.survey, order)
    model = model_of(context)
    with torch.inference_mode():
        mean = torch.from_numpy(np.asarray(found.ds["mean"].values, np.float32)[order])
        w = torch.from_numpy(np.asarray(found.ds["auxiliary"].values, np.float32)[order])
        guess = model.reconstruct(mean, w).numpy()
    ids = identifiers(found.ds)
    window = np.asarray(found.ds["local_window"].values)
    fig, axes = style.figure(
        nrows=len(rows), width=style.PAGE, aspect=0.17 * len(rows) + 0.08, squeeze=False, sharex=True
    )
    for ax, row in zip(axes[:, 0], rows):
        at = int(np.searchsorted(order, row))
        shown = np.where(weight[at] > 0, flux[at], np.nan)
        ax.plot(wave, shown, color=style.COLOURS["blue"], lw=0.5, label="observed")
        ax.plot(wave, guess[at], color=style.COLOURS["vermilion"], lw=0.7, ls=style.DASHES[1], label="reconstructed")
        low, high = style.spread(shown, inner=0.99, margin=0.25)
        ax.set_ylim(min(low, float(np.nanmin(guess[at]))), max(high, 1.1))
        style.panel_letter(ax, f"{ids[row]}: {error[row]:.3f}", where="lower right")
        ax.set_ylabel("flux")
    axes[0, 0].legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    axes[-1, 0].set_xlabel(style.label("wavelength"))
    return StudyResult(
        figure=fig,
        table={
            "star_id": ids[rows],
            "relative_l2": error[rows],
            "chi2": np.asarray(found.ds["chi2"].values)[rows, 0],
            "used": np.asarray(found.ds["n_used"].values)[rows],
            "window": window[rows],
        },
        columns={
            "star_id": "star",
            "relative_l2": "relative L2 to the observed spectrum",
            "chi2": "reconstruction chi-square per used pixel",
            "used": "used pixels",
            "window": "index of the most deviant window of 50 pixels",
        },
        numbers={"median_relative_l2": float(np.nanmedian(error[found.out])), "largest": float(error[rows[0]])},
        caption=f"The {len(rows)} held-out spectra reconstructed worst, with their relative L2 errors.",
    )


STUDY = Study("vae_worst", "Worst reconstructions", "Signor et al. 2025, Figure G.1", compute, {"stars": 6})
