"""The survey contract: dimensions, variables, units, flag bits.

One registry (:data:`VARIABLES`) drives the writers, :func:`validate`, the store
attributes and the documentation, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.errors import InputError

if TYPE_CHECKING:  # an ingest needs the contract, not xarray
    import xarray as xr

STORE_VERSION = 1

#: Elements of APOGEE's X_H array (26 entries, DR16 order).
APOGEE_ELEMENTS = (
    *("C", "CI", "N", "O", "Na", "Mg", "Al", "Si", "P", "S", "K", "Ca", "Ti", "TiII", "V", "Cr"),
    *("Mn", "Fe", "Co", "Ni", "Cu", "Ge", "Rb", "Ce", "Nd", "Yb"),
)
#: The 21 species of the RSCA paper, section 4.1.
PAPER_ELEMENTS = tuple(e for e in APOGEE_ELEMENTS if e not in {"P", "Ge", "Rb", "Nd", "Yb"})
#: The paper's best seven (section 4.5): [Fe/H] and the rest with respect to Fe.
PAPER_SUBSET = ("Fe", "Mg", "Ni", "Si", "Al", "C", "N")


class Flag(IntFlag):
    """Reasons why a pixel is not used. A pixel is used where ``flags & selected == 0``.

    Examples
    --------
    >>> from chemscale import Flag
    >>> list(Flag(9))
    [<Flag.GAP: 1>, <Flag.SURVEY_BAD: 8>]
    """

    GAP = 1
    NON_FINITE = 2
    LARGE_ERROR = 4
    SURVEY_BAD = 8
    INTERSTELLAR = 16
    TELLURIC = 32
    USER = 64


ALL_FLAGS = int(sum(Flag))


@dataclass(frozen=True)
class Variable:
    """One entry of the data contract."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    doc: str
    units: str = ""
    required: bool = False
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def fill(self) -> Any:
        """Value of an absent entry: NaN for floats, '' for text, 0 otherwise."""
        if self.dtype == "str":
            return ""
        return np.nan if self.dtype.startswith("float") else 0


_STAR = ("star",)
_PIXEL = ("star", "wavelength")
_ABUNDANCE = ("star", "element")

_REGISTRY = (
    Variable("flux", _PIXEL, "float32", "flux, rest frame; attribute `normalisation` says how", required=True),
    Variable("ivar", _PIXEL, "float32", "inverse variance of flux; 0 = no information", required=True),
    Variable("flags", _PIXEL, "uint8", "why a pixel is not to be used (CF flag bits)", required=True),
    Variable("wavelength", ("wavelength",), "float64", "wavelength grid", "Angstrom", True),
    Variable("element", ("element",), "str", "species of the abundance columns"),
    Variable("star_id", _STAR, "str", "the survey's identifier, unique", required=True),
    Variable("cluster", _STAR, "str", "open cluster or group the star belongs to; '' = field"),
    Variable("cluster_probability", _STAR, "float32", "membership probability"),
    Variable("ra", _STAR, "float64", "right ascension (ICRS)", "deg"),
    Variable("dec", _STAR, "float64", "declination (ICRS)", "deg"),
    Variable("teff", _STAR, "float32", "effective temperature", "K"),
    Variable("teff_error", _STAR, "float32", "error of the effective temperature", "K"),
    Variable("logg", _STAR, "float32", "log10 of surface gravity", "dex"),
    Variable("logg_error", _STAR, "float32", "error of log10 of surface gravity", "dex"),
    Variable("fe_h", _STAR, "float32", "[Fe/H]", "dex"),
    Variable("alpha_m", _STAR, "float32", "[alpha/M]", "dex"),
    Variable("c_fe", _STAR, "float32", "[C/Fe]", "dex"),
    Variable("vmicro", _STAR, "float32", "microturbulence", "km/s"),
    Variable("snr", _STAR, "float32", "signal-to-noise ratio per pixel"),
    Variable("radial_velocity", _STAR, "float32", "heliocentric radial velocity", "km/s"),
    Variable("velocity_scatter", _STAR, "float32", "scatter of visit velocities", "km/s"),
    Variable("extinction", _STAR, "float32", "K-band extinction A_K (or the survey's own)", "mag"),
    Variable("reddening", _STAR, "float32", "E(B-V)", "mag"),
    Variable("abundance", _ABUNDANCE, "float32", "[X/H]", "dex"),
    Variable("abundance_error", _ABUNDANCE, "float32", "error of [X/H]", "dex"),
    Variable("visits", _STAR, "str", "comma-separated visit dates or plate ids"),
    Variable("n_visits", _STAR, "float32", "number of visits"),
    Variable("fibre", _STAR, "float32", "number of the fibre; mean over visits"),
    Variable("mjd", _STAR, "float64", "modified Julian date of the observation; mean over visits", "d"),
    Variable("spectral_class", _STAR, "str", "the survey's spectral class"),
    Variable("quality", _STAR, "int64", "the survey's star-level bit mask"),
    Variable("gaia_source_id", _STAR, "int64", "Gaia source_id, of the release the catalogue names; 0 = not known"),
    Variable("source_file", _STAR, "str", "file the spectrum was read from, relative to the release"),
)

