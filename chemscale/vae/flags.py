"""Chemically enhanced and depleted stars, by k-sigma cuts or in dex (paper section 2.5).

Latents have no sign and no unit of their own. Signs come from a handful of labelled stars,
or from physics: where a decoder says that more of a latent makes its lines shallower, the
latent is turned round. Units come from a line through as few as two labelled stars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ndtr

from ..errors import InputError
from .anomalies import write_columns

#: Cuts of the paper's two classes. `sigma`: position relative to the population's mean, in
#: standard deviations, for populations like the paper's halo ([Fe/H] = -1 lies 0.4 sigma
#: *above* its mean of -1.23); `dex`: the definition, used where a calibration is given.
#: `confidence`: smallest probability, given the latents' posterior, of lying on the far
#: side of every cut.
PRESETS: dict[str, dict[str, Any]] = {
    "cemp": {
        "title": "carbon-enhanced metal-poor",
        "sigma": {"metal": ("<", 0.4), "carbon": (">", 0.1)},
        "dex": {"metal": ("<", -1.0), "carbon": (">", 0.7)},
        "confidence": 0.9,
    },
    "alpha_poor": {
        "title": "alpha-poor metal-poor",
        "sigma": {"metal": ("<", 0.4), "alpha": ("<", -1.5)},
        "dex": {"metal": ("<", -1.0), "alpha": ("<", 0.0)},
        "confidence": 0.75,
    },
}


@dataclass(frozen=True)
class Line:
    """``abundance = intercept + slope * latent``, with the scatter about it (0 = unknown)."""

    slope: float
    intercept: float
    scatter: float
    n_stars: int


def fit_line(latent: np.ndarray, abundance: np.ndarray) -> Line:
    """Calibration of a latent to dex from two stars or more (least squares).

    Raises
    ------
    InputError
        Fewer than two stars with both values, or all at the same latent.
    """
    x, y = np.asarray(latent, float), np.asarray(abundance, float)
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    if x.size < 2 or np.ptp(x) < 1e-9:
        raise InputError(f"{x.size} labelled star(s) with different latents", "give at least two, far apart")
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (intercept + slope * x)
    scatter = float(np.sqrt((residual**2).sum() / (x.size - 2))) if x.size > 5 else 0.0
    return Line(float(slope), float(intercept), scatter, int(x.size))


@dataclass
class Flags:
    """Verdicts on every star.

    Attributes
    ----------
    member : dict of str to ndarray of bool (n,)
        Class -> stars flagged.
    probability : dict of str to ndarray (n,)
        Probability of lying beyond every cut, given the posterior.
    outlying : ndarray (n, d) int8
        +1 enhanced, -1 depleted, beyond `k` sigma, of each latent.
    signs, lines : dict
        Orientation and, where labels were given, calibration of each latent.
    """

    member: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]
    outlying: np.ndarray
    latents: tuple[str, ...]
    signs: dict[str, int]
    lines: dict[str, Line] = field(default_factory=dict)
    oriented: np.ndarray = field(default_factory=lambda: np.empty(0))

    def summary(self, star_id: np.ndarray, most: int = 5000) -> dict[str, Any]:
        """JSON-able counts, signs, calibrations, and the members of each class, most probable first."""
        stars = {}
        for name, member in self.member.items():
            rows = np.flatnonzero(member)
            rows = rows[np.argsort(-self.probability[name][rows], kind="stable")][:most]
            stars[name] = [{"star_id": str(star_id[i]), "probability": float(self.probability[name][i])} for i in rows]
        outlying = {
            latent: {"enhanced": int((self.outlying[:, k] > 0).sum()), "depleted": int((self.outlying[:, k] < 0).sum())}
            for k, latent in enumerate(self.latents)
        }
        return {
            "counts": {k: int(v.sum()) for k, v in self.member.items()},
            "outlying": outlying,
            "signs": self.signs,
            "calibration": {k: vars(v) for k, v in self.lines.items()},
            "units": "dex" if self.lines else "sigma",
            "stars": stars,
        }


def apply(
    ds: xr.Dataset,
    latents: Sequence[str],
    *,
    rules: Mapping[str, Any] | None = None,
    labels: Mapping[str, Mapping[str, float]] | None = None,
    signs: Mapping[str, int] | None = None,
    lines: Mapping[str, Line] | None = None,
    k: float = 2.0,
) -> Flags:
    """Flag the stars of ``latents.zarr``.

    Parameters
    ----------
    latents : sequence of str
        Names of the latents, in order.
    rules : mapping, optional
        Further classes in the form of :data:`PRESETS`.
    labels : mapping, optional
        star_id -> {latent: abundance in dex}; two stars a latent give its line.
    signs : mapping, optional
        Orientation of latents without a line; +1 where absent.
    lines : mapping, optional
        Ready calibrations, instead of `labels`.
    k : float
        Standard deviations beyond which a single latent counts as enhanced or depleted.

    Raises
    ------
    InputError
        A rule that names unknown latents, or labels that cannot be used.
    """
    mean = np.asarray(ds["mean"].values, dtype=np.float64)
    variance = np.diagonal(np.asarray(ds["covariance"].values, dtype=np.float64), axis1=1, axis2=2)
    names = tuple(latents)
    fitted = dict(lines or {}) | _lines(ds, mean, names, labels or {})
    orientation = {n: int(np.sign(fitted[n].slope)) if n in fitted else int((signs or {}).get(n, 1)) for n in names}
    sign = np.array([orientation[n] for n in names])
    turned = mean * sign
    centre = np.nanmedian(turned, axis=0)
    # the population's width: that of the means plus what the posterior hides
    width = np.sqrt(np.nanvar(turned, axis=0) + np.nanmean(variance, axis=0))
    sigma = (turned - centre) / width
    outlying = (sigma > k).astype(np.int8) - (sigma < -k).astype(np.int8)
    member, probability = {}, {}
    for name, rule in ({**PRESETS, **dict(rules or {})}).items():
        in_dex = "dex" in rule and all(n in fitted for n in rule["dex"])
        cuts = rule["dex"] if in_dex else rule.get("sigma", {})
        unknown = [n for n in cuts if n not in names]
        if unknown or not cuts:
            if name in PRESETS:
                continue  # a model with other latents has no such class
            raise InputError(f"class {name!r}: unknown latents {unknown}", f"latents: {', '.join(names)}")
        chance = np.ones(len(mean))
        for latent, (side, position) in cuts.items():
            j = names.index(latent)
            if in_dex:
                value, error = _in_dex(fitted[latent], mean[:, j], variance[:, j])
            else:
                value, error = sigma[:, j], np.sqrt(variance[:, j]) / width[j]
            gap = (position - value) if side == "<" else (value - position)
            chance *= ndtr(gap / np.maximum(error, 1e-6))
        chance = np.nan_to_num(chance)
        probability[name] = chance
        member[name] = chance >= rule.get("confidence", 0.5)
    return Flags(member, probability, outlying, names, orientation, fitted, sigma)


def _in_dex(line: Line, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Abundance and error: the posterior's variance, scaled to the scatter about the line where that is known."""
    value = line.intercept + line.slope * mean
    scaled = line.slope**2 * variance
    if line.scatter:
        typical = float(np.nanmean(scaled))
        # half from each star's posterior, half from the common scatter: neither alone is calibrated
        scaled = 0.5 * line.scatter**2 * (1 + scaled / max(typical, 1e-12))
    return value, np.sqrt(scaled)


