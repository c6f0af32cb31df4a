"""Residuals of high-extinction stars on a low-extinction basis, and the windows they suggest (Figure 6, Appendix A)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from chemscale.quality.interstellar import interstellar_windows
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult

Finder = Callable[..., tuple[list[tuple[int, int]], xr.Dataset]]


def residual_figure(context: StudyContext, find: Finder, variable: str, control: str, what: str) -> dict[str, Any]:
    """Figure, table and numbers shared by the interstellar and the velocity study."""
    s = context.settings
    keys = tuple(k for k in ("low", "high", "seed", "grow", "merge", "pad", "both_signs") if k in s)
    windows, ds = find(
        context.survey,
        n_components=int(s["components"]),
        max_basis=int(s["max_basis"]),
        **{k: type(s[k])(s[k]) for k in keys},
    )
    wave = ds["wavelength"].values
    fig, axes = style.figure("page", 0.42, 2, 1, sharex=True, height_ratios=(2, 1))
    for start, stop in windows:
        for ax in axes:
            ax.axvspan(wave[start], wave[min(stop, len(wave) - 1)], color=style.COLOURS["yellow"], alpha=0.6, lw=0)
    axes[0].plot(wave, ds[control], color=style.FIELD, lw=0.5, label="stars without it, not in the basis")
    axes[0].plot(wave, ds[variable], color=style.CYCLE[0], lw=0.6, label=what)
    axes[0].set_ylabel("mean residual flux" if variable == "residual" else "mean |residual| flux")
    axes[0].set_ylim(*style.spread(ds[variable].values, 0.9995, 0.2))
    axes[0].legend(loc="lower left", ncols=2)
    axes[1].plot(wave, ds["significance"], color="black", lw=0.6)
    axes[1].axhline(0, color=style.FIELD, lw=0.4)
    axes[1].set_ylabel("significance")
    medium = ds["wavelength"].attrs.get("medium", "")
    axes[1].set_xlabel(style.label("wavelength").replace(")", f", {medium})" if medium else ")"))
    axes[1].set_xlim(wave[0], wave[-1])
    names = (variable, control, "error", "significance", "window", "n_high")
    return {
        "figure": fig,
        "basis": ds.attrs["basis"],
        "table": {"wavelength": wave, **{n: _column(ds[n].values) for n in names}},
        "columns": {
            "wavelength": "Angstrom",
            variable: f"mean {'absolute ' if 'absolute' in variable else ''}residual of the high stars, flux",
            control: "the same for low stars that are not in the basis",
            "error": "standard error of the mean residual",
            "significance": "smoothed excess in units of its robust scatter over wavelength",
            "window": "1 inside a selected window",
            "n_high": "high stars with the pixel used",
        },
        "numbers": {
            "windows": len(windows),
            "share_of_pixels": float(np.mean(ds["window"].values)),
            "n_low": int(ds.attrs["n_low"]),
            "n_high": int(ds.attrs["n_high"]),
            "ranges": "; ".join(f"{wave[a]:.0f}-{wave[min(b, len(wave)) - 1]:.0f}" for a, b in windows[:12]),
        },
    }


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(int) if values.dtype.kind == "b" else values


def compute(context: StudyContext) -> StudyResult:
    """Residual spectrum and windows of appendix A."""
    s = context.settings
    parts = residual_figure(context, interstellar_windows, "residual", "control", "high-extinction stars")
    return StudyResult(
        **parts,
        caption=(
            f"Mean residual of stars with A_K > {s['high']} on the basis of stars with A_K < {s['low']} mag. Yellow: "
            "windows the automatic selection proposes to censor as interstellar."
        ),
    )


SELECTION = {"components": 30, "max_basis": 6000, "seed": 8.0, "grow": 3.0, "merge": 15, "pad": 6}
STUDY = Study(
    "interstellar",
    "Interstellar bands",
    "de Mijolla & Ness 2021, Figure 6 (Appendix A)",
    compute,
    {"low": 0.005, "high": 0.5, **SELECTION},
)
