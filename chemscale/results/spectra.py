"""Spectra of chosen stars beside what the run's model makes of them, with marked lines."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from chemscale.embedding.product import open_embedding
from chemscale.errors import DataError, InputError
from chemscale.results.plots import Plot, _call
from chemscale.rsca.stars import cleaned_of, read_rows, text
from chemscale.runtime.run import Run
from chemscale.simulation.atomic import atomic_lines, vacuum_to_air
from chemscale.studies import style
from chemscale.suggest import hint
from chemscale.survey.store.cleaning import check_cleaned
from chemscale.survey.store.open import open_survey

#: Stars drawn on one page, and lines marked in one panel at most.
PAGE_STARS, MOST_LINES = 4, 28


@dataclass
class StarSpectra:
    """Spectra of some stars and their reconstructions.

    Attributes
    ----------
    star_id : ndarray of str (n,)
    wavelength : ndarray (p,)
        Angstrom, in `medium`.
    flux : ndarray (n, p)
        NaN where a pixel is not used.
    model : ndarray (n, p)
        NaN where the run has no model of the star.
    made_by : str
        What the reconstruction is: "autoencoder", "30 components" or "".
    """

    star_id: np.ndarray
    wavelength: np.ndarray
    medium: str
    flux: np.ndarray
    model: np.ndarray
    made_by: str


def read(run: Run | str | os.PathLike[str], stars: Sequence[str]) -> StarSpectra:
    """Spectra of stars by identifier, in their order; reads the chunks they lie in.

    Parameters
    ----------
    run : Run or path
        Its autoencoder reconstructs them where it has one, else its basis.
    stars : sequence of str

    Raises
    ------
    InputError
        A star is not in the survey, or its spectra are not cleaned as those of the run were.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    survey = open_survey(run.store)
    rows = _rows(survey, stars)
    flux = np.asarray(read_rows(survey["flux"], rows), np.float64)
    unused = (read_rows(survey["flags"], rows) != 0) | ~(read_rows(survey["ivar"], rows) > 0)
    wave = survey["wavelength"]
    model, made_by = _reconstruction(run, list(stars), survey)
    shown = np.where(unused, np.nan, flux)
    return StarSpectra(np.asarray(stars), wave.values, str(wave.attrs.get("medium", "")), shown, model, made_by)


def _rows(survey: xr.Dataset, stars: Sequence[str]) -> np.ndarray:
    ids = text(survey["star_id"])
    where = {s: i for i, s in enumerate(ids)}
    for star in stars:
        if star not in where:
            raise InputError(f"no star {star!r} in the survey", hint(star, ids, "stars", 3))
    return np.array([where[s] for s in stars], dtype=np.int64)


def _reconstruction(run: Run, stars: list[str], survey: xr.Dataset) -> tuple[np.ndarray, str]:
    """What the model of the run makes of each star (n, p), and what that model is."""
    seen = survey.attrs.get("cleaned", ())
    if run.has("latents.zarr") and run.has("vae/model.json"):
        import torch

        from chemscale.vae.checkpoint import load_model
        from chemscale.vae.product import open_latents

        latents = open_latents(run.path / "latents.zarr")
        model, record = load_model(run.path / "vae")
        check_cleaned(seen, record.get("cleaned", ()))
        rows = _rows(latents, stars)
        with torch.inference_mode():
            parts = [
                torch.from_numpy(np.asarray(read_rows(latents[v], rows), np.float32)) for v in ("mean", "auxiliary")
            ]
            return model.reconstruct(*parts).numpy().astype(np.float64), "autoencoder"
    if run.has("embedding.zarr") and run.has("ppca.zarr"):
        from chemscale.statistics.ppca import MaskedPPCA

        check_cleaned(seen, cleaned_of(run))
        embedding = open_embedding(run.file("embedding.zarr"))
        basis = MaskedPPCA.from_dataset(run.open_dataset("ppca.zarr").load())
        coords = read_rows(embedding["coords"], _rows(embedding, stars)).astype(np.float64)
        return np.asarray(basis.mean_ + coords @ basis.components_), f"{len(basis.components_)} components"
    return np.full((len(stars), survey.sizes["wavelength"]), np.nan), ""


