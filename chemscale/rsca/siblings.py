"""The chemically nearest stars of a run, with distance, likeness and covariates; every star's nearest as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError, StoreError
from chemscale.labelled import plain
from chemscale.rsca.likeness import Likeness
from chemscale.rsca.linear import LinearMetric
from chemscale.rsca.neighbours import SiblingIndex
from chemscale.rsca.registry import METRICS
from chemscale.rsca.stars import RunStars, text
from chemscale.runtime.product import ResumableProduct
from chemscale.runtime.run import Run
from chemscale.schema import VARIABLES
from chemscale.suggest import hint

PROBABILITY = {
    "probability": "chance to be a sibling",
    "probability_low": "16th percentile of that chance, over draws of the clusters",
    "probability_high": "84th percentile",
}
#: The run's own metrics by other names.
ALIASES = {"paper": "rsca"}
#: Field stars that a registered metric other than the run's own is learned from, at most.
LEARNED_FIELD = 200_000
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
    likeness: Likeness | None = None

    @classmethod
    def open(cls, run_path: str | os.PathLike[str], *, metric: str = "best", n_features: int | None = None) -> Any:
        """Load a run's features (one pass over its embedding).

        Parameters
        ----------
        run_path : path
        metric : {"best", "paper", "auto"}
            "best" is the run's recommended metric (:func:`recommended`).
        n_features : int, optional
            Dimensions kept; by default as the recommendation says: 3 for "paper" (section 4.4: free of velocity
            trends), all for "auto".
        """
        from chemscale.rsca.auto_run import auto_features, load_auto
        from chemscale.rsca.pipeline import load_metric

        run = Run.open(run_path)
        chosen = recommended(run) if metric == "best" else {"metric": metric}
        metric = str(chosen["metric"])
        n_features = int(chosen["n_features"]) if not n_features and "n_features" in chosen else n_features
        if metric != "auto" and metric not in ALIASES and metric not in METRICS:
            known = ["best", "auto", *ALIASES, *METRICS]
            raise InputError(f"unknown metric {metric!r}", hint(metric, known, "metrics"))
        if metric == "auto":
            need_auto(run)
        stars = RunStars.read(run, "embedding_auto.zarr" if metric == "auto" else "embedding.zarr", max_field=1)
        coords = stars.embedding["coords"].data
        amplitude: float | None = None
        parts, start = [], 0
        fitted: LinearMetric | None = None
        if ALIASES.get(metric, metric) == "rsca":
            fitted = load_metric(run)
            n_features = min(n_features or 3, len(fitted.scale_))
            amplitude = fitted.log_amplitude(n_features)
        elif metric != "auto":  # another registered metric: it is learned here, from coordinates in memory
            fitted = RunStars.read(run, max_field=LEARNED_FIELD).evaluation.fit(metric)
        else:
            auto, detrendings = load_auto(run)
            if n_features is not None and not 1 <= n_features <= auto.matrix.shape[1]:
                raise InputError(f"n_features is {n_features}", f"choose between 1 and {auto.matrix.shape[1]}")
        for block in coords.to_delayed().ravel():
            z = np.asarray(block.compute(), dtype=np.float64)
            rows = np.arange(start, start + len(z))
            if fitted is not None:
                parts.append(fitted.transform(z, n_features).astype(np.float32))
            else:
                parts.append(auto_features(auto, detrendings, z, stars, rows, n_features).astype(np.float32))
            start += len(z)
        features = np.concatenate(parts)
        index = SiblingIndex(features, text(stars.embedding["star_id"]))
        found = stored_likeness(run, metric) if amplitude is not None or metric == "auto" else None
        likeness = Likeness.from_json(found) if found and found["n_features"] == features.shape[1] else None
        return cls(index, stars, metric, features.shape[1], amplitude, likeness)

    def siblings(
        self,
        star_id: str,
        n: int | None = 20,
        *,
        within: float | None = None,
        max_delta_velocity: float | None = None,
        max_delta_extinction: float | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        prior: float | None = None,
    ) -> xr.Dataset:
        """The `n` stars most alike `star_id`; arguments and result as :func:`siblings`."""
        if n is not None and n < 1:
            raise InputError(f"n is {n}", "ask for at least one sibling")
        if n is None and within is None:
            raise InputError("neither a number nor a distance is given", "ask for n stars, or those within a distance")
        row = self.index.row_of(star_id)
        allowed = self._allowed(row, max_delta_velocity, max_delta_extinction, limits or {})
        if within is None:
            rows, distance = self.index.nearest(row, int(n or 1), allowed)
        else:
            rows, distance = (v[:n] for v in self.index.within(row, within, allowed))
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
        elif self.likeness is not None:
            ds["log_ratio"] = (
                "sibling",
                self.likeness.log_ratio(distance),
                {"long_name": "ln of the probability ratio, siblings : field, from pairs of held-out clusters"},
            )
        if prior is not None:
            chance = self.probability(distance, prior)
            for name, values in zip(("probability", "probability_low", "probability_high"), chance, strict=True):
                ds[name] = ("sibling", values, {"long_name": PROBABILITY[name]})
            assert self.likeness is not None
            ds.attrs |= {"caution": self.likeness.caution, "highest_probability": self.likeness.highest(prior)}
        for name in COVARIATES:
            if name in self.stars.embedding.variables:
                values = self._column(name)
                ds[name] = ("sibling", values[rows], dict(self.stars.embedding[name].attrs))
                ds.attrs[f"star_{name}"] = str(values[row]) if values.dtype.kind in "OU" else float(values[row])
        ds.attrs |= {"star": star_id, "metric": self.metric, "n_features": self.n_features}
        return ds

    def probability(self, distance: Any, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chance of pairs at a distance to be siblings, and its 16th and 84th percentile over draws of clusters.

        Raises
        ------
        InputError
            Pairs of held-out clusters have not been looked at with this metric and as many dimensions.
        """
        if self.likeness is None:
            raise InputError(
                "probabilities need a metric that was calibrated with the same dimensions kept",
                "run `chemscale rsca evaluate --run RUN --n-features N` and ask with --metric paper --n-features N",
            )
        return self.likeness.probability(distance, prior)

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


