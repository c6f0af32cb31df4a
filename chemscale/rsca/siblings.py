"""The chemically nearest stars of a run, with distance, likeness and covariates; every star's nearest as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.labelled import plain
from chemscale.rsca.likeness import sibling_probability
from chemscale.rsca.neighbours import SiblingIndex
from chemscale.rsca.stars import RunStars, text
from chemscale.runtime.run import Run
from chemscale.schema import VARIABLES
from chemscale.suggest import hint

#: Covariates shown beside a sibling, where the run has them.
COVARIATES = ("cluster", "role", "teff", "logg", "fe_h", "alpha_m", "snr", "radial_velocity", "extinction", "ra", "dec")


@dataclass
class SiblingSearch:
    """A run opened for searches: features under one metric, covariates and calibration; keep it for many queries."""

    index: SiblingIndex
    stars: RunStars
    metric: str
    n_features: int
    log_amplitude: float | None
    calibration: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def open(cls, run_path: str | os.PathLike[str], *, metric: str = "best", n_features: int | None = None) -> Any:
        """Load a run's features (one pass over its embedding).

        Parameters
        ----------
        run_path : path
        metric : {"best", "paper", "auto"}
            "best" is "auto" where the run has it.
        n_features : int, optional
            Dimensions kept; by default 3 for "paper" (section 4.4: free of velocity trends), all for "auto".
        """
        from chemscale.rsca.auto_run import auto_features, load_auto
        from chemscale.rsca.pipeline import load_metric

        run = Run.open(run_path)
        if metric not in ("best", "paper", "auto"):
            raise InputError(f"unknown metric {metric!r}", "choose best, paper or auto")
        if metric == "best":
            metric = "auto" if run.has("auto.zarr") else "paper"
        stars = RunStars.read(run, "embedding_auto.zarr" if metric == "auto" else "embedding.zarr", max_field=1)
        coords = stars.embedding["coords"].data
        amplitude: float | None = None
        parts, start = [], 0
        if metric == "paper":
            fitted = load_metric(run)
            n_features = min(n_features or 3, len(fitted.scale_))
            amplitude = fitted.log_amplitude(n_features)
        else:
            auto, detrendings = load_auto(run)
            if n_features is not None and not 1 <= n_features <= auto.matrix.shape[1]:
                raise InputError(f"n_features is {n_features}", f"choose between 1 and {auto.matrix.shape[1]}")
        for block in coords.to_delayed().ravel():
            z = np.asarray(block.compute(), dtype=np.float64)
            rows = np.arange(start, start + len(z))
            if metric == "paper":
                parts.append(fitted.transform(z, n_features).astype(np.float32))
            else:
                parts.append(auto_features(auto, detrendings, z, stars, rows, n_features).astype(np.float32))
            start += len(z)
        features = np.concatenate(parts)
        index = SiblingIndex(features, text(stars.embedding["star_id"]))
        found = run.load_json("evaluation.json").get("likeness") if run.has("evaluation.json") else None
        calibration = None
        if metric == "paper" and found and found["n_features"] == features.shape[1] and "knots" in found:
            calibration = (np.asarray(found["knots"], float), np.asarray(found["values"], float))
        return cls(index, stars, metric, features.shape[1], amplitude, calibration)

    def siblings(
        self,
        star_id: str,
        n: int = 20,
        *,
        max_delta_velocity: float | None = None,
        max_delta_extinction: float | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        prior: float | None = None,
    ) -> xr.Dataset:
        """The `n` stars most alike `star_id`; arguments and result as :func:`siblings`."""
        if n < 1:
            raise InputError(f"n is {n}", "ask for at least one sibling")
        row = self.index.row_of(star_id)
        allowed = self._allowed(row, max_delta_velocity, max_delta_extinction, limits or {})
        rows, distance = self.index.nearest(row, n, allowed)
        ds = xr.Dataset(
            {
                "star_id": ("sibling", self.index.star_id[rows]),
                "distance": ("sibling", distance, {"long_name": "distance in the metric"}),
            }
        )
        if self.log_amplitude is not None:
            ratio = self.log_amplitude - distance**2 / 4
            ds["log_ratio"] = (
                "sibling",
                ratio,
                {"long_name": "ln of the probability ratio, eq. (5), siblings : field"},
            )
        if prior is not None:
            ds["probability"] = ("sibling", self._probability(distance, prior), {"long_name": "chance to be a sibling"})
        for name in COVARIATES:
            if name in self.stars.embedding.variables:
                values = self._column(name)
                ds[name] = ("sibling", values[rows], dict(self.stars.embedding[name].attrs))
                ds.attrs[f"star_{name}"] = str(values[row]) if values.dtype.kind in "OU" else float(values[row])
        ds.attrs |= {"star": star_id, "metric": self.metric, "n_features": self.n_features}
        return ds

    def _probability(self, distance: np.ndarray, prior: float) -> np.ndarray:
        """Chance of a pair at `distance` to be siblings, on the scale that held-out clusters calibrated."""
        if self.log_amplitude is None or self.calibration is None:
            raise InputError(
                "probabilities need the paper's metric, calibrated with the same dimensions kept",
                "run `chemscale rsca evaluate --run RUN --n-features N` and ask with --metric paper --n-features N",
            )
        return sibling_probability(np.interp(self.log_amplitude - distance**2 / 4, *self.calibration), prior)

    def _column(self, name: str) -> np.ndarray:
        cache = self.__dict__.setdefault("_columns", {})
        if name not in cache:
            variable = self.stars.embedding[name]
            cache[name] = text(variable) if variable.dtype.kind in "OUT" else np.asarray(variable.values)
        return cache[name]

    def _allowed(
        self, row: int, velocity: float | None, extinction: float | None, limits: Mapping[str, tuple[float, float]]
    ) -> np.ndarray | None:
        allowed: np.ndarray | None = None
        for name, limit in (("radial_velocity", velocity), ("extinction", extinction)):
            if limit is None:
                continue
            values = self.stars.label(name)
            if values is None or not np.isfinite(values[row]):
                raise InputError(f"{self.index.star_id[row]} has no {name}", f"leave out the cut on {name}")
            ok = np.abs(values - values[row]) < limit
            allowed = ok if allowed is None else allowed & ok
        for name, (low, high) in limits.items():
            values = self.stars.label(name)
            if values is None:
                known = [str(v) for v in self.stars.embedding.data_vars if _is_number(str(v))]
                raise InputError(f"no star of this run has {name!r}", hint(name, sorted(known), "labels"))
            ok = (values >= low) & (values <= high)
            allowed = ok if allowed is None else allowed & ok
        return allowed


@lru_cache(maxsize=2)
def _opened(path: str, stamp: float, metric: str, n_features: int | None) -> SiblingSearch:
    return SiblingSearch.open(path, metric=metric, n_features=n_features)


def siblings(
    star_id: str,
    run: str | os.PathLike[str] | Run,
    n: int = 20,
    *,
    metric: str = "best",
    n_features: int | None = None,
    max_delta_velocity: Any = None,
    max_delta_extinction: Any = None,
    limits: Mapping[str, tuple[Any, Any]] | None = None,
    prior: float | None = None,
) -> xr.Dataset:
    """The stars of a survey chemically nearest to one star: exact, among all stars of the run.

    The first call on a run loads its features (one pass over the embedding); later ones cost one product over them.

    Parameters
    ----------
    star_id : str
    run : path or Run
        Run directory of ``chemscale rsca fit``.
    n : int
        How many.
    metric : {"best", "paper", "auto"}
    n_features : int, optional
        Dimensions kept.
    max_delta_velocity, max_delta_extinction : float or Quantity, optional
        Only stars this close in radial velocity (km/s) and extinction (mag).
    limits : mapping of str to (low, high), optional
        Only stars with labels in these ranges, e.g. ``{"teff": (4400, 4800)}``; numbers in the units of the survey
        contract, or quantities.
    prior : float, optional
        Chance that a random star is a sibling; adds `probability` (paper's metric, after ``rsca evaluate``).

    Returns
    -------
    xarray.Dataset
        Dimension `sibling`, nearest first: `star_id`, `distance`, `log_ratio` (paper's metric) and covariates. Use
        ``.to_dataframe()`` for a table.

    Raises
    ------
    InputError
        Unknown star (similar names are suggested), or a cut on a label that is missing.
    """
    run = run.path if isinstance(run, Run) else run
    manifest = os.path.join(os.fspath(run), "manifest.json")
    stamp = os.path.getmtime(manifest) if os.path.exists(manifest) else 0.0
    search = _opened(os.path.abspath(os.fspath(run)), stamp, metric, n_features)
    return search.siblings(
        star_id,
        n,
        max_delta_velocity=plain(max_delta_velocity, "km/s", "max_delta_velocity"),
        max_delta_extinction=plain(max_delta_extinction, "mag", "max_delta_extinction"),
        limits={k: (_in_units(k, low), _in_units(k, high)) for k, (low, high) in (limits or {}).items()},
        prior=prior,
    )


def _is_number(label: str) -> bool:
    return label in VARIABLES and VARIABLES[label].dtype.startswith("float")


def _in_units(label: str, value: Any) -> Any:
    spec = VARIABLES.get(label)
    return plain(value, spec.units if spec else "", f"the limit on {label}")


def write_neighbours(
    run_path: str | os.PathLike[str],
    k: int = 10,
    *,
    metric: str = "best",
    method: str = "exact",
    piece: int | None = None,
) -> str:
    """Write ``siblings.zarr``: the `k` nearest stars of every star of a run (rows of the survey and distances).

    Memory: the features and one piece of the table (by default all of it up to 2 GiB).
    """
    run = Run.open(run_path)
    with run.stage("neighbours", settings={"k": k, "metric": metric, "method": method}) as stage:
        search = SiblingSearch.open(run_path, metric=metric)
        n = len(search.index.features)
        if not 1 <= k < n:
            raise InputError(f"k is {k}", f"choose between 1 and {n - 1}")
        import dask.array as da

        piece = piece or max(65_536, (2 << 30) // (16 * k))
        chunk = min(65_536, piece, n)
        template = xr.Dataset(
            {
                "row": (("star", "neighbour"), da.full((n, k), -1, chunks=(chunk, k), dtype=np.int64)),
                "distance": (("star", "neighbour"), da.full((n, k), np.inf, chunks=(chunk, k), dtype=np.float32)),
                "star_id": ("star", search.index.star_id.astype(object)),
            },
            attrs={"metric": search.metric, "n_features": search.n_features, "method": method},
        )
        path = run.file("siblings.zarr")
        template.to_zarr(path, mode="w", compute=False, zarr_format=3, consolidated=False)
        import zarr

        group = zarr.open_group(path, mode="r+")
        for start in range(0, n, piece):
            part = slice(start, min(start + piece, n))
            rows, distances = search.index.all_nearest(k, method=method, rows=part)
            group["row"][part], group["distance"][part] = rows, distances  # type: ignore[index]
        stage.note(stars=n)
    return path