def anomalous(run: Run | str | os.PathLike[str], n: int) -> dict[str, str]:
    """The `n` strangest stars by their score, with the reason, as ``chemscale anomalies`` ranked them.

    Raises
    ------
    StoreError
        The run has no anomalies.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    run.need("anomalies.json", f"chemscale anomalies --run {run.path}")
    ranked = [r for r in run.load_json("anomalies.json")["ranked"] if r.get("cause") != "no data"][:n]
    return {str(r["star_id"]): f"score {r['score']:.2f}, {r['cause']}" for r in ranked}


def lines(
    low: float, high: float, medium: str, wanted: Iterable[str] = (), *, most: int = MOST_LINES
) -> list[tuple[str, float]]:
    """The strongest lines of a cool giant between two wavelengths, as (species, wavelength), by wavelength.

    Parameters
    ----------
    low, high : float
        Angstrom, in `medium` ("air", or vacuum for anything else).
    wanted : iterable of str
        Elements; empty: all. Or one path of a CSV with columns `species` and `wavelength`, taken as it is.

    Raises
    ------
    InputError
        A file without these columns, or an element without a known line there.
    """
    wanted = list(wanted)
    if len(wanted) == 1 and Path(wanted[0]).suffix == ".csv":
        return [(s, w) for s, w in _line_file(Path(wanted[0])) if low <= w <= high]
    found = []
    for name in ("lines_hband", "lines_optical"):
        atoms = atomic_lines(name)
        wave = vacuum_to_air(atoms.wavelength) if medium == "air" else atoms.wavelength
        strength = atoms.loggf - 1.1 * atoms.excitation  # 5040 K / 4600 K: the population of the lower level
        for k in np.flatnonzero((wave >= low) & (wave <= high)):
            species = f"{atoms.element[k]} {'I' * (int(atoms.stage[k]) + 1)}"
            if not wanted or atoms.element[k] in wanted:
                found.append((float(strength[k]), species, float(wave[k])))
    known = {s.split()[0] for _, s, _ in found}
    if absent := [w for w in wanted if w not in known]:
        raise InputError(
            f"no line of {', '.join(absent)} is known between {low:.0f} and {high:.0f} Angstrom",
            "give a CSV with columns species, wavelength, or other elements",
        )
    abundance = {"Fe": 7.5, "Mg": 7.5, "Si": 7.5, "C": 8.4, "Al": 6.4, "Ca": 6.3, "Na": 6.2, "Ni": 6.2, "Cr": 5.6}
    ranked = sorted(found, key=lambda f: -(f[0] + abundance.get(f[1].split()[0], 5.0)))
    apart = 0.012 * (high - low)  # names must not cover each other
    kept: list[tuple[str, float]] = []
    for _, species, w in ranked:
        if len(kept) < most and all(abs(w - other) > apart for _, other in kept):
            kept.append((species, w))
    return sorted(kept, key=lambda k: k[1])


def _line_file(path: Path) -> list[tuple[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as f:
            return [(r["species"], float(r["wavelength"])) for r in csv.DictReader(f)]
    except (OSError, KeyError, ValueError) as err:
        raise InputError(f"{path}: {err!r}", "the columns are species and wavelength (Angstrom)") from err


def stars(
    run: Run | str | os.PathLike[str],
    wanted: Sequence[str] = (),
    *,
    anomalies: int = 0,
    low: float | None = None,
    high: float | None = None,
    mark: Sequence[str] | None = (),
    width: str | float = "page",
) -> Plot:
    """Spectrum, reconstruction and residual of each star, :data:`PAGE_STARS` on a page, with marked lines.

    Parameters
    ----------
    run : Run or path
    wanted : sequence of str
        Identifiers.
    anomalies : int
        The so many strangest stars of the run besides.
    low, high : float, optional
        Angstrom; the whole spectrum by default.
    mark : sequence of str or None
        Elements, or one CSV of lines (:func:`lines`); empty: the strongest lines; None: no lines.
    width : "column", "page" or float

    Raises
    ------
    InputError
        No stars asked for, or one that is not there.
    DataError
        No pixel between `low` and `high`.
    """
    where = run if isinstance(run, Run) else Run.open(run)
    reasons = dict.fromkeys(wanted, "") | (anomalous(where, anomalies) if anomalies else {})
    if not reasons:
        raise InputError("no stars were asked for", "name some, or pass --anomalies N")
    found = read(where, list(reasons))
    wave = found.wavelength
    part = (wave >= (low if low is not None else wave[0])) & (wave <= (high if high is not None else wave[-1]))
    if not part.any():
        raise DataError(f"no pixel between {low} and {high} Angstrom", f"the grid: {wave[0]:.0f}-{wave[-1]:.0f}")
    marks = [] if mark is None else lines(float(wave[part][0]), float(wave[part][-1]), found.medium, mark)
    figures = []
    with style.context():
        for start in range(0, len(found.star_id), PAGE_STARS):
            rows = range(start, min(start + PAGE_STARS, len(found.star_id)))
            figures.append(_page(found, rows, part, marks, reasons, width))
    n = int(part.sum())
    table = {
        "star_id": np.repeat(found.star_id, n),
        "wavelength": np.tile(wave[part], len(found.star_id)),
        "flux": found.flux[:, part].ravel(),
        "reconstruction": found.model[:, part].ravel(),
    }
    options = {"anomalies": anomalies or None, "low": low, "high": high, "width": None if width == "page" else width}
    call = _call("stars", where, [list(wanted)], options | ({} if mark == () else {"mark": list(mark or [])}))
    call = call.replace("mark=[]", "mark=None")
    told = f"; reconstruction by {found.made_by}" if found.made_by else ""
    return Plot(figures, table, call, f"{len(found.star_id)} stars{told}, {len(marks)} lines marked")


def _page(
    found: StarSpectra,
    rows: range,
    part: np.ndarray,
    marks: list[tuple[str, float]],
    reasons: dict[str, str],
    width: str | float,
) -> Any:
    wave = found.wavelength[part]
    fig, axes = style.figure(
        width, 0.3 * len(rows) + 0.06, 2 * len(rows), 1, squeeze=False, sharex=True,
        gridspec_kw={"height_ratios": [3, 1] * len(rows)},
    )  # fmt: skip
    fig.get_layout_engine().set(h_pad=0.02, hspace=0)
    for j, row in enumerate(rows):
        top, bottom = axes[2 * j, 0], axes[2 * j + 1, 0]
        flux, model = found.flux[row, part], found.model[row, part]
        top.plot(wave, flux, color=style.COLOURS["blue"], lw=0.6, label="observed")
        if np.isfinite(model).any():
            made = f"from {found.made_by}"
            top.plot(wave, model, color=style.COLOURS["vermilion"], lw=0.6, ls=style.DASHES[1], label=made)
        low, high = style.spread(np.concatenate([flux, model]), inner=0.995, margin=0.12)
        top.set_ylim(low, high + 0.22 * (high - low))  # room for the names of lines
        bottom.plot(wave, flux - model, color=style.FIELD, lw=0.5)
        bottom.axhline(0, color="black", lw=0.4)
        bottom.set_ylim(*style.spread(flux - model, inner=0.99, margin=0.3))
        for species, w in marks:
            top.axvline(w, color=style.FIELD, lw=0.4, ls=(0, (2, 2)), zorder=0)
            if j == 0:
                where = top.get_xaxis_transform()
                top.text(w, 0.98, species, rotation=90, fontsize=5, ha="center", va="top", transform=where)
        name = found.star_id[row]
        style.panel_letter(top, f"{name}: {reasons[name]}" if reasons[name] else name, where="lower left")
        top.set_ylabel("flux")
        bottom.set_ylabel("residual", fontsize=6)
        top.set_xlim(wave[0], wave[-1])
    axes[0, 0].legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    medium = f", {found.medium}" if found.medium else ""
    axes[-1, 0].set_xlabel(rf"wavelength ($\rm\AA${medium})")
    return fig
