"""What decides whether a star is flagged: learned once from a sample of the stars, then applied to any of them.

Signs, calibrations, widths, trees and thresholds belong to the population and fit in a few megabytes. The verdict on a
star depends on them and on the star alone, so blocks of stars can be judged anywhere and in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ndtr

from chemscale.errors import InputError
from chemscale.vae.calibrate import AbundanceCalibration, as_mapping, fit_calibration, largest_set
from chemscale.vae.data import draws
from chemscale.vae.membership import Trees, grow

#: A class is suspect with more than this many times the stars that the population holds.
SUSPECT = 2.0
#: Purity of classes that state none.
PURITY = 0.9
#: Labelled members from which purity is counted; below, it is taken from the probabilities.
MEMBERS = 50
#: What a latent is called where its abundance is missing.
ABUNDANCES = {"metal": "[Fe/H]", "alpha": "[alpha/Fe]", "carbon": "[C/Fe]"}
#: Stars a summary lists for each class, at most.
LISTED = 5000

Cuts = Mapping[str, tuple[str, float]]
Values = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Posteriors:
    """Posteriors of n stars.

    Attributes
    ----------
    rows : ndarray (n,)
        Their rows in the latents.
    mean, auxiliary, variance : ndarray (n, d), (n, a), (n, d) float64
    draws : ndarray (n,) uint32
        A random number of each star's own, see :func:`~chemscale.vae.data.draws`.
    """

    rows: np.ndarray
    mean: np.ndarray
    auxiliary: np.ndarray
    variance: np.ndarray
    draws: np.ndarray

    @classmethod
    def of(cls, ds: xr.Dataset, rows: np.ndarray | int = 0) -> Posteriors:
        """Those of some stars of ``latents.zarr``; `rows`: their rows, or the first of a block."""
        mean = np.asarray(ds["mean"].values, dtype=np.float64)
        auxiliary = np.asarray(ds["auxiliary"].values, dtype=np.float64)
        covariance = np.asarray(ds["covariance"].values)
        variance = np.diagonal(covariance, axis1=1, axis2=2).astype(np.float64)
        own = draws(np.asarray(ds["star_id"].values), "folds")
        return cls(rows + np.arange(len(mean)) if isinstance(rows, int) else rows, mean, auxiliary, variance, own)

    @classmethod
    def joined(cls, several: Sequence[Posteriors]) -> Posteriors:
        """All stars of several."""
        return cls(*(np.concatenate([getattr(s, f.name) for s in several]) for f in fields(cls)))


@dataclass(frozen=True)
class StarClass:
    """One class of stars.

    Attributes
    ----------
    units : str
        "dex": flagged from the probability `threshold`; "sigma": beyond every cut, in the population's standard
        deviations.
    expected : float
        Fraction of the stars that belong to it: among the labelled ones, else by the probabilities; for cuts in sigma
        that of a normal population.
    trees : Trees, optional
        Where there are labelled members enough to learn from.
    """

    cuts: Cuts
    units: str
    expected: float
    threshold: float | None = None
    trees: Trees | None = None


@dataclass
class Flags:
    """Verdicts on n stars.

    Attributes
    ----------
    member : dict of str to ndarray of bool (n,)
        Class -> stars flagged.
    probability : dict of str to ndarray (n,)
        Probability of lying beyond every cut, given the posterior.
    outlying : ndarray (n, d) int8
        +1 enhanced, -1 depleted, beyond `k` sigma, of each latent.
    abundances : dict of str to (ndarray (n,), ndarray (n,))
        Abundance and error of every star in dex, of the latents that were calibrated.
    model : FlagModel
        What decided.
    """

    model: FlagModel
    outlying: np.ndarray
    member: dict[str, np.ndarray] = field(default_factory=dict)
    probability: dict[str, np.ndarray] = field(default_factory=dict)
    abundances: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def suspect(self) -> list[str]:
        """Classes with far more stars flagged than the population holds, beyond three Poisson errors."""
        return self.model.suspect({k: int(v.sum()) for k, v in self.member.items()}, len(self.outlying))

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of ``flags.zarr``: flags, probabilities and calibrated abundances (dex)."""
        columns: dict[str, np.ndarray] = {"outlying": self.outlying}
        for name, (value, error) in self.abundances.items():
            columns[f"abundance_{name}"] = value.astype("f4")
            columns[f"abundance_{name}_error"] = error.astype("f4")
        for name in self.member:
            columns[f"flag_{name}"] = self.member[name]
            columns[f"probability_{name}"] = self.probability[name].astype("f4")
        return columns


