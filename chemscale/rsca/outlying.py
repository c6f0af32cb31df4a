"""Stars far outside the field: the nuisance that puts them there is taken out of their coordinates.

A spectrum that went wrong (a failed flux calibration, a neighbour's light) has coordinates that no star has, and so
far away that a linear metric sees little else. A star's coordinates x have the field's covariance C plus nuisance of
covariance u R: u is 0 for a star among the field, and for one outside so large that x is no farther out than the edge
under C + u R. The posterior mean of what is not nuisance, C (C + u R)^-1 x, takes the place of x. Stars within the
edge, three times the median distance from the centre, stay exactly as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import xarray as xr
from scipy.linalg import eigh

from chemscale.rsca.doppelganger import evenly

#: The field's edge, in units of the median distance of its stars from their centre.
EDGE = 3.0
#: Field stars that its centre and covariance are measured on, at most.
FIELD = 20_000
#: Degrees of freedom of the multivariate t law that they are measured with, and its steps.
FREEDOM, STEPS = 5, 20
#: Nuisance of an outlying star, in units of R, at most; halvings of its logarithm.
LARGEST, HALVINGS = 1e12, 60


@dataclass
class FieldEdge:
    """Where the field ends, and what brings a star from outside to there.

    Attributes
    ----------
    centre : (K,)
    axes : (K, K)
        Map centred coordinates to ones with unit covariance in the field and diagonal covariance of the nuisance.
    back : (K, K)
        The inverse.
    nuisance : (K,)
        Variances of the nuisance along these.
    edge : float
        Distance from the centre, in the field's standard deviations.
    """

    centre: np.ndarray
    axes: np.ndarray
    back: np.ndarray
    nuisance: np.ndarray
    edge: float

    @classmethod
    def fit(cls, field: Any, nuisance: np.ndarray) -> Self:
        """The edge of field stars (n, K) in memory, where nuisance has the covariance (K, K) up to a factor."""
        z = np.asarray(field, dtype=np.float64)
        z = z[evenly(len(z), FIELD)]
        centre = np.median(z, axis=0)
        z = z - centre
        covariance = np.cov(z.T)
        for _ in range(STEPS):  # a few far stars must not make room for themselves
            squared = np.einsum("ij,ij->i", z, np.linalg.solve(covariance, z.T).T)
            weight = (FREEDOM + z.shape[1]) / (FREEDOM + squared)
            covariance = (z.T * weight) @ z / weight.sum()
        variances, axes = eigh(nuisance, covariance)
        edge = EDGE * float(np.median(np.linalg.norm(z @ axes, axis=1)))
        return cls(centre, axes, np.linalg.inv(axes), np.maximum(variances, 0.0), edge)

    def outside(self, coords: np.ndarray) -> np.ndarray:
        """Which stars (n,) of coordinates (n, K) lie outside the field."""
        with np.errstate(invalid="ignore"):
            return np.linalg.norm((coords - self.centre) @ self.axes, axis=1) > self.edge

    def bring_in(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates (n, K), those of stars outside the field without the nuisance that puts them there."""
        far = np.flatnonzero(self.outside(coords))
        if not len(far):
            return coords
        y = (coords[far] - self.centre) @ self.axes
        squares, limit = y**2, self.edge**2
        low, high = np.full(len(far), np.log(1e-6)), np.full(len(far), np.log(LARGEST))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            out = np.sum(squares / (1 + np.exp(middle)[:, None] * self.nuisance), axis=1) > limit
            low, high = np.where(out, middle, low), np.where(out, high, middle)
        moved = np.array(coords, dtype=np.float64)
        moved[far] = self.centre + (y / (1 + np.exp(high)[:, None] * self.nuisance)) @ self.back
        return moved

    def variables(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """What a Dataset keeps of it, for :meth:`of`."""
        dims = {"centre": ("component",), "axes": ("component", "direction"), "nuisance": ("direction",), "edge": ()}
        return {f"field_{name}": (of, np.asarray(getattr(self, name))) for name, of in dims.items()}

    @classmethod
    def of(cls, ds: xr.Dataset) -> Self | None:
        """The edge that a Dataset keeps; None where it keeps none, as those of earlier releases."""
        if "field_edge" not in ds:
            return None
        axes = ds["field_axes"].values
        centre, nuisance = ds["field_centre"].values, ds["field_nuisance"].values
        return cls(centre, axes, np.linalg.inv(axes), nuisance, float(ds["field_edge"]))
