"""Spectra of a survey as a FITS file that other programs read, and that ``chemscale ingest table`` takes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.formats.fits_file import NOTES
from chemscale.schema import VARIABLES, star_variables
from chemscale.survey.conversions import rows_of

#: Stars held at once.
_STARS = 1024
_BLOCK = 2880


def export_spectra(
    survey: xr.Dataset, path: str | os.PathLike[str], stars: Any = None, *, overwrite: bool = False
) -> str:
    """Write spectra and labels of stars as one FITS file.

    Parameters
    ----------
    survey : Dataset
    path : str or path
        The file; an existing one is refused unless `overwrite`. It appears under its name when it is whole.
    stars : identifiers, rows, slice or boolean mask, optional
        All by default.

    Returns
    -------
    str
        Path of the file.

    Raises
    ------
    InputError
        The file exists, a star does not, or none is asked for.

    Notes
    -----
    Images FLUX, IVAR (float32), FLAGS (uint8), each (stars, pixels), and WAVELENGTH (float64, Angstrom); a table STARS
    with a row a star; a table ELEMENTS where there are abundances. Survey, medium, normalisation and what the spectra
    were cleaned of are keywords of the primary header. Three passes over the spectra that are written; some thousand
    stars in memory.

    Ingested again (``chemscale ingest table FILE``, with the same ``--max-error``) flux, ivar, flags and labels are the
    same to the last bit.

    Examples
    --------
    >>> import chemscale
    >>> from chemscale.survey.sources.simulated import SimulatedSource
    >>> summary = chemscale.ingest(SimulatedSource(40, 2, seed=1, grid="lowres"), "whole.zarr")
    >>> chemscale.export_spectra(chemscale.open_survey("whole.zarr"), "ten.fits", slice(0, 10))
    'ten.fits'
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already", "give another path, or overwrite it")
    rows = rows_of(survey, stars)
    if not len(rows):
        raise InputError("no stars to write", "ask for at least one")
    part = survey.isel(star=rows)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            _write(part, stream)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return str(path)


def _write(part: xr.Dataset, stream: IO[bytes]) -> None:
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    said = {"medium": part["wavelength"].attrs.get("medium", ""), **part.attrs}
    said["cleaned"] = ", ".join(part.attrs.get("cleaned", ()))
    for name, key in NOTES.items():
        if said.get(name):
            primary.header[key] = str(said[name]).encode("ascii", "replace").decode()
    stream.write(primary.header.tostring().encode("ascii"))
    wavelength = fits.ImageHDU(part["wavelength"].values.astype(">f8"), name="WAVELENGTH")
    wavelength.header["BUNIT"] = "Angstrom"
    _append(stream, wavelength)
    for name in ("flux", "ivar", "flags"):
        _image(stream, name, part[name])
    _append(stream, _labels(part))
    if "element" in part.variables:
        names = np.asarray(part["element"].values).astype(str)
        _append(stream, fits.BinTableHDU.from_columns([_column("element", names)], name="ELEMENTS"))


def _append(stream: IO[bytes], unit: Any) -> None:
    import io

    buffer = io.BytesIO()
    from astropy.io import fits

    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(buffer)
    stream.write(buffer.getvalue()[_BLOCK:])


def _image(stream: IO[bytes], name: str, values: xr.DataArray) -> None:
    """An image (stars, pixels), written block by block."""
    from astropy.io import fits

    kind = ">u1" if name == "flags" else ">f4"
    header = fits.ImageHDU(np.zeros((1, 1), kind), name=name.upper()).header
    header["NAXIS1"], header["NAXIS2"] = values.shape[1], values.shape[0]
    stream.write(header.tostring().encode("ascii"))
    for block in _blocks(values):
        stream.write(block.astype(kind).tobytes())
    stream.write(b"\0" * (-stream.tell() % _BLOCK))


def _blocks(values: xr.DataArray) -> Iterator[np.ndarray]:
    for start in range(0, values.shape[0], _STARS):
        yield values.isel(star=slice(start, start + _STARS)).values


def _labels(part: xr.Dataset) -> Any:
    from astropy.io import fits

    names = list(star_variables(part.variables))
    names += [n for n in ("abundance", "abundance_error") if n in part.variables]
    columns = [_column(n, part[n].values) for n in names]
    return fits.BinTableHDU.from_columns(columns, name="STARS")


def _column(name: str, values: np.ndarray) -> Any:
    from astropy.io import fits

    spec = VARIABLES[name]
    if spec.dtype == "str":
        encoded = np.array([str(v).encode() for v in values])
        return fits.Column(name, f"{max(1, encoded.dtype.itemsize)}A", array=encoded)
    code = {"f4": "E", "f8": "D", "i8": "K", "i4": "J", "i2": "I", "u1": "B", "b1": "L"}[values.dtype.str[1:]]
    width = values.shape[1] if values.ndim == 2 else 1
    unit = spec.units if spec.units not in ("", "1", "dex") else None
    return fits.Column(name, f"{width}{code}" if values.ndim == 2 else code, unit=unit, array=values)
