"""Abundances from latents beside The Cannon trained on 1000 spectra (appendix E of the VAE paper).

Three Cannons, all on exact labels where the survey has a truth: the paper's, quadratic in Teff, log g and abundances
across the whole range; one quadratic in 5040 / Teff, in which line strengths are more nearly linear; and one fitted
anew in overlapping slices of Teff, each star judged by the slice of the temperature that the survey gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from chemscale.errors import DataError
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, held, spectra
from chemscale.vae.calibrate import fit_calibration

#: Gauss-Newton steps of the label search.
STEPS = 30


def quadratic(labels: np.ndarray) -> np.ndarray:
    """1, labels, and all their products; (n, q) -> (n, terms)."""
    columns = [np.ones(len(labels))]
    for degree in (1, 2):
        columns += [labels[:, c].prod(1) for c in combinations_with_replacement(range(labels.shape[1]), degree)]
    return np.stack(columns, 1)


def fit_cannon(flux: np.ndarray, weight: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (terms, P) and intrinsic variance (P,) of the quadratic model of Ness et al. (2015), eqs. 3-5.

    A missing pixel (weight 0) counts at the pixel's mean; one least-squares fit for all pixels.
    """
    design = quadratic(labels)
    seen = weight > 0
    mean = np.where(seen, flux, 0).sum(0) / np.maximum(seen.sum(0), 1)
    coefficients = np.linalg.lstsq(design, np.where(seen, flux, mean), rcond=None)[0]
    residual = np.where(seen, flux - design @ coefficients, 0)
    noise = np.where(seen, 1 / np.maximum(weight, 1e-30), 0).sum(0)
    scatter = ((residual**2).sum(0) - noise) / np.maximum(seen.sum(0), 1)
    return coefficients, np.maximum(scatter, 0)


