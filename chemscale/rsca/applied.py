"""A run's model by itself: basis, metric and likeness, applied to spectra that were never in the run's store.

:class:`LikenessModel` comes from a run, or from the one file it was exported to (safetensors, with a JSON header that
says what is in it), and gives features of any spectra on the same wavelength grid.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from chemscale.errors import InputError, StoreError
from chemscale.rsca.auto import AutoMetric
from chemscale.rsca.auto_run import load_auto
from chemscale.rsca.likeness import Likeness
from chemscale.rsca.linear import LinearMetric
from chemscale.rsca.metric import RSCA
from chemscale.rsca.moments import field_moments
from chemscale.rsca.pipeline import load_metric
from chemscale.rsca.siblings import need_auto, recommended, stored_likeness
from chemscale.rsca.stars import ABUNDANCE, RunStars, cleaned_of
from chemscale.runtime import jsonio
from chemscale.runtime.files import write_file
from chemscale.runtime.run import Run
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.survey.store.cleaning import check_cleaned

logger = logging.getLogger(__name__)

#: Share of the training field that lies within the domain.
DOMAIN = 0.999
#: Field stars that the domain is measured on, at most.
DOMAIN_FIELD = 50_000
#: Steps of :meth:`LikenessModel.transform`, at most: each waits for its last block.
MOST_STEPS = 100
FORMAT = "chemscale likeness model 1"


@dataclass
class LikenessModel:
    """Basis, metric and what they were trained on.

    Attributes
    ----------
    basis : MaskedPPCA
    metric : RSCA or AutoMetric
    n_features : int
        Features kept.
    centre, precision : (K,), (K, K)
        Mean and inverse covariance of the training field's coordinates.
    limit : float
        Mahalanobis distance within which 99.9 % of the training field lie.
    wavelength : (P,) Angstrom
    likeness : dict
        Of pairs, as ``evaluation.json`` has it; empty where it is not known.
    cleaned : tuple of str
        What was taken off the spectra it was fitted on (``chemscale clean``).
    medium : {"air", "vacuum", ""}
        Of the wavelengths; empty in files of earlier releases.
    """

    basis: MaskedPPCA
    metric: LinearMetric | AutoMetric
    n_features: int
    centre: np.ndarray
    precision: np.ndarray
    limit: float
    wavelength: np.ndarray
    likeness: dict[str, Any] = field(default_factory=dict)
    cleaned: tuple[str, ...] = ()
    medium: str = ""

    @classmethod
    def of_run(cls, run: Run, metric: str = "best") -> LikenessModel:
        """The model of a run.

        Parameters
        ----------
        run : Run
        metric : {"best", "paper", "auto"}
        """
        chosen = recommended(run) if metric == "best" else {"metric": metric}
        if chosen["metric"] not in ("paper", "auto"):
            raise InputError(f"unknown metric {metric!r}", "choose best, paper or auto")
        searched = chosen["metric"] == "auto"
        suffix = "_auto" if searched else ""
        found: LinearMetric | AutoMetric
        if searched:
            need_auto(run)
            auto, _ = load_auto(run)
            found, n = auto, auto.matrix.shape[1]
        else:
            found = load_metric(run)
            n = min(int(chosen.get("n_features", 3)), found.n_features_in_)
        basis = MaskedPPCA.from_dataset(run.open_dataset(f"ppca{suffix}.zarr").load())
        stars = RunStars.read(run, f"embedding{suffix}.zarr", max_field=DOMAIN_FIELD)
        wavelength, medium = _grid(run)
        moments = field_moments(stars.field)
        precision = np.linalg.inv(moments.covariance)
        distance = _mahalanobis(np.asarray(stars.field), moments.mean, precision)
        return cls(
            basis,
            found,
            n,
            moments.mean,
            precision,
            float(np.quantile(distance, DOMAIN)),
            wavelength,
            stored_likeness(run, chosen["metric"]) or {},
            cleaned_of(run),
            medium,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of a star that its features depend on, where they are known."""
        return self.metric.labels if isinstance(self.metric, AutoMetric) else ()

    def features(self, coords: np.ndarray, labels: dict[str, np.ndarray]) -> np.ndarray:
        """Features (n, n_features) of coordinates (n, K); a label that is not given is estimated from them."""
        if isinstance(self.metric, AutoMetric):
            return self.metric.features(coords, labels, self.n_features)
        return np.asarray(self.metric.transform(coords, self.n_features))

    def transform(self, survey: xr.Dataset, progress: Callable[[int], None] | None = None) -> xr.Dataset:
        """Features of every star of a survey; one pass over its spectra.

        Parameters
        ----------
        survey : Dataset
            With `flux`, `ivar`, `flags` on the grid of the model.
        progress : callable, optional
            Told how many stars more are done, now and then.

        Returns
        -------
        Dataset
            `star_id`, `features` (star, feature), `domain_distance` (Mahalanobis, from the training field's mean) and
            `outside_domain` (bool): farther than 99.9 % of the training field. NaN for a star without a usable pixel.

        Raises
        ------
        InputError
            Another wavelength grid or medium, or spectra that are not cleaned as those of the model were.
        """
        check_cleaned(survey.attrs.get("cleaned", ()), self.cleaned, "model")
        grid = np.asarray(survey["wavelength"].values, dtype=float)
        if grid.shape != self.wavelength.shape or not np.allclose(grid, self.wavelength, rtol=1e-6):
            raise InputError(
                f"the spectra have {len(grid)} pixels from {grid[0]:.2f} to {grid[-1]:.2f} Angstrom, the model "
                f"{len(self.wavelength)} from {self.wavelength[0]:.2f} to {self.wavelength[-1]:.2f}",
                "resample them to the grid of the survey that the model was fitted on",
            )
        self._check_medium(survey)
        coords = _computed(self.basis.transform(survey).data, progress)
        distance = _mahalanobis(coords, self.centre, self.precision)
        with np.errstate(invalid="ignore"):
            outside = ~(distance <= self.limit)
        out = xr.Dataset(
            {
                "features": (("star", "feature"), self.features(coords, _labels(survey, self.labels))),
                "domain_distance": ("star", distance, {"long_name": "Mahalanobis distance from the training field"}),
                "outside_domain": ("star", outside, {"long_name": "farther out than 99.9 % of the training field"}),
            },
            coords={"star_id": ("star", np.asarray(survey["star_id"].values).astype(str))},
        )
        out.attrs["domain_limit"] = self.limit
        return out

    def _check_medium(self, survey: xr.Dataset) -> None:
        """Refuse wavelengths in another medium, some pixels apart; take those that do not say for the model's."""
        medium = str(survey["wavelength"].attrs.get("medium", ""))
        if not self.medium or medium in ("", self.medium):
            return
        if not survey.attrs.get("medium_stated", True):
            logger.warning("nothing says the medium of the wavelengths: taken to be in %s as the model's", self.medium)
            return
        raise InputError(
            f"the wavelengths of the spectra are in {medium}, the model's in {self.medium}",
            "resample the spectra to the grid of the survey that the model was fitted on, in its medium",
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as one file: arrays as safetensors, everything else as JSON in its header."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {
            "centre": self.centre,
            "precision": self.precision,
            "wavelength": self.wavelength,
        }
        header: dict[str, Any] = {"format": FORMAT, "n_features": self.n_features, "limit": self.limit}
        header |= {"likeness": jsonio.plain(self.likeness), "cleaned": list(self.cleaned), "medium": self.medium}
        for name, ds in (("basis", self.basis.to_dataset()), ("metric", self.metric.to_dataset())):
            header[name] = {"attrs": jsonio.plain(ds.attrs), "dims": {str(v): list(ds[v].dims) for v in ds.variables}}
            arrays |= {f"{name}.{v}": np.ascontiguousarray(ds[v].values) for v in ds.variables}
        write_file(path, save(arrays, metadata={"chemscale": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LikenessModel:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        StoreError
            No such file, or not one of chemscale.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), "np") as file:
                header = json.loads((file.metadata() or {}).get("chemscale", "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, ValueError) as err:
            raise StoreError(f"{path}: {err}", "give a file that `chemscale rsca export` wrote") from None
        if header.get("format") != FORMAT:
            raise StoreError(f"{path} is no likeness model", "give a file that `chemscale rsca export` wrote")
        sets = {}
        for name in ("basis", "metric"):
            variables: dict[str, Any] = {}
            for v, dims in header[name]["dims"].items():
                values = arrays[f"{name}.{v}"]
                variables[v] = (dims, values if dims else values.reshape(()))
            sets[name] = xr.Dataset(variables, attrs=header[name]["attrs"])
        kind = AutoMetric if sets["metric"].attrs.get("model") == "committee" else RSCA
        return cls(
            MaskedPPCA.from_dataset(sets["basis"]),
            kind.from_dataset(sets["metric"]),
            int(header["n_features"]),
            arrays["centre"],
            arrays["precision"],
            float(header["limit"]),
            arrays["wavelength"],
            header["likeness"],
            tuple(header.get("cleaned", ())),
            str(header.get("medium", "")),
        )

    def probability(self, distance: Any, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chance of pairs at a distance of features to be siblings, with its 16th and 84th percentile."""
        if "model" not in self.likeness or self.likeness["n_features"] != self.n_features:
            raise InputError(
                "the model does not know how likely siblings are at a distance", "run `chemscale rsca evaluate` first"
            )
        return Likeness.from_json(self.likeness).probability(distance, prior)


def open_model(source: str | os.PathLike[str], metric: str = "best") -> LikenessModel:
    """The model of a run directory, or of a file that ``rsca export`` wrote."""
    return LikenessModel.load(source) if Path(source).is_file() else LikenessModel.of_run(Run.open(source), metric)


@contextmanager
def spectra(source: str) -> Iterator[xr.Dataset]:
    """A survey store, or a table of spectra (NPZ, FITS, HDF5) read into a store that is removed afterwards.

    What of a table is left out, and what it does not say and is taken for granted, is logged.
    """
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.sources.base import by_reason
    from chemscale.survey.sources.table import TableSource
    from chemscale.survey.store.open import open_survey

    if not Path(source).is_file():
        yield open_survey(source)
        return
    with tempfile.TemporaryDirectory(prefix="chemscale-") as folder:
        store = os.path.join(folder, "survey.zarr")
        summary = ingest(TableSource(source), store)
        for reason, n in by_reason([r.reason for r in summary.rejected]).items():
            logger.warning("%s: %d of its spectra left out: %s", source, n, reason)
        for what in summary.assumed:
            logger.warning("%s: assumed: %s", source, what)
        yield open_survey(store)


def _labels(survey: xr.Dataset, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    out = {}
    for name in names:
        if name.startswith(ABUNDANCE) and "abundance" in survey:
            known = [str(e) for e in survey["element"].values]
            element = name.removeprefix(ABUNDANCE)
            if element in known:
                out[name] = np.asarray(survey["abundance"].values, dtype=np.float64)[:, known.index(element)]
        elif name in survey.variables:
            out[name] = np.asarray(survey[name].values, dtype=np.float64)
    return out


def _mahalanobis(coords: np.ndarray, centre: np.ndarray, precision: np.ndarray) -> np.ndarray:
    x = coords - centre
    return np.sqrt(np.einsum("ij,ij->i", x @ precision, x))


def _computed(coords: Any, progress: Callable[[int], None] | None) -> np.ndarray:
    """Coordinates (n, K) in memory, some blocks of stars at a time, so that there is something to tell."""
    if not isinstance(coords, da.Array):
        return np.asarray(coords, dtype=np.float64)
    edges = np.cumsum([0, *coords.chunks[0]])
    at_once = max(4 * (os.cpu_count() or 1), -(-len(edges) // MOST_STEPS))
    bounds = [*edges[:-1:at_once], edges[-1]]
    out = np.empty(coords.shape)
    for start, stop in pairwise(bounds):
        out[start:stop] = coords[start:stop].compute()
        if progress:
            progress(int(stop - start))
    return out


def _grid(run: Run) -> tuple[np.ndarray, str]:
    """Wavelengths (P,) of a run's survey, and their medium."""
    from chemscale.survey.store.open import open_survey

    wave = open_survey(run.store)["wavelength"]
    return np.asarray(wave.values, dtype=np.float64), str(wave.attrs.get("medium", ""))
