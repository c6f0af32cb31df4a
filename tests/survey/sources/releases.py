"""Small made-up releases in the real layouts, for tests of readers."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from chemscale.survey.sources.apogee_pixels import CHIPS, N_PIXELS


def aspcap_arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error of a plausible aspcapStar spectrum: exact zeros outside the chips."""
    rng = np.random.default_rng(seed)
    flux, error = np.zeros(N_PIXELS, ">f4"), np.zeros(N_PIXELS, ">f4")
    for start, stop in CHIPS:
        flux[start:stop] = 1 + rng.normal(0, 0.01, stop - start)
        error[start:stop] = 0.01
    error[500], error[501], flux[502] = 1e10, 0.2, 0.0
    return flux, error


def write_aspcap(
    path: Path,
    star: str,
    *,
    seed: int = 0,
    snr: float = 100.0,
    flux: np.ndarray | None = None,
    error: np.ndarray | None = None,
    header: dict[str, Any] | None = None,
    table: bool = True,
    elements: int = 26,
) -> Path:
    """Write an aspcapStar file; keywords replace what a good file has."""
    made_flux, made_error = aspcap_arrays(seed)
    flux = made_flux if flux is None else flux
    error = made_error if error is None else error
    primary = fits.PrimaryHDU()
    primary.header["OBJ"] = star
    primary.header["SNR"] = snr
    grid = {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1, "DC-FLAG": 1} | (header or {})
    units: list[Any] = [primary]
    for data in (flux, error, flux):
        unit = fits.ImageHDU(data)
        unit.header.update({k: v for k, v in grid.items() if v is not None})
        units.append(unit)
    if table:
        x_h = np.full((1, elements), 0.1, "f4")
        x_h[0, 1] = -9999.99
        columns = [
            fits.Column("APOGEE_ID", "18A", array=[star]),
            fits.Column("FILE", "40A", array=[f"apStar-r12-{star}.fits"]),
            fits.Column("PARAM", "9E", array=np.array([[4500, 2.0, 0.1, -0.2, 0, 0, 0.05, 0.5, -9999.0]])),
            fits.Column("X_H", f"{elements}E", array=x_h),
            fits.Column("ASPCAPFLAG", "J", array=[1 << 23]),
            fits.Column("SNR", "E", array=[snr]),
            fits.Column("AK_TARG", "E", array=[-9999.99]),
            fits.Column("VHELIO", "E", array=[-12.5]),
        ]
        units.append(fits.BinTableHDU.from_columns(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(units).writeto(path)
    return path


def write_apstar(path: Path, star: str, *, seed: int = 0, visits: int = 1, mask_type: str = "i2") -> Path:
    """Write an apStar file: flux, error and APOGEE_PIXMASK; the combination and the visits where there are several.

    Pixels 400 to 409 have BADPIX set. A `mask_type` of unsigned integers is stored by BZERO.
    """
    shape, error = aspcap_arrays(seed)
    flux, mask = 1000.0 * shape, np.zeros(N_PIXELS, mask_type)
    mask[400:410] = 1
    rows = [flux, np.where(error < 1, 1000.0 * error, error), mask]
    if visits > 1:
        others = [
            np.ones((visits + 1, N_PIXELS)),
            np.full((visits + 1, N_PIXELS), 1e10),
            np.ones((visits + 1, N_PIXELS)),
        ]
        rows = [np.vstack([row[None], other.astype(row.dtype)]) for row, other in zip(rows, others)]
    units: list[Any] = [fits.PrimaryHDU()]
    units[0].header["OBJID"], units[0].header["NVISITS"], units[0].header["SNR"] = star, visits, 90.0
    for data in rows:
        unit = fits.ImageHDU(data)
        unit.header.update({"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1})
        units.append(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(units).writeto(path)
    return path


def write_allstar(
    path: Path, rows: list[dict[str, Any]], *, elements: int = 26, symbols: list[str] | None = None
) -> Path:
    """Write an allStar table with the columns chemscale reads (and one it does not)."""
    n = len(rows)

    def column(name: str, form: str, default: Any) -> fits.Column:
        return fits.Column(name, form, array=np.array([row.get(name, default) for row in rows]))

    x_h = np.array([row.get("X_H", np.linspace(-0.5, 0.5, elements)) for row in rows], dtype="f4")
    columns = [
        column("APOGEE_ID", "18A", ""),
        column("TELESCOPE", "8A", "apo25m"),
        column("FIELD", "16A", "M67"),
        column("SNR", "E", 100.0),
        column("TEFF", "E", 4500.0),
        column("LOGG", "E", 2.2),
        column("FE_H", "E", -0.1),
        column("AK_TARG", "E", 0.1),
        column("VHELIO_AVG", "E", 10.0),
        column("ASPCAPFLAG", "K", 0),
        column("NVISITS", "J", 3),
        fits.Column("PAD", "500A", array=[""] * n),
        fits.Column("X_H", f"{elements}E", array=x_h),
        fits.Column("X_H_ERR", f"{elements}E", array=np.full((n, elements), 0.02)),
    ]
    if elements == 26:
        columns.append(column("VISITS", "60A", "r12-1-2-3,r12-4-5-6"))
    units: list[Any] = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]
    if symbols:
        units += [fits.ImageHDU(), fits.BinTableHDU.from_columns([_symbol_column(symbols)])]
    fits.HDUList(units).writeto(path)
    return path


def _symbol_column(symbols: list[str]) -> fits.Column:
    return fits.Column("ELEM_SYMBOL", f"{5 * len(symbols)}A", dim=f"(5,{len(symbols)})", array=np.array([symbols]))


def lamost_arrays(n: int = 3909, seed: int = 0) -> dict[str, np.ndarray]:
    """Vectors of a plausible LAMOST spectrum."""
    rng = np.random.default_rng(seed)
    wave = 10 ** (3.5682 + 1e-4 * np.arange(n))
    continuum = 1000 * np.exp(-(((wave - 6000) / 4000) ** 2))
    flux = continuum * (1 + rng.normal(0, 0.02, n))
    zero = np.zeros(n)
    return {
        "FLUX": flux,
        "IVAR": 1 / (0.02 * continuum) ** 2,
        "WAVELENGTH": wave,
        "ANDMASK": zero.copy(),
        "ORMASK": zero.copy(),
        "NORMALIZATION": flux / continuum,
    }


def write_lamost(
    path: Path,
    *,
    layout: str = "dr10",
    arrays: dict[str, np.ndarray] | None = None,
    header: dict[str, Any] | None = None,
) -> Path:
    """Write a LAMOST spectrum in layout "dr1", "dr8" or "dr10"; gzipped when the name ends in .gz."""
    arrays = lamost_arrays() if arrays is None else arrays
    keys = {
        "COEFF0": 3.5682,
        "COEFF1": 1e-4,
        "VACUUM": True,
        "Z": 1e-4,
        "RA": 10.0,
        "DEC": -5.0,
        "SUBCLASS": "G2",
        "SN_G" if layout == "dr1" else "SNRG": 50.0,
        "LMJD": 55862,
        "PLANID": "P1",
        "SPID": 6,
    } | (header or {})
    if layout == "dr10":
        primary = fits.PrimaryHDU()
        columns = [fits.Column(k, f"{len(v)}E", array=np.array([v], "f4")) for k, v in arrays.items()]
        units: list[Any] = [primary, fits.BinTableHDU.from_columns(columns, name="COADD")]
    else:
        third = np.ones_like(arrays["FLUX"]) if layout == "dr1" else arrays["WAVELENGTH"]
        rows = [arrays["FLUX"], arrays["IVAR"], third, arrays["ANDMASK"], arrays["ORMASK"]]
        primary = fits.PrimaryHDU(np.array(rows, "f4"))
        units = [primary]
    primary.header.update({k: v for k, v in keys.items() if v is not None})
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    fits.HDUList(units).writeto(plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path
