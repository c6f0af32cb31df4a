"""[C/Fe] and [alpha/Fe] against [Fe/H] of the survey, over the halo's densities (Figure 2 of the VAE paper)."""

from __future__ import annotations

import numpy as np

from chemscale.errors import DataError
from chemscale.simulation.halo import MEANS, SIGMAS, halo
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS
from chemscale.vae.data import identifiers
from chemscale.vae.evaluate import CLASSES, class_truth, judged_against

#: Labels of the panels, and how much of a density each contour holds.
PANELS = ("c_fe", "alpha_fe")
LEVELS = (0.95, 0.8, 0.5)


def contour_levels(density: np.ndarray) -> list[float]:
    """Densities at which contours hold the fractions :data:`LEVELS` of a density on equal cells.

    >>> contour_levels(np.array([[0.5, 0.3], [0.15, 0.05]]))
    [0.15, 0.3, 0.5]
    """
    ordered = np.sort(density.ravel())[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    return [float(ordered[int(np.searchsorted(held, fraction - 1e-12))]) for fraction in LEVELS]


def compute(context: StudyContext) -> StudyResult:
    """Every star of the survey; contours of the halo's joint density, marginalised to each plane."""
    labels, kind = judged_against(context.survey, context.run.store or None, identifiers(context.survey))
    if "fe_h" not in labels or not any(p in labels for p in PANELS):
        raise DataError("the survey has no [Fe/H] with [C/Fe] or [alpha/Fe]", "ingest them as labels")
    density = halo()
    fig, axes = style.figure(ncols=2, width=style.PAGE, aspect=0.45)
    # r marginalised over the third abundance: the other density's share at each metallicity
    planes = {
        "c_fe": (density.c_fe, density.p * density.q.sum(1, keepdims=True)),
        "alpha_fe": (density.alpha_fe, density.q * density.p.sum(1, keepdims=True)),
    }
    for ax, name in zip(axes, PANELS):
        centres, plane = planes[name]
        if name in labels:
            ax.plot(labels["fe_h"], labels[name], ".", ms=1, color=style.FIELD, alpha=0.3, rasterized=True)
        ax.contour(density.fe_h, centres, plane.T, levels=contour_levels(plane), colors=[style.CYCLE[0]])
        ax.set_xlabel(f"{SYMBOLS['fe_h']} (dex)")
        ax.set_ylabel(f"{SYMBOLS[name]} (dex)")
    names = [n for n in ("fe_h", *PANELS) if n in labels]
    paper = dict(zip(("fe_h", *PANELS), zip(MEANS, SIGMAS)))
    shares = {k: class_truth(labels, cuts) for k, cuts in CLASSES.items()}
    return StudyResult(
        figure=fig,
        table={
            "label": names,
            "mean": [float(np.nanmean(labels[n])) for n in names],
            "scatter": [float(np.nanstd(labels[n])) for n in names],
            "paper_mean": [paper[n][0] for n in names],
            "paper_scatter": [paper[n][1] for n in names],
        },
        columns={
            "label": "abundance",
            "mean": "mean of the stars, dex",
            "scatter": "standard deviation of the stars, dex",
            "paper_mean": "mean of equations 12 to 14, dex",
            "paper_scatter": "standard deviation of equations 12 to 14, dex",
        },
        numbers={f"fraction_{k}": float(v.mean()) for k, v in shares.items() if v is not None} | {"against": kind},
        caption=(
            f"Abundances ({kind}) of {len(labels['fe_h']):,} stars; contours hold half, four fifths and 95 per cent of "
            "the halo's density."
        ),
    )


STUDY = Study("vae_population", "The halo's abundances", "Signor et al. 2025, Figure 2", compute)
