"""Features of a run's stars under its recommended metric, with their errors, a block of stars at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.errors import StoreError
from chemscale.rsca.auto import AutoMetric
from chemscale.rsca.auto_run import auto_features, load_auto
from chemscale.rsca.metric import RSCA
from chemscale.rsca.pipeline import load_metric
from chemscale.rsca.siblings import recommended
from chemscale.rsca.stars import FIT_COMMAND, RunStars, text
from chemscale.runtime.run import Run


@dataclass
class RunFeatures:
    """The features that a run tells stars apart with.

    Attributes
    ----------
    metric : {"paper", "auto"}
        The metric they are of: what ``chemscale rsca evaluate`` recommends.
    stars : RunStars
        Of the embedding that the metric reads.
    fitted : RSCA or AutoMetric
    titles : list of str
        What each feature is, most telling first.
    """

    metric: str
    stars: RunStars
    fitted: RSCA | AutoMetric
    titles: list[str]

    @classmethod
    def of_run(cls, run: Run, *, most: int | None = None, metric: str = "best") -> RunFeatures:
        """The features of a run.

        Parameters
        ----------
        run : Run
        most : int, optional
            Features at most; by default those that tell clusters apart.
        metric : {"best", "paper", "auto"}

        Raises
        ------
        StoreError
            The run has no metric.
        """
        if not run.has("rsca.zarr") and not run.has("auto.zarr"):
            raise StoreError(f"{run.path} has no metric", FIT_COMMAND)
        name = str(recommended(run)["metric"]) if metric == "best" else metric
        if name == "auto":
            stars = RunStars.read(run, "embedding_auto.zarr", max_field=1)
            auto, _ = load_auto(run)
            n = auto.matrix.shape[1] if most is None else min(most, auto.matrix.shape[1])
            return cls(name, stars, auto, [f"feature {k + 1} of the searched metric" for k in range(n)])
        stars = RunStars.read(run, max_field=1)
        rsca = load_metric(run)
        n = int(np.sum(rsca.scale_ > 0)) if most is None else min(most, len(rsca.scale_))
        told = "RSCA feature {}; scatter in clusters over that in the field: {:.2f}"
        return cls("paper", stars, rsca, [told.format(k + 1, rsca.sigma_clust_[k]) for k in range(n)])

    @property
    def star_id(self) -> np.ndarray:
        """Identifiers of all stars, (n_stars,)."""
        return text(self.stars.embedding["star_id"])

    def _block(self, name: str, start: int, stop: int) -> np.ndarray:
        values = self.stars.embedding[name].isel(star=slice(start, stop)).values
        return np.asarray(values, dtype=np.float64)

    def values(self, start: int, stop: int) -> np.ndarray:
        """Features of a block of stars, (stop - start, n), float32."""
        coords = self._block("coords", start, stop)
        if isinstance(self.fitted, AutoMetric):
            found: Any = auto_features(
                self.fitted, self.fitted.detrendings, coords, self.stars, np.arange(start, stop), len(self.titles)
            )
        else:
            found = (coords - self.fitted.mean_) @ self.fitted.matrix(len(self.titles))
        return np.asarray(found, dtype=np.float32)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Features of chosen stars (increasing rows), (len(rows), n): each chunk that holds one is read once."""
        sizes = self.stars.embedding["coords"].data.chunks[0]
        out, start = [np.empty((0, len(self.titles)), np.float32)], 0
        for size in sizes:
            inside = rows[(rows >= start) & (rows < start + size)]
            if len(inside):
                out.append(self.values(start, start + size)[inside - start])
            start += size
        return np.concatenate(out)

    def errors(self, start: int, stop: int) -> np.ndarray:
        """Their errors, from those of the coordinates alone: labels that a metric detrends with count as exact."""
        n = len(self.titles)
        fitted = self.fitted
        if isinstance(fitted, AutoMetric):
            k = fitted.k
            matrix = np.asarray(fitted.matrix)[:, :n].reshape(-1, k, n).sum(axis=0)  # each form moves as they do
        else:
            matrix = fitted.matrix(n)
            k = len(matrix)
        variance = self._block("coords_variance", start, stop)[:, :k]
        return np.sqrt(variance @ matrix**2).astype(np.float32)
