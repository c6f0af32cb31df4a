"""Any table of spectra: one file with flux, error and wavelength, and labels beside them.

A file whose arrays already carry the contract's names needs nothing else::

    np.savez("mine.npz", flux=..., error=..., wavelength=..., teff=..., cluster=...)

Other names and units are mapped by a small TOML file::

    survey = "GALAH DR4"
    medium = "air"                  # of the wavelengths; vacuum when nobody says otherwise
    normalisation = "by the survey"

    [columns]                       # contract name = name in the file
    flux = "sob_norm"
    error = "uncertainty"
    wavelength = "lambda"
    star_id = "sobject_id"

    [units]                         # where the file does not say, or says it wrongly
    wavelength = "nm"
    radial_velocity = "m/s"
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from chemscale.catalogues.missing import extra_names, gaia_id, measured, spelled_alike, whole_identifiers
from chemscale.catalogues.star_keys import StarKeys
from chemscale.catalogues.units import converter
from chemscale.errors import InputError
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import printable
from chemscale.formats.pixels import usable
from chemscale.formats.tables import TableFile, open_table
from chemscale.schema import VARIABLES, Flag
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan
from chemscale.survey.sources.blocks import BATCH, Batch, read_in_batches
from chemscale.survey.sources.files import id_problem
from chemscale.survey.sources.folders import JoiningSource, positions
from chemscale.survey.sources.labels import RowLabels, contract_labels
from chemscale.survey.sources.normalising import CONTINUA, as_given, check_normalised, divide_by, weighted
from chemscale.survey.sources.table_mapping import TEXT_KEYS, column_names, read_mapping
from chemscale.survey.sources.table_values import (
    are_counts,
    check_grid,
    check_order,
    check_weights,
    contract_flags,
    extra_column,
    label_words,
)

_PIXEL_NAMES = ("flux", "ivar", "error", "flags", "mask")
#: Stars whose flux is looked at before anything is read, to see whether it is normalised.
_SAMPLE = 64
_NORMALISED = {
    "running-quantile": "running quantile of means in narrow bins",
    "median": "divided by the median of each star's usable pixels",
}
#: Rows of a two-dimensional wavelength array that are compared at once.
_GRID_ROWS = 512


class TableSource(JoiningSource):
    """Spectra in one NPZ, HDF5, FITS or Zarr file.

    Parameters
    ----------
    path : str
        The file. `flux` (n, P), `ivar` or `error` (n, P), `wavelength` (P,) are required.
        Optional: `mask` (n, P) bool, True = missing; `flags` (n, P) with the contract's bits;
        `star_id`; every per-star variable of the contract; `abundance` (n, E) with `element`.
    mapping : str, optional
        TOML file as in the module's docstring; an unknown key is an error.
    medium : {"vacuum", "air"}, optional
        Overrides what file and mapping say.
    continuum : {"as-given", "running-quantile", "median"}
        What flux is divided by. Flux that is not normalised to its continuum is refused unless it is divided here.
    window : float
        Of the running quantile, Angstrom.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`.

    Notes
    -----
    Rows are read where they stand (memory-mapped NPZ and FITS, chunks of HDF5 and Zarr).
    A compressed NPZ is decompressed from its start up to the rows asked for, by every task: slow, but bounded.
    Nothing is unpickled. Without `star_id` a star is named after the file and its row. Arrays the contract
    does not know are not stored; the plan's attribute ``ignored`` lists them.
    """

    name = "table"
    title = "any table of spectra"
    #: rows read at once: a compressed chunk of the file is decoded for every run of rows that touches it
    read_stars = BATCH

    def __init__(
        self,
        path: str,
        mapping: str | None = None,
        *,
        medium: str | None = None,
        continuum: str = "as-given",
        window: float = 300.0,
        **joins: Any,
    ):
        super().__init__(**joins)
        self.path = str(path) if "://" in str(path) else os.path.abspath(str(path))
        self.mapping = str(mapping) if mapping else None
        self.medium, self.continuum, self.window = medium, continuum, float(window)
        self._settings = read_mapping(self.mapping)
        if medium not in (None, "vacuum", "air"):
            raise InputError(f"medium is {medium!r}", "use 'vacuum' or 'air'")
        if continuum not in CONTINUA:
            raise InputError(f"continuum is {continuum!r}", f"use one of {', '.join(CONTINUA)}")
        self._file: TableFile | None = None
        self._wave: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}  # open files stay where they are

    def describe(self) -> dict[str, Any]:
        """Settings, JSON-able; the mapping by content, so that editing it is noticed."""
        return super().describe() | {"mapping": self._settings}

    # ------------------------------------------------------------------ plan

    def plan(self) -> SurveyPlan:
        """List the stars; reads the per-star arrays, no pixels."""
        file = self._open()
        shapes = file.shapes()
        names = self._names(shapes)
        n_stars, n_pixels = self._check_shapes(names, shapes)
        contract_flags(self._pixels(file, names, slice(0, 1)).get("flags", np.zeros(1, np.uint8)))
        wavelength = self._wavelength(file, names["wavelength"], n_pixels)
        text = {key: self._text(file, key, shapes) for key in TEXT_KEYS}
        stated = self.medium or text["medium"] or file.medium(names["wavelength"])
        medium = stated or "vacuum"
        if medium not in {"vacuum", "air"}:
            raise InputError(f"{printable(self.path)}: medium is {medium!r}", "use 'vacuum' or 'air'")
        elements = self._elements(file, names, shapes)
        columns = self._columns(file, names, shapes, n_stars, elements)
        for name, stored in extra_names(self.extra).items():
            if name in shapes or not self.labels:
                columns[stored] = extra_column(file, name, n_stars, printable(self.path))
        items, rejected = self._items(file, names, n_stars, columns)
        attrs: dict[str, Any] = {
            "survey": text["survey"] or "table",
            "normalisation": _NORMALISED.get(self.continuum) or text["normalisation"] or "as given in the file",
            "frame": text["frame"] or "as given in the file; taken to be at rest",
            "medium_stated": bool(stated),
            "assumed": [
                *([] if stated else ["wavelengths are in vacuum: neither the file nor --medium says"]),
                *([] if text["frame"] else ["spectra are at rest: the file does not say"]),
                *spelled_alike(columns.get("cluster", ())),
            ],
            "columns": dict(sorted(names.items())),
            "ignored": self._ignored(file, shapes, names),
        }
        if cleaned := file.note("cleaned"):
            attrs["cleaned"] = cleaned.split(", ")
        self._check_sample(file, names)
        labels = contract_labels(columns)
        plan = SurveyPlan(self.name, wavelength, medium, items, elements, labels, attrs, rejected)
        ids = {names["star_id"].lower(): [item.star_id for item in items]} if "star_id" in names else {}
        return self._complete(plan, self._keys(items, ids))

    def _keys(self, items: list[Item], ids: dict[str, list[str]]) -> StarKeys:
        names: dict[str, Callable[[], list[str]]] = {k: partial(list, v) for k, v in ids.items()}
        names.setdefault("star_id", lambda: [item.star_id for item in items])
        return StarKeys(names, position=partial(positions, items))

    def _check_sample(self, file: TableFile, names: dict[str, str]) -> None:
        """Refuse ivar and errors that contradict each other, and flux that is not normalised, by some of the stars."""
        rows, where = file.shapes()[names["flux"]][0], printable(self.path)
        raw = self._pixels(file, names, np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLE)).astype(int)))
        check_weights(raw.get("ivar"), raw.get("error"), where)
        if self.continuum == "as-given":
            stated = self._settings.get("units", {}).get("flux") or file.units(names["flux"])
            check_normalised(raw["flux"], raw.get("ivar"), raw.get("error"), stated, where)

    def _open(self) -> TableFile:
        if self._file is None:
            self._file = open_table(self.path)
        return self._file

    def _ignored(self, file: TableFile, shapes: dict[str, tuple[int, ...]], names: dict[str, str]) -> list[str]:
        """What of the file is not stored, with the reason where it is not that the contract has no place for it."""
        plain = [printable(s) for s in shapes.keys() - set(names.values()) - {*TEXT_KEYS, *self.extra}]
        return sorted(plain + [f"{printable(name)} ({why})" for name, why in file.left_out().items()])

    def _names(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
        """Contract name (plus error, mask) -> name in the file."""
        return column_names(shapes, self._settings.get("columns", {}), printable(self.path), self._unreadable)

    def _unreadable(self, name: str) -> str:
        """A hint that the file holds `name` in a form that cannot be read."""
        left_out = self._open().left_out().items()
        return "".join(f"; its {printable(k)} cannot be read: {why}" for k, why in left_out if k.lower() == name)

    def _check_shapes(self, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> tuple[int, int]:
        shape = shapes[names["flux"]]
        if len(shape) != 2 or 0 in shape:
            raise InputError(
                f"{printable(self.path)}: flux has shape {shape}, expected (stars, pixels)",
                "one row a star, also for a single one",
            )
        grid = shapes[names["wavelength"]]
        if len(grid) == 1 and grid[0] == shape[0] != shape[1]:
            raise InputError(
                f"{printable(self.path)}: flux has shape {shape} and wavelength {grid}: pixels come first",
                "store flux (and its errors) as (stars, pixels): flux.T",
            )
        for name in _PIXEL_NAMES:
            if name in names and shapes[names[name]] != shape:
                raise InputError(
                    f"{printable(self.path)}: {name} has shape {shapes[names[name]]}, flux has {shape}",
                    "give one value a star and pixel",
                )
        return shape[0], shape[1]

    def _wavelength(self, file: TableFile, name: str, n_pixels: int, *, compare: bool = True) -> np.ndarray:
        shape = file.shapes()[name]
        values = file.rows(name) if len(shape) == 1 else file.rows(name, slice(0, 1))[0]
        if values.shape != (n_pixels,) or values.dtype.kind not in "fiu":
            raise InputError(
                f"{printable(self.path)}: wavelength has shape {values.shape} ({values.dtype}) for {n_pixels} pixels",
                "give one number a pixel, in Angstrom",
            )
        if len(shape) == 2 and compare:
            for start in range(0, shape[0], _GRID_ROWS):
                differ = np.any(file.rows(name, slice(start, start + _GRID_ROWS)) != values, axis=1)
                if differ.any():
                    raise InputError(
                        f"{printable(self.path)}: stars have wavelength grids of their own"
                        f" (row {start + int(np.argmax(differ))} differs from row 0)",
                        "resample them to one grid (chemscale.survey.resample)",
                    )
        wave = self._convert(file, "wavelength", name, np.ma.filled(values.astype(np.float64), np.nan))
        check_grid(wave, printable(self.path))
        return wave

    def _convert(self, file: TableFile, name: str, column: str, values: np.ndarray) -> np.ndarray:
        """`values` in the contract's unit, from the mapping's unit or the file's own."""
        stated = self._settings.get("units", {}).get(name) or file.units(column)
        convert = converter(name, stated, printable(self.path), f'say it in a --mapping file: [units], {name} = "UNIT"')
        return values if convert is None else convert(values)

    def _text(self, file: TableFile, key: str, shapes: dict[str, tuple[int, ...]]) -> str:
        if self._settings.get(key):
            return str(self._settings[key])
        if shapes.get(key) in {(), (1,)}:
            value = np.ravel(file.rows(key))
            if value.dtype.kind in "US":
                return str(value[0])
        return file.note(key)

    def _elements(self, file: TableFile, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
        if "abundance" not in names:
            return ()
        if "element" not in names:
            raise InputError(f"{printable(self.path)}: abundance without element", "add the array of element names")
        return tuple(str(e) for e in np.ravel(file.rows(names["element"])))

    def _columns(
        self,
        file: TableFile,
        names: dict[str, str],
        shapes: dict[str, tuple[int, ...]],
        n_stars: int,
        elements: tuple[str, ...],
    ) -> dict[str, np.ndarray]:
        columns: dict[str, np.ndarray] = {}
        for name, spec in VARIABLES.items():
            if name not in names or name == "star_id" or spec.dims[0] != "star" or "wavelength" in spec.dims:
                continue
            shape = shapes[names[name]]
            wanted = (n_stars,) if spec.dims == ("star",) else (n_stars, len(elements))
            if shape != wanted and shape != (*wanted, 1) and not (name == "visits" and shape[:1] == wanted):
                raise InputError(
                    f"{printable(self.path)}: {name} has shape {shape}, expected {wanted}", "give one row a star"
                )
            values = file.rows(names[name])
            values = values if name == "visits" and values.ndim == 2 else values.reshape(wanted)
            if name == "visits" and are_counts(values):
                columns.setdefault("n_visits", values.astype(np.float32))
            elif spec.dtype == "str":
                columns[name] = label_words(name, values)
            elif name == "gaia_source_id":
                whole = whole_identifiers(values, f"{printable(self.path)}: {names[name]} ({values.dtype})")
                columns[name] = np.array([gaia_id(text) for text in whole], np.int64)
            elif values.dtype.kind not in "fiub":
                raise InputError(
                    f"{printable(self.path)}: {name} holds {values.dtype}, expected numbers",
                    "store numbers, NaN where missing",
                )
            elif spec.dtype.startswith("float"):
                column = names[name]
                convert = partial(self._convert, file, name, column)
                columns[name] = measured(name, values, convert).astype(spec.dtype)
            else:
                known = np.ma.filled(values, 0)
                columns[name] = np.where(np.isfinite(known), known, 0).astype(spec.dtype)
        return columns

    def _items(
        self, file: TableFile, names: dict[str, str], n_stars: int, columns: dict[str, np.ndarray]
    ) -> tuple[list[Item], list[Rejection]]:
        if "star_id" in names:
            raw = file.rows(names["star_id"]).ravel()
            ids = whole_identifiers(raw, f"{printable(self.path)}: {names['star_id']} ({raw.dtype})")
            if len(ids) != n_stars:
                raise InputError(
                    f"{printable(self.path)}: {len(ids)} identifiers for {n_stars} stars", "give one a star"
                )
            check_order(file, names["star_id"], ids, printable(self.path))
        else:
            stem = printable(self.path.rstrip("/").rsplit("/", 1)[-1]).rsplit(".", 1)[0]
            ids = [f"{stem}-{row:08d}" for row in range(n_stars)]
        items: list[Item] = []
        rejected: list[Rejection] = []
        seen: dict[str, int] = {}
        for row, star in enumerate(ids):
            problem = id_problem(star)
            if star in seen:
                problem = f"duplicate identifier: row {row} repeats row {seen[star]}"
            if problem:
                where = f"{printable(self.path)}#{row}"
                rejected.append(Rejection(where, problem, star_id=printable(star), stage="plan"))
                continue
            seen[star] = row
            items.append(Item(star, f"{self.path}#{row}", RowLabels(columns, row)))
        return items, rejected

    # ------------------------------------------------------------------ read

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Read rows. A row without a usable pixel is rejected; nothing is resampled."""
        file = self._open()
        names = self._names(file.shapes())
        return read_in_batches(items, elements, lambda part: self._read_batch(part, file, names))

    def _pixels(self, file: TableFile, names: dict[str, str], rows: Any) -> dict[str, np.ndarray]:
        """Rows of flux, error, mask, ..., as they are in the file, their kinds checked."""
        raw = {name: file.rows(names[name], rows) for name in _PIXEL_NAMES if name in names}
        for name, kinds in (("flux", "fiu"), ("ivar", "fiu"), ("error", "fiu"), ("mask", "fiub")):
            if name in raw and raw[name].dtype.kind not in kinds:
                raise InputError(
                    f"{printable(self.path)}: {name} holds {raw[name].dtype}, expected numbers", "store plain numbers"
                )
            if name in ("flux", "ivar", "error") and isinstance(raw.get(name), np.ma.MaskedArray):
                raw[name] = np.ma.filled(raw[name].astype(np.float64), np.nan)
        return raw

    def _grid(self, file: TableFile, names: dict[str, str]) -> np.ndarray:
        """The wavelength grid, read once a copy of this source."""
        if self._wave is None:
            n_pixels = file.shapes()[names["flux"]][1]
            self._wave = self._wavelength(file, names["wavelength"], n_pixels, compare=False)
        return self._wave

    def _read_batch(self, items: Sequence[Item], file: TableFile, names: dict[str, str]) -> Batch:
        wanted = np.array([int(item.path.rsplit("#", 1)[1]) for item in items])
        consecutive = len(wanted) > 0 and np.array_equal(wanted, np.arange(wanted[0], wanted[0] + len(wanted)))
        rows = slice(int(wanted[0]), int(wanted[0]) + len(wanted)) if consecutive else wanted
        raw = self._pixels(file, names, rows)
        flux, ivar = as_given(raw) if self.continuum == "as-given" else weighted(raw)
        flags = contract_flags(raw["flags"]) if "flags" in raw else np.zeros(flux.shape, np.uint8)
        if "mask" in raw:
            flags[np.ma.filled(raw["mask"], 1) != 0] |= np.uint8(Flag.SURVEY_BAD)  # undefined is not good
        if self.continuum != "as-given":
            flux, ivar = divide_by(self.continuum, self._grid(file, names), flux, ivar, flags, self.window)
        kept: list[int] = []
        rejected: list[Rejection] = []
        for i, item in enumerate(items):
            try:
                usable(flux[i], np.where(ivar[i] > 0, 1.0, np.nan))
                kept.append(i)
            except FitsError as problem:
                rejected.append(Rejection(printable(item.path), str(problem), item.star_id))
        ivar[~np.isfinite(flux)] = 0.0
        chosen = [items[i] for i in kept]
        return Batch(chosen, [{}] * len(chosen), flux[kept], ivar[kept], flags[kept], rejected)