@dataclass(frozen=True)
class FlagModel:
    """Everything that decides on a star besides its own posterior.

    Attributes
    ----------
    latents : tuple of str
    signs : dict of str to int
        Orientation of each latent.
    centre, mean, width : ndarray (d,)
        Median of the turned latents, mean (which cuts in sigma count from) and standard deviation over the population.
    k : float
        Standard deviations beyond which a single latent counts as enhanced or depleted.
    calibrations : dict of str to AbundanceCalibration
        Where labels were given. `left_out`: abundances of the stars fitted to, by fits without them.
    classes : dict of str to StarClass
    unjudged : dict of str to list of str
        Classes that could not be judged -> latents that have no calibration.
    """

    latents: tuple[str, ...]
    signs: dict[str, int]
    centre: np.ndarray
    mean: np.ndarray
    width: np.ndarray
    k: float
    calibrations: dict[str, AbundanceCalibration]
    left_out: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: dict[str, StarClass] = field(default_factory=dict)
    unjudged: dict[str, list[str]] = field(default_factory=dict)

    def judge(self, stars: Posteriors) -> Flags:
        """Verdicts on some stars; each depends on the star alone."""
        sigma, in_sigma = self._in_sigma(stars)
        flags = Flags(self, (sigma > self.k).astype(np.int8) - (sigma < -self.k).astype(np.int8))
        flags.abundances = self._in_dex(stars)
        for name, kind in self.classes.items():
            if kind.units == "sigma":
                flags.probability[name], flags.member[name] = _chance(kind.cuts, in_sigma)
                continue
            chance, features = self._honest(stars, kind.cuts, flags.abundances)
            if kind.trees is not None:
                chance = kind.trees.probability(features, chance, stars.draws)
            flags.probability[name], flags.member[name] = chance, chance >= kind.threshold
        return flags

    def _in_sigma(self, stars: Posteriors) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Position of each latent (n, d) in the population's standard deviations; by name, with the errors."""
        turned = stars.mean * np.array([self.signs[n] for n in self.latents])
        from_mean, error = (turned - self.mean) / self.width, np.sqrt(stars.variance) / self.width
        named = {n: (from_mean[:, j], error[:, j]) for j, n in enumerate(self.latents)}
        return (turned - self.centre) / self.width, named

    def _in_dex(self, stars: Posteriors) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Calibrated abundances and errors by latent."""
        return {n: c.apply(stars.mean, stars.auxiliary, stars.variance) for n, c in self.calibrations.items()}

    def _honest(self, stars: Posteriors, cuts: Cuts, in_dex: Values) -> tuple[np.ndarray, np.ndarray]:
        """Probability (n,) by calibrations that have not seen the star's own label; and what trees may learn from."""
        values = {n: (_replaced(in_dex[n][0], stars.rows, *self.left_out[n]), in_dex[n][1]) for n in cuts}
        chance, _ = _chance(cuts, values)
        columns = [stars.mean, stars.auxiliary, np.log(np.maximum(stars.variance, 1e-12)), chance]
        return chance, np.column_stack([*columns, *(x for value in values.values() for x in value)])

    def suspect(self, counts: Mapping[str, int], n: int) -> list[str]:
        """Classes with far more of n stars flagged than the population holds, beyond three Poisson errors."""
        found = []
        for name, kind in self.classes.items():
            most = SUSPECT * kind.expected * n
            if counts[name] > most + 3 * np.sqrt(most + 1):
                found.append(name)
        return found

    def why_not(self, name: str) -> str:
        """Why a class could not be judged, in words."""
        return "cannot be judged: no " + ", ".join(ABUNDANCES.get(n, f"abundance for {n}") for n in self.unjudged[name])


