"""Coordinates as they would be at one temperature and gravity.

Lines respond to abundances differently at different temperatures, so siblings at different places on the giant
branch differ in every coordinate, and no linear metric can undo that. The field tells how coordinates depend on
labels: ``z = f(Teff, logg, [Fe/H], [alpha/M])``. Moving a star to the reference temperature and gravity *at its own
chemistry* takes out that dependence, interactions with chemistry included; removing a trend in (Teff, logg) alone
would take out chemistry too, because metal-poor giants are hotter.

Labels enter as covariates only, and the field alone trains the map: no cluster is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np
from sklearn.preprocessing import PolynomialFeatures

from chemscale.errors import DataError, InputError

#: Labels the dependence on which is taken out, and labels that are held at the star's own value.
REMOVED, HELD = ("teff", "logg"), ("fe_h", "alpha_m")
#: A label is used where at least this fraction of the field stars has it.
MIN_FRACTION = 0.5


def polynomial(u: np.ndarray, degree: int) -> np.ndarray:
    """All monomials of the columns of `u` (n, d) up to `degree`, the constant first: (n, n_terms)."""
    if not len(u):  # a cluster that no field star can be compared with
        return np.empty((0, comb(u.shape[1] + degree, degree)))
    return PolynomialFeatures(degree).fit_transform(u)


class LabelDetrending:
    """Moves coordinates to the field's mean temperature and gravity.

    Parameters
    ----------
    removed, held : sequence of str
        Labels to take out, and labels whose interaction with them counts. Labels that fewer than half of the field
        stars have are left aside.
    degree : int
        Degree of the polynomial.
    linear : sequence of str
        Further labels held at the star's own value, such as single abundances: they enter linearly and multiplied with
        each of `removed`.

    Attributes
    ----------
    removed_, held_, linear_ : tuple of str
        Labels in use.
    centre_, spread_, low_, high_ : (n_labels,)
        Standardisation, and the range of standardised labels (0.1 to 99.9 percentile of the field) beyond which a
        label counts as at the edge: a polynomial is not to be trusted there.
    weights_ : (n_terms, K)
        Coefficients of the coordinates.
    residual_ : (K, K)
        Covariance of what the labels do not explain: instrument, noise, and chemistry that is not among the labels.
    """

    removed_: tuple[str, ...]
    held_: tuple[str, ...]
    linear_: tuple[str, ...]
    centre_: np.ndarray
    spread_: np.ndarray
    low_: np.ndarray
    high_: np.ndarray
    weights_: np.ndarray
    fill_weights_: np.ndarray
    residual_: np.ndarray

    def __init__(
        self,
        removed: Sequence[str] = REMOVED,
        held: Sequence[str] = HELD,
        degree: int = 2,
        linear: Sequence[str] = (),
    ):
        self.removed, self.held, self.degree, self.linear = tuple(removed), tuple(held), int(degree), tuple(linear)

    def fit(self, coords: np.ndarray, labels: Mapping[str, Any]) -> LabelDetrending:
        """Learn the dependence of field coordinates on labels.

        Parameters
        ----------
        coords : (n_field, K)
        labels : mapping of str to (n_field,) arrays, NaN = missing

        Raises
        ------
        DataError
            None of the labels to take out is known for half of the field, or too few field stars have all labels.
        """
        z = np.asarray(coords, dtype=np.float64)
        usable = [
            name
            for name in (*self.removed, *self.held, *self.linear)
            if name in labels and np.mean(np.isfinite(np.asarray(labels[name], dtype=float))) >= MIN_FRACTION
        ]
        self.removed_ = tuple(n for n in self.removed if n in usable)
        self.held_ = tuple(n for n in self.held if n in usable)
        self.linear_ = tuple(n for n in self.linear if n in usable)
        if not self.removed_:
            raise DataError(
                f"none of the labels {', '.join(self.removed)} is known for half of the field stars",
                "use a method without labels",
            )
        raw = self._stack(labels)
        good = np.all(np.isfinite(raw), axis=1)
        self.centre_ = np.median(raw[good], axis=0)
        spread = 0.7413 * np.subtract(*np.percentile(raw[good], [75, 25], axis=0))
        self.spread_ = np.where(spread > 0, spread, 1.0)
        u = (raw[good] - self.centre_) / self.spread_
        self.low_, self.high_ = np.percentile(u, [0.1, 99.9], axis=0)
        terms = self._terms(np.clip(u, self.low_, self.high_))
        if len(terms) < 5 * terms.shape[1]:
            raise DataError(
                f"{len(terms)} field stars with all of {', '.join(self.names_)} are too few for {terms.shape[1]} terms",
                "use a method without labels, or more field stars",
            )
        self.weights_ = np.linalg.lstsq(terms, z[good], rcond=None)[0]
        linear = np.c_[np.ones(good.sum()), z[good]]
        self.fill_weights_ = np.linalg.lstsq(linear, u, rcond=None)[0]
        rest = z[good] - terms @ self.weights_
        self.residual_ = rest.T @ rest / max(len(rest) - terms.shape[1], 1)
        return self

    @property
    def names_(self) -> tuple[str, ...]:
        """All labels in use."""
        return self.removed_ + self.held_ + self.linear_

    def _terms(self, u: np.ndarray) -> np.ndarray:
        curved = len(self.removed_) + len(self.held_)
        extra = u[:, curved:]
        products = [u[:, [i]] * extra for i in range(len(self.removed_))]
        return np.concatenate([polynomial(u[:, :curved], self.degree), extra, *products], axis=1)

    def _stack(self, labels: Mapping[str, Any]) -> np.ndarray:
        names = self.names_
        missing = [n for n in names if n not in labels]
        if missing:
            raise InputError(
                f"labels {', '.join(missing)} are missing", "pass the labels the detrending was fitted with"
            )
        return np.stack([np.asarray(labels[n], dtype=np.float64) for n in names], axis=1)

    def transform(self, coords: np.ndarray, labels: Mapping[str, Any]) -> np.ndarray:
        """Coordinates (n, K) at the reference; a missing label is estimated from the coordinates (linearly).

        Parameters
        ----------
        coords : (n, K)
        labels : mapping of str to (n,) arrays
        """
        z = np.asarray(coords, dtype=np.float64)
        u = (self._stack(labels) - self.centre_) / self.spread_
        gap = ~np.isfinite(u)
        if gap.any():
            rows = gap.any(axis=1)
            filled = np.c_[np.ones(rows.sum()), z[rows]] @ self.fill_weights_
            u[rows] = np.where(gap[rows], filled, u[rows])
        u = np.clip(u, self.low_, self.high_)
        reference = u.copy()
        reference[:, : len(self.removed_)] = 0.0
        return z - (self._terms(u) - self._terms(reference)) @ self.weights_

    def to_dict(self) -> dict[str, Any]:
        """State as plain arrays and JSON values, for storage."""
        return {
            "removed": list(self.removed_),
            "held": list(self.held_),
            "linear": list(self.linear_),
            "degree": self.degree,
            **{name: getattr(self, f"{name}_") for name in _ARRAYS},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LabelDetrending:
        """Inverse of :meth:`to_dict`."""
        out = cls(state.get("removed", state.get("moved")), state["held"], int(state["degree"]), state["linear"])
        out.removed_, out.held_, out.linear_ = out.removed, out.held, out.linear
        for name in _ARRAYS:
            stored = state[name] if name in state else state[_FORMER_NAMES[name]]
            setattr(out, f"{name}_", np.asarray(stored, dtype=np.float64))
        return out


_ARRAYS = ("centre", "spread", "low", "high", "weights", "fill_weights", "residual")
#: Names of the arrays in models that chemscale 0.1 stored, where they differ.
_FORMER_NAMES = {"fill_weights": "guess"}


class SelfDetrending:
    """Detrending with pseudo-labels read from the coordinates themselves, where a survey does not know chemistry.

    Parameters
    ----------
    mean : (K,)
        Of the field.
    axes : (K, 3)
        Functionals of the centred coordinates: what is taken out, and two that are held.
    removed : sequence of str
        Labels of the survey that are taken out instead of the first functional, such as temperature and gravity.

    Attributes
    ----------
    detrending_ : LabelDetrending
        In the pseudo-labels and `removed`.
    """

    detrending_: LabelDetrending

    def __init__(self, mean: np.ndarray, axes: np.ndarray, removed: Sequence[str] = ()):
        self.mean, self.axes = np.asarray(mean, dtype=np.float64), np.asarray(axes, dtype=np.float64)
        self.removed = tuple(removed)

    def _labels(self, coords: np.ndarray, labels: Mapping[str, Any] | None) -> dict[str, Any]:
        pseudo = dict(zip(_PSEUDO, ((coords - self.mean) @ self.axes).T, strict=True))
        return pseudo | {name: (labels or {})[name] for name in self.removed if name in (labels or {})}

    def fit(self, coords: np.ndarray, labels: Mapping[str, Any] | None = None) -> SelfDetrending:
        """Learn the dependence of field coordinates (n_field, K) on the pseudo-labels, and on `labels` if any."""
        z = np.asarray(coords, dtype=np.float64)
        self.detrending_ = LabelDetrending(self.removed or _PSEUDO[:1], _PSEUDO[1:]).fit(z, self._labels(z, labels))
        self.removed = tuple(n for n in self.detrending_.removed_ if n not in _PSEUDO)
        return self

    @property
    def names_(self) -> tuple[str, ...]:
        """Labels of the survey in use."""
        return self.removed

    def transform(self, coords: np.ndarray, labels: Mapping[str, Any] | None = None) -> np.ndarray:
        """Coordinates (n, K) at the reference; a missing label is estimated from the coordinates."""
        z = np.asarray(coords, dtype=np.float64)
        return self.detrending_.transform(z, self._labels(z, labels))

    def to_dict(self) -> dict[str, Any]:
        """State as plain arrays and JSON values, for storage."""
        return {"pseudo_mean": self.mean, "pseudo_axes": self.axes, **self.detrending_.to_dict()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SelfDetrending:
        """Inverse of :meth:`to_dict`."""
        removed = [n for n in state.get("removed", state.get("moved")) if n not in _PSEUDO]
        out = cls(state["pseudo_mean"], state["pseudo_axes"], removed)
        out.detrending_ = LabelDetrending.from_dict(state)
        return out


_PSEUDO = ("nuisance", "chemistry_1", "chemistry_2")


def stored_detrending(state: Mapping[str, Any]) -> LabelDetrending | SelfDetrending:
    """The detrending a stored state is of."""
    return (SelfDetrending if "pseudo_axes" in state else LabelDetrending).from_dict(state)
