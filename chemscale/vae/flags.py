"""Chemically enhanced and depleted stars, by k-sigma cuts or in dex (paper section 2.5).

Latents have no sign and no unit of their own. Signs come from a handful of labelled stars,
or from physics: where a decoder says that more of a latent makes its lines shallower, the
latent is turned round. Units come from labelled stars, two or more
(:mod:`~chemscale.vae.calibrate`); then a star is flagged by its probability of belonging to
the class (learned from the labelled members where there are hundreds,
:mod:`~chemscale.vae.membership`), as many stars as keep the set at the stated purity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ndtr

from chemscale.errors import InputError
from chemscale.vae import membership
from chemscale.vae.anomalies import write_columns
from chemscale.vae.calibrate import AbundanceCalibration, as_mapping, fit_calibration, largest_set
from chemscale.vae.data import identifiers

#: Cuts of the paper's two classes. `dex`: the definition, used where latents are calibrated, with
#: the `purity` wanted (the paper's precisions); `sigma`: position relative to the population's
#: mean, in standard deviations, for populations like the paper's halo ([Fe/H] = -1 lies 0.4
#: sigma *above* its mean of -1.23).
PRESETS: dict[str, dict[str, Any]] = {
    "cemp": {
        "title": "carbon-enhanced metal-poor",
        "sigma": {"metal": ("<", 0.4), "carbon": (">", 0.1)},
        "dex": {"metal": ("<", -1.0), "carbon": (">", 0.7)},
        "purity": 0.96,
    },
    "alpha_poor": {
        "title": "alpha-poor metal-poor",
        "sigma": {"metal": ("<", 0.4), "alpha": ("<", -1.5)},
        "dex": {"metal": ("<", -1.0), "alpha": ("<", 0.0)},
        "purity": 0.84,
    },
}
#: Names of abundances that labels may go by, and their latents.
COLUMNS = {"fe_h": "metal", "alpha_m": "alpha", "alpha_fe": "alpha", "c_fe": "carbon"}
#: What a latent is called where its abundance is missing.
ABUNDANCES = {"metal": "[Fe/H]", "alpha": "[alpha/Fe]", "carbon": "[C/Fe]"}
#: A class is suspect with more than this many times the stars that the population holds.
SUSPECT = 2.0
#: Purity of classes that state none.
PURITY = 0.9
#: Labelled members from which purity is counted; below, it is taken from the probabilities.
MEMBERS = 50


@dataclass
class Flags:
    """Verdicts on every star.

    Attributes
    ----------
    member : dict of str to ndarray of bool (n,)
        Class -> stars flagged.
    probability : dict of str to ndarray (n,)
        Probability of lying beyond every cut, given the posterior.
    threshold : dict of str to float
        Smallest probability that was flagged.
    outlying : ndarray (n, d) int8
        +1 enhanced, -1 depleted, beyond `k` sigma, of each latent.
    signs, calibrations : dict
        Orientation and, where labels were given, calibration of each latent.
    units : dict of str to str
        Class -> "dex" or "sigma", what it was cut in.
    unjudged : dict of str to list of str
        Classes that could not be judged -> latents that have no calibration.
    expected : dict of str to float
        Class -> fraction of the stars that belong to it: among the labelled ones, else by the probabilities; for cuts
        in sigma that of a normal population.
    abundances : dict of str to (ndarray (n,), ndarray (n,))
        Abundance and error of every star in dex, of the latents that were calibrated.
    """

    member: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]
    threshold: dict[str, float]
    outlying: np.ndarray
    latents: tuple[str, ...]
    signs: dict[str, int]
    calibrations: dict[str, AbundanceCalibration] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    unjudged: dict[str, list[str]] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    abundances: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def suspect(self) -> list[str]:
        """Classes with far more stars flagged than the population holds, beyond three Poisson errors."""
        found = []
        for name, fraction in self.expected.items():
            count = SUSPECT * fraction * len(self.member[name])
            if self.member[name].sum() > count + 3 * np.sqrt(count + 1):
                found.append(name)
        return found

    def why_not(self, name: str) -> str:
        """Why a class could not be judged, in words."""
        return "cannot be judged: no " + ", ".join(ABUNDANCES.get(n, f"abundance for {n}") for n in self.unjudged[name])

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
            "calibration": as_mapping(self.calibrations),
            "units": "dex" if "dex" in self.units.values() else "sigma",
            "class_units": self.units,
            "unjudged": {k: self.why_not(k) for k in self.unjudged},
            "expected": {k: v * len(self.member[k]) for k, v in self.expected.items()},
            "suspect": self.suspect,
            "thresholds": self.threshold,
            "stars": stars,
        }


def apply(
    ds: xr.Dataset,
    latents: Sequence[str],
    *,
    rules: Mapping[str, Any] | None = None,
    abundances: Mapping[str, np.ndarray] | None = None,
    signs: Mapping[str, int] | None = None,
    purity: float | None = None,
    k: float = 2.0,
    plain: bool = False,
) -> Flags:
    """Flag the stars of ``latents.zarr``.

    Parameters
    ----------
    latents : sequence of str
        Names of the latents, in order.
    rules : mapping, optional
        Further classes in the form of :data:`PRESETS`.
    abundances : mapping, optional
        Latent -> abundance of every star in dex (n,), NaN where unknown; two stars calibrate it.
    signs : mapping, optional
        Orientation of latents that are not calibrated; +1 where absent.
    purity : float, optional
        Wanted fraction of true members among the flagged, instead of each class's own.
    k : float
        Standard deviations beyond which a single latent counts as enhanced or depleted.
    plain : bool
        Cut classes in standard deviations of the population, as the paper does, where latents they cut on are not
        calibrated; else such a class cannot be judged.

    Raises
    ------
    InputError
        A rule that names unknown latents, or labels that cannot be used.
    """
    if purity is not None and not 0 < purity < 1:
        raise InputError(f"purity {purity}", "a fraction between 0 and 1, such as 0.95")
    names = tuple(latents)
    mean = np.asarray(ds["mean"].values, dtype=np.float64)
    auxiliary = np.asarray(ds["auxiliary"].values, dtype=np.float64)
    variance = np.diagonal(np.asarray(ds["covariance"].values, dtype=np.float64), axis1=1, axis2=2)
    given = dict(abundances or {})
    if unknown := set(given) - set(names):
        raise InputError(f"labels of unknown latents {sorted(unknown)}", f"latents: {', '.join(names)}")
    fitted = {
        n: fit_calibration(mean, auxiliary, variance, names.index(n), given[n])
        for n in names
        if n in given and np.isfinite(given[n]).any()
    }
    orientation = {n: int(np.sign(fitted[n].slope)) if n in fitted else int((signs or {}).get(n, 1)) for n in names}
    turned = mean * np.array([orientation[n] for n in names])
    centre = np.nanmedian(turned, axis=0)
    # the population's width: that of the means plus what the posterior hides
    width = np.sqrt(np.nanvar(turned, axis=0) + np.nanmean(variance, axis=0))
    sigma = (turned - centre) / width
    outlying = (sigma > k).astype(np.int8) - (sigma < -k).astype(np.int8)
    in_dex = {n: c.apply(mean, auxiliary, variance) for n, c in fitted.items()}
    in_sigma = {n: (sigma[:, j], np.sqrt(variance[:, j]) / width[j]) for j, n in enumerate(names)}
    result = Flags({}, {}, {}, outlying, names, orientation, fitted, abundances=in_dex)
    for name, rule in ({**PRESETS, **dict(rules or {})}).items():
        calibrated = "dex" in rule and all(n in fitted for n in rule["dex"])
        cuts = rule["dex"] if calibrated else rule.get("sigma", {})
        unknown = {n for n in cuts if n not in names}
        if (
            not calibrated
            and not plain
            and not unknown
            and (absent := [n for n in rule.get("dex", {}) if n not in fitted])
        ):
            result.unjudged[name] = absent
            continue
        if unknown or not cuts:
            if name in PRESETS:
                continue  # a model with other latents has no such class
            raise InputError(f"class {name!r}: unknown latents {sorted(unknown)}", f"latents: {', '.join(names)}")
        chance, beyond = _chance(cuts, in_dex if calibrated else in_sigma)
        result.probability[name] = chance
        result.units[name] = "dex" if calibrated else "sigma"
        if calibrated:
            # labelled stars are judged by fits without them
            values = {n: _left_out(fitted[n], in_dex[n], given[n]) for n in cuts}
            inside, known = _labelled(cuts, given)
            honest, _ = _chance(cuts, values)
            features = np.column_stack(
                [
                    mean,
                    auxiliary,
                    np.log(np.maximum(variance, 1e-12)),
                    honest,
                    *(x for value in values.values() for x in value),
                ]
            )
            learned = membership.learn(features, honest, inside, known)
            chance = honest if learned is None else learned
            counted = (inside & known).sum() >= MEMBERS
            wanted = purity or rule.get("purity", PURITY)
            limit = largest_set(chance[known], wanted, inside[known]) if counted else largest_set(chance, wanted)
            result.probability[name] = chance
            result.member[name], result.threshold[name] = chance >= limit, limit
            result.expected[name] = float(inside[known].mean() if counted else chance.mean())
        else:  # the paper's plain cuts
            result.member[name] = beyond
            result.expected[name] = _normal_fraction(cuts)
    return result


def _normal_fraction(cuts: Mapping[str, tuple[str, float]]) -> float:
    """Fraction of a population of independent standard normals beyond every cut."""
    return float(np.prod([ndtr(position if side == "<" else -position) for side, position in cuts.values()]))


def _chance(
    cuts: Mapping[str, tuple[str, float]], values: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of lying beyond every cut (0 for stars without latents), and which values do; (n,) each."""
    chance, beyond = np.ones(1), np.ones(1, dtype=bool)
    for latent, (side, position) in cuts.items():
        value, error = values[latent]
        gap = (position - value) if side == "<" else (value - position)
        chance = chance * ndtr(gap / np.maximum(error, 1e-6))
        beyond = beyond & (gap > 0)
    return np.nan_to_num(chance), beyond


