"""What each feature weighs in the spectrum: the linear map of section 3.1, with the strongest atomic lines marked."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.simulation.atomic import atomic_lines, vacuum_to_air
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult

#: Temperature (K) at which lines are ranked by strength: a cool giant's.
_TEMPERATURE = 4500.0


def strong_lines(low: float, high: float, medium: str, n: int) -> list[tuple[str, float]]:
    """Element and wavelength (Angstrom, in `medium`) of the `n` lines that matter most between two wavelengths.

    Ranked by ``log gf - excitation * 5040 / T``, at most a fourth of them of one element.
    """
    found: list[tuple[float, str, float]] = []
    for name in ("lines_hband", "lines_optical"):
        lines = atomic_lines(name)
        place = vacuum_to_air(lines.wavelength) if medium == "air" else lines.wavelength
        strength = lines.loggf - lines.excitation * 5040 / _TEMPERATURE
        found += list(zip(strength.tolist(), lines.element, place.tolist(), strict=True))
    chosen: list[tuple[str, float]] = []
    for _, species, wavelength in sorted(found, reverse=True):
        same = sum(s == species for s, _ in chosen)
        if low < wavelength < high and same < max(1, n // 4) and len(chosen) < n:
            chosen.append((species, wavelength))
    return sorted(chosen, key=lambda line: line[1])


def compute(context: StudyContext) -> StudyResult:
    """Weights of the most scaled features on every pixel."""
    sample = context.sample
    n = min(int(context.settings["n_features"]), sample.n_components)
    ppca = MaskedPPCA.from_dataset(context.run.open_dataset("ppca.zarr").load())
    weights = sample.evaluation.fit("rsca").linear_map(ppca, n)
    used = np.asarray(ppca.pixel_used_, bool)
    weights = np.where(used, weights, np.nan)
    wave = np.asarray(context.survey["wavelength"].values, dtype=float)
    medium = str(context.survey["wavelength"].attrs.get("medium", "vacuum"))
    lines = strong_lines(wave[0], wave[-1], medium, int(context.settings["lines"]))
    fig, axes = style.figure("page", 0.16 + 0.17 * n, n, 1, sharex=True, squeeze=False)
    for f, ax in enumerate(axes[:, 0]):
        ax.plot(wave, weights[f], color=style.CYCLE[f % len(style.CYCLE)], lw=0.5)
        ax.set_ylabel(f"weight on {f + 1}")
        ax.set_ylim(*style.spread(weights[f], 0.9995, 0.25))
        for _, place in lines:
            ax.axvline(place, color=style.FIELD, lw=0.4, ls=":", zorder=0)
    for i, (species, place) in enumerate(lines):
        height = 1.02 + 0.09 * (i % 2)
        axes[0, 0].text(
            place, height, species, transform=axes[0, 0].get_xaxis_transform(), ha="center", fontsize=5.5, rotation=0
        )
    axes[-1, 0].set_xlabel(style.label("wavelength").replace(")", f", {medium})"))
    axes[-1, 0].set_xlim(wave[0], wave[-1])
    strongest = np.nanargmax(np.abs(weights), axis=1)
    numbers: dict[str, Any] = {f"strongest_pixel_of_feature_{f + 1}": float(wave[i]) for f, i in enumerate(strongest)}
    return StudyResult(
        figure=fig,
        table={"wavelength": wave, **{f"weight_{f + 1}": weights[f] for f in range(n)}},
        columns={
            "wavelength": f"Angstrom, {medium}",
            **{f"weight_{f + 1}": f"change of feature {f + 1} per unit of flux in the pixel" for f in range(n)},
        },
        numbers=numbers,
        caption=(
            f"The map from spectra to the {n} most scaled features is linear: each panel shows one feature's weight on "
            "every pixel (empty where the basis uses none). Dotted: the strongest atomic lines of a cool giant in the "
            "simulator's list; molecules are not marked."
        ),
    )


STUDY = Study(
    "linear_map",
    "Where in the spectrum the features look",
    "de Mijolla & Ness 2021, section 3.1",
    compute,
    {"n_features": 3, "lines": 20},
)
