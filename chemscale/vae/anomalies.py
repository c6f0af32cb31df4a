"""Anomalous spectra: scores calibrated to a false-alarm rate, causes, a ranked table.

Four scores a star, each large for what the model has not seen: the reconstruction's
chi-square (whole spectrum), the largest deviation of any window of pixels, the length of the
latent mean under the prior (paper section 4.4, Fig. 7), and the stillness of the stillest window
(a stretch filled with a constant has less scatter than noise). Each is measured in units of its
own upper tail over clean held-out stars; the largest decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError

#: Fewest held-out stars a false-alarm rate of p needs: this many over p.
TAIL_STARS = 5
#: Parts the reference stars are cut into, see :func:`calibrate`.
FOLDS = 5
#: Reference stars further than this above the median of any score, in robust standard deviations, are not clean.
#: (Rare but sound stars that a model fits badly lie up to ten or twenty above it.)
CLEAN_WITHIN = 30.0
SCORES = ("reconstruction", "local", "norm", "quiet")


@dataclass(frozen=True)
class ScoreCalibration:
    """Centre and upper tail of each score over the reference stars.

    Attributes
    ----------
    centre, tail : dict of str to float
        Median, and distance from it to the quantile ``1 - false_alarm / n_scores``.
    threshold : float
        Combined score above which the stated fraction of the reference stars lies.
    """

    false_alarm: float
    centre: dict[str, float]
    tail: dict[str, float]
    threshold: float
    n_stars: int

    @property
    def thresholds(self) -> dict[str, float]:
        """The value of each score at which a star is called anomalous, in the units of :func:`raw_scores`."""
        return {k: self.centre[k] + self.threshold * self.tail[k] for k in self.centre}

    def units(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores in units of their tail, 0 at the median."""
        return {k: (np.asarray(raw[k]) - self.centre[k]) / self.tail[k] for k in self.centre}


