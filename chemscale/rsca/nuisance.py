"""Nuisance hyperplanes: RSCA on groups of like velocity (or any covariate) instead of clusters (Appendix B).

The directions in which stars of one velocity resemble each other more than the field does are the ones that velocity
leaves its mark on. Taking variations within their hyperplane out of the coordinates suppresses the mark. The paper
describes this and does not apply it; here it can be measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.linalg import eigh

from chemscale.errors import DataError, InputError
from chemscale.rsca.metric import RSCA
from chemscale.rsca.moments import field_moments
from chemscale.rsca.scales import sphering
from chemscale.rsca.stars import RunStars
from chemscale.runtime.run import Run

#: A direction counts as marked where groups explain more than this share of its variance (and chance does not).
MIN_SHARE = 0.01


@dataclass(frozen=True)
class NuisancePlane:
    """Directions of the sphered coordinate space that follow a covariate.

    Attributes
    ----------
    mean, sphering : (K,), (K, K)
        Of the field.
    axes : (K, K)
        Orthonormal columns of the sphered space, the most marked first.
    share : (K,)
        Share of the field's variance along each axis that groups of like covariate explain.
    n_removed : int
        Axes that span the hyperplane.
    """

    mean: np.ndarray
    sphering: np.ndarray
    axes: np.ndarray
    share: np.ndarray
    n_removed: int

    def remove(self, coords: Any) -> np.ndarray:
        """Coordinates (n, K - n_removed), sphered, of what lies off the hyperplane."""
        return (coords - self.mean) @ self.sphering @ self.axes[:, self.n_removed :]

    def spectra_map(self, ppca: Any) -> np.ndarray:
        """The hyperplane in spectral space: (n_removed, n_pixels), spectrum changes along its axes."""
        back = np.linalg.pinv(self.sphering)
        basis = np.nan_to_num(np.asarray(ppca.components_, dtype=float))
        return self.axes[:, : self.n_removed].T @ back @ basis


def nuisance_plane(
    coords: np.ndarray, covariate: np.ndarray, *, n_groups: int = 20, n_remove: int | None = None
) -> NuisancePlane:
    """Find the hyperplane that a covariate marks.

    Parameters
    ----------
    coords : (n, K)
        Field coordinates.
    covariate : (n,)
        Radial velocity, extinction, fibre...; stars without it are left out.
    n_groups : int
        Groups of equally many stars, in order of the covariate.
    n_remove : int, optional
        Axes to remove; by default those whose share of explained variance is above 1 % and three times what chance
        gives (``(n_groups - 1) / n``).

    Raises
    ------
    DataError, InputError
        Too few stars with the covariate; `n_remove` outside 0..K-1.
    """
    good = np.isfinite(covariate)
    z, y = np.asarray(coords, dtype=np.float64)[good], np.asarray(covariate, dtype=float)[good]
    k = z.shape[1]
    if len(y) < 10 * n_groups or len(y) <= k:
        raise DataError(f"{len(y)} stars with the covariate for {n_groups} groups", "use fewer groups")
    moments = field_moments(z)
    spheres = sphering(moments)
    x = (z - moments.mean) @ spheres
    group = np.empty(len(y), dtype=np.int64)
    group[np.argsort(y, kind="stable")] = np.arange(len(y)) * n_groups // len(y)
    means = np.stack([x[group == g].mean(axis=0) for g in range(n_groups)])
    sizes = np.bincount(group, minlength=n_groups)
    between = (means * sizes[:, None]).T @ means / len(x)
    share, axes = eigh(between)
    share, axes = np.clip(share[::-1], 0, 1), axes[:, ::-1]
    if n_remove is None:
        n_remove = int(np.sum(share > max(MIN_SHARE, 3 * (n_groups - 1) / len(x))))
        n_remove = min(n_remove, k - 1)
    if not 0 <= n_remove < k:
        raise InputError(f"n_remove is {n_remove}", f"choose between 0 and {k - 1}")
    return NuisancePlane(moments.mean, spheres, axes, share, n_remove)


def nuisance_run(
    run_path: str | os.PathLike[str],
    *,
    covariate: str = "radial_velocity",
    n_groups: int = 20,
    n_remove: int | None = None,
    n_features: int = 3,
    max_field: int = 200_000,
) -> dict[str, Any]:
    """Find a covariate's hyperplane in a run and measure what removing it brings.

    Writes ``nuisance_COVARIATE.zarr`` and ``.json``.

    Returns
    -------
    dict
        ``removed``, ``share`` (explained variance per removed axis), doppelganger rates and correlations of the
        `n_features` kept features with the covariate, ``before`` and ``after``.

    Raises
    ------
    InputError
        No star has the covariate.
    """
    from chemscale.statistics.ppca import MaskedPPCA

    run = Run.open(run_path)
    with run.stage(f"nuisance_{covariate}", settings={"n_groups": n_groups, "n_remove": n_remove}) as stage:
        stars = RunStars.read(run, max_field=max_field)
        values = stars.label(covariate)
        if values is None:
            raise InputError(f"no star of this run has {covariate!r}", "choose another --covariate")
        field, members = np.asarray(stars.field), stars.members
        plane = nuisance_plane(field, values[stars.field_rows], n_groups=n_groups, n_remove=n_remove)
        report: dict[str, Any] = {
            "covariate": covariate,
            "removed": plane.n_removed,
            "share": plane.share[: max(plane.n_removed, 5)].tolist(),
        }
        for when, (f, m) in {
            "before": (field, members),
            "after": (plane.remove(field), plane.remove(members)),
        }.items():
            engine = stars.evaluate(f, m)
            kept = min(n_features, f.shape[1])
            features = RSCA().fit(engine.moments, m, stars.clusters).transform(f, kept)
            report[when] = {
                "rsca": engine.rates("rsca").overall,
                "rsca_top": engine.rates("rsca", n_features=kept).overall,
                "correlation": stars.correlations(features, stars.field_rows, (covariate,)).get(covariate, []),
            }
        ppca = MaskedPPCA.from_dataset(run.open_dataset("ppca.zarr").load())
        ds = xr.Dataset(
            {
                "mean": ("component", plane.mean),
                "sphering": (("component", "axis"), plane.sphering),
                "axes": (("axis", "direction"), plane.axes),
                "share": ("direction", plane.share),
                "spectra": (("removed", "wavelength"), plane.spectra_map(ppca)),
            },
            attrs={"covariate": covariate, "n_removed": plane.n_removed},
        )
        run.save_dataset(f"nuisance_{covariate}.zarr", ds)
        run.save_json(f"nuisance_{covariate}.json", report)
        stage.note(removed=plane.n_removed)
    return report
