"""What a metric is fitted on: moments of the field (one pass, out of core), and members whose clusters are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from dask import compute, delayed

from chemscale.display import counted
from chemscale.errors import DataError, InputError
from chemscale.statistics.moments import block_scatter, combine_scatter


@dataclass(frozen=True)
class FieldMoments:
    """Number, mean (K,) and covariance (K, K) of field coordinates: all RSCA needs of the field.

    `noise` is the mean measurement covariance (K, K) of the members' coordinates, where that is known.
    """

    n: int
    mean: np.ndarray
    covariance: np.ndarray
    noise: np.ndarray | None = None

    @cached_property
    def principal(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (K,) and eigenvectors (K, K) of the covariance, the largest first; found once."""
        values, axes = np.linalg.eigh(self.covariance)
        return values[::-1], axes[:, ::-1]

    def leading(self, k: int) -> FieldMoments:
        """Moments of the first `k` coordinates."""
        noise = None if self.noise is None else self.noise[:k, :k]
        return FieldMoments(self.n, self.mean[:k], self.covariance[:k, :k], noise)


def field_blocks(field: Any) -> list[Any]:
    """Row blocks of a NumPy array (one view each 65,536 rows) or of a dask array (one delayed block each chunk)."""
    if isinstance(field, da.Array):
        return list(field.rechunk({1: -1}).to_delayed().ravel())
    return [field[i : i + 65536] for i in range(0, len(field), 65536)]


def field_moments(field: Any) -> FieldMoments:
    """Mean and covariance of field coordinates.

    Parameters
    ----------
    field : array-like, dask array or FieldMoments, shape (n_field, K)
        Coordinates. One pass over the data; only K x K sums leave a block.

    Raises
    ------
    DataError
        No stars, or coordinates that are not finite.
    """
    if isinstance(field, FieldMoments):
        return field
    if not isinstance(field, da.Array):
        field = np.asarray(field)
    if field.ndim != 2:
        raise InputError(f"field coordinates have shape {field.shape}", "pass an array of shape (stars, components)")
    if field.shape[0] == 0:
        raise DataError("there are no field stars", "check the sample cuts: `chemscale info STORE` lists the stars")
    blocks = field_blocks(field)
    if isinstance(field, da.Array):
        parts = [delayed(block_scatter)(b) for b in blocks]
        while len(parts) > 1:  # a tree, so that no one task waits for all blocks
            parts = [delayed(combine_scatter)(*parts[i : i + 16]) for i in range(0, len(parts), 16)]
        total = compute(parts[0])[0]
    else:
        total = combine_scatter(*map(block_scatter, blocks))
    if bad := int(total["incomplete"]):
        raise DataError(
            f"{bad} field star(s) have coordinates that are not finite", "drop stars without a valid spectrum"
        )
    n = int(total["count"][0])
    return FieldMoments(n, total["mean"], total["scatter"] / max(n - 1, 1))


def check_members(members: Any, clusters: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members as float64 (n, K) and cluster names (n,), or a clear error.

    Raises
    ------
    InputError
        Lengths or shapes that do not match, or a member without a cluster name.
    DataError
        No members, a cluster with a single member, or coordinates that are not finite.
    """
    x = np.asarray(members.compute() if isinstance(members, da.Array) else members, dtype=np.float64)
    names = np.asarray(clusters).astype(str)
    if x.ndim != 2 or names.ndim != 1 or len(names) != len(x):
        raise InputError(
            f"members have shape {x.shape} but there are {names.shape} cluster names",
            "pass one cluster name per member and members as (stars, components)",
        )
    if len(x) == 0:
        raise DataError("there are no cluster members", "a metric is learned from stars with a `cluster` name")
    if np.any(names == ""):
        raise InputError(f"{int(np.sum(names == ''))} member(s) have no cluster name", "pass field stars as `field`")
    unique, counts = np.unique(names, return_counts=True)
    if np.any(counts < 2):
        raise DataError(
            f"cluster(s) with a single member: {', '.join(unique[counts < 2])}",
            "a cluster needs two members to form a pair: leave these out",
        )
    bad = ~np.all(np.isfinite(x), axis=1)
    if np.any(bad):
        raise DataError(f"{int(bad.sum())} member(s) have coordinates that are not finite", "leave these stars out")
    return x, names


def check_freedom(names: np.ndarray, k: int) -> None:
    """Refuse `k` components where the clusters leave fewer degrees of freedom (members less clusters)."""
    n_clusters = len(np.unique(names))
    freedom = len(names) - n_clusters
    if freedom < k:
        raise DataError(
            f"{k} components, but {len(names)} members of {counted(n_clusters, 'cluster')} leave only {freedom} "
            "degrees of freedom",
            f"use at most {counted(freedom, 'component')} or add members",
        )
