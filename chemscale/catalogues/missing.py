"""What "no value" looks like: the one list of words, sentinels and ranges that every source applies to every label.

Catalogues write a missing number as -9999, NaN, a masked integer or the text ``N/A``, and a star without a cluster
as ``-1``, ``None``, ``masked`` or nothing. Numbers are tested in the unit of the contract, after conversion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import EXTRA

#: Spellings of "none" in any text column, lower case.
NO_VALUE = frozenset(
    {
        *("", "-", "--", "---", "...", "nan", "-nan", "nat", "none", "null", "(null)", "nil", "\\n", "<na>", "na"),
        *("n/a", "n.a.", "#n/a", "<n/a>", "masked", "missing", "undefined", "nodata", "no data"),
    }
)
#: What a cluster column says of a field star besides.
NO_CLUSTER = frozenset({"field", "noise", "no cluster", "not a member", "non-member", "nonmember"})
#: Numbers that surveys write for "not measured", exactly these.
SENTINELS = (-999.0, -999.9, -999.99, -9999.0, -9999.9, -9999.99, -99999.0, -999999.0, -1e20, -1e30)
#: Those that are sentinels in any unit: no measurement is so round by chance in a column that is converted.
_IN_ANY_UNIT = (-9999.0, -9999.9, -9999.99, -99999.0, -999999.0, -1e20, -1e30)
#: An identifier that was written as a floating-point number.
_EXPONENT = re.compile(r"^\d(\.\d+)?[eE]\+?(1[5-9]|2\d)$")
#: Sensible range (exclusive) of each label in the contract's unit; what lies outside is no measurement.
RANGES = {
    "ra": (-0.001, 360.001),
    "dec": (-90.001, 90.001),
    "teff": (0.0, 5e5),
    "teff_error": (-1e-9, 5e5),
    "logg": (-10.0, 20.0),
    "logg_error": (-1e-9, 50.0),
    "fe_h": (-20.0, 20.0),
    "alpha_m": (-20.0, 20.0),
    "c_fe": (-20.0, 20.0),
    "abundance": (-20.0, 20.0),
    "abundance_error": (-1e-9, 50.0),
    "radial_velocity": (-299_792.0, 299_792.0),
    "velocity_scatter": (-1e-9, 299_792.0),
    "vmicro": (0.0, 100.0),
    "snr": (0.0, 1e6),
    "extinction": (-50.0, 99.0),
    "reddening": (-50.0, 99.0),
    "n_visits": (-0.5, 1e5),
    "fibre": (-0.5, 1e6),
    "mjd": (1.0, 1e6),
    "cluster_probability": (-1e-9, 1.0 + 1e-6),
}


def is_none(text: str) -> bool:
    """Whether a word means "no value"."""
    return text.strip().lower() in NO_VALUE


def cluster_name(name: Any) -> str:
    """One spelling a cluster: ``'ASCC_116'`` and ``'ASCC  116'`` become ``'ASCC 116'``; no cluster is ''.

    A negative number is no cluster (clustering codes call their noise -1), and 7.0 is cluster 7.
    """
    text = " ".join(word(name).replace("_", " ").split())
    lower = text.lower()
    if lower in NO_VALUE or lower in NO_CLUSTER:
        return ""
    if text[0] in "-+.0123456789":
        try:
            value = float(text)
        except ValueError:
            return text
        if value != value or value < 0:
            return ""
        return str(int(value)) if value == np.floor(value) and value < 2**53 and "." in text else text
    return text


def spelled_alike(clusters: Iterable[str]) -> list[str]:
    """What to say of clusters whose names differ in case and blanks alone, a sentence each."""
    names: dict[str, list[str]] = {}
    for name in sorted(set(clusters)):
        names.setdefault("".join(name.split()).casefold(), []).append(name)
    return [f"{', '.join(alike)} are different clusters, as they are written" for alike in names.values() if alike[1:]]


def word(value: Any) -> str:
    """A scalar as text without its padding; bytes decoded; masked, None and NaN as ''."""
    if value is None or value is np.ma.masked:
        return ""
    if isinstance(value, (bytes, np.bytes_)):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if np.isnan(number):
            return ""
        return f"{number:.0f}" if number.is_integer() and abs(number) < 2**53 else str(value)
    text = str(value).strip()
    return "" if text.lower() in NO_VALUE else text


def words(values: Any) -> list[str]:
    """A column as text: see :func:`word`."""
    if isinstance(values, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(values).tolist()
        return ["" if h else word(v) for v, h in zip(values.data.tolist(), hidden)]
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return [str(v) for v in values.tolist()]
    return [word(v) for v in (values.tolist() if isinstance(values, np.ndarray) else values)]


def numbers(values: Any) -> np.ndarray:
    """A column as float64, whatever it is made of: masked, undefined and text that is no number become NaN."""
    hidden = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    plain = np.asarray(values.data if hidden is not None else values)
    if plain.dtype.kind in "fiub":
        out = plain.astype(np.float64)
    else:
        out = np.array([_number(v) for v in plain.ravel().tolist()], np.float64).reshape(plain.shape)
    if hidden is not None and hidden.any():
        out[hidden] = np.nan
    return out


def _number(value: Any) -> float:
    try:
        return float(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)
    except (TypeError, ValueError):
        return float("nan")


def no_numbers(values: Any) -> list[str]:
    """The texts of a column that are neither numbers nor words for "no value", such as ``5777,5`` or ``>6000``."""
    plain = np.ma.getdata(values)
    if plain.dtype.kind not in "OUS":
        return []
    hidden = np.ma.getmaskarray(values).ravel() if isinstance(values, np.ma.MaskedArray) else np.zeros(plain.size, bool)
    shown = [v for v, h in zip(plain.ravel().tolist(), hidden.tolist()) if not h]
    texts = [word(v) for v in shown if isinstance(v, (str, bytes, list, tuple, dict, np.ndarray))]
    return [t for t in texts if not is_none(t) and np.isnan(_number(t))]


def _exactly(values: np.ndarray, sentinels: Iterable[float]) -> np.ndarray:
    """Where a value is one of `sentinels`, to the precision of float32."""
    out = np.zeros(values.shape, bool)
    low = values < -900.0  # all of them are: most columns hold nothing so low
    if low.any():
        few = values[low]
        out[low] = np.any([np.abs(few - s) <= 1e-6 * abs(s) for s in sentinels], axis=0)
    return out


def measured(name: str, values: Any, convert: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """A label of the contract as float64, NaN where nothing was measured.

    Parameters
    ----------
    name : str
        Of the contract; its sensible range counts.
    values : array_like
        Numbers or text, masked or not, in the file's unit.
    convert : callable, optional
        Turns the file's unit into the contract's. Sentinels and ranges are tested on its result; the
        unmistakable sentinels (-9999 and the like) on the numbers as they are in the file too.
    """
    raw = numbers(values)
    low, high = RANGES.get(name, (-np.inf, 1e30))
    if convert is None and raw.size and max(low, -900.0) < raw.min() and raw.max() < high:
        return raw  # nothing is missing: most columns of most blocks
    with np.errstate(invalid="ignore", over="ignore"):
        out = raw if convert is None else np.array(convert(raw), np.float64)
        lost = ~np.isfinite(out) | (out <= low) | (out >= high) | _exactly(out, SENTINELS)
        if convert is not None:
            lost |= _exactly(raw, _IN_ANY_UNIT)
    out[lost] = np.nan
    return out


def measured_one(name: str, value: Any) -> float:
    """Scalar form of :func:`measured`."""
    return float(measured(name, np.array([value if value is not None and np.ndim(value) == 0 else np.nan]))[0])


def lost_digits(values: np.ndarray) -> bool:
    """Whether integers went through floating point and are too long for it: some digits are no longer true."""
    if values.dtype.kind != "f":
        return False
    limit = 2.0**24 if values.dtype.itemsize <= 4 else 2.0**53
    with np.errstate(invalid="ignore"):
        return bool(np.any(np.isfinite(values) & (np.abs(values) >= limit)))


def identifiers(values: Any) -> list[str] | None:
    """A column of identifiers as text, '' where there is none; None where digits were lost in floating point.

    Whole floating-point numbers are written as integers (12.0 is star 12).
    """
    plain = np.asarray(values.data if isinstance(values, np.ma.MaskedArray) else values)
    if lost_digits(plain):
        return None
    found = words(values)
    return None if any(map(_EXPONENT.match, found)) else found


def whole_identifiers(values: Any, column: str) -> list[str]:
    """As :func:`identifiers`.

    Raises
    ------
    InputError
        Digits were lost: `column` says of which column of which file.
    """
    found = identifiers(values)
    if found is None:
        raise InputError(
            f"{column} went through floating point: its last digits are lost, and different stars may share a number",
            "write identifiers as 64-bit integers or as text",
        )
    return found


def gaia_ids(values: Any) -> np.ndarray | None:
    """A column of Gaia's source_id as int64, 0 where there is none; None where digits were lost in floating point.

    Numbers, or text with or without the release (``Gaia DR3 5853498713190525696``). Numbers below 2^32 are of other
    catalogues that have a source_id: Gaia's begin above.
    """
    if not isinstance(values, np.ma.MaskedArray) and getattr(values, "dtype", np.dtype(object)).kind == "i":
        return np.where(values >= 2**32, values, 0).astype(np.int64)
    found = identifiers(values)
    if found is None:
        return None
    return np.array([gaia_id(text) for text in found], np.int64)


def gaia_id(text: str) -> int:
    """Scalar form of :func:`gaia_ids`."""
    digits = text.rpartition(" ")[2]
    return int(digits) if digits.isdecimal() and 2**32 <= int(digits) < 2**63 else 0


def extra_numbers(name: str, values: Any, where: str) -> np.ndarray:
    """A column that the contract does not know, as float64, NaN where missing; units are not converted.

    Raises
    ------
    InputError
        It holds text, or whole numbers that a float would confuse.
    """
    texts = no_numbers(values)
    if texts or np.ma.getdata(values).dtype.kind not in "fiubOUS":
        held = repr(texts[0]) if texts else f"{np.ma.getdata(values).dtype}"
        raise InputError(f"{where}: {name} holds {held}, expected numbers", "leave it out")
    out = numbers(values)
    if np.ma.getdata(values).dtype.kind not in "fb" and np.nanmax(np.abs(out), initial=0) > 2**53:
        raise InputError(
            f"{where}: {name} holds whole numbers that 64-bit floats cannot tell apart",
            "keep them in a catalogue of your own: `chemscale export RUN --join FILE` keeps every digit",
        )
    return out


def extra_names(names: Iterable[str]) -> dict[str, str]:
    """Column -> what it is called in the store; one that was exported from a store keeps its name.

    A variable of a store is a folder: characters that no name of a folder may have become `_`.

    Raises
    ------
    InputError
        A name is empty, or two would be one, also where capitals count for nothing (FITS columns, some disks).
    """
    found: dict[str, str] = {}
    for name in names:
        own = re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]', "_", name.removeprefix(EXTRA))
        if not own.strip():
            raise InputError(f"--extra {name!r} names no column", "for example --extra age")
        same = [n for n, stored in found.items() if stored.lower() == (EXTRA + own).lower()]
        if same:
            raise InputError(
                f"the extra columns {same[0]!r} and {name!r} would both be stored as {EXTRA + own}",
                "leave one out, or rename it in the file",
            )
        found[name] = EXTRA + own
    return found
