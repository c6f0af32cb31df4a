"""Label tables of LAMOST spectra: CSV files keyed by the spectrum's file name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import VARIABLES
from chemscale.survey.sources.members import read_csv_columns
from chemscale.survey.sources.missing import measured, numbers, words

_SPEED_OF_LIGHT = 299_792.458
#: catalogue column (lower case) -> contract name
_NAMES = {
    "feh": "fe_h",
    "fe/h": "fe_h",
    "afe": "alpha_m",
    "alpha_fe": "alpha_m",
    "cfe": "c_fe",
    "snrg": "snr",
    "rv": "radial_velocity",
    "subclass": "spectral_class",
    "ebv": "reddening",
    "a_k": "extinction",
}


@dataclass
class LabelTable:
    """Columns by contract name, and the row of each star (by file stem)."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


def stem_of(name: str) -> str:
    """``spec-1-a.fits.gz`` -> ``spec-1-a``; folders in the name are dropped."""
    stem = name.strip().rsplit("/", 1)[-1]
    return stem.removesuffix(".gz").removesuffix(".fits")


def read_labels(paths: Sequence[str]) -> LabelTable:
    """Join label CSVs; a star listed twice keeps its first row.

    Columns may carry the contract's names or LAMOST's (feh, snrg, z, subclass). `z` becomes a
    radial velocity (km/s). Sentinels (-9999) and text that is no number become NaN. Other
    columns are ignored.

    Raises
    ------
    InputError
        Unreadable table, or one without a column `file`.
    """
    rows: dict[str, int] = {}
    tables: list[tuple[int, dict[str, np.ndarray]]] = []
    total = 0
    for path in paths:
        table = {name.lower(): values for name, values in read_csv_columns(path).items()}
        if "file" not in table:
            raise InputError(f"{path}: no column 'file'; it has {', '.join(table)}", "key labels by spectrum file")
        for i, name in enumerate(table["file"]):
            rows.setdefault(stem_of(name), total + i)
        tables.append((len(table["file"]), _contract_columns(table)))
        total += len(table["file"])
    names = dict.fromkeys(name for _, columns in tables for name in columns)
    columns = {
        name: np.concatenate([found.get(name, _missing(name, length)) for length, found in tables]) for name in names
    }
    return LabelTable(columns, rows)


def _missing(name: str, length: int) -> np.ndarray:
    return np.full(length, "") if VARIABLES[name].dtype == "str" else np.full(length, np.nan)


def _contract_columns(table: dict[str, list[str]]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for column, values in table.items():
        name = _NAMES.get(column, column)
        spec = VARIABLES.get(name)
        if column == "z":
            name, spec = "radial_velocity", VARIABLES["radial_velocity"]
        if spec is None or spec.dims != ("star",) or name in {"star_id", "cluster", "source_file"} or name in out:
            continue
        if spec.dtype == "str":
            out[name] = np.array(words(values), dtype=str)
        elif column == "z":
            redshift = numbers(values)
            out[name] = measured(name, np.where(redshift > -9.0, redshift, np.nan) * _SPEED_OF_LIGHT)
        elif spec.dtype.startswith("float"):
            out[name] = measured(name, values)
    return out
