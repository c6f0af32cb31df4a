"""The options of each survey's `chemscale ingest` verb: what its source is built from, besides catalogues.

A function here is named after the source's entry point (``sdss_v`` for ``sdss-v``); it returns the arguments of the
source's class. Options left at None are not passed on, so that defaults stand in the class alone. A registered source
without a function here gets its arguments by ``--option KEY=VALUE``.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

Spectra = Annotated[
    list[str] | None, typer.Option("--spectra", metavar="DIR", help="Folder of spectra, searched below; repeatable.")
]
Continuum = Annotated[str | None, typer.Option("--continuum", help="running-quantile, or survey (its own).")]
Tellurics = Annotated[
    bool | None, typer.Option("--tellurics", help="Flag windows of tellurics; by default they are kept.")
]
Frame = Annotated[
    str | None, typer.Option("--frame", help="rest (the default: a velocity is needed), or observed: as in the files.")
]
First = Annotated[float | None, typer.Option("--wavelength-min", help="First rest wavelength, Angstrom.")]
Last = Annotated[float | None, typer.Option("--wavelength-max", help="Last rest wavelength, Angstrom.")]


def full_path(path: str | None) -> str | None:
    """Absolute, so that the store can be resumed and repaired from any directory."""
    return path if path is None or "://" in path else os.path.abspath(os.path.expanduser(path))


def joins(
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", metavar="FILE", help="Catalogue of labels: FITS, CSV, Parquet, VOTable; repeatable."),
    ] = None,
    label_key: Annotated[
        str | None,
        typer.Option("--label-key", metavar="COLUMN", help="Its identifier column, or 'coordinates'."),
    ] = None,
    match_radius: Annotated[
        float | None, typer.Option("--match-radius", help="Of a match by coordinates, arc seconds; 1 by default.")
    ] = None,
    members: Annotated[
        str | None, typer.Option("--members", metavar="FILE", help="Membership table: FITS, CSV, Parquet, VOTable.")
    ] = None,
    member_key: Annotated[str | None, typer.Option("--member-key", help="Identifier column of --members.")] = None,
    member_column: Annotated[str | None, typer.Option("--member-column", help="Cluster column of --members.")] = None,
    probability_column: Annotated[
        str | None, typer.Option("--probability-column", help="Column with the membership probability (CG_PROB, ...).")
    ] = None,
    min_probability: Annotated[
        float | None,
        typer.Option("--min-probability", help="Members are above it; 0.8 where there is a probability column."),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--extra", metavar="COLUMN", help="Store a further number of each star, as x_COLUMN; repeatable."),
    ] = None,
) -> dict[str, Any]:
    """Catalogues of labels and members: the same for every survey."""
    given = {"label_key": label_key, "match_radius": match_radius, "members": full_path(members)}
    given |= {"member_key": member_key, "member_column": member_column}
    given |= {"probability_column": probability_column, "min_probability": min_probability}
    return given | {"labels": [str(full_path(t)) for t in labels] if labels else None, "extra": extra or None}


def apogee(
    spectra: Spectra = None,
    allstar: Annotated[str | None, typer.Option("--allstar", metavar="FILE", help="The release's allStar.")] = None,
    product: Annotated[str | None, typer.Option("--product", help="aspcapStar (the default) or apStar.")] = None,
) -> dict[str, Any]:
    """Ingest APOGEE spectra (DR13 to DR17 layouts).

    Example: chemscale ingest apogee --spectra dr17/ --allstar allStar.fits --members occam.fits --out apogee.zarr
    """
    return _folders(spectra) | {"allstar": full_path(allstar), "product": product}


def sdss_v(
    spectra: Spectra = None,
    catalogue: Annotated[
        str | None, typer.Option("--catalogue", metavar="FILE", help="astraAllStar<PIPELINE> of the release.")
    ] = None,
    product: Annotated[str | None, typer.Option("--product", help="mwmStar (the default) or mwmVisit.")] = None,
    instrument: Annotated[str | None, typer.Option("--instrument", help="apogee (the default) or boss.")] = None,
    continuum: Continuum = None,
) -> dict[str, Any]:
    """Ingest SDSS-V Milky Way Mapper spectra (DR19, DR20: mwmStar, mwmVisit).

    Example: chemscale ingest sdss-v --spectra spectra/star --catalogue astraAllStarASPCAP-0.6.0.fits.gz --out mwm.zarr
    """
    given = {"catalogue": full_path(catalogue), "product": product, "instrument": instrument, "continuum": continuum}
    return _folders(spectra) | given


def lamost(
    spectra: Spectra = None,
    frame: Frame = None,
    wavelength_min: First = None,
    wavelength_max: Last = None,
    continuum: Continuum = None,
) -> dict[str, Any]:
    """Ingest LAMOST low-resolution spectra (DR1 to DR10 layouts).

    Example: chemscale ingest lamost --spectra dr10/ --labels labels.csv --out lamost.zarr
    """
    given = {"continuum": continuum, "frame": frame}
    return _folders(spectra) | _range(wavelength_min, wavelength_max, (4000.0, 8900.0)) | given


def lamost_mrs(
    spectra: Spectra = None,
    product: Annotated[
        str | None, typer.Option("--product", help="coadd (the default), or exposure: one star a single exposure.")
    ] = None,
    frame: Frame = None,
) -> dict[str, Any]:
    """Ingest LAMOST medium-resolution spectra (med-*.fits, both arms).

    Example: chemscale ingest lamost-mrs --spectra dr10_mrs/ --labels stellar.csv --out mrs.zarr
    """
    return _folders(spectra) | {"product": product, "frame": frame}


def boss(
    spectra: Spectra = None,
    frame: Frame = None,
    tellurics: Tellurics = None,
    wavelength_min: First = None,
    wavelength_max: Last = None,
) -> dict[str, Any]:
    """Ingest SDSS/BOSS optical spectra (spec-PLATE-MJD-FIBER.fits).

    Example: chemscale ingest boss --spectra spectra/ --labels sppParams.fits --out segue.zarr
    """
    return (
        _folders(spectra)
        | _range(wavelength_min, wavelength_max, (3850.0, 9100.0))
        | {"tellurics": tellurics, "frame": frame}
    )


def desi(
    spectra: Spectra = None,
    redshifts: Annotated[
        list[str] | None,
        typer.Option("--redshifts", metavar="FILE", help="rvtab, redrock or zbest, where not beside the spectra."),
    ] = None,
    frame: Frame = None,
    tellurics: Tellurics = None,
    wavelength_min: First = None,
    wavelength_max: Last = None,
) -> dict[str, Any]:
    """Ingest DESI coadds (three arms, FIBERMAP, rvtab or redrock beside them).

    Example: chemscale ingest desi --spectra healpix/ --out desi.zarr
    """
    tables = [str(full_path(t)) for t in redshifts] if redshifts else None
    given = {"redshifts": tables, "tellurics": tellurics, "frame": frame}
    return _folders(spectra) | _range(wavelength_min, wavelength_max, (3600.0, 9800.0)) | given


def galah(spectra: Spectra = None, continuum: Continuum = None, frame: Frame = None) -> dict[str, Any]:
    """Ingest GALAH spectra (DR3, DR4: four files a star) with their catalogue as --labels.

    Example: chemscale ingest galah --spectra spectra/ --labels galah_dr4_allstar_240705.fits --out galah.zarr
    """
    return _folders(spectra) | {"continuum": continuum, "frame": frame}


def gaia_xp(
    spectra: Annotated[
        list[str] | None,
        typer.Option("--spectra", metavar="PATH", help="CSV or Parquet with sampled spectra, or folders; repeatable."),
    ] = None,
    continuum: Annotated[str | None, typer.Option("--continuum", help="running-quantile or median.")] = None,
) -> dict[str, Any]:
    """Ingest Gaia XP sampled mean spectra (archive files or GaiaXPy's output).

    Example: chemscale ingest gaia-xp --spectra XpSampledMeanSpectrum/ --labels gaia.parquet --out xp.zarr
    """
    return _folders(spectra) | {"continuum": continuum}


def table(
    file: Annotated[str, typer.Argument(metavar="FILE", help="NPZ, HDF5, FITS table or Zarr.")],
    mapping: Annotated[
        str | None, typer.Option("--mapping", "--columns", metavar="TOML", help="Which column is what.")
    ] = None,
    medium: Annotated[str | None, typer.Option("--medium", help="vacuum or air, where the file does not say.")] = None,
    continuum: Annotated[
        str | None, typer.Option("--continuum", help="as-given (normalised flux), running-quantile or median.")
    ] = None,
    window: Annotated[float | None, typer.Option("--window", help="Of the running quantile, Angstrom.")] = None,
) -> dict[str, Any]:
    """Ingest a table of spectra: flux, error (or ivar) and wavelength, columns mapped by a small TOML.

    Example: chemscale ingest table spectra.npz --out survey.zarr
    """
    given = {"path": full_path(file), "mapping": full_path(mapping), "medium": medium}
    return given | {"continuum": continuum, "window": window}


def _folders(spectra: list[str] | None) -> dict[str, Any]:
    return {"spectra": [str(full_path(s)) for s in spectra] if spectra else None}


def _range(low: float | None, high: float | None, default: tuple[float, float]) -> dict[str, Any]:
    if low is None and high is None:
        return {}
    return {"wavelength_range": (default[0] if low is None else low, default[1] if high is None else high)}