def raw_scores(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Scores of every star, larger = stranger: log10 of chi-square per pixel, log10 of local, norm, quiet.

    The chi-square of each group follows as ``reconstruction:GROUP``, for the causes.
    """
    chi2 = np.asarray(ds["chi2"].values, dtype=np.float64)
    names = [str(p) for p in ds["part"].values]
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = {
            "reconstruction": np.log10(np.maximum(chi2[:, 0], 1e-6)),
            "local": np.log10(np.maximum(np.asarray(ds["local"].values, dtype=np.float64), 1e-6)),
            "norm": np.asarray(ds["norm"].values, dtype=np.float64),
            "quiet": np.asarray(ds["quiet"].values, dtype=np.float64),
        }
        for k, name in enumerate(names[1:], start=1):
            raw[f"reconstruction:{name}"] = np.log10(np.maximum(chi2[:, k], 1e-6))
    return raw


def calibrate(ds: xr.Dataset, reference: np.ndarray, false_alarm: float = 0.01) -> ScoreCalibration:
    """Calibrate scores on clean stars the model was not trained on.

    Parameters
    ----------
    ds : xarray.Dataset
        ``latents.zarr``.
    reference : ndarray of bool (n,)
        Held-out stars. Those further than :data:`CLEAN_WITHIN` robust standard deviations above the
        median of any score are anomalous whatever the rate, and left out.
    false_alarm : float
        Fraction of clean stars that may be called anomalous.

    Raises
    ------
    DataError
        Too few reference stars for that rate.
    """
    chosen = np.asarray(reference)
    return calibrate_scores({k: v[chosen] for k, v in raw_scores(ds).items()}, false_alarm)


def calibrate_scores(raw: Mapping[str, np.ndarray], false_alarm: float = 0.01) -> ScoreCalibration:
    """:func:`calibrate` from the scores (of :func:`raw_scores`) of the reference stars alone."""
    if not 0 < false_alarm < 0.5:
        raise InputError(f"false-alarm rate {false_alarm}", "give a fraction between 0 and 0.5, such as 0.01")
    usable = np.isfinite(np.stack([raw[k] for k in SCORES])).all(0)
    usable &= _within(raw, usable)
    n = int(usable.sum())
    if n < TAIL_STARS / false_alarm:
        more = "hold out more stars, or infer the survey that the model was trained on"
        least = math.ceil(100 * TAIL_STARS / n) / 100 if n else 1.0
        raise DataError(
            f"{n} held-out stars cannot calibrate a false-alarm rate of {false_alarm}",
            f"ask for a rate of {least:g} or more, or {more}" if least < 0.5 else more,
        )
    # every reference star is scored in units it had no part in, as further stars will be
    rows = np.flatnonzero(usable)
    combined = np.empty(n)
    for k in range(FOLDS):
        others = np.delete(rows, np.s_[k::FOLDS])
        units = ScoreCalibration(false_alarm, *_tails(raw, others, false_alarm), 1.0, n).units(raw)
        combined[k::FOLDS] = _combined(units)[rows[k::FOLDS]]
    # the order statistic that a further clean star exceeds with at most the stated chance
    # (Vovk et al. 2005); a plain quantile of few stars is exceeded more often
    rank = min(int(np.ceil((n + 1) * (1 - false_alarm))), n)
    return ScoreCalibration(false_alarm, *_tails(raw, rows, false_alarm), float(np.sort(combined)[rank - 1]), n)


def _tails(
    raw: Mapping[str, np.ndarray], rows: np.ndarray, false_alarm: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Median and upper tail of each score over some stars."""
    centre, tail = {}, {}
    for key, values in raw.items():
        sample = values[rows]
        sample = sample[np.isfinite(sample)]
        centre[key] = float(np.median(sample)) if sample.size else 0.0
        spread = float(np.quantile(sample, 1 - false_alarm / len(SCORES))) - centre[key] if sample.size else 0.0
        tail[key] = max(spread, 1e-6)
    return centre, tail


def _within(raw: Mapping[str, np.ndarray], usable: np.ndarray) -> np.ndarray:
    """Stars of which no score lies far above the median of the usable ones; (n,) bool."""
    good = np.ones(len(usable), dtype=bool)
    for key in SCORES:
        sample = raw[key][usable]
        if sample.size:
            middle = np.median(sample)
            width = 1.4826 * np.median(np.abs(sample - middle))
            with np.errstate(invalid="ignore"):
                good &= ~(raw[key] > middle + CLEAN_WITHIN * max(float(width), 1e-6))
    return good


def _combined(units: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.max(np.stack([units[k] for k in SCORES]), axis=0)


def score(ds: xr.Dataset, calibration: ScoreCalibration) -> dict[str, np.ndarray]:
    """Combined score, verdict and cause of every star.

    Returns
    -------
    dict
        `score` (n,) in units of the threshold: above 1 is anomalous; `anomalous` (n,) bool;
        `cause` (n,) str: ``reconstruction:GROUP``, ``reconstruction:elsewhere``, ``window``,
        ``filled window``, ``latent`` or ``no data``; '' for ordinary stars; `unit_*`: the single scores.
    """
    units = calibration.units(raw_scores(ds))
    combined = _combined(units) / calibration.threshold
    nothing = ~np.isfinite(combined)
    combined = np.where(nothing, np.inf, combined)
    anomalous = combined > 1
    which = np.argmax(np.nan_to_num(np.stack([units[k] for k in SCORES])), axis=0)
    groups = [k for k in units if k.startswith("reconstruction:")]
    by_group = np.nan_to_num(np.stack([units[k] for k in groups]), nan=-np.inf)
    best = np.argmax(by_group, axis=0)
    value = by_group[best, np.arange(by_group.shape[1])]
    region = np.where(value > calibration.threshold, np.array(groups)[best], "reconstruction:elsewhere")
    cause = np.select([which == 0, which == 1, which == 3], [region, "window", "filled window"], "latent").astype(
        object
    )
    cause[~anomalous] = ""
    cause[nothing] = "no data"
    table: dict[str, np.ndarray] = {"score": combined, "anomalous": anomalous, "cause": cause}
    return table | {f"unit_{k}": units[k] for k in SCORES}


def count_causes(table: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Anomalous stars by cause."""
    return dict(Counter(str(c) for c in table["cause"] if c))


def ranked(
    ds: xr.Dataset,
    table: Mapping[str, np.ndarray],
    top: int,
    windows: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """The `top` strangest of the anomalous stars, strangest first; those without data, which tell nothing, last."""
    order = np.lexsort([-table["score"], table["cause"] == "no data"])
    order = order[table["anomalous"][order]][:top]
    ids = np.asarray(ds["star_id"].values)
    window, norm = np.asarray(ds["local_window"].values), np.asarray(ds["norm"].values)
    chi2, l2 = np.asarray(ds["chi2"][:, 0].values), np.asarray(ds["relative_l2"][:, 0].values)
    rows = []
    for i in order:
        row = {
            "star_id": str(ids[i]),
            "score": float(table["score"][i]),
            "cause": str(table["cause"][i]),
            "chi2": float(chi2[i]),
            "relative_l2": float(l2[i]),
            "norm": float(norm[i]),
            **{k: float(table[f"unit_{k}"][i]) for k in SCORES},
        }
        if windows is not None and 0 <= window[i] < len(windows):
            row["window_wavelength"] = float(windows[window[i]])
        rows.append(row)
    return rows


class AnomalyTally:
    """Counts and the strangest stars over blocks of stars; blocks may come in any order.

    Parameters
    ----------
    top : int
        Stars of the ranked table.
    """

    def __init__(self, top: int):
        self.top, self.n, self.flagged = top, 0, 0
        self.held_out, self.held_out_flagged = 0, 0
        self.causes: Counter[str] = Counter()
        self._ranked: list[tuple[bool, float, int, dict[str, Any]]] = []

    @staticmethod
    def of(table: Mapping[str, np.ndarray], rows: list[dict[str, Any]], out: np.ndarray) -> dict[str, Any]:
        """What a tally wants to know of a block: its scores, its ranked stars, which stars were held out."""
        return {
            "n": len(out),
            "flagged": int(table["anomalous"].sum()),
            "held_out": int(out.sum()),
            "held_out_flagged": int(table["anomalous"][out].sum()),
            "causes": count_causes(table),
            "ranked": rows,
        }

    def add(self, block: Mapping[str, Any], start: int) -> None:
        """Take in the block whose first star is `start`."""
        self.n += block["n"]
        self.flagged += block["flagged"]
        self.held_out += block["held_out"]
        self.held_out_flagged += block["held_out_flagged"]
        self.causes.update(block["causes"])
        self._ranked += [
            (row["cause"] == "no data", -row["score"], start + i, row) for i, row in enumerate(block["ranked"])
        ]
        self._ranked = sorted(self._ranked, key=lambda r: r[:3])[: self.top]

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The strangest stars, see :func:`ranked`."""
        return [row for *_, row in self._ranked]
