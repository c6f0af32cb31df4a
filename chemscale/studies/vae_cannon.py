"""Abundances from latents beside a quadratic Cannon trained on 1000 spectra (appendix E of the VAE paper)."""

from __future__ import annotations

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
    centre, scale = table[train].mean(0), table[train].std(0)
    flux, weight = spectra(context.survey, train)
    known_labels = (table[train] - centre) / scale
    model = fit_cannon(flux, weight, known_labels)
    flux, weight = spectra(context.survey, test)
    cannon = infer_cannon(flux, weight, *model, known_labels) * scale + centre
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
            "Cannon": cannon[:, names.index(label)],
            "mean of the sample": np.full(len(test), centre[names.index(label)]),
        }
        for method, value in values.items():
            error = value - truth
            boot = [np.sqrt(np.mean(rng.choice(error, error.size) ** 2)) for _ in range(200)]
            rows.append((label, method, float(np.sqrt(np.mean(error**2))), float(np.std(boot))))
    methods = list(dict.fromkeys(r[1] for r in rows))
    labels = [p[2] for p in found.pairs]
    fig, ax = style.figure(aspect=0.7)
    for j, method in enumerate(methods):
        mine = [r for r in rows if r[1] == method]
        x = np.arange(len(labels)) + (j - (len(methods) - 1) / 2) * 0.14
        ax.errorbar(x, [r[2] for r in mine], [r[3] for r in mine], ls="", marker=style.MARKERS[j], label=method, ms=4)
    ax.set_xticks(range(len(labels)), [SYMBOLS[x] for x in labels])
    ax.xaxis.minorticks_off()
    ax.set_ylabel("RMSE (dex)")
    ax.set_ylim(0, ax.get_ylim()[1] * 1.35)
    ax.legend(ncols=2, loc="upper left")
    return StudyResult(
        figure=fig,
        table={k: [r[i] for r in rows] for i, k in enumerate(("label", "method", "rmse", "rmse_error"))},
        columns={
            "label": "abundance",
            "method": "how it was found",
            "rmse": "root mean square error on held-out stars, dex",
            "rmse_error": "its uncertainty, stars drawn with replacement, dex",
        },
        numbers={f"rmse_{r[0]}_{r[1].split(',')[0].replace(' ', '_')}": r[2] for r in rows if "," not in r[1]}
        | {f"rmse_{r[0]}_line": r[2] for r in rows if r[1] == "latent, line"},
        caption=(
            f"Errors of abundances of {len(test):,} held-out stars: from latents by a line (fitted to the stars "
            "trained on, or through two of them) or a map of all latents, and from a quadratic Cannon trained on "
            f"{len(train):,} spectra with their labels."
        ),
    )


STUDY = Study(
    "vae_cannon",
    "Beside a quadratic Cannon",
    "Signor et al. 2025, appendix E",
    compute,
    {"train": 1000, "test": 1000, "seed": 0},
)
