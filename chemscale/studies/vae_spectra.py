"""Spectra and their reconstructions: three kinds of star (Figure 3 of the VAE paper)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import Held, held, model_of, spectra
from chemscale.vae.data import identifiers
from chemscale.vae.evaluate import CLASSES, class_truth
from chemscale.vae.truth import read_truth

#: What is shown, from the top; the last is the star nearest to solar composition.
TITLES = {"alpha_poor": "alpha-poor, metal-poor", "cemp": "carbon-enhanced, metal-poor", "solar": "solar-like"}


def choose(found: Held) -> dict[str, int]:
    """One held-out star of each kind: the one with the median reconstruction error of its class."""
    labels, out = found.labels, found.out
    error = np.asarray(found.ds["relative_l2"].values, dtype=np.float64)[:, 0]
    sets = {name: class_truth(labels, cuts) for name, cuts in CLASSES.items()}
    if "fe_h" in labels:
        distance = sum(labels[n] ** 2 for n in ("fe_h", "alpha_fe", "c_fe") if n in labels)
        nearest = np.argsort(np.where(out, distance, np.inf))[:20]
        sets["solar"] = np.isin(np.arange(len(out)), nearest)
    rows = {}
    for name in TITLES:
        member = sets.get(name)
        mine = np.flatnonzero(member & out & np.isfinite(error)) if member is not None else np.array([], int)
        if mine.size:
            rows[name] = int(mine[np.argsort(error[mine])[mine.size // 2]])
    return rows


def compute(context: StudyContext) -> StudyResult:
    """Spectrum, reconstruction and residual of three stars, with the decoders' regions shaded."""
    found = held(context, "fe_h")
    rows = choose(found)
    if not rows:
        raise DataError("no held-out star of any kind to show", "use a larger survey")
    model, ds = model_of(context), context.survey
    wave = np.asarray(ds["wavelength"].values)
    order = np.array(sorted(set(rows.values())))
    flux, weight = spectra(ds, order)
    truth = str(context.settings["truth"])
    shown, kind = np.where(weight > 0, flux, np.nan), "observed"
    if truth:
        ids = identifiers(found.ds)
        shown, kind = np.asarray(read_truth(truth, ids, wave.size)[order]), "noise-free"
    with torch.inference_mode():
        mean = torch.from_numpy(np.asarray(found.ds["mean"].values, np.float32)[order])
        w = torch.from_numpy(np.asarray(found.ds["auxiliary"].values, np.float32)[order])
        guess = model.reconstruct(mean, w).numpy()
    low, high = float(context.settings["low"]) or wave[0], float(context.settings["high"]) or wave[-1]
    part = (wave >= low) & (wave <= high)
    if not part.any():
        raise DataError(f"no pixel between {low:g} and {high:g} Angstrom", f"the grid: {wave[0]:.0f}-{wave[-1]:.0f}")
    fig, axes = style.figure(
        nrows=2 * len(rows), width=style.PAGE, aspect=0.27 * len(rows) + 0.1, squeeze=False, sharex=True,
        gridspec_kw={"height_ratios": [3, 1] * len(rows)},
    )  # fmt: skip
    table: dict[str, Any] = {"wavelength": wave[part]}
    columns = {"wavelength": "wavelength, Angstrom"}
    numbers = {}
    for j, (name, row) in enumerate(rows.items()):
        at = int(np.searchsorted(order, row))
        top, bottom = axes[2 * j, 0], axes[2 * j + 1, 0]
        for k, group in enumerate(model.config.groups):
            _shade(top, wave, model.pixels[group.name], part, style.CYCLE[k + 2], group.name if j == 0 else None)
        top.plot(wave[part], shown[at, part], color=style.COLOURS["blue"], lw=0.7, label=kind if j == 0 else None)
        line = "reconstructed" if j == 0 else None
        top.plot(wave[part], guess[at, part], color=style.COLOURS["purple"], lw=0.7, ls=style.DASHES[1], label=line)
        bottom.plot(wave[part], (guess - shown)[at, part], color=style.COLOURS["vermilion"], lw=0.6)
        bottom.axhline(0, color="black", lw=0.4)
        top.set_ylabel("flux")
        bottom.set_ylabel("residual")
        known = {"[Fe/H]": "fe_h", "[alpha/Fe]": "alpha_fe", "[C/Fe]": "c_fe"}
        text = ", ".join(f"{k} {found.labels[v][row]:.2f}" for k, v in known.items() if v in found.labels)
        style.panel_letter(top, f"{TITLES[name]}: {text}", where="lower right")
        good = np.isfinite(shown[at]) & np.isfinite(guess[at])
        error = np.linalg.norm((guess - shown)[at, good]) / np.linalg.norm(shown[at, good])
        numbers[f"relative_l2_{name}"] = float(error)
        table |= {f"{name}_flux": shown[at, part], f"{name}_reconstruction": guess[at, part]}
        columns |= {f"{name}_flux": f"{kind} flux of the star", f"{name}_reconstruction": "its reconstruction"}
    axes[0, 0].legend(ncols=6, loc="lower left", bbox_to_anchor=(0, 1.0))
    axes[-1, 0].set_xlabel(style.label("wavelength"))
    return StudyResult(
        figure=fig,
        table=table,
        columns=columns,
        numbers=numbers,
        caption=(
            f"Held-out stars with the median reconstruction error of their kind: {kind} spectrum, reconstruction from "
            "the latents, and the difference; shaded: pixels of each decoder."
        ),
    )


def _shade(ax: Any, wave: np.ndarray, pixels: np.ndarray, part: np.ndarray, colour: str, label: str | None) -> None:
    inside = np.isin(np.arange(wave.size), pixels)[part]
    ax.fill_between(
        wave[part], 0, 1, where=inside, transform=ax.get_xaxis_transform(), color=colour, alpha=0.15, lw=0, label=label
    )


STUDY = Study(
    "vae_spectra",
    "Reconstructed spectra",
    "Signor et al. 2025, Figure 3",
    compute,
    {"truth": "", "low": 0.0, "high": 0.0},
)