def _left_out(
    calibration: AbundanceCalibration, value: tuple[np.ndarray, np.ndarray], given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated abundances and errors, those of labelled stars from fits without them."""
    own = np.isfinite(calibration.residual)
    return np.where(own, given - calibration.residual, value[0]), value[1]


def _labelled(cuts: Mapping[str, tuple[str, float]], given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Members of a class by their labels, and stars that have every label it needs; (n,) bool each."""
    inside, known = np.ones(1, dtype=bool), np.ones(1, dtype=bool)
    for latent, (side, position) in cuts.items():
        inside = inside & (given[latent] < position if side == "<" else given[latent] > position)
        known = known & np.isfinite(given[latent])
    return inside & known, known


def labels_in_order(ds: xr.Dataset, labels: Mapping[str, Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Labels by star as arrays in the order of the latents: latent -> (n,), NaN where unknown.

    Raises
    ------
    InputError
        A labelled star that is not among the latents.
    """
    ids = identifiers(ds)
    where = {star: i for i, star in enumerate(ids) if star in labels}
    absent = [s for s in labels if s not in where]
    if absent:
        raise InputError(f"labelled stars not in the latents: {', '.join(absent[:5])}", "check the identifiers")
    found: dict[str, np.ndarray] = {}
    for star, row in labels.items():
        for latent, value in row.items():
            found.setdefault(latent, np.full(len(ids), np.nan))[where[star]] = value
    return found


def save(path: Path, ds: xr.Dataset, result: Flags, made_from: Mapping[str, str | None] | None = None) -> None:
    """Write flags, probabilities and calibrated abundances (dex) of every star, aligned with ``latents.zarr``."""
    columns: dict[str, np.ndarray] = {"outlying": result.outlying}
    for name, (value, error) in result.abundances.items():
        columns[f"abundance_{name}"] = value.astype("f4")
        columns[f"abundance_{name}_error"] = error.astype("f4")
    for name in result.member:
        columns[f"flag_{name}"] = result.member[name]
        columns[f"probability_{name}"] = result.probability[name].astype("f4")
    write_columns(path, np.asarray(ds["star_id"].values), columns, "vae flags", made_from)


def read_labels(path: str | Path) -> dict[str, dict[str, float]]:
    """Labelled stars from a CSV file with the column `star_id` and one column a latent, in dex.

    Columns may also have the labels' names: ``fe_h``, ``alpha_m`` or ``alpha_fe``, ``c_fe``.

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
        return {
            r["star_id"]: {COLUMNS.get(k, k): float(v) for k, v in r.items() if k != "star_id" and v and v.strip()}
            for r in rows
        }
    except (TypeError, ValueError, AttributeError) as err:
        raise InputError(f"labels {path}: {err}", "numbers in dex, empty where unknown") from err
