"""What `chemscale clean` takes off a store's flux when it is read: an effect of velocity, extinction, fibre or date.

The correction is a small file beside the root record, which names it and its checksum: a polynomial of a few per-star
variables times a spectrum a term. No pixel is rewritten, and a reader sees either the stored or the cleaned spectra.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from chemscale.errors import InputError, StoreError
from chemscale.runtime.files import Folder
from chemscale.survey.store.ledger import compare
from chemscale.survey.store.manifest import pack, unpack

#: Rows corrected at a time: what the product of amounts and effects needs beside the flux.
_ROWS = 256


@dataclass(frozen=True)
class Effects:
    """How flux depends on a few per-star variables.

    Attributes
    ----------
    covariates : tuple of str
        Names of the variables.
    centre, spread, low, high : (c,)
        A variable enters as ``(value - centre) / spread``, kept between `low` and `high`: the polynomial is not
        trusted beyond the stars it was fitted to.
    powers : (m, c) int
        Exponents of each term; no term is constant, so a star at the centre stays as it is.
    spectra : (m, P) float32
        Change of the flux with each term.
    """

    covariates: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray
    powers: np.ndarray
    spectra: np.ndarray

    def terms(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The polynomial's terms (n, m) of stars with these variables; 0, no correction, where one is missing."""
        x = np.stack([np.asarray(columns[name], float) for name in self.covariates], axis=1)
        u = np.clip((x - self.centre) / self.spread, self.low, self.high)
        terms = np.prod(u[:, None, :] ** self.powers, axis=2)
        return np.where(np.isfinite(x).all(axis=1)[:, None], terms, 0.0)

    def take_off(self, flux: np.ndarray, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """`flux` (n, P), changed in place."""
        terms = self.terms(columns).astype(np.float32)
        for start in range(0, len(flux), _ROWS):
            flux[start : start + _ROWS] -= terms[start : start + _ROWS] @ self.spectra
        return flux

    def to_bytes(self) -> bytes:
        """For a file of the store."""
        values = {name: np.asarray(value) for name, value in vars(self).items() if name != "covariates"}
        return pack(values | {"covariates": np.array(self.covariates, dtype=object)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Effects:
        """Inverse of :meth:`to_bytes`."""
        values: dict[str, Any] = unpack(data)
        return cls(tuple(str(n) for n in values.pop("covariates")), **values)


@dataclass(frozen=True)
class Cleaning:
    """The correction of one revision, as blocks carry it: where its file is, not what it holds."""

    url: str
    file: str
    crc: int

    @classmethod
    def of(cls, folder: Folder, stored: Mapping[str, Any], checksums: Mapping[str, int]) -> Cleaning | None:
        """From the root record; None when it asks for nothing."""
        return cls(folder.root, stored["file"], checksums[stored["file"]]) if stored else None

    def apply(self, flux: np.ndarray, column: Callable[[str], np.ndarray]) -> np.ndarray:
        """`flux` (n, P) corrected in place; `column` reads a per-star variable of the same rows.

        Raises
        ------
        StoreError
            The file is missing or damaged.
        """
        effects = read_effects(self.url, self.file, self.crc)
        return effects.take_off(flux, {name: column(name) for name in effects.covariates})


@lru_cache(maxsize=16)
def read_effects(url: str, file: str, crc: int) -> Effects:
    """The effects in a file of the store at `url`, compared with its checksum; read once in a process.

    Raises
    ------
    StoreError
        The file is missing or damaged.
    """
    problem, data = compare(Folder(url), file, {"crc32c": crc})
    if problem:
        raise StoreError(
            f"{Folder(url).where(file)}: {problem}",
            "`chemscale clean STORE` finds the effects again, --clear drops them",
        )
    return Effects.from_bytes(data)


def check_cleaned(seen: Collection[str], learned: Collection[str], who: str = "run") -> None:
    """Refuse spectra cleaned otherwise than those a run or model was made from.

    Parameters
    ----------
    seen : collection of str
        What the spectra at hand are cleaned of: the attribute ``cleaned`` of an open survey.
    learned : collection of str
        What the others were cleaned of.
    who : str
        What was made from those, for the message.

    Raises
    ------
    InputError
        They differ.
    """
    if set(seen) != set(learned):
        raise InputError(
            f"the {who} was made from spectra {in_words(learned)}, these are {in_words(seen)}",
            "give the store the same `chemscale clean` (--clear takes it off), or fit anew on these spectra",
        )


def in_words(cleaned: Collection[str]) -> str:
    """What spectra are cleaned of, as part of a sentence."""
    return f"cleaned of {', '.join(cleaned)}" if cleaned else "as ingested"
