"""Corrupted spectra told from clean ones (Figure 7 and section 4.4 of the VAE paper)."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import latents_of, model_of
from chemscale.vae.anomalies import SCORES
from chemscale.vae.corrupt import separate
from chemscale.vae.data import clean, star_blocks, values_here

#: The two numbers of the paper's figure.
AXES = {"norm": "Euclidean norm of z", "relative_l2": "relative L2 of the reconstruction"}
#: Area under the ROC curve below which a number separates nothing.
SEPARATES = 0.6


def _sample(context: StudyContext, wanted: np.ndarray, most: int, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Cleaned spectra of up to `most` of the `wanted` stars, block by block."""
    ds, flux, weight, taken = context.survey, [], [], 0
    for start, stop in star_blocks(ds):
        rows = np.flatnonzero(wanted[start:stop])[: most - taken]
        if rows.size:
            part = ds[["flux", "ivar", "flags"]].isel(star=slice(start, stop))
            f, i, b = (values_here(part[n])[rows] for n in ("flux", "ivar", "flags"))
            cleaned = clean(f, i, b, selected=255, floor=floor)
            seen = (cleaned[1] > 0).any(axis=1)  # a star without data has no score: it would void every ROC curve
            flux.append(cleaned[0][seen])
            weight.append(cleaned[1][seen])
            taken += int(seen.sum())
        if taken >= most:
            break
    if taken < 100:
        raise DataError(f"{taken} held-out stars", "100 are needed; hold out more, or use a larger survey")
    return np.concatenate(flux), np.concatenate(weight)


def compute(context: StudyContext) -> StudyResult:
    """Distributions of norm and reconstruction error, and the area under the ROC curve of every score."""
    _, record, held_out = latents_of(context)
    floor = float(record.get("train", {}).get("floor", 0.0))
    flux, weight = _sample(context, held_out, int(context.settings["stars"]), floor)
    model = model_of(context)
    rate = float(context.settings["false_alarm"])
    found, values = separate(model, flux, weight, int(context.settings["seed"]), rate)
    reached = found.pop("clean")["found"]
    plain = tuple(f"plain_{k}" for k in AXES)
    keys = ["auc", *(f"auc_{s}" for s in (*SCORES, *plain)), "found"]
    table: dict[str, Any] = {"corruption": list(found)} | {k: [row[k] for row in found.values()] for k in keys}
    fig, axes = style.figure(ncols=2, width=style.PAGE, aspect=0.4)
    for ax, (key, label) in zip(axes, AXES.items(), strict=True):
        every = np.concatenate([v[key] for v in values.values()])
        low, high = np.nanquantile(every, [0.001, 0.999])
        bins = np.geomspace(max(low, 1e-6), high, 60)
        for j, (name, value) in enumerate(values.items()):
            area = "" if name == "clean" else f", AUC {found[name][f'auc_plain_{key}']:.2f}"
            line = {"color": style.CYCLE[j], "ls": style.DASHES[j], "label": name.replace("_", " ") + area}
            ax.hist(value[key], bins, density=True, histtype="step", **line)
        ax.set_xscale("log")
        ax.set_xlabel(label)
        ax.legend()
    axes[0].set_ylabel("density")
    columns = {"corruption": "damage done", "auc": "area under the ROC curve of the combined score"}
    columns |= {f"auc_{s}": f"the same of the score {s}" for s in SCORES}
    columns |= {f"auc_plain_{k}": f"the same of the plain {label}" for k, label in AXES.items()}
    columns["found"] = f"fraction beyond the threshold for a false-alarm rate of {rate:g}"
    blind = [n.replace("_", " ") for n, row in found.items() if row["auc_plain_norm"] < SEPARATES]
    said = f"The norm separates nothing of: {', '.join(blind)}." if blind else "The norm separates every kind."
    return StudyResult(
        figure=fig,
        table=table,
        columns=columns,
        numbers={"false_alarm_reached": reached, **{f"auc_{k}": v["auc"] for k, v in found.items()}}
        | {f"auc_norm_{k}": v["auc_plain_norm"] for k, v in found.items()},
        caption=f"{len(flux) // 2:,} held-out spectra, clean and damaged on purpose. {said}",
    )


STUDY = Study(
    "vae_corruption",
    "Corrupted spectra",
    "Signor et al. 2025, Figure 7",
    compute,
    {"stars": 2000, "false_alarm": 0.02, "seed": 0},
)