#: Names of further per-star numbers that a survey may carry begin so: ``x_age``.
EXTRA = "x_"


class _Known(dict[str, Variable]):
    """The contract's variables by name; an extra column is described by its name alone and is not among the keys."""

    def __missing__(self, name: str) -> Variable:
        if not name.startswith(EXTRA):
            raise KeyError(name)
        return Variable(name, _STAR, "float64", f"{name.removeprefix(EXTRA)} of the ingested table, as it was there")


#: Every variable chemscale knows, by name; ``VARIABLES["x_NAME"]`` describes an extra column.
VARIABLES: dict[str, Variable] = _Known((v.name, v) for v in _REGISTRY)
#: Variables with one value a star (the `star` dimension only).
STAR_VARIABLES = tuple(v.name for v in _REGISTRY if v.dims == _STAR)


def known(name: str) -> bool:
    """Whether a survey may hold a variable of this name: one of the contract, or an extra column."""
    return name in VARIABLES or (name.startswith(EXTRA) and len(name) > len(EXTRA))


def ordered(names: Iterable[Any]) -> tuple[str, ...]:
    """Those of `names` that a survey may hold, in the contract's order, extra columns last."""
    wanted = {str(n) for n in names}
    return (*(n for n in VARIABLES if n in wanted), *sorted(n for n in wanted - set(VARIABLES) if known(n)))


def star_variables(names: Iterable[Any]) -> tuple[str, ...]:
    """Those of `names` with one value a star, in the contract's order, extra columns last."""
    return tuple(n for n in ordered(names) if VARIABLES[n].dims == _STAR)