def fit_flags(
    stars: Posteriors,
    latents: Sequence[str],
    classes: Mapping[str, Mapping[str, Any]],
    abundances: Mapping[str, np.ndarray],
    signs: Mapping[str, int],
    *,
    optional: Sequence[str] = (),
    population: np.ndarray | None = None,
    purity: float | None = None,
    k: float = 2.0,
    plain: bool = False,
) -> FlagModel:
    """Learn from some stars what decides on all.

    Parameters
    ----------
    stars : Posteriors
        In the order of their rows.
    classes : mapping
        In the form of :data:`chemscale.vae.flags.PRESETS`.
    abundances : mapping
        Latent -> abundance of each of the stars in dex (n,), NaN where unknown; two stars calibrate it.
    signs : mapping
        Orientation of latents that are not calibrated; +1 where absent.
    optional : sequence of str
        Classes that are passed over where the model has not their latents.
    population : ndarray of bool (n,), optional
        Stars that stand for the population; the others were added for their labels. Default: all.
    purity, k, plain
        See :func:`chemscale.vae.flags.apply`.

    Raises
    ------
    InputError
        A rule that names unknown latents, or labels that cannot be used.
    """
    if purity is not None and not 0 < purity < 1:
        raise InputError(f"purity {purity}", "a fraction between 0 and 1, such as 0.95")
    names, drawn = tuple(latents), np.ones(len(stars.rows), bool) if population is None else population
    if absent := set(abundances) - set(names):
        raise InputError(f"labels of unknown latents {sorted(absent)}", f"latents: {', '.join(names)}")
    fitted = {
        n: fit_calibration(stars.mean, stars.auxiliary, stars.variance, names.index(n), abundances[n])
        for n in names
        if n in abundances and np.isfinite(abundances[n]).any()
    }
    left_out = {n: (stars.rows[c.rows], abundances[n][c.rows] - c.residual) for n, c in fitted.items()}
    orientation = {n: int(np.sign(fitted[n].slope)) if n in fitted else int(signs.get(n, 1)) for n in names}
    turned = stars.mean[drawn] * np.array([orientation[n] for n in names])
    # stated errors are those of the means, measured with noise anew: the means' own scatter has them in it
    middle = np.nanmedian(turned, axis=0), np.nanmean(turned, axis=0)
    model = FlagModel(names, orientation, *middle, np.nanstd(turned, axis=0), k, fitted, left_out)
    in_dex = model._in_dex(stars)
    for name, rule in classes.items():
        calibrated = "dex" in rule and all(n in fitted for n in rule["dex"])
        cuts = rule["dex"] if calibrated else rule.get("sigma", {})
        unknown = {n for n in cuts if n not in names}
        missing = [n for n in rule.get("dex", {}) if n not in fitted]
        if not calibrated and not plain and not unknown and missing:
            model.unjudged[name] = missing
        elif unknown or not cuts:
            if name not in optional:
                raise InputError(f"class {name!r}: unknown latents {sorted(unknown)}", f"latents: {', '.join(names)}")
        elif calibrated:
            wanted = purity or rule.get("purity", PURITY)
            model.classes[name] = _learned(model, stars, cuts, abundances, in_dex, drawn, wanted)
        else:  # the paper's plain cuts
            model.classes[name] = StarClass(cuts, "sigma", _normal_fraction(cuts))
    return model


def _learned(
    model: FlagModel,
    stars: Posteriors,
    cuts: Cuts,
    abundances: Mapping[str, np.ndarray],
    in_dex: Values,
    drawn: np.ndarray,
    purity: float,
) -> StarClass:
    """A class by probability: labelled stars are judged by fits and trees without them."""
    inside, known = _labelled(cuts, abundances)
    chance, features = model._honest(stars, cuts, in_dex)
    trees = grow(features, chance, inside, known, stars.draws)
    if trees is not None:
        chance = trees.probability(features, chance, stars.draws)
    if (inside & known).sum() >= MEMBERS:
        limit, expected = largest_set(chance[known], purity, inside[known]), inside[known].mean()
    else:
        limit, expected = largest_set(chance[drawn], purity), chance[drawn].mean()
    return StarClass(cuts, "dex", float(expected), limit, trees)


