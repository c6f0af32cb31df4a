"""The chemically nearest stars among millions: exact search, one star at a time or all of them.

Features are a few float32 numbers a star (10^6 stars x 30: 120 MB), kept in memory by :class:`SiblingIndex`.
One star costs one pass over them (a matrix-vector product); all stars against all cost matrix products between the
leaves of a tree. Both are exact: the nearest few found in float32 are ranked again by float64 differences.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.rsca.likeness import sibling_probability
from chemscale.rsca.stars import Stars, text
from chemscale.runtime.run import Run

#: Stars ranked again in float64 beyond the number asked for: float32 rounding moves ties by far less.
SPARE = 64
#: Stars scored at a time in the search for one star.
SCAN = 32_768
#: Stars of a leaf of the tree that the all-stars search prunes with.
LEAF = 1024
#: Covariates shown beside a sibling, where the run has them.
COVARIATES = ("cluster", "role", "teff", "logg", "fe_h", "alpha_m", "snr", "radial_velocity", "extinction", "ra", "dec")


@dataclass
class SiblingIndex:
    """Features of all stars of a survey, in memory, for exact nearest-neighbour search.

    Attributes
    ----------
    features : (n, d) float32, C order
        NaN rows (stars without a valid spectrum) are never returned.
    star_id : (n,) array of str
    """

    features: np.ndarray
    star_id: np.ndarray

    def __post_init__(self) -> None:
        self.features = np.ascontiguousarray(self.features, dtype=np.float32)
        self._half = 0.5 * np.einsum("ij,ij->i", self.features, self.features)
        self._bad = ~np.isfinite(self._half)
        if self._bad.any():
            self.features = np.where(self._bad[:, None], np.float32(0), self.features)
        self._half[self._bad] = np.inf
        self._row: dict[str, int] | None = None

    def row_of(self, star_id: str) -> int:
        """Row of a star.

        Raises
        ------
        InputError
            No such star; the message suggests similar identifiers.
        """
        if self._row is None:
            self._row = {str(s): i for i, s in enumerate(self.star_id)}
        if star_id in self._row:
            return self._row[star_id]
        near = close_names(star_id, self.star_id)
        hint = f"did you mean {', '.join(near)}?" if near else "`chemscale info STORE` shows some identifiers"
        raise InputError(f"no star {star_id!r} among the {len(self.star_id):,} of this run", hint)

    def nearest(self, row: int, n: int = 20, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `n` stars nearest to star `row` (itself left out): rows and distances, nearest first.

        Parameters
        ----------
        row : int
        n : int
        allowed : (n_stars,) bool, optional
            Stars that may be returned.
        """
        if self._bad[row]:
            raise InputError(f"star {self.star_id[row]} has no valid spectrum", "choose another star")
        want = min(n + SPARE, len(self._half))
        found, worst = np.empty(0, dtype=np.int64), np.inf
        best = np.empty(0, dtype=np.float32)
        for start in range(0, len(self._half), SCAN):  # a block and its scores stay in cache
            stop = start + SCAN
            score = self._half[start:stop] - self.features[start:stop] @ self.features[row]
            near = score < worst
            if allowed is not None:
                near &= allowed[start:stop]
            hits = np.flatnonzero(near)
            if not len(hits):
                continue
            found, best = np.concatenate([found, hits + start]), np.concatenate([best, score[hits]])
            if len(found) > want:
                pick = np.argpartition(best, want - 1)[:want]
                found, best = found[pick], best[pick]
                worst = best.max()
        found = found[found != row]
        delta = self.features[found].astype(np.float64) - self.features[row].astype(np.float64)
        distance = np.sqrt(np.einsum("ij,ij->i", delta, delta))
        order = np.lexsort((found, distance))[:n]
        return found[order], distance[order]

    def all_nearest(
        self, k: int = 10, *, method: str = "exact", leaf: int = LEAF, rows: slice | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest stars of every star: rows (m, k) int64 and distances (m, k) float32; -1 and inf = none.

        Stars are sorted into leaves of a k-d tree; a leaf's stars meet the other leaves, nearest bounding box first,
        in matrix products, until no box can hold anything nearer than what was found. Exact.

        Parameters
        ----------
        k : int
        method : {"exact", "faiss"}
            The above, or faiss's exact flat index (extra ``index``): same answer, other speed.
        leaf : int
            Stars of a leaf.
        rows : slice, optional
            Stars to find neighbours of (all by default).
        """
        if method not in ("exact", "faiss"):
            raise InputError(f"unknown method {method!r}", "use 'exact' or 'faiss'")
        start, stop, _ = (rows or slice(None)).indices(len(self.features))
        found = self._faiss(k, start, stop) if method == "faiss" else self._tree_search(k, start, stop, leaf)
        return self._ranked(found, start, k)

    def _tree_search(self, k: int, start: int, stop: int, leaf: int) -> np.ndarray:
        good = np.flatnonzero(~self._bad)
        keep = min(k + 4, max(len(good) - 1, 1))
        who = np.full((stop - start, keep), -1, dtype=np.int64)
        leaves = _leaves(self.features, good, leaf)
        if not leaves:
            return who
        order = np.concatenate(leaves)
        edges = np.cumsum([0, *map(len, leaves)])
        sorted_features, half = self.features[order], self._half[order]
        low = np.stack([self.features[x].min(axis=0) for x in leaves])
        high = np.stack([self.features[x].max(axis=0) for x in leaves])
        for home, members in enumerate(leaves):
            asked = members[(members >= start) & (members < stop)]
            if not len(asked):
                continue
            x = self.features[asked]
            own = np.einsum("ij,ij->i", x, x)
            gap = np.maximum(np.maximum(low - high[home], low[home] - high), 0)
            bound = np.einsum("ij,ij->i", gap, gap)
            bound[home] = -1.0
            visit = np.argsort(bound, kind="stable")
            best = np.full((len(x), keep), np.inf, dtype=np.float32)
            ids = np.full((len(x), keep), -1, dtype=np.int64)
            for other in visit:
                # best holds |y|^2 / 2 - x.y; twice that plus |x|^2 is the squared distance
                reach = (2 * best.max(axis=1) + own).max()
                if bound[other] > reach * (1 + 1e-5):
                    break
                part = slice(edges[other], edges[other + 1])
                score = half[part] - x @ sorted_features[part].T
                if other == home:
                    score[order[part][None, :] == asked[:, None]] = np.inf
                _merge(best, ids, score, order[part])
            who[asked - start] = ids
        return who

    def _faiss(self, k: int, start: int, stop: int) -> np.ndarray:
        try:
            import faiss
        except ImportError:
            raise InputError(
                "faiss is not installed", "pip install 'chemscale[index]', or use method='exact'"
            ) from None
        good = np.flatnonzero(~self._bad)
        index = faiss.IndexFlatL2(self.features.shape[1])
        index.add(self.features[good])
        _, found = index.search(self.features[start:stop], min(k + 5, len(good)))
        found = np.where(found >= 0, good[found], -1)
        found[found == np.arange(start, stop)[:, None]] = -1
        return found

    def _ranked(self, found: np.ndarray, start: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact distances of the candidates, sorted; the first `k`."""
        rows = np.full((len(found), k), -1, dtype=np.int64)
        distances = np.full((len(found), k), np.inf, dtype=np.float32)
        for i in range(0, len(found), 4096):
            ids = found[i : i + 4096]
            mine = self.features[start + i : start + i + len(ids)].astype(np.float64)
            delta = self.features[ids].astype(np.float64) - mine[:, None, :]
            d = np.sqrt(np.einsum("ijk,ijk->ij", delta, delta))
            d[(ids < 0) | self._bad[start + i : start + i + len(ids)][:, None]] = np.inf
            order = np.lexsort((ids, d), axis=1)[:, :k]  # equal distances: by row
            width = order.shape[1]
            distances[i : i + len(ids), :width] = np.take_along_axis(d, order, axis=1)
            rows[i : i + len(ids), :width] = np.take_along_axis(ids, order, axis=1)
        rows[~np.isfinite(distances)] = -1
        return rows, distances


def _leaves(features: np.ndarray, rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Split `rows` at the median of the widest feature until a part holds at most `size` of them."""
    stack, out = [rows], []
    while stack:
        part = stack.pop()
        if len(part) <= size:
            if len(part):
                out.append(np.sort(part))
            continue
        sample = features[part[:: max(1, len(part) // 4096)]]
        axis = int(np.argmax(sample.var(axis=0)))
        half = len(part) // 2
        split = np.argpartition(features[part, axis], half)
        stack += [part[split[half:]], part[split[:half]]]
    return out


def _merge(best: np.ndarray, ids: np.ndarray, score: np.ndarray, columns: np.ndarray) -> None:
    """Put the scores under the worst kept of each row into `best` and `ids` (in place)."""
    keep = best.shape[1]
    hit = np.flatnonzero(score < best.max(axis=1)[:, None])
    if not len(hit):
        return
    i, j = np.divmod(hit, score.shape[1])
    per_row = np.bincount(i, minlength=len(best))
    width = int(per_row.max())
    if width > max(4 * keep, 64) and len(hit) > score.size // 8:  # the first tile: nearly everything is new
        take = min(keep, score.shape[1])
        part = np.argpartition(score, take - 1, axis=1)[:, :take]
        new, new_ids, touched = np.take_along_axis(score, part, axis=1), columns[part], np.arange(len(best))
    else:
        touched = np.flatnonzero(per_row)
        place = np.arange(len(hit)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
        slot = np.cumsum(per_row > 0)[i] - 1
        new = np.full((len(touched), width), np.inf, dtype=np.float32)
        new_ids = np.full((len(touched), width), -1, dtype=np.int64)
        new[slot, place], new_ids[slot, place] = score.ravel()[hit], columns[j]
    pool = np.concatenate([best[touched], new], axis=1)
    pool_ids = np.concatenate([ids[touched], new_ids], axis=1)
    pick = np.argpartition(pool, keep - 1, axis=1)[:, :keep]
    best[touched] = np.take_along_axis(pool, pick, axis=1)
    ids[touched] = np.take_along_axis(pool_ids, pick, axis=1)


def close_names(name: str, known: np.ndarray, n: int = 3) -> list[str]:
    """Identifiers similar to `name`: same ending or beginning, or few edits (tried on at most 20,000 of them)."""
    ids = [str(s) for s in known]
    text = name.strip().lower()
    hits = [s for s in ids if text and (text in s.lower() or s.lower() in text)][:n]
    if len(hits) < n:
        stem = [s for s in ids if s[:4].lower() == text[:4]]
        pool = (stem or ids)[:20_000]
        hits += [s for s in difflib.get_close_matches(name, pool, n=n, cutoff=0.6) if s not in hits]
    return hits[:n]


@dataclass
class SiblingSearch:
    """A run opened for searches: features under one metric, covariates and calibration; keep it for many queries."""

    index: SiblingIndex
    stars: Stars
    metric: str
    n_features: int
    log_amplitude: float | None
    calibration: tuple[float, float] | None = None

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
        from chemscale.rsca.pipeline import auto_features, load_auto, load_metric

        run = Run.open(run_path)
        if metric not in ("best", "paper", "auto"):
            raise InputError(f"unknown metric {metric!r}", "choose best, paper or auto")
        if metric == "best":
            metric = "auto" if run.has("auto.zarr") else "paper"
        stars = Stars.read(run, "embedding_auto.zarr" if metric == "auto" else "embedding.zarr", max_field=1)
        coords = stars.embedding["coords"].data
        amplitude: float | None = None
        parts, start = [], 0
        if metric == "paper":
            fitted = load_metric(run)
            n_features = min(n_features or 3, len(fitted.scale_))
            amplitude = fitted.log_amplitude(n_features)
        else:
            auto, transports = load_auto(run)
            if n_features is not None and not 1 <= n_features <= auto.matrix.shape[1]:
                raise InputError(f"n_features is {n_features}", f"choose between 1 and {auto.matrix.shape[1]}")
        for block in coords.to_delayed().ravel():
            z = np.asarray(block.compute(), dtype=np.float64)
            rows = np.arange(start, start + len(z))
            if metric == "paper":
                parts.append(fitted.transform(z, n_features).astype(np.float32))
            else:
                parts.append(auto_features(auto, transports, z, stars, rows, n_features).astype(np.float32))
            start += len(z)
        features = np.concatenate(parts)
        index = SiblingIndex(features, text(stars.embedding["star_id"]))
        found = run.load_json("evaluation.json").get("likeness") if run.has("evaluation.json") else None
        calibration = None
        if metric == "paper" and found and found["n_features"] == features.shape[1]:
            calibration = (float(found["slope"]), float(found["intercept"]))
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
        slope, intercept = self.calibration
        return sibling_probability(intercept + slope * (self.log_amplitude - distance**2 / 4), prior)

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
                raise InputError(f"no star of this run has {name!r}", "cut on a label the survey has")
            ok = (values >= low) & (values <= high)
            allowed = ok if allowed is None else allowed & ok
        return allowed


@lru_cache(maxsize=2)
def _opened(path: str, stamp: float, metric: str, n_features: int | None) -> SiblingSearch:
    return SiblingSearch.open(path, metric=metric, n_features=n_features)


def siblings(
    star_id: str,
    run: str | os.PathLike[str],
    n: int = 20,
    *,
    metric: str = "best",
    n_features: int | None = None,
    max_delta_velocity: float | None = None,
    max_delta_extinction: float | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    prior: float | None = None,
) -> xr.Dataset:
    """The stars of a survey chemically nearest to one star: exact, among all stars of the run.

    The first call on a run loads its features (one pass over the embedding); later ones cost one product over them.

    Parameters
    ----------
    star_id : str
    run : path
        Run directory of ``chemscale rsca fit``.
    n : int
        How many.
    metric : {"best", "paper", "auto"}
    n_features : int, optional
        Dimensions kept.
    max_delta_velocity, max_delta_extinction : float, optional
        Only stars this close in radial velocity (km/s) and extinction (mag).
    limits : mapping of str to (low, high), optional
        Only stars with labels in these ranges, e.g. ``{"teff": (4400, 4800)}``.
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
    manifest = os.path.join(os.fspath(run), "manifest.json")
    stamp = os.path.getmtime(manifest) if os.path.exists(manifest) else 0.0
    search = _opened(os.path.abspath(os.fspath(run)), stamp, metric, n_features)
    return search.siblings(
        star_id,
        n,
        max_delta_velocity=max_delta_velocity,
        max_delta_extinction=max_delta_extinction,
        limits=limits,
        prior=prior,
    )


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
