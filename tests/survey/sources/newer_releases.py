"""Small made-up files of DESI, SDSS/BOSS, LAMOST MRS, GALAH, Gaia XP and SDSS-V in the public layouts."""

from __future__ import annotations

import gzip

import numpy as np
from astropy.io import fits
from astropy.table import Table

from chemscale.catalogues.units import SPEED_OF_LIGHT
from chemscale.survey.sources.gaia_xp import SAMPLING
from chemscale.survey.sources.galah import CAMERAS


def with_line(wave, at, velocity, depth=0.5, width=2.0):
    """A continuum of 1 with an absorption line at rest wavelength `at`, shifted by `velocity` km/s."""
    centre = at * (1 + velocity / SPEED_OF_LIGHT)
    return 1 - depth * np.exp(-0.5 * ((wave - centre) / width) ** 2)


B, R, Z = np.arange(3600, 5800.1, 0.8), np.arange(5760, 7620.1, 0.8), np.arange(7520, 9824.1, 0.8)


def desi_coadd(path, ids, velocities, *, compressed=False, kinds=None):
    n = len(ids)
    fibres = Table({"TARGETID": ids, "TARGET_RA": np.full(n, 10.0), "TARGET_DEC": np.full(n, 20.0)})
    fibres["OBJTYPE"], fibres["REF_ID"] = np.array(kinds or ["TGT"] * n), 2**61 + np.arange(n)
    fibres["COADD_FIBERSTATUS"], fibres["EBV"] = np.zeros(n, "i4"), np.full(n, 0.03, "f4")
    units = [fits.PrimaryHDU(), fits.table_to_hdu(fibres)]
    units[1].name = "FIBERMAP"
    for arm, wave in (("B", B), ("R", R), ("Z", Z)):
        flux = np.array([5e-3 * with_line(wave, 6562.8, v) * (1 + (wave - 6000) / 2e4) for v in velocities])
        mask = np.zeros((n, len(wave)), np.uint32)
        mask[:, 100:103] = 2**30
        make = fits.CompImageHDU if compressed else fits.ImageHDU
        units += [
            fits.ImageHDU(wave, name=f"{arm}_WAVELENGTH"),
            fits.ImageHDU(flux.astype("f4"), name=f"{arm}_FLUX"),
            fits.ImageHDU(np.full(flux.shape, 1 / 1e-4**2, "f4"), name=f"{arm}_IVAR"),
            make(mask.astype(np.int32) if compressed else mask, name=f"{arm}_MASK"),
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(units).writeto(path)


def sdss_spec(path, velocity=60.0, kind="STAR", mask=0, warning=16):
    loglam = 3.56 + 1e-4 * np.arange(4000)
    flux = 30 * with_line(10**loglam, 6562.8, velocity)
    bad = np.zeros(4000, "i4")
    bad[2000:2004] = mask
    columns = [("flux", "E", flux), ("loglam", "E", loglam), ("ivar", "E", np.full(4000, 9.0))]
    columns += [("and_mask", "J", bad), ("or_mask", "J", np.full(4000, 2**23))]
    coadd = fits.BinTableHDU.from_columns([fits.Column(n, f, array=v) for n, f, v in columns], name="COADD")
    labels = Table({"Z": [velocity / SPEED_OF_LIGHT], "CLASS": [kind], "SUBCLASS": ["K1"], "PLUG_RA": [10.0]})
    labels["PLUG_DEC"], labels["SN_MEDIAN_ALL"], labels["ZWARNING"] = [20.0], [90.0], [warning]
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([fits.PrimaryHDU(), coadd, fits.table_to_hdu(labels)]).writeto(path)


def lamost_mrs(path, *, rows=False, velocity=40.0, arms=("B", "R"), damaged=""):
    units = [fits.PrimaryHDU()]
    units[0].header.update({"RA": 10.0, "DEC": 20.0, "OBSID": 77})
    for arm, start, at in (("B", 3.6942, 5184.0), ("R", 3.7993, 6563.0)):
        if arm not in arms:
            continue
        wave = 10 ** (start + 1e-5 * np.arange(3430))
        flux = 800 * with_line(wave, at, velocity, width=0.5)
        if arm == damaged:
            flux[:] = np.nan
        columns = {"FLUX": flux, "IVAR": np.full(3430, 1 / 8.0**2), "ANDMASK": np.zeros(3430), "ORMASK": np.zeros(3430)}
        columns["LOGLAM" if rows else "WAVELENGTH"] = np.log10(wave) if rows else wave
        made = [fits.Column(k, "D" if rows else "3430D", array=v if rows else [v]) for k, v in columns.items()]
        for name in (f"COADD_{arm}", f"{arm}-84420148"):
            unit = fits.BinTableHDU.from_columns(made, name=name)
            unit.header.update({"RV": velocity, "SNR": 100.0})
            units.append(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(units).writeto(path)


def galah(folder, star, velocity, *, cameras=(1, 2, 3, 4), dr4=True):
    folder.mkdir(parents=True, exist_ok=True)
    for camera in cameras:
        low, high = CAMERAS[camera - 1]
        n = 4096
        step = (high - low + 40) / n
        wave = low - 20 + step * np.arange(n)
        shape = with_line(wave, (low + high) / 2, velocity, width=0.3)
        raw = 500 * (1 + (wave - low) / 500) * shape

        def image(data, name, kind=fits.ImageHDU, low=low, step=step):
            unit = kind(data.astype("f4"))
            unit.header.update({"CRVAL1": low - 20, "CDELT1": step, "CRPIX1": 1})
            if kind is fits.ImageHDU:
                unit.name = name
            return unit

        error = np.full(n, 0.01)
        if dr4:
            units = [image(raw, "", fits.PrimaryHDU), image(shape, "normalized"), image(error, "relative_error")]
        else:
            others = [image(raw, "no_sky"), image(error, "no_sky_sigma")]
            units = [image(raw, "", fits.PrimaryHDU), image(error, "input_sigma"), *others, image(shape, "normalised")]
        fits.HDUList(units).writeto(folder / f"{star}{camera}.fits")


def xp_rows(n=5):
    rng = np.random.default_rng(2)
    shape = 1e-16 * (1 + 0.3 * np.sin(np.linspace(0, 4, len(SAMPLING))))
    flux = shape * (1 + rng.normal(0, 0.01, (n, len(SAMPLING))))
    ids = 4295806720000000000 + 64 * np.arange(n)
    return ids, flux, np.full(flux.shape, 1e-18)


def write_xp(folder, form="csv", n=5):
    """Sampled spectra of `n` stars.

    `form` is "csv", "csv.gz", "brackets" (GaiaXPy writes "(...)", the archive "[...]"), "parquet" (row groups of two
    stars) or "single" (a DataLink file a star).
    """
    ids, flux, error = xp_rows(n)
    folder.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        from pyarrow import parquet, table

        columns = {"source_id": ids, "flux": list(flux), "flux_error": list(error), "ra": np.full(n, 10.0)}
        parquet.write_table(table(columns), folder / "XpSampledMeanSpectrum_1.parquet", row_group_size=2)
    elif form == "single":
        for star, row, sigma in zip(ids, flux, error):
            lines = ["wavelength,flux,flux_error", *(f"{w},{f},{e}" for w, f, e in zip(SAMPLING, row, sigma))]
            (folder / f"XP_SAMPLED-Gaia DR3 {star}.csv").write_text("\n".join(lines) + "\n")
    else:
        left, right = ("[", "]") if form == "brackets" else ("(", ")")
        cell = lambda row: '"' + left + ", ".join(map(str, row)) + right + '"'  # noqa: E731
        lines = ["# a comment", "source_id,ra,dec,flux,flux_error"]
        lines += [f"{i},10.0,-20.0,{cell(f)},{cell(e)}" for i, f, e in zip(ids, flux, error)]
        text = ("\n".join(lines) + "\n").encode()
        name = f"XpSampledMeanSpectrum_1.{'csv' if form == 'brackets' else form}"
        (folder / name).write_bytes(gzip.compress(text) if form == "csv.gz" else text)
    return ids, flux, error


MWM_GRIDS = {"apogee": 10 ** (4.179 + 6e-6 * np.arange(8575)), "boss": 10 ** (3.5523 + 1e-4 * np.arange(4648))}


def mwm_table(instrument: str, rows: int, *, snr=50.0, seed=0, wavelength=True, continuum=True, change=None):
    grid = MWM_GRIDS[instrument]
    n = len(grid)
    rng = np.random.default_rng(seed)
    level = 100 * np.exp(-((grid / grid.mean() - 1) ** 2))
    vectors = {
        "flux": level * (1 + rng.normal(0, 0.01, n)),
        "ivar": 1 / (0.01 * level) ** 2,
        "pixel_flags": np.zeros(n),
        "continuum": level,
        "wavelength": grid,
    } | (change or {})
    if not wavelength:
        del vectors["wavelength"]
    if not continuum:
        del vectors["continuum"]
    columns = [
        fits.Column("sdss_id", "K", array=np.full(rows, 42)),
        fits.Column("telescope", "6A", array=["apo25m"] * rows),
        fits.Column("snr", "E", array=np.full(rows, snr)),
        fits.Column("v_rad", "E", array=np.full(rows, -33.0)),
    ]
    for name, v in vectors.items():
        form = "K" if name == "pixel_flags" else ("D" if name == "wavelength" else "E")
        columns.append(fits.Column(name, f"{len(v)}{form}", array=np.tile(v, (rows, 1))))
    unit = fits.BinTableHDU.from_columns(columns)
    if not wavelength:
        unit.header["CRVAL"], unit.header["CDELT"], unit.header["NPIXELS"] = (
            np.log10(grid[0]),
            np.log10(grid[1] / grid[0]),
            n,
        )
    return unit


def mwm_star(folder, sdss_id=42, units=None):
    primary = fits.PrimaryHDU()
    primary.header["SDSS_ID"], primary.header["V_ASTRA"] = sdss_id, "0.6.0"
    primary.header["RA"], primary.header["DEC"] = 10.0, -20.0
    units = units or [mwm_table("boss", 0), mwm_table("boss", 0), mwm_table("apogee", 1), mwm_table("apogee", 0)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"mwmStar-0.6.0-{sdss_id}.fits"
    fits.HDUList([primary, *units]).writeto(path)
    return path
