"""Spectra from an emulator file instead of the built-in lines.

File format (``.npz``, read without pickle)
-------------------------------------------
A principal-component basis whose coefficients are a polynomial plus a Matern-5/2 kernel ridge in
scaled labels:

===============  =====================  ==========================================================
array            shape                  meaning
===============  =====================  ==========================================================
``wave``         (P,)                   wavelength, Angstrom (vacuum for H band, air for 4000-10400)
``mean``         (P,)                   mean of the emulated quantity y
``basis``        (M, P)                 principal components of y
``deg``          scalar                 degree of the polynomial
``poly_w``       (T, M)                 weights of all T monomials up to that degree, in the order
                                        of ``itertools.combinations_with_replacement``
``train_x``      (N, D)                 scaled labels of the training spectra
``lengthscale``  (D,)                   length scale of each scaled label
``kern_alpha``   (N, M)                 kernel weights
``label_names``  (L,) text              ``teff logg fe_h c_fe n_fe o_fe mg_fe al_fe si_fe ca_fe ni_fe``
                                        (H band) or ``teff logg fe_h c_fe alpha_fe`` (4000-10400)
``label_lo/hi``  (L,)                   range of the training labels
``transform``    text, optional         ``flux=exp(-g**2)`` where y = g; absent: y is the flux
===============  =====================  ==========================================================

Scaled labels, H band (D = 11): ``2 (l - lo) / (hi - lo) - 1``, temperature as
``(5040/T - 5040/4460) / 0.14``. Low resolution (D = 7): ``(5040/T - 0.95)/0.25``,
``(logg - 3.75)/1.25``, ``([Fe/H] + 1.1)/1.5``, ``([Fe/H] + [C/Fe] + 0.6)/1.8``, ``([alpha/Fe] - 0.22)/0.47``
and, with ``q = [C/Fe] - [alpha/Fe] - 0.26`` (carbon against oxygen) and a switch
``s = 1 / (1 + exp((T - 4700)/250))``: ``0.1 s log(1 + exp(q / 0.05))`` and ``s tanh(q / 0.15)``.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.errors import InputError

_REQUIRED = ("wave", "mean", "basis", "deg", "poly_w", "train_x", "lengthscale", "kern_alpha", "label_names")
_HBAND = ("teff", "logg", "fe_h", "c_fe", "n_fe", "o_fe", "mg_fe", "al_fe", "si_fe", "ca_fe", "ni_fe")
_LOWRES = ("teff", "logg", "fe_h", "c_fe", "alpha_fe")


class Emulator:
    """An emulator read from a file; see the module's docstring for the format.

    Parameters
    ----------
    path : str or Path
        The ``.npz`` file.

    Attributes
    ----------
    label_names : tuple of str
        Labels it is driven by.
    wavelength : ndarray, shape (P,)
        Angstrom.
    low, high : ndarray, shape (L,)
        Range of the training labels; :meth:`flux` refuses labels outside.

    Raises
    ------
    InputError
        No such file, not an npz, arrays missing, of wrong shape or with unknown labels.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                data = {k: file[k] for k in file.files}
        except FileNotFoundError as error:
            raise InputError(f"no emulator file {self.path}", "give the path of an .npz emulator") from error
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{self.path} is not an .npz file without pickles: {error}") from error
        except Exception as error:  # zipfile and zlib raise their own kinds for a damaged archive
            raise InputError(f"{self.path} cannot be read: {error}", "the file may be cut off") from error
        missing = [k for k in (*_REQUIRED, "label_lo", "label_hi") if k not in data]
        if missing:
            raise InputError(f"{self.path} lacks the arrays {', '.join(missing)}", "see the emulator file format")
        self.label_names = tuple(str(n) for n in data["label_names"])
        if self.label_names not in (_HBAND, _LOWRES):
            raise InputError(
                f"{self.path} has the labels {' '.join(self.label_names)}",
                f"known sets: {' '.join(_HBAND)} | {' '.join(_LOWRES)}",
            )
        self.grid_name = "hband" if self.label_names == _HBAND else "lowres"
        self.wavelength = np.asarray(data["wave"], float)
        self.low, self.high = np.asarray(data["label_lo"], float), np.asarray(data["label_hi"], float)
        self._mean = np.asarray(data["mean"], np.float32)
        self._basis = np.ascontiguousarray(data["basis"], np.float32)
        self._degree = int(data["deg"])
        self._poly = np.asarray(data["poly_w"], float)
        self._scale = np.asarray(data["lengthscale"], float)
        self._train = np.asarray(data["train_x"], float) / self._scale
        self._alpha = np.asarray(data["kern_alpha"], float)
        self._square = str(data.get("transform", "")) == "flux=exp(-g**2)"
        self._check_shapes()
        self._train_norm = np.einsum("ij,ij->i", self._train, self._train)

    def _check_shapes(self) -> None:
        p, m = self.wavelength.size, len(self._basis)
        n, d = self._train.shape
        terms = sum(len(list(combinations_with_replacement(range(d), k))) for k in range(self._degree + 1))
        expected: dict[str, tuple[Any, Any]] = {
            "mean": (self._mean.shape, (p,)),
            "basis": (self._basis.shape, (m, p)),
            "poly_w": (self._poly.shape, (terms, m)),
            "lengthscale": (self._scale.shape, (d,)),
            "kern_alpha": (self._alpha.shape, (n, m)),
        }
        wrong = [f"{k} {have} (must be {want})" for k, (have, want) in expected.items() if have != want]
        if wrong:
            raise InputError(f"{self.path} has arrays of wrong shape: {'; '.join(wrong)}")

    def features(self, labels: np.ndarray) -> np.ndarray:
        """Scaled labels, shape (n, D), of labels (n, L)."""
        theta = 5040.0 / labels[:, 0]
        if self.grid_name == "hband":
            x = 2 * (labels - self.low) / (self.high - self.low) - 1
            x[:, 0] = (theta - 5040.0 / 4460.0) / 0.14
            return x
        fe, c, alpha = labels[:, 2], labels[:, 3], labels[:, 4]
        q = c - alpha - 0.26
        cool = 1.0 / (1.0 + np.exp((labels[:, 0] - 4700.0) / 250.0))
        return np.stack(
            [
                (theta - 0.95) / 0.25,
                (labels[:, 1] - 3.75) / 1.25,
                (fe + 1.1) / 1.5,
                (fe + c + 0.6) / 1.8,
                (alpha - 0.22) / 0.47,
                0.10 * cool * np.logaddexp(0.0, q / 0.05),
                cool * np.tanh(q / 0.15),
            ],
            axis=1,
        )

    def clip(self, labels: np.ndarray) -> np.ndarray:
        """Labels moved to the nearest ones inside the training range."""
        return np.clip(labels, self.low, self.high)

    def flux(self, labels: np.ndarray) -> np.ndarray:
        """Noise-free continuum-normalised spectra.

        Parameters
        ----------
        labels : ndarray, shape (n, L)
            In the order of `label_names`.

        Returns
        -------
        ndarray, shape (n, P), float32

        Raises
        ------
        InputError
            Labels outside the training range or not finite.
        """
        labels = np.atleast_2d(np.asarray(labels, float))
        if labels.shape[1] != len(self.label_names):
            raise InputError(f"{labels.shape[1]} labels given, the emulator needs {len(self.label_names)}")
        outside = ~((labels >= self.low - 1e-9) & (labels <= self.high + 1e-9))
        if outside.any():
            name = self.label_names[int(np.flatnonzero(outside.any(0))[0])]
            raise InputError(
                f"{int(outside.any(1).sum())} of {len(labels)} stars lie outside the emulator's range, e.g. in {name}",
                "draw other labels or clip them with Emulator.clip",
            )
        x = self.features(labels)
        terms = [np.ones(len(x))]
        for k in range(1, self._degree + 1):
            terms += [np.prod(x[:, c], axis=1) for c in combinations_with_replacement(range(x.shape[1]), k)]
        scaled = x / self._scale
        r2 = (scaled**2).sum(1)[:, None] + self._train_norm - 2 * scaled @ self._train.T
        r = np.sqrt(5 * np.maximum(r2, 0))
        coefficients = np.stack(terms, 1) @ self._poly + ((1 + r + r * r / 3) * np.exp(-r)) @ self._alpha
        y = coefficients.astype(np.float32) @ self._basis
        y += self._mean
        if self._square:
            np.multiply(y, y, out=y)
            np.negative(y, out=y)
            np.exp(y, out=y)
        return y
