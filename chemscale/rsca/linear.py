"""What every linear metric shares: checks of its input, the map to features, storage, scikit-learn's contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from chemscale.display import Shown
from chemscale.errors import InputError
from chemscale.labelled import groups, like, plain
from chemscale.rsca.moments import FieldMoments, check_members, field_moments
from chemscale.rsca.scales import check_n_features
from chemscale.statistics.ppca import NotFitted


class LinearMetric(Shown, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A linear map of coordinates to features; the Euclidean distance of features tells how alike two stars are.

    A metric of one's own is a class with the names below, a method `_learn(moments, members, clusters)` that sets
    trailing-underscore attributes, and a method `_map(n)` that gives the (K, n) matrix of the `n` most telling
    features; and one line in :mod:`chemscale.rsca.registry`. Rates, tables, figures, the report and the command line
    then know it. It may state in `stored` which attributes a file keeps.

    Attributes
    ----------
    name : str
        What the user types.
    title : str
        How tables and the report call it.
    short_title : str
        The same where room is short.
    legend : str
        How the legend of Figure 4 calls it.
    stored : dict of str to (dims, meaning)
        Fitted attributes, without the underscore, that :meth:`to_dataset` writes; `mean` is always among them.
    mean_ : (K,)
        Field mean that :meth:`transform` subtracts.
    n_features_in_ : int
        K.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    short_title: ClassVar[str]
    legend: ClassVar[str]
    stored: ClassVar[dict[str, tuple[tuple[str, ...], str]]] = {}

    mean_: np.ndarray
    n_features_in_: int

    def __init__(self, n_features: int | None = None):
        self.n_features = n_features

    def _learn(self, moments: FieldMoments, members: np.ndarray, clusters: np.ndarray) -> None:
        """Fit to the field's moments and checked members (n, K) with cluster names (n,); `mean_` is set already."""
        raise NotImplementedError

    def _map(self, n: int) -> np.ndarray:
        """The linear map (K, n) from coordinates less `mean_` to the `n` most telling features."""
        raise NotImplementedError

    def fit(self, field: Any, members: Any = None, clusters: Sequence[str] | np.ndarray | None = None) -> Self:
        """Learn the metric.

        Parameters
        ----------
        field : array, dask array, DataArray or FieldMoments, shape (n_field, K); or an embedding Dataset
            Coordinates of field stars (one pass, out of core for dask). An embedding
            (:func:`chemscale.open_embedding`) brings its own members and clusters.
        members : array, shape (n_members, K)
            Coordinates of cluster members. Without `clusters`: the cluster of each row of `field`, '' for field stars,
            as scikit-learn's pipelines pass a target.
        clusters : sequence of str, length n_members
            Cluster of each member.

        Raises
        ------
        InputError, DataError
            Shapes that do not match; no field stars, no members, clusters of one member, fewer field stars than
            components, fewer within-cluster degrees of freedom than a scatter needs.
        """
        if isinstance(field, xr.Dataset):
            field, members, clusters, _ = groups(field)
        elif clusters is None and members is not None and np.ndim(members) == 1:
            field, members, clusters = by_name(plain(field), members)
        if members is None or clusters is None:
            raise InputError("there are no members or cluster names", "pass both, or an embedding alone")
        moments = field_moments(plain(field))
        x, names = check_members(plain(members), plain(clusters))
        if x.shape[1] != len(moments.mean):
            raise InputError(
                f"members have {x.shape[1]} components, field stars {len(moments.mean)}",
                "transform both with the same basis",
            )
        if self.n_features is not None:
            check_n_features(self.n_features, x.shape[1])
        self.mean_ = moments.mean
        self.n_features_in_ = x.shape[1]
        self._learn(moments, x, names)
        return self

    def matrix(self, n_features: int | None = None) -> np.ndarray:
        """The linear map (K, n_features) from coordinates less `mean_` to features."""
        self._check_fitted()
        return self._map(check_n_features(self.n_features if n_features is None else n_features, self.n_features_in_))

    def transform(self, coords: Any, n_features: int | None = None) -> Any:
        """Features (n, n_features) of coordinates (n, K); lazy for dask input.

        Parameters
        ----------
        coords : array, dask array or DataArray, shape (n, K); or an embedding Dataset
        n_features : int, optional
            Keep the most telling features only; by default as many as the estimator was made with.

        Returns
        -------
        array, dask array or DataArray (star, feature)
            Of the kind of `coords`; a DataArray for an embedding.
        """
        self._check_fitted()
        given = plain(coords["coords"] if isinstance(coords, xr.Dataset) else coords)
        given = given if hasattr(given, "shape") else np.asarray(given, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != self.n_features_in_:
            raise InputError(
                f"coordinates have shape {given.shape}, the metric is on {self.n_features_in_} components",
                "transform the spectra with the basis that the metric was fitted on",
            )
        return like((given - self.mean_) @ self.matrix(n_features), coords, "feature", "features")

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ if self.n_features is None else self.n_features

    def _check_fitted(self) -> None:
        if not hasattr(self, "mean_"):
            raise NotFitted(f"this {type(self).__name__} has not been fitted", "call fit first")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True  # clusters
        return tags

    def _facts(self) -> dict[str, Any]:
        if not hasattr(self, "mean_"):
            return {"fitted": False}
        return {"coordinates": self.n_features_in_}

    def to_dataset(self) -> xr.Dataset:
        """The fitted metric as a Dataset (dims component, feature), for :meth:`from_dataset`."""
        self._check_fitted()
        variables = {
            name: (dims, np.asarray(getattr(self, f"{name}_")), {"long_name": meaning} if meaning else {})
            for name, (dims, meaning) in {"mean": _MEAN, **self.stored}.items()
        }
        counts = {n: int(getattr(self, f"{n}_")) for n in _COUNTS if hasattr(self, f"{n}_")}
        attrs: dict[str, Any] = {"model": type(self).__name__, **counts}
        if self.n_features is not None:
            attrs["n_features"] = int(self.n_features)
        return xr.Dataset(variables, attrs=attrs)

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> Self:
        """Metric written by :meth:`to_dataset`.

        Raises
        ------
        InputError
            The Dataset holds something else.
        """
        if ds.attrs.get("model") != cls.__name__:
            raise InputError(f"the dataset does not hold a {cls.__name__} metric", f"pass what {cls.__name__} gave")
        out = cls(ds.attrs.get("n_features"))
        for name in ("mean", *cls.stored):
            values = np.asarray(ds[name].values)
            setattr(out, f"{name}_", values.astype(np.float64) if values.dtype.kind == "f" else values)
        for name in _COUNTS:
            if name in ds.attrs:
                setattr(out, f"{name}_", int(ds.attrs[name]))
        out.n_features_in_ = len(out.mean_)
        return out


_MEAN = (("component",), "mean of the field coordinates")
_COUNTS = ("n_field", "n_members", "n_clusters")


def by_name(coords: Any, names: Any) -> tuple[Any, Any, np.ndarray]:
    """Field, members and clusters of stars (n, K) with a cluster name each, '' for field stars."""
    clusters = np.asarray(plain(names)).astype(str)
    coords = coords if hasattr(coords, "shape") else np.asarray(coords)
    if len(clusters) != len(coords):
        raise InputError(f"{len(clusters)} cluster names for {len(coords)} stars", "pass one name a star, '' for field")
    is_field = clusters == ""
    return coords[is_field], coords[~is_field], clusters[~is_field]