def infer_cannon(
    flux: np.ndarray, weight: np.ndarray, coefficients: np.ndarray, scatter: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Labels (n, q) that fit each spectrum best: damped Gauss-Newton.

    Parameters
    ----------
    starts : ndarray (m, q)
        Labels to start from, such as those of the training stars: each spectrum starts at the ones whose
        model fits it best, as a quadratic has minima far from the truth.
    """
    q = starts.shape[1]
    pairs = list(combinations_with_replacement(range(q), 2))
    found = np.zeros((len(flux), q))
    models = quadratic(starts) @ coefficients
    for i, (x, w) in enumerate(zip(flux.astype(np.float64), weight.astype(np.float64))):
        v = w / (1 + w * scatter)
        nearest = (v * x**2).sum() - 2 * models @ (v * x) + models**2 @ v
        theta, damping, best = starts[int(np.argmin(nearest))].copy(), 1e-2, float(nearest.min())
        for _ in range(STEPS):
            slope = coefficients[1 : q + 1].copy()
            for (a, b), c in zip(pairs, coefficients[q + 1 :]):
                slope[a] += c * theta[b]
                slope[b] += c * theta[a]
            residual = x - quadratic(theta[None]) @ coefficients
            left = (slope * v) @ slope.T
            step = np.linalg.solve(left + damping * np.diag(np.diag(left) + 1e-9), slope @ (v * residual[0]))
            trial = np.clip(theta + step, -6, 6)
            chi2 = float((v * (x - (quadratic(trial[None]) @ coefficients)[0]) ** 2).sum())
            if chi2 > best:
                damping *= 10
                if damping > 1e6:
                    break
                continue
            done = best - chi2 < 1e-4
            theta, best, damping = trial, chi2, damping / 5
            if done:
                break
        found[i] = theta
    return found


@dataclass(frozen=True)
class Sample:
    """Spectra with labels: flux and weight (n, P), labels (n, q), and the survey's own Teff (n,)."""

    flux: np.ndarray
    weight: np.ndarray
    labels: np.ndarray
    teff: np.ndarray

    def part(self, rows: np.ndarray) -> Sample:
        """Some of the stars."""
        return Sample(self.flux[rows], self.weight[rows], self.labels[rows], self.teff[rows])


def cannon(train: Sample, test: Sample, inverse: bool = False) -> np.ndarray:
    """Labels (n, q) of the test stars by a quadratic fitted to the training stars.

    Parameters
    ----------
    inverse : bool
        Use 5040 / Teff in place of Teff, the first label.
    """

    def turned(x: np.ndarray) -> np.ndarray:
        return np.column_stack([5040.0 / x[:, 0], x[:, 1:]]) if inverse else x

    known = turned(train.labels)
    centre, scale = known.mean(0), known.std(0)
    known = (known - centre) / scale
    coefficients, scatter = fit_cannon(train.flux, train.weight, known)
    return turned(infer_cannon(test.flux, test.weight, coefficients, scatter, known) * scale + centre)


def sliced_cannon(train: Sample, test: Sample, width: float) -> np.ndarray:
    """:func:`cannon` in 5040 / Teff, fitted in slices of Teff `width` K wide and half as much again on either side."""
    least = 2 * quadratic(train.labels[:1]).shape[1]
    low, high = np.nanmin(train.teff), np.nanmax(train.teff)
    edges = np.linspace(low, high, max(1, round((high - low) / width)) + 1)
    found = np.full(test.labels.shape, np.nan)
    for k in range(len(edges) - 1):
        below, above = (-np.inf if k == 0 else edges[k]), (np.inf if k == len(edges) - 2 else edges[k + 1])
        here = np.flatnonzero((test.teff >= below) & (test.teff < above))
        middle = (edges[k] + edges[k + 1]) / 2
        # the nearest stars where a slice has too few
        near = np.argsort(np.abs(train.teff - middle), kind="stable")
        count = max(least, int((np.abs(train.teff - middle) < edges[1] - edges[0]).sum()))
        if here.size:
            found[here] = cannon(train.part(np.sort(near[:count])), test.part(here), inverse=True)
    return found


def _rmse(error: np.ndarray, rng: np.random.Generator) -> tuple[float, float, int]:
    """Root mean square error, its uncertainty with stars drawn with replacement, and stars that have one."""
    good = error[np.isfinite(error)]
    if not good.size:
        return float("nan"), float("nan"), 0
    boot = [np.sqrt(np.mean(rng.choice(good, good.size) ** 2)) for _ in range(200)]
    return float(np.sqrt(np.mean(good**2))), float(np.std(boot)), good.size


def compute(context: StudyContext) -> StudyResult:
    """RMSE of both on the same held-out stars."""
    found = held(context, "teff", "logg")
    names = ["teff", "logg", *(label for _, _, label in found.pairs)]
    table = np.stack([found.labels[n] for n in names], 1)
    known = np.isfinite(table).all(1)
    rng = np.random.default_rng(int(context.settings["seed"]))

    def pick(which: np.ndarray, n: int) -> np.ndarray:
        rows = np.flatnonzero(which & known)
        return np.sort(rng.permutation(rows)[:n])

    train = pick(~found.out, int(context.settings["train"]))
    test = pick(found.out, int(context.settings["test"]))
    terms = (len(names) + 1) * (len(names) + 2) // 2
    if len(train) < 2 * terms or len(test) < 10:
        raise DataError(
            f"{len(train)} labelled stars to train a Cannon of {terms} terms, {len(test)} to test it",
            "use a survey with more labelled stars",
        )
    teff = np.asarray(context.survey["teff"].values, dtype=np.float64)
    teff = np.where(np.isfinite(teff), teff, table[:, 0])
    learn, judge = (Sample(*spectra(context.survey, rows), table[rows], teff[rows]) for rows in (train, test))
    cannons = {
        "Cannon": cannon(learn, judge),
        "Cannon in 5040 / Teff": cannon(learn, judge, inverse=True),
        "Cannon in slices of Teff": sliced_cannon(learn, judge, float(context.settings["slice"])),
    }
    z, w = found.z, np.asarray(found.ds["auxiliary"].values, dtype=np.float64)
    variance = np.diagonal(np.asarray(found.ds["covariance"].values, dtype=np.float64), axis1=1, axis2=2)
    rows = []
    for k, _, label in found.pairs:
        truth = table[test, names.index(label)]
        line = np.where(found.out, np.nan, found.labels[label])
        two = np.full(len(z), np.nan)
        ends = train[np.argsort(found.labels[label][train])][[len(train) // 10, -len(train) // 10]]
        two[ends] = found.labels[label][ends]
        values = {
            "latent, line": fit_calibration(z, w, variance, k, line, (0,)).apply(z, w, variance)[0][test],
            "latent, two stars": fit_calibration(z, w, variance, k, two, (0,)).apply(z, w, variance)[0][test],
            "all latents, map": fit_calibration(z, w, variance, k, line).apply(z, w, variance)[0][test],
            **{name: found_labels[:, names.index(label)] for name, found_labels in cannons.items()},
            "mean of the sample": np.full(len(test), table[train, names.index(label)].mean()),
        }
        rows += [(label, method, *_rmse(value - truth, rng)) for method, value in values.items()]
    methods = list(dict.fromkeys(r[1] for r in rows))
    labels = [p[2] for p in found.pairs]
    fig, ax = style.figure(aspect=0.7)
    for j, method in enumerate(methods):
        mine = [r for r in rows if r[1] == method]
        x = np.arange(len(labels)) + (j - (len(methods) - 1) / 2) * 0.11
        ax.errorbar(x, [r[2] for r in mine], [r[3] for r in mine], ls="", marker=style.MARKERS[j], label=method, ms=4)
    ax.set_xticks(range(len(labels)), [SYMBOLS[x] for x in labels])
    ax.xaxis.minorticks_off()
    ax.set_ylabel("RMSE (dex)")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.35)
    ax.legend(ncols=2, loc="upper left")
    return StudyResult(
        figure=fig,
        table={k: [r[i] for r in rows] for i, k in enumerate(("label", "method", "rmse", "rmse_error", "stars"))},
        columns={
            "label": "abundance",
            "method": "how it was found",
            "rmse": "root mean square error on held-out stars, dex",
            "rmse_error": "its uncertainty, stars drawn with replacement, dex",
            "stars": "test stars that have a value",
        },
        numbers={"stars": len(test), "labels": found.kind}
        | {f"rmse_{r[0]}_{_key(r[1])}": r[2] for r in rows if r[1] not in ("latent, two stars", "all latents, map")},
        caption=(
            f"Errors of abundances of {len(test):,} held-out stars: from latents by a line (fitted to the stars "
            "trained on, or through two of them) or a map of all latents, and from Cannons trained on "
            f"{len(train):,} spectra with their {'exact labels' if found.kind == 'truth' else 'labels'}: the paper's "
            "quadratic, one in 5040 / Teff, and one in slices of Teff."
        ),
    )


def _key(method: str) -> str:
    return "line" if method == "latent, line" else method.replace(" / ", "_").replace(" ", "_")


STUDY = Study(
    "vae_cannon",
    "Beside The Cannon",
    "Signor et al. 2025, appendix E",
    compute,
    {"train": 1000, "test": 1000, "seed": 0, "slice": 600.0},
)
