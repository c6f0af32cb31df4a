"""Exact nearest neighbours among the features of millions of stars: of one star, or of all of them.

Features are a few float32 numbers a star (10^6 stars x 30: 120 MB), kept in memory by :class:`SiblingIndex`.
One star costs one pass over them (a matrix-vector product); all stars against all cost matrix products between the
leaves of a tree. Both are exact: candidates are found in float32, about the mean of all stars, and ranked again by
float64 differences; where rounding could have hidden a nearer star, the search is made again in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.suggest import close_names

#: Stars ranked again in float64 beyond the number asked for: float32 rounding moves ties by far less.
SPARE = 64
#: Stars scored at a time in the search for one star.
SCAN = 32_768
#: Searches for the neighbours of all stars.
METHODS = ("exact", "faiss", "approximate")
#: Cells that the approximate search looks into.
PROBES = 24
#: Rounding of float32.
EPS = float(np.finfo(np.float32).eps)
#: Stars of a leaf of the tree that the all-stars search prunes with.
LEAF = 1024


@dataclass
class SiblingIndex:
    """Features of all stars of a survey, in memory, for exact nearest-neighbour search.

    Attributes
    ----------
    features : (n, d) float32 or float64
        Kept as float32, and as given for distances. NaN rows (stars without a valid spectrum) are never returned.
    star_id : (n,) array of str
    """

    features: np.ndarray
    star_id: np.ndarray

    def __post_init__(self) -> None:
        given = np.ascontiguousarray(self.features)
        if given.dtype not in (np.float32, np.float64):
            given = given.astype(np.float32)
        self._bad = ~np.isfinite(given).all(axis=1)
        if self._bad.any():
            given = np.where(self._bad[:, None], given.dtype.type(0), given)
        self._exact = given  # distances are those of the numbers given
        self.features = given.astype(np.float32, copy=False)
        # float32 products of coordinates far from zero would drown small distances
        self._centred = self.features
        if not self._bad.all():
            good = ~self._bad[:, None]
            origin, spread = (f(given, axis=0, dtype=np.float64, where=good) for f in (np.mean, np.std))
            if np.any(np.abs(origin) > spread):
                self._centred = (given - origin).astype(np.float32)
                self._centred[self._bad] = 0
        self._half = 0.5 * np.einsum("ij,ij->i", self._centred, self._centred)
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
        some = ", ".join(str(s) for s in self.star_id[:3])
        remedy = f"did you mean {', '.join(near)}?" if near else f"its identifiers look like {some}"
        raise InputError(f"no star {star_id!r} among the {len(self.star_id):,} of this run", remedy)

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
            score = self._half[start:stop] - self._centred[start:stop] @ self._centred[row]
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
        rows, distance = self._nearest_of(found[found != row], row, n)
        full = len(found) >= want
        if full and (not len(rows) or worst <= self._safe_score(row, distance[-1])):
            return self._nearest_in_float64(row, n, allowed)
        return rows, distance

    def within(self, row: int, radius: float, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """All stars at most `radius` from star `row`, as :meth:`nearest` gives them."""
        if self._bad[row]:
            raise InputError(f"star {self.star_id[row]} has no valid spectrum", "choose another star")
        found: list[tuple[np.ndarray, np.ndarray]] = []
        usable = ~self._bad if allowed is None else ~self._bad & allowed
        for start in range(0, len(usable), SCAN):
            inside = np.flatnonzero(usable[start : start + SCAN]) + start
            rows, distance = self._nearest_of(inside[inside != row], row, SCAN)
            found.append((rows[distance <= radius], distance[distance <= radius]))
        rows, distance = (np.concatenate(v) for v in zip(*found, strict=True))
        order = np.lexsort((rows, distance))
        return rows[order], distance[order]

    def _nearest_of(self, found: np.ndarray, row: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The `n` nearest of the rows `found`, by float64 differences."""
        delta = self._exact[found].astype(np.float64) - self._exact[row].astype(np.float64)
        distance = np.sqrt(np.einsum("ij,ij->i", delta, delta))
        order = np.lexsort((found, distance))[:n]
        return found[order], distance[order]

    def _safe_score(self, row: Any, distance: Any) -> Any:
        """Score in float32 that no star nearer than `distance` exceeds, rounding included.

        A star y at most D from x has a score ``|y|^2 / 2 - x.y <= (D^2 - |x|^2) / 2`` and ``|y| <= |x| + D``, which
        bounds the error of its float32 sum of d products (twice that, for a score that is computed in another order).
        """
        size = np.sqrt(2 * self._half[row].astype(np.float64))
        reach = size + distance
        error = 2 * (self.features.shape[1] + 6) * EPS * (reach * size + reach**2 / 2)
        return (distance**2 - size**2) / 2 + error

    def _nearest_in_float64(self, row: int, n: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`nearest`, by differences of all stars: slower, and needed only where stars crowd far out."""
        rows, distance = np.empty(0, dtype=np.int64), np.empty(0)
        usable = ~self._bad if allowed is None else ~self._bad & allowed
        for start in range(0, len(usable), SCAN):
            inside = np.flatnonzero(usable[start : start + SCAN]) + start
            near, d = self._nearest_of(inside[inside != row], row, n)
            rows, distance = np.concatenate([rows, near]), np.concatenate([distance, d])
            order = np.lexsort((rows, distance))[:n]
            rows, distance = rows[order], distance[order]
        return rows, distance

    def all_nearest(
        self, k: int = 10, *, method: str = "exact", leaf: int = LEAF, rows: slice | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest stars of every star: rows (m, k) int64 and distances (m, k) float32; -1 and inf = none.

        Stars are sorted into leaves of a k-d tree; a leaf's stars meet the other leaves, nearest bounding box first,
        in matrix products, until no box can hold anything nearer than what was found. Exact.

        Parameters
        ----------
        k : int
        method : {"exact", "faiss", "approximate"}
            The above; faiss's exact flat index (extra ``index``): same answer, other speed; or faiss's inverted lists
            (extra ``index``), which look into the :data:`PROBES` nearest of some thousand cells and miss a few.
        leaf : int
            Stars of a leaf.
        rows : slice, optional
            Stars to find neighbours of (all by default).
        """
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}", f"use {', '.join(METHODS)}")
        start, stop, _ = (rows or slice(None)).indices(len(self.features))
        if method == "exact":
            found = self._tree_search(k, start, stop, leaf)
        else:
            found = self._faiss(k, start, stop, flat=method == "faiss")
        nearest, distances = self._ranked(found, start, k)
        if method != "approximate":
            self._search_again(nearest, distances, found, start)
        return nearest, distances

    def _search_again(self, rows: np.ndarray, distances: np.ndarray, found: np.ndarray, start: int) -> None:
        """Put right, in place, the stars whose candidates `found` rounding may have chosen wrongly."""
        k, good = rows.shape[1], int(np.sum(~self._bad))
        if found.shape[1] >= good - 1:
            return  # every star was a candidate
        asked = np.arange(start, start + len(rows))
        usable = np.flatnonzero(~self._bad[asked])
        last = found[usable]
        edge = np.where(last >= 0, self._scores(asked[usable], last), -np.inf).max(axis=1)
        reached = distances[usable, -1].astype(np.float64)
        for i in usable[edge <= self._safe_score(asked[usable], reached)]:
            near, d = self._nearest_in_float64(int(asked[i]), k, None)
            rows[i, : len(near)], distances[i, : len(near)] = near, d

    def _scores(self, asked: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Scores ``|y|^2 / 2 - x.y`` (float32) of the rows `found` (n, m) for the rows `asked` (n,)."""
        out = np.empty(found.shape, dtype=np.float32)
        for i in range(0, len(found), 4096):
            y = self._centred[found[i : i + 4096]]
            x = self._centred[asked[i : i + 4096]]
            out[i : i + 4096] = self._half[found[i : i + 4096]] - np.einsum("ijk,ik->ij", y, x)
        return out

    def _tree_search(self, k: int, start: int, stop: int, leaf: int) -> np.ndarray:
        good = np.flatnonzero(~self._bad)
        keep = min(k + 4, max(len(good) - 1, 1))
        who = np.full((stop - start, keep), -1, dtype=np.int64)
        leaves = _leaves(self._centred, good, leaf)
        if not leaves:
            return who
        order = np.concatenate(leaves)
        edges = np.cumsum([0, *map(len, leaves)])
        sorted_features, half = self._centred[order], self._half[order]
        low = np.stack([self._centred[x].min(axis=0) for x in leaves])
        high = np.stack([self._centred[x].max(axis=0) for x in leaves])
        for home, members in enumerate(leaves):
            asked = members[(members >= start) & (members < stop)]
            if not len(asked):
                continue
            x = self._centred[asked]
            own = np.einsum("ij,ij->i", x, x)
            slack = 4 * (x.shape[1] + 6) * EPS * float(own.max())
            gap = np.maximum(np.maximum(low - high[home], low[home] - high), 0)
            bound = np.einsum("ij,ij->i", gap, gap)
            bound[home] = -1.0
            visit = np.argsort(bound, kind="stable")
            best = np.full((len(x), keep), np.inf, dtype=np.float32)
            ids = np.full((len(x), keep), -1, dtype=np.int64)
            for other in visit:
                # best holds |y|^2 / 2 - x.y; twice that plus |x|^2 is the squared distance
                reach = (2 * best.max(axis=1) + own).max()
                if bound[other] > reach * (1 + 1e-5) + slack:
                    break
                inside = slice(edges[other], edges[other + 1])
                score = half[inside] - x @ sorted_features[inside].T
                if other == home:
                    score[order[inside][None, :] == asked[:, None]] = np.inf
                _merge(best, ids, score, order[inside])
            who[asked - start] = ids
        return who

    def _faiss(self, k: int, start: int, stop: int, *, flat: bool) -> np.ndarray:
        try:
            import faiss
        except ImportError:
            raise InputError(
                "faiss is not installed", "pip install 'chemscale[index]', or use method='exact'"
            ) from None
        good = np.flatnonzero(~self._bad)
        values, d = self._centred[good], self._centred.shape[1]
        index: Any = faiss.IndexFlatL2(d)
        if not flat:
            cells = max(1, int(4 * np.sqrt(len(good))))
            index = faiss.IndexIVFFlat(index, d, min(cells, max(1, len(good) // 40)))
            index.cp.seed = 0
            index.train(values[:: max(1, len(good) // (64 * index.nlist))])
            index.nprobe = min(PROBES, index.nlist)
        index.add(values)
        _, found = index.search(self._centred[start:stop], min(k + 5, len(good)))
        found = np.where(found >= 0, good[found], -1)
        found[found == np.arange(start, stop)[:, None]] = -1
        return found

    def _ranked(self, found: np.ndarray, start: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact distances of the candidates, sorted; the first `k`."""
        rows = np.full((len(found), k), -1, dtype=np.int64)
        distances = np.full((len(found), k), np.inf, dtype=np.float32)
        for i in range(0, len(found), 4096):
            ids = found[i : i + 4096]
            mine = self._exact[start + i : start + i + len(ids)].astype(np.float64)
            delta = self._exact[ids].astype(np.float64) - mine[:, None, :]
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
