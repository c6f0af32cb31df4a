"""The doppelganger rates of one metric, cluster by cluster: what an evaluation hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from chemscale.display import Shown, table


@dataclass(frozen=True, repr=False)
class DoppelgangerRates(Shown):
    """Doppelganger rates of one metric.

    Attributes
    ----------
    overall : float
        Mean of the clusters' rates, weighted by their number of members.
    per_cluster : dict of str to float
        NaN for a cluster none of whose pairs passes the cuts; `overall` leaves it out.
    n_members, n_pairs : dict of str to int
        Members of a cluster, and (member, field) pairs that passed the cuts.
    median_distance : dict of str to float
        Median distance of the member pairs: the threshold.
    method : str
    n_features : int or None
    leave_one_out : bool
    """

    overall: float
    per_cluster: dict[str, float]
    n_members: dict[str, int] = field(default_factory=dict)
    n_pairs: dict[str, int] = field(default_factory=dict)
    median_distance: dict[str, float] = field(default_factory=dict)
    method: str = ""
    n_features: int | None = None
    leave_one_out: bool = True

    def _title(self) -> str:
        return f"doppelganger rates, {self.method}" if self.method else "doppelganger rates"

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"overall": round(self.overall, 4), "clusters": len(self.per_cluster)}
        if self.n_features is not None:
            facts["features"] = self.n_features
        return facts | {"leave-one-cluster-out": self.leave_one_out}

    def _details(self) -> str:
        names = sorted(self.per_cluster, key=lambda c: -self.n_members.get(c, 0))
        rows = [[c, self.n_members.get(c, "–"), f"{self.per_cluster[c]:.4f}"] for c in names]
        return table(rows, ("cluster", "members", "rate"))

    def to_dataset(self) -> xr.Dataset:
        """Rates, members, pairs and threshold of every cluster as a Dataset (cluster,); `overall` as an attribute."""
        names = list(self.per_cluster)
        columns: dict[str, tuple[Mapping[str, Any], str]] = {
            "rate": (self.per_cluster, "share of compared field pairs that look as alike as siblings"),
            "n_members": (self.n_members, "members of the cluster"),
            "n_pairs": (self.n_pairs, "pairs of a member and a field star that passed the cuts"),
            "median_distance": (self.median_distance, "median distance of the member pairs, the threshold"),
        }
        variables = {
            name: ("cluster", [values[c] for c in names], {"long_name": meaning})
            for name, (values, meaning) in columns.items()
            if all(c in values for c in names)
        }
        attrs = {"overall": self.overall, "method": self.method, "leave_one_out": int(self.leave_one_out)}
        return xr.Dataset(variables, coords={"cluster": names}, attrs=attrs)