def recommended(run: Run) -> dict[str, Any]:
    """The metric a run recommends, as ``rsca evaluate`` found; before that, the searched one where it was fitted."""
    found = run.load_json("evaluation.json") if run.has("evaluation.json") else {}
    if "recommended" in found and (found["recommended"]["metric"] != "auto" or run.has("auto.zarr")):
        return dict(found["recommended"])
    return {"metric": "auto" if run.has("auto.zarr") else "paper"}


def need_auto(run: Run) -> None:
    """Refuse a run without the searched metric, with the command that adds it.

    Raises
    ------
    StoreError
    """
    if not run.has("auto.zarr"):
        raise StoreError(
            f"{run.path} was fitted without the searched metric",
            f"add it: `chemscale rsca fit {run.store} --run {run.path} --metric auto`, or ask with --metric paper",
        )


def stored_likeness(run: Run, metric: str) -> dict[str, Any] | None:
    """Likeness of pairs under the searched metric or the paper's, where it was measured."""
    source = "auto.json" if metric == "auto" else "evaluation.json"
    found = run.load_json(source).get("likeness") if run.has(source) else None
    return found if found and "model" in found else None


@lru_cache(maxsize=2)
def _opened(path: str, stamp: float, metric: str, n_features: int | None) -> SiblingSearch:
    return SiblingSearch.open(path, metric=metric, n_features=n_features)