class SchemaError(InputError, ValueError):
    """A dataset breaks the data contract; `problems` lists every breach."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__(
            "the dataset breaks the survey contract:\n  - " + "\n  - ".join(self.problems),
            "the contract is chemscale.schema.VARIABLES, and in the docs under Reference",
        )

    def __reduce__(self):
        return type(self), (self.problems,)


def variable_attrs(name: str) -> dict[str, Any]:
    """Attributes a stored variable carries (long name, units, flag meanings)."""
    spec = VARIABLES[name]
    attrs: dict[str, Any] = {"long_name": spec.doc}
    if spec.units:
        attrs["units"] = spec.units
    if name == "flags":
        attrs["flag_masks"] = [int(f) for f in Flag]
        attrs["flag_meanings"] = " ".join(str(f.name).lower() for f in Flag)
    return attrs | spec.attrs


def flag_mask(names: str | int | Iterable[str]) -> int:
    """Bits for flag names.

    Parameters
    ----------
    names : str, int or iterable of str
        ``"all"``, an integer mask, one name or several (``["gap", "large_error"]``).

    Raises
    ------
    ValueError
        For a name that is not a flag.
    """
    if isinstance(names, int):
        return names
    if isinstance(names, str):
        if names == "all":
            return ALL_FLAGS
        names = [names]
    bits = {str(f.name).lower(): int(f) for f in Flag}
    mask = 0
    for name in names:
        if name not in bits:
            raise ValueError(f"unknown pixel flag {name!r}; known flags: {', '.join(bits)}")
        mask |= bits[name]
    return mask


def check(ds: xr.Dataset, *, ids: bool = True) -> list[str]:
    """Every breach of the contract in `ds`, as sentences; an empty list when there is none.

    Reads the one-dimensional variables only: pixels stay lazy.
    """
    problems = []
    for name, spec in VARIABLES.items():
        if name not in ds.variables:
            if spec.required:
                problems.append(f"{name}: missing (required, dims {spec.dims}, dtype {spec.dtype})")
            continue
        problems += _check_variable(ds[name], spec)
    for extra in map(str, ds.data_vars):
        if extra.startswith(EXTRA) and known(extra):
            problems += _check_variable(ds[extra], VARIABLES[extra])
        elif extra not in VARIABLES:
            problems.append(f"{extra}: not in the contract; see chemscale.schema.VARIABLES")
    if "wavelength" in ds.variables and ds["wavelength"].dims == ("wavelength",):
        wave = np.asarray(ds["wavelength"].values)
        if wave.size and not (np.all(np.isfinite(wave)) and np.all(np.diff(wave) > 0)):
            problems.append("wavelength: must be finite and strictly increasing")
        if ds["wavelength"].attrs.get("medium") not in {"vacuum", "air"}:
            problems.append("wavelength: attribute `medium` must be 'vacuum' or 'air'")
    if ids and "star_id" in ds.variables:
        problems += _check_ids(np.asarray(ds["star_id"].values))
    return problems


def _check_variable(da: xr.DataArray, spec: Variable) -> list[str]:
    problems = []
    if da.dims != spec.dims:
        problems.append(f"{spec.name}: dims are {da.dims}, must be {spec.dims}")
    is_text = da.dtype.kind in "OUT"
    if spec.dtype == "str":
        if not is_text:
            problems.append(f"{spec.name}: dtype is {da.dtype}, must be text")
    elif da.dtype != np.dtype(spec.dtype):
        problems.append(f"{spec.name}: dtype is {da.dtype}, must be {spec.dtype}")
    units = da.attrs.get("units", "")
    if spec.units and units != spec.units:
        problems.append(f"{spec.name}: units are {units!r}, must be {spec.units!r}")
    if spec.name == "flags":
        masks = da.attrs.get("flag_masks")
        if masks is None or [int(k) for k in np.atleast_1d(masks)] != [int(f) for f in Flag]:
            problems.append("flags: attribute `flag_masks` must list the bits of chemscale.schema.Flag")
    return problems


def _check_ids(ids: np.ndarray) -> list[str]:
    text = ids.astype(str)
    problems = []
    if text.size and np.any(text == ""):
        problems.append(f"star_id: {int(np.sum(text == ''))} empty identifier(s)")
    unique, counts = np.unique(text, return_counts=True)
    if np.any(counts > 1):
        some = ", ".join(map(repr, unique[counts > 1][:5].tolist()))
        problems.append(f"star_id: {int(np.sum(counts > 1))} duplicate identifier(s), e.g. {some}")
    return problems


def validate(ds: xr.Dataset, *, ids: bool = True) -> xr.Dataset:
    """Return `ds` unchanged, or raise :class:`SchemaError` naming every breach.

    Parameters
    ----------
    ds : xarray.Dataset
        A survey in the layout of the data contract.
    ids : bool
        Also read `star_id` and check that it is unique and non-empty.

    Examples
    --------
    >>> import chemscale, xarray
    >>> chemscale.validate(xarray.Dataset({"star_id": ("star", ["A", "A"])}))
    Traceback (most recent call last):
    ...
    chemscale.schema.SchemaError: the dataset breaks the survey contract:
      - flux: missing (required...
      - star_id: 1 duplicate identifier(s), e.g. 'A'...
    """
    problems = check(ds, ids=ids)
    if problems:
        raise SchemaError(problems)
    return ds
