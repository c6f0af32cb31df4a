"""Latents with and without selective gradient flow (Table C.1 and Figure C.1 of the VAE paper)."""

from __future__ import annotations

import numpy as np

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, Z_NAMES, held, retrain, spectra, subset
from chemscale.vae.evaluate import LABELS, label_columns, pearson
from chemscale.vae.inference import infer_arrays


def compute(context: StudyContext) -> StudyResult:
    """The run's recipe on a subset, trained with and without the gradient stops, a few seeds each."""
    s = context.settings
    held(context)  # needs abundances
    if int(s["seeds"]) < 1:  # not among the studies that `all` makes: minutes a seed
        raise DataError("this study trains two models a seed", "--option vae_gradient_flow.seeds=2 asks for it")
    rows = []
    for seed in range(int(s["seeds"])):
        ds, _ = subset(context, int(s["stars"]), seed)
        labels = label_columns(ds)
        for selective in (True, False):
            model, out = retrain(ds, context, seed, model={"selective": selective}, epochs=int(s["epochs"]))
            flux, weight = spectra(ds, np.flatnonzero(out))
            found = infer_arrays(model, flux, weight)
            for k, latent in enumerate(model.config.latents):
                for label in (x for x in SYMBOLS if x in labels):
                    rows.append((selective, seed, latent, label, abs(pearson(found["mean"][:, k], labels[label][out]))))
            rows.append((selective, seed, "all", "relative_l2", float(np.nanmean(found["relative_l2"][:, 0]))))
    keys = list(dict.fromkeys((r[2], r[3]) for r in rows))
    value = {
        (on, k): np.array([r[4] for r in rows if r[0] is on and r[2:4] == k]) for on in (True, False) for k in keys
    }
    gain = {k: value[True, k] - value[False, k] for k in keys}
    several = int(s["seeds"]) > 1

    def scatter(x: np.ndarray) -> float:
        return float(x.std(ddof=1)) if several else float("nan")

    latents = [n for n in dict.fromkeys(k[0] for k in keys) if n != "all"]
    shown = [x for x in SYMBOLS if (latents[0], x) in keys]
    fig, ax = style.figure(aspect=0.72)
    width = 0.8 / len(latents)
    for i, latent in enumerate(latents):
        mean = np.array([gain[latent, label].mean() for label in shown])
        bars = np.array([scatter(gain[latent, label]) for label in shown])
        x = np.arange(len(shown)) + (i - (len(latents) - 1) / 2) * width
        ax.bar(x, mean, width, yerr=np.nan_to_num(bars), color=style.CYCLE[i], label=Z_NAMES.get(latent, latent))
        own = LABELS[latent][1] if latent in LABELS else ""
        if own in shown:
            ax.axvspan(x[shown.index(own)] - width / 2, x[shown.index(own)] + width / 2, color="0.85", zorder=-2)
    ax.axhline(0, color="black", lw=0.6)
    ax.set_xticks(range(len(shown)), [SYMBOLS[x] for x in shown])
    ax.xaxis.minorticks_off()
    ax.set_ylabel("|r| with stops minus |r| without")
    ax.legend(ncols=len(latents))
    own_gain = {
        f"gain_{LABELS[n][1]}": float(gain[n, LABELS[n][1]].mean())
        for n in latents
        if n in LABELS and (n, LABELS[n][1]) in gain
    }
    return StudyResult(
        figure=fig,
        table={
            "latent": [k[0] for k in keys],
            "label": [k[1] for k in keys],
            "with_stops": [value[True, k].mean() for k in keys],
            "with_scatter": [scatter(value[True, k]) for k in keys],
            "without_stops": [value[False, k].mean() for k in keys],
            "without_scatter": [scatter(value[False, k]) for k in keys],
        },
        columns={
            "latent": "latent (all: the reconstruction)",
            "label": "survey label, or relative L2 error to the observed spectra",
            "with_stops": "absolute correlation with selective gradient flow, mean of the seeds",
            "with_scatter": "its scatter over the seeds",
            "without_stops": "the same, gradients flowing everywhere",
            "without_scatter": "its scatter over the seeds",
        },
        numbers=own_gain,
        caption=(
            f"Change of |r| that selective gradient flow brings; shaded: each latent's own abundance. "
            f"{int(s['stars']):,} stars, {int(s['seeds'])} seed(s) each way; bars: scatter over seeds."
        ),
    )


STUDY = Study(
    "vae_gradient_flow",
    "Selective gradient flow",
    "Signor et al. 2025, Table C.1 and Figure C.1",
    compute,
    {"stars": 6000, "seeds": 0, "epochs": 0},
)
