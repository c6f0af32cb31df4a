"""Exact nearest neighbours among the features of millions of stars: of one star, or of all of them.

Features are a few float32 numbers a star (10^6 stars x 30: 120 MB), kept in memory by :class:`SiblingIndex`.
One star costs one pass over them (a matrix-vector product); all stars against all cost matrix products between the
leaves of a tree. Both are exact: the nearest few found in float32 are ranked again by float64 differences.
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
#: Stars of a leaf of the tree that the all-stars search prunes with.
LEAF = 1024


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

    def _faiss(self, k: int, start: int, stop: int, *, flat: bool) -> np.ndarray:
        try:
            import faiss
        except ImportError:
            raise InputError(
                "faiss is not installed", "pip install 'chemscale[index]', or use method='exact'"
            ) from None
        good = np.flatnonzero(~self._bad)
        values, d = self.features[good], self.features.shape[1]
        index: Any = faiss.IndexFlatL2(d)
        if not flat:
            cells = max(1, int(4 * np.sqrt(len(good))))
            index = faiss.IndexIVFFlat(index, d, min(cells, max(1, len(good) // 40)))
            index.cp.seed = 0
            index.train(values[:: max(1, len(good) // (64 * index.nlist))])
            index.nprobe = min(PROBES, index.nlist)
        index.add(values)
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
