"""Reconstruction error against training size at two noise levels (Figure F.1 of the VAE paper)."""

from __future__ import annotations

import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import retrain, spectra
from chemscale.vae.data import identifiers
from chemscale.vae.inference import infer_arrays
from chemscale.vae.truth import noise_free_l2, read_truth


def noisy(ds: xr.Dataset, clean: np.ndarray, snr: float, seed: int) -> xr.Dataset:
    """The survey with its spectra replaced by noise-free ones plus noise of S/N ~ N(snr, snr / 5)."""
    rng = np.random.default_rng([seed, int(snr)])
    ratio = np.clip(rng.normal(snr, snr / 5, len(clean)), snr / 4, None).astype(np.float32)
    flux = clean + rng.standard_normal(clean.shape, dtype=np.float32) / ratio[:, None]
    out = ds.copy()
    out["flux"] = (("star", "wavelength"), flux.astype(np.float32), ds["flux"].attrs)
    out["ivar"] = (("star", "wavelength"), np.broadcast_to(ratio[:, None] ** 2, flux.shape).copy(), ds["ivar"].attrs)
    return out


def compute(context: StudyContext) -> StudyResult:
    """The run's recipe on growing samples, each judged on noise-free spectra it has not seen."""
    s = context.settings
    if not s["truth"]:
        raise DataError(
            "the noise-free spectra are not known",
            "--option vae_training_size.truth=FILE (.npy or .npz), of a simulation",
        )
    try:
        sizes = sorted(int(v) for v in str(s["sizes"]).split(","))
        levels = [float(v) for v in str(s["snr"]).split(",")]
    except ValueError as err:
        raise InputError(f"sizes or snr: {err}", "numbers with commas between them, such as 500,1000,2000") from err
    survey = context.survey
    ids = identifiers(survey)
    truth = read_truth(str(s["truth"]), ids, int(survey.sizes["wavelength"]))
    n_test = min(int(s["test"]), len(ids) // 4)
    order = np.random.default_rng(7).permutation(len(ids))
    test, rest = np.sort(order[:n_test]), order[n_test:]
    rows = []
    for level in levels:
        for size in (n for n in sizes if n <= len(rest)):
            for seed in range(int(s["seeds"])):
                mine = np.sort(np.random.default_rng([seed, 3]).permutation(rest)[:size])
                sample = noisy(survey.isel(star=mine).compute(scheduler="synchronous"), truth[mine], level, seed)
                model, _ = retrain(sample, context, seed, epochs=int(s["epochs"]))
                clean = np.asarray(truth[test])
                part = noisy(survey.isel(star=test).compute(scheduler="synchronous"), clean, level, 99)
                found = infer_arrays(model, *spectra(part, np.arange(len(test))))
                product = xr.Dataset({k: (("star", k), found[k]) for k in ("mean", "auxiliary")})
                distance, norm = noise_free_l2(model, product, clean, np.ones(len(test), bool)).T
                error = float(np.nanmean(distance / norm))
                rows.append((level, size, seed, error, float(np.nanmean(found["noise_l2"][:, 0]))))
    if not rows:
        raise DataError(
            f"{len(rest)} stars to train on, fewer than the smallest size {sizes[0]}", "ask for smaller sizes"
        )
    fig, ax = style.figure(aspect=0.75)
    for j, level in enumerate(levels):
        here = [r for r in rows if r[0] == level]
        x = np.array(sorted({r[1] for r in here}))
        y = np.array([[np.mean(v), np.std(v)] for v in ([r[3] for r in here if r[1] == n] for n in x)])
        colour = style.CYCLE[j]
        ax.errorbar(
            x, y[:, 0], y[:, 1], marker=style.MARKERS[j], ls=style.DASHES[j], color=colour, label=f"S/N {level:g}"
        )
        noise = float(np.mean([r[4] for r in here]))
        ax.axhline(noise, color=colour, lw=0.7, ls=":")
        ax.text(x[-1], noise, "noise", color=colour, fontsize=6, ha="right", va="bottom")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("training stars (and stars watching)")
    ax.set_ylabel("relative $L_2$ to noise-free spectra")
    ax.legend()
    keys = ("snr", "stars", "seed", "relative_l2", "noise_l2")
    return StudyResult(
        figure=fig,
        table={k: [r[i] for r in rows] for i, k in enumerate(keys)},
        columns={
            "snr": "mean signal-to-noise per pixel of training and test spectra",
            "stars": "stars of the sample, the held-out fraction among them",
            "seed": "seed",
            "relative_l2": f"relative L2 to the noise-free spectra of {n_test} other stars",
            "noise_l2": "relative L2 of the noisy spectra themselves",
        },
        numbers={f"relative_l2_snr{lv:g}": [r[3] for r in rows if r[0] == lv][-1] for lv in levels},
        caption=(
            "Error of reconstructions of unseen noisy spectra against their noise-free originals, by training size; "
            "dotted: the noise of the input spectra."
        ),
    )


STUDY = Study(
    "vae_training_size",
    "Reconstruction against training size",
    "Signor et al. 2025, Figure F.1",
    compute,
    {"truth": "", "sizes": "500,1000,2000,4000", "snr": "20,100", "test": 1000, "seeds": 1, "epochs": 0},
)
