"""What a gradient-boosted regressor learns of Teff and log g from the chemical latents (section 4.2, VAE paper)."""

from __future__ import annotations

import numpy as np

from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, held
from chemscale.vae.evaluate import boosted_r2, pearson


def compute(context: StudyContext) -> StudyResult:
    """R^2 above a dummy that predicts the mean, from z, from single latents and, for contrast, from w."""
    found = held(context, "teff", "logg")
    z = found.z[found.out]
    w = np.asarray(found.ds["auxiliary"].values, dtype=np.float64)[found.out]
    inputs = {"z": z} | {f"z_{n}": z[:, [k]] for k, n in enumerate(found.names)} | {"w": w}
    rows = []
    for name, x in inputs.items():
        for label in ("teff", "logg"):
            y = found.labels[label][found.out]
            r2 = [boosted_r2(x, y, seed) for seed in range(int(context.settings["repeats"]))]
            largest = max(abs(pearson(column, y)) for column in x.T)
            rows.append((name, label, float(np.mean(r2)), float(np.std(r2)), largest))
    fig, ax = style.figure(aspect=0.7)
    for j, label in enumerate(("teff", "logg")):
        mine = [r for r in rows if r[1] == label]
        place = np.arange(len(mine)) + (j - 0.5) * 0.3
        ax.errorbar(
            place, [r[2] for r in mine], [r[3] for r in mine], ls="", marker=style.MARKERS[j], label=SYMBOLS[label]
        )
    ax.axhline(0, color="0.5", lw=0.8, ls=style.DASHES[1])
    ax.text(0.02, 0.01, "dummy", transform=ax.get_yaxis_transform(), fontsize=7, va="bottom", color="0.4")
    ax.set_xticks(range(len(inputs)), [n.replace("_", " ") for n in inputs])
    ax.xaxis.minorticks_off()
    ax.set_ylabel(r"$R^2$ above the dummy")
    ax.set_xlabel("input of the regressor")
    ax.legend()
    return StudyResult(
        figure=fig,
        table={k: [r[i] for r in rows] for i, k in enumerate(("input", "label", "r2", "r2_scatter", "largest_r"))},
        columns={
            "input": "what the regressor sees: z, one latent, or w",
            "label": "what it predicts",
            "r2": "R^2 on stars it was not fitted to; 0 = the dummy (mean of the training stars)",
            "r2_scatter": "scatter over splits",
            "largest_r": "largest absolute linear correlation of the input's columns with the label",
        },
        numbers={f"r2_{r[1]}": r[2] for r in rows if r[0] == "z"},
        caption=(
            "Gradient-boosted regression of temperature and gravity from the chemical latents z of held-out stars, "
            "jointly and one by one, and from the auxiliary latents w, which are meant to hold them."
        ),
    )


STUDY = Study(
    "vae_independence",
    "Temperature and gravity from the latents",
    "Signor et al. 2025, section 4.2",
    compute,
    {"repeats": 3},
)