def _lines(
    ds: xr.Dataset, mean: np.ndarray, names: Sequence[str], labels: Mapping[str, Mapping[str, float]]
) -> dict[str, Line]:
    if not labels:
        return {}
    ids = np.asarray(ds["star_id"].values).astype(str)
    where = {star: i for i, star in enumerate(ids) if star in labels}
    absent = [s for s in labels if s not in where]
    if absent:
        raise InputError(f"labelled stars not in the latents: {', '.join(absent[:5])}", "check the identifiers")
    known = {key for row in labels.values() for key in row}
    if unknown := known - set(names):
        raise InputError(f"labels of unknown latents {sorted(unknown)}", f"latents: {', '.join(names)}")
    lines = {}
    for k, name in enumerate(names):
        stars = [s for s in labels if name in labels[s]]
        if stars:
            lines[name] = fit_line(mean[[where[s] for s in stars], k], np.array([labels[s][name] for s in stars]))
    return lines


def save(path: Path, ds: xr.Dataset, result: Flags) -> None:
    """Write flags and probabilities of every star as a Zarr product aligned with ``latents.zarr``."""
    columns: dict[str, np.ndarray] = {"outlying": result.outlying}
    for name in result.member:
        columns[f"flag_{name}"] = result.member[name]
        columns[f"probability_{name}"] = result.probability[name].astype("f4")
    write_columns(path, np.asarray(ds["star_id"].values), columns, "vae flags")


def read_labels(path: str | Path) -> dict[str, dict[str, float]]:
    """Labelled stars from a CSV file with the column `star_id` and one column a latent, in dex.

    Raises
    ------
    InputError
        No such file, no `star_id`, or a value that is not a number.
    """
    import csv

    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"labels {path} cannot be read: {err}", "check the path") from err
    if not rows or "star_id" not in rows[0]:
        raise InputError(f"labels {path}: no column star_id", "star_id,metal,carbon,... in the first line")
    try:
        return {r["star_id"]: {k: float(v) for k, v in r.items() if k != "star_id" and v and v.strip()} for r in rows}
    except (TypeError, ValueError, AttributeError) as err:
        raise InputError(f"labels {path}: {err}", "numbers in dex, empty where unknown") from err