def siblings(
    star_id: str,
    run: str | os.PathLike[str] | Run,
    n: int | None = 20,
    *,
    within: float | None = None,
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
    n : int, optional
        How many; None for all `within` a distance.
    within : float, optional
        Only stars at most this far, in the metric.
    metric : str
        "best" (recommended by ``rsca evaluate``), "paper", "auto" or the name of a registered metric.
    n_features : int, optional
        Dimensions kept.
    max_delta_velocity, max_delta_extinction : float or Quantity, optional
        Only stars this close in radial velocity (km/s) and extinction (mag).
    limits : mapping of str to (low, high), optional
        Only stars with labels in these ranges, e.g. ``{"teff": (4400, 4800)}``; numbers in the units of the survey
        contract, or quantities.
    prior : float, optional
        Chance that a random star is a sibling; adds `probability` with its 16th and 84th percentile (after ``rsca
        evaluate``).

    Returns
    -------
    xarray.Dataset
        Dimension `sibling`, nearest first: `star_id`, `distance`, `log_ratio` and covariates. Use
        ``.to_dataframe()`` for a table.

    Raises
    ------
    InputError
        Unknown star (similar names are suggested), or a cut on a label that is missing.

    Examples
    --------
    The three stars most like the first one of a small simulated survey:

    >>> import tempfile
    >>> from pathlib import Path
    >>> from chemscale import ingest, open_embedding, siblings
    >>> from chemscale.rsca.pipeline import fit_run
    >>> from chemscale.survey.sources.simulated import SimulatedSource
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = ingest(SimulatedSource(300, clusters=6, seed=3, grid="lowres"), folder / "survey.zarr", progress=False)
    >>> run = fit_run(str(folder / "survey.zarr"), folder / "run", components=6)
    >>> star = open_embedding(folder / "run" / "embedding.zarr")["star_id"].values[0]
    >>> near = siblings(str(star), run, n=3)
    >>> near.sizes["sibling"], bool((near["distance"].diff("sibling") >= 0).all())
    (3, True)
    """
    run = run.path if isinstance(run, Run) else run
    manifest = os.path.join(os.fspath(run), "manifest.json")
    stamp = os.path.getmtime(manifest) if os.path.exists(manifest) else 0.0
    search = _opened(os.path.abspath(os.fspath(run)), stamp, metric, n_features)
    return search.siblings(
        star_id,
        n,
        within=within,
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
    rows_at_once: int | None = None,
) -> str:
    """Write ``siblings.zarr``: the `k` nearest stars of every star of a run (rows of the survey and distances).

    Memory: the features and `rows_at_once` rows of the table (by default all of it up to 2 GiB).
    """
    run = Run.open(run_path)
    with run.stage("neighbours", settings={"k": k, "metric": metric, "method": method}) as stage:
        search = SiblingSearch.open(run_path, metric=metric)
        n = len(search.index.features)
        if not 1 <= k < n:
            raise InputError(f"k is {k}", f"choose between 1 and {n - 1}")
        import dask.array as da

        step = rows_at_once or max(65_536, (2 << 30) // (16 * k))
        chunk = min(65_536, step, n)
        template = xr.Dataset(
            {
                "row": (("star", "neighbour"), da.full((n, k), -1, chunks=(chunk, k), dtype=np.int64)),
                "distance": (("star", "neighbour"), da.full((n, k), np.inf, chunks=(chunk, k), dtype=np.float32)),
                "star_id": ("star", search.index.star_id.astype(object)),
            },
            attrs={"metric": search.metric, "n_features": search.n_features, "method": method},
        )
        import zarr

        product = ResumableProduct(run.file("siblings.zarr"), {})
        product.restart(lambda path: template.to_zarr(path, compute=False, zarr_format=3, consolidated=False))
        group = zarr.open_group(product.folder, mode="r+")
        for start in range(0, n, step):
            written = slice(start, min(start + step, n))
            rows, distances = search.index.all_nearest(k, method=method, rows=written)
            group["row"][written], group["distance"][written] = rows, distances  # type: ignore[index]
        product.finish(run.inputs("siblings.zarr"))
        stage.note(stars=n)
    return run.file("siblings.zarr")