class FlagTally:
    """Counts and most probable members over blocks of stars; blocks may come in any order.

    Parameters
    ----------
    model : FlagModel
    most : int
        Members listed of each class.
    """

    def __init__(self, model: FlagModel, most: int = LISTED):
        self.model, self.most, self.n = model, most, 0
        self.counts = dict.fromkeys(model.classes, 0)
        self.outlying = np.zeros((2, len(model.latents)), np.int64)
        self.stars: dict[str, list[tuple[float, int, str]]] = {name: [] for name in model.classes}

    @staticmethod
    def of(flags: Flags, rows: np.ndarray, star_id: np.ndarray, most: int = LISTED) -> dict[str, Any]:
        """What a tally wants to know of a block."""
        stars = {}
        for name, member in flags.member.items():
            chosen = np.flatnonzero(member)
            chosen = chosen[np.argsort(-flags.probability[name][chosen], kind="stable")][:most]
            stars[name] = [(-float(flags.probability[name][i]), int(rows[i]), str(star_id[i])) for i in chosen]
        return {
            "n": len(rows),
            "counts": {k: int(v.sum()) for k, v in flags.member.items()},
            "outlying": np.stack([(flags.outlying > 0).sum(0), (flags.outlying < 0).sum(0)]),
            "stars": stars,
        }

    def add(self, block: Mapping[str, Any]) -> None:
        """Take a block in."""
        self.n += block["n"]
        self.outlying += block["outlying"]
        for name, count in block["counts"].items():
            self.counts[name] += count
            self.stars[name] = sorted(self.stars[name] + block["stars"][name])[: self.most]

    def summary(self) -> dict[str, Any]:
        """JSON-able counts, signs, calibrations, and the members of each class, most probable first."""
        model = self.model
        units = {k: c.units for k, c in model.classes.items()}
        return {
            "counts": self.counts,
            "outlying": {
                latent: {"enhanced": int(self.outlying[0, k]), "depleted": int(self.outlying[1, k])}
                for k, latent in enumerate(model.latents)
            },
            "signs": model.signs,
            "calibration": as_mapping(model.calibrations),
            "units": "dex" if "dex" in units.values() else "sigma",
            "class_units": units,
            "unjudged": {k: model.why_not(k) for k in model.unjudged},
            "expected": {k: c.expected * self.n for k, c in model.classes.items()},
            "suspect": model.suspect(self.counts, self.n),
            "thresholds": {k: c.threshold for k, c in model.classes.items() if c.threshold is not None},
            "stars": {k: [{"star_id": i, "probability": -p} for p, _, i in rows] for k, rows in self.stars.items()},
        }


def _normal_fraction(cuts: Cuts) -> float:
    """Fraction of a population of independent standard normals beyond every cut."""
    return float(np.prod([ndtr(position if side == "<" else -position) for side, position in cuts.values()]))


def _chance(cuts: Cuts, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Probability of lying beyond every cut (0 for stars without latents), and which values do; (n,) each."""
    chance, beyond = np.ones(1), np.ones(1, dtype=bool)
    for latent, (side, position) in cuts.items():
        value, error = values[latent]
        gap = (position - value) if side == "<" else (value - position)
        chance = chance * ndtr(gap / np.maximum(error, 1e-6))
        beyond = beyond & (gap > 0)
    return np.nan_to_num(chance), beyond


def _replaced(values: np.ndarray, rows: np.ndarray, others: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Values (n,) of stars `rows`, those of the rows `others` (ascending) replaced."""
    at = np.minimum(np.searchsorted(others, rows), max(len(others) - 1, 0))
    return np.where(others[at] == rows, by[at], values) if len(others) else values


def _labelled(cuts: Cuts, given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Members of a class by their labels, and stars that have every label it needs; (n,) bool each."""
    inside, known = np.ones(1, dtype=bool), np.ones(1, dtype=bool)
    for latent, (side, position) in cuts.items():
        inside = inside & (given[latent] < position if side == "<" else given[latent] > position)
        known = known & np.isfinite(given[latent])
    return inside & known, known
